"""The demo: its promise in full (slow), and a few steps of it in every run of the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


def demo(out, *arguments):
    """Run ``reelign demo`` as a user does; returns its summary and what it printed."""
    environment = {**os.environ, "COLUMNS": "120", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "reelign", "demo", "--out", str(out), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=900)
    return json.loads((out / "summary.json").read_text()), done.stdout


def test_a_few_steps_of_the_demo(tmp_path):
    short = ["training.steps=2", "prompts.held_out=4", "guard.prompts=2", "evaluation.save_clips=2"]
    summary, said = demo(tmp_path / "run", *(word for change in short for word in ("--set", change)))
    assert summary["prompts"] == 4
    assert set(summary["held_out"]) == {"colour_accuracy", "shape_accuracy", "motion_accuracy"}
    assert {"delta", "ci95", "before", "after"} <= set(summary["trained_reward"])
    assert "report.html" in said
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "run" / "checkpoints" / "step_000002" / "adapter").is_dir()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_keeps_its_promise(tmp_path):
    summary, _ = demo(tmp_path / "run")
    colour, motion = summary["held_out"]["colour_accuracy"], summary["held_out"]["motion_accuracy"]
    assert summary["prompts"] >= 96
    assert colour["delta"] >= 0.10
    assert colour["ci95"][0] > 0
    assert motion["delta"] >= -0.02


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_hack_is_shown_and_named(tmp_path):
    summary, said = demo(tmp_path / "run", "--hack")
    assert summary["trained_reward"]["delta"] > 0
    assert summary["held_out"]["motion_accuracy"]["after"] < 0.6
    assert any("motion accuracy fell" in warning for warning in summary["warnings"])
    assert "Reward hacking" in said
