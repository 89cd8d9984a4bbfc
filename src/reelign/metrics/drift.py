r"""Brightness and colour that move though the scene does not ask for it: flicker, flashes, casts, drift.

Each frame becomes a coarse grid of colours (cells of 8×8 pixels of the 64-pixel thumbnail) in CIELAB, where 1 is about
the least difference the eye sees. A step is the *median over cells* of the change from one frame to the next: things
that move change some cells, a change of light or of grading changes most of them. Summed up, steps of L* are the
brightness curve b_t.

    flicker_peak       the largest brightness excursion that is gone again: max_t min(b_t − min b_{t−4…t−1},
                       b_t − min b_{t+1…t+4}), and the same downwards
    brightness_flicker the usual size of a jump back and forth: median_t |b_{t−1} − 2·b_t + b_{t+1}|/2
    colour_jump        the largest step of chroma, max_t √(Δa*² + Δb*²)
    colour_drift       ΔE*ab (CIE 1976) between the mean colour of the first and the last quarter of the frames; here
                       what moves counts too
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from reelign.metrics.clip import Accumulator, ClipInfo, Frame, MetricCard, Picture, Undefined
from reelign.metrics.picture_quality import thumbnail

CELL = 8  # px of the thumbnail
REACH = 4  # frames within which a flash is gone again
TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
D65 = np.array([0.95047, 1.0, 1.08883])  # white

Colours = NDArray[np.float32]
Numbers = NDArray[np.float64]


def colour_cells(rgb: Picture) -> Colours:
    """CIELAB (D65, sRGB) of cells of 8×8 pixels of uint8 [h,w,3], averaged in RGB; float32 [⌊h/8⌋, ⌊w/8⌋, 3]."""
    cell = min(CELL, *rgb.shape[:2])
    rows, columns = rgb.shape[0] // cell, rgb.shape[1] // cell
    whole = rgb[: rows * cell, : columns * cell].astype(np.float32) / 255
    return cielab(cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA))


def cielab(rgb: Colours) -> Colours:
    """CIELAB (CIE 15) of sRGB (IEC 61966-2-1) in [0,1] under D65, float32 [...,3]; OpenCV's own is coarse, 0.15 off."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ TO_XYZ.T / D65
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.asarray(np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1), np.float32)


def step(before: Colours, after: Colours) -> Numbers:
    """Median over cells of after − before: L*, a*, b*; float64 [3]."""
    return np.asarray(np.median((after - before).reshape(-1, 3), axis=0), np.float64)


def flicker_peak(curve: Numbers) -> float:
    """The largest excursion of a curve [T] that is gone within 4 frames before and after; 0 where it never returns."""
    largest = 0.0
    for signed in (curve, -curve):
        for t in range(1, len(signed) - 1):
            rise = signed[t] - signed[max(0, t - REACH) : t].min()
            fall = signed[t] - signed[t + 1 : t + 1 + REACH].min()
            largest = max(largest, float(min(rise, fall)))
    return largest


def brightness_flicker(curve: Numbers) -> float:
    """median_t |b_{t−1} − 2·b_t + b_{t+1}|/2 of a curve [T], T ≥ 3: for b alternating between 0 and h it is h."""
    return float(np.median(np.abs(np.diff(curve, 2)))) / 2


def colour_drift(means: Numbers) -> float:
    """ΔE*ab between the mean of the first and of the last quarter of CIELAB colours [T,3], at least one frame each."""
    quarter = max(1, len(means) // 4)
    return float(np.linalg.norm(means[-quarter:].mean(axis=0) - means[:quarter].mean(axis=0)))


class _Colouring:
    """Mean colour of each frame, and the step from each to the next."""

    def __init__(self) -> None:
        self.before: Colours | None = None
        self.means: list[Numbers] = []
        self.steps: list[Numbers] = []

    def add(self, frame: Frame) -> None:
        cells = colour_cells(thumbnail(frame))
        if self.before is not None:
            self.steps.append(step(self.before, cells))
        self.before = cells
        self.means.append(np.asarray(cells.reshape(-1, 3).mean(axis=0), np.float64))

    def finish(self) -> Mapping[str, float]:
        if len(self.means) < 3:
            raise Undefined(f"needs at least 3 frames; this clip has {len(self.means)}")
        steps = np.stack(self.steps)
        curve = np.concatenate([[0.0], np.cumsum(steps[:, 0])])
        return {
            "flicker_peak": flicker_peak(curve),
            "brightness_flicker": brightness_flicker(curve),
            "colour_jump": float(np.hypot(steps[:, 1], steps[:, 2]).max()),
            "colour_drift": colour_drift(np.stack(self.means)),
        }


class ColourSteadiness:
    """Flicker, flashes, casts and drift, whatever moves in the picture."""

    card = MetricCard(
        name="colour_steadiness",
        version=1,
        values=("flicker_peak", "brightness_flicker", "colour_jump", "colour_drift"),
        unit="L*, L*, ΔE*ab, ΔE*ab",
        range=(0.0, math.inf),
        better="lower",
        protocol="CIELAB of 8×8 cells of RGB at short side 64; steps are medians over cells; peak returns within 4 "
        "frames; flicker is the median |second difference|/2; jump is the largest a*b* step; drift is ΔE*ab of the "
        "means of the first and last quarter of the frames",
    )

    def start(self, info: ClipInfo) -> Accumulator:
        """A fresh accumulator."""
        return _Colouring()
