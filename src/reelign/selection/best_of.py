r"""Best-of-n curves: what picking the best of n takes promises, and what it delivers by a measure nobody selected on.

From N takes of a prompt, sorted by the selector from worst to best (ranks i = 0 … N − 1), the expected gold value of
the one the selector picks from n of them drawn without replacement is

    G(n) = Σ_i C(i, n − 1)/C(N, n)·g_(i)

since take i is picked exactly when the other n − 1 come from the i below it. It is unbiased for every n ≤ N; drawing
with replacement gives too little. Where takes tie in the selector, each is as likely to stand before as after the
others, so all of them count with the mean gold value of the tied.

The same formula on the selector's own values is what it promises. Promise and delivery are compared in deviations
within prompts; the gap between them is reward hacking. The prompt is the unit of replication: intervals are of a
bootstrap over prompts. Select on one set of measures, look at another.

Run: ``best_of_curve(frame, selector="clip", gold="human")``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reelign.errors import DataError
from reelign.metrics.statistics import bootstrap_interval

Array = NDArray[np.float64]
RESAMPLES = 4000
COLUMNS = ("n", "gold", "gold_low", "gold_high", "selector", "promised", "delivered", "delivered_low", "delivered_high")


@dataclass(frozen=True)
class BestOf:
    """A best-of-n curve.

    Args:
        table: one row an n, from 1: mean over prompts of the pick's ``gold`` and ``selector`` value, 95 % interval of
            gold (``gold_low``, ``gold_high``), and the gains over n = 1 in pooled deviations within prompts:
            ``promised`` (selector) and ``delivered`` (gold) with its interval.
        prompts: how many groups it is the mean of.
        left_out_takes: takes without a value of either.
        left_out_groups: groups with fewer takes than the largest n.
    """

    table: pd.DataFrame
    prompts: int
    left_out_takes: int
    left_out_groups: int


def pick_weights(total: int, n: int) -> Array:
    """C(i, n − 1)/C(N, n) for i = 0 … N − 1, [N]; sums to 1.

    Raises:
        DataError: n is not between 1 and N.
    """
    if not 1 <= n <= total:
        raise DataError(f"the best of n among {total} takes has 1 ≤ n ≤ {total}; got {n}")
    weights = np.zeros(total)
    weights[-1] = n / total
    # From one rank down: C(i − 1, n − 1)/C(i, n − 1) = (i − n + 1)/i, which becomes 0 below rank n − 1.
    for i in range(total - 1, 0, -1):
        weights[i - 1] = weights[i] * max(0, i - n + 1) / i
    return weights


def expected_pick(gold: Array, selector: Array, n: int) -> float:
    """G(n) of one prompt.

    Args:
        gold, selector: [N] finite numbers of the same takes.
        n: how many are drawn, 1 ≤ n ≤ N.

    Raises:
        DataError: shapes differ, a number is not finite, or n is out of range.
    """
    gold, selector = np.asarray(gold, dtype=np.float64), np.asarray(selector, dtype=np.float64)
    if gold.ndim != 1 or gold.shape != selector.shape or not len(gold):
        raise DataError(f"gold and selector are values of the same takes; got shapes {gold.shape}, {selector.shape}")
    if not (np.isfinite(gold).all() and np.isfinite(selector).all()):
        raise DataError("gold and selector are finite numbers; got NaN or infinity: leave those takes out")
    _, level = np.unique(selector, return_inverse=True)
    means = np.bincount(level, gold) / np.bincount(level)
    return float(pick_weights(len(gold), n) @ means[np.sort(level)])


def best_of_curve(
    frame: pd.DataFrame, selector: str, gold: str, largest: int | None = None, group: str = "group", seed: int = 0
) -> BestOf:
    """The curve over all groups of a table.

    Args:
        frame: a row a take, with the columns ``group``, ``selector`` and ``gold``.
        selector: column the takes are picked by, higher is better.
        gold: column that tells the truth, higher is better; not one the selector was made from.
        largest: n up to this; None is the size of the smallest group of at least two.
        group: column of the prompt.
        seed: of the bootstrap.

    Raises:
        DataError: a column is missing or the two are the same, or no or one group is large enough.
    """
    if missing := [name for name in (selector, gold, group) if name not in frame]:
        raise DataError(f"a best-of-n curve needs columns of the takes; {missing[0]!r} is none of {', '.join(frame)}")
    if selector == gold:
        raise DataError(f"what selects cannot tell whether selecting helped; got {gold!r} for both: name another gold")
    known = frame[np.isfinite(frame[selector].astype(float)) & np.isfinite(frame[gold].astype(float))]
    sizes = known.groupby(group).size()
    if largest is None:
        largest = int(sizes[sizes >= 2].min()) if (sizes >= 2).any() else 2
    kept = known[known[group].map(sizes) >= largest].sort_values([group, selector, gold])
    groups = [(rows[gold].to_numpy(float), rows[selector].to_numpy(float)) for _, rows in kept.groupby(group)]
    if len(groups) < 2 or largest < 1:
        raise DataError(
            f"a curve up to n = {largest} needs at least 2 groups with as many takes that have {selector!r} and "
            f"{gold!r}; got {len(groups)}: score more takes, or lower n"
        )
    counts = range(1, largest + 1)
    delivered = np.array([[expected_pick(g, s, n) for n in counts] for g, s in groups])
    promised = np.array([[expected_pick(s, s, n) for n in counts] for _, s in groups])
    unit_g, unit_s = (_deviation_within([pair[side] for pair in groups]) for side in (0, 1))
    rows = [_row(n, delivered, promised, (unit_g, unit_s), seed) for n in counts]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return BestOf(table, len(groups), len(frame) - len(known), frame[group].nunique() - len(groups))


def _row(n: int, delivered: Array, promised: Array, units: tuple[float, float], seed: int) -> tuple[float, ...]:
    gold, own = delivered[:, n - 1], promised[:, n - 1]
    gain = (gold - delivered[:, 0]) / units[0]
    return (
        n,
        float(gold.mean()),
        *bootstrap_interval(gold, RESAMPLES, 0.95, seed),
        float(own.mean()),
        float((own - promised[:, 0]).mean()) / units[1],
        float(gain.mean()),
        *bootstrap_interval(gain, RESAMPLES, 0.95, seed),
    )


def _deviation_within(groups: list[Array]) -> float:
    """Pooled standard deviation within groups; 1 where nothing varies, so that a gain of nothing is 0."""
    variance = sum(float(((g - g.mean()) ** 2).sum()) for g in groups) / max(1, sum(len(g) - 1 for g in groups))
    return float(np.sqrt(variance)) or 1.0
