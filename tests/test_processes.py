"""Several processes: an update, an evaluation, a resumed run are those of one process; one that fails ends all.

Processes are forked from a server that has imported everything once, because on a CPU imports cost more than steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import process_runs
import pytest
import torch
import torch.distributed as dist
import yaml
from process_runs import (
    draw_clips,
    examine,
    gradients,
    require_logged_alike,
    settings,
    spread_squares,
    train,
    train_apart,
)  # fmt: skip

from reelign import checkpoint
from reelign.config import parse_config
from reelign.errors import ConfigError

pytestmark = [
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(), reason="processes on a CPU need torch built with gloo"
    ),
    pytest.mark.timeout(900),  # seven processes import everything; on a busy machine that takes its time
]
CLOSE = {"rtol": 0, "atol": 1e-6}


def from_clips(folder, output):
    """The denoising loss, with captions dropped."""
    more = {"flow_matching": {"steps": 2, "lr": 1e-3, "caption_dropout": 0.5, "micro_batch": 1}}
    off = {"guard": {"action": "off"}, "rewards": [{"name": "brightness_range"}], "clips": {"source": "shapes:6"}}
    return settings(folder, output, 3, algorithm="flow_matching", **more, **off)


def self_forced(folder, output):
    """A causal generator and its critic, in turns."""
    config = settings(folder, output, 2, algorithm="self_forcing", guard={"action": "off"})
    config["generator"] |= {"kind": "causal_wan", "frames_per_block": 1}
    config["rewards"] = [{"name": "brightness_range"}]
    config["self_forcing"] = {"steps": 2, "critic_ratio": 2, "lr": 1e-3, "critic_lr": 1e-3, "average_from": 1}
    return config


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Does work in a number of processes; see ``process_runs.launch``."""
    return partial(process_runs.launch, tmp_path_factory.mktemp("found"))


@pytest.fixture(scope="module")
def runs(launch, random_wan_folder, tmp_path_factory):
    """The same runs by one process and by two, and one of each that was stopped half-way and taken up by the other."""
    root, model = tmp_path_factory.mktemp("runs"), random_wan_folder
    kinds = {"rewarded": settings, "denoised": from_clips, "self_forced": self_forced}
    alike = {"clips": (draw_clips, {}), "squares": (spread_squares, {})}

    def whole(count):
        return {name: (train, {"config": kind(model, root / f"{name}{count}")}) for name, kind in kinds.items()}

    def half(count):
        return {"half": (train, {"config": settings(model, root / f"half{count}", 2)})}

    def rest(count):
        config = settings(model, root / f"half{count}", trackers=["tensorboard"])
        return {"rest": (train, {"config": config, "resume": True})}

    def examined(count):
        return {"examined": (examine, {"config": settings(model, root / f"examined{count}")})}

    apart = {"apart": (train_apart, {"config": settings(model, root / "apart", 2)})}
    one = launch(1, **whole(1), **half(1), **alike, **examined(1))
    two = launch(2, **whole(2), **half(2), **rest(1), **alike, **examined(2), **apart, gradients=(gradients, {}))
    last = launch(1, **rest(2))
    return root, one[0] | {"rest": last[0]["rest"]}, two


@pytest.mark.parametrize("name", ["rewarded", "denoised", "self_forced"])
def test_processes_share_an_update(runs, name):
    """Both processes end with the same weights, and with those of one process that has the whole batch."""
    _, one, (first, second) = runs
    assert one[name].keys() == first[name].keys()
    for key, weights in first[name].items():
        assert torch.equal(weights, second[name][key])
        torch.testing.assert_close(weights, one[name][key], **CLOSE)


def test_processes_that_do_not_average_are_found_out(runs):
    """What the test above compares tells averaged gradients from others."""
    _, one, (first, second) = runs
    for other in (one["half"], second["apart"]):
        assert max(float((first["apart"][key] - other[key]).abs().max()) for key in other) > 1e-4
    for key, weights in one["half"].items():
        torch.testing.assert_close(first["half"][key], weights, **CLOSE)


def test_held_out_clips_are_shared_out(runs):
    """Three clips, two at a time: one process makes all, and of two each makes a part; the rows are all of them."""
    _, one, (first, second) = runs
    assert one["examined"] == ([2, 1], 3)
    assert (first["examined"], second["examined"]) == (([2], 3), ([1], 3))


@pytest.mark.parametrize("name", ["rewarded", "denoised", "self_forced"])
def test_what_is_logged_and_judged_is_that_of_one_process(runs, name):
    root, _, _ = runs
    one, two = root / f"{name}1", root / f"{name}2"
    require_logged_alike(one, two)
    for step in sorted(path.name for path in (one / "samples").iterdir()):
        scores = [pd.read_csv(folder / "samples" / step / "scores.csv") for folder in (one, two)]
        pd.testing.assert_frame_equal(*scores, rtol=1e-4, atol=1e-6)
    names = [
        {str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix != ".safetensors"} for folder in (one, two)
    ]
    assert names[0] == names[1]
    assert json.loads((two / "environment.json").read_text())["processes"] == 2


def test_the_guard_sees_what_it_sees_in_one_process(runs):
    looks = [json.loads((runs[0] / f"rewarded{n}" / "guard.json").read_text())["looks"] for n in (1, 2)]
    assert [look["step"] for look in looks[0]] == [0, 4]
    for one, two in zip(*looks, strict=True):
        assert one["reward"] == pytest.approx(two["reward"], rel=1e-4, abs=1e-6)
        assert [c["now"] for c in one["changes"]] == pytest.approx(
            [c["now"] for c in two["changes"]], rel=1e-3, abs=1e-5
        )


def test_a_run_goes_on_in_another_number_of_processes(runs):
    """One to two, and two to one: the weights, their average and the optimiser are those of the uninterrupted run."""
    root, one, two = runs
    for key, weights in one["rewarded"].items():
        torch.testing.assert_close(two[0]["rest"][key], weights, **CLOSE)
        torch.testing.assert_close(one["rest"][key], weights, **CLOSE)
    parts = [
        checkpoint.load(root / f / "checkpoints/step_000004")["algorithm"] for f in ("rewarded1", "half1", "half2")
    ]
    for other in parts[1:]:
        torch.testing.assert_close(other["average"], parts[0]["average"], **CLOSE)
        torch.testing.assert_close(
            other["balance"]["multipliers"], parts[0]["balance"]["multipliers"], rtol=1e-2, atol=1e-4
        )
    assert len((root / "half2/metrics.jsonl").read_text().splitlines()) == 4


def test_processes_draw_the_same_clips_and_leave_out_the_same(runs):
    _, one, two = runs
    assert one["clips"] == two[0]["clips"] == two[1]["clips"]
    assert len(one["clips"]) == 24
    assert {"5", "7"}.isdisjoint(one["clips"])


def test_work_is_spread_and_comes_back_in_order(runs):
    _, one, two = runs
    assert one["squares"] == [(n * n, 0) for n in range(5)]
    assert two[0]["squares"] == two[1]["squares"] == [(n * n, n % 2) for n in range(5)]


def test_weights_begin_alike_and_gradients_are_averaged(runs):
    for begun, averaged, noticed in (found["gradients"] for found in runs[2]):
        assert begun == [[0.0] * 3] * 3 + [[1.0] * 2]
        assert averaged == {"a": [1.5] * 3, "b": [0.5] * 3, "c": None, "half": [1.0] * 2}
        assert "their norms differ by 50%" in noticed


def test_a_failing_process_ends_all_with_one_line(random_wan_folder, tmp_path):
    """The real command under the real launcher."""
    file = tmp_path / "run.yaml"
    config = settings(random_wan_folder, tmp_path / "run", rewards=[{"name": "process_runs:FailsInTheSecond"}])
    file.write_text(yaml.safe_dump(config | {"guard": {"action": "off"}}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [*command, "-m", "reelign", "train", str(file)], env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    said = [line for line in (ended.stdout + ended.stderr).splitlines() if line.startswith("error ")]
    assert said == ["error process 2 of 2 failed: the second process has had enough"]
    assert "enough" in json.loads((tmp_path / "run/status.json").read_text())["stopped"]
    assert ended.stdout.count("held out") == 1  # the plan is shown by the first process alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"batch": 3}}, "a multiple of 2; got 3"),
        ({"algorithm": "video_translation"}, "video_translation runs in one process"),
    ],
)
def test_what_cannot_be_shared_is_refused(monkeypatch, tmp_path, change, message):
    from reelign import distributed, run_parts

    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(run_parts, "count", lambda: 2)
    config = parse_config(settings("zoo:tiny-wan", tmp_path))
    for name, value in change.items():
        new = value if isinstance(value, str) else getattr(config, name).model_copy(update=value)
        config = config.model_copy(update={name: new})
    with pytest.raises(ConfigError, match=message):
        run_parts.my_rows(config)


FSDP2 = process_runs.FSDP2


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DEEPSPEED, which is not supported"),
        (FSDP2 | {"FSDP_VERSION": "1"}, "FSDP_VERSION, reelign knows 2 alone; got 1: launch with --fsdp_version 2"),
        (
            FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"},
            "knows false alone; got true: launch with --fsdp_offload_params false",
        ),
        ({"LOCAL_RANK": "7"}, "this machine has 1"),
    ],
)
def test_other_launches_are_refused(monkeypatch, environment, message):
    from reelign.distributed import processes

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message), processes():
        pass


@pytest.mark.parametrize(("asked", "in_parts"), [("--use_fsdp --fsdp_version 2", True), ("--multi_gpu", False)])
def test_what_accelerate_launch_asks_for_is_understood_and_taken_from_others(monkeypatch, asked, in_parts):
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    from reelign.launch import asked_for_parts

    usual = "--num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no -m reelign train"
    told = prepare_multi_gpu_env(launch_command_parser().parse_args(f"{asked} {usual}".split()))
    monkeypatch.setattr(os, "environ", told)
    assert asked_for_parts() is in_parts
    assert not {"ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"} & told.keys()


def test_other_verbs_are_refused_under_a_launcher(monkeypatch):
    from typer.testing import CliRunner

    from reelign.cli.main import app

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    ended = CliRunner().invoke(app, ["metrics"])
    assert str(ended.exception) == "of reelign's verbs only train runs in several processes; got metrics in 2"
