r"""Who should meet whom: comparisons into tables of wins, and the pairs whose answer would tell most.

A judge says how likely the left take is better than the right one. It may lean to a side, so it is asked both ways:

    p(a ≻ b) = (f(a, b) + 1 − f(b, a))/2

which makes every scheme of ``reelign.selection.schemes`` independent of sides. Takes enter a scheme in the order of
their content hash, never of a glob, so winners don't depend on the order of files either.

Left out: judges that look at more than two takes at once.

Run: ``run_groups(frame, judge, "halving")``, or ``informative_pairs(labels, takes, 10)`` for people.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reelign.errors import ConfigError, ContractError, DataError
from reelign.selection.bradley_terry import (
    DRAWS,
    RIDGE,
    Array,
    Strengths,
    fit,
    luce_draws,
    posterior_draws,
    probability_best,
    probability_top,
)
from reelign.selection.labels import CHOICES
from reelign.selection.schemes import Ledger, Pairs, Scheme, named

if TYPE_CHECKING:
    from reelign.selection.judge import Judge

MOST_DRAWS = 4_000_000  # numbers drawn at once for the confidence of one group
PAIR_DRAWS = 4000  # enough to tell contenders from losers, in time for a page


@dataclass(frozen=True)
class Standing:
    """How the takes of one group came out.

    Args:
        takes: content hashes, sorted; everything below counts in this order.
        order: positions in ``takes``, from best to worst.
        strengths: the Bradley–Terry fit of all comparisons; with beliefs only its ``theta`` means anything.
        comparisons: how many were made.
        votes: whether outcomes were votes of a noisy judge, or beliefs.
    """

    takes: tuple[str, ...]
    order: tuple[int, ...]
    strengths: Strengths
    comparisons: int
    votes: bool

    def confidence(self, k: int = 1, seed: int = 0) -> Array:
        """Probability that each take is among the best k of its group, in the order of ``takes``; sums to k.

        From votes: the posterior of the strengths, which grows sharper with every vote. From beliefs: Luce's choice
        probabilities e^{θ_i}/Σ e^{θ_j}, under which a pair that holds the best take holds it on the left with
        σ(θ_i − θ_j): what a judge of such pairs is calibrated to. It is as right as that calibration.
        """
        n = len(self.takes)
        if k >= n:
            return np.ones(n)
        draws = max(1000, min(DRAWS, MOST_DRAWS // n))
        if self.votes:
            return probability_top(posterior_draws(self.strengths, draws, seed), k)
        theta = self.strengths.theta
        if k == 1:
            share: Array = np.exp(theta - np.logaddexp.reduce(theta))
            return share
        return probability_top(luce_draws(theta, draws, seed), k)

    def beats(self, i: int, j: int) -> float:
        """Probability that take i is better than take j: posterior from votes, σ(θ_i − θ_j) from beliefs."""
        if self.votes:
            return self.strengths.beats(i, j)
        return 1 / (1 + math.exp(float(self.strengths.theta[j] - self.strengths.theta[i])))


@dataclass(frozen=True)
class ColumnJudge:
    """A judge from score columns alone, for when nobody has labelled anything; see ``column_judge``.

    Args:
        utility: by (group, take).
    """

    utility: pd.Series = field(repr=False)

    def probability(self, left: pd.DataFrame, right: pd.DataFrame) -> NDArray[np.float64]:
        """σ(u_left − u_right), [n]; a belief on no calibrated scale."""
        sides = [self.utility.loc[pd.MultiIndex.from_frame(rows[["group", "take"]])] for rows in (left, right)]
        margin = sides[0].to_numpy(dtype=np.float64) - sides[1].to_numpy(dtype=np.float64)
        belief: NDArray[np.float64] = np.exp(-np.logaddexp(0, -margin))
        return belief


def column_judge(frame: pd.DataFrame, weights: Mapping[str, float]) -> ColumnJudge:
    """Prefers the higher weighted sum of columns, each in deviations from its group's mean.

    A value that is missing counts as the group's mean: it speaks neither for nor against a take. A column that is
    constant in a group says nothing there. A negative weight is for a column where lower is better.

    Args:
        frame: columns take, group and the weighted ones, with exactly the takes that compete.
        weights: by column.

    Raises:
        ConfigError: no weight, or one that is 0 or not finite.
        DataError: a column is not there or not numeric, or holds an infinity.
    """
    if not weights or not all(math.isfinite(weight) and weight for weight in weights.values()):
        raise ConfigError(f"columns have finite weights other than 0, for example clip=1; got {dict(weights)}")
    if missing := [name for name in weights if name not in frame or name in ("take", "group")]:
        known = ", ".join(frame.select_dtypes("number").columns)
        raise DataError(f"columns to judge by are scores of the takes; {missing[0]!r} is none of {known}")
    members = frame.drop_duplicates(["group", "take"]).sort_values(["group", "take"]).set_index(["group", "take"])
    total = pd.Series(0.0, members.index)
    for name, weight in weights.items():
        values = pd.to_numeric(members[name], errors="coerce").astype(float)
        if np.isinf(values).any() or (values.isna() & members[name].notna()).any():
            raise DataError(f"a score is a finite number or missing; column {name!r} has something else")
        groups = values.groupby(level="group")
        deviation = groups.transform("std", ddof=0)
        # Equal values can differ from their mean by a rounding, which must not be blown up to a deviation.
        flat = deviation <= 1e-12 * values.abs().groupby(level="group").transform("max")
        standard = ((values - groups.transform("mean")) / deviation.where(~flat)).fillna(0.0)
        total += weight * standard
    return ColumnJudge(total)


def symmetric(judge: Judge, left: pd.DataFrame, right: pd.DataFrame) -> NDArray[np.float64]:
    """(f(a, b) + 1 − f(b, a))/2 for rows a of ``left`` and b of ``right``, [n]: a judge's leaning to a side cancels.

    Raises:
        ContractError: the judge did not give one probability a row.
    """
    answers = []
    for first, second in ((left, right), (right, left)):
        answer = np.asarray(judge.probability(first, second), dtype=np.float64)
        if answer.shape != (len(left),) or not ((answer >= 0) & (answer <= 1)).all():
            raise ContractError(
                f"a judge gives one probability in [0, 1] for each of {len(left)} pairs; got shape {answer.shape}, "
                f"values {answer.ravel()[:3]}: does it know missing values?"
            )
        answers.append(answer)
    both: NDArray[np.float64] = (answers[0] + 1 - answers[1]) / 2
    return both.round(12)  # ½ but for a rounding is a tie, and must be one from either side


def run_groups(
    frame: pd.DataFrame,
    judge: Judge,
    scheme: str = "halving",
    comparisons: int | None = None,
    votes: bool = False,
    seed: int | None = None,
) -> dict[str, Standing]:
    """A tournament in every group, all groups in step, so that the judge is asked once a round.

    Args:
        frame: columns take and group, and what the judge looks at; a take that is there twice in a group counts once.
        judge: see ``reelign.selection.judge``; asked both ways for every comparison.
        scheme: of ``reelign.selection.schemes``.
        comparisons: for each group, at most; None is the scheme's own number.
        votes: whether the judge answers differently each time it is asked.
        seed: None orders the brackets by content hash; a number shuffles that order.

    Returns:
        Group to standing, sorted by group; a group of one has no comparison.

    Raises:
        UnknownNameError: no such scheme. DataError: too few comparisons for it, or a column is missing.
        ContractError: the judge's answers are no probabilities.
    """
    play = named(scheme)
    frame = _ordered(frame, seed)
    start = frame.groupby("group", sort=False).indices
    ledgers = {group: Ledger(len(rows), votes) for group, rows in start.items()}
    running = {group: play(ledgers[group], comparisons) for group in start}
    orders: dict[str, list[int]] = {}
    while running:
        asked = dict(_advance(running, orders))
        for group in orders:
            running.pop(group, None)
        left = [start[group][i] for group, pairs in asked.items() for i, _ in pairs]
        right = [start[group][j] for group, pairs in asked.items() for _, j in pairs]
        outcomes = iter(symmetric(judge, frame.iloc[left], frame.iloc[right]) if left else ())
        for group, pairs in asked.items():
            ledgers[group].record(pairs, [float(next(outcomes)) for _ in pairs])
    return {
        group: _standing(list(frame["take"].iloc[start[group]]), orders[group], ledgers[group])
        for group in sorted(start)
    }


def standings_from_labels(labels: pd.DataFrame, frame: pd.DataFrame) -> dict[str, Standing]:
    """The standing of every group from people's choices alone; takes nobody compared keep the prior.

    Args:
        labels: columns group, left, right, choice; of one axis.
        frame: columns take and group.
    """
    standings = {}
    for group, rows in _ordered(frame, None).groupby("group"):
        ledger, takes = Ledger(len(rows), votes=True), list(rows["take"])
        wins, ties = win_tables(labels[labels["group"] == group], takes)
        ledger.wins = wins + ties / 2
        ledger.comparisons = int(wins.sum() + ties.sum() / 2)
        standings[str(group)] = _standing(takes, ledger.order(), ledger)
    return standings


def _ordered(frame: pd.DataFrame, seed: int | None) -> pd.DataFrame:
    if missing := {"take", "group"} - set(frame.columns):
        raise DataError(f"takes that compete have columns take and group; {', '.join(sorted(missing))} is missing")
    if frame[["take", "group"]].isna().any().any():
        raise DataError("every take has a hash and a group; some are empty: fill the columns take and group")
    frame = frame.drop_duplicates(["group", "take"]).sort_values(["group", "take"])
    return frame if seed is None else frame.sample(frac=1, random_state=seed)


def _advance(running: Mapping[str, Scheme], orders: dict[str, list[int]]) -> Iterator[tuple[str, Pairs]]:
    """The next pairs of every group that goes on; the order of those that ended goes into ``orders``."""
    for group, rounds in running.items():
        try:
            yield group, next(rounds)
        except StopIteration as end:
            orders[group] = end.value


def _standing(takes: list[str], order: list[int], ledger: Ledger) -> Standing:
    """With takes in the order of the ledger, sorted by hash in the result."""
    by_hash = sorted(range(len(takes)), key=takes.__getitem__)
    place = {old: new for new, old in enumerate(by_hash)}
    found = ledger.strengths()
    strengths = Strengths(found.theta[by_hash], found.covariance[np.ix_(by_hash, by_hash)], found.log_likelihood)
    hashes, positions = tuple(takes[i] for i in by_hash), tuple(place[i] for i in order)
    return Standing(hashes, positions, strengths, ledger.comparisons, ledger.votes)


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
    chance, covariance = probability_best(strengths, PAIR_DRAWS), strengths.covariance.copy()
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
