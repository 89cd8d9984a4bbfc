r"""Several winners that are good and not near-duplicates of each other: a greedy determinantal choice.

A set Y of takes is worth (Kulesza and Taskar, Determinantal Point Processes for Machine Learning, 2012, section 3.1)

    ln det L_Y = Σ_{i ∈ Y} α·θ_i + ln det S_Y,      L = diag(q)·S·diag(q),  q_i² = e^{α·θ_i}

the sum of their log qualities and the log volume their features span. Similarity is S_ij = exp(−d_ij²/(2·ℓ²)) with ℓ
the median distance. Greedily, the next take is the one with the largest α·θ_i + ln r_i, where r_i is what the chosen
ones leave unexplained of it: 1 at first, 0 for an exact copy (Chen, Zhang and Zhou 2018, algorithm 1). The first is
always the best.

Left out: exact sampling from the process, features learned for the purpose.

Run: ``diverse(strengths, features, 3)``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reelign.errors import DataError

Array = NDArray[np.float64]
COPY = 1e-9  # a remainder below this is a copy of what is chosen


def diverse(quality: Array, features: Array, k: int, alpha: float = 1.0) -> list[int]:
    """Positions of at most k takes, best first; fewer where all others are exact copies of those chosen.

    Args:
        quality: θ [n], log-odds or any logarithm of how good a take is; the higher, the better.
        features: [n, d] finite numbers on comparable scales; see ``standard_features``.
        k: how many, at least 1.
        alpha: how much quality counts against difference; large values choose the k best.

    Raises:
        DataError: shapes do not fit, a number is not finite, or k or alpha is out of range.
    """
    quality, features = np.asarray(quality, dtype=np.float64), np.asarray(features, dtype=np.float64)
    if quality.ndim != 1 or features.ndim != 2 or len(quality) != len(features):
        raise DataError(f"a row of features a take; got shapes {quality.shape} and {features.shape}")
    if not (np.isfinite(quality).all() and np.isfinite(features).all()):
        raise DataError("qualities and features are finite numbers; got NaN or infinity: standard_features fills gaps")
    if k < 1 or not alpha > 0:
        raise DataError(f"k is at least 1 and alpha above 0; got {k} and {alpha}")
    similarity = similarities(features)
    remainder, explained = np.ones(len(quality)), np.zeros((0, len(quality)))
    chosen: list[int] = []
    for _ in range(min(k, len(quality))):
        with np.errstate(divide="ignore"):
            worth = alpha * quality + np.log(np.where(remainder > COPY, remainder, 0.0))
        worth[chosen] = -np.inf
        best = int(np.argmax(worth.round(12)))
        if worth[best] == -np.inf:
            break
        chosen.append(best)
        # One more row of the Cholesky factor of S; its square is what this take explains of every other.
        row = (similarity[best] - explained[:, best] @ explained) / np.sqrt(remainder[best])
        explained = np.vstack([explained, row])
        remainder = remainder - row**2
    return chosen


def similarities(features: Array) -> Array:
    """S_ij = exp(−d_ij²/(2·ℓ²)), [n, n], with ℓ the median distance between different takes (1 where all are equal)."""
    squares = (features**2).sum(1)
    squared = np.maximum(squares[:, None] + squares[None, :] - 2 * features @ features.T, 0.0)
    squared[squared < 1e-12 * max(1.0, float(squares.max(initial=0.0)))] = 0.0
    apart = squared[np.triu_indices(len(features), 1)]
    scale = float(np.median(apart[apart > 0])) if (apart > 0).any() else 1.0
    found: Array = np.exp(-squared / (2 * scale))
    return found


def standard_features(frame: pd.DataFrame, columns: list[str]) -> Array:
    """Columns as features, [n, d]: each in deviations from its mean; a missing value is the mean, a constant is 0.

    Raises:
        DataError: no column, one that is not there, or one that holds an infinity.
    """
    if not columns or (missing := [name for name in columns if name not in frame]):
        known = ", ".join(frame.select_dtypes("number").columns)
        raise DataError(f"takes differ in columns of their table; {missing[0] if columns else 'none'!r} of {known}")
    values = frame[columns].astype(float)
    if np.isinf(values.to_numpy()).any():
        raise DataError(f"features are finite or missing; one of {', '.join(columns)} holds an infinity")
    deviation = values.std(ddof=0)
    flat = deviation <= 1e-12 * values.abs().max()
    standard: Array = ((values - values.mean()) / deviation.where(~flat)).fillna(0.0).to_numpy()
    return standard
