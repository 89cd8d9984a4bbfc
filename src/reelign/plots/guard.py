"""What the guard saw: the trained reward against held-out judges over a run's looks, and where it stepped in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from reelign.guard.canaries import ALARM
from reelign.plots.curves import ACCENT, INK, STYLE, plain_axes

SIZE = (3.6, 4.2)  # inches
STYLES = ("-", "--", ":", "-.")


def guard_figure(record: Mapping[str, Any]) -> Figure:
    """Two panels over steps: the trained reward; every judge, or where there is none every canary's change.

    A vertical line is a rollback, a ring the look that was exported.

    Args:
        record: what ``guard.json`` holds.
    """
    looks = record["looks"]
    steps = [look["step"] for look in looks]
    series: dict[str, list[float]] = {}
    for look in looks:
        for change in look["changes"]:
            series.setdefault(change["name"], []).append(change["now"])
    judges = {name: values for name, values in series.items() if name not in ALARM}
    shown = judges or {name: [value / (values[0] or 1) for value in values] for name, values in series.items()}
    acted = [decision["step"] for decision in record["decisions"] if decision["action"] != "go on"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        top, bottom = figure.subplots(2, sharex=True)
        top.plot(steps, [look["reward"] for look in looks], color=ACCENT, linewidth=1.8, marker=".")
        top.set_title("trained reward", loc="left", fontsize=9, color=INK)
        for number, (name, values) in enumerate(shown.items()):
            bottom.plot(steps, values, color=INK, linestyle=STYLES[number % len(STYLES)], marker=".", label=name)
        title = "held-out judges" if judges else "canaries, base = 1"
        bottom.set_title(title, loc="left", fontsize=9, color=INK)
        bottom.legend(frameon=False, fontsize=8, labelcolor=INK)
        for axes in (top, bottom):
            plain_axes(axes)
            for step in acted:
                axes.axvline(step, color=INK, linewidth=1, alpha=0.6)
        best = next((look for look in looks if look["step"] == record["best"]), None)
        if best is not None:
            ring = {"s": 60, "facecolors": "none", "edgecolors": ACCENT, "zorder": 3}
            top.scatter([best["step"]], [best["reward"]], **ring)
    return figure
