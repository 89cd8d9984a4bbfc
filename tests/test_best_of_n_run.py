"""``reelign train`` on winners: the recipe, and a few steps of it on real files that report what changed."""

import json
from pathlib import Path

from typer.testing import CliRunner

from reelign.cli.main import app
from reelign.datasets.moving_shapes import MovingShapes
from reelign.datasets.shapes_folder import write_shapes


def test_a_folder_of_clips_trains_and_reports(tmp_path):
    for _ in write_shapes(tmp_path / "winners", MovingShapes(), 12, 0):
        pass
    changes = (
        "prompts.held_out=4",
        "training.steps=2",
        "training.batch=2",
        "guard.action=off",
        "evaluation.save_clips=2",
    )
    settings = [f"clips.source={tmp_path / 'winners'}", f"output={tmp_path / 'out'}", *changes]
    command = ["train", "best_of_n", *(word for setting in settings for word in ("--set", setting))]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "best_of_n, judged in 5 steps" in result.output
    assert (tmp_path / "out" / "report.html").is_file()
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["loss"] > 0 for line in lines)
    assert "held_out/shape_accuracy" in (tmp_path / "out/samples/step_000002/scores.csv").read_text()


def test_off_is_a_word_and_not_false():
    from reelign.config import load_config, read_yaml

    assert read_yaml("{a: off, b: true, c: no, d: False}") == {"a": "off", "b": True, "c": "no", "d": False}
    assert load_config(Path("demo"), ["guard.action=off"]).guard.action == "off"
