"""The parts of a judge: features, split, models, calibration, numbers; by hand and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from reelign.errors import ConfigError, DataError
from reelign.selection import judge_report
from reelign.selection.judge_calibration import (
    Calibration,
    calibrate,
    conformal_bound,
    doubt,
    logit,
    tie_width,
    verdict,
)
from reelign.selection.judge_features import PUBLISHED, learn_features, read_values
from reelign.selection.judge_models import MODELS, PairModel, fit_pairs, pair_inputs
from reelign.selection.judge_report import Outcomes, measure, outcomes, over_groups
from reelign.selection.judge_split import rotations, split_groups

NAN = math.nan


def table(**columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame(columns)


# Features


def test_features_by_hand() -> None:
    """Column a: 1, 3, missing; b: 0 means missing, so 4 and 6 are left."""
    rows = table(a=[1.0, 3.0, NAN], b=[4.0, 0.0, 6.0], c=[2.0, 2.0, 2.0])
    features = learn_features(rows, ("a", "b", "c"), zero_is_missing=("b", "similarity"))
    assert features.zero_is_missing == ("b",)
    assert features.fill == (2.0, 5.0, 2.0)
    assert features.centre == (2.0, 5.0, 2.0)
    assert features.scale == (1.0, 1.0, 1.0)  # c does not vary
    assert features.gaps == ("a", "b")
    np.testing.assert_array_equal(
        features.filled(rows), [[-1, -1, 0, 0, 0], [1, 0, 0, 0, 1], [0, 1, 0, 1, 0]]
    )  # a, b, c, a missing, b missing


def test_one_clip_is_read_alike_in_training_and_in_use() -> None:
    """Defect of AirScape's ranker: a similarity of 0 is noise around 0.1 while training, and 0 when it is used."""
    rows = pd.DataFrame([[0.6, 0.98, 1.0, 0.5, 0.0], [0.5, 0.97, 0.0, 0.6, 0.4]], columns=list(PUBLISHED))
    random = np.random.default_rng(0)

    def published(similarity: np.ndarray, *, training: bool) -> np.ndarray:
        noise = np.clip(random.normal(0.1, 0.07, len(similarity)), 0, 0.25)
        return np.where((similarity == 0) & training, noise, similarity)

    zeros = rows["similarity"].to_numpy()
    assert published(zeros, training=True)[0] != published(zeros, training=False)[0]
    features = learn_features(rows)
    np.testing.assert_array_equal(features.filled(rows), features.filled(rows.copy()))
    assert np.isnan(features.values(rows)[0, 4])
    assert features.filled(rows)[0].tolist() == pytest.approx([1, 1, 1, -1, 0, 1])  # the median, and says so


def test_missing_where_training_had_none_is_the_median() -> None:
    features = learn_features(table(a=[1.0, 3.0]), ("a",))
    assert features.filled(table(a=[NAN])).tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (table(a=[1.0]), ("b",), "reads the column 'b'"),
        (table(a=[1.0]), (), "at least one"),
        (table(a=[1.0]), ("a", "a"), "different columns"),
        (table(a=[NAN, NAN]), ("a",), "'a' has none"),
        (table(a=[math.inf]), ("a",), "infinity"),
        (pd.DataFrame({"a": ["high"]}), ("a",), "text"),
    ],
)
def test_features_refuse(rows: pd.DataFrame, columns: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        learn_features(rows, columns)


def test_nullable_columns_are_read() -> None:
    rows = pd.DataFrame({"a": pd.array([1, None], dtype="Int64")})
    np.testing.assert_array_equal(read_values(rows, ("a",)), [[1.0], [NAN]])


# Split


def test_eight_rotations_are_six_one_one() -> None:
    names = [f"g{i:02d}" for i in range(24)]
    splits = rotations(names)
    assert [(len(s.train), len(s.validation), len(s.test)) for s in splits] == [(18, 3, 3)] * 8
    assert sorted(name for s in splits for name in s.test) == names
    assert sorted(name for s in splits for name in s.validation) == names


@given(st.integers(3, 40), st.integers(2, 12), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_no_group_is_in_two_parts(groups: int, folds: int, seed: int) -> None:
    names = {f"g{i}" for i in range(groups)}
    try:
        splits = rotations(names, folds, seed)
    except DataError:
        assert groups < 2 * folds  # a block so large that nothing is left
        return
    assert sorted(name for split in splits for name in split.test) == sorted(names)
    for split in splits:
        parts = [split.train, split.validation, split.test]
        assert all(parts)
        assert sorted(name for part in parts for name in part) == sorted(names)


def test_order_does_not_matter_and_the_seed_does() -> None:
    names = [f"g{i}" for i in range(16)]
    assert split_groups(names, 3) == split_groups(names[::-1] + names, 3)
    assert split_groups(names, 3) != split_groups(names, 4)


def test_too_few_groups() -> None:
    with pytest.raises(DataError, match="3 in all; got 2"):
        rotations(["a", "b"])
    assert [len(s.train) for s in rotations(["a", "b", "c"])] == [1, 1, 1]
    with pytest.raises(DataError, match="2 folds or more"):
        rotations(["a", "b", "c"], 1)


# Models


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("inputs", ["concatenated", "differences"])
def test_every_model_learns_and_does_not_care_about_sides(kind: str, inputs: str) -> None:
    random = np.random.default_rng(0)
    left, right = random.normal(size=(2, 200, 3))
    wins = (left - right)[:, 0] + 0.2 * random.normal(size=200) > 0
    model = fit_pairs(kind, left[:150], right[:150], wins[:150], inputs=inputs, seed=0, ridge=1.0)
    chances = model.probability(left[150:], right[150:])
    assert ((chances > 0.5) == wins[150:]).mean() > 0.75
    np.testing.assert_allclose(model.probability(right[150:], left[150:]), 1 - chances, atol=1e-12)
    same = model.probability(left[:5], left[:5])
    np.testing.assert_array_equal(same, 0.5)


def test_the_published_judgement_depends_on_the_side() -> None:
    """Defect: AirScape's tournament asks f(a,b) only; a forest on concatenated pairs answers f(b,a) otherwise."""
    random = np.random.default_rng(1)
    left, right = random.normal(size=(2, 60, 3))
    model = fit_pairs("forest", left, right, left[:, 0] > right[:, 0], inputs="concatenated", seed=0, ridge=1.0)
    fresh, other = random.normal(size=(2, 50, 3))
    one, two = model.one_sided(fresh, other), model.one_sided(other, fresh)
    assert np.abs(one + two - 1).max() > 0.01
    assert ((one > 0.5) == (two > 0.5)).any()  # some pair is won by whichever stands on the left, or on the right
    np.testing.assert_allclose(model.probability(fresh, other), (one + 1 - two) / 2)


def test_seeded() -> None:
    """Defect: the published forest has no seed, so two fits of the same labels choose different winners."""
    random = np.random.default_rng(2)
    left, right = random.normal(size=(2, 40, 3))
    wins = random.random(40) > 0.5
    first, again, other = (
        fit_pairs("forest", left, right, wins, inputs="concatenated", seed=seed, ridge=1.0).probability(left, right)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_bradley_terry_by_hand() -> None:
    """One feature, difference 1: with 3 of 4 won and hardly any ridge, σ(w) = ¾, so w = log 3."""
    left, right = np.ones((4, 1)), np.zeros((4, 1))
    model = fit_pairs(
        "bradley_terry", left, right, np.array([True, True, True, False]), inputs="differences", seed=0, ridge=1e-6
    )
    assert model.estimator.coef_[0, 0] == pytest.approx(math.log(3), rel=1e-4)
    assert model.probability(np.array([[2.0]]), np.array([[0.0]]))[0] == pytest.approx(0.9, rel=1e-4)  # 3²:1


def test_the_ridge_is_the_one_of_the_formula() -> None:
    """One pair of difference 1 that was won: w minimises log(1 + e^−w) + λ/2·w², so σ(−w) = λ·w."""
    model = fit_pairs(
        "bradley_terry", np.ones((1, 1)), np.zeros((1, 1)), np.array([True]), inputs="differences", seed=0, ridge=0.5
    )
    weight = model.estimator.coef_[0, 0]
    assert 1 / (1 + math.exp(weight)) == pytest.approx(0.5 * weight, rel=1e-4)


def test_pair_inputs_and_refusals() -> None:
    left, right = np.array([[1.0, 2.0]]), np.array([[3.0, 5.0]])
    assert pair_inputs(left, right, "concatenated").tolist() == [[1, 2, 3, 5]]
    assert pair_inputs(left, right, "differences").tolist() == [[-2, -3]]
    none = np.zeros((0, 2))
    with pytest.raises(DataError, match="there is none"):
        fit_pairs("forest", none, none, np.zeros(0, bool), inputs="differences", seed=0, ridge=1.0)
    with pytest.raises(DataError, match="ridge is above 0"):
        fit_pairs("forest", left, right, np.array([True]), inputs="differences", seed=0, ridge=0.0)
    with pytest.raises(ConfigError, match="did you mean 'forest'"):
        fit_pairs("forrest", left, right, np.array([True]), inputs="differences", seed=0, ridge=1.0)
    assert PairModel(None, "differences").probability(none, none).shape == (0,)


# Calibration


def test_slope_by_hand() -> None:
    """Logits ±1, three of four right: σ(a) = ¾, so a = log 3."""
    chances = np.full(4000, 1 / (1 + math.exp(-1)))
    wins = np.arange(4000) % 4 > 0
    assert calibrate(chances, wins).slope == pytest.approx(math.log(3), rel=0.01)  # 4,000 pairs outweigh the prior
    overconfident = calibrate(np.full(4000, 0.99), wins)
    assert overconfident(np.array([0.99]))[0] == pytest.approx(0.75, abs=0.005)


def test_a_few_right_pairs_do_not_make_it_certain() -> None:
    calibration = calibrate(np.array([0.6, 0.7]), np.array([True, True]))
    assert 1 < calibration.slope < 3
    assert calibrate(np.zeros(0), np.zeros(0, bool)) == Calibration()
    assert calibrate(np.array([0.9]), np.array([True]), "none") == Calibration()


@pytest.mark.parametrize("kind", ["slope", "isotonic", "none"])
def test_calibration_keeps_sides_alike_and_order(kind: str) -> None:
    random = np.random.default_rng(0)
    chances = random.random(300)
    wins = random.random(300) < chances**2 / (chances**2 + (1 - chances) ** 2)
    calibration = calibrate(chances, wins, kind)
    grid = np.linspace(0, 1, 101)
    np.testing.assert_allclose(calibration(grid) + calibration(1 - grid), 1, atol=1e-12)
    assert (np.diff(calibration(grid)) >= -1e-12).all()


def test_isotonic_by_hand() -> None:
    """P = 0.8 won, 0.6 lost; in both orders 0.2→0, 0.4→1, 0.6→0, 0.8→1, which pools to 0, ½, ½, 1."""
    calibration = calibrate(np.array([0.8, 0.6]), np.array([True, False]), "isotonic")
    np.testing.assert_allclose(calibration(np.array([0.2, 0.4, 0.6, 0.8])), [0, 0.5, 0.5, 1], atol=1e-12)


def test_tie_width_by_hand() -> None:
    """Distances .05 tie, .1 left, .2 tie, .4 right: calling the first a tie is right 3 times of 4, wider ones less."""
    chances, truth = np.array([0.55, 0.6, 0.3, 0.1]), np.array(["tie", "left", "tie", "right"])
    width = tie_width(chances, truth)
    assert 0.05 < width < 0.1
    assert verdict(chances, width).tolist() == ["tie", "left", "right", "right"]
    assert tie_width(chances, np.array(["left", "left", "right", "right"])) == 0
    assert verdict(np.array([0.5, 0.51]), 0.0).tolist() == ["tie", "left"]


def test_conformal_by_hand() -> None:
    """Nine doubts, α = 0.2: rank ⌈10·0.8⌉ = 8."""
    doubts = np.arange(1, 10) / 10
    assert conformal_bound(doubts, 0.2) == 0.8
    assert conformal_bound(doubts, 0.1) == 0.9
    assert conformal_bound(doubts, 0.05) == math.inf
    wins = np.array([[0.5, 0.9, 0.6], [0.1, 0.5, 0.7], [0.4, 0.3, 0.5]])
    assert doubt(wins).tolist() == [0.4, 0.9, 0.7]
    assert doubt(np.array([[0.5]])).tolist() == [0.0]


def test_conformal_keeps_its_promise() -> None:
    random = np.random.default_rng(0)
    kept = [
        random.random() <= conformal_bound(random.random(19), 0.1) for _ in range(4000)
    ]  # 18th of 19: exactly 0.9 on average
    assert np.mean(kept) == pytest.approx(0.9, abs=0.015)


# Numbers

CHANCES = [0.9, 0.6, 0.5, 0.2, 0.7, 0.7]
PREDICTIONS = pd.DataFrame(
    {
        "group": list("aabbcc"),
        "truth": ["left", "right", "left", "right", "left", "tie"],
        "probability": CHANCES,
        "verdict": ["left", "left", "tie", "right", "left", "left"],
    }
)


def test_numbers_are_scikit_learns() -> None:
    pairs = outcomes(PREDICTIONS)
    np.testing.assert_allclose(pairs.of_winner, [0.9, 0.4, 0.5, 0.8, 0.7])
    ones = np.ones(5)
    both, truth = np.concatenate([pairs.of_winner, 1 - pairs.of_winner]), np.repeat([1, 0], 5)
    assert judge_report.accuracy(pairs, ones) == pytest.approx(3.5 / 5)
    assert judge_report.auc(pairs, ones) == pytest.approx(metrics.roc_auc_score(truth, both))
    assert judge_report.brier(pairs, ones) == pytest.approx(metrics.brier_score_loss(truth, both))
    assert judge_report.f1(pairs, ones) == pytest.approx(metrics.f1_score(truth, both > 0.5))


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_weights_are_repetitions(seed: int) -> None:
    random = np.random.default_rng(seed)
    pairs = Outcomes(random.integers(0, 11, 12) / 10, np.repeat(list("abc"), 4))
    weights = random.integers(1, 4, 12)
    repeated = Outcomes(np.repeat(pairs.of_winner, weights), np.repeat(pairs.group, weights))
    for statistic in judge_report.STATISTICS.values():
        expected = statistic(repeated, np.ones(weights.sum()))
        assert statistic(pairs, weights.astype(float)) == pytest.approx(expected)


def test_calibration_error_by_hand() -> None:
    """0.9 won and 0.6 lost, both orders: bins 0.1, 0.4, 0.6, 0.9 with a quarter each, off by 0.1, 0.6, 0.6, 0.1."""
    pairs = Outcomes(np.array([0.9, 0.4]), np.array(["a", "a"]))
    assert judge_report.calibration_error(pairs, np.ones(2)) == pytest.approx(0.35)


def test_intervals_resample_groups_not_pairs() -> None:
    """Ten groups, all right or all wrong: 100 pairs tell no more than 10 groups, so the interval is wide."""
    group = np.repeat(np.arange(10).astype(str), 10)
    right = np.where(np.repeat(np.arange(10) < 5, 10), 0.9, 0.1)
    by_group = over_groups(Outcomes(right, group), judge_report.accuracy, 2000)
    by_pair = over_groups(Outcomes(right, np.arange(100).astype(str)), judge_report.accuracy, 2000)
    assert (by_group.low, by_group.high) == pytest.approx((0.2, 0.8), abs=0.1)
    assert by_group.high - by_group.low > 2.5 * (by_pair.high - by_pair.low)
    assert by_group.groups == 10


def test_measure_by_hand() -> None:
    groups = pd.DataFrame(
        {
            "group": ["a", "b", "c"],
            "size": [2, 4, 4],
            "chosen": [True, False, True],
            "plausible": [1, 1, 3],
            "covered": [True, False, True],
        }
    )
    found = measure(PREDICTIONS, groups, alpha=0.1, resamples=200)
    assert found["ties"]["floor"] == pytest.approx(1 / 6)
    assert found["ties"]["three-class accuracy"]["value"] == pytest.approx(3 / 6)
    assert found["best take"]["value"] == pytest.approx(2 / 3)
    assert found["best take"]["chance"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)
    assert found["without review"]["accepted"] == pytest.approx(2 / 3)
    assert found["without review"]["right where accepted"]["value"] == pytest.approx(1 / 2)
    assert found["without review"]["mean plausible takes"] == pytest.approx(5 / 3)
    empty = measure(PREDICTIONS[PREDICTIONS["truth"] != "tie"], groups[:0], alpha=0.1, resamples=50)
    assert empty["ties"] is None
    assert empty["best take"] is None
    assert empty["without review"] is None
    with pytest.raises(DataError, match="no held-out pair"):
        measure(PREDICTIONS[:0], groups, 0.1)


def test_logits_are_finite() -> None:
    assert np.isfinite(logit(np.array([0.0, 0.5, 1.0]))).all()
    assert logit(np.array([0.5]))[0] == 0
