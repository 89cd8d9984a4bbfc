"""Curves of a run: what training logged at each step, and held-out means over the steps that were sampled.

One small figure a quantity, drawn by matplotlib, as SVG for a page or as PNG and SVG files. In inline SVG the ink is
``currentColor`` and the line ``var(--accent)``, so that the page's style, dark mode included, decides the colours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from reelign.errors import DataError
from reelign.report.summary import is_accuracy

INK, ACCENT = "#5b5f66", "#0f766e"  # stand for currentColor and var(--accent) in inline SVG
CLOCKS = ("step", "seconds")
FIRST = ("reward", "loss", "gradient_norm")
SIZE = (3.6, 2.1)  # inches
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "reelign", "font.family": "sans-serif", "font.size": 9}


def quantities(training: pd.DataFrame) -> list[str]:
    """What a training table logs besides its clocks: the reward, its parts, loss, gradient norm, then the rest."""
    numeric = training.select_dtypes("number").dropna(axis="columns", how="all")
    names = [name for name in numeric.columns if name not in CLOCKS]
    return sorted(names, key=lambda name: (_rank(name), name))


def is_main(name: str) -> bool:
    """Whether a quantity is one that everybody looks at: reward, loss or gradient norm."""
    return _rank(name) < len(FIRST)


def smooth(values: pd.Series) -> pd.Series:
    """Exponential mean of a curve, with a span of a tenth of its points, at least 3."""
    return values.ewm(span=max(3, len(values) // 10)).mean()


def training_figure(training: pd.DataFrame, name: str) -> Figure:
    """One logged quantity over steps: the raw values faint, their exponential mean on top.

    Args:
        training: one row a step, with a column ``step``.
        name: a column of it; steps that did not log it are left out.
    """
    if name not in training:
        raise DataError(f"a curve shows a logged quantity: {', '.join(quantities(training))}; got {name!r}")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        _draw(figure.subplots(), training, name)
    return figure


def means_over_steps(samples: Mapping[int, pd.DataFrame], prefix: str = "held_out/") -> pd.DataFrame:
    """Mean of every column that starts with ``prefix``, one row a sampled step, ascending; NaN where not measured."""
    means = {step: table.filter(regex=f"^{re.escape(prefix)}").mean() for step, table in samples.items()}
    return pd.DataFrame(means).T.sort_index().rename_axis("step")


def means_figure(means: pd.DataFrame, name: str) -> Figure:
    """One mean over the sampled steps, a dot for each step; accuracies in percent, from 0 to 100."""
    measured = means[name].dropna()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        axes.plot(measured.index, measured, color=ACCENT, linewidth=1.8, marker="o", markersize=5)
        plain_axes(axes)
        if is_accuracy(name):
            axes.set(ylim=(0, 1.03), yticks=(0, 0.25, 0.5, 0.75, 1))
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def save_curves(training: pd.DataFrame, path: Path) -> Path:
    """Every training curve in one file, PNG or SVG by its suffix, with the quantity's name above each."""
    path, names = Path(path), quantities(training)
    if path.suffix not in (".png", ".svg"):
        raise DataError(f"curves are saved as .png or .svg; got {path.name!r}")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], SIZE[1] * len(names)), layout="constrained")
        for axes, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
            _draw(axes, training, name)
            axes.set_title(name, loc="left", fontsize=9)
        figure.savefig(path, dpi=150)
    return path


def inline_svg(figure: Figure, prefix: str) -> str:
    """A figure as one ``<svg>`` element for a page: no address in it, colours left to the page.

    Args:
        figure: from ``training_figure`` or ``means_figure``.
        prefix: put before every id, so that two figures on a page do not share one.
    """
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    opening, rest = svg[svg.index("<svg") :].split(">", 1)
    opening = re.sub(r'\s(xmlns(:xlink)?|version|width|height)="[^"]*"', "", opening)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", f"{opening}>{rest}")
    return body.replace(INK, "currentColor").replace(ACCENT, "var(--accent)")


def _rank(name: str) -> int:
    stem = name.split("/")[0]
    return FIRST.index(stem) if stem in FIRST else len(FIRST)


def _draw(axes: Axes, training: pd.DataFrame, name: str) -> None:
    logged = training[["step", name]].dropna()
    axes.plot(logged["step"], logged[name], color=ACCENT, alpha=0.3, linewidth=1, marker="." if len(logged) < 3 else "")
    axes.plot(logged["step"], smooth(logged[name]), color=ACCENT, linewidth=1.8)
    plain_axes(axes)


def plain_axes(axes: Axes) -> None:
    """No frame but the left and bottom edge, few ticks, everything in ``INK``."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, length=3)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("step", color=INK, loc="right")
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.8)
