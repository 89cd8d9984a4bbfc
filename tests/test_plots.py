"""Curves and grids: what is drawn, in which order, and that files open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_report import BEFORE, write_run, write_samples

from reelign.errors import DataError
from reelign.plots.curves import (
    inline_svg,
    means_figure,
    means_over_steps,
    quantities,
    save_curves,
    smooth,
    training_figure,
)
from reelign.plots.grids import before_after_gif, contact_sheet
from reelign.report.summary import clip_pairs, read_samples, read_training
from reelign.video_io import read_clip, write_clip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_quantities_put_the_reward_first() -> None:
    table = pd.DataFrame(1.0, [0], ["step", "seconds", "kl", "loss", "reward/clip", "gradient_norm", "reward"])
    table["never"] = float("nan")
    assert quantities(table) == ["reward", "reward/clip", "loss", "gradient_norm", "kl"]


def test_smoothing_by_hand() -> None:
    """Span 3 is a decay of 1/2: weights 1, ½, ¼ backwards, normalised."""
    assert list(smooth(pd.Series([0.0, 1.0, 1.0]))) == pytest.approx([0, 1 / 1.5, 1.5 / 1.75])


def test_training_figure_draws_what_was_logged() -> None:
    table = pd.DataFrame({"step": [1, 2, 3], "loss": [3.0, np.nan, 1.0]})
    raw, line = training_figure(table, "loss").axes[0].lines
    assert (list(raw.get_xdata()), list(raw.get_ydata())) == ([1, 3], [3, 1])
    assert list(line.get_ydata()) == pytest.approx([3, (1 + 3 / 2) / 1.5])
    with pytest.raises(DataError, match="a logged quantity: loss; got 'los'"):
        training_figure(table, "los")


def test_means_over_steps_by_hand(run: Path) -> None:
    write_samples(run, 45, {"trained_reward": [0.0] * 4, "held_out/colour_accuracy": [1.0, 0, 1, 0]}, saved=0)
    means = means_over_steps(read_samples(run))
    assert list(means.index) == [0, 45, 90]
    assert list(means["held_out/colour_accuracy"]) == [0.25, 0.5, 1.0]
    assert list(means_figure(means, "held_out/motion_accuracy").axes[0].lines[0].get_xdata()) == [0, 90]


def test_inline_svg_is_bare_and_takes_the_pages_colours() -> None:
    table = pd.DataFrame({"step": [1, 2], "loss": [1.0, 2.0]})
    first, second = (inline_svg(training_figure(table, "loss"), prefix) for prefix in ("a", "b"))
    assert first.startswith("<svg")
    assert "http" not in first
    assert "currentColor" in first
    assert "var(--accent)" in first
    assert first != second
    assert first.replace("a-", "b-") == second.replace("a-", "b-")


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_curves_are_saved(run: Path, tmp_path: Path, suffix: str) -> None:
    path = save_curves(read_training(run), tmp_path / f"curves{suffix}")
    assert path.stat().st_size > 10_000
    with pytest.raises(DataError, match=r"as .png or .svg; got 'x.bmp'"):
        save_curves(read_training(run), tmp_path / "x.bmp")


def test_clip_pairs_are_the_first_saved_ones(run: Path) -> None:
    pairs = clip_pairs(run)
    assert [pair.index for pair in pairs] == [0, 1]
    assert pairs[0].before == run / "samples" / "step_000000" / "0000.mp4"
    assert pairs[0].after == run / "samples" / "step_000090" / "0000.mp4"


def test_contact_sheet_shows_middle_frames_side_by_side(run: Path, tmp_path: Path) -> None:
    sheet = np.asarray(Image.open(contact_sheet(run, tmp_path / "sheet.png", scale=3, columns=1)))
    left, top, side = 12, 12 + 36, 96
    for pair, offset in zip(clip_pairs(run), (0, 96 + 36 + 12), strict=True):
        for clip, x in ((pair.before, left), (pair.after, left + side + 4)):
            shown = sheet[top + offset : top + offset + side, x : x + side]
            middle = (read_clip(clip).video[4].permute(1, 2, 0).numpy() * 255).round()
            assert np.array_equal(shown[1::3, 1::3], middle)


def test_gif_holds_the_last_frame_of_a_shorter_clip(run: Path, tmp_path: Path) -> None:
    write_clip(run / "samples" / "step_000090" / "0000.mp4", torch.rand(5, 3, 32, 32), 8)
    clip = read_clip(before_after_gif(run, tmp_path / "x.gif", prompts=1))
    assert clip.video.shape == (9, 3, 12 + 36 + 64 + 12, 12 + 64 + 4 + 64 + 12)
    assert clip.fps == pytest.approx(8, rel=0.05)
    after = clip.video[:, :, 48:112, 80:144]
    assert torch.equal(after[4], after[8])
    assert not torch.equal(after[3], after[4])


def test_grids_refuse_what_they_cannot_draw(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (0, 90):
        write_samples(run, step, BEFORE, saved=0)
    with pytest.raises(DataError, match="saved none"):
        before_after_gif(run, tmp_path / "x.gif")
    with pytest.raises(DataError, match="at least 1; got 0, 2 and 3"):
        contact_sheet(run, tmp_path / "x.png", prompts=0)
