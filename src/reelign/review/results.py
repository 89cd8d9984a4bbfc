"""What the answers so far say: who answered how much and how steadily, how far people agree, which generator wins.

Items are questions without their sides: a pair shown the other way round is the same item, and choosing the same take
is the same answer. Hidden repeats and attention checks count only as what they are.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reelign.metrics.agreement import Agreement, Level, alpha_with_interval, cohen_kappa, count_table, fleiss_kappa
from reelign.metrics.statistics import wilson
from reelign.review.library import Shelf
from reelign.review.settings import PAIR_CHOICES, SCALES

ITEM = ["group", "one", "other", "axis"]


@dataclass(frozen=True)
class Person:
    """One annotator's work.

    Args:
        name: who.
        pairs, ratings: questions answered; hidden ones are not among them.
        seconds: median time in sight, NaN where unknown.
        left_share: how often left was chosen among left and right; NaN where neither ever was.
        steady, repeated: hidden repeats answered as the first time, and all; counted by axis.
        passed, checked: attention checks answered right, and all.
    """

    name: str
    pairs: int
    ratings: int
    seconds: float
    left_share: float
    steady: int
    repeated: int
    passed: int
    checked: int


@dataclass(frozen=True)
class AxisAgreement:
    """How far annotators agree on one axis.

    Args:
        task, axis: of what.
        level: of measurement that α is told.
        alpha: Krippendorff's, or None where no item has two answers.
        fleiss, fleiss_items, fleiss_people: κ over items that the same number of people answered, that number chosen
            so that the most answers count; None where no item has two answers.
        cohen: (first, second, κ, items) for every two annotators with an item in common.
    """

    task: str
    axis: str
    level: Level
    alpha: Agreement | None
    fleiss: float | None
    fleiss_items: int
    fleiss_people: int
    cohen: tuple[tuple[str, str, float, int], ...]


@dataclass(frozen=True)
class WinRate:
    """One generator against all others: wins/(wins + losses), with a Wilson interval; ties are only counted.

    The interval treats answers as independent; answers about the same prompts are not quite.
    """

    generator: str
    axis: str
    wins: int
    losses: int
    ties: int
    both_bad: int

    @property
    def decided(self) -> int:
        """Comparisons that count."""
        return self.wins + self.losses

    @property
    def rate(self) -> float:
        """The win rate; NaN where nothing was decided."""
        return self.wins / self.decided if self.decided else float("nan")

    @property
    def ci95(self) -> tuple[float, float]:
        """Its Wilson interval; all shares where nothing was decided."""
        return wilson(self.wins, self.decided) if self.decided else (0.0, 1.0)


def canonical(answers: pd.DataFrame) -> pd.DataFrame:
    """Answers with ``one`` and ``other`` (takes in order of hash), and ``said``: the take chosen, else the choice."""
    table = answers.copy()
    swapped = (table["left"] > table["right"]) & (table["task"] == "pair")
    table["one"] = table["left"].where(~swapped, table["right"])
    table["other"] = table["right"].where(~swapped, table["left"])
    said = table["choice"]
    table["said"] = said.mask(said == "left", table["left"]).mask(said == "right", table["right"])
    return table


def people(answers: pd.DataFrame) -> list[Person]:
    """Everybody's work, busiest first."""
    table = canonical(answers)
    steady = _repeats(table)
    found = []
    for name, mine in table.groupby("annotator"):
        labels = mine[mine["purpose"] == "label"]
        counts = labels.drop_duplicates("question")["task"].value_counts()
        sided = labels.loc[labels["choice"].isin(["left", "right"]), "choice"]
        checks = mine[mine["purpose"] == "check"]
        again = steady[steady["annotator"] == name]
        found.append(
            Person(
                str(name),
                int(counts.get("pair", 0)),
                int(counts.get("rate", 0)),
                float(labels.drop_duplicates("question")["seconds"].astype(float).median()),
                float((sided == "left").mean()) if len(sided) else float("nan"),
                int((again["said"] == again["said_first"]).sum()),
                len(again),
                int((checks["choice"] == checks["expected"]).sum()),
                len(checks),
            )
        )
    return sorted(found, key=lambda person: (-person.pairs - person.ratings, person.name))


def agreement(answers: pd.DataFrame) -> list[AxisAgreement]:
    """Coefficients for every task and axis that was answered."""
    table = canonical(answers[answers["purpose"] == "label"])
    groups = table.groupby(["task", "axis"], sort=False)
    return [_agreement(str(task), str(axis), part) for (task, axis), part in groups]


def win_rates(answers: pd.DataFrame, shelf: Shelf) -> list[WinRate]:
    """Win rates of generators against each other, best first within an axis; none where there is one generator."""
    labels = answers[(answers["purpose"] == "label") & (answers["task"] == "pair")]
    labels = labels[labels["left"].isin(list(shelf.rows)) & labels["right"].isin(list(shelf.rows))]
    tally: dict[tuple[str, str], dict[str, int]] = {}
    for left, right, choice, axis in labels[["left", "right", "choice", "axis"]].itertuples(index=False):
        sides = [shelf.fact(take, "generator") for take in (left, right)]
        if sides[0] == sides[1]:
            continue
        for side, name in zip(("left", "right"), sides, strict=True):
            outcome = {side: "wins", "tie": "ties", "both_bad": "both_bad"}.get(choice, "losses")
            counts = tally.setdefault((axis, name), {"wins": 0, "losses": 0, "ties": 0, "both_bad": 0})
            counts[outcome] += 1
    rates = [WinRate(name, axis, **counts) for (axis, name), counts in tally.items()]
    return sorted(rates, key=lambda rate: (rate.axis, -rate.rate if rate.decided else 1.0, rate.generator))


def _repeats(table: pd.DataFrame) -> pd.DataFrame:
    """Answers to hidden repeats beside the standing answer to the first asking."""
    first = table[["question", "axis", "said"]].rename(columns={"question": "repeats", "said": "said_first"})
    return table[table["purpose"] == "repeat"].merge(first, on=["repeats", "axis"])


def _agreement(task: str, axis: str, part: pd.DataFrame) -> AxisAgreement:
    grid = part.pivot_table("said", ITEM, "annotator", aggfunc="last")
    level: Level = "ordinal" if task == "rate" and set(part["said"]) <= set(SCALES["five"]) else "nominal"
    codes = {answer: number for number, answer in enumerate((*SCALES["five"], *SCALES["pass"], *PAIR_CHOICES[2:]))}
    numbers = np.full(grid.shape, np.nan)
    for row, (item, said) in enumerate(grid.iterrows()):
        mine = codes | {item[1]: -2, item[2]: -1} if task == "pair" else codes
        numbers[row] = [mine.get(answer, np.nan) for answer in said]
    paired = (~np.isnan(numbers)).sum(1) >= 2
    alpha = alpha_with_interval(numbers.T, level) if paired.any() else None
    cohen = tuple(
        (str(first), str(second), *_cohen(numbers[:, [i, j]], level))
        for (i, first), (j, second) in itertools.combinations(enumerate(grid.columns), 2)
        if (~np.isnan(numbers[:, [i, j]])).all(1).any()
    )
    return AxisAgreement(task, axis, level, alpha, *_fleiss(numbers), cohen)


def _cohen(columns: np.ndarray, level: Level) -> tuple[float, int]:
    both = columns[~np.isnan(columns).any(1)]
    order = np.unique(both).tolist()
    first, second = both[:, 0].tolist(), both[:, 1].tolist()
    return cohen_kappa(first, second, "quadratic" if level == "ordinal" else None, order), len(both)


def _fleiss(numbers: np.ndarray) -> tuple[float | None, int, int]:
    """κ, items and people of the number of people for which the most answers count."""
    answered = (~np.isnan(numbers)).sum(1)
    sizes = [size for size in set(answered.tolist()) if size >= 2]
    if not sizes:
        return None, 0, 0
    size = max(sizes, key=lambda n: (n * int((answered == n).sum()), n))
    rows = numbers[answered == size]
    return fleiss_kappa(count_table([row[~np.isnan(row)].tolist() for row in rows])), len(rows), size
