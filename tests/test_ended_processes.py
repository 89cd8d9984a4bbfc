"""Two processes that are told to stop, or killed: what is left goes on to the weights of a run that nobody ended."""

from __future__ import annotations

import json
import os
import signal
import time

import process_runs
import pytest
import torch
import torch.distributed as dist
from process_runs import settings, stop_early, train

from reelign import checkpoint

pytestmark = [
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(), reason="processes on a CPU need torch built with gloo"
    ),
    pytest.mark.timeout(900),
]
PATIENCE_S = 120.0  # on a busy machine; far below the half hour of distributed.TIMEOUT


def short(folder, output, **more):
    """Four steps, a checkpoint at the second, and little to judge."""
    evaluation = {"measures": [], "save_clips": 0}
    config = settings(folder, output, evaluation=evaluation, guard={"action": "off"}, **more)
    config["prompts"] = {"source": [f"a {c} shape" for c in "abcdefgh"], "held_out": 2}
    config["reward_gradient"]["micro_batch"] = 2
    config["generator"]["merge_adapter"] = False  # which rounds, and which processes with parts cannot do
    return config


def until_waiting(run, processes, numbers):
    """Returns when those processes wait, in the run's folder."""
    while not all((run / f"waits_{number}").exists() for number in numbers):
        assert all(process.exitcode is None for process in processes)
        time.sleep(0.01)


@pytest.fixture(scope="module")
def unbroken(random_wan_folder, tmp_path_factory):
    """Weights of a run that nobody ended."""
    config = short(random_wan_folder, tmp_path_factory.mktemp("unbroken") / "run")
    return process_runs.launch(tmp_path_factory.mktemp("found"), 2, run=(train, {"config": config}))[0]["run"]


@pytest.mark.parametrize("in_parts", [False, True], ids=["whole", "in_parts"])
@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGKILL])
def test_an_ended_run_goes_on_as_if_it_had_not(random_wan_folder, tmp_path, unbroken, ended_by, in_parts):
    """SIGTERM after step 3 saves it; after SIGKILL the checkpoint of step 2 is there."""
    run = tmp_path / "run"
    config = short(random_wan_folder, run)
    processes = process_runs.start(tmp_path, 2, in_parts, run=(stop_early, {"config": config}))
    until_waiting(run, processes, (0, 1))
    for process in processes:
        os.kill(process.pid, ended_by)
    if ended_by == signal.SIGTERM:
        (run / "go").touch()
    for process in processes:
        process.join(PATIENCE_S)
    saved = checkpoint.latest(run / "checkpoints")
    if ended_by == signal.SIGTERM:
        assert [torch.load(tmp_path / f"2_{number}.pt")["run"] for number in (0, 1)] == [(False, 3)] * 2
        assert json.loads((run / "status.json").read_text())["stopped"] == "SIGTERM"
        assert saved.name == "step_000003"
    else:
        assert [process.exitcode for process in processes] == [-signal.SIGKILL] * 2
        assert saved.name == "step_000002"
    rest = process_runs.launch(tmp_path, 2, in_parts, run=(train, {"config": config, "resume": True}))
    for name, weights in rest[0]["run"].items():
        assert torch.equal(weights, unbroken[name])
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [1, 2, 3, 4]
    assert all(line["gradient_norm"] > 1e-3 for line in logged)  # or there is nothing to compare


@pytest.mark.parametrize("in_parts", [False, True], ids=["whole", "in_parts"])
def test_when_one_is_killed_the_other_ends_and_says_so(random_wan_folder, tmp_path, in_parts):
    """It waits for gradients or, where networks are in parts, in the middle of a pass."""
    run = tmp_path / "run"
    reward = {"name": "process_runs:HaltsInTheSecond", "options": {"folder": str(run)}}
    config = short(random_wan_folder, run, rewards=[reward])
    processes = process_runs.start(tmp_path, 2, in_parts, run=(train, {"config": config}))
    until_waiting(run, processes, (1,))
    os.kill(processes[1].pid, signal.SIGKILL)
    processes[0].join(PATIENCE_S)
    assert processes[0].exitcode == 1
    said = (tmp_path / "said_0").read_text()
    assert said.startswith("all processes of a run go on together; one is gone or silent (")
    assert said.endswith("see what it wrote last, and go on with --resume")
    assert json.loads((run / "status.json").read_text())["stopped"] == said


def test_one_that_fails_between_passes_leaves_its_reason(random_wan_folder, tmp_path):
    """With networks in parts it cannot speak while the other waits for its weights."""
    config = short(random_wan_folder, tmp_path / "run", rewards=[{"name": "process_runs:FailsInTheSecond"}])
    processes = process_runs.start(tmp_path, 2, True, run=(train, {"config": config}))
    for process in processes:
        process.join(PATIENCE_S)
    assert [process.exitcode for process in processes] == [1, 2]
    assert (tmp_path / "said_0").read_text() == "process 2 of 2 failed: the second process has had enough"
