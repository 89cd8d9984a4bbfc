"""The outer loop on a small random Wan: whole runs, kills, resumes, torn checkpoints, NaN, wrong settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
import yaml

from reelign import checkpoint
from reelign.config import dump_config, load_config, parse_config
from reelign.errors import ConfigError, NonFiniteError, ReelignError, RunFolderError, UnknownNameError
from reelign.loop import Run
from reelign.report.summary import summarise
from reelign.run_parts import require_same_run


class Quiet:
    """A listener that keeps what it hears."""

    def __init__(self):
        self.values = []

    def stepped(self, step, total, values):
        self.values.append((step, values["reward"]))

    def evaluating(self, step, done, total):
        pass

    def warned(self, text):
        self.values.append(text)


def settings(folder, output, **training):
    return {
        "output": str(output),
        "generator": {
            "model": str(folder),
            "height": 32,
            "width": 32,
            "frames": 5,
            "lora": {"rank": 2},
            "device": "cpu",
        },
        "prompts": {"source": [f"a {c} shape" for c in "abcdefghij"], "held_out": 3},
        "rewards": [{"name": "brightness_range"}, {"name": "temporal_smoothness", "weight": 3.0}],
        "reward_gradient": {"steps": 3, "guidance_scale": 2.0, "lr": 1e-2, "mode": "random", "k": 1, "eta": 0.5},
        "training": {"steps": 6, "batch": 2, "checkpoint_every": 2, "keep": 0, **training},
        "evaluation": {"save_clips": 1, "batch": 2},
        "guard": {"action": "off"},  # see test_guard.py
    }


@pytest.fixture(scope="module")
def folder(random_wan_folder):
    return random_wan_folder


def run(config, resume=False):
    job = Run(parse_config(config), resume)
    finished = job.train(Quiet())
    return job, finished


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """One uninterrupted run that the others are compared with."""
    output = tmp_path_factory.mktemp("runs") / "straight"
    run(settings(folder, output))
    return output


def test_a_run_leaves_what_it_promises(finished):
    names = {p.name for p in finished.iterdir()}
    assert names == {"config.yaml", "environment.json", "metrics.jsonl", "status.json", "samples", "checkpoints"}
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"reward", "reward/brightness_range", "reward/temporal_smoothness", "loss", "gradient_norm"} <= set(lines[0])
    for step in ("step_000000", "step_000006"):
        rows = (finished / "samples" / step / "scores.csv").read_text().splitlines()
        assert len(rows) == 4
        assert (finished / "samples" / step / "0000.mp4").stat().st_size > 500
    status = json.loads((finished / "status.json").read_text())
    assert status["finished"] is True
    assert status["steps"] == 6
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == [f"step_{i:06d}" for i in (2, 4, 6)]


def test_several_clips_of_each_held_out_prompt(folder, finished, tmp_path):
    config = settings(folder, tmp_path / "run", steps=1)
    config["evaluation"]["per_prompt"] = 3
    run(config)
    table = pd.read_csv(tmp_path / "run/samples/step_000000/scores.csv")
    assert table["prompt"].value_counts().tolist() == [3, 3, 3]
    assert table["seed"].is_unique
    once = pd.read_csv(finished / "samples/step_000000/scores.csv")
    pd.testing.assert_frame_equal(table[:2], once[:2])  # the first of each is what one a prompt would be
    assert table["seed"][:3].tolist() == once["seed"].tolist()
    assert (table[3:6]["trained_reward"].to_numpy() != once["trained_reward"].to_numpy()).all()
    summary = summarise(tmp_path / "run")
    assert (summary["prompts"], summary["clips"]) == (3, 9)


def same_checkpoint(one, other):
    a, b = checkpoint.load(one), checkpoint.load(other)
    a.pop("seconds"), b.pop("seconds")
    return equal(a, b)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def logged(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_and_resumed_equals_uninterrupted(folder, finished, tmp_path, number):
    """The real command in a real process, killed in the middle; the resumed run ends bit for bit the same."""
    output, file = tmp_path / "killed", tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings(folder, output)))
    command = [sys.executable, "-m", "reelign", "train", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists() or len((output / "metrics.jsonl").read_text().splitlines()) < 3:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    text, _ = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("this machine ended the run before the signal came")
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "stopped and saved at step" in text
        assert "--resume" in text
        assert json.loads((output / "status.json").read_text())["stopped"] == number.name
    _, done = run(settings(folder, output), resume=True)
    assert done
    assert same_checkpoint(output / "checkpoints" / "step_000006", finished / "checkpoints" / "step_000006")
    assert logged(output) == logged(finished)
    scores = [(o / "samples" / "step_000006" / "scores.csv").read_text() for o in (output, finished)]
    assert scores[0] == scores[1]


def test_torn_checkpoints_are_skipped(folder, finished, tmp_path, caplog):
    import shutil

    output = tmp_path / "torn"
    shutil.copytree(finished, output)
    config = (output / "config.yaml").read_text().replace(str(finished), str(output))
    (output / "config.yaml").write_text(config)
    shutil.rmtree(output / "samples" / "step_000006")
    state = output / "checkpoints" / "step_000006" / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    (output / "checkpoints" / "step_000004" / "manifest.json").unlink()
    job = Run(parse_config(settings(folder, output)), resume=True)
    assert job.step == 2
    assert "step_000006: state.pt is not what was written" in caplog.text
    assert "step_000004: manifest.json is missing" in caplog.text
    job.train(Quiet())
    assert same_checkpoint(output / "checkpoints" / "step_000006", finished / "checkpoints" / "step_000006")


def test_checkpoints_are_whole_or_absent(tmp_path):
    def full_disk(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(RunFolderError, match="No space left on device"):
        checkpoint.save(tmp_path / "step_000001", {"a": torch.ones(2)}, full_disk)
    assert list(tmp_path.iterdir()) == []


def test_only_the_newest_checkpoints_are_kept(folder, tmp_path):
    run(settings(folder, tmp_path / "r", steps=4, checkpoint_every=1, keep=2))
    assert sorted(p.name for p in (tmp_path / "r/checkpoints").iterdir()) == ["step_000003", "step_000004"]


class NanLater:
    """A reward that breaks at its third training call."""

    calls = 0

    def __init__(self):
        from reelign.contracts import RewardCard

        self.card = RewardCard("nan_later", "test", (-1e9, 1e9))

    def __call__(self, batch):
        score = batch.video.mean((1, 2, 3, 4))
        if batch.video.requires_grad and "shape" in batch.request.prompts[0]:
            NanLater.calls += 1
        return score * (float("nan") if NanLater.calls >= 3 else 1.0)


def test_a_reward_that_is_not_a_number_stops_the_run_and_names_it(folder, tmp_path):
    config = settings(folder, tmp_path / "nan")
    config["rewards"] = [{"name": f"{__name__}:NanLater"}]
    NanLater.calls = 0
    with pytest.raises(NonFiniteError) as caught:
        run(config)
    for word in ("stopped at step 3", "NanLater", "step_000002", "lower the learning rate"):
        assert word in str(caught.value)
    assert "stopped" in json.loads((tmp_path / "nan/status.json").read_text())


def test_trackers_get_every_step(folder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = {**settings(folder, tmp_path / "tb", steps=2), "trackers": ["tensorboard"]}
    run(config)
    events = EventAccumulator(str(tmp_path / "tb" / "reelign"))
    events.Reload()
    assert [e.step for e in events.Scalars("reward")] == [1, 2]


def test_further_prompt_sets_are_examined_before_and_after(folder, tmp_path):
    config = settings(folder, tmp_path / "run", steps=1)
    sets = {"in_domain": {"source": "trained_on", "count": 2}, "other": {"source": ["a dog", "a cat"], "count": 2}}
    config["evaluation"]["sets"] = sets
    job, _ = run(config)
    for step in (0, 1):
        said = {name: set(pd.read_csv(job.folder.samples(step, name) / "scores.csv").prompt) for name in (None, *sets)}
        assert said["other"] == {"a dog", "a cat"}
        assert said["in_domain"] <= set(job.prompts.train)
        assert said[None] == set(job.prompts.held_out)
    assert set(summarise(tmp_path / "run")["prompt_sets"]) == set(sets)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"../x": {"source": "animals"}}, "letters, digits and _"),
        ({"few": {"source": ["a", "b"], "count": 3}}, "3 of 2"),
    ],
)
def test_wrong_prompt_sets_are_refused(folder, tmp_path, sets, message):
    config = settings(folder, tmp_path / "run")
    config["evaluation"]["sets"] = sets
    with pytest.raises(ReelignError, match=message):
        run(config)
    assert not (tmp_path / "run").exists()


def test_config_round_trip_and_overrides(folder, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings(folder, tmp_path / "o")))
    config = load_config(file, ["reward_gradient.lr=1e-4", "rewards.1.weight=7", "output=elsewhere"])
    assert config.reward_gradient.lr == 1e-4
    assert config.rewards[1].weight == 7
    assert config.output == "elsewhere"
    assert parse_config(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (["rewards.0.name=brightnes_range"], UnknownNameError, "did you mean 'brightness_range'"),
        (["reward_gradient.learning_rate=1"], UnknownNameError, "unknown config key"),
        (["training.stepz=3"], UnknownNameError, "did you mean 'training.steps'"),
        (["training.steps=0"], ConfigError, "training.steps"),
        (["reward_gradient.k=9"], ConfigError, "k must be at most steps"),
        (["generator.model=/nowhere"], ReelignError, "no model folder at /nowhere"),
        (["prompts.source=/nowhere.txt"], ReelignError, "there is no file '/nowhere.txt'"),
        (["prompts.held_out=10"], ReelignError, "some prompts must be left for training"),
        (["rewards.0.options.lw=0.1"], UnknownNameError, "option of reward 'brightness_range'"),
        (["rewards=[]"], ConfigError, "rewards"),
        (["trackers=[wandbb]"], ConfigError, "trackers are"),
        (["nonsense"], ConfigError, "an override reads"),
        (["evaluation.measures=[shapez]"], UnknownNameError, "did you mean 'shapes'"),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(folder, tmp_path, change, error, words):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings(folder, tmp_path / "o")))
    with pytest.raises(error) as caught:
        Run(load_config(file, change))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_output_folders_are_guarded(folder, finished, tmp_path):
    with pytest.raises(RunFolderError, match="already holds a run"):
        Run(parse_config(settings(folder, finished)))
    with pytest.raises(RunFolderError, match="holds no run to resume"):
        Run(parse_config(settings(folder, tmp_path / "new")), resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        Run(parse_config(settings(folder, tmp_path / "file" / "run")))
    changed = settings(folder, finished)
    changed["reward_gradient"]["lr"] = 0.5
    with pytest.raises(RunFolderError, match=r"a resumed run keeps its config; changed: reward_gradient\.lr$"):
        Run(parse_config(changed), resume=True)


def test_a_resumed_run_may_be_longer_and_tracked(folder, tmp_path):
    """A list is one value: a tracker that is added makes no other run."""
    begun = parse_config(settings(folder, tmp_path))
    longer = parse_config(settings(folder, tmp_path, steps=9, keep=1) | {"trackers": ["tensorboard"]})
    require_same_run(dump_config(begun), longer)
    require_same_run(dump_config(longer), begun)
    chain = settings(folder, tmp_path)
    chain["reward_gradient"]["steps"] += 1  # not those of training
    with pytest.raises(RunFolderError, match=r"changed: reward_gradient\.steps$"):
        require_same_run(dump_config(begun), parse_config(chain))
