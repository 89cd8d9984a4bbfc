"""Held-out measures over the rounds of self-play, with intervals against the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from reelign.plots.curves import ACCENT, INK

SOFT = "#8a877f"


def rounds_figure(rounds: Sequence[Mapping[str, Any]], percent: bool) -> Figure:
    """The goal with the interval of its change since the base, and every measure behind it.

    Args:
        rounds: records of ``selfplay``, in order.
        percent: whether every measure is a share.
    """
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    x, ends_at = range(len(rounds) + 1), dict[str, float]()
    for name in rounds[0]["held_out"]:
        changes = [record["held_out"][name]["in_all"] for record in rounds]
        values = [changes[0]["before"], *(change["after"] for change in changes)]
        if name != "goal" and len(rounds[0]["held_out"]) == 2:
            continue  # the goal is that one measure
        if name != "goal":
            axes.plot(x, values, color=SOFT, linewidth=1, alpha=0.8)
            ends_at[name] = values[-1]
            continue
        base = changes[0]["before"]
        ends = [[base + change["ci95"][i] for change in changes] for i in (0, 1)]
        spread = [[v - low for v, low in zip(values[1:], ends[0], strict=True)],
                  [high - v for v, high in zip(values[1:], ends[1], strict=True)]]  # fmt: skip
        axes.plot(x, values, color=ACCENT, linewidth=2, marker="o")
        axes.errorbar(list(x)[1:], values[1:], yerr=spread, fmt="none", ecolor=ACCENT, capsize=4)
        ends_at[name] = values[-1]
    low, high = axes.get_ylim()
    for name, place in apart(ends_at, 0.055 * (high - low)).items():
        colour, weight = (ACCENT, "bold") if name == "goal" else (SOFT, "normal")
        axes.annotate(_short(name), (x[-1], place), xytext=(8, 0), textcoords="offset points", color=colour,
                      fontsize=8, va="center", weight=weight)  # fmt: skip
    axes.set_xlabel("round (0 is the base)")
    axes.set_ylabel("held-out prompts")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.spines[:].set_color(INK)
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def apart(places: Mapping[str, float], gap: float) -> dict[str, float]:
    """The same places, moved up or down as little as needed to lie ``gap`` apart, in the same order."""
    names = sorted(places, key=lambda name: places[name])
    moved = [places[name] for name in names]
    for _ in range(100):  # neighbours push each other away until nobody is too near
        for i in range(1, len(moved)):
            if (lack := gap - (moved[i] - moved[i - 1])) > 0:
                moved[i - 1] -= lack / 2
                moved[i] += lack / 2
    return dict(zip(names, moved, strict=True))


def _short(name: str) -> str:
    return name.removeprefix("held_out/").removesuffix("_accuracy").replace("_", " ")
