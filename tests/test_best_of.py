"""Best-of-n curves against brute force over all subsets, and diverse choices against determinants."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelign.errors import DataError
from reelign.plots.select import best_of_figure
from reelign.selection.best_of import best_of_curve, expected_pick, pick_weights
from reelign.selection.diversity import diverse, similarities, standard_features


def brute_force(gold, selector, n: int) -> float:
    """Mean over all n-subsets; where several lead in one, the mean of their gold."""
    picks = []
    for subset in itertools.combinations(range(len(gold)), n):
        top = max(selector[i] for i in subset)
        picks.append(np.mean([gold[i] for i in subset if selector[i] == top]))
    return float(np.mean(picks))


def test_weights_by_hand() -> None:
    """N = 4, n = 2: six pairs; ranks 0 … 3 lead in 0, 1, 2 and 3 of them."""
    assert pick_weights(4, 2) == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6])
    assert pick_weights(3, 3) == pytest.approx([0, 0, 1])
    assert pick_weights(3, 1) == pytest.approx([1 / 3] * 3)


@given(st.integers(1, 60), st.data())
def test_weights_are_the_binomials(total: int, data) -> None:
    n = data.draw(st.integers(1, total))
    expected = [math.comb(i, n - 1) / math.comb(total, n) for i in range(total)]
    assert pick_weights(total, n) == pytest.approx(expected)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2)), min_size=1, max_size=7), st.data())
def test_expected_pick_is_brute_force_ties_included(takes, data) -> None:
    gold, selector = (np.array(column, dtype=float) for column in zip(*takes, strict=True))
    n = data.draw(st.integers(1, len(takes)))
    assert expected_pick(gold, selector, n) == pytest.approx(brute_force(gold, selector, n))


def test_ties_do_not_depend_on_order() -> None:
    """All equal to the selector: it picks at random, and n changes nothing."""
    for n in (1, 2, 3):
        assert expected_pick([1.0, 5.0, 9.0], [2.0, 2.0, 2.0], n) == pytest.approx(5)


def test_unbiased_where_drawing_with_replacement_is_low() -> None:
    """Spec 4.3: best of 8 out of 32 standard normals is 1.42 on average; resampling with replacement says less."""
    random, estimates, plug_in = np.random.default_rng(0), [], []
    for _ in range(400):
        values = random.normal(size=32)
        estimates.append(expected_pick(values, values, 8))
        ranked, share = np.sort(values), np.arange(33) / 32
        plug_in.append(ranked @ (share[1:] ** 8 - share[:-1] ** 8))
    error = np.std(estimates) / 20
    assert np.mean(estimates) == pytest.approx(1.4236, abs=3 * error)
    assert np.mean(plug_in) < 1.4236 - 3 * error


@pytest.mark.parametrize(
    ("gold", "selector", "n"),
    [([1, 2], [1], 1), ([], [], 1), ([1, math.nan], [1, 2], 1), ([1, 2], [1, 2], 3), ([1], [1], 0)],
)
def test_what_has_no_pick(gold, selector, n) -> None:
    with pytest.raises(DataError):
        expected_pick(np.array(gold, float), np.array(selector, float), n)


def frame(groups: int = 30, size: int = 6, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    gold = random.normal(size=groups * size)
    return pd.DataFrame(
        {
            "group": np.repeat([f"p{i}" for i in range(groups)], size),
            "gold": gold,
            "honest": 3 * gold + 100,
            "noise": random.normal(size=groups * size),
            "perverse": -gold,
        }
    )


def test_curve_of_an_honest_a_blind_and_a_perverse_selector() -> None:
    table = frame()
    honest = best_of_curve(table, "honest", "gold").table
    assert list(honest["n"]) == [1, 2, 3, 4, 5, 6]
    assert honest["delivered"].to_numpy() == pytest.approx(honest["promised"].to_numpy())  # units do not matter
    tops = table.groupby("group")["gold"].max().mean()
    assert honest["gold"].iloc[-1] == pytest.approx(tops)
    assert honest["gold"].iloc[0] == pytest.approx(table["gold"].mean())
    assert (honest["delivered_low"] <= honest["delivered"]).all()
    blind = best_of_curve(table, "noise", "gold").table
    assert blind["delivered_low"].iloc[-1] < 0 < blind["delivered_high"].iloc[-1]
    assert blind["promised"].iloc[-1] > 1
    perverse = best_of_curve(table, "perverse", "gold").table
    assert perverse["delivered"].to_numpy() == pytest.approx(-perverse["promised"].to_numpy())


def test_gaps_and_small_groups_are_left_out_and_counted() -> None:
    table = frame(5)
    table.loc[0, "gold"] = math.nan
    table.loc[7, "honest"] = math.nan
    table = pd.concat([table, pd.DataFrame({"group": ["alone"], "gold": [50.0], "honest": [1.0]})])
    curve = best_of_curve(table, "honest", "gold")
    assert (curve.left_out_takes, curve.left_out_groups, curve.prompts) == (2, 1, 5)
    assert len(curve.table) == 5  # the smallest group with at least two takes
    assert best_of_curve(table, "honest", "gold", largest=6).prompts == 3
    assert best_of_curve(table.sample(frac=1, random_state=1), "honest", "gold").table.equals(curve.table)


@pytest.mark.parametrize(
    ("selector", "gold", "largest", "message"),
    [
        ("gold", "gold", None, "cannot tell"),
        ("x", "gold", None, "'x' is none of"),
        ("honest", "gold", 7, "at least 2 groups"),
    ],
)
def test_curves_that_mean_nothing(selector, gold, largest, message) -> None:
    with pytest.raises(DataError, match=message):
        best_of_curve(frame(), selector, gold, largest)


def test_the_figure_shows_promise_and_delivery() -> None:
    curve = best_of_curve(frame(), "noise", "gold")
    gains, values = best_of_figure(curve, "noise", "gold").axes
    lines = {line.get_label(): line for line in gains.lines}
    assert list(lines["promised by noise"].get_ydata()) == list(curve.table["promised"])
    assert list(lines["delivered in gold"].get_ydata()) == list(curve.table["delivered"])
    assert list(values.lines[0].get_xdata()) == list(curve.table["selector"])


# --- diversity -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 7))
def test_greedy_choice_maximises_the_determinant_step_by_step(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    quality, features = random.normal(size=n), random.normal(size=(n, 3))
    kernel = np.exp((quality[:, None] + quality[None, :]) / 2) * similarities(features)
    chosen = diverse(quality, features, n)
    for step in range(1, len(chosen)):
        worth = {
            i: np.linalg.det(kernel[np.ix_([*chosen[:step], i], [*chosen[:step], i])])
            for i in set(range(n)) - set(chosen[:step])
        }
        assert worth[chosen[step]] == pytest.approx(max(worth.values()), rel=1e-5, abs=1e-9)


def test_a_copy_never_wins_beside_its_original() -> None:
    features = np.array([[0.0, 0], [0, 0], [3, 0], [0, 3]])
    assert diverse(np.array([2.0, 1.9, 0.5, 0.4]), features, 2) == [0, 2]
    assert diverse(np.array([2.0, 1.9, 0.5, 0.4]), features, 4) == [0, 2, 3]
    assert diverse(np.array([2.0, 1.9, 0.5, 0.4]), np.eye(4), 2) == [0, 1]  # all as different: the two best
    assert diverse(np.zeros(3), np.zeros((3, 1)), 3) == [0]


def test_quality_can_outweigh_difference() -> None:
    quality, features = np.array([2.0, 1.9, -6.0]), np.array([[0.0], [0.5], [3.0]])
    assert diverse(quality, features, 2) == [0, 1]
    assert diverse(quality, features, 2, alpha=0.01) == [0, 2]


def test_features_have_no_units_and_no_gaps() -> None:
    table = pd.DataFrame({"a": [1.0, 2, 3], "b": [1000.0, math.nan, 3000], "c": [7.0, 7, 7]})
    features = standard_features(table, ["a", "b", "c"])
    z = math.sqrt(1.5)
    assert features == pytest.approx(np.array([[-z, -1, 0], [0, 0, 0], [z, 1, 0]]))
    with pytest.raises(DataError, match="'x' of a, b, c"):
        standard_features(table, ["x"])
    with pytest.raises(DataError, match="infinity"):
        standard_features(table.replace(1.0, math.inf), ["a"])


@pytest.mark.parametrize(
    "arguments", [([1.0], np.zeros((2, 1)), 1), ([math.nan], np.zeros((1, 1)), 1), ([1.0], np.zeros((1, 1)), 0)]
)
def test_diverse_refuses(arguments) -> None:
    with pytest.raises(DataError):
        diverse(np.array(arguments[0]), *arguments[1:])
