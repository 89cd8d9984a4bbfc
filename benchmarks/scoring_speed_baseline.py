"""The weight-free metrics of clips as one writes them with scikit-image, torchmetrics and NumPy: the side to beat.

Each function takes a whole clip, uint8 [T,H,W,3], and gives columns of ``reelign``; it knows nothing of the others.
Where neither library has what is needed, the plain thing is taken: NumPy for grey (scikit-image's has other weights),
``bincount`` for histograms (``histogramdd`` is slower), OpenCV's DIS for flow (scikit-image's flows take seconds a
pair). Nothing is made slow on purpose.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import av
import cv2
import numpy as np
import torch
from skimage.color import rgb2lab
from skimage.filters import laplace
from skimage.measure import block_reduce, blur_effect
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.transform import resize_local_mean
from skimage.transform import warp as skimage_warp
from torchmetrics.functional import mean_absolute_error

Video = np.ndarray


def load(path: str, frames: int) -> Video:
    """The first frames of a file, as everybody reads them; uint8 [T,H,W,3]."""
    with av.open(path) as container:
        pictures = itertools.islice(container.decode(video=0), frames)
        return np.stack([picture.to_ndarray(format="rgb24") for picture in pictures])


def grey(frame: np.ndarray) -> np.ndarray:
    return np.round(frame @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)


def resized(picture: np.ndarray, short: int) -> np.ndarray:
    scale = short / min(picture.shape[:2])
    size = tuple(round(side * scale) for side in picture.shape[:2])
    return np.round(resize_local_mean(picture, size, preserve_range=True)).astype(np.uint8)


def small(video: Video) -> list[np.ndarray]:
    return [resized(grey(frame), 256) for frame in video]


def temporal_flickering(video: Video, fps: float) -> dict[str, float]:
    pairs = itertools.pairwise(torch.from_numpy(frame).float() for frame in video)
    return {"temporal_flickering": 1 - float(np.mean([float(mean_absolute_error(b, a)) for a, b in pairs])) / 255}


def histogram_consistency(video: Video, fps: float) -> dict[str, float]:
    shares = []
    for frame in video:
        red, green, blue = (frame[..., channel].astype(np.int64) // 32 for channel in range(3))
        counts = np.bincount((64 * red + 8 * green + blue).ravel(), minlength=512)
        shares.append(counts / counts.sum())
    both = [np.minimum(b, a).sum() / 2 + np.minimum(b, shares[0]).sum() / 2 for a, b in itertools.pairwise(shares)]
    return {"histogram_consistency": float(np.mean(both))}


def sharpness(video: Video, fps: float) -> dict[str, float]:
    variances = [laplace(picture.astype(float)).var() for picture in small(video)]
    return {"sharpness": float(np.mean(np.log1p(variances)))}


def blur(video: Video, fps: float) -> dict[str, float]:
    return {"blur": float(np.mean([blur_effect(picture) for picture in small(video)]))}


def blockiness(video: Video, fps: float) -> dict[str, float]:
    on, off = [], []
    for frame in video:
        plane = grey(frame).astype(float)
        for steps in (np.abs(np.diff(plane, axis=0)), np.abs(np.diff(plane, axis=1)).T):
            grid = np.arange(1, len(steps) + 1) % 8 == 0
            on.append((steps[grid].sum(), steps[grid].size))
            off.append((steps[~grid].sum(), steps[~grid].size))
    (on_sum, on_count), (off_sum, off_count) = np.sum(on, axis=0), np.sum(off, axis=0)
    return {"blockiness": float(on_sum / on_count / (off_sum / off_count) - 1)}


def exposure(video: Video, fps: float) -> dict[str, float]:
    planes = [grey(frame) for frame in video]
    return {
        "brightness": float(np.mean([plane.mean() for plane in planes])),
        "contrast": float(np.mean([plane.std() for plane in planes])),
    }


def clipping(video: Video, fps: float) -> dict[str, float]:
    planes = [grey(frame) for frame in video]
    return {
        "clipped_share": float(np.mean([((plane <= 2) | (plane >= 253)).mean() for plane in planes])),
        "black_share": float(np.mean([(plane <= 25).mean() >= 0.98 for plane in planes])),
    }


def colourfulness(video: Video, fps: float) -> dict[str, float]:
    found = []
    for frame in video:
        red, green, blue = resized(frame, 64).astype(float).transpose(2, 0, 1)
        rg, yb = red - green, (red + green) / 2 - blue
        found.append(math.hypot(rg.std(), yb.std()) + 0.3 * math.hypot(rg.mean(), yb.mean()))
    return {"colourfulness": float(np.mean(found))}


def freezes(video: Video, fps: float) -> dict[str, float]:
    rows = []
    for first, second in itertools.pairwise(small(video)):
        height, width = (side // 16 * 16 for side in first.shape)
        difference = np.abs(first.astype(float) - second)[:height, :width]
        cells = block_reduce(difference, (16, 16), np.mean)
        rows.append((cells.max(), cells.mean()))
    largest, mean = np.array(rows).T
    frozen = (largest <= 2) & (mean <= 0.1)
    repeated = frozen & (mean <= 0.1 * np.quantile(mean, 0.75))

    def longest(flags: np.ndarray) -> int:
        return max((len(list(run)) for flag, run in itertools.groupby(flags) if flag), default=0)

    return {
        "frozen_share": float(frozen.mean()),
        "longest_freeze": longest(frozen),
        "repeated_share": float(repeated.mean()),
        "longest_repeat": longest(repeated),
    }


def colour_steadiness(video: Video, fps: float) -> dict[str, float]:
    cells = []
    for frame in video:
        thumb = resized(frame, 64)
        height, width = (side // 8 * 8 for side in thumb.shape[:2])
        cells.append(rgb2lab(block_reduce(thumb[:height, :width] / 255, (8, 8, 1), np.mean)))
    steps = np.array([np.median((b - a).reshape(-1, 3), axis=0) for a, b in itertools.pairwise(cells)])
    curve = np.concatenate([[0], np.cumsum(steps[:, 0])])
    peaks = [0.0]
    for signed, t in itertools.product((curve, -curve), range(1, len(curve) - 1)):
        peaks.append(min(signed[t] - signed[max(0, t - 4) : t].min(), signed[t] - signed[t + 1 : t + 5].min()))
    means, quarter = np.array([cell.reshape(-1, 3).mean(0) for cell in cells]), max(1, len(cells) // 4)
    return {
        "flicker_peak": float(max(peaks)),
        "brightness_flicker": float(np.median(np.abs(np.diff(curve, 2)))) / 2,
        "colour_jump": float(np.hypot(steps[:, 1], steps[:, 2]).max()),
        "colour_drift": float(np.linalg.norm(means[-quarter:].mean(0) - means[:quarter].mean(0))),
    }


def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(first, second, None)


def warp(picture: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """picture(x + motion(x)) with scikit-image, [H,W]."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    where = np.stack([y + motion[..., 1], x + motion[..., 0]])
    return skimage_warp(picture.astype(float), where, order=1, mode="edge", preserve_range=True)


def agreeing(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    returned = np.dstack([warp(backward[..., axis], forward) for axis in (0, 1)])
    gap, size = ((forward + returned) ** 2).sum(-1), (forward**2).sum(-1) + (returned**2).sum(-1)
    y, x = np.mgrid[: gap.shape[0], : gap.shape[1]]
    to_x, to_y = x + forward[..., 0], y + forward[..., 1]
    inside = (to_x >= 0) & (to_x <= x.max()) & (to_y >= 0) & (to_y <= y.max())
    return (gap < 0.01 * size + 0.5) & inside


def motion_compensated_flicker(video: Video, fps: float) -> dict[str, float]:
    found = []
    for first, second in itertools.pairwise(small(video)):
        forward, backward = flow(first, second), flow(second, first)
        trusted = agreeing(forward, backward)
        if trusted.mean() >= 0.1:
            found.append(np.abs(first - warp(second, forward))[trusted].mean())
    return {"motion_compensated_flicker": float(np.mean(found))}


def motion_smoothness(video: Video, fps: float) -> dict[str, float]:
    pictures, found = small(video), []
    for t in range(1, len(pictures) - 1, 2):
        first, last = pictures[t - 1], pictures[t + 1]
        half = (flow(first, last) - flow(last, first)) / 4
        guess = np.round((warp(first, -half) + warp(last, half)) / 2)
        found.append(np.abs(pictures[t] - guess).mean())
    return {"motion_smoothness": 1 - float(np.mean(found)) / 255}


def dynamic_degree(video: Video, fps: float) -> dict[str, float]:
    found = []
    sampled = small(video[:: max(1, round(fps / 8))])
    for first, second in itertools.pairwise(sampled):
        forward, backward = flow(first, second), flow(second, first)
        trusted = agreeing(forward, backward)
        if trusted.mean() >= 0.1:
            lengths = np.sort(np.linalg.norm(forward, axis=-1)[trusted])
            found.append(lengths[-max(1, round(0.05 * len(lengths))) :].mean())
    dynamic = np.sum(np.array(found) > 6) >= max(1, round(len(sampled) / 4))
    return {"dynamic_degree": float(dynamic), "motion_px": float(np.mean(found))}


def cuts(video: Video, fps: float) -> dict[str, float]:
    pairs = itertools.pairwise(small(video))
    wrong = np.array([1 - agreeing(flow(first, second), flow(second, first)).mean() for first, second in pairs])
    above = [
        value - np.median(np.concatenate([wrong[max(0, t - 3) : t], wrong[t + 1 : t + 4]]))
        for t, value in enumerate(wrong)
    ]
    return {"cuts": float(np.sum(np.array(above) > 0.6)), "cut_score": float(max(above))}


def psnr(reference: Video, video: Video) -> dict[str, float]:
    each = [peak_signal_noise_ratio(first, second) for first, second in zip(reference, video, strict=True)]
    return {"psnr_frame_mean": float(np.mean(each)), "psnr_pooled": float(peak_signal_noise_ratio(reference, video))}


def ssim(reference: Video, video: Video) -> dict[str, float]:
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    pairs = zip(reference, video, strict=True)
    return {"ssim": float(np.mean([structural_similarity(grey(a), grey(b), **wang) for a, b in pairs]))}


Metric = Callable[[Video, float], dict[str, float]]
PLAIN: tuple[Metric, ...] = (
    temporal_flickering, histogram_consistency, sharpness, blur, blockiness, exposure, clipping, colourfulness,
    freezes, colour_steadiness,
)  # fmt: skip
WITH_FLOW: tuple[Metric, ...] = (motion_compensated_flicker, motion_smoothness, dynamic_degree, cuts)
FULL_REFERENCE = (psnr, ssim)
