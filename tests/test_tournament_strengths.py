"""Bradley–Terry against answers by hand, an independent optimiser, and known strengths; the pairs to ask next."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelign.errors import DataError
from reelign.selection.bradley_terry import (
    fit,
    fit_tie_factor,
    luce_draws,
    posterior_draws,
    probability_best,
    probability_top,
)
from reelign.selection.tournament import informative_pairs, win_tables


def table(n: int, **counts: float) -> np.ndarray:
    """``table(3, w01=4)``: 4 at [0, 1]."""
    values = np.zeros((n, n))
    for name, count in counts.items():
        values[int(name[1]), int(name[2])] = count
    return values


def random_counts(seed: int, n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    wins, ties = random.integers(0, 5, (n, n)).astype(float), random.integers(0, 4, (n, n)).astype(float)
    np.fill_diagonal(wins, 0)
    ties = np.triu(ties, 1)
    return wins, ties + ties.T


def negative_posterior(theta: np.ndarray, wins: np.ndarray, ties: np.ndarray, k: float | None, ridge: float) -> float:
    """Straight from the definition, pair by pair."""
    total = ridge / 2 * float(theta @ theta)
    for i in range(len(theta)):
        for j in range(i + 1, len(theta)):
            a, b = math.exp(theta[i]), math.exp(theta[j])
            if k is None:
                left, right, tie = a / (a + b), b / (a + b), math.sqrt(a * b) / (a + b)
            else:
                left, right = a / (a + k * b), b / (b + k * a)
                tie = 1 - left - right
            total -= wins[i, j] * math.log(left) + wins[j, i] * math.log(right) + ties[i, j] * math.log(tie)
    return total


def test_two_takes_by_hand() -> None:
    """Three wins of four, hardly any ridge: P = ¾, so θ_0 − θ_1 = ln 3; its variance is 1/(4·¾·¼) = 4/3."""
    strengths = fit(table(2, w01=3, w10=1), ridge=1e-9)
    assert strengths.theta == pytest.approx([math.log(3) / 2, -math.log(3) / 2])
    c = fit(table(2, w01=3, w10=1), ridge=1e-6).covariance
    assert c[0, 0] + c[1, 1] - 2 * c[0, 1] == pytest.approx(4 / 3, rel=1e-4)
    assert strengths.log_likelihood == pytest.approx(3 * math.log(0.75) + math.log(0.25))


def test_ties_by_hand() -> None:
    """Rao and Kupper, k = 5: equal takes tie (k² − 1)/(1 + k)² = ⅔ of the time and win ⅙ each."""
    ties = np.array([[0.0, 4], [4, 0]])
    equal = fit(table(2, w01=1, w10=1), ties, tie_factor=5)
    assert equal.theta == pytest.approx([0, 0])
    assert equal.log_likelihood == pytest.approx(4 * math.log(2 / 3) + 2 * math.log(1 / 6))
    assert fit_tie_factor(table(2, w01=1, w10=1), ties) == pytest.approx(5, rel=1e-3)
    # As half wins the same labels are 3 : 3.
    assert fit(table(2, w01=1, w10=1), ties).log_likelihood == pytest.approx(6 * math.log(0.5))


@pytest.mark.parametrize("k", [None, 1.5, 5.0])
@pytest.mark.parametrize("seed", range(4))
def test_fit_is_the_maximum_another_optimiser_finds(k: float | None, seed: int) -> None:
    optimise = pytest.importorskip("scipy.optimize", reason="SciPy is the reference; reelign does without it")
    wins, ties = random_counts(seed)
    found = fit(wins, ties, k, ridge=0.3)
    other = optimise.minimize(negative_posterior, np.zeros(5), (wins, ties, k, 0.3), options={"gtol": 1e-8})
    assert found.theta == pytest.approx(other.x, abs=1e-4)
    assert found.theta.sum() == pytest.approx(0, abs=1e-9)
    own = found.log_likelihood - 0.15 * float(found.theta @ found.theta)
    assert -own == pytest.approx(other.fun, rel=1e-8)


def test_covariance_is_the_inverse_of_the_curvature() -> None:
    wins, ties = random_counts(9, 4)
    strengths, h = fit(wins, ties, 2.0, ridge=0.3), 1e-4
    curvature = np.zeros((4, 4))
    for i in range(4):
        for j in range(4):
            for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
                at = strengths.theta + h * (a * np.eye(4)[i] + b * np.eye(4)[j])
                curvature[i, j] += a * b * negative_posterior(at, wins, ties, 2.0, 0.3) / (4 * h * h)
    assert strengths.covariance == pytest.approx(np.linalg.inv(curvature), abs=1e-5)


def test_known_strengths_come_back_and_errors_are_as_stated() -> None:
    """Over 200 repeats the deviation of the estimates is the standard error, and 95 % intervals hold 95 %."""
    random, true = np.random.default_rng(1), np.array([1.0, 0.3, -0.2, -1.1])
    probability = 1 / (1 + np.exp(true[None, :] - true[:, None]))
    inside, estimates, stated = [], [], []
    for _ in range(200):
        wins = np.triu(random.binomial(40, probability), 1).astype(float)
        wins += np.tril(40 - wins.T, -1)
        strengths = fit(wins, ridge=1e-3)
        estimates.append(strengths.theta)
        stated.append(strengths.covariance[0, 0] + strengths.covariance[1, 1] - 2 * strengths.covariance[0, 1])
        low_high = 1.96 * math.sqrt(stated[-1])
        inside.append(abs(strengths.theta[0] - strengths.theta[1] - 0.7) < low_high)
    assert np.mean(estimates, 0) == pytest.approx(true, abs=0.06)
    assert np.std([e[0] - e[1] for e in estimates]) == pytest.approx(math.sqrt(np.mean(stated)), rel=0.15)
    assert 0.9 <= np.mean(inside) <= 0.99


def test_islands_and_whitewashes_have_finite_strengths() -> None:
    """0 ≻ 1 always, 2 ≻ 3 always, 4 never played: two islands and a hermit."""
    strengths = fit(table(5, w01=3, w23=3))
    assert strengths.theta[0] == pytest.approx(strengths.theta[2])
    assert strengths.theta[4] == pytest.approx(0, abs=1e-9)
    assert strengths.theta[0] > 0 > strengths.theta[1]
    assert strengths.standard_error[4] == pytest.approx(1 / math.sqrt(0.5))  # nothing but the prior
    assert probability_best(strengths)[[0, 2]] == pytest.approx([probability_best(strengths)[0]] * 2, abs=0.01)


def test_huge_counts_converge() -> None:
    assert fit(table(3, w01=1e9, w10=1e3, w12=1e9, w21=1e3), ridge=1e-3).theta[0] == pytest.approx(13.8155, abs=1e-3)


def test_probability_of_the_best_by_hand() -> None:
    """Two takes: P(best) = Φ(Δ/sd); Luce's of θ = ln 1, ln 2, ln 5 is ⅛, ¼, ⅝."""
    strengths = fit(table(2, w01=3, w10=1))
    assert probability_best(strengths)[0] == pytest.approx(strengths.beats(0, 1), abs=0.01)
    assert strengths.beats(0, 1) + strengths.beats(1, 0) == pytest.approx(1)
    luce = luce_draws(np.log([1.0, 2.0, 5.0]))
    assert probability_top(luce) == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.012)
    assert probability_top(luce, 2).sum() == pytest.approx(2)
    assert list(probability_top(luce, 3)) == [1, 1, 1]
    draws = posterior_draws(strengths, 50_000, seed=3)
    assert draws.mean(0) == pytest.approx(strengths.theta, abs=1e-9)  # mirrored, so exactly
    assert np.cov(draws.T) == pytest.approx(strengths.covariance, rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wins": np.zeros((2, 3))}, "square tables"),
        ({"wins": np.zeros((0, 0))}, "square tables"),
        ({"wins": np.eye(2)}, "0 on the diagonal"),
        ({"wins": -table(2, w01=1)}, "not negative"),
        ({"wins": table(2, w01=math.nan)}, "finite"),
        ({"wins": table(2), "ties": table(2, t01=1)}, "are equal"),
        ({"wins": table(2), "tie_factor": 1.0}, "above 1"),
        ({"wins": table(2), "ridge": 0.0}, "above 0"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit(**arguments)


def test_a_tie_factor_needs_ties_and_wins() -> None:
    for wins, ties in ((table(2, w01=2), table(2)), (table(2), np.array([[0.0, 1], [1, 0]]))):
        with pytest.raises(DataError, match="some tie and some don't"):
            fit_tie_factor(wins, ties)


def labels(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=["left", "right", "choice"])


def test_labels_become_tables() -> None:
    frame = labels(
        ("a", "b", "left"), ("a", "b", "right"), ("b", "c", "tie"), ("c", "b", "both_bad"), ("a", "x", "left")
    )
    wins, ties = win_tables(frame, ["a", "b", "c"])
    assert np.array_equal(wins, table(3, w01=1, w10=1))
    assert np.array_equal(ties, table(3, t12=2, t21=2))
    for bad, message in (
        (labels(("a", "a", "left")), "compared with itself"),
        (labels(("a", "b", "Left")), "a choice is one of"),
        (frame.drop(columns="right"), "right is missing"),
    ):
        with pytest.raises(DataError, match=message):
            win_tables(bad, ["a", "b", "c"])
    with pytest.raises(DataError, match="listed twice"):
        win_tables(frame, ["a", "a"])


def test_first_pairs_cover_everybody() -> None:
    pairs = informative_pairs(labels(), ["d", "b", "a", "c"], 2)
    assert sorted(take for pair in pairs for take in pair) == ["a", "b", "c", "d"]
    assert informative_pairs(labels(), ["a"], 3) == informative_pairs(labels(), ["a", "b"], 0) == []
    assert len(set(informative_pairs(labels(), ["a", "b", "c"], 99))) == 3


def test_close_contenders_are_asked_before_clear_losers() -> None:
    rows = [(top, low, "left") for top in "ab" for low in "cd" for _ in range(6)]
    assert informative_pairs(labels(*rows), ["a", "b", "c", "d"], 1) == [("a", "b")]
    # Settled too, once people have answered often; the next best is then somebody who was hardly compared.
    rows += [("a", "b", "left")] * 60
    assert "e" in informative_pairs(labels(*rows), ["a", "b", "c", "d", "e"], 1)[0]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from(["left", "right", "tie"])), max_size=12),
    st.randoms(),
)
def test_pairs_do_not_depend_on_order_or_sides(rows, shuffler) -> None:
    takes = ["a", "b", "c", "d", "e"]
    told = [(takes[i], takes[j], choice) for i, j, choice in rows if i != j]
    other = {"left": "right", "right": "left", "tie": "tie"}
    turned = [(b, a, other[choice]) for a, b, choice in told]
    expected = informative_pairs(labels(*told), takes, 4)
    shuffler.shuffle(turned)
    shuffler.shuffle(takes)
    assert informative_pairs(labels(*turned), takes, 4) == expected


def test_informative_pairs_find_the_best_with_fewer_questions_than_chance() -> None:
    """Twelve takes, noisy people, 40 answers, 25 times: asking what tells most loses less than asking at random."""
    random, takes = np.random.default_rng(5), [f"{i:02d}" for i in range(12)]
    regret = {"informative": [], "random": []}
    for _ in range(25):
        theta = random.normal(0, 1.5, 12)
        for way in regret:
            told: list[tuple[str, str, str]] = []
            for _ in range(8):
                pairs = (
                    informative_pairs(labels(*told), takes, 5)
                    if way == "informative"
                    else [tuple(random.choice(takes, 2, replace=False)) for _ in range(5)]
                )
                for a, b in pairs:
                    left = random.random() < 1 / (1 + math.exp(theta[int(b)] - theta[int(a)]))
                    told.append((a, b, "left" if left else "right"))
            best = int(np.argmax(fit(win_tables(labels(*told), takes)[0]).theta))
            regret[way].append(theta.max() - theta[best])
    assert np.mean(regret["informative"]) < np.mean(regret["random"]) - 0.1, regret
