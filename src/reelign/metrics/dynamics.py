"""How much moves: pixels a sampled pair, and VBench's yes or no.

VBench's dynamic degree (Huang et al. 2024) looks at every max(1, round(fps/8))-th frame. For each pair of these, the
motion is the mean length of the 5 % longest flow vectors; a clip is dynamic where at least round(n/4) of its pairs, n
sampled frames, move more than 6·min(H, W)/256 pixels. This is that rule, with two differences, both on purpose:

- flow is DIS instead of RAFT, and only vectors count that forward and backward flow agree on: a few wild vectors would
  otherwise decide;
- at least one pair must move. For two sampled frames VBench's rule asks for round(0.5) = 0 pairs, and calls every such
  clip dynamic.

Lengths are in pixels of a picture whose short side is 256, so the threshold is 6 for every clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reelign.metrics.clip import Accumulator, ClipInfo, Frame, MetricCard, Undefined
from reelign.metrics.flow import at_short_side_256, flow_between, top_motion
from reelign.metrics.traces import Refused, Rows, Trace

THRESHOLD = 6.0  # px at short side 256
RATE = 8  # sampled frames a second


def stride(fps: float) -> int:
    """max(1, round(fps/8)): every how many frames one is sampled.

    Raises:
        Undefined: the rate is not a number above 0.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise Undefined(f"motion is sampled at {RATE} frames a second, so the rate must be known; got {fps} fps")
    return max(1, round(fps / RATE))


def is_dynamic(motion: NDArray[np.float64], frames: int) -> bool:
    """Whether at least max(1, round(n/4)) of the pairs move over 6 px, for n sampled frames; motion [pairs] in px."""
    return int((motion > THRESHOLD).sum()) >= max(1, round(frames / 4))


class DynamicDegree:
    """Pixels of motion, and whether that counts as dynamic."""

    card = MetricCard(
        name="dynamic_degree",
        version=1,
        values=("dynamic_degree", "motion_px"),
        unit="0 or 1, px",
        range=(0.0, math.inf),
        better="neither",
        protocol="VBench's decision (≥ max(1, round(n/4)) of the pairs above 6 px) on the mean of the top 5 % of DIS "
        "FAST flow where forward and backward agree, px at short side 256, every max(1, round(fps/8))-th frame",
        source="rule of VBench, Huang et al. 2024",
    )

    def start(self, info: ClipInfo) -> Accumulator:
        """A fresh accumulator."""
        try:
            every = stride(info.fps)
        except Undefined as reason:
            return Refused(reason)
        pairs = 0

        def look(pair: Sequence[Frame]) -> dict[str, float]:
            nonlocal pairs
            pairs += 1
            motion = top_motion(flow_between(pair[0], pair[1]))
            return {} if motion is None else {"motion": motion * at_short_side_256(pair[0])}

        def conclude(rows: Rows) -> dict[str, float]:
            motion = rows["motion"]
            return {"dynamic_degree": float(is_dynamic(motion, pairs + 1)), "motion_px": float(motion.mean())}

        return Trace(look, conclude, window=2, every=every)
