"""Does the clip stay the same scene? A proxy without weights: colours that stay.

    mean over t ≥ 2 of ½·(s(h_t, h_{t−1}) + s(h_t, h_1)),      s(p, q) = Σ min(p, q)

is the shape of VBench's subject and background consistency (Huang et al. 2024), with the intersection of colour
histograms (Swain and Ballard 1991) in place of a cosine of DINO or CLIP features. It sees a change of scene or of
colours, not a change of identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from reelign.metrics.clip import Accumulator, ClipInfo, Frame, MetricCard, Picture
from reelign.metrics.traces import Trace, means

BINS = 8  # a channel


def colour_histogram(rgb: Picture) -> NDArray[np.float32]:
    """Shares of 8×8×8 colours, float32 [8,8,8], sum 1; bin ⌊value/32⌋ of each channel of uint8 [H,W,3]."""
    counts = cv2.calcHist([rgb], [0, 1, 2], None, [BINS] * 3, [0, 256] * 3)
    return np.asarray(counts / (rgb.shape[0] * rgb.shape[1]), np.float32)


def intersection(p: NDArray[np.float32], q: NDArray[np.float32]) -> float:
    """Σ min(p, q) of two histograms of sum 1: 1 where equal, 0 where no colour is shared."""
    return float(np.minimum(p, q).sum(dtype=np.float64))


class HistogramConsistency:
    """Overlap of each frame's colours with the first frame's and the one before."""

    card = MetricCard(
        name="histogram_consistency",
        version=1,
        values=("histogram_consistency",),
        unit="share",
        range=(0.0, 1.0),
        better="higher",
        protocol="proxy: mean over t ≥ 2 of ½·(intersection with the previous + with the first frame) of 8×8×8 RGB "
        "histograms, all frames, own size",
        source="shape of VBench, Huang et al. 2024; intersection of Swain and Ballard 1991",
    )

    def start(self, info: ClipInfo) -> Accumulator:
        """A fresh accumulator."""
        first: NDArray[np.float32] | None = None

        def histogram(frame: Frame) -> NDArray[np.float32]:
            return frame.shared("colour histogram", lambda: colour_histogram(frame.rgb))

        def look(pair: Sequence[Frame]) -> dict[str, float]:
            nonlocal first
            before, now = histogram(pair[0]), histogram(pair[1])
            first = before if first is None else first
            return {"histogram_consistency": (intersection(now, before) + intersection(now, first)) / 2}

        return Trace(look, means, window=2)
