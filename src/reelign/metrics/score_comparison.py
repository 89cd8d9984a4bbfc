r"""Did the scores of one folder of takes change against another's? One row a metric, with an interval.

Takes that answer the same prompt with the same seed in both folders are compared in pairs, Δ = mean(after − before),
because a pair shares what makes its prompt easy or hard. Where prompts or seeds are missing, doubled, or fewer than
half pair up, the difference of the means is taken, with a bootstrap that draws each side on its own (Efron and
Tibshirani 1993, section 8.3).

A metric with fewer than two values on a side, or computed in two versions or with two settings, is ``undefined`` with
its reason: never 0, and never left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reelign.errors import DataError
from reelign.metrics.statistics import CHUNK, RESAMPLES, paired_delta

KEY = ["prompt", "seed"]
PAIRED_SHARE = 0.5  # of the smaller side, below which pairs would speak for too few takes


@dataclass(frozen=True)
class ScoreChange:
    """How one score changed.

    Args:
        metric: name of the column.
        kind: ``paired``, ``unpaired``, or ``undefined``.
        before, after: means; NaN where undefined.
        delta: after − before.
        low, high: 95 % interval of ``delta``.
        n_before, n_after: takes that count; equal where paired.
        missing_before, missing_after: takes without a value.
        reason: why it is undefined, or what is special; empty for an ordinary row.
    """

    metric: str
    kind: Literal["paired", "unpaired", "undefined"]
    before: float
    after: float
    delta: float
    low: float
    high: float
    n_before: int
    n_after: int
    missing_before: int
    missing_after: int
    reason: str = ""


def compare_scores(
    before: pd.DataFrame,
    after: pd.DataFrame,
    metrics: Sequence[str],
    refused: Mapping[str, str] | None = None,
    seed: int = 0,
) -> list[ScoreChange]:
    """Every metric of two tables of takes.

    Args:
        before, after: columns ``prompt``, ``seed`` and one float a metric (``TakesFolder.wide``); NaN is missing.
        metrics: which; a column that a table lacks is undefined.
        refused: metric to the reason it must not be compared.
        seed: of the resampling.
    """
    pairs = _pairs(before, after)
    return [_change(name, before, after, pairs, (refused or {}).get(name, ""), seed) for name in metrics]


def unpaired_delta(
    before: NDArray[np.float64], after: NDArray[np.float64], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """mean(after) − mean(before), and the ends of its 95 % percentile interval, each side resampled on its own.

    Raises:
        DataError: a side has fewer than 2 numbers, or one is not finite.
    """
    if min(len(before), len(after)) < 2 or not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise DataError(f"each side has at least 2 finite numbers; got {len(before)} and {len(after)}")
    random = np.random.default_rng(seed)
    deltas = _means(after, resamples, random) - _means(before, resamples, random)
    low, high = np.quantile(deltas, [0.025, 0.975])
    return float(after.mean() - before.mean()), float(low), float(high)


def _means(values: NDArray[np.float64], resamples: int, random: np.random.Generator) -> NDArray[np.float64]:
    rows = max(1, CHUNK // len(values))
    return np.concatenate(
        [
            values[random.integers(0, len(values), (min(rows, resamples - start), len(values)))].mean(1)
            for start in range(0, resamples, rows)
        ]
    )


def _pairs(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame | None:
    """Row labels ``before`` and ``after`` of takes with one prompt and seed, or None where too few pair up."""
    sides = []
    for name, table in (("before", before), ("after", after)):
        keys = table[KEY].assign(**{name: table.index})
        keys = keys[keys["seed"].notna() & (keys["prompt"].fillna("") != "")]
        sides.append(keys.drop_duplicates(KEY, keep=False))
    pairs = sides[0].merge(sides[1], on=KEY)
    enough = max(2.0, PAIRED_SHARE * min(len(before), len(after)))
    return pairs if len(pairs) >= enough else None


def _change(
    name: str, before: pd.DataFrame, after: pd.DataFrame, pairs: pd.DataFrame | None, refused: str, seed: int
) -> ScoreChange:
    left, right = (table[name] if name in table else pd.Series(np.nan, table.index) for table in (before, after))
    missing = int(left.isna().sum()), int(right.isna().sum())
    valid = pairs
    if pairs is not None:
        valid = pairs[left[pairs["before"]].notna().to_numpy() & right[pairs["after"]].notna().to_numpy()]
    if not refused and valid is not None and len(valid) >= 2:
        found = paired_delta(left[valid["before"]].to_numpy(float), right[valid["after"]].to_numpy(float), seed=seed)
        alone = len(before) + len(after) - 2 * found.n
        reason = f"{alone} takes have no partner with a value" if alone else ""
        numbers = (found.before, found.after, found.delta, *found.ci95, found.n, found.n)
        return ScoreChange(name, "paired", *numbers, *missing, reason)
    a, b = left.dropna().to_numpy(float), right.dropna().to_numpy(float)
    if refused or min(len(a), len(b)) < 2:
        reason = refused or f"fewer than 2 takes have a value on a side ({len(a)} and {len(b)})"
        nothing = (np.nan,) * 5
        return ScoreChange(name, "undefined", *nothing, len(a), len(b), *missing, reason)
    delta, low, high = unpaired_delta(a, b, seed=seed)
    return ScoreChange(name, "unpaired", float(a.mean()), float(b.mean()), delta, low, high, len(a), len(b), *missing)
