"""How far a clip is from a reference clip, frame by frame: PSNR and SSIM.

PSNR = 10·log₁₀(255²/MSE) in dB, over RGB. Two numbers are in use and both are given, because they differ: the mean over
frames of each frame's PSNR (``psnr_frame_mean``), and the PSNR of the MSE of all frames (``psnr_pooled``). Equal
pictures have no PSNR: they are ``Undefined`` ("identical"), not infinity and not a cap. In a clip with some equal
frames only the frame mean is undefined.

SSIM is that of Wang et al. 2004 on grey: 11×11 Gaussian window with σ = 1.5, population covariance, K = (0.01, 0.03),
L = 255, mean over the pixels whose window lies within the picture:

    SSIM(x, y) = (2·μ_x·μ_y + C₁)(2·σ_xy + C₂) / ((μ_x² + μ_y² + C₁)(σ_x² + σ_y² + C₂)),    C = (K·L)²

Frames are aligned by index. Clips of unequal length or size are an error, unless the length is asked to be cut.

Run: ``compare(FrameStream(a), FrameStream(b))``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from reelign.errors import DataError
from reelign.metrics.clip import Picture, Undefined

WINDOW, SIGMA = 11, 1.5
MIDDLE = np.float32(128)
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

Plane = NDArray[np.float32]


def mse(reference: Picture, picture: Picture) -> float:
    """Mean of (reference − picture)² over pixels and channels, grey levels²; two uint8 arrays of one shape.

    Raises:
        DataError: the shapes differ.
    """
    _check_shapes(reference, picture)
    return float(cv2.norm(reference, picture, cv2.NORM_L2SQR)) / reference.size


def psnr(mean_squared_error: float) -> float:
    """10·log₁₀(255²/MSE), in dB.

    Raises:
        Undefined: the MSE is 0, the pictures are identical.
    """
    if mean_squared_error == 0:
        raise Undefined("identical pictures have no PSNR")
    return 10 * math.log10(255**2 / mean_squared_error)


def ssim(reference: Picture, picture: Picture) -> float:
    """SSIM of two uint8 [H,W] pictures, in [−1, 1]; 1 is equal.

    Raises:
        DataError: the shapes differ, they are not grey, or a side is under 11 pixels.
    """
    _check_shapes(reference, picture)
    if reference.ndim != 2 or min(reference.shape) < WINDOW:
        raise DataError(f"SSIM takes grey pictures of at least {WINDOW} pixels a side; got shape {reference.shape}")
    # Variances are differences of large numbers; around the mid level they are smaller, and float32 is enough.
    x, y = reference.astype(np.float32) - MIDDLE, picture.astype(np.float32) - MIDDLE
    mean_x, mean_y = _blur(x), _blur(y)
    spread = _blur(x * x + y * y) - mean_x * mean_x - mean_y * mean_y
    joint = _blur(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + MIDDLE, mean_y + MIDDLE
    top = (2 * mean_x * mean_y + C1) * (2 * joint + C2)
    bottom = (mean_x * mean_x + mean_y * mean_y + C1) * (spread + C2)
    return float((top / bottom).mean(dtype=np.float64))


def compare(
    reference: Iterable[Picture], clip: Iterable[Picture], shortest: bool = False
) -> dict[str, float | Undefined]:
    """``psnr_frame_mean``, ``psnr_pooled`` (dB) and ``ssim`` (mean over frames) of two clips, one pass over each.

    Args:
        reference, clip: uint8 [H,W,3] each, aligned by index.
        shortest: whether the longer clip is cut to the shorter; if not, unequal lengths are an error.

    Raises:
        DataError: the clips differ in length or size, or have no frame.
    """
    errors: list[float] = []
    likeness: list[float] = []
    for index, (first, second) in enumerate(itertools.zip_longest(reference, clip)):
        if first is None or second is None:
            if shortest:
                break
            which = "reference" if first is None else "clip"
            raise DataError(f"clips compared frame by frame are equally long; the {which} ends after {index} frames")
        errors.append(mse(first, second))
        likeness.append(ssim(*(cv2.cvtColor(each, cv2.COLOR_RGB2GRAY) for each in (first, second))))
    if not errors:
        raise DataError("clips compared frame by frame have at least one frame; got none")
    return {**_psnrs(errors), "ssim": float(np.mean(likeness))}


def _psnrs(errors: list[float]) -> dict[str, float | Undefined]:
    if not any(errors):
        return dict.fromkeys(("psnr_frame_mean", "psnr_pooled"), Undefined("identical clips have no PSNR"))
    pooled = psnr(float(np.mean(errors)))
    if not all(errors):
        same = errors.count(0.0)
        reason = Undefined(f"identical frames have no PSNR: {same} of {len(errors)}; psnr_pooled has a value")
        return {"psnr_frame_mean": reason, "psnr_pooled": pooled}
    return {"psnr_frame_mean": float(np.mean([psnr(error) for error in errors])), "psnr_pooled": pooled}


def _blur(plane: Plane) -> Plane:
    """Means under the Gaussian window, only where it lies within the picture."""
    edge = WINDOW // 2
    return np.asarray(cv2.GaussianBlur(plane, (WINDOW, WINDOW), SIGMA)[edge:-edge, edge:-edge], np.float32)


def _check_shapes(reference: Picture, picture: Picture) -> None:
    if reference.shape != picture.shape or not reference.size:
        sizes = f"{reference.shape} and {picture.shape}"
        raise DataError(f"pictures are compared pixel by pixel, so they have one size; got {sizes}: resize one")
