"""The report of a translation run: numbers from its files, clips side by side, and what is missing or wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from test_translation_metrics import Change
from typer.testing import CliRunner

from reelign.cli.main import app
from reelign.datasets.translation import DomainOptions, Domains
from reelign.errors import DataError
from reelign.evaluation import TranslationExaminer
from reelign.metrics.translation import ExamPlan
from reelign.plots.translation import translation_gif
from reelign.report.translation import build_translation_report, is_translation, read_evaluations, summarise

CONFIG = "output: x\nalgorithm: video_translation\nnote: '<script>alert(1)</script>'\n"


def make_run(folder, options, steps=(0, 20)):
    """A run whose translator is no change at step 0 and close to the night's mean colour later."""
    domains = Domains(options)
    for step in steps:
        model = Change(lambda v: v) if step == 0 else Change(lambda v: 0.2 * v, lambda v: (4 * v).clamp(0, 1))
        examiner = TranslationExaminer(domains, ExamPlan(clips=5, batch=5), save_clips=2)
        examiner.examine(model, folder / "samples" / f"step_{step:06d}", lambda done, total: None)
    logged = [{"step": s, "seconds": s, "loss": 1 / s, "gradient_norm": 1.0, "judge_loss": 0.3} for s in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logged))
    status = {"finished": True, "steps": max(steps), "seconds": 60.0, "peak_memory_mb": 100.0, "stopped": None}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "environment.json").write_text('{"python": "3"}')
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), DomainOptions(size=32, frames=8), (0, 10, 20))


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_the_summary(run):
    summary = summarise(run)
    assert json.loads((run / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert list(summary["directions"]) == ["y", "x"]
    night = summary["directions"]["y"]
    tables = read_evaluations(run)
    means = [tables[step].query("to == 'y'")["psnr"].mean() for step in (0, 20)]
    assert night["measures"]["psnr"]["before"] == pytest.approx(means[0])
    assert night["measures"]["psnr"]["after"] == pytest.approx(means[1])
    assert night["measures"]["psnr"]["ci95"][0] > 5
    assert night["measures"]["cycle_error"]["before"] == 0
    assert night["references"]["warping_error_source"] > 0
    assert night["sets"]["cmmd"]["before"]["clips"] == 5
    assert summary["warnings"] == ["Only 5 clips: intervals from fewer than 20 are too narrow to trust."]


def test_the_page(run):
    page = build_translation_report(run).read_text(encoding="utf-8")
    assert page.count("data:video/mp4;base64,") == 2 * 2 * 4  # directions, clips, source translated cycle truth
    for label in ("source, x", "translated to y", "back to x", "known y", "known x"):
        assert f"<span>{label}</span>" in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert re.search(r"x → y: PSNR from [\d.]+ to [\d.]+ dB \(better\)", page)
    assert "x → y: SSIM" in page  # along the way: three evaluations
    assert "judge_loss" in page


def test_without_known_translations(tmp_path):
    options = DomainOptions(x="shapes:day:rotating", y="shapes:night:bouncing", size=32, frames=4)
    run = make_run(tmp_path, options)
    page = build_translation_report(run).read_text(encoding="utf-8")
    assert page.count("data:video/mp4;base64,") == 2 * 2 * 3
    assert "No translation is known" in page
    assert "x → y: Cycle error from 0 to" in page
    assert "known y" not in page


def test_the_command(run, tmp_path):
    result = CliRunner().invoke(app, ["report", str(run), "--gif", str(tmp_path / "a.gif")], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "PSNR, dB" in result.output
    assert (run / "report.html").is_file()
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.size == (4 * (64 + 4), 2 * (64 + 4))
        assert gif.n_frames == 8


def test_what_is_no_translation_run(tmp_path):
    assert not is_translation(tmp_path)
    (tmp_path / "config.yaml").write_text("algorithm: reward_gradient")
    assert not is_translation(tmp_path)
    (tmp_path / "config.yaml").write_text("{")
    assert not is_translation(tmp_path)


def test_what_is_missing(run):
    shutil.rmtree(run / "samples" / "step_000000")
    with pytest.raises(DataError, match="compares step 0 with a later one"):
        build_translation_report(run)


def test_names_that_point_elsewhere(run):
    table = run / "samples" / "step_000020" / "scores.csv"
    table.write_text(table.read_text().replace("to_y_0000_source.mp4", "../../config.yaml"))
    with pytest.raises(DataError, match="which is no clip in"):
        build_translation_report(run)


def test_a_gif_of_nothing(run):
    with pytest.raises(DataError, match="saved no clip translated to 'z'"):
        translation_gif(run, run / "a.gif", to="z")


def test_a_run_that_stopped(run):
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"finished": False, "steps": 25, "stopped": "SIGINT"}))
    warnings = summarise(run)["warnings"]
    assert warnings[:2] == [
        "The run did not finish: SIGINT.",
        "The last evaluation is of step 20, but the run has 25 steps.",
    ]


def test_windows_of_few_clips(run):
    path = run / "samples" / "step_000020" / "sets.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"judged_on": {"x": 1, "y": 40}}))
    assert summarise(run)["warnings"][-1] == (
        "The windows of x that are judged come from 1 clip: intervals from fewer than 20 are too narrow to trust."
    )


def test_the_docs_name_every_setting():
    from reelign.algorithms.video_translation import Config

    page = (Path(__file__).resolve().parents[1] / "docs" / "algorithms" / "video_translation.md").read_text()
    named = set(re.findall(r"`(\w+)`", page))
    assert not (set(Config.model_fields) | set(DomainOptions.model_fields)) - named
