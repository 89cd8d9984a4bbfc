"""Learning a judge: it learns, nothing leaks, and the defects of the published design (AirScape) are not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from sklearn.ensemble import RandomForestClassifier

from reelign.errors import DataError
from reelign.selection.judge import (
    JudgeConfig,
    LearnedJudge,
    Pairs,
    best_takes,
    fit_model,
    make_pairs,
    win_matrix,
)
from reelign.selection.judge_fit import data_hash, fit_judge, importance_drops, predict, rank_takes
from reelign.selection.judge_split import rotations
from reelign.selection.labels import pairs_from_best

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "selfplay_takes"


def made(groups: int = 16, size: int = 5, noise: float = 0.1, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Takes with a useful score, a useless one and a level of its own for each group; the best is labelled."""
    random = np.random.default_rng(seed)
    rows, best = [], []
    for group in range(groups):
        level = random.normal(0, 2)
        quality = random.normal(size=size)
        for take in range(size):
            useful = level + quality[take] + noise * random.normal()
            rows.append((f"g{group:02d}_t{take}", f"g{group:02d}", useful, random.normal()))
        best.append(f"g{group:02d}_t{quality.argmax()}")
    takes = pd.DataFrame(rows, columns=["take", "group", "useful", "useless"])
    return takes, pairs_from_best(pd.DataFrame({"best_video_name": best}), takes)


QUICK = {"features": ("useful", "useless"), "repeats": 2}


@pytest.fixture(scope="module")
def fitted() -> LearnedJudge:
    return fit_judge(*made(), JudgeConfig(**QUICK))


def test_it_learns_and_knows_what_it_rests_on(fitted: LearnedJudge) -> None:
    held = fitted.card["held-out"]
    assert held["accuracy"]["value"] > 0.9
    assert held["accuracy"]["low"] > 0.75
    assert held["AUC"]["value"] > 0.95
    assert held["best take"]["value"] > 0.8
    assert held["best take"]["chance"] == pytest.approx(0.2)
    first, second = fitted.card["importance"]
    assert first["feature"] == "useful"
    assert first["low"] > 0.2
    assert second["high"] < 0.1


def test_noise_labels_are_not_learned() -> None:
    """Labels drawn by lot: held-out accuracy is ½ within its interval, for the model that fits training perfectly."""
    takes, _ = made(groups=24)
    random = np.random.default_rng(5)
    best = [f"g{group:02d}_t{random.integers(5)}" for group in range(24)]
    labels = pairs_from_best(pd.DataFrame({"best_video_name": best}), takes)
    judge = fit_judge(takes, labels, JudgeConfig(model="boosting", **QUICK))
    estimate = judge.card["held-out"]["accuracy"]
    assert estimate["low"] < 0.5 < estimate["high"]


def mirrored(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Every pair both ways round, as the published program emits them: rows (left, right) and whether left wins."""
    left, right = np.concatenate([pairs.left, pairs.right]), np.concatenate([pairs.right, pairs.left])
    wins = np.concatenate([pairs.truth == "left", pairs.truth == "right"])
    return np.stack([left, right], axis=1), wins


def test_the_published_split_leaks_and_ours_does_not() -> None:
    """Defect: mirrored pairs are split at random, so labels drawn by lot are "predicted" far above ½."""
    takes, _ = made(groups=24)
    random = np.random.default_rng(5)
    best = [f"g{group:02d}_t{random.integers(5)}" for group in range(24)]
    pairs = make_pairs(takes, pairs_from_best(pd.DataFrame({"best_video_name": best}), takes))
    rows, wins = mirrored(pairs)
    order = np.random.default_rng(0).permutation(len(rows))
    train, test = order[: int(0.75 * len(order))], order[int(0.85 * len(order)) :]  # 75:10:15
    seen = {frozenset(row) for row in rows[train].tolist()}
    straddling = np.mean([frozenset(row) in seen for row in rows[test].tolist()])
    assert straddling > 0.5
    values = pairs.takes[["useful", "useless"]].to_numpy()
    forest = RandomForestClassifier(100, random_state=0)
    forest.fit(values[rows[train]].reshape(len(train), -1), wins[train])
    published = (forest.predict(values[rows[test]].reshape(len(test), -1)) == wins[test]).mean()
    assert published > 0.7  # of pure chance

    for split in rotations(pairs.group):
        parts = [pairs.of(part) for part in (split.train, split.validation, split.test)]
        assert sum(part.sum() for part in parts) == len(pairs.truth)
        shown = [{row for side in (pairs.left, pairs.right) for row in side[part].tolist()} for part in parts]
        assert len(set.union(*shown)) == sum(map(len, shown))  # no take is in two parts


def test_a_take_in_two_groups_is_refused() -> None:
    takes, labels = made(groups=4)
    twice = pd.concat([takes, takes[:1].assign(group="g01")])
    with pytest.raises(DataError, match="share no take"):
        fit_judge(twice, labels, JudgeConfig(**QUICK))


def test_test_groups_do_not_influence_what_judges_them() -> None:
    """Changing every score of the test groups changes nothing in the judge of that rotation."""
    takes, labels = made(groups=8)
    config = JudgeConfig(**QUICK)
    pairs = make_pairs(takes, labels)
    split = rotations(pairs.group)[0]
    spoilt = takes.assign(useful=takes["useful"].where(~takes["group"].isin(split.test), 1e6))
    probe = takes[:10]
    judges = [fit_model(make_pairs(table, labels), split.train, config) for table in (takes, spoilt)]
    one, two = (judge.raw(probe[:5], probe[5:]) for judge in judges)
    np.testing.assert_array_equal(one, two)


def test_same_answer_for_any_order_of_rows(fitted: LearnedJudge) -> None:
    takes, labels = made()
    again = fit_judge(takes, labels, JudgeConfig(**QUICK))
    assert again.card == fitted.card
    shuffled = fit_judge(
        takes.sample(frac=1, random_state=1), labels.sample(frac=1, random_state=2), JudgeConfig(**QUICK)
    )
    assert shuffled.card["held-out"]["accuracy"]["value"] == fitted.card["held-out"]["accuracy"]["value"]
    assert shuffled.card["data"]["sha256"] == fitted.card["data"]["sha256"]


def test_judgements_do_not_depend_on_the_side(fitted: LearnedJudge) -> None:
    takes, _ = made(seed=1)
    left, right = takes[:30], takes[30:60]
    np.testing.assert_allclose(fitted.probability(left, right) + fitted.probability(right, left), 1, atol=1e-12)
    wins = win_matrix(fitted, takes[:5])
    np.testing.assert_allclose(wins + wins.T, 1)
    assert fitted.probability(left[:0], right[:0]).shape == (0,)
    assert win_matrix(fitted, takes[:1]).tolist() == [[0.5]]


def test_missing_scores_are_judged_and_said_to_be_missing() -> None:
    takes, labels = made()
    takes.loc[::7, "useful"] = np.nan
    judge = fit_judge(takes, labels, JudgeConfig(**QUICK))
    assert judge.features.gaps == ("useful",)
    assert np.isfinite(judge.probability(takes[:20], takes[20:40])).all()


def test_ties_have_a_floor_and_three_classes() -> None:
    takes, labels = made(noise=0.02)
    random = np.random.default_rng(0)
    tied = labels.assign(choice=np.where(random.random(len(labels)) < 0.3, "both_bad", labels["choice"]))
    held = fit_judge(takes, tied, JudgeConfig(**QUICK)).card["held-out"]
    share = (tied["choice"] == "both_bad").mean()
    assert held["ties"]["floor"] == pytest.approx(share)
    assert 0.4 < held["ties"]["three-class accuracy"]["value"] <= 1


def test_the_tie_width_is_fitted_on_validation_groups_only() -> None:
    """Ties in the test groups alone: no width was learned for them, so all their ties are missed."""
    takes, labels = made(groups=8)
    split = rotations(set(labels["group"]))[0]
    tested = labels["group"].isin(split.test)
    some = tested & (labels.groupby("group").cumcount() < 2)  # 2 of its 4 pairs
    judge = fit_judge(
        takes, labels.assign(choice=np.where(some, "tie", labels["choice"])), JudgeConfig(folds=1, **QUICK)
    )
    assert judge.tie_width == 0
    assert judge.card["held-out"]["ties"]["floor"] == 0.5
    assert judge.card["held-out"]["ties"]["three-class accuracy"]["value"] <= 0.5


def test_only_one_axis_is_learned() -> None:
    takes, labels = made(groups=6)
    upside_down = labels.assign(choice="right", axis="motion")
    both = pd.concat([labels, upside_down])
    judge = fit_judge(takes, both, JudgeConfig(**QUICK))
    flipped = fit_judge(takes, both, JudgeConfig(axis="motion", **QUICK))
    strong, weak = takes[:1].assign(useful=9.0), takes[:1].assign(useful=0.0)
    assert judge.probability(strong, weak)[0] > 0.5 > flipped.probability(strong, weak)[0]
    with pytest.raises(DataError, match=r"no label is about 'sound'.*motion, overall"):
        fit_judge(takes, both, JudgeConfig(axis="sound", **QUICK))


def test_best_takes_by_hand() -> None:
    """Group a: a1 beat both others. Group b: b1 beat b2, b3 never lost either. Group c: a tie."""
    takes = pd.DataFrame({"take": ["a1", "a2", "a3", "b1", "b2", "b3", "c1", "c2"], "group": list("aaabbbcc")})
    rows = [("a", "a1", "a2", "left"), ("a", "a3", "a1", "right"), ("b", "b2", "b1", "right"), ("c", "c1", "c2", "tie")]
    pairs = make_pairs(takes, pd.DataFrame(rows, columns=["group", "left", "right", "choice"]))
    assert best_takes(pairs) == {"a": 0}


def test_ranking_by_hand() -> None:
    rows = pd.DataFrame({"take": ["c", "b", "a"]})
    wins = np.array([[0.5, 0.3, 0.5], [0.7, 0.5, 0.9], [0.5, 0.1, 0.5]])
    assert rank_takes(wins, rows) == ["b", "c", "a"]
    assert rank_takes(np.full((3, 3), 0.5), rows) == ["a", "b", "c"]  # equals by name, not by place in the folder


def test_importance_by_hand() -> None:
    """One pair a group: shuffling two different values within it swaps them half of the time, so accuracy halves."""
    takes = pd.DataFrame(
        {
            "take": [f"{g}{i}" for g in range(40) for i in range(2)],
            "group": [f"g{g}" for g in range(40) for _ in range(2)],
            "useful": [g + i for g in range(40) for i in range(2)],
            "useless": 1.0,
        }
    )
    best = pd.DataFrame({"best_video_name": [f"{g}1" for g in range(40)]})
    pairs = make_pairs(takes, pairs_from_best(best, takes))
    judge = fit_model(pairs, sorted(set(pairs.group)), JudgeConfig(features=("useful", "useless")))
    assert (predict(judge, pairs, ["g0", "g7"])["probability"] != 0.5).all()
    drops = importance_drops(judge, pairs, sorted(set(pairs.group)), repeats=50)
    assert drops.shape == (40, 2)
    assert drops[:, 0].mean() == pytest.approx(0.5, abs=0.05)
    assert (drops[:, 1] == 0).all()


def test_conformal_selection_keeps_its_promise_on_fresh_groups() -> None:
    takes, labels = made(groups=60, noise=0.7)
    judge = fit_judge(takes, labels, JudgeConfig(alpha=0.2, **QUICK))
    fresh, truth = made(groups=200, noise=0.7, seed=9)
    best = set(truth.loc[truth["choice"] == "left", "left"])
    kept = [set(judge.plausible(rows)) for _, rows in fresh.groupby("group")]
    assert np.mean([bool(best & some) for some in kept]) > 0.72  # promised 0.8, bound from 60 groups
    assert 1 <= np.mean([len(some) for some in kept]) < 4
    assert judge.card["held-out"]["without review"]["promised"] == pytest.approx(0.8)


def test_too_few_groups_promise_nothing() -> None:
    takes, labels = made(groups=6)
    judge = fit_judge(takes, labels, JudgeConfig(**QUICK))
    assert judge.bound == np.inf
    assert judge.plausible(takes[:5]) == takes["take"][:5].tolist()


@pytest.mark.parametrize("option", [{"folds": 0}, {"ridge": 0}, {"model": "svm"}, {"alpha": 1}, {"colour": 1}])
def test_options_are_checked(option: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        JudgeConfig(**option)


def test_the_hash_follows_scores_and_choices() -> None:
    takes, labels = made(groups=3)
    base = data_hash(make_pairs(takes, labels), ("useful",))
    assert data_hash(make_pairs(takes.assign(useless=0.0), labels), ("useful",)) == base
    changed = takes.assign(useful=takes["useful"].where(takes.index > 0, 7.0))
    assert data_hash(make_pairs(changed, labels), ("useful",)) != base
    other = labels.assign(choice=["tie", *labels["choice"][1:]])
    assert data_hash(make_pairs(takes, other), ("useful",)) != base


@pytest.fixture(scope="module")
def selfplay() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Synthetic scores and choices: see the README beside them; no finding about people."""
    if not DATA.is_dir():
        pytest.skip(f"the test data is not here: {DATA}")
    takes = pd.read_csv(DATA / "takes_scores.csv").rename(columns={"video_name": "take", "group_id": "group"})
    return takes, pairs_from_best(pd.read_csv(DATA / "takes_labels.csv"), takes)


@pytest.mark.parametrize("model", ["bradley_terry", "boosting", "forest"])
def test_on_selfplay_takes(selfplay: tuple[pd.DataFrame, pd.DataFrame], model: str) -> None:
    judge = fit_judge(*selfplay, JudgeConfig(model=model, repeats=1))
    held = judge.card["held-out"]
    assert judge.card["protocol"].startswith("split by group, 18:3:3")
    assert held["accuracy"]["groups"] == 24
    assert held["accuracy"]["low"] > 0.5
    assert held["best take"]["value"] > held["best take"]["chance"]
