"""Two sets of clips in one figure: every set metric beside its floor, and every score as two histograms.

A set metric has two rows: the distance of the two sets, and the reference against itself at the same number of clips.
Only where they do not overlap are the sets told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reelign.errors import DataError
from reelign.metrics.score_comparison import ScoreChange
from reelign.metrics.set_comparison import SetDistance
from reelign.plots.curves import ACCENT, INK, STYLE

WIDTH, SET_HEIGHT, SCORE_HEIGHT, COLUMNS = 7.2, 1.15, 1.9, 3  # inches; score panels next to each other
BINS = 24


def evaluation_figure(
    distances: Sequence[SetDistance],
    changes: Sequence[ScoreChange] = (),
    tables: tuple[pd.DataFrame, pd.DataFrame] | None = None,
) -> Figure:
    """Set metrics one below the other, then score columns three in a row; what is undefined is not drawn.

    Args:
        distances: of set metrics.
        changes: of score columns.
        tables: the two takes tables with those columns; needed where there are changes.

    Raises:
        DataError: there is nothing to draw.
    """
    drawn = [change for change in changes if change.kind != "undefined"] if tables is not None else []
    rows = -(-len(drawn) // COLUMNS)
    heights = [SET_HEIGHT * len(distances), SCORE_HEIGHT * rows]
    if not sum(heights):
        raise DataError("a figure of an evaluation needs at least one number; everything is undefined")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.2), layout="constrained")
        parts: Any = figure.subfigures(2, height_ratios=heights) if all(heights) else [figure, figure]
        if distances:
            for axes, distance in zip(parts[0].subplots(len(distances), squeeze=False)[:, 0], distances, strict=True):
                _draw_distance(axes, distance)
        if drawn and tables is not None:
            panels = parts[1].subplots(rows, COLUMNS, squeeze=False).ravel()
            for axes, change in zip(panels, drawn, strict=False):
                _draw_score(axes, change, *(table[change.metric].dropna().to_numpy(float) for table in tables))
            for axes in panels[len(drawn) :]:
                axes.set_axis_off()
    return figure


def save_evaluation(figure: Figure, out: Path) -> list[Path]:
    """``evaluation.png`` and ``evaluation.svg`` in a folder that exists."""
    paths = [out / "evaluation.png", out / "evaluation.svg"]
    with mpl.rc_context(STYLE):
        for path in paths:
            figure.savefig(path, dpi=160)
    return paths


def _draw_distance(axes: Axes, distance: SetDistance) -> None:
    """Distance with interval above, the floor at its own size below, the distance at that size as a ring between."""
    floor = distance.floor
    rows = [
        (1, distance.value, distance.low, distance.high, ACCENT, f"distance, {distance.clips} a side"),
        (0, floor.value, floor.low, floor.high, INK, f"reference from itself, {floor.clips}"),
    ]
    for y, value, low, high, colour, _ in rows:
        axes.plot([low, high], [y, y], color=colour, linewidth=4, alpha=0.35, solid_capstyle="butt")
        axes.plot(value, y, marker="o", color=colour, markersize=6)
    if floor.clips != distance.clips:
        axes.plot(floor.distance, 0, marker="o", markersize=7, markerfacecolor="none", color=ACCENT)
        words = f"distance, {floor.clips} a side"
        axes.annotate(words, (floor.distance, 0), (0, -7), textcoords="offset points", fontsize=7, color=ACCENT,
                      ha="center", va="top")  # fmt: skip
    axes.axvline(0, color=INK, linewidth=0.8, alpha=0.5)
    axes.set(yticks=[1, 0], yticklabels=[row[-1] for row in rows], ylim=(-0.9, 1.6))
    axes.set_title(f"{distance.metric}  {distance.value:.4g}", loc="left", fontsize=9, color=INK)
    _plain(axes)
    axes.spines["left"].set_visible(False)


def _draw_score(axes: Axes, change: ScoreChange, before: np.ndarray, after: np.ndarray) -> None:
    both = np.concatenate([before, after])
    span = float(both.max() - both.min()) or max(abs(float(both[0])), 1.0) * 0.1
    edges = np.linspace(both.min() - 0.02 * span, both.max() + 0.02 * span, BINS + 1).tolist()
    sides = ((before, change.before, INK, "reference"), (after, change.after, ACCENT, "clips"))
    for values, mean, colour, label in sides:
        axes.hist(values, edges, color=colour, alpha=0.4, label=label, weights=np.full(len(values), 1 / len(values)))
        axes.axvline(mean, color=colour, linewidth=1.6)
    low, high = change.before + change.low, change.before + change.high
    axes.axvspan(low, high, color=ACCENT, alpha=0.15, linewidth=0, zorder=0)
    title = f"{change.metric}\n{change.delta:+.3g} [{change.low:+.3g}, {change.high:+.3g}] {change.kind}"
    axes.set_title(title, loc="left", fontsize=8, color=INK)
    axes.set_yticks([])
    axes.legend(frameon=False, fontsize=7, labelcolor=INK, handlelength=1)
    _plain(axes)
    axes.spines["left"].set_visible(False)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, length=3, labelsize=8)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
