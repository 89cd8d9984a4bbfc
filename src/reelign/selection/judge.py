"""Which of two takes is better: the judge that tournaments ask, learned from what people preferred.

``Judge`` is all that selection knows; ``LearnedJudge`` is one made from labels by ``judge_fit``. Labels become pairs of
one axis, a majority of the annotators each.

Run: ``reelign judge fit TAKES --labels labels.csv --out judge/``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from reelign.errors import DataError
from reelign.selection.judge_calibration import Calibration, Kind, doubt
from reelign.selection.judge_features import PUBLISHED, ZERO_IS_MISSING, learn_features
from reelign.selection.judge_models import Inputs, fit_pairs, recipe
from reelign.selection.labels import OVERALL, aggregate, check_labels


class Judge(Protocol):
    """Anything that says how probable it is that one take is preferred to another."""

    def probability(self, left: pd.DataFrame, right: pd.DataFrame) -> np.ndarray:
        """P(left preferred to right), float64 [n] in [0, 1], row by row.

        Args:
            left, right: [n] rows of ``TakesFolder.wide()`` each; NaN is a value that could not be measured.

        The answer does not depend on the side: probability(a, b) = 1 − probability(b, a).
        """
        ...


class Measuring(BaseModel):
    """How any learned judge is split, calibrated and measured.

    Args:
        axis: which question of the labels.
        folds: rotations of the split by group; 8 is 6:1:1 in each, 1 is a single split.
        calibration: ``slope``, ``isotonic`` or ``none``, fitted on validation groups.
        alpha: conformal selection leaves out the labelled best take in at most this share of groups.
        seed: of the split and the model.
        repeats: shuffles of a column in permutation importance.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    axis: str = OVERALL
    folds: int = Field(8, ge=1)
    calibration: Kind = "slope"
    alpha: float = Field(0.1, gt=0, lt=1)
    seed: int = Field(0, ge=0)
    repeats: int = Field(10, ge=1)


class JudgeConfig(Measuring):
    """How a judge that reads scores is learned.

    Args:
        model: ``bradley_terry``, ``boosting`` or ``forest``.
        features: the scores it reads.
        zero_is_missing: those in which exactly 0 means "could not be computed".
        inputs: what the model sees of a pair; the model's own way where None (``forest``: concatenated).
        ridge: λ of ``bradley_terry``, for features of deviation 1.
    """

    model: Literal["bradley_terry", "boosting", "forest"] = "bradley_terry"
    features: tuple[str, ...] = PUBLISHED
    zero_is_missing: tuple[str, ...] = ZERO_IS_MISSING
    inputs: Inputs | None = None
    ridge: float = Field(5.0, gt=0)


class Reader(Protocol):
    """From rows of takes to what a model reads; ``Features`` is one."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The scores that are read."""
        ...

    def values(self, rows: pd.DataFrame) -> np.ndarray:
        """[n,F], NaN where missing."""
        ...

    def filled(self, rows: pd.DataFrame) -> np.ndarray:
        """[n,F'], without NaN."""
        ...


class Pairwise(Protocol):
    """A fitted model of pairs; ``PairModel`` is one."""

    @property
    def reads_missing(self) -> bool:
        """Whether it reads NaN itself."""
        ...

    def probability(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """P(left preferred) [n] from what the reader made of the two sides."""
        ...


@dataclass(frozen=True)
class LearnedJudge:
    """A judge fitted to labels.

    Args:
        features: how rows become numbers.
        model: P from those numbers.
        kind: name of the model.
        calibration: of its probabilities.
        tie_width: a pair with |P − ½| below this is called a tie.
        bound: doubt up to which a take may be the best of its group; infinite where too few groups promise anything.
        card: what it was made from and how good it is; plain values.
    """

    features: Reader
    model: Pairwise
    kind: str
    calibration: Calibration
    tie_width: float
    bound: float
    card: Mapping[str, Any]

    def raw(self, left: pd.DataFrame, right: pd.DataFrame) -> np.ndarray:
        """P(left preferred) before calibration, [n]."""
        read = self.features.values if self.model.reads_missing else self.features.filled
        return self.model.probability(read(left), read(right))

    def probability(self, left: pd.DataFrame, right: pd.DataFrame) -> np.ndarray:
        """P(left preferred to right), [n] in (0, 1); probability(a, b) = 1 − probability(b, a)."""
        return self.calibration(self.raw(left, right))

    def plausible(self, rows: pd.DataFrame) -> list[str]:
        """The takes of one group that may be its best; one take alone may be accepted without review.

        The labelled best take is among them in at least 1 − α of groups like those of the labels.
        """
        doubts = doubt(win_matrix(Uncalibrated(self), rows))
        return [str(take) for take in rows["take"].to_numpy()[doubts <= self.bound]]


@dataclass(frozen=True)
class Uncalibrated:
    """A judge before calibration, whose order of takes isotonic steps have not flattened."""

    judge: LearnedJudge

    def probability(self, left: pd.DataFrame, right: pd.DataFrame) -> np.ndarray:
        """P(left preferred to right), [n], as the model says it."""
        return self.judge.raw(left, right)


def win_matrix(judge: Judge, rows: pd.DataFrame) -> np.ndarray:
    """P(row take beats column take) for every pair of a group, [n,n]; ½ on the diagonal."""
    first, second = np.triu_indices(len(rows), 1)
    wins = np.full((len(rows), len(rows)), 0.5)
    if len(first):
        chances = judge.probability(rows.iloc[first], rows.iloc[second])
        wins[first, second], wins[second, first] = chances, 1 - chances
    return wins


@dataclass(frozen=True)
class Pairs:
    """Labelled pairs of takes, one row each, with where their takes stand in the table.

    Args:
        takes: the takes of all labelled groups, index 0 … n − 1.
        left, right: [m] rows of ``takes``.
        group: [m] names.
        truth: [m] of ``left``, ``right``, ``tie``.
    """

    takes: pd.DataFrame
    left: np.ndarray
    right: np.ndarray
    group: np.ndarray
    truth: np.ndarray

    def of(self, groups: Sequence[str], *, decided: bool = False) -> np.ndarray:
        """Which pairs are of these groups, [m] bool; only those with a preference where ``decided``."""
        chosen = np.isin(self.group, groups)
        return chosen & (self.truth != "tie") if decided else chosen

    def sides(self, chosen: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Rows of the left and of the right takes of the chosen pairs."""
        return self.takes.iloc[self.left[chosen]], self.takes.iloc[self.right[chosen]]


def make_pairs(takes: pd.DataFrame, labels: pd.DataFrame, axis: str = OVERALL) -> Pairs:
    """Labels of one axis, a majority each, beside the takes they are about; ``both_bad`` is a tie.

    Raises:
        DataError: a label is wrong or about an unknown take, or no label is about this axis.
    """
    labels = check_labels(labels, takes)
    chosen = labels[labels["axis"] == axis]
    if not len(chosen):
        known = ", ".join(sorted(set(labels["axis"]))) or "no label at all"
        raise DataError(f"a judge learns one axis; no label is about {axis!r}: there is {known}")
    pairs = aggregate(chosen)
    known_takes = takes.astype({"take": str, "group": str}).drop_duplicates(["group", "take"])
    known_takes = known_takes[known_takes["group"].isin(pairs["group"])].reset_index(drop=True)
    _check_apart(known_takes)
    place = {key: row for row, key in enumerate(zip(known_takes["group"], known_takes["take"], strict=True))}
    left, right = (
        np.array([place[key] for key in zip(pairs["group"], pairs[side], strict=True)]) for side in ("left", "right")
    )
    truth = pairs["choice"].replace("both_bad", "tie").to_numpy(dtype=str)
    return Pairs(known_takes, left, right, pairs["group"].to_numpy(dtype=str), truth)


def _check_apart(takes: pd.DataFrame) -> None:
    """Refuse a clip that is in two groups: one of them could train what is tested on the other."""
    twice = takes["take"].duplicated()
    if twice.any():
        take = takes.loc[twice, "take"].iloc[0]
        groups = sorted(takes.loc[takes["take"] == take, "group"])
        raise DataError(
            f"labelled groups share no take, or training would see the test; {take!r} is in {groups[0]!r} and "
            f"{groups[1]!r}: give both one group"
        )


def best_takes(pairs: Pairs) -> dict[str, int]:
    """Row of the labelled best take of each group that has one: unbeaten, and every other take was beaten."""
    losers = set(pairs.left[pairs.truth == "right"]) | set(pairs.right[pairs.truth == "left"])
    unbeaten = pairs.takes.index[~pairs.takes.index.isin(losers)]
    names = pairs.takes["group"].to_numpy()
    alone = pd.Series(names[unbeaten]).value_counts()
    sizes = pairs.takes["group"].value_counts()
    return {str(names[row]): int(row) for row in unbeaten if alone[names[row]] == 1 and sizes[names[row]] > 1}


def fit_model(pairs: Pairs, groups: Sequence[str], config: JudgeConfig) -> LearnedJudge:
    """A judge without calibration from the pairs of these groups; its card is empty."""
    members = pairs.takes[pairs.takes["group"].isin(groups)]
    features = learn_features(members, config.features, config.zero_is_missing)
    read = features.values if recipe(config.model).reads_missing else features.filled
    chosen = pairs.of(groups, decided=True)
    left, right = pairs.sides(chosen)
    model = fit_pairs(
        config.model,
        read(left),
        read(right),
        pairs.truth[chosen] == "left",
        inputs=config.inputs or recipe(config.model).inputs,
        seed=config.seed,
        ridge=config.ridge,
    )
    return LearnedJudge(features, model, config.model, Calibration(), 0.0, np.inf, {})
