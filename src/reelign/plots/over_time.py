"""Measures along a clip: a line with its interval for each of several generators, one panel a measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from reelign.errors import DataError
from reelign.metrics.over_time import Part
from reelign.plots.curves import ACCENT, INK, STYLE, plain_axes

COLOURS = (ACCENT, "#b45309", "#4f46e5", "#be185d", "#4d7c0f", "#0369a1")
Measures = Mapping[str, Mapping[str, Sequence[Part]]]  # measure -> who -> its parts, in order


def over_time_figure(measures: Measures, x: str, shares: Sequence[str] = (), reference: str | None = None) -> Figure:
    """One panel a measure; a dot a part, bars are 95 % intervals.

    Args:
        measures: each panel has the same names in the same order.
        x: what a part is, below the axis.
        shares: measures that are shares, shown in percent.
        reference: the name of what the others are held against, drawn in grey.

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
                middle = [part.mean for part in parts]
                at = [i + 1 + 0.06 * (place - (len(curves) - 1) / 2) for i in range(len(parts))]
                reach = [[p.mean - p.ci95[0] for p in parts], [p.ci95[1] - p.mean for p in parts]]
                line = {"color": ink[name], "linewidth": 1.6, "marker": "o", "markersize": 3.5}
                axes.errorbar(at, middle, yerr=reach, capsize=2, elinewidth=1, label=name, **line)
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
