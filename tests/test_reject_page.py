"""``reelign reject``: files written, words on the screen, and the page, which shows clips and runs nothing."""

from __future__ import annotations

import base64
import hashlib
import re

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

from reelign.cli.reject import reject
from reelign.errors import ConfigError, DataError
from reelign.report.rejects import contact_strip, write_page
from reelign.selection.outliers import load_limits
from reelign.selection.reject import RejectOptions, reject_takes
from reelign.selection.takes import SCORE_COLUMNS, TakesFolder
from reelign.video_io import write_clip

HOSTILE = "<img src=x onerror=alert(1)>"


def fill(path, count=6, worst=True, group=HOSTILE):
    """A takes folder of ``count`` clips with scores; the first is blurred, the last does not decode where ``worst``."""
    folder, takes, scores = TakesFolder(path, create=True), [], []
    for number in range(count):
        file = path / f"clip{number}.mp4"
        video = torch.rand(5, 3, 32, 48, generator=torch.Generator().manual_seed(number))
        write_clip(file, video, 8)
        if worst and number == count - 1:
            file.write_bytes(file.read_bytes()[:300])
        take = hashlib.sha256(file.read_bytes()).hexdigest()
        takes.append({"take": take, "file": file.name, "prompt": "", "group": group, "generator": "", "seed": None})
        values = {"frames": 5.0, "height": 32.0, "width": 48.0, "black_share": 0.0, "frozen_share": 0.0}
        values["sharpness"] = 6 + 0.1 * number if number or not worst else -40.0
        broken = worst and number == count - 1
        for metric, value in values.items():
            scores.append(
                {
                    **dict.fromkeys(SCORE_COLUMNS, ""),
                    "take": take,
                    "metric": metric,
                    "version": 1,
                    "parameters": "{}",
                    "value": None if broken else value,
                    "status": "error" if broken else "ok",
                    "reason": "truncated: 300 bytes are there" if broken else "",
                }
            )
    folder.append_takes(pd.DataFrame(takes))
    folder.append_scores(pd.DataFrame(scores))
    return folder


def run(*arguments):
    """The verb, as the command line calls it; an error of the user's is raised."""
    app = typer.Typer()
    app.command()(reject)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def flat(text):
    """Text with its line breaks taken out."""
    return " ".join(text.split())


@pytest.fixture
def takes(tmp_path):
    return fill(tmp_path / "takes", 8)


def test_files_screen_and_page(takes):
    result = run(takes.path)
    rejected = pd.read_parquet(takes.path / "rejected.parquet")
    assert dict(zip(rejected["file"], rejected["gate"], strict=True)) == {
        "clip0.mp4": "outlier",
        "clip7.mp4": "decodes",
    }
    assert "2 of 8 takes rejected" in result.output
    assert (takes.path / "rejected.csv").is_file()
    page = (takes.path / "rejected.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 1
    assert "No picture: " in page
    assert "2 of 8 takes rejected" in page


def test_nothing_of_a_take_can_run_on_the_page(takes):
    run(takes.path)
    page = (takes.path / "rejected.html").read_text()
    assert HOSTILE not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_a_kept_take_stays_kept_in_the_next_run(takes):
    run(takes.path, "--keep", "clip0.mp4")
    assert list(pd.read_parquet(takes.path / "rejected.parquet")["file"]) == ["clip7.mp4"]
    again = run(takes.path)
    assert list(pd.read_parquet(takes.path / "rejected.parquet")["file"]) == ["clip7.mp4"]
    assert "1 kept by people" in again.output
    assert "Kept by people" in (takes.path / "rejected.html").read_text()
    with pytest.raises(DataError, match="fits 0 takes"):
        run(takes.path, "--keep", "nobody.mp4")


def test_limits_are_calibrated_saved_and_used_again(takes, tmp_path):
    accepted = fill(tmp_path / "accepted", 24, worst=False)
    limits = tmp_path / "limits.json"
    run(takes.path, "--calibrate", accepted.path, "--level", "0.05", "--save-limits", limits, "--no-page")
    saved = load_limits(limits)
    assert (saved.takes, saved.level) == (24, 0.05)
    assert not (takes.path / "rejected.html").exists()
    first = pd.read_parquet(takes.path / "rejected.parquet")
    run(takes.path, "--limits", limits, "--no-page")
    pd.testing.assert_frame_equal(first, pd.read_parquet(takes.path / "rejected.parquet"))
    assert len(pd.read_parquet(takes.path / "unusual.parquet")) == 0
    with pytest.raises(ConfigError, match="give one"):
        run(takes.path, "--limits", limits, "--calibrate", accepted.path)


def test_what_is_asked_of_every_take(takes):
    run(takes.path, "--size", "832x480", "--no-page")
    rejected = pd.read_parquet(takes.path / "rejected.parquet")
    assert (rejected[rejected["gate"] == "shape"]["reason"] == "48 pixels of width instead of 832, as asked").sum() == 7
    with pytest.raises(ConfigError, match="WIDTHxHEIGHT"):
        run(takes.path, "--size", "832")
    with pytest.raises(ConfigError, match="level"):
        run(takes.path, "--level", "0.7")
    with pytest.raises(ConfigError, match=r"gates\.black"):
        run(takes.path, "--black", "3")


def test_a_folder_without_takes_is_one_line(tmp_path):
    with pytest.raises(DataError, match="a takes folder holds"):
        run(tmp_path)


def test_a_strip_shows_the_first_and_the_last_frame(tmp_path):
    import cv2

    video = torch.zeros(30, 3, 48, 64)
    video[:, 0] = torch.linspace(0, 1, 30)[:, None, None]
    write_clip(tmp_path / "a.mp4", video, 8)
    address, damage = contact_strip(tmp_path / "a.mp4", pictures=4, height=48)
    data = np.frombuffer(base64.b64decode(address.partition(",")[2]), np.uint8)
    strip = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert damage == ""
    assert strip.shape == (48, 4 * 64 + 3 * 3, 3)
    assert strip[24, 32, 2] < 30
    assert strip[24, -32, 2] > 225


def test_a_strip_of_half_a_file_says_what_is_missing(tmp_path):
    write_clip(tmp_path / "a.mp4", torch.rand(20, 3, 64, 64), 8)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(data[: len(data) // 2])
    address, damage = contact_strip(tmp_path / "b.mp4")
    assert address.startswith("data:image/jpeg")
    assert "bytes are there" in damage
    assert contact_strip(tmp_path / "nothing.mp4")[0] == ""


def test_a_page_of_nothing(tmp_path):
    folder = fill(tmp_path / "takes", 3, worst=False)
    verdicts = reject_takes(folder.wide(), folder.scores())
    assert "0 of 3 takes rejected" in write_page(folder.path, verdicts, folder.wide(), RejectOptions()).read_text()
