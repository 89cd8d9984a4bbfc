"""Motion smoothness: can each odd frame be told from its neighbours? The flow-midpoint protocol.

VBench's motion smoothness (Huang et al. 2024) drops odd frames, puts them back by interpolation with AMT-S, a network,
and takes (255 − mean |odd − interpolated|)/255. Here the midpoint comes from optical flow instead, in grey at short
side 256, so the numbers are not VBench's and are not to be put in one table with them.

With flow F from I_0 to I_2 and B back, a pixel at the midpoint comes from both ends (Jiang et al., Super SloMo, 2018,
eq. 4 at t = ½):

    F_{½→0} = (B − F)/4,  F_{½→2} = (F − B)/4,  I_½(x) = ½·I_0(x + F_{½→0}(x)) + ½·I_2(x + F_{½→2}(x))
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from reelign.metrics.clip import Accumulator, ClipInfo, Frame, MetricCard, Picture
from reelign.metrics.flicker import absolute_difference, steadiness
from reelign.metrics.flow import Flow, flow_between, warp
from reelign.metrics.traces import Trace


def midpoint(first: Picture, last: Picture, flow: Flow) -> Picture:
    """The picture half-way between two, along the flow between them; uint8 [H,W]."""
    half = ((flow.forward - flow.backward) / 4).astype(np.float32)
    return np.asarray(cv2.addWeighted(warp(first, -half), 0.5, warp(last, half), 0.5, 0.0), np.uint8)


class MotionSmoothness:
    """How well held-out odd frames are told from the even ones around them."""

    card = MetricCard(
        name="motion_smoothness",
        version=1,
        values=("motion_smoothness",),
        unit="share of 255",
        range=(0.0, 1.0),
        better="higher",
        protocol="flow-midpoint: (255 − mean |I_odd − midpoint of its even neighbours|)/255, grey at short side 256, "
        "DIS FAST flow; not VBench's AMT",
        source="formula of VBench, Huang et al. 2024; midpoint of Super SloMo, Jiang et al. 2018, eq. 4",
    )

    def start(self, info: ClipInfo) -> Accumulator:
        """A fresh accumulator."""

        def look(triple: Sequence[Frame]) -> dict[str, float]:
            first, held_out, last = triple
            guess = midpoint(first.small, last.small, flow_between(first, last))
            return {"difference": absolute_difference(held_out.small, guess)}

        return Trace(
            look, lambda rows: {"motion_smoothness": steadiness(float(rows["difference"].mean()))}, window=3, hop=2
        )
