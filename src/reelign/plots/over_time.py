"""Measures along a clip: a line with its interval for each of several generators, one panel a measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from reelign.errors import DataError
from reelign.metrics.over_time import Part
from reelign.plots.curves import ACCENT, INK, STYLE, plain_axes

MANY = 12  # parts above which bars become bands
COLOURS = (ACCENT, "#b45309", "#4f46e5", "#be185d", "#4d7c0f", "#0369a1")
Measures = Mapping[str, Mapping[str, Sequence[Part]]]  # measure -> who -> its parts, in order


def over_time_figure(
    measures: Measures, x: str, shares: Sequence[str] = (), reference: str | None = None, first: int = 1
) -> Figure:
    """One panel a measure; a dot a part, with its 95 % interval: bars, or bands where there are many parts.

    Args:
        measures: each panel has the same names in the same order.
        x: what a part is, below the axis.
        shares: measures that are shares, shown in percent.
        reference: the name of what the others are held against, drawn in grey.
        first: number of the first part.

    Raises:
        DataError: there is nothing to draw, or there are more names than colours.
    """
    names = list(next(iter(measures.values()), {}))
    drawn = [name for name in names if name != reference]
    if not drawn or len(drawn) > len(COLOURS):
        raise DataError(f"a figure over time shows 1 to {len(COLOURS)} generators; got {len(drawn)}")
    ink = dict(zip(drawn, COLOURS, strict=False)) | ({reference: "#8a877f"} if reference else {})
    columns = min(2, len(measures))
    rows = -(-len(measures) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.8 * columns, 2.3 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (measure, curves) in zip(grid, measures.items(), strict=False):
            for place, (name, parts) in enumerate(curves.items()):
                _curve(axes, parts, first + _aside(place, len(curves), len(parts)), ink[name], name)
            plain_axes(axes)
            axes.set_title(measure.replace("_", " "), loc="left", fontsize=9, color=INK)
            axes.set_xlabel(x, color=INK, loc="right")
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            if measure in shares:
                axes.set_ylim(0, 1.05)
                axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for axes in grid[len(measures) :]:
            axes.set_axis_off()
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    return figure


def _aside(place: int, curves: int, parts: int) -> float:
    """How far a curve is moved to the side, so that bars do not hide one another."""
    return 0.0 if parts > MANY else 0.06 * (place - (curves - 1) / 2)


def _curve(axes: Axes, parts: Sequence[Part], start: float, colour: str, name: str) -> None:
    at, middle = [start + i for i in range(len(parts))], [part.mean for part in parts]
    low, high = ([part.ci95[end] for part in parts] for end in (0, 1))
    if len(parts) > MANY:
        axes.plot(at, middle, color=colour, linewidth=1.6, label=name)
        axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        return
    reach = [[m - end for m, end in zip(middle, low, strict=True)], [e - m for m, e in zip(middle, high, strict=True)]]
    line: dict[str, Any] = {"color": colour, "linewidth": 1.6, "marker": "o", "markersize": 3.5}
    axes.errorbar(at, middle, yerr=reach, capsize=2, elinewidth=1, label=name, **line)
