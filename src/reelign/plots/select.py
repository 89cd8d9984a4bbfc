"""What was selected, to look at: winners beside their runners-up, and best-of-n curves.

A contact sheet shows the first, middle and last frame of each, the winner on the left. A curve has two panels: what the
selector promises against what gold delivers over n, and gold against the selector's own value.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from reelign.errors import ClipError
from reelign.plots.curves import ACCENT, INK, STYLE, plain_axes
from reelign.selection.best_of import BestOf
from reelign.video_io import read_clip

PAPER, TEXT, FAINT, WARN, EMPTY = (250, 249, 246), (28, 29, 31), (107, 104, 96), (170, 70, 0), (228, 226, 220)
HEIGHT, GAP, BETWEEN, MARGIN, LINE = 96, 3, 18, 14, 17  # pixels
FONT, SMALL = 13, 12
SIZE = (7.4, 2.9)  # inches


def winners_sheet(winners: pd.DataFrame, locate: Callable[[str], Path], path: Path, groups: int = 24) -> Path:
    """Save a PNG: one row a winner, its first, middle and last frame, and those of its runner-up.

    Args:
        winners: of a ``Selection``; its first ``groups`` rows are shown, and the page says so where there are more.
        locate: from ``file`` to the clip.
        path: file to write, ``.png``.
        groups: rows at most.
    """
    shown = winners.head(groups)
    rows = [(row, _strip(row["file"], locate), _strip(row["runner_up_file"], locate)) for row in _records(shown)]
    left = max((strip.width for _, strip, _ in rows), default=200)
    right = max((strip.width for *_, strip in rows), default=200)
    width = 2 * MARGIN + left + BETWEEN + right
    page = Image.new("RGB", (width, MARGIN + LINE + len(rows) * (HEIGHT + 2 * LINE + MARGIN) + LINE), PAPER)
    draw, font, small = ImageDraw.Draw(page), ImageFont.load_default(FONT), ImageFont.load_default(SMALL)
    second, y = MARGIN + left + BETWEEN, MARGIN
    draw.text((MARGIN, y), "winner", FAINT, small)
    draw.text((second, y), "runner-up", FAINT, small)
    y += LINE
    for row, winner, runner_up in rows:
        note = f"   {row['note']}" if row["note"] else ""
        draw.text((MARGIN, y), _cut(draw, _title(row), font, width - 2 * MARGIN), TEXT, font)
        words = f"confidence {row['confidence']:.2f}, comparisons: {row['comparisons']}"
        draw.text((MARGIN, y + LINE), words, FAINT, small)
        draw.text((MARGIN + draw.textlength(words, small), y + LINE), note, WARN, small)
        page.paste(winner, (MARGIN, y + 2 * LINE))
        page.paste(runner_up, (second, y + 2 * LINE))
        y += HEIGHT + 2 * LINE + MARGIN
    if len(winners) > len(shown):
        draw.text((MARGIN, y), f"the first {len(shown)} of {len(winners)} winners", FAINT, small)
    page.save(path)
    return Path(path)


def best_of_figure(curve: BestOf, selector: str, gold: str) -> Figure:
    """Two panels: gains over n with the gap between promise and delivery; gold over the selector's own value.

    Args:
        curve: of ``best_of_curve``.
        selector, gold: what to call them.
    """
    table = curve.table
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        gains, values = figure.subplots(1, 2)
        n = table["n"]
        gains.fill_between(n, table["delivered"], table["promised"], color=INK, alpha=0.10, linewidth=0)
        gains.fill_between(
            n, table["delivered_low"], table["delivered_high"], color=ACCENT, alpha=0.22, linewidth=0, label="95 %"
        )
        gains.plot(n, table["promised"], color=INK, linestyle="--", label=f"promised by {selector}")
        gains.plot(n, table["delivered"], color=ACCENT, linewidth=1.8, marker=".", label=f"delivered in {gold}")
        gains.set_title("gain over one take, in deviations within prompts", loc="left", fontsize=9, color=INK)
        gains.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left")
        low, high = gains.get_ylim()
        gains.set_ylim(low, low + (high - low) * 1.35)  # room for the legend
        gains.xaxis.set_major_locator(MaxNLocator(integer=True))
        values.fill_between(
            table["selector"], table["gold_low"], table["gold_high"], color=ACCENT, alpha=0.22, linewidth=0
        )
        values.plot(table["selector"], table["gold"], color=ACCENT, linewidth=1.8, marker=".")
        for row in _records(table.iloc[[0, -1]]):
            values.annotate(
                f"n = {row['n']}",
                (row["selector"], row["gold"]),
                (2, 5),
                fontsize=8,
                color=INK,
                textcoords="offset points",
            )
        values.set_title(f"{gold} of the pick", loc="left", fontsize=9, color=INK)
        for axes in (gains, values):
            plain_axes(axes)
        gains.set_xlabel("best of n", fontsize=8, color=INK)
        values.set_xlabel(f"{selector} of the pick", fontsize=8, color=INK)
    return figure


def _records(frame: pd.DataFrame) -> list[dict[str, object]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _title(row: dict[str, object]) -> str:
    group, prompt = " ".join(str(row["group"]).split()), " ".join(str(row["prompt"] or "").split())
    rank = f" #{row['rank']}" if row["rank"] != 1 else ""
    return f"{group}{rank}" if prompt in ("", group) else f"{group}{rank}: {prompt}"


def _cut(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(text + "…", font) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def _strip(file: object, locate: Callable[[str], Path]) -> Image.Image:
    """First, middle and last frame of a clip; in words why there is none."""
    if not file:
        return _words("no other take")
    try:
        clip = read_clip(locate(str(file)), strict=False)
    except ClipError as error:
        return _words(str(error).rsplit(": ", 1)[-1])
    frames = clip.video[[0, len(clip.video) // 2, -1]].permute(0, 2, 3, 1).numpy()
    width = max(1, round(frames.shape[2] * HEIGHT / frames.shape[1]))
    sampling = Image.Resampling.NEAREST if frames.shape[1] < HEIGHT else Image.Resampling.LANCZOS
    strip = Image.new("RGB", (3 * width + 2 * GAP, HEIGHT), PAPER)
    for number, frame in enumerate(frames):
        picture = Image.fromarray((frame * 255).round().astype(np.uint8)).resize((width, HEIGHT), sampling)
        strip.paste(picture, (number * (width + GAP), 0))
    return strip


def _words(text: str) -> Image.Image:
    font = ImageFont.load_default(SMALL)
    strip = Image.new("RGB", (3 * HEIGHT + 2 * GAP, HEIGHT), EMPTY)
    draw = ImageDraw.Draw(strip)
    draw.text((8, HEIGHT // 2 - LINE // 2), _cut(draw, text, font, strip.width - 16), FAINT, font)
    return strip
