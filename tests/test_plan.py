"""The planner: what it predicts against what is counted, its levers, its order, and that it reads no weights."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from typer.testing import CliRunner

from reelign.algorithms.reward_gradient import RewardGradient
from reelign.build import build_generator, build_terms
from reelign.config import dump_config, parse_config, read_yaml
from reelign.contracts import Request, RewardCard
from reelign.errors import ConfigError, UnknownNameError
from reelign.planning import comparison, levers
from reelign.planning.devices import DEVICES, GIB, Device, find_device
from reelign.planning.levers import LEVERS, fit, helpful
from reelign.planning.meter import Meter
from reelign.planning.predict import latest, predict, shortened
from reelign.rewards.frames import FramePolicy
from reelign.rewards.weighted import WeightedReward
from reelign.run_folder import RunFolder

CPU = Device("cpu", 64 * GIB, {"half": 1.0, "float32": 1.0, "convolution": 1.0}, gpu=False)
PROMPTS = ("a red circle moving left", "a blue square bouncing")


class Brightness:
    """Mean of the pixels."""

    card = RewardCard("brightness", "mean of the pixels", range=(0.0, 1.0))

    def __call__(self, batch):
        return batch.video.mean((1, 2, 3, 4))


def run(folder, generator=None, **settings):
    """A small run on a folder of a Wan."""
    base = {"steps": 3, "guidance_scale": 3.0, "frames": [0, 4]}
    return parse_config(
        {
            "output": "never",
            "generator": {"model": str(folder), "frames": 5, "device": "cpu", **(generator or {})},
            "prompts": {"source": PROMPTS},
            "rewards": [{"name": f"{__name__}:Brightness"}],
            "reward_gradient": base | settings,
            "training": {"batch": 2},
            "evaluation": {"batch": 1},
        }
    )


def counted(config):
    """Peak bytes of an update above the weights, counted while it happens, and of the weights."""
    torch.manual_seed(0)
    generator = build_generator(config.generator.model_dump())
    reward = WeightedReward(build_terms([r.model_dump() for r in config.rewards]), config.training.park_rewards)
    with Meter() as meter:
        algorithm = RewardGradient(generator, reward, config.reward_gradient)
        for _ in range(2):  # the optimiser's state is there in the second
            meter.forget()
            algorithm.step(Request(PROMPTS))
    parts = generator.pipeline
    modules = (parts.transformer, parts.vae, parts.text_encoder)
    return meter.peak, sum(t.numel() * t.element_size() for m in modules for t in (*m.parameters(), *m.buffers()))


@cache
def told(written, device=CPU):
    """The prediction of a dumped config; each is made once."""
    return predict(parse_config(read_yaml(written)), device)


def plan(*args, **kwargs):
    return told(dump_config(run(*args, **kwargs)))


LEAST = {"gradient_checkpointing": True, "decode_checkpointing": True, "merge_adapter": False}
CASES = {
    "plain": ({}, {}),
    "least memory": (LEAST, {"micro_batch": 1}),
    "all weights, two steps": ({"train_all": True}, {"k": 2}),
    "bfloat16": ({"dtype": "bfloat16"}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_prediction_is_within_a_fifth_of_what_is_counted(random_wan_folder, case):
    generator, settings = CASES[case]
    seen, weights = counted(run(random_wan_folder, generator, **settings))
    predicted = plan(random_wan_folder, generator, **settings)
    assert predicted.above == pytest.approx(seen, rel=0.2)
    assert sum(predicted.weights.values()) == pytest.approx(weights, rel=0.01)


def test_no_weights_are_read(random_wan_folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("weights were read")

    for target in ("safetensors.torch.load_file", "safetensors.safe_open", "torch.load"):
        monkeypatch.setattr(target, refuse)
    monkeypatch.setattr("diffusers.models.model_loading_utils.load_state_dict", refuse)
    assert predict(run(random_wan_folder), CPU).peak > 0


@pytest.mark.parametrize("lever", ["gradient_checkpointing", "decode_checkpointing"])
def test_checkpointing_lowers_the_peak_of_training(random_wan_folder, lever):
    before, after = plan(random_wan_folder), plan(random_wan_folder, {lever: True})
    assert after.above < before.above
    assert sum(map(sum, (k.values() for k in after.flops.values()))) > sum(
        map(sum, (k.values() for k in before.flops.values()))
    ), "what is recomputed is counted"


def test_merging_costs_a_copy_of_the_adapted_weights_and_the_chain_no_memory(random_wan_folder):
    merged = plan(random_wan_folder)
    apart = plan(random_wan_folder, {"merge_adapter": False})
    longer = plan(random_wan_folder, steps=50)
    assert apart.phases["prefix"] < merged.phases["prefix"]
    assert longer.peak == merged.peak
    assert longer.seconds > merged.seconds


def test_a_short_run_stands_for_the_whole():
    config = run("zoo:tiny-wan", steps=25, k=2, micro_batch=3).reward_gradient
    short, prompts, times = shortened(config, batch=12)
    assert (short.steps, short.k, prompts) == (4, 2, 6)
    assert times == {"prefix": 2 * 23 / 2, "once": 1.0, "all": 2.0}


def test_frames_that_are_drawn_are_taken_to_be_the_latest():
    assert latest(FramePolicy(choose="random"), 17).choose == (16,)
    assert latest(FramePolicy(choose="segments", segments=4), 17).choose == (3, 7, 11, 15)
    assert latest(FramePolicy(choose="segments", segments=4, draw="first"), 17).choose == "segments"
    assert latest(FramePolicy(choose=(2, 5)), 17).choose == (2, 5)


def test_fit_pulls_levers_in_the_order_of_the_table(monkeypatch):
    class Now:
        fullest, size, batch = "backward", (81, 480, 832), 8

        def __init__(self, config, device):
            self.device = device
            g, a = config.generator, config.reward_gradient
            self.peak = 100
            self.peak -= 20 * g.gradient_checkpointing + 20 * (a.micro_batch == 1) + 15 * (g.dtype == "bfloat16")
            self.fits = self.peak <= device

    monkeypatch.setattr(levers, "predict", Now)
    config = run("zoo:tiny-wan", micro_batch=2)
    changed, now, pulls = fit(config, 60)
    assert [list(pull.settings) for pull in pulls] == [
        ["generator.gradient_checkpointing"],
        ["reward_gradient.micro_batch"],
    ]
    assert now.fits
    assert not changed.generator.decode_checkpointing, "a lever that does not help is put back"
    _, now, pulls = fit(config, 1)
    assert not now.fits
    assert [next(iter(pull.settings)) for pull in pulls][-1] == "generator.dtype"
    _, _, first = next(helpful(config, Now(config, 0)))
    assert first.settings == {"generator.gradient_checkpointing": True}
    assert LEVERS[0].key == "generator.gradient_checkpointing"
    assert (first.before, first.after) == (100, 80)


def test_devices_are_found_by_name_and_size():
    assert find_device("H100") is DEVICES["h100"]
    assert find_device("24GB").memory == 24 * GIB
    assert find_device("cpu").tflops["float32"] > 0
    with pytest.raises(UnknownNameError, match=r"h10.*h100"):
        find_device("h10")


def test_other_algorithms_are_refused_in_one_line():
    config = run("zoo:tiny-wan").model_copy(update={"algorithm": "best_of_n"})
    with pytest.raises(ConfigError, match="plan knows reward_gradient and partial_chain; this run is best_of_n"):
        predict(config, CPU)


def test_the_command_says_what_to_pull_and_what_fits(random_wan_folder, tmp_path):
    from reelign.cli.main import app

    file = tmp_path / "run.yaml"
    file.write_text(dump_config(run(random_wan_folder)))
    small = CliRunner().invoke(app, ["plan", str(file), "--device", "0.601GB"])
    assert small.exit_code == 1
    assert "does not fit" in small.output
    assert "--set " in small.output


class Told:
    """A prediction of 110 bytes."""

    device, peak, fullest, seconds = CPU, 110, "backward", 2.0


def test_a_run_on_a_gpu_says_how_good_the_prediction_was(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    for seconds in (1.0, 4.0, 7.5):
        folder.log({"step": 1, "seconds": seconds})
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 100)
    monkeypatch.setattr(comparison, "this_gpu", lambda: CPU)
    monkeypatch.setattr(comparison, "predict", lambda config, device: Told())
    comparison.compare(run("zoo:tiny-wan"), torch.device("cpu"), folder)
    assert not (tmp_path / comparison.FILE).exists()
    comparison.compare(run("zoo:tiny-wan"), torch.device("cuda"), folder)
    written = json.loads((tmp_path / comparison.FILE).read_text())
    assert (written["predicted_peak_bytes"], written["measured_peak_bytes"]) == (110, 100)
    assert written["predicted_over_measured"] == 1.1
    assert written["measured_seconds_of_a_step"] == 3.25


def test_a_finished_run_is_not_lost_where_nothing_can_be_predicted(tmp_path, monkeypatch):
    def refuse(config, device):
        raise ConfigError("this run cannot be planned")

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 100)
    monkeypatch.setattr(comparison, "this_gpu", lambda: CPU)
    monkeypatch.setattr(comparison, "predict", refuse)
    comparison.compare(run("zoo:tiny-wan"), torch.device("cuda"), RunFolder(tmp_path))
    assert json.loads((tmp_path / comparison.FILE).read_text())["not_predicted"] == "this run cannot be planned"
