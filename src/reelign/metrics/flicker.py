"""Flicker: how much a clip changes from frame to frame, plainly, and after the motion is taken out.

``temporal_flickering`` is VBench's dimension of that name (Huang et al. 2024):

    (255 − mean_t mean_px |I_t − I_{t+1}|) / 255

on every frame at its own size. VBench means it for clips without motion: motion lowers it just as flicker does.

``motion_compensated_flicker`` warps the later frame back along the flow first, and looks only where the flow can be
trusted: mean_t mean_{x trusted} |I_t(x) − I_{t+1}(x + F(x))|, in grey levels of the small view.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from reelign.metrics.clip import Accumulator, ClipInfo, Frame, MetricCard, Picture
from reelign.metrics.flow import TRUSTED, Flow, flow_between, warp
from reelign.metrics.traces import Trace, means


def absolute_difference(first: Picture, second: Picture) -> float:
    """Mean of |first − second| over pixels and channels, in grey levels of 255."""
    return float(cv2.norm(first, second, cv2.NORM_L1)) / first.size


def steadiness(difference: float) -> float:
    """(255 − d)/255 for a mean absolute difference d in grey levels; 1 is no difference at all."""
    return (255.0 - difference) / 255.0


def residual(earlier: Picture, later: Picture, flow: Flow) -> float | None:
    """Mean of |earlier(x) − later(x + F(x))| over trusted x, grey levels; None where under 10 % can be trusted."""
    if flow.trusted.mean() < TRUSTED:
        return None
    difference = cv2.absdiff(earlier, warp(later, flow.forward))
    return float(difference[flow.trusted].mean(dtype=np.float64))


class TemporalFlickering:
    """VBench's temporal flickering, exactly."""

    card = MetricCard(
        name="temporal_flickering",
        version=1,
        values=("temporal_flickering",),
        unit="share of 255",
        range=(0.0, 1.0),
        better="higher",
        protocol="VBench temporal_flickering: (255 − mean |I_t − I_{t+1}|)/255 over RGB, all frames, own size and rate",
        source="Huang et al., VBench, CVPR 2024",
    )

    def start(self, info: ClipInfo) -> Accumulator:
        """A fresh accumulator."""

        def look(pair: Sequence[Frame]) -> dict[str, float]:
            return {"difference": absolute_difference(pair[0].rgb, pair[1].rgb)}

        return Trace(look, lambda rows: {"temporal_flickering": steadiness(float(rows["difference"].mean()))}, window=2)


class MotionCompensatedFlicker:
    """What changes from frame to frame though it should only have moved."""

    card = MetricCard(
        name="motion_compensated_flicker",
        version=1,
        values=("motion_compensated_flicker",),
        unit="grey levels of 255",
        range=(0.0, 255.0),
        better="lower",
        protocol="mean |I_t(x) − I_{t+1}(x + F(x))| of grey at short side 256, DIS FAST flow, where forward and "
        "backward agree; pairs with under 10 % such pixels are left out",
    )

    def start(self, info: ClipInfo) -> Accumulator:
        """A fresh accumulator."""

        def look(pair: Sequence[Frame]) -> dict[str, float]:
            value = residual(pair[0].small, pair[1].small, flow_between(pair[0], pair[1]))
            return {} if value is None else {"motion_compensated_flicker": value}

        return Trace(look, means, window=2)
