"""Dense optical flow between two frames, which pixels it can be trusted at, and warping by it.

Flow is DIS (Kroeger et al., Fast Optical Flow using Dense Inverse Search, 2016; OpenCV's preset FAST) on the small grey
view, in pixels of that view. It is found in both directions, and a pixel is trusted where they agree (Sundaram, Brox
and Keutzer 2010, eq. 5):

    |F(x) + B(x + F(x))|² < 0.01·(|F(x)|² + |B(x + F(x))|²) + 0.5

so occluded and invented motion does not count. Both directions are kept with the later frame, so metrics that look at
the same pair of frames share them. OpenCV's flow is the same for any number of threads.

Left out: Farneback's flow, which misses large motion on smooth pictures; learned flow (RAFT), which needs weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from reelign.metrics.clip import SMALL, Frame, Picture, Undefined

Field = NDArray[np.float32]
Mask = NDArray[np.bool_]
Pixels = TypeVar("Pixels", Picture, Field)
SHORTEST = 32  # pixels of the short side; below, DIS has no pyramid to stand on, and can even give NaN
TOP = 0.05  # share of pixels that move most, as VBench takes it
TRUSTED = 0.1  # least share of pixels that must agree before a pair says anything about motion


@dataclass(frozen=True)
class Flow:
    """Motion between an earlier and a later picture.

    Args:
        forward: float32 [H,W,2], x and y in pixels: earlier(x) is found at later(x + forward(x)).
        backward: the same from the later to the earlier.
    """

    forward: Field
    backward: Field

    @cached_property
    def trusted(self) -> Mask:
        """bool [H,W]: where forward and backward agree."""
        return consistent(self.forward, self.backward)


def flow_between(earlier: Frame, later: Frame) -> Flow:
    """Motion on the small grey views, found once for each pair of frames.

    Raises:
        Undefined: the small view is under 32 pixels on its short side.
    """

    def find() -> Flow:
        return Flow(dis_flow(earlier.small, later.small), dis_flow(later.small, earlier.small))

    return later.shared(f"flow from {earlier.index}", find)


def dis_flow(first: Picture, second: Picture) -> Field:
    """F with first(x) ≈ second(x + F(x)); uint8 [H,W] twice, to float32 [H,W,2].

    Raises:
        Undefined: the pictures are under 32 pixels on their short side.
    """
    if min(first.shape) < SHORTEST:
        raise Undefined(f"optical flow needs at least {SHORTEST} pixels a side; got {first.shape[1]}×{first.shape[0]}")
    finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    # A view that is not contiguous is an assertion deep in OpenCV.
    flow = finder.calc(np.ascontiguousarray(first), np.ascontiguousarray(second), None)
    return np.asarray(flow, np.float32)


def warp(picture: Pixels, flow: Field) -> Pixels:
    """picture(x + flow(x)), bilinear, [H,W] or [H,W,C]; beyond the border the edge pixels repeat."""
    where = flow + _grid(*flow.shape[:2])
    warped: Pixels = cv2.remap(picture, where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return warped


def consistent(forward: Field, backward: Field) -> Mask:
    """bool [H,W]: |F + B′|² < 0.01·(|F|² + |B′|²) + 0.5, B′(x) = B(x + F(x)), and x + F(x) lies within the picture."""
    returned = warp(backward, forward)
    gap = _squared(forward + returned)
    agree = gap < 0.01 * (_squared(forward) + _squared(returned)) + 0.5
    height, width = agree.shape
    where = forward + _grid(height, width)
    x, y = where[..., 0], where[..., 1]
    return np.asarray(agree & (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1), np.bool_)


def top_motion(flow: Flow) -> float | None:
    """Mean length of the longest 5 % of the trusted vectors, in pixels; None where under 10 % of pixels are trusted."""
    lengths = np.sqrt(_squared(flow.forward)[flow.trusted])
    if len(lengths) < TRUSTED * flow.trusted.size:
        return None
    count = max(1, round(TOP * len(lengths)))
    return float(np.partition(lengths, len(lengths) - count)[-count:].mean())


def at_short_side_256(frame: Frame) -> float:
    """Pixels at short side 256 that one pixel of ``frame.small`` is: 1, and more where the clip is smaller."""
    height, width = frame.small.shape
    return float(SMALL / min(height, width))


def _squared(flow: Field) -> Field:
    x, y = flow[..., 0], flow[..., 1]
    return np.asarray(x * x + y * y, np.float32)


@lru_cache(maxsize=4)
def _grid(height: int, width: int) -> Field:
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y], axis=-1).astype(np.float32)
