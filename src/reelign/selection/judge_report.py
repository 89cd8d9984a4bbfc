r"""How good a judge is on groups that it has not seen, with intervals over groups.

The group is the unit of replication: pairs of one group share takes, so every interval resamples whole groups
(Efron and Tibshirani 1993, ch. 13; percentiles). Accuracy, F1 and AUC look at pairs with a preference, in both orders,
so that they do not depend on which take was shown on the left. A probability of exactly ½ is half right.

The tie floor is the share of ties among the labelled pairs: a judge that never commits is right that often in three
classes. Left out: intervals for comparing two judges on the same groups (use ``metrics.statistics.paired_delta``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from reelign.errors import DataError
from reelign.metrics.statistics import wilson

RESAMPLES = 1000
BINS = 10
Statistic = Callable[["Outcomes", np.ndarray], float]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval and how many groups it rests on."""

    value: float
    low: float
    high: float
    groups: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Outcomes:
    """Held-out pairs with a preference, and what the judge said.

    Args:
        of_winner: [n] probability that the judge gave to the take which people preferred.
        group: [n] which group each pair is of.
    """

    of_winner: np.ndarray
    group: np.ndarray


def outcomes(predictions: pd.DataFrame) -> Outcomes:
    """The pairs with a preference among predictions with columns group, truth and probability (of left)."""
    decided = predictions[predictions["truth"] != "tie"]
    left = (decided["truth"] == "left").to_numpy()
    chances = decided["probability"].to_numpy(dtype=float)
    return Outcomes(np.where(left, chances, 1 - chances), decided["group"].to_numpy())


def accuracy(pairs: Outcomes, weights: np.ndarray) -> float:
    """Share of pairs whose preferred take got more than ½; exactly ½ is half right."""
    right = (pairs.of_winner > 0.5) + 0.5 * (pairs.of_winner == 0.5)
    return float(np.average(right, weights=weights))


def f1(pairs: Outcomes, weights: np.ndarray) -> float:
    """F1 of "left wins" over both orders of each pair: 2·TP/(2·TP + FP + FN), where left needs more than ½.

    In both orders the classes are balanced, so this equals accuracy unless the judge says exactly ½.
    """
    hit = float(weights[pairs.of_winner > 0.5].sum())
    miss = float(weights[pairs.of_winner <= 0.5].sum())
    false = float(weights[pairs.of_winner < 0.5].sum())
    return 2 * hit / (2 * hit + false + miss)


def auc(pairs: Outcomes, weights: np.ndarray) -> float:
    """Area under the ROC curve of "left wins" over both orders; equal probabilities count half."""
    scores = np.concatenate([pairs.of_winner, 1 - pairs.of_winner])
    values, place = np.unique(scores, return_inverse=True)
    half = len(weights)
    positive = np.bincount(place[:half], weights, len(values))
    negative = np.bincount(place[half:], weights, len(values))
    below = np.concatenate([[0.0], np.cumsum(negative)[:-1]])
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))


def brier(pairs: Outcomes, weights: np.ndarray) -> float:
    """Mean (1 − P(preferred take))²: 0 is perfect, 0.25 is always ½ (Brier 1950)."""
    return float(np.average((1 - pairs.of_winner) ** 2, weights=weights))


def calibration_error(pairs: Outcomes, weights: np.ndarray) -> float:
    """Expected calibration error over both orders: Σ_bins share·|mean P − share that won|, 10 equal bins."""
    share, said, won = reliability(pairs, weights)
    return float((share * np.abs(said - won))[share > 0].sum())


def reliability(pairs: Outcomes, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of the pairs, mean P(left) and share won by left in each of 10 equal bins, both orders; NaN where empty."""
    chances = np.concatenate([pairs.of_winner, 1 - pairs.of_winner])
    won, both = np.repeat([1.0, 0.0], len(weights)), np.concatenate([weights, weights])
    place = np.minimum((chances * BINS).astype(int), BINS - 1)
    total = np.bincount(place, both, BINS)
    count = np.where(total > 0, total, np.nan)
    said = np.bincount(place, both * chances, BINS) / count
    return total / total.sum(), said, np.bincount(place, both * won, BINS) / count


STATISTICS: dict[str, Statistic] = {
    "accuracy": accuracy,
    "F1": f1,
    "AUC": auc,
    "Brier score": brier,
    "calibration error": calibration_error,
}


def over_groups(
    pairs: Outcomes, statistic: Statistic, resamples: int = RESAMPLES, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """A statistic with its percentile bootstrap interval over groups.

    Raises:
        DataError: there is no pair.
    """
    names, place = np.unique(pairs.group, return_inverse=True)
    if not len(names):
        raise DataError("no held-out pair has a preference: label more groups")
    whole = statistic(pairs, np.ones(len(place)))
    random = np.random.default_rng(seed)
    draws = random.multinomial(len(names), np.full(len(names), 1 / len(names)), resamples)
    drawn = [statistic(pairs, counts[place].astype(float)) for counts in draws]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(whole, float(low), float(high), len(names))


def share(hits: np.ndarray) -> Estimate | None:
    """Share of groups that are true, with its Wilson interval; None where there is no group."""
    if not len(hits):
        return None
    low, high = wilson(int(hits.sum()), len(hits))
    return Estimate(float(hits.mean()), low, high, len(hits))


def measure(
    predictions: pd.DataFrame, groups: pd.DataFrame, alpha: float, resamples: int = RESAMPLES
) -> dict[str, object]:
    """Everything that a judge's card says about held-out groups; plain numbers and mappings.

    Args:
        predictions: held-out pairs: group, truth (left, right, tie), probability (of left), verdict (with the tie width
            of its own validation groups).
        groups: held-out groups with a labelled best take: group, size, chosen (whether the judge's first is it),
            plausible (how many takes conformal selection leaves), covered (whether the labelled best is among them).
        alpha: of the conformal promise.
        resamples: of the bootstrap.
    """
    pairs = outcomes(predictions)
    found: dict[str, object] = {
        name: asdict(over_groups(pairs, statistic, resamples)) for name, statistic in STATISTICS.items()
    }
    portion, said, won = reliability(pairs, np.ones(len(pairs.group)))
    found["reliability"] = [
        {"share": float(a), "said": float(b), "won": float(c)} for a, b, c in zip(portion, said, won, strict=True) if a
    ]
    return found | {
        "pairs": len(predictions),
        "ties": _ties(predictions),
        "best take": _best(groups),
        "without review": _unreviewed(groups, alpha),
    }


def _ties(predictions: pd.DataFrame) -> Mapping[str, object] | None:
    """Tie floor and three-class accuracy; None where nobody said tie."""
    tied = (predictions["truth"] == "tie").to_numpy()
    if not tied.any():
        return None
    right = (predictions["verdict"] == predictions["truth"]).to_numpy(dtype=float)
    by_group = Outcomes(right, predictions["group"].to_numpy())
    mean = over_groups(by_group, lambda rows, weights: float(np.average(rows.of_winner, weights=weights)))
    return {"floor": float(tied.mean()), "three-class accuracy": asdict(mean)}


def _best(groups: pd.DataFrame) -> Mapping[str, object] | None:
    """How often the judge's first take is the labelled best one, and how often a draw of lots would be."""
    estimate = share(groups["chosen"].to_numpy(dtype=bool))
    if estimate is None:
        return None
    return {**asdict(estimate), "chance": float((1 / groups["size"]).mean())}


def _unreviewed(groups: pd.DataFrame, alpha: float) -> Mapping[str, object] | None:
    """What conformal selection would accept: groups with one take left, and how often that one is the labelled best."""
    covered = share(groups["covered"].to_numpy(dtype=bool))
    if covered is None:
        return None
    alone = (groups["plausible"] == 1).to_numpy()
    kept = share(groups["covered"].to_numpy(dtype=bool)[alone])
    return {
        "promised": 1 - alpha,
        "covered": asdict(covered),
        "accepted": float(alone.mean()),
        "right where accepted": kept and asdict(kept),
        "mean plausible takes": float(groups["plausible"].mean()),
    }
