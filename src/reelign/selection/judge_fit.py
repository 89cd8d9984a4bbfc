"""Learning a judge and measuring it on groups that it has not seen.

In every rotation of a split by group, a judge is fitted to the training groups, calibrated on the validation groups and
asked about the test groups. The judge that is kept is then fitted to all groups, with calibration, tie width and
conformal bound from all validation answers. So its numbers are those of judges that saw a quarter fewer groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from reelign import __version__
from reelign.metrics.statistics import bootstrap_interval
from reelign.selection.judge import (
    JudgeConfig,
    LearnedJudge,
    Measuring,
    Pairs,
    Uncalibrated,
    best_takes,
    fit_model,
    make_pairs,
    win_matrix,
)
from reelign.selection.judge_calibration import calibrate, conformal_bound, doubt, tie_width, verdict
from reelign.selection.judge_models import recipe
from reelign.selection.judge_report import measure
from reelign.selection.judge_split import Split, rotations, split_groups

PROBES = 64  # pairs whose probabilities a saved judge must give again


def fit_judge(takes: pd.DataFrame, labels: pd.DataFrame, config: JudgeConfig | None = None) -> LearnedJudge:
    """A judge of these takes, with a card that says how good it is on held-out groups.

    Args:
        takes: take, group and the scores to read, one row a take.
        labels: in the form of ``selection.labels``.
        config: how; the defaults where None.

    Raises:
        DataError: fewer than 3 groups with a preference, a column or take that is missing, or a take in two groups.
    """
    config = config or JudgeConfig()
    pairs = make_pairs(takes, labels, config.axis)
    judge = fit_and_measure(pairs, lambda groups: fit_model(pairs, groups, config), config)
    card = {**judge.card, "inputs": config.inputs or recipe(config.model).inputs, "probes": probes(judge, pairs.takes)}
    return replace(judge, card=card)


def fit_and_measure(pairs: Pairs, fit: Callable[[Sequence[str]], LearnedJudge], config: Measuring) -> LearnedJudge:
    """Rotate, measure, and fit to all groups: what every kind of learned judge goes through.

    Args:
        pairs: what was labelled.
        fit: an uncalibrated judge from the groups it may train on.
        config: of the split, the calibration and the numbers; written into the card whole.
    """
    names = sorted(set(pairs.group))
    splits = [split_groups(names, config.seed)] if config.folds == 1 else rotations(names, config.folds, config.seed)
    held = _Held()
    for split in splits:
        _rotate(pairs, split, fit(split.train), config, held)
    judge = fit(names)
    chances, truth = np.concatenate(held.raw), np.concatenate(held.truth)
    decided = truth != "tie"
    calibration = calibrate(chances[decided], truth[decided] == "left", config.calibration)
    judge = replace(
        judge,
        calibration=calibration,
        tie_width=tie_width(calibration(chances), truth),
        bound=conformal_bound(np.array(list(held.doubts.values())), config.alpha),
    )
    return replace(judge, card=_card(judge, pairs, splits, held, config))


@dataclass
class _Held:
    """What the rotations said about groups that they had not trained on."""

    predictions: list[pd.DataFrame] = field(default_factory=list)
    raw: list[np.ndarray] = field(default_factory=list)  # of validation pairs, before calibration
    truth: list[np.ndarray] = field(default_factory=list)
    doubts: dict[str, float] = field(default_factory=dict)  # of the labelled best of each validation group
    tests: list[dict[str, Any]] = field(default_factory=list)  # one a test group with a labelled best
    drops: list[np.ndarray] = field(default_factory=list)  # [groups,F] of each rotation


def _rotate(pairs: Pairs, split: Split, judge: LearnedJudge, config: Measuring, held: _Held) -> None:
    """Calibrate and test a judge of one split; what it said is added to ``held``."""
    checked = pairs.of(split.validation)
    raw, truth = judge.raw(*pairs.sides(checked)), pairs.truth[checked]
    decided = truth != "tie"
    judge = replace(judge, calibration=calibrate(raw[decided], truth[decided] == "left", config.calibration))
    judge = replace(judge, tie_width=tie_width(judge.calibration(raw), truth))
    held.raw.append(raw)
    held.truth.append(truth)
    held.predictions.append(predict(judge, pairs, split.test))
    best = best_takes(pairs)
    for group in split.validation:
        if group in best:
            rows = pairs.takes[pairs.takes["group"] == group]
            place = rows.index.get_loc(best[group])
            held.doubts[group] = float(doubt(win_matrix(Uncalibrated(judge), rows))[place])
    for group in split.test:
        if group in best:
            held.tests.append(_test_group(judge, pairs.takes[pairs.takes["group"] == group], best[group]))
    held.drops.append(importance_drops(judge, pairs, split.test, config.repeats, config.seed))


def predict(judge: LearnedJudge, pairs: Pairs, groups: Sequence[str]) -> pd.DataFrame:
    """What a judge says about the labelled pairs of these groups: group, left, right, truth, probability, verdict."""
    chosen = pairs.of(groups)
    left, right = pairs.sides(chosen)
    chances = judge.probability(left, right)
    return pd.DataFrame(
        {
            "group": pairs.group[chosen],
            "left": left["take"].to_numpy(),
            "right": right["take"].to_numpy(),
            "truth": pairs.truth[chosen],
            "probability": chances,
            "verdict": verdict(chances, judge.tie_width),
        }
    )


def _test_group(judge: LearnedJudge, rows: pd.DataFrame, best: int) -> dict[str, Any]:
    """Whether the judge's first take is the labelled best, and the doubts from which conformal selection decides."""
    place = rows.index.get_loc(best)
    raw = win_matrix(Uncalibrated(judge), rows)
    return {
        "group": rows["group"].iloc[0],
        "size": len(rows),
        "chosen": rank_takes(judge.calibration(raw), rows)[0] == rows["take"].iloc[place],
        "doubts": doubt(raw),
        "best": place,
    }


def rank_takes(wins: np.ndarray, rows: pd.DataFrame) -> list[str]:
    """The takes of a group by mean probability of beating another, best first; equals in order of their names.

    Args:
        wins: [n,n] from ``win_matrix``.
        rows: the group.
    """
    strength = wins.sum(axis=1).round(12)
    names = [str(take) for take in rows["take"]]
    return [names[i] for i in sorted(range(len(names)), key=lambda i: (-strength[i], names[i]))]


def importance_drops(
    judge: LearnedJudge, pairs: Pairs, groups: Sequence[str], repeats: int, seed: int = 0
) -> np.ndarray:
    """Permutation importance by group: how much accuracy falls when a column is shuffled among a group's takes.

    Returns:
        [groups with a preference, F]: accuracy of the group − mean accuracy over the shuffles.
    """
    chosen = pairs.of(groups, decided=True)
    names, place = np.unique(pairs.group[chosen], return_inverse=True)
    truth, random = pairs.truth[chosen] == "left", np.random.default_rng(seed)
    members = np.flatnonzero(pairs.takes["group"].isin(names).to_numpy())
    table = pairs.takes.iloc[members]
    where = np.zeros(len(pairs.takes), dtype=int)
    where[members] = np.arange(len(members))
    left, right = where[pairs.left[chosen]], where[pairs.right[chosen]]
    groups_of = table["group"].to_numpy()

    def accuracy(rows: pd.DataFrame, copies: int) -> np.ndarray:
        """Mean over copies of the table, one below the other, [groups]."""
        steps = np.arange(copies)[:, None] * len(table)
        chances = judge.raw(rows.iloc[(left + steps).ravel()], rows.iloc[(right + steps).ravel()])
        hit = np.where(chances == 0.5, 0.5, (chances > 0.5) == np.tile(truth, copies))
        return np.bincount(np.tile(place, copies), hit, len(names)) / (np.bincount(place) * copies)

    if not len(names):
        return np.zeros((0, len(judge.features.columns)))
    base, drops = accuracy(table, 1), []
    stacked, sorted_rows = pd.concat([table] * repeats), np.argsort(groups_of, kind="stable")
    for name in judge.features.columns:
        shuffled = np.empty((repeats, len(table)), dtype=table[name].dtype)
        for copy in shuffled:
            copy[sorted_rows] = table[name].to_numpy()[np.lexsort((random.random(len(table)), groups_of))]
        drops.append(base - accuracy(stacked.assign(**{name: shuffled.ravel()}), repeats))
    return np.stack(drops, axis=1) if drops else np.zeros((len(names), 0))


def _tests(held: _Held, alpha: float) -> pd.DataFrame:
    """Test groups with what conformal selection leaves, its bound taken from the validation answers of other groups."""
    rows = []
    for test in held.tests:
        others = np.array([value for group, value in held.doubts.items() if group != test["group"]])
        left = test["doubts"] <= conformal_bound(others, alpha)
        rows.append({**test, "plausible": int(left.sum()), "covered": bool(left[test["best"]])})
    return pd.DataFrame(rows, columns=["group", "size", "chosen", "plausible", "covered"])


def _importance(held: _Held, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Mean drop of every column with its interval over groups, the largest first."""
    drops = np.concatenate(held.drops)
    rows = []
    for name, values in zip(columns, drops.T, strict=True):
        low, high = bootstrap_interval(values, 2000, 0.95, 0)
        rows.append({"feature": name, "drop": float(values.mean()), "low": low, "high": high})
    return sorted(rows, key=lambda row: -row["drop"])


def _card(
    judge: LearnedJudge, pairs: Pairs, splits: Sequence[Split], held: _Held, config: Measuring
) -> Mapping[str, Any]:
    """What is written beside the model: plain values only."""
    from sklearn import __version__ as sklearn_version

    first = splits[0]
    sizes = f"{len(first.train)}:{len(first.validation)}:{len(first.test)}"
    return {
        "reelign": __version__,
        "scikit-learn": sklearn_version,
        "config": config.model_dump(mode="json"),
        "protocol": f"split by group, {sizes} groups to train, validate and test, {len(splits)} rotations, "
        f"seed {config.seed}; intervals at 95 % over groups",
        "data": {
            "groups": len(set(pairs.group)),
            "takes": len(pairs.takes),
            "pairs": len(pairs.truth),
            "ties": int((pairs.truth == "tie").sum()),
            "sha256": data_hash(pairs, judge.features.columns),
        },
        "held-out": measure(pd.concat(held.predictions, ignore_index=True), _tests(held, config.alpha), config.alpha),
        "importance": _importance(held, judge.features.columns),
    }


def data_hash(pairs: Pairs, columns: Sequence[str]) -> str:
    """SHA-256 of what was learned from: takes with the scores read, and pairs with their majority, in sorted order."""
    takes = pairs.takes[["group", "take", *columns]].sort_values(["group", "take"])
    names = pairs.takes["take"].to_numpy()
    rows = pd.DataFrame({"left": names[pairs.left], "right": names[pairs.right], "truth": pairs.truth})
    text = takes.to_csv(index=False, float_format="%.17g") + rows.sort_values(["left", "right"]).to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()


def probes(judge: LearnedJudge, takes: pd.DataFrame) -> dict[str, Any]:
    """Inputs and answers that a loaded judge must give again: up to 64 pairs of neighbouring training takes."""
    rows = takes.iloc[: PROBES + 1]
    values = judge.features.values(rows)
    chances = judge.probability(rows.iloc[:-1], rows.iloc[1:])
    plain = [[None if np.isnan(cell) else float(cell) for cell in row] for row in values]
    return {"values": plain, "probability": chances.tolist()}
