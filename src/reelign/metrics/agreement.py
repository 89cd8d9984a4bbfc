r"""Do annotators agree more than chance would have them? Cohen's κ, Fleiss' κ, Krippendorff's α; numpy only.

Each is 1 − (disagreement seen)/(disagreement expected by chance): 1 is full agreement, 0 is what chance gives, below 0
is worse than chance. They differ in who rates what:

    Cohen          two annotators, the same items                                     (Cohen 1960; weighted: 1968)
    Fleiss         any annotators, the same number of answers on each item            (Fleiss 1971)
    Krippendorff   any annotators, answers may be missing, distances between answers  (Krippendorff 2011)

Where all answers are the same value, chance agrees fully too and each is 0/0: NaN, which a page must put in words.

Left out: Gwet's AC1, annotator models such as Dawid-Skene.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reelign.errors import DataError

Level = Literal["nominal", "ordinal", "interval"]
LEVELS: tuple[Level, ...] = ("nominal", "ordinal", "interval")
RESAMPLES = 1000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """One coefficient with what it rests on.

    Args:
        value: the coefficient, at most 1; NaN where chance agrees fully too.
        items: items that at least two annotators answered; only these count.
        answers: answers on those items.
        ci95: bootstrap interval over items; NaN where ``value`` is.
    """

    value: float
    items: int
    answers: int
    ci95: tuple[float, float]


def cohen_kappa(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    weights: Literal["linear", "quadratic"] | None = None,
    order: Sequence[Hashable] | None = None,
) -> float:
    r"""κ = 1 − Σ w_ij·o_ij / Σ w_ij·e_ij of two annotators on the same items (Cohen 1960, eq. 1; 1968, eq. 2).

    o_ij is the share of items with answers i and j, e_ij = o_i·o_·j what independent annotators with the same habits
    would give; w_ij is 1 for i ≠ j and 0 else, or |i − j| (linear), or (i − j)² (quadratic) with places in ``order``.

    Args:
        first, second: answers, one of each for every item.
        weights: None for answers without an order.
        order: all answers from least to most; needed for weights.

    Returns:
        κ; NaN where both always gave one and the same answer.

    Raises:
        DataError: no items, lengths that differ, or an answer that ``order`` does not hold.
    """
    if len(first) != len(second) or not first:
        raise DataError(f"two annotators answer the same items, at least one; got {len(first)} and {len(second)}")
    if weights is not None and order is None:
        raise DataError(f"{weights} weights need the answers in order, least first; pass order=[…]")
    known = list(order) if order is not None else list(dict.fromkeys([*first, *second]))
    place = {answer: index for index, answer in enumerate(known)}
    if strangers := [answer for answer in (*first, *second) if answer not in place]:
        raise DataError(f"answers are among {known}; got {strangers[0]!r}")
    seen = np.zeros((len(known), len(known)))
    np.add.at(seen, ([place[answer] for answer in first], [place[answer] for answer in second]), 1 / len(first))
    expected = np.outer(seen.sum(1), seen.sum(0))
    steps = np.abs(np.subtract.outer(np.arange(len(known)), np.arange(len(known)))).astype(float)
    cost = {None: (steps > 0).astype(float), "linear": steps, "quadratic": steps**2}[weights]
    return _one_minus(float((cost * seen).sum()), float((cost * expected).sum()))


def fleiss_kappa(counts: ArrayLike) -> float:
    r"""κ = (P̄ − P̄_e)/(1 − P̄_e), P̄_e = Σ_j p_j², P_i = (Σ_j n_ij² − n)/(n(n − 1)) (Fleiss 1971, eq. 1 to 7).

    Args:
        counts: [items, answers], how many of the n annotators gave each answer; every row sums to the same n ≥ 2.

    Returns:
        κ; NaN where one answer was always given.

    Raises:
        DataError: no items, negative counts, rows of different sums, or fewer than two annotators.
    """
    n_ij = np.asarray(counts, dtype=float)
    if n_ij.ndim != 2 or not n_ij.size or (n_ij < 0).any():
        raise DataError(f"counts are a table [items, answers] of numbers from 0; got shape {n_ij.shape}")
    sums = set(n_ij.sum(1).tolist())
    if len(sums) > 1 or min(sums) < 2:
        raise DataError(
            f"Fleiss' κ needs as many answers on each item, 2 or more; got {sorted(sums)[:5]}; use Krippendorff's α"
        )
    n = sums.pop()
    agreed = float(((n_ij**2).sum(1) - n).mean() / (n * (n - 1)))
    by_chance = float(((n_ij.sum(0) / n_ij.sum()) ** 2).sum())
    return _one_minus(1 - agreed, 1 - by_chance)


def krippendorff_alpha(values: ArrayLike, level: Level = "nominal") -> float:
    r"""α = 1 − (n − 1)·Σ_ck o_ck·δ²_ck / Σ_ck n_c·n_k·δ²_ck (Krippendorff 2011, eq. D to F).

    o_ck counts ordered pairs of answers c, k within one item, each item weighted by 1/(m_u − 1), m_u its answers; n_c
    is the row sum. δ² is 1 for c ≠ k (nominal), (c − k)² (interval), or (Σ_{g=c…k} n_g − (n_c + n_k)/2)² (ordinal).

    Args:
        values: [annotators, items], numbers; NaN where an annotator gave no answer.
        level: what distances between numbers mean.

    Returns:
        α; NaN where every paired answer is the same.

    Raises:
        DataError: no item has two answers, or an unknown level.
    """
    known, tables = _coincidences(values, level)
    return float(_alpha(tables.sum(0)[None], known, level)[0])


def alpha_with_interval(
    values: ArrayLike, level: Level = "nominal", resamples: int = RESAMPLES, seed: int = 0
) -> Agreement:
    """Krippendorff's α with a percentile bootstrap over items, which are what a further study would draw anew.

    Args:
        values, level: as in ``krippendorff_alpha``.
        resamples: of the bootstrap. Those in which all answers are the same have no α and are left out.
        seed: of the bootstrap.

    Raises:
        DataError: as ``krippendorff_alpha``.
    """
    known, tables = _coincidences(values, level)
    value = float(_alpha(tables.sum(0)[None], known, level)[0])
    items = len(tables)
    draws = np.random.default_rng(seed).multinomial(items, [1 / items] * items, size=resamples)
    again = _alpha(np.tensordot(draws.astype(float), tables, 1), known, level)
    again = again[np.isfinite(again)]
    low, high = np.quantile(again, [0.025, 0.975]) if np.isfinite(value) and len(again) else (np.nan, np.nan)
    return Agreement(value, items, round(float(tables.sum())), (float(low), float(high)))


def count_table(answers: Sequence[Sequence[Hashable]]) -> NDArray[np.int64]:
    """Counts [items, answers] for ``fleiss_kappa``, from each item's answers in any order."""
    known = list(dict.fromkeys(answer for item in answers for answer in item))
    return np.array([[list(item).count(answer) for answer in known] for item in answers], dtype=np.int64)


def _coincidences(values: ArrayLike, level: str) -> tuple[Floats, Floats]:
    """The answers that occur, in order [K], and each pairable item's table of coincidences [items, K, K]."""
    if level not in LEVELS:
        raise DataError(f"a level of measurement is one of {', '.join(LEVELS)}; got {level!r}")
    table = np.asarray(values, dtype=float)
    if table.ndim != 2:
        raise DataError(f"answers are a table [annotators, items]; got shape {table.shape}")
    table = table[:, (~np.isnan(table)).sum(0) >= 2]
    if not table.size:
        raise DataError("agreement needs an item that two annotators answered; ask several people about the same items")
    known = np.unique(table[~np.isnan(table)])
    counts = (table[:, :, None] == known).sum(0).astype(float)  # [items, K]
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(known))
    return known, pairs / (counts.sum(1) - 1)[:, None, None]


def _alpha(coincidences: Floats, known: Floats, level: Level) -> Floats:
    """α of each of [R, K, K] tables of coincidences, [R]."""
    n_c = coincidences.sum(2)
    n = n_c.sum(1)
    distance = _squared_distance(n_c, known, level)
    seen = (coincidences * distance).sum((1, 2))
    expected = (n_c[:, :, None] * n_c[:, None, :] * distance).sum((1, 2))
    alpha: Floats = 1 - (n - 1) * seen / np.where(expected > 0, expected, np.nan)
    return alpha


def _squared_distance(n_c: Floats, known: Floats, level: Level) -> Floats:
    """δ² between answers, [R or 1, K, K]."""
    size = len(known)
    if level == "nominal":
        return (1 - np.eye(size))[None]
    if level == "interval":
        return (np.subtract.outer(known, known) ** 2)[None]
    # Between the middles of two ranks lie half of each and all in between: a difference of mid-ranks.
    middle = n_c.cumsum(1) - n_c / 2
    return (middle[:, :, None] - middle[:, None, :]) ** 2


def _one_minus(seen: float, expected: float) -> float:
    return 1 - seen / expected if expected > 1e-12 else float("nan")
