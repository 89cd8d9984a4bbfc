"""Self-Forcing in the outer loop: from prompts and from clips, resumed bit for bit, the recipe, wrong settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from listeners import Deaf

from reelign import checkpoint
from reelign.config import load_config, parse_config
from reelign.errors import ConfigError
from reelign.loop import Run


def settings(folder, output, steps=4, **algorithm):
    size = {"height": 32, "width": 32, "frames": 9, "device": "cpu"}
    given = {"steps": 2, "critic_ratio": 2, "lr": 1e-3, "critic_lr": 1e-3, "average_from": 1}
    return {
        "output": str(output),
        "generator": {"kind": "causal_wan", "model": str(folder), "frames_per_block": 1, "lora": {"rank": 2}, **size},
        "prompts": {"source": [f"a {c} shape" for c in "abcdefghij"], "held_out": 2},
        "rewards": [{"name": "brightness_range"}],
        "algorithm": "self_forcing",
        "self_forcing": {**given, **algorithm},
        "training": {"steps": steps, "batch": 2, "checkpoint_every": 2, "keep": 0},
        "evaluation": {"save_clips": 1, "batch": 2},
        "guard": {"action": "off"},
    }


def run(config, resume=False):
    job = Run(parse_config(config), resume)
    assert job.train(Deaf())
    return job


def lines(output):
    found = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


@pytest.mark.parametrize("critic", ["lora", "all"])
def test_a_resumed_run_is_the_uninterrupted_one(random_wan_folder, tmp_path, critic):
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    run(settings(random_wan_folder, straight, critic=critic))
    run(settings(random_wan_folder, parts, steps=2, critic=critic))
    run(settings(random_wan_folder, parts, critic=critic), resume=True)
    assert lines(straight) == lines(parts)
    assert ["loss" in line for line in lines(straight)] == [False, True, False, True]
    one, other = (checkpoint.load(p / "checkpoints/step_000004")["algorithm"] for p in (straight, parts))
    for name, value in one["weights"].items():
        assert torch.equal(value, other["weights"][name])
    for name, value in one["critic"]["weights"].items():
        assert torch.equal(value, other["critic"]["weights"][name])


def test_an_adversary_learns_from_drawn_clips(tmp_path):
    config = settings("zoo:tiny-wan", tmp_path / "run", steps=1, objective="gan", critic="frozen", critic_ratio=1)
    config["generator"] |= {"height": None, "width": None, "frames": None}
    config["clips"] = {"source": "shapes:12"}
    job = run(config)
    assert job.config.clips is not None
    assert lines(tmp_path / "run")[0]["loss"] > 0
    assert list((tmp_path / "run/latents").glob("*.safetensors"))


def test_clips_go_with_an_adversary_only(tmp_path):
    with pytest.raises(ConfigError, match="cannot do without"):
        parse_config(settings("zoo:tiny-wan", tmp_path, objective="gan"))
    with pytest.raises(ConfigError, match="with no other"):
        parse_config({**settings("zoo:tiny-wan", tmp_path), "clips": {"source": "shapes"}})
    with pytest.raises(ConfigError, match="causal_wan"):
        Run(parse_config({**settings("zoo:tiny-wan", tmp_path / "run"), "generator": {"model": "zoo:tiny-wan"}}))


def test_the_recipe_is_a_run():
    config = load_config(Path("self_forcing"), ["self_forcing.objective=sid"])
    assert config.generator.kind == "causal_wan"
    assert config.settings.objective == "sid"
    assert config.settings.steps == 4
