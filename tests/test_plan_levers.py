"""The planner's levers: each lowers the peak of the phases it is for, by as much as is counted where it runs here."""

from __future__ import annotations

import pytest
import tiny_families as tiny
import torch
from test_plan import CPU, counted, run, told
from torch import nn

from reelign.build import build_generator
from reelign.config import dump_config
from reelign.contracts import RewardCard
from reelign.errors import ConfigError
from reelign.planning.devices import DEVICES
from reelign.planning.levers import LEVERS, changed, helpful
from reelign.planning.parts import networks
from reelign.planning.predict import predict

GPU = DEVICES["h100"]
NEEDED = "8-bit AdamW and quantised weights need the extra reelign[bitsandbytes]"


class Wide:
    """A reward with weights and activations of its own."""

    card = RewardCard("wide", "a network's opinion of the pixels", range=(-1e9, 1e9))

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, 256, 3, padding=1))
        self.network.requires_grad_(False)

    def __call__(self, batch):
        self.network.to(batch.video.device)
        return self.network(batch.video.flatten(0, 1)).unflatten(0, (len(batch), -1)).mean((1, 2, 3, 4))


class Wider(Wide):
    """Another."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Wan whose network weighs more than its activations, and a hundred times that of ``random_wan_folder``."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    from reelign.zoo.tiny_wan import build_text_encoder, save_pipeline
    from reelign.zoo.words import word_tokenizer

    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=64, in_channels=8, out_channels=8, text_dim=64, freq_dim=32,
        ffn_dim=1024, num_layers=4, rope_max_seq_len=64,
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 8, latents_std=[1.0] * 8,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("wan")
    save_pipeline(path, vae, transformer, build_text_encoder(), word_tokenizer(12))
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return tiny.build(tiny.stable_video_diffusion, tmp_path_factory.mktemp("svd"))


CHECKPOINTED = {"generator.gradient_checkpointing": True, "generator.decode_checkpointing": True}
APART = {"generator.merge_adapter": False}  # or the copy of the weights would be the peak
TWO_REWARDS = [{"name": f"{__name__}:Wide"}, {"name": f"{__name__}:Wider"}]
# What the run of a lever has beside what is common, where the lever would do nothing without.
BEFORE = {
    "generator.memory.decode_slicing": CHECKPOINTED | APART,
    "generator.memory.offload": CHECKPOINTED,
    "evaluation.batch": {"evaluation.batch": 2},
    "training.park_rewards": {"rewards": TWO_REWARDS},
    "algorithm.optimiser": {"generator.train_all": True},
    "generator.memory.decode_tiling": CHECKPOINTED | {"generator.height": 384, "generator.width": 384},
    "generator.train_all": {"generator.train_all": True},
    "algorithm.k": {"reward_gradient.k": 2},
    "generator.lora.rank": {"generator.lora.rank": 64},
    "generator.frames": {"generator.frames": 17},
    "generator.height": {"generator.height": 384},
    "generator.width": {"generator.width": 384},
}


def before(folder, key):
    return changed(run(folder, {"height": 32, "width": 32}), BEFORE.get(key, {}))


SLOW = ("generator.memory.decode_tiling", "decode tiling", "parked rewards")


@pytest.mark.parametrize(
    "lever", [pytest.param(x, id=x.key, marks=[pytest.mark.slow] * (x.key in SLOW)) for x in LEVERS]
)
def test_each_lever_lowers_the_peak_of_what_it_helps(lever, folder, pictures):
    config = before(folder, lever.key)
    if lever.key == "generator.decode_chunk":
        svd = {"kind": "stable_video_diffusion", "model": str(pictures), "frames": 4, "height": 32, "width": 32}
        config = changed(config, {"generator": svd, "reward_gradient.frames": {"choose": [0]}})
        config = changed(config, {"generator.decode_checkpointing": True})
    first = told(dump_config(config), GPU)
    settings = lever.pulled(config, first)
    assert settings, "the lever is in this run's options"
    then = told(dump_config(changed(config, settings)), GPU)
    helped = [phase for phase in first.phases if phase in lever.helps]
    assert max(then.phases[phase] for phase in helped) < max(first.phases[phase] for phase in helped)


# Settings without and with a lever
SAVED = {
    "decode slicing": (CHECKPOINTED | APART, {"generator.memory.decode_slicing": True}),
    "decode tiling": (
        CHECKPOINTED | APART | {"generator.height": 64, "generator.width": 64},
        {"generator.memory.decode_tiling": 32},
    ),
    "parked rewards": (APART | {"rewards": TWO_REWARDS}, {"training.park_rewards": True}),
}


def in_training(told):
    """The peak without texts, which are encoded once, and without the evaluation."""
    return max(size for phase, size in told.phases.items() if phase not in ("texts", "evaluation"))


@pytest.mark.parametrize("case", [pytest.param(x, marks=[pytest.mark.slow] * (x in SLOW)) for x in SAVED])
def test_saved_as_much_as_is_counted(case, folder):
    there, lever = SAVED[case]
    first = changed(run(folder, {"height": 32, "width": 32}), there)
    runs = (first, changed(first, lever))
    seen = [counted(config)[0] for config in runs]
    predicted = [told(dump_config(config)).above for config in runs]
    assert seen[1] < 0.95 * seen[0]
    assert predicted[0] - predicted[1] == pytest.approx(seen[0] - seen[1], rel=0.2)


def test_offloading_saves_as_much_as_is_counted(folder, monkeypatch):
    """On a GPU, of which a CPU that copies what it loads is the likeness: what is counted, and what rests there."""
    first = changed(run(folder, {"height": 32, "width": 32}), CHECKPOINTED | APART)
    second = changed(first, {"generator.memory.offload": True})
    monkeypatch.setattr("reelign.generators.levers.hollow", lambda: True)
    seen = []
    for config in (first, second):
        generator = build_generator(config.generator.model_dump())
        rests = sum(p.numel() * p.element_size() for n in networks(generator) for p in n.parameters())
        seen.append(counted(config)[0] + rests)
    ahead = [told(dump_config(config), GPU) for config in (first, second)]
    predicted = [in_training(p) - p.weights["autoencoder"] for p in ahead]
    assert seen[1] < 0.8 * seen[0]
    assert predicted[0] - predicted[1] == pytest.approx(seen[0] - seen[1], rel=0.2)
    assert predict(second, CPU).peak > ahead[1].peak, "a CPU has only main memory to offload to"


def test_parked_rewards_leave_the_device(folder):
    first = before(folder, "training.park_rewards")
    resting, parked = (told(dump_config(c), GPU) for c in (first, changed(first, {"training.park_rewards": True})))
    weights = sum(p.numel() * p.element_size() for p in Wide().network.parameters())
    assert resting.weights["rewards"] == 2 * weights
    assert "rewards" not in parked.weights
    assert resting.phases["optimiser"] - parked.phases["optimiser"] == 2 * weights


@pytest.mark.parametrize(("kind", "share"), [("int8", 0.25), ("nf4", 0.125 * (1 + 1 / 32))])
def test_quantised_weights_take_the_bits_of_their_layers(kind, share, folder):
    first = run(folder, {"height": 32, "width": 32})
    plain, rounded = (told(dump_config(c), GPU) for c in (first, changed(first, {"generator.memory.quantise": kind})))
    linear = 4 * 4 * (8 * 256**2 + 2 * 256 * 1024)  # bytes: layers, 8 square ones and 2 of the MLP
    saved = plain.weights["networks"] - rounded.weights["networks"]
    assert saved == pytest.approx((1 - share) * linear, rel=0.01)


def test_moments_in_8_bits_take_a_quarter_of_the_bytes(folder):
    first = changed(run(folder, {"height": 32, "width": 32}), {"generator.train_all": True})
    full, rounded = (
        told(dump_config(c), GPU) for c in (first, changed(first, {"reward_gradient.optimiser": "adamw8bit"}))
    )
    moments = 2 * full.weights["trained"]
    saved = full.phases["prefix"] - rounded.phases["prefix"]
    assert saved == pytest.approx((1 - (1 + 4 / 256) / 4) * moments, rel=0.02)


@pytest.mark.parametrize("lever", ["generator.memory.quantise=int8", "generator.memory.quantise=nf4",
                                   "reward_gradient.optimiser=adamw8bit"])  # fmt: skip
def test_what_bitsandbytes_saves_is_what_is_counted(lever, folder):
    pytest.importorskip("bitsandbytes", reason=NEEDED)
    key, _, value = lever.partition("=")
    whole = {"generator.train_all": True} if value == "adamw8bit" else {"generator.merge_adapter": False}
    first = changed(run(folder, {"height": 32, "width": 32}), whole)
    runs = (first, changed(first, {key: value}))
    seen = []
    for config in runs:
        generator = build_generator(config.generator.model_dump())
        rests = sum(p.numel() * p.element_size() for n in networks(generator) for p in n.parameters())
        seen.append(counted(config)[0] + rests)
    ahead = [told(dump_config(config)) for config in runs]
    predicted = [in_training(p) - p.weights["autoencoder"] - p.weights["encoders"] for p in ahead]
    assert predicted[1] == pytest.approx(seen[1], rel=0.2)
    assert predicted[0] - predicted[1] == pytest.approx(seen[0] - seen[1], rel=0.2)


def test_a_lever_that_excludes_another_waits(monkeypatch, folder):
    """Offloading is refused while every weight is trained, and pulled once that is off."""
    from reelign.planning import levers

    class Now:
        fullest, size, batch, fits = "backward", (81, 480, 832), 1, False

        def __init__(self, config, device):
            g = config.generator
            if g.train_all and g.memory.offload:
                raise ConfigError("choose one of the two")
            self.device = device
            self.peak = 100 - 50 * (not g.train_all) - 25 * g.memory.offload

    monkeypatch.setattr(levers, "predict", Now)
    config = run(folder, {"train_all": True})
    pulls = [pull for _, _, pull in helpful(config, Now(config, None))]
    assert [(list(p.settings), p.before, p.after) for p in pulls] == [
        (["generator.train_all"], 100, 50),
        (["generator.memory.offload"], 50, 25),
    ]
