"""What a judge's card says, drawn: whether its probabilities can be believed, and which scores it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from reelign.plots.curves import ACCENT, INK, STYLE

WIDTH, HEIGHT, ROW = 7.2, 2.6, 0.3  # inches


def judge_figure(card: Mapping[str, Any]) -> Figure:
    """Reliability on held-out groups (left) and permutation importance with 95 % intervals over groups (right).

    Args:
        card: of a ``LearnedJudge``.
    """
    importance = card["importance"]
    with mpl.rc_context(STYLE):
        if not importance:  # a network reads no scores
            figure = Figure(figsize=(HEIGHT * 1.2, HEIGHT), layout="constrained")
            _reliability(figure.subplots(), card["held-out"]["reliability"])
            return figure
        figure = Figure(figsize=(WIDTH, max(HEIGHT, 1.2 + ROW * len(importance))), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
        _reliability(left, card["held-out"]["reliability"])
        _importance(right, importance)
    return figure


def save_judge_figure(card: Mapping[str, Any], folder: Path) -> list[Path]:
    """The figure as ``judge.png`` and ``judge.svg`` in a folder."""
    figure, saved = judge_figure(card), []
    with mpl.rc_context(STYLE):
        for suffix in ("png", "svg"):
            path = Path(folder) / f"judge.{suffix}"
            figure.savefig(path, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
            saved.append(path)
    return saved


def _reliability(axes: Axes, bins: list[Mapping[str, float]]) -> None:
    """Said against seen, a dot a bin with an area in proportion to its pairs; on the diagonal nothing is wrong."""
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":")
    said, won = [row["said"] for row in bins], [row["won"] for row in bins]
    axes.plot(said, won, color=ACCENT, linewidth=1.2, alpha=0.6)
    axes.scatter(said, won, s=[12 + 260 * row["share"] for row in bins], color=ACCENT, zorder=3)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axes.set_xlabel("the judge says left wins", color=INK)
    axes.set_ylabel("people say so", color=INK)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title("calibration, held-out groups", loc="left", fontsize=9, color=INK)
    _plain(axes)


def _importance(axes: Axes, rows: list[Mapping[str, Any]]) -> None:
    """Accuracy lost when a column is shuffled within its groups, the largest on top."""
    for place, row in enumerate(reversed(rows)):
        axes.plot([row["low"], row["high"]], [place, place], color=ACCENT, linewidth=2, alpha=0.4)
        axes.plot(row["drop"], place, color=ACCENT, marker="o", markersize=5)
    axes.axvline(0, color=INK, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(rows)), [row["feature"] for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("accuracy lost without it", color=INK)
    axes.set_title("what it rests on", loc="left", fontsize=9, color=INK)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, length=3)
