"""Whole runs of video translation: what they leave, killed and resumed, on folders, and settings that do not fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from reelign import checkpoint
from reelign.config import dump_config, load_config, parse_config
from reelign.datasets.day_night import DayNight
from reelign.errors import ConfigError, DataError, RunFolderError
from reelign.generators.translation import load_translation
from reelign.loop import Run
from reelign.video_io import write_clip


class Quiet:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def stepped(self, step: int, total: int, values: dict[str, float]) -> None:
        self.losses.append(values["loss"])

    def evaluating(self, step: int, done: int, total: int) -> None:
        pass

    def warned(self, text: str) -> None:
        raise AssertionError(text)


def settings(output: Path, **training: int) -> dict[str, Any]:
    return {
        "output": str(output),
        "generator": {"kind": "translation", "channels": 4, "hidden": 4, "device": "cpu"},
        "domains": {"x": "shapes:day", "y": "shapes:night", "size": 32, "frames": 4},
        "algorithm": "video_translation",
        "video_translation": {"window": 3, "replay": 6, "discriminator_channels": 4, "critic_channels": 4},
        "training": {"steps": 6, "batch": 1, "checkpoint_every": 2, "keep": 0, **training},
        "evaluation": {"clips": 4, "batch": 4, "save_clips": 1},
    }


def run(config: dict[str, Any], resume: bool = False) -> Run:
    job = Run(parse_config(config), resume)
    assert job.train(Quiet())
    return job


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """One uninterrupted run that the others are compared with."""
    output = tmp_path_factory.mktemp("runs") / "straight"
    run(settings(output))
    return output


def logged(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a if k != "seconds")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert names == {"config.yaml", "environment.json", "metrics.jsonl", "status.json", "samples", "checkpoints"}
    lines = logged(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    terms = {"frames", "clips", "recurrent", "recycle", "cycle", "identity", "actor"}
    assert terms | {"loss", "judge_loss", "critic_loss", "rl_reward"} <= set(lines[0])
    assert sum(lines[0][name] for name in terms) == pytest.approx(lines[0]["loss"], rel=1e-5)
    assert lines[-1]["replay"] == 6
    for step in (0, 6):
        table = pd.read_csv(finished / f"samples/step_{step:06d}/scores.csv")
        assert table["to"].value_counts().to_dict() == {"x": 4, "y": 4}
        assert table[["psnr", "ssim", "cycle_error"]].notna().all(axis=None)
        assert table["file"].notna().sum() == 2
    assert json.loads((finished / "status.json").read_text())["finished"] is True
    back = load_translation(model=str(finished), device="cpu")
    assert back.picture_size() == (32, 32)
    assert back.frames() == 4


def test_the_config_is_written_whole_and_read_back(finished: Path, tmp_path: Path) -> None:
    config = load_config(finished / "config.yaml")
    assert config == parse_config(settings(finished))
    file = tmp_path / "again.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == config


def test_killed_and_resumed_equals_uninterrupted(finished: Path, tmp_path: Path) -> None:
    """The real command in a real process, killed in the middle; the resumed run ends bit for bit the same."""
    output, file = tmp_path / "killed", tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings(output)))
    command = [sys.executable, "-m", "reelign", "train", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists() or len((output / "metrics.jsonl").read_text().splitlines()) < 3:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("this machine ended the run before the signal came")
    run(settings(output), resume=True)
    ours, theirs = (checkpoint.load(o / "checkpoints/step_000006") for o in (output, finished))
    assert equal(ours, theirs)
    assert logged(output) == logged(finished)
    scores = [(o / "samples/step_000006/scores.csv").read_text() for o in (output, finished)]
    assert scores[0] == scores[1]


def test_a_changed_setting_is_not_resumed(finished: Path) -> None:
    config = settings(finished)
    config["video_translation"]["gamma"] = 0.5
    with pytest.raises(RunFolderError, match=r"changed: video_translation\.gamma$"):
        Run(parse_config(config), resume=True)


def test_training_goes_on_from_saved_weights_in_another_size(finished: Path, tmp_path: Path) -> None:
    config = settings(tmp_path / "on", steps=1)
    config["generator"] = {"kind": "translation", "model": str(finished), "device": "cpu"}
    config["domains"]["size"] = 48
    job = Run(parse_config(config))
    assert job.generator.picture_size() == (48, 48)
    assert job.generator.options.channels == 4
    assert job.plan()["domains"] == "shapes:day ↔ shapes:night, clips of 4×48×48"


def test_two_folders_of_clips(tmp_path: Path, random: torch.Generator) -> None:
    for side, light in (("x", "day"), ("y", "night")):
        (tmp_path / side).mkdir()
        for n, clip in enumerate(DayNight(frames=6, size=40).batch(light, 5, random)):
            write_clip(tmp_path / side / f"{n}.mp4", clip, 8)
    config = settings(tmp_path / "run", steps=2)
    config["domains"] |= {"x": str(tmp_path / "x"), "y": str(tmp_path / "y")}
    run(config)
    table = pd.read_csv(tmp_path / "run/samples/step_000002/scores.csv")
    assert table["cycle_error"].notna().all()
    assert "psnr" not in table or table["psnr"].isna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domains": None}, "go together; this run has video_translation, translation and no domains"),
        ({"algorithm": "reward_gradient"}, "go together; this run has reward_gradient, translation and two domains"),
        ({"generator": {}}, "go together; this run has video_translation, wan and two domains"),
        ({"rewards": [{"name": "compressibility"}]}, "config key rewards: video_translation takes none; got 1"),
        ({"video_translation": {"gama": 1}}, "unknown config key 'video_translation.gama': did you mean"),
        ({"video_translation": {"sigma1": 2}}, "config key video_translation.sigma1: .* got 2"),
        ({"video_translation": {"per_frame": True, "lambda_cycle": 0}}, "set lambda_cycle above 0"),
        ({"generator": {"kind": "translation", "height": 8}}, "config key generator.height"),
    ],
)
def test_settings_that_do_not_fit(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(settings(tmp_path) | change)


def test_an_empty_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    config = settings(tmp_path / "run")
    config["domains"]["x"] = str(tmp_path / "x")
    with pytest.raises(DataError) as caught:
        Run(parse_config(config))
    assert str(tmp_path / "x") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["translation_shapes", "translation_folders"])
def test_recipes_are_whole(name: str) -> None:
    config = load_config(Path(name))
    assert config.algorithm == "video_translation"
    assert config.domains is not None
