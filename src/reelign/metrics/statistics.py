r"""Is the change real? Paired bootstrap intervals and win rates, numpy only.

``paired_delta`` compares the same prompts before and after training: the mean of the differences, after − before, with
a percentile bootstrap interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13), and how many
prompts won, lost or tied. ``wilson`` is the interval of a share.

Left out: BCa and studentised intervals, corrections for looking at several measures at once. An interval from a handful
of prompts is too narrow, and one from identical differences has no width at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from reelign.errors import DataError

RESAMPLES = 10_000
CHUNK = 1_000_000  # differences drawn at once, so that memory does not grow with the number of resamples


@dataclass(frozen=True)
class Paired:
    """What changed between two measurements of the same n things.

    Args:
        before, after: means, in the unit of the measure.
        delta: mean of after − before.
        ci95: bootstrap interval of ``delta``, at 95 % unless ``paired_delta`` was asked for another confidence.
        n: number of pairs.
        win_rate: wins / (wins + losses), or None where every pair ties.
        wins, losses, ties: pairs in which ``after`` is above, below and exactly at ``before``.
    """

    before: float
    after: float
    delta: float
    ci95: tuple[float, float]
    n: int
    win_rate: float | None
    wins: int
    losses: int
    ties: int


def paired_delta(
    before: Sequence[float] | np.ndarray,
    after: Sequence[float] | np.ndarray,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Paired:
    """Compare two measurements of the same things, in the same order.

    Args:
        before, after: [n] finite numbers, n ≥ 2.
        resamples: bootstrap resamples of the n pairs.
        confidence: share of the bootstrap distribution inside the interval.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        DataError: the lengths differ, n < 2 (there is no interval then), or a number is not finite.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise DataError(f"paired measurements are rows of equal length; got shapes {first.shape} and {second.shape}")
    if len(first) < 2:
        raise DataError(f"no interval exists for fewer than 2 pairs; got {len(first)}: evaluate on more prompts")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise DataError("paired measurements are finite numbers; got NaN or infinity: find the clip without a score")
    difference = second - first
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return Paired(
        before=float(first.mean()),
        after=float(second.mean()),
        delta=float(difference.mean()),
        ci95=bootstrap_interval(difference, resamples, confidence, seed),
        n=len(difference),
        win_rate=wins / (wins + losses) if wins + losses else None,
        wins=wins,
        losses=losses,
        ties=len(difference) - wins - losses,
    )


def bootstrap_interval(values: np.ndarray, resamples: int, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values`` [n].

    Raises:
        DataError: ``resamples`` is below 1, or ``confidence`` is not strictly between 0 and 1.
    """
    if resamples < 1:
        raise DataError(f"a bootstrap needs at least 1 resample; got {resamples}")
    _check_confidence(confidence)
    random, rows = np.random.default_rng(seed), max(1, CHUNK // len(values))
    means = np.concatenate(
        [
            values[random.integers(0, len(values), (min(rows, resamples - start), len(values)))].mean(1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    r"""Wilson score interval of a share p̂ = successes/n (Wilson 1927; Brown, Cai and DasGupta 2001, eq. 4).

    (p̂ + z²/2n ± z·sqrt(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n), with z the normal quantile of ``confidence``.

    Raises:
        DataError: n < 1, or ``successes`` is not between 0 and n.
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"a share needs n ≥ 1 and 0 ≤ successes ≤ n; got {successes} of {n}")
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), successes / n
    middle = share + z * z / (2 * n)
    reach = z * (share * (1 - share) / n + (z / (2 * n)) ** 2) ** 0.5
    scale = 1 + z * z / n
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise DataError(f"a confidence lies strictly between 0 and 1, for example 0.95; got {confidence}")
