"""Broken playback: frames that stand still, and cuts.

Freezes. The change of a pair is |small grey − small grey| averaged over cells of 16×16 pixels. A pair is *frozen* where
no cell changes by more than 2 grey levels and the whole by no more than 0.1: the same picture, up to what a codec adds.
It is a *repeat* where moreover it changes at most a tenth as much as the livelier pairs of its own clip (upper
quartile). A still life is frozen from end to end and repeats little; a clip that stalls repeats.

Cuts. u_t is the share of pixels of the pair (t, t+1) that optical flow cannot explain in both directions. A cut is a
pair whose u stands out from those around it:

    prominence_t = u_t − median(u_{t−3}, …, u_{t−1}, u_{t+1}, …, u_{t+3})

A hard cut has about 0.9; a jump within one scene about 0.5; fast motion, whose neighbours are as bad, about 0.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from reelign.metrics.clip import Accumulator, ClipInfo, Frame, MetricCard, Picture, Undefined
from reelign.metrics.flow import flow_between
from reelign.metrics.traces import Refused, Rows, Trace

CELL = 16  # px of the small view
FROZEN_CELL, FROZEN_MEAN = 2.0, 0.1  # grey levels, for x264 at its default quality and finer
REPEAT = 0.1  # of the upper quartile of the clip's changes
AROUND = 3  # pairs on each side
HARD_CUT = 0.6  # prominence

Numbers = NDArray[np.float64]


def cell_changes(first: Picture, second: Picture) -> NDArray[np.float32]:
    """Mean |first − second| in cells of 16×16 pixels, grey levels.

    uint8 [H,W] twice, to float32 [⌊H/16⌋, ⌊W/16⌋]. What does not fill a cell at the right and at the bottom is left
    out; a picture under 16 pixels has cells of its short side.
    """
    cell = min(CELL, *first.shape)
    rows, columns = first.shape[0] // cell, first.shape[1] // cell
    difference = cv2.absdiff(first, second)[: rows * cell, : columns * cell].astype(np.float32)
    return np.asarray(cv2.resize(difference, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)


def frozen_pairs(largest: Numbers, mean: Numbers) -> NDArray[np.bool_]:
    """bool [pairs]: largest cell change at most 2, and mean change at most 0.1 grey levels."""
    return np.asarray((largest <= FROZEN_CELL) & (mean <= FROZEN_MEAN), np.bool_)


def repeated_pairs(largest: Numbers, mean: Numbers) -> NDArray[np.bool_]:
    """bool [pairs]: frozen, and mean change at most a tenth of the upper quartile of all pairs."""
    return np.asarray(frozen_pairs(largest, mean) & (mean <= REPEAT * np.quantile(mean, 0.75)), np.bool_)


def longest_run(flags: NDArray[np.bool_]) -> int:
    """Length of the longest run of True in bool [n]."""
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest


def prominence(unexplained: Numbers) -> Numbers:
    """How far each value stands above the median of up to 3 on each side; [pairs] to [pairs]. Alone, it is itself."""
    above = np.empty_like(unexplained)
    for t, value in enumerate(unexplained):
        around = np.concatenate([unexplained[max(0, t - AROUND) : t], unexplained[t + 1 : t + 1 + AROUND]])
        above[t] = value - (np.median(around) if len(around) else 0.0)
    return above


class Freezes:
    """Frames that stand still."""

    card = MetricCard(
        name="freezes",
        version=1,
        values=("frozen_share", "longest_freeze", "repeated_share", "longest_repeat"),
        unit="share of pairs, frames, share of pairs, frames",
        range=(0.0, math.inf),
        better="lower",
        protocol="successive frames, grey at short side 256, cells of 16×16: frozen where the largest cell change "
        "is ≤ 2 and the mean ≤ 0.1 grey levels; repeated where also ≤ a tenth of the clip's upper quartile; longest "
        "run of each, in frames that only repeat the one before",
    )

    def start(self, info: ClipInfo) -> Accumulator:
        """A fresh accumulator."""

        def look(pair: Sequence[Frame]) -> dict[str, float]:
            cells = cell_changes(pair[0].small, pair[1].small)
            return {"largest": float(cells.max()), "mean": float(cells.mean())}

        def conclude(rows: Rows) -> dict[str, float]:
            frozen = frozen_pairs(rows["largest"], rows["mean"])
            repeated = repeated_pairs(rows["largest"], rows["mean"])
            return {
                "frozen_share": float(frozen.mean()),
                "longest_freeze": float(longest_run(frozen)),
                "repeated_share": float(repeated.mean()),
                "longest_repeat": float(longest_run(repeated)),
            }

        return Trace(look, conclude, window=2)


class Cuts:
    """Hard cuts, and the strongest jump for ranking."""

    card = MetricCard(
        name="cuts",
        version=1,
        values=("cuts", "cut_score"),
        unit="cuts, share of pixels",
        range=(-1.0, math.inf),
        better="lower",
        protocol="u_t: share of pixels at short side 256 where forward and backward DIS FAST flow disagree; prominence "
        "is u_t minus the median of 3 pairs on each side; cuts: pairs above 0.6; cut_score: the largest",
    )

    def start(self, info: ClipInfo) -> Accumulator:
        """A fresh accumulator."""

        def look(pair: Sequence[Frame]) -> dict[str, float]:
            return {"unexplained": 1.0 - float(flow_between(pair[0], pair[1]).trusted.mean())}

        def conclude(rows: Rows) -> dict[str, float]:
            above = prominence(rows["unexplained"])
            return {"cuts": float((above > HARD_CUT).sum()), "cut_score": float(above.max())}

        return Trace(look, conclude, window=2)


class Facts:
    """What the clip is: its length, rate and size."""

    card = MetricCard(
        name="facts",
        version=1,
        values=("frames", "seconds", "fps", "height", "width"),
        unit="frames, s, frames/s, px, px",
        range=(0.0, math.inf),
        better="neither",
        protocol="frames that decode; the rate the container states; seconds = frames/fps; size of the upright picture",
    )

    def start(self, info: ClipInfo) -> Accumulator:
        """A fresh accumulator."""
        if not (math.isfinite(info.fps) and info.fps > 0):
            return Refused(Undefined(f"frames per second are above 0; this clip says {info.fps}"))

        def conclude(rows: Rows) -> dict[str, float]:
            frames = float(len(rows["frame"]))
            size = {"height": float(info.height), "width": float(info.width)}
            return {"frames": frames, "seconds": frames / info.fps, "fps": float(info.fps), **size}

        return Trace(lambda frames: {"frame": float(frames[0].index)}, conclude)
