"""Intervals and win rates against hand-worked answers and against SciPy, which is an independent implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reelign.errors import DataError
from reelign.metrics import statistics
from reelign.metrics.statistics import bootstrap_interval, paired_delta, wilson

stats = pytest.importorskip("scipy.stats", reason="SciPy is the reference here; reelign itself does without it")


def test_paired_delta_by_hand() -> None:
    result = paired_delta([0.0, 1.0, 1.0, 0.0, 0.5], [1.0, 1.0, 0.0, 1.0, 0.75])
    assert result.before == pytest.approx(0.5)
    assert result.after == pytest.approx(0.75)
    assert result.delta == pytest.approx(0.25)
    assert (result.n, result.wins, result.losses, result.ties) == (5, 3, 1, 1)
    assert result.win_rate == pytest.approx(0.75)


def test_two_pairs_have_a_known_bootstrap_distribution() -> None:
    """Differences 0 and 1: a resample's mean is 0, ½ or 1 with probability ¼, ½, ¼."""
    assert paired_delta([0, 0], [0, 1]).ci95 == (0.0, 1.0)
    assert bootstrap_interval(np.array([0.0, 1.0]), 10_000, confidence=0.4, seed=0) == (0.5, 0.5)


@pytest.mark.parametrize("kind", ["normal", "skewed", "accuracy"])
def test_interval_is_scipys(kind: str) -> None:
    random = np.random.default_rng(7)
    draw = {
        "normal": random.normal(0.3, 1, 96),
        "skewed": random.exponential(1, 40),
        "accuracy": random.integers(-1, 2, 96).astype(float),
    }[kind]
    theirs = stats.bootstrap(
        (draw,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    ours = paired_delta(np.zeros(len(draw)), draw, resamples=2000, seed=3).ci95
    assert ours == pytest.approx((theirs.low, theirs.high), rel=1e-12)


def test_chunks_do_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(1).normal(size=30)
    whole = bootstrap_interval(draw, 1000, 0.95, seed=5)
    monkeypatch.setattr(statistics, "CHUNK", 100)
    assert bootstrap_interval(draw, 1000, 0.95, seed=5) == whole


def test_interval_approaches_the_normal_one() -> None:
    draw = np.random.default_rng(2).normal(0.1, 1, 4000)
    low, high = paired_delta(np.zeros(4000), draw, resamples=4000).ci95
    reach = 1.96 * draw.std() / math.sqrt(4000)
    assert (low, high) == pytest.approx((draw.mean() - reach, draw.mean() + reach), abs=0.1 * reach)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(11)
    zeros = np.zeros(60)
    intervals = [paired_delta(zeros, random.normal(0.5, 1, 60), resamples=500).ci95 for _ in range(300)]
    assert 0.91 <= np.mean([low <= 0.5 <= high for low, high in intervals]) <= 0.98


def test_seed_decides() -> None:
    draw = np.random.default_rng(4).normal(size=25)
    first, again, other = (paired_delta(np.zeros(25), draw, resamples=300, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first.ci95 != other.ci95


def test_all_ties_have_no_win_rate() -> None:
    result = paired_delta([1, 1, 0], [1, 1, 0])
    assert (result.win_rate, result.ties, result.ci95) == (None, 3, (0.0, 0.0))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([1.0], [2.0], "no interval exists for fewer than 2 pairs; got 1"),
        ([], [], "no interval exists for fewer than 2 pairs; got 0"),
        ([1.0, 2.0], [1.0], "equal length"),
        ([1.0, math.nan], [1.0, 2.0], "finite"),
        ([1.0, 2.0], [1.0, math.inf], "finite"),
    ],
)
def test_bad_pairs_are_refused(before: list[float], after: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        paired_delta(before, after)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(DataError, match="at least 1 resample; got 0"):
        paired_delta([0, 1], [1, 1], resamples=0)
    with pytest.raises(DataError, match="strictly between 0 and 1"):
        paired_delta([0, 1], [1, 1], confidence=95)
    with pytest.raises(DataError, match="got 3 of 2"):
        wilson(3, 2)
    with pytest.raises(DataError, match="got 0 of 0"):
        wilson(0, 0)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (7, 9), (48, 96), (1, 1)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_is_scipys(successes: int, n: int, confidence: float) -> None:
    theirs = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson(successes, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_by_hand() -> None:
    """1 of 1 at 95 %: the lower end is 1/(1 + z²) = 1/(1 + 3.8415), the upper is 1."""
    assert wilson(1, 1) == pytest.approx((0.20655, 1.0), abs=1e-5)
