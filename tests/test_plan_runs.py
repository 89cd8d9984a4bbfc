"""What the planner says of partial chains, image-to-video and models of one file, against what is counted."""

from __future__ import annotations

import pytest
import test_opensora
import test_videocrafter2
import tiny_families as tiny
import torch
from test_families import CASES
from test_opensora import folders as opensora  # noqa: F401
from test_plan import CPU, GIB, run
from test_plan_levers import folder as wide  # noqa: F401
from test_videocrafter2 import folder as videocrafter  # noqa: F401
from test_videocrafter2 import parts  # noqa: F401

from reelign.algorithms.partial_chain import PartialChain
from reelign.algorithms.reward_gradient import RewardGradient
from reelign.build import build_generator, build_terms
from reelign.config import parse_config
from reelign.contracts import Request
from reelign.errors import ConfigError
from reelign.planning.meter import Meter
from reelign.planning.predict import predict
from reelign.rewards.weighted import WeightedReward

PROMPTS = ("a cat", "a dog")  # short enough for every model here
REWARD = {"name": "test_plan:Brightness"}


def counted(config):
    """Peak bytes of two updates above the weights, counted while they happen; the first encodes the texts."""
    generator = build_generator(config.generator.model_dump())
    reward = WeightedReward(build_terms([r.model_dump() for r in config.rewards]))
    random = torch.Generator().manual_seed(0)
    clips = [torch.rand(2, generator.frames(), 3, *generator.picture_size(), generator=random) for _ in range(2)]
    with Meter() as meter:
        if config.algorithm == "partial_chain":
            algorithm = PartialChain(generator, reward, config.partial_chain)
            requests = [Request(PROMPTS, source_videos=clip) for clip in clips]
        else:
            algorithm = RewardGradient(generator, reward, config.reward_gradient)
            takes = hasattr(generator, "family") and generator.family.takes_image
            requests = [Request(PROMPTS, first_frames=clip[:, 0] if takes else None) for clip in clips]
        for request in requests:
            algorithm.step(request)
    return meter.peak


def configured(options, algorithm="reward_gradient", **settings):
    base = {"steps": 3, "guidance_scale": 3.0, "frames": [0]}
    return parse_config(
        {
            "output": "never",
            "generator": {"device": "cpu", **options},
            "prompts": {"source": PROMPTS},
            "rewards": [REWARD],
            "algorithm": algorithm,
            algorithm: base | settings,
            "training": {"batch": 2},
            "evaluation": {"batch": 1},
        }
        | ({"clips": {"source": "shapes:4"}} if algorithm == "partial_chain" else {})
    )


@pytest.mark.parametrize(("size", "checkpointed"), [("random_wan_folder", False), ("wide", True)])
def test_a_partial_chain_needs_what_is_counted(size, checkpointed, request):
    """The wide one has ten times the weights, and more."""
    wan = {"model": str(request.getfixturevalue(size)), "frames": 5, "gradient_checkpointing": checkpointed}
    config = configured(wan | {"height": 32, "width": 32}, "partial_chain", steps=6, tau=0.5, frames=[0, 4])
    told = predict(config, CPU)
    assert told.above == pytest.approx(counted(config), rel=0.2)
    assert told.phases["clips"] > 0
    assert told.phases["texts"] > 0


IMAGES = ["stable_video_diffusion", "wan_2.2_image", "wan_2.2_5b_image", "ltx_image"]


@pytest.mark.parametrize("name", IMAGES)
def test_image_to_video_needs_what_is_counted(name, tmp_path):
    made = tiny.build(CASES[name].maker, tmp_path / name)
    config = configured({"model": str(made), "height": 32, "width": 32, **CASES[name].options})
    assert predict(config, CPU).above == pytest.approx(counted(config), rel=0.2)


def test_models_whose_weights_say_how_large_they_are(videocrafter, opensora, monkeypatch):  # noqa: F811
    """Their names and shapes are read, and nothing else."""
    size = {"height": 16, "width": 24, "frames": 3}
    one = {"kind": "videocrafter2", "model": str(videocrafter), "tokenizer": str(videocrafter / "tokenizer"), **size}
    two = {"kind": "opensora", **opensora, **test_opensora.SIZE, "frames": 17}
    configs = [configured(one), configured(two)]
    seen = [counted(config) for config in configs]

    def refuse(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr("torch._C.PyTorchFileReader.get_storage_from_record", refuse)
    monkeypatch.setattr("safetensors.torch.load_file", refuse)
    monkeypatch.setattr("reelign.zoo.published.load_file", refuse)
    for config, bytes_alive in zip(configs, seen, strict=True):
        assert predict(config, CPU).above == pytest.approx(bytes_alive, rel=0.2)


def test_a_published_model_that_is_not_here_has_its_published_size(videocrafter, monkeypatch):  # noqa: F811
    from reelign.generators import videocrafter as family
    from reelign.zoo.skeletons import without_weights

    monkeypatch.setattr(family, "_load_tokenizer", lambda name, words: words)
    with without_weights():
        generator = family.load_videocrafter(model="VideoCrafter/VideoCrafter2:model.ckpt", lora=None)
    assert generator.parameter_count() == 1_413_284_420
    assert generator.family.tokenizer == 49408
    assert sum(p.numel() for p in generator.family.text.parameters()) == pytest.approx(341e6, rel=0.01)
    assert test_videocrafter2.SIZES.channels != generator.family.unet.sizes.channels


def test_clips_that_go_on_are_refused_in_one_line(tmp_path):
    made = tiny.build(CASES["wan_2.1_image"].maker, tmp_path / "wan")
    wan = {"model": str(made), "height": 32, "width": 32, **CASES["wan_2.1_image"].options, "clips": 2}
    with pytest.raises(ConfigError, match=r"generator\.clips 2, each of which begins.*plan it with clips 1") as refused:
        predict(configured(wan), CPU)
    assert "\n" not in str(refused.value)


def test_every_setting_of_the_update_is_planned(random_wan_folder):
    config = run(
        random_wan_folder,
        {"dtype": "float16"},
        kl_weight=0.1, average=0.9, conflict_every=1, detach_input=True, mode="random", k=2, eta=1.0,
        frames={"choose": "random"},
    )  # fmt: skip
    data = config.model_dump(mode="json")
    data["rewards"] = [REWARD | {"normalise": True}, {"name": "clip", "keep_within": 0.1}]
    told = predict(parse_config(data), CPU)
    assert 0 < told.peak < GIB
