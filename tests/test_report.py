"""The summary against numbers worked by hand, and the page: whole, safe, silent, readable on a phone, clips playing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from reelign.errors import DataError
from reelign.report.page import build_report
from reelign.report.summary import describe, read_training, show, show_change, summarise
from reelign.video_io import write_clip

CHROMIUM = Path("/usr/bin/chromium")
PROMPTS = ("a red circle moving left", "<script>alert(1)</script>", "a blue square, growing", "a green triangle")
BEFORE = {
    "trained_reward": [0.1, 0.2, 0.3, 0.4],
    "reward/clip": [0.1, 0.2, 0.3, 0.4],
    "held_out/colour_accuracy": [0.0, 0.0, 1.0, 0.0],
    "held_out/motion_accuracy": [1.0, 1.0, 1.0, 1.0],
}
AFTER = {
    "trained_reward": [0.4, 0.5, 0.2, 0.9],
    "reward/clip": [0.4, 0.5, 0.2, 0.9],
    "held_out/colour_accuracy": [1.0, 1.0, 1.0, 1.0],
    "held_out/motion_accuracy": [1.0, 1.0, 0.0, 1.0],
}
Scores = dict[str, list[float]]


def write_samples(run: Path, step: int, scores: Scores, prompts: tuple[str, ...] = PROMPTS, saved: int = 2) -> Path:
    """One folder of samples; the first ``saved`` prompts have a clip, a square whose colour depends on step and row."""
    folder = run / "samples" / f"step_{step:06d}"
    folder.mkdir(parents=True)
    rows = []
    for index, prompt in enumerate(prompts):
        name = f"{index:04d}.mp4" if index < saved else ""
        if name:
            video = torch.full((9, 3, 32, 32), 0.1)
            for t in range(9):
                video[t, (index + bool(step)) % 3, 8:24, t : t + 16] = 0.9
            write_clip(folder / name, video, 8)
        values = {column: series[index] for column, series in scores.items()}
        rows.append({"index": index, "prompt": prompt, "seed": 1000 + index, "file": name, **values})
    pd.DataFrame(rows).to_csv(folder / "scores.csv", index=False)
    return folder


def write_run(run: Path, before: Scores = BEFORE, after: Scores = AFTER, **status: Any) -> Path:
    """A finished run of 4 prompts, written by hand."""
    write_samples(run, 0, before)
    write_samples(run, 90, after)
    (run / "config.yaml").write_text("output: runs/x\nprompts: {source: shapes, held_out: 4}\n# <b>bold</b>\n")
    (run / "environment.json").write_text('{"torch": "2.9", "device": {"name": "cpu", "threads": 1}}')
    lines = [
        {
            "step": i,
            "seconds": i / 2,
            "loss": 1 / i,
            "reward": i / 100,
            "reward/clip": i / 100,
            "gradient_norm": 2.0,
            "kl": 0.1,
        }
        for i in range(1, 91)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    state = {"finished": True, "steps": 90, "seconds": 192.4, "peak_memory_mb": 1536.0, "stopped": None}
    (run / "status.json").write_text(json.dumps(state | status))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "a run")


def test_summary_by_hand(run: Path) -> None:
    summary = summarise(run)
    trained, colour = summary["trained_reward"], summary["held_out"]["colour_accuracy"]
    assert (trained["before"], trained["after"], trained["delta"]) == pytest.approx((0.25, 0.5, 0.25))
    assert (trained["wins"], trained["losses"], trained["ties"], trained["win_rate"]) == (3, 1, 0, 0.75)
    assert trained["ci95"][0] <= trained["delta"] <= trained["ci95"][1]
    assert (colour["before"], colour["after"], colour["ties"], colour["win_rate"]) == (0.25, 1.0, 1, 1.0)
    assert summary["rewards"]["clip"] == trained
    assert (summary["prompts"], summary["steps"], summary["seconds"]) == (4, 90, 192.4)
    assert json.loads((run / "summary.json").read_text(encoding="utf-8")) == json.loads(json.dumps(summary))


def test_rows_are_paired_by_prompt_and_seed_whatever_their_order(run: Path) -> None:
    expected = summarise(run)
    path = run / "samples" / "step_000090" / "scores.csv"
    pd.read_csv(path, keep_default_na=False).iloc[::-1].to_csv(path, index=False)
    assert summarise(run) == expected


def test_a_prompt_with_several_seeds_counts_once(tmp_path: Path) -> None:
    """Two prompts, two seeds each: prompt means go 0.5 → 1 and 0 → 0, so n = 2 and the delta is 0.25."""
    run = write_run(tmp_path / "run")
    prompts = ("a", "a", "b", "b")
    for step, values in ((0, [0.0, 1.0, 0.0, 0.0]), (90, [1.0, 1.0, 0.0, 0.0])):
        folder = run / "samples" / f"step_{step:06d}"
        table = pd.read_csv(folder / "scores.csv", keep_default_na=False)
        table.assign(prompt=prompts, trained_reward=values).to_csv(folder / "scores.csv", index=False)
    summary = summarise(run)
    trained = summary["trained_reward"]
    assert (trained["n"], trained["delta"], trained["ci95"]) == (2, 0.25, (0.0, 0.5))
    assert (trained["wins"], trained["losses"], trained["ties"]) == (1, 0, 1)
    assert (summary["prompts"], summary["clips"]) == (2, 4)


def hacked() -> Scores:
    return AFTER | {"trained_reward": [0.5, 0.6, 0.7, 0.8], "held_out/motion_accuracy": [0.0, 0.0, 0.0, 0.0]}


def test_hacking_is_named_with_numbers(tmp_path: Path) -> None:
    (warning,) = [w for w in summarise(write_run(tmp_path / "run", after=hacked()))["warnings"] if "hacking" in w]
    assert "trained reward rose from 0.250 to 0.650 (+0.400" in warning
    assert "motion accuracy fell from 100\N{NO-BREAK SPACE}% to 0\N{NO-BREAK SPACE}% (−100 points" in warning
    assert "colour" not in warning


@pytest.mark.parametrize(
    "change",
    [
        {"held_out/motion_accuracy": [1.0, 1.0, 0.0, 1.0]},  # the fall may be chance
        {"trained_reward": [0.1, 0.2, 0.3, 0.4]},  # the trained reward did not rise
    ],
)
def test_hacking_needs_a_clear_rise_and_a_clear_fall(tmp_path: Path, change: Scores) -> None:
    warnings = summarise(write_run(tmp_path / "run", after=hacked() | change))["warnings"]
    assert not [w for w in warnings if "hacking" in w]


def test_other_warnings(tmp_path: Path) -> None:
    rewards = [{k: v for k, v in scores.items() if "held_out" not in k} for scores in (BEFORE, AFTER)]
    run = write_run(tmp_path / "run", *rewards, finished=False, stopped="SIGTERM", steps=95)
    assert summarise(run)["warnings"] == [
        "No held-out measure was taken: a higher trained reward alone does not show better videos.",
        "The run did not finish: SIGTERM.",
        "The last samples are from step 90, but the run has 95 steps.",
        "Only 4 prompts: intervals from fewer than 20 are too narrow to trust.",
    ]
    assert "Trained reward " in build_report(run).read_text(encoding="utf-8")


def test_numbers_in_words() -> None:
    space = "\N{NO-BREAK SPACE}"
    change = {"before": 0.708, "after": 0.875, "delta": 0.167, "ci95": (0.0938, -0.002)}
    assert (
        describe("held_out/x_accuracy", change)
        == f"from 71{space}% to 88{space}% (+17 points, 95{space}% interval +9{space}…{space}0)"
    )
    assert [show("r", x) for x in (0.12345, -1.5, 1234.5, 0.0, 2e-5)] == [
        "0.123",
        "−1.50",
        "1\u202f230",
        "0",
        "2.00e−05",
    ]
    assert [show_change("r", x) for x in (0.12345, -1234.5, 0.0)] == ["+0.123", "−1\u202f230", "0"]


def edit_scores(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        path = run / "samples" / "step_000090" / "scores.csv"
        change(pd.read_csv(path, keep_default_na=False)).to_csv(path, index=False)

    return edit


def remove(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("status.json"), "status.json, which does not exist"),
        (remove("config.yaml"), "config.yaml, which does not exist"),
        (remove("environment.json"), "environment.json, which does not exist"),
        (remove("metrics.jsonl"), "metrics.jsonl, which does not exist"),
        (remove("samples/step_000090/scores.csv"), "scores.csv, which does not exist"),
        (remove("samples/step_000090/0001.mp4"), "0001.mp4, which does not exist"),
        (lambda run: (run / "samples" / "step_000090").rename(run / "gone"), "with a later step; got step_000000"),
        (
            lambda run: (run / "samples" / "step_000000").rename(run / "gone"),
            "step_000000 with a later step; got step_000090",
        ),
        (lambda run: (run / "samples").rename(run / "gone"), "got none"),
        (lambda run: (run / "status.json").write_text("{}"), "lacks finished, peak_memory_mb, seconds, steps, stopped"),
        (lambda run: (run / "status.json").write_text("{"), "must be a JSON object"),
        (lambda run: (run / "metrics.jsonl").write_text("[1]\n"), "line 1, must be a JSON object"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "one object with a 'step' per line"),
        (lambda run: (run / "samples/step_000090/scores.csv").write_text(""), "must be a CSV table"),
        (edit_scores(lambda t: t.assign(seed=7)), "same .prompt, seed. pairs; 8 are in one"),
        (edit_scores(lambda t: t.iloc[1:]), "first 'a red circle moving left' with seed 1000"),
        (edit_scores(lambda t: pd.concat([t, t.iloc[:1]])), "each .prompt, seed. once"),
        (edit_scores(lambda t: t.drop(columns="trained_reward")), "lacks the column trained_reward"),
        (edit_scores(lambda t: t.drop(columns="reward/clip")), "same measures; reward/clip is in one"),
        (edit_scores(lambda t: t.assign(trained_reward="nan")), "column trained_reward, holds finite numbers"),
        (edit_scores(lambda t: t.assign(file="../../status.json")), "a clip lies in .* itself"),
    ],
)
def test_damage_is_one_clear_line(run: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(run)
    with pytest.raises(DataError, match=message) as caught:
        build_report(run)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


def test_a_line_cut_off_by_a_kill_is_left_out(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 91, "los')
    assert list(read_training(run)["step"]) == list(range(1, 91))


def test_page_is_whole_and_asks_for_nothing(run: Path) -> None:
    html = build_report(run).read_text(encoding="utf-8")
    assert not re.search(r"https?:|(src|href)=\"//|@import|url\((?!#)", html)
    assert html.count("data:video/mp4;base64,") == 4
    assert html.count("<svg") == 5  # reward, reward/clip, loss, gradient norm, kl
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert "on 4 prompts it never trained on" in html
    assert "Only 4 prompts" in html
    assert "device.threads" in html


def test_page_escapes_what_it_does_not_know(run: Path) -> None:
    html = build_report(run).read_text(encoding="utf-8")
    assert "<script>alert(1)</script>" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3
    assert "<b>bold</b>" not in html


def test_page_claims_unseen_prompts_only_where_the_config_says_so(run: Path) -> None:
    (run / "config.yaml").write_text("output: runs/x\n")
    assert "on 4 evaluation prompts" in build_report(run).read_text(encoding="utf-8")


def test_same_run_same_page(run: Path) -> None:
    assert build_report(run).read_bytes() == build_report(run).read_bytes()


def test_held_out_means_over_steps(run: Path) -> None:
    write_samples(run, 45, AFTER | {"held_out/colour_accuracy": [1.0, 0.0, 1.0, 0.0]}, saved=0)
    html = build_report(run).read_text(encoding="utf-8")
    assert "25.0\N{NO-BREAK SPACE}% → 50.0\N{NO-BREAK SPACE}% → 100.0\N{NO-BREAK SPACE}%" in html
    assert "steps 0, 45, 90" in html


def test_other_prompt_sets_stand_beside_the_verdict(run: Path) -> None:
    alone = summarise(run)
    other = run / "prompt_sets" / "in_domain"
    write_samples(other, 0, BEFORE, saved=0)
    write_samples(other, 90, BEFORE | {"held_out/colour_accuracy": [0.0] * 4}, saved=0)
    summary = summarise(run)
    assert summary.pop("prompt_sets")["in_domain"]["held_out"]["colour_accuracy"]["delta"] == -0.25
    assert summary == alone
    page = build_report(run).read_text()
    assert "Other prompts: in domain" in page
    assert page.count("They do not count") == 1


def test_the_guard_has_its_section(run: Path) -> None:
    assert "Guard" not in headings(build_report(run))
    changes = [{"name": "motion_accuracy", "kind": "judge", "base": 1.0, "now": 1.0, "size": 0.0, "level": "fine"}]
    fallen = [{**changes[0], "now": 0.5, "size": 9.0, "level": "alarm"}]
    looks = [{"step": 0, "reward": 0.1, "changes": changes}, {"step": 20, "reward": 0.4, "changes": fallen}]
    decision = {"step": 20, "action": "stop", "why": "step 20: motion accuracy fell", "to": 0}
    (run / "guard.json").write_text(json.dumps({"looks": looks, "decisions": [decision], "best": 0}))
    page = build_report(run)
    assert "Guard" in headings(page)
    assert "2 looks, stepped in 1 times" in page.read_text()
    assert "stop: step 20: motion accuracy fell" in page.read_text()


def headings(page: Path) -> list[str]:
    """The second-level headings of a page."""
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page.read_text())


def test_no_saved_clips_no_clips_section(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for step in (0, 90):
        path = run / "samples" / f"step_{step:06d}" / "scores.csv"
        pd.read_csv(path, keep_default_na=False).assign(file="").to_csv(path, index=False)
    assert "<video" not in build_report(run).read_text(encoding="utf-8")


def test_command_line(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from reelign.cli import report as verb

    monkeypatch.setattr(verb, "console", Console(width=120))
    verb.report(run)
    shown = capsys.readouterr().out
    assert str(run / "report.html") in shown
    assert "Colour accuracy" in shown
    assert "+75.0 points" in shown


def test_help_needs_neither_torch_nor_matplotlib() -> None:
    code = "import sys, reelign.cli.report; assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def wait_until(page: Any, condition: str, seconds: float = 20) -> None:
    """Poll: playwright's own ``wait_for_function`` needs eval, which the page's policy forbids."""
    for _ in range(int(seconds / 0.1)):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"not within {seconds} s: {condition}")


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium at /usr/bin/chromium")
@pytest.mark.parametrize(("width", "height", "scheme"), [(360, 740, "light"), (1280, 900, "dark")])
def test_page_in_a_browser(run: Path, tmp_path: Path, width: int, height: int, scheme: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    page_file = build_report(run)
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    flags += ["--disable-sync", "--disable-quic", "--no-first-run"]
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=str(CHROMIUM),
            args=flags,
            viewport={"width": width, "height": height},
            color_scheme=scheme,
        )
        page, faults, asked = context.new_page(), [], []
        page.on(
            "console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        videos = "[...document.querySelectorAll('video')]"
        wait_until(page, f"{videos}.every(v => v.readyState >= 2)")
        page.evaluate(
            f"window.moved = new Set(); {videos}.forEach(v => v.addEventListener('timeupdate', () => moved.add(v)))"
        )
        wait_until(page, "moved.size == 4")
        page.click("#play")
        assert page.evaluate(f"{videos}.every(v => v.paused)")
        page.click("#play")
        wait_until(page, f"{videos}.every(v => !v.paused)")
        context.close()
    assert faults == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
