r"""Maximum mean discrepancy between two sets of features: KID, KVD, JEDi and CMMD are rows of one table.

    MMD² = E k(x,x') + E k(y,y') − 2·E k(x,y)                                    (Gretton et al. 2012, eq. 3 and 5)

    KID, KVD   k = (xᵀy/d + 1)³              unbiased          Bińkowski et al. 2018; Unterthiner et al. 2018
    JEDi       k = (xᵀy/d)²                  biased, × 100     Luo et al. 2024
    CMMD       k = exp(−‖x − y‖²/(2·10²))    biased, × 1000    Jayasumana et al. 2024, on unit features

The biased estimate counts each sample as its own neighbour, which adds about c/N; the unbiased one leaves those pairs
out, has mean 0 for two samples of one distribution at any N, and may therefore be negative.

Features of one clip's frames, [C,F,d], are not independent: leaving out only a frame's pair with itself would keep its
near copies and the bias with them. So all pairs within a clip are left out. F = 1 is the ordinary estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reelign.errors import DataError
from reelign.metrics.frechet import Features

BLOCK = 4_000_000  # kernel values held at once while frames are averaged away
SUBSETS, SUBSET_SIZE = 100, 1000  # of KID as published


@dataclass(frozen=True)
class Kernel:
    """A kernel and how its discrepancy is published.

    Args:
        name: in words and symbols, for protocols.
        gram: features [n,d], [m,d] to k [n,m].
        scale: what published numbers are multiplied with.
        unbiased: which estimate is published.
    """

    name: str
    gram: Callable[[Features, Features], Features]
    scale: float
    unbiased: bool


def polynomial(x: Features, y: Features, degree: int, offset: float) -> Features:
    """(xᵀy/d + offset)^degree for [n,d] and [m,d]: [n,m]."""
    gram: Features = (x @ y.T / x.shape[1] + offset) ** degree
    return gram


def gaussian(x: Features, y: Features, sigma: float) -> Features:
    """exp(−‖x − y‖²/(2σ²)) for [n,d] and [m,d]: [n,m]."""
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T
    gram: Features = np.exp(-squares / (2 * sigma**2))
    return gram


CUBIC = Kernel("polynomial (x·y/d + 1)³", lambda x, y: polynomial(x, y, 3, 1.0), 1.0, True)
QUADRATIC = Kernel("polynomial (x·y/d)²", lambda x, y: polynomial(x, y, 2, 0.0), 100.0, False)
WIDE_GAUSSIAN = Kernel("Gaussian, σ = 10", lambda x, y: gaussian(x, y, 10.0), 1000.0, False)


def mmd2(a: ArrayLike, b: ArrayLike, kernel: Kernel, unbiased: bool | None = None) -> float:
    """``kernel.scale``·MMD² of two sets.

    Args:
        a, b: [N,d], or [C,F,d] with F dependent rows of each of C clips; at least 2 clips each.
        kernel: of the table above.
        unbiased: which estimate; the kernel's published one where None.

    Raises:
        DataError: shapes do not fit, fewer than 2 clips, or a number is not finite.
    """
    first, second = as_clips(a), as_clips(b)
    if first.shape[1:] != second.shape[1:]:
        raise DataError(f"both sets have features of one shape; got {first.shape[1:]} and {second.shape[1:]}")
    within = clip_gram(first, first, kernel), clip_gram(second, second, kernel)
    return discrepancy(*within, clip_gram(first, second, kernel), kernel, unbiased)


def discrepancy(xx: Features, yy: Features, xy: Features, kernel: Kernel, unbiased: bool | None = None) -> float:
    """``kernel.scale``·MMD² from the kernel's means over clips xx [C,C], yy [D,D] and xy [C,D]."""
    fair = kernel.unbiased if unbiased is None else unbiased
    return kernel.scale * float(_mean_pair(xx, fair) + _mean_pair(yy, fair) - 2 * xy.mean())


def clip_gram(a: Features, b: Features, kernel: Kernel) -> Features:
    """Mean of the kernel over the frames of every pair of clips: [C,F,d] and [D,F,d] to [C,D]."""
    (clips, frames, length), others = a.shape, b.reshape(-1, b.shape[2])
    rows = max(1, BLOCK // (frames * len(others)))
    blocks = [
        kernel.gram(a[start : start + rows].reshape(-1, length), others)
        .reshape(-1, frames, len(b), b.shape[1])
        .mean((1, 3))
        for start in range(0, clips, rows)
    ]
    return np.concatenate(blocks)


def subset_mmd2(
    a: ArrayLike, b: ArrayLike, kernel: Kernel, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = 0
) -> NDArray[np.float64]:
    """The unbiased estimate on random subsets of min(size, N, M) clips a side: [subsets]; KID publishes their mean.

    Has the same mean as ``mmd2`` on everything and more noise; here to check against published numbers.

    Raises:
        DataError: as ``mmd2``, or ``subsets`` or ``size`` is too small.
    """
    first, second = as_clips(a), as_clips(b)
    size = min(size, len(first), len(second))
    if subsets < 1 or size < 2:
        raise DataError(f"at least 1 subset of at least 2 clips is needed; got {subsets} of {size}")
    random = np.random.default_rng(seed)

    def draw(features: Features) -> Features:
        return features[random.choice(len(features), size, replace=False)]

    return np.array([mmd2(draw(first), draw(second), kernel, unbiased=True) for _ in range(subsets)])


def as_clips(values: ArrayLike) -> Features:
    """Features as float64 [C,F,d]; a table [N,d] is N clips of one row.

    Raises:
        DataError: another shape, fewer than 2 clips, or a number is not finite.
    """
    features = np.asarray(values, dtype=np.float64)
    features = features[:, None] if features.ndim == 2 else features
    if features.ndim != 3 or len(features) < 2 or not features.size:
        raise DataError(f"features are [N,d] or [clips,frames,d] with at least 2 clips; got shape {features.shape}")
    if not np.isfinite(features).all():
        raise DataError("features are finite numbers; got NaN or infinity: find the clip that gives them")
    return features


def _mean_pair(gram: Features, unbiased: bool) -> float:
    if not unbiased:
        return float(gram.mean())
    return float((gram.sum() - np.trace(gram)) / (len(gram) * (len(gram) - 1)))
