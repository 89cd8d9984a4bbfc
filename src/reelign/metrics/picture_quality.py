"""What single frames look like: sharp, blocky, clipped, black, bright, flat, colourful. Means over all frames.

    sharpness      ln(1 + Var(∇²I)), I grey at short side 256, ∇² the kernel [0 1 0; 1 −4 1; 0 1 0] (Pech-Pacheco et al.
                   2000, the variance of the Laplacian)
    blur           how little is lost when the picture is blurred again (Crete et al. 2007): along each axis, the share
                   of edge strength that an 11-pixel box mean leaves; the larger of the two, in [0, 1], I as above
    blockiness     g/o − 1, with g the mean |step| between neighbouring pixels across the lines of the 8-pixel grid that
                   JPEG and MPEG codecs leave, and o that between all others, over the whole clip in grey; 0 is no grid
    clipped_share  share of pixels with grey ≤ 2 or ≥ 253
    black_share    share of frames of which at least 98 % of the pixels have grey ≤ 25 (FFmpeg's blackdetect)
    brightness     mean grey;  contrast: standard deviation of grey (RMS contrast)
    colourfulness  √(σ_rg² + σ_yb²) + 0.3·√(μ_rg² + μ_yb²), rg = R − G, yb = (R + G)/2 − B (Hasler and Süsstrunk 2003)

A picture that was blurred keeps its brightness and loses sharpness; but a soft scene is no fault, so sharpness is to be
compared between takes of one request, never between scenes. ``blur`` depends on the scene less, and is less sensitive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from reelign.metrics.clip import Accumulator, ClipInfo, Frame, MetricCard, Picture, Undefined
from reelign.metrics.traces import Rows, Trace, means

DARK, LIGHT = 2, 253  # grey levels up to and from which detail is taken as lost
BLACK, BLACK_PIXELS = 25, 0.98  # blackdetect's pix_th 0.10 of 255, and pic_th
GRID = 8
REBLUR = 11  # px, of the box mean
THUMBNAIL = 64  # short side, px


def sharpness(grey: Picture) -> float:
    """ln(1 + variance of the Laplacian) of uint8 [H,W]; 0 for a flat picture."""
    _, deviation = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))
    return math.log1p(float(deviation[0, 0]) ** 2)


def blur(grey: Picture) -> float | None:
    """Crete's perceptual blur of uint8 [H,W] as scikit-image computes it (Sobel edges); None for a flat picture.

    1 − Σ max(0, e − e′)/Σ e for each axis, with e the edge strength along it and e′ that after a box mean over 11
    pixels along it; the larger of the two. 0 is sharp, 1 is all blur.
    """
    plane, found = grey.astype(np.float32), []
    for axis in (0, 1):
        window = (1, REBLUR) if axis == 0 else (REBLUR, 1)  # width, height
        soft = cv2.blur(plane, window, borderType=cv2.BORDER_REFLECT)
        edges, left = (np.abs(_sobel(each, axis))[2:-1, 2:-1] for each in (plane, soft))
        total = float(edges.sum(dtype=np.float64))
        if total:
            found.append(1 - float(np.maximum(edges - left, 0).sum(dtype=np.float64)) / total)
    return max(found, default=None)


def grid_steps(grey: Picture) -> dict[str, float]:
    """Sums of |step| and numbers of steps on the lines of the 8-pixel grid and off them, of uint8 [H,W]."""
    sums, counts = {True: 0.0, False: 0.0}, {True: 0, False: 0}
    for axis in (0, 1):
        if grey.shape[axis] < 2:
            continue
        first, second = (grey[1:], grey[:-1]) if axis == 0 else (grey[:, 1:], grey[:, :-1])
        lines = cv2.reduce(cv2.absdiff(first, second), 1 - axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel()
        on_grid = np.arange(1, grey.shape[axis]) % GRID == 0
        for on in (True, False):
            sums[on] += float(lines[on_grid == on].sum(dtype=np.int64))
            counts[on] += int((on_grid == on).sum()) * grey.shape[1 - axis]
    return {"on": sums[True], "on_count": counts[True], "off": sums[False], "off_count": counts[False]}


def grey_levels(grey: Picture) -> NDArray[np.float64]:
    """Shares of the 256 grey levels of uint8 [H,W], float64 [256], sum 1."""
    counts = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel()
    return np.asarray(counts, np.float64) / grey.size


def exposure(levels: NDArray[np.float64]) -> dict[str, float]:
    """Mean and standard deviation of one frame from its ``grey_levels``."""
    values = np.arange(256)
    brightness = float(levels @ values)
    return {"brightness": brightness, "contrast": math.sqrt(float(levels @ (values - brightness) ** 2))}


def clipping(levels: NDArray[np.float64]) -> dict[str, float]:
    """Share of clipped pixels, and whether the frame is black (0 or 1), of one frame from its ``grey_levels``."""
    return {
        "clipped_share": float(levels[: DARK + 1].sum() + levels[LIGHT:].sum()),
        "black_share": float(levels[: BLACK + 1].sum() >= BLACK_PIXELS),
    }


def colourfulness(rgb: Picture) -> float:
    """Hasler and Süsstrunk's M̂³ of uint8 [H,W,3]; 0 for grey, about 110 for extremely colourful."""
    red, green, blue = (np.asarray(channel, np.float32) for channel in cv2.split(rgb))
    (mean_rg,), (sd_rg,) = (value.ravel() for value in cv2.meanStdDev(red - green))
    (mean_yb,), (sd_yb,) = (value.ravel() for value in cv2.meanStdDev((red + green) / 2 - blue))
    return math.hypot(sd_rg, sd_yb) + 0.3 * math.hypot(mean_rg, mean_yb)


class Sharpness:
    """Variance of the Laplacian, as a logarithm."""

    card = MetricCard(
        name="sharpness",
        version=1,
        values=("sharpness",),
        unit="ln(1 + grey levels²)",
        range=(0.0, math.log1p(1020.0**2)),
        better="higher",
        protocol="mean over frames of ln(1 + Var(Laplacian)) of grey at short side 256 (smaller clips: own size)",
        source="Pech-Pacheco et al. 2000",
    )

    def start(self, info: ClipInfo) -> Accumulator:
        """A fresh accumulator."""
        return Trace(lambda frames: {"sharpness": sharpness(frames[0].small)}, means)


class Blur:
    """Perceptual blur, which scenes of different texture share a scale of."""

    card = MetricCard(
        name="blur",
        version=1,
        values=("blur",),
        unit="share of edge strength",
        range=(0.0, 1.0),
        better="lower",
        protocol="mean over frames that are not flat of Crete's blur with an 11-pixel box, Sobel edges, grey at short "
        "side 256 (smaller clips: own size)",
        source="Crete et al. 2007; edges as in scikit-image",
    )

    def start(self, info: ClipInfo) -> Accumulator:
        """A fresh accumulator."""

        def look(frames: Sequence[Frame]) -> dict[str, float]:
            value = blur(frames[0].small)
            return {} if value is None else {"blur": value}

        return Trace(look, means)


class Blockiness:
    """Steps on the 8-pixel grid of block codecs."""

    card = MetricCard(
        name="blockiness",
        version=1,
        values=("blockiness",),
        unit="share",
        range=(-1.0, math.inf),
        better="lower",
        protocol="mean |step| of grey across the 8-pixel grid over that elsewhere, minus 1; own size, frames pooled",
        source="after Wang, Sheikh and Bovik 2002",
    )

    def start(self, info: ClipInfo) -> Accumulator:
        """A fresh accumulator."""

        def conclude(rows: Rows) -> dict[str, float]:
            total = {name: float(row.sum()) for name, row in rows.items()}
            if not total["off"] or not total["on_count"]:
                raise Undefined(
                    "blockiness compares steps on and off the 8-pixel grid; this clip is flat, or too small"
                )
            ratio = (total["on"] / total["on_count"]) / (total["off"] / total["off_count"])
            return {"blockiness": ratio - 1}

        return Trace(lambda frames: grid_steps(frames[0].grey), conclude)


class Exposure:
    """How bright a clip is, and how much contrast it has."""

    card = MetricCard(
        name="exposure",
        version=1,
        values=("brightness", "contrast"),
        unit="grey levels of 255",
        range=(0.0, 255.0),
        better="neither",
        protocol="mean over frames of the mean, and of the standard deviation, of grey at own size",
    )

    def start(self, info: ClipInfo) -> Accumulator:
        """A fresh accumulator."""
        return Trace(lambda frames: exposure(_levels(frames[0])), means)


class Clipping:
    """What is lost in black and white."""

    card = MetricCard(
        name="clipping",
        version=1,
        values=("clipped_share", "black_share"),
        unit="share of pixels, share of frames",
        range=(0.0, 1.0),
        better="lower",
        protocol="grey at own size, all frames: pixels ≤ 2 or ≥ 253; frames of which 98 % of the pixels are ≤ 25",
        source="black frames as in FFmpeg's blackdetect",
    )

    def start(self, info: ClipInfo) -> Accumulator:
        """A fresh accumulator."""
        return Trace(lambda frames: clipping(_levels(frames[0])), means)


class Colourfulness:
    """How colourful the frames are."""

    card = MetricCard(
        name="colourfulness",
        version=1,
        values=("colourfulness",),
        unit="levels of 255",
        range=(0.0, math.inf),
        better="neither",
        protocol="mean over frames of Hasler and Süsstrunk's M̂³ of RGB area-averaged to short side 64",
        source="Hasler and Süsstrunk 2003",
    )

    def start(self, info: ClipInfo) -> Accumulator:
        """A fresh accumulator."""

        def look(frames: Sequence[Frame]) -> dict[str, float]:
            return {"colourfulness": colourfulness(thumbnail(frames[0]))}

        return Trace(look, means)


def thumbnail(frame: Frame) -> Picture:
    """RGB of a frame, area-averaged to a short side of at most 64 pixels; uint8 [h,w,3], shared between metrics."""

    def make() -> Picture:
        height, width = frame.rgb.shape[:2]
        scale = THUMBNAIL / min(height, width)
        if scale >= 1:
            return frame.rgb
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return np.asarray(cv2.resize(frame.rgb, size, interpolation=cv2.INTER_AREA), np.uint8)

    return frame.shared("thumbnail", make)


def _sobel(plane: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    along_x, along_y = (1, 0) if axis == 1 else (0, 1)
    return np.asarray(cv2.Sobel(plane, cv2.CV_32F, along_x, along_y, borderType=cv2.BORDER_REFLECT), np.float32)


def _levels(frame: Frame) -> NDArray[np.float64]:
    return frame.shared("grey levels", lambda: grey_levels(frame.grey))
