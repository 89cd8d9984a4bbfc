"""Every recipe that ships: its names and numbers are right, and it trains on a random checkpoint of its family."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import tiny_families
import torch
from PIL import Image
from test_opensora import folders as opensora  # noqa: F401
from test_videocrafter2 import folder as videocrafter2  # noqa: F401
from test_videocrafter2 import parts  # noqa: F401

from reelign import config as run_config
from reelign.build import build_generator, build_weighted_reward
from reelign.catalogue import resolve
from reelign.config import FROM_CLIPS, load_config, parse_config, read_run_file
from reelign.contracts import Request, RewardCard
from reelign.datasets.prompts import load_prompts, split_prompts
from reelign.generators.modelscope import NATIVE
from reelign.generators.stable_video_diffusion import StableVideoDiffusionOptions
from reelign.run_parts import build_algorithm
from reelign.selfplay_config import load_selfplay

RECIPES = sorted(path.stem for path in (Path(run_config.__file__).parent / "recipes").glob("*.yaml"))
PROMPTS = ("a cat", "a dog")
SIZES = {
    "wan": {"height": 32, "width": 32, "frames": 9},
    "causal_wan": {"height": 32, "width": 32, "frames": 9},
    "modelscope": {"height": 32, "width": 32, "frames": 4},
    "stable_video_diffusion": {"height": 32, "width": 32, "frames": 4},
    "videocrafter2": {"height": 16, "width": 24, "frames": 3},
    "opensora": {"height": 36, "width": 40, "frames": 17},
}


class Brightness:
    """Mean of the pixels; stands for rewards whose weights are not here."""

    card = RewardCard("brightness", "mean of the pixels", range=(0.0, 1.0))

    def __call__(self, batch):
        return batch.video.mean((1, 2, 3, 4))


@pytest.fixture(scope="module")
def made(request, tmp_path_factory):
    """Options that put a random checkpoint in the place of a family's own, made when it is first asked for."""
    kept = {}

    def options(kind):
        if kind not in kept:
            kept[kind] = make(kind)
        return kept[kind]

    def make(kind):
        if kind in ("wan", "causal_wan"):
            return {"model": str(request.getfixturevalue("random_wan_folder")), "transformer": None}
        if kind == "videocrafter2":
            folder = request.getfixturevalue("videocrafter2")
            return {"model": str(folder), "tokenizer": str(folder / "tokenizer")}
        if kind == "opensora":
            return request.getfixturevalue("opensora")
        folder = tmp_path_factory.mktemp(kind)
        if kind == "modelscope":
            return {"model": str(tiny_families.build(tiny_families.modelscope, folder))}
        tiny_families.build(tiny_families.stable_video_diffusion, folder)
        Image.new("RGB", (32, 32), "red").save(folder / "red.png")
        lines = [json.dumps({"prompt": prompt, "first_frame": "red.png"}) for prompt in PROMPTS]
        (folder / "prompts.jsonl").write_text("\n".join(lines))
        return {"model": str(folder), "first_frames": str(folder / "prompts.jsonl")}

    return options


def check_rewards(terms):
    """Every option of every reward is one that it takes, and none is missing."""
    for term in terms:
        parameters = inspect.signature(resolve("reward", term.name)).parameters
        assert set(term.options) <= set(parameters)
        required = {name for name, p in parameters.items() if p.default is p.empty}
        assert required <= set(term.options)


def check_prompts(options):
    """Enough are left to train on; files of prompts are the user's own."""
    if isinstance(options.source, str) and options.source.startswith("prompts."):
        return
    split = split_prompts(load_prompts(options.source), options.held_out, options.seed)
    assert len(split.train) >= 8


def small(name, made):
    """The recipe's config on a random checkpoint, small clips, and rewards that need no weights."""
    data = read_run_file(Path(name))
    generator = data["generator"]
    kind = generator.get("kind", "wan")
    tiny = {**SIZES[kind], **made(kind), "dtype": "float32", "device": "cpu"}
    if kind == "wan":
        del tiny["transformer"]
    generator |= tiny
    for term in data["rewards"]:
        term |= {"name": f"{__name__}:Brightness", "options": {}}
    if "clips" in data:
        data["clips"] = {"source": "shapes"}
    algorithm = data.get("algorithm", "reward_gradient")
    settings = data.get(algorithm, {})
    if algorithm in ("reward_gradient", "partial_chain"):
        settings["steps"] = 3
    if kind == "stable_video_diffusion":
        settings["frames"] = [0, 9]
    if algorithm == "self_forcing":
        settings["critic_ratio"] = 2  # so that the generator has its turn
        if "teacher" in settings:
            settings["teacher"] |= {name: tiny[name] for name in (*SIZES[kind], "model", "dtype", "device")}
    return parse_config(data)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "selfplay"])
def test_a_recipe_is_whole_and_takes_two_steps(name, made, tmp_path):
    config = load_config(Path(name))
    if config.algorithm == "video_translation":  # tests/test_translation_run.py runs it
        return
    check_rewards(config.rewards)
    check_prompts(config.prompts)
    config = small(name, made)
    torch.manual_seed(0)
    generator = build_generator(config.generator.model_dump())
    reward = build_weighted_reward([term.model_dump() for term in config.rewards])
    algorithm = build_algorithm(config, generator, reward, tmp_path)
    before = {name: p.detach().clone() for name, p in generator.trainable().items()}
    clips = torch.rand(2, generator.frames(), 3, *generator.picture_size()) if config.algorithm in FROM_CLIPS else None
    for _ in range(2):
        logged = algorithm.step(Request(PROMPTS, source_videos=clips))
        assert all(torch.tensor(float(value)).isfinite() for value in logged.values())
    assert any(not torch.equal(before[name], p) for name, p in generator.trainable().items())


def test_the_recipe_of_selfplay_is_whole():
    config = load_selfplay(Path("selfplay"))
    check_rewards(config.rewards)
    check_prompts(config.prompts)


def test_the_frames_of_three_clips_exist_and_are_spread_evenly():
    config = load_config(Path("vader_svd_vjepa"))
    assert isinstance(config.generator, StableVideoDiffusionOptions)
    last = 14 + 2 * 13 - 1  # the published model makes 14 frames, and a clip shows the last of the one before once
    assert config.reward_gradient.frames.choose == tuple(int(i * last / 15 + 0.5) for i in range(16))


@pytest.mark.parametrize("name", ["aesthetic", "hps", "action"])
def test_vader_on_modelscope_is_as_published(name):
    config = load_config(Path(f"vader_modelscope_{name}"))
    options, settings = config.generator, config.reward_gradient
    assert (options.height, options.width, options.frames) == (384, 384, 16)
    assert (options.lora.rank, options.lora.alpha, options.lora.targets) == (16, 16, ("every",))
    assert (settings.steps, settings.guidance_scale, settings.k, settings.lr) == (25, 9.0, 1, 2e-4)
    assert (settings.weight_decay, settings.max_grad_norm) == (0, 1)
    assert (config.training.batch, settings.micro_batch) == (16, 1)
    assert settings.frames.choose == ("alternate" if name == "action" else "random")


def test_instructvideo_is_as_published():
    config = load_config(Path("instructvideo_modelscope"))
    options, settings = config.generator, config.partial_chain
    assert options.size(NATIVE) == (16, 256, 256)
    assert (options.lora.rank, options.lora.alpha) == (4, 4)
    assert (settings.steps, settings.tau, settings.guidance_scale, settings.k) == (20, 0.6, 3.0, 1)
    assert (settings.frames.choose, settings.frames.segments, settings.frames.attenuation) == ("segments", 4, 1.0)
    assert (settings.lr, settings.weight_decay, settings.offset_noise) == (1e-5, 0, 0.1)
    assert (config.training.batch, config.training.steps) == (8, 20_000)
