r"""Who should meet whom: comparisons into tables of wins, and the pairs whose answer would tell most.

A judge says how likely the left take is better than the right one. It may lean to a side, so it is asked both ways:

    p(a ≻ b) = (f(a, b) + 1 − f(b, a))/2

which makes every scheme of ``reelign.selection.schemes`` independent of sides. Takes enter a scheme in the order of
their content hash, never of a glob, so winners don't depend on the order of files either.

Left out: judges that look at more than two takes at once.

Run: ``run_groups(frame, judge, "halving")``, or ``informative_pairs(labels, takes, 10)`` for people.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reelign.errors import DataError
from reelign.selection.bradley_terry import RIDGE, Array, fit, probability_best

CHOICES = ("left", "right", "tie", "both_bad")


def win_tables(labels: pd.DataFrame, takes: Sequence[str]) -> tuple[Array, Array]:
    """Wins [n, n] and ties [n, n] of ``takes`` from people's choices; rows about other takes are left out.

    ``both_bad`` says nothing about which is better, as a tie does.

    Args:
        labels: columns left, right, choice.
        takes: n different takes.

    Raises:
        DataError: a column is missing, a choice is unknown, a take is listed twice or met itself.
    """
    place = {take: index for index, take in enumerate(takes)}
    if len(place) < len(takes):
        raise DataError(f"takes that compete are different; {len(takes) - len(place)} of {len(takes)} are listed twice")
    if missing := {"left", "right", "choice"} - set(labels.columns):
        raise DataError(f"labels have columns left, right and choice; {', '.join(sorted(missing))} is missing")
    if unknown := set(labels["choice"]) - set(CHOICES):
        raise DataError(f"a choice is one of {', '.join(CHOICES)}; got {sorted(map(str, unknown))[0]!r}")
    wins, ties = np.zeros((len(takes), len(takes))), np.zeros((len(takes), len(takes)))
    known = labels[labels["left"].isin(place) & labels["right"].isin(place)]
    for left, right, choice in zip(known["left"].map(place), known["right"].map(place), known["choice"], strict=True):
        if left == right:
            raise DataError(f"a pair is two takes; {takes[left]} was compared with itself: take that label out")
        if choice in ("left", "right"):
            wins[(left, right) if choice == "left" else (right, left)] += 1
        else:
            ties[left, right] += 1
            ties[right, left] += 1
    return wins, ties


def informative_pairs(
    labels: pd.DataFrame, takes: Sequence[str], n: int, ridge: float = RIDGE
) -> list[tuple[str, str]]:
    r"""The n pairs of one group whose comparison would tell most about which take is best, most informative first.

    The score of a pair is (b_i + b_j)·½·ln(1 + p(1 − p)·v): how much one more comparison shrinks the posterior of the
    strengths (the log-determinant of its covariance), times the chance that either is the best. Here p = σ(θ_i − θ_j),
    v = Var(θ_i − θ_j), and b = P(best), all from the Bradley–Terry fit of ``labels``. After each choice the covariance
    shrinks as that comparison would shrink it, so that the next pair tells something new. A pair that people have seen
    may come again. Equal scores go by content hash: the answer does not depend on the order of ``takes`` or labels.

    Args:
        labels: columns left, right, choice (left, right, tie, both_bad); may be empty.
        takes: of one group.
        n: how many pairs, at least 0; each comes once, so there are at most m(m − 1)/2 of m takes.
        ridge: of the fit.

    Returns:
        Pairs, each in the order of hashes: who asks randomises the sides.

    Raises:
        DataError: as ``win_tables``, or n < 0.
    """
    if n < 0:
        raise DataError(f"pairs to ask next are 0 or more; got {n}")
    ordered = sorted(takes)
    wins, ties = win_tables(labels, ordered)
    if len(ordered) < 2 or n == 0:
        return []
    strengths = fit(wins, ties, ridge=ridge)
    chance, covariance = probability_best(strengths), strengths.covariance.copy()
    margin = strengths.theta[:, None] - strengths.theta[None, :]
    weight = 0.25 / np.cosh(margin / 2) ** 2  # p(1 − p)
    worth = np.triu(chance[:, None] + chance[None, :], 1) / 2  # each pair once
    chosen: list[tuple[str, str]] = []
    for _ in range(min(n, len(ordered) * (len(ordered) - 1) // 2)):
        variance = np.diag(covariance)
        spread = variance[:, None] + variance[None, :] - 2 * covariance
        gain = worth * np.log1p(weight * np.maximum(spread, 0))
        # Rounding makes equal gains differ in the last digits; the first of the largest must not depend on that.
        i, j = np.unravel_index(int(np.argmax(gain.round(12))), gain.shape)
        chosen.append((ordered[i], ordered[j]))
        worth[i, j] = 0.0
        covariance = _after(covariance, int(i), int(j), float(weight[i, j]))
    return chosen


def _after(covariance: Array, i: int, j: int, weight: float) -> NDArray[np.float64]:
    """The covariance after one more comparison of i and j of this weight (Sherman–Morrison)."""
    column = covariance[:, i] - covariance[:, j]
    return covariance - np.outer(column, column) * weight / (1 + weight * float(column[i] - column[j]))
