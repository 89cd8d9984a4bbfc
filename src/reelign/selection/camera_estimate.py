r"""What every estimator of camera motion returns: amounts a step, poses, a confidence, or an abstention with a reason.

Seven primitives, each with a sign and a unit:

    pan       degrees, right is positive            truck      median scene depths, right is positive
    tilt      degrees, up is positive               pedestal   median scene depths, up is positive
    roll      degrees, clockwise is positive        dolly      median scene depths, forward is positive
    zoom      log of the focal length's growth, in is positive

A picture shows angles only in units of its field of view, which is assumed and reported; and lengths only in units of
how far the scene is, so a truck of 0.1 means a tenth of the median depth of what is tracked.

``visible`` puts them in one currency, the share of the picture's width by which things move on the screen, so that a
pan and a dolly can be compared: a turn by its angle over the field of view, roll and zoom by the mean distance from the
centre that they move things, travel by its parallax.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from reelign.errors import DataError
from reelign.selection.camera_poses import from_steps, turns_deg

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]

PRIMITIVES = ("pan", "tilt", "roll", "zoom", "truck", "pedestal", "dolly")
PAN, TILT, ROLL, ZOOM, TRUCK, PEDESTAL, DOLLY = range(7)
FOV_DEG = 55.0  # horizontal; where nobody says, that of a 35 mm lens, and in the middle of what generators show
RADIUS = 0.38  # mean distance from the centre of a square picture, in widths
SMALL = 256  # short side at which motion is measured, in pixels


@dataclass(frozen=True)
class CameraEstimate:
    """The camera of one clip as one method saw it.

    Args:
        method: which estimator.
        frames: indices of the T frames used.
        steps: the seven primitives between them [T−1,7], lengths in the median depth of their moment; no rows where it
            abstains.
        poses: camera-to-world [T,4,4], relative to the first; translation in median scene depths of the first frame.
        confidence: 0 to 1; the share of what was tracked that the model explains, less where it was little.
        inliers: tracks explained in each step.
        fov_deg: the horizontal field of view of the first frame that was assumed or fitted.
        parallax: whether near and far things moved differently, so that travel was seen.
        reason: why it abstains; empty where it does not.
        notes: what a reader should know.
    """

    method: str
    frames: tuple[int, ...] = ()
    steps: Array = field(default_factory=lambda: np.zeros((0, 7)))
    poses: Array = field(default_factory=lambda: np.zeros((0, 4, 4)))
    confidence: float = 0.0
    inliers: tuple[int, ...] = ()
    fov_deg: float = FOV_DEG
    parallax: bool = False
    reason: str = ""
    notes: tuple[str, ...] = ()

    @property
    def abstained(self) -> bool:
        """Whether this method cannot say; that is neither a still camera nor a failure to obey."""
        return bool(self.reason)

    @property
    def amounts(self) -> Array:
        """The seven primitives of the whole clip [7]; NaN where it abstains."""
        return np.full(7, np.nan) if self.abstained else np.asarray(self.steps.sum(0))

    def named(self) -> dict[str, float]:
        """Amounts by name."""
        return dict(zip(PRIMITIVES, self.amounts.tolist(), strict=True))


def visible(amounts: Array, fov_deg: float = FOV_DEG) -> Array:
    """Amounts [...,7] as signed shares of the picture's width, the same shape."""
    focal = 0.5 / math.tan(math.radians(fov_deg) / 2)  # in widths
    unit = np.array([1 / fov_deg, 1 / fov_deg, math.radians(RADIUS), RADIUS, focal, focal, RADIUS])
    return np.asarray(amounts * unit, float)


def steps_from_poses(poses: Array) -> Array:
    """The seven primitives of each step of a trajectory [T,4,4], [T−1,7]; zoom is 0, lengths stay in its unit."""
    turn = turns_deg(poses)
    travel = np.einsum("tji,tj->ti", poses[:-1, :3, :3], poses[1:, :3, 3] - poses[:-1, :3, 3])
    none = np.zeros(len(turn))
    columns = [turn[:, 1], turn[:, 0], turn[:, 2], none, travel[:, 0], -travel[:, 1], travel[:, 2]]
    return np.column_stack(columns)


def poses_from_steps(steps: Array) -> Array:
    """The trajectory [T,4,4] of the seven primitives of each step [T−1,7]; zoom leaves the pose alone."""
    turns = [np.asarray(cv2.Rodrigues(row)[0], float) for row in np.radians(steps[:, [TILT, PAN, ROLL]])]
    return from_steps(turns, list(steps[:, [TRUCK, PEDESTAL, DOLLY]] * [1, -1, 1]))


def in_first_depths(steps: Array) -> Array:
    """Steps [T−1,7] with their lengths, each in the median depth of its moment, all in that of the first frame.

    A camera that goes forward by a share d of the depth has 1 − d of it left.
    """
    left = np.cumprod(1 - np.clip(steps[:, DOLLY], None, 0.9))
    scaled = steps.copy()
    scaled[1:, TRUCK:] *= left[:-1, None]
    return scaled


def spread_indices(count: int, most: int) -> list[int]:
    """At most ``most`` frames of ``count``, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


class Thinned:
    """Frames of a clip of unknown length, evenly spaced, in bounded memory: every second is dropped when it gets full.

    Args:
        most: at most twice as many are kept.
    """

    def __init__(self, most: int) -> None:
        self.most, self.stride, self.count = most, 1, 0
        self.frames: list[Picture] = []

    def add(self, frame: Picture) -> None:
        """The next frame; kept or not."""
        if self.count % self.stride == 0:
            if len(self.frames) == 2 * self.most:
                self.frames, self.stride = self.frames[::2], 2 * self.stride
            if self.count % self.stride == 0:
                self.frames.append(frame)
        self.count += 1

    @property
    def indices(self) -> list[int]:
        """Of the kept frames in the clip."""
        return list(range(0, self.stride * len(self.frames), self.stride))


def focal_px(width: int, fov_deg: float) -> float:
    """Focal length in pixels of a picture of this width."""
    if not 1 <= fov_deg <= 170:
        raise DataError(f"a horizontal field of view is 1 to 170 degrees; got {fov_deg:g}")
    return width / 2 / math.tan(math.radians(fov_deg) / 2)


def small_grey(frame: Picture) -> Picture:
    """uint8 [H,W] with a short side of at most 256 pixels, from RGB [H,W,3] or grey [H,W].

    Raises:
        DataError: another shape or type.
    """
    if frame.dtype != np.uint8 or frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] != 3):
        raise DataError(f"a frame is uint8 [H,W,3] or [H,W]; got {frame.dtype} {frame.shape}")
    grey = frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    scale = SMALL / min(height, width)
    if scale >= 1:
        return np.asarray(grey, np.uint8)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)


def small_greys(frames: Iterable[Picture]) -> list[Picture]:
    """``small_grey`` of each frame.

    Raises:
        DataError: frames of different sizes.
    """
    greys = [small_grey(frame) for frame in frames]
    if len({grey.shape for grey in greys}) > 1:
        raise DataError(f"the frames of a clip have one size; got {sorted({grey.shape for grey in greys})}")
    return greys


def abstain(method: str, frames: Sequence[int], reason: str, fov_deg: float = FOV_DEG) -> CameraEstimate:
    """The third outcome: cannot say, and why."""
    return CameraEstimate(method, tuple(frames), fov_deg=fov_deg, reason=reason)
