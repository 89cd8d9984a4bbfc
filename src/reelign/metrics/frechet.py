r"""The Fréchet distance between two sets of features: what FID and FVD compute, exact for any number of samples.

    FD = ‖μ_a − μ_b‖² + Tr(Σ_a + Σ_b − 2·(Σ_a·Σ_b)^½)              (Dowson and Landau 1982; Heusel et al. 2017, eq. 6)

With A and B the centred features over √(N − 1), so that Σ_a = AᵀA, this is

    FD = ‖μ_a − μ_b‖² + ‖A‖_F² + ‖B‖_F² − 2·‖A·Bᵀ‖_*,                ‖·‖_* the sum of singular values

because the non-zero eigenvalues of Σ_a·Σ_b are the squared singular values of A·Bᵀ. No matrix root is taken, so there
is no complex residue and no ridge to add, and fewer samples than dimensions are no special case. Where there are more,
A and B are first replaced by the d×d triangular factors of their QR decompositions, which changes no singular value.

The distance is biased upwards by about c/N: two samples of one distribution are far from 0 apart. Compare only equal N;
``set_comparison`` sees to that, and gives the distance of the reference from itself beside it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reelign.errors import DataError

Features = NDArray[np.float64]


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """FD of two sets of features; ≥ 0, in squared units of a feature. Covariances divide by N − 1.

    Args:
        a, b: [N,d] and [M,d] finite numbers, N and M ≥ 2.

    Raises:
        DataError: shapes do not fit, fewer than 2 samples, or a number is not finite.
    """
    first, second = checked(a), checked(b)
    if first.shape[1] != second.shape[1]:
        raise DataError(f"both sets have features of one length; got {first.shape[1]} and {second.shape[1]}")
    shift = first.mean(0) - second.mean(0)
    left, right = _factor(first), _factor(second)
    overlap = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    distance = shift @ shift + (left**2).sum() + (right**2).sum() - 2 * overlap
    return max(float(distance), 0.0)  # a distance of equal sets is 0 up to the sign of round-off


def checked(values: ArrayLike) -> Features:
    """Features as float64 [N,d].

    Raises:
        DataError: not a table, fewer than 2 rows, or a number is not finite.
    """
    features = np.asarray(values, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
        raise DataError(f"features are a table [N,d] with N ≥ 2 rows; got shape {features.shape}")
    if not np.isfinite(features).all():
        raise DataError("features are finite numbers; got NaN or infinity: find the clip that gives them")
    return features


def _factor(features: Features) -> Features:
    """F [min(N,d),d] with FᵀF the covariance of ``features`` [N,d]."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    factor: Features = np.asarray(np.linalg.qr(centred, mode="r") if len(centred) > centred.shape[1] else centred)
    return factor
