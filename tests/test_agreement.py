"""Agreement coefficients: by hand, against published worked examples, and against scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelign.errors import DataError
from reelign.metrics.agreement import alpha_with_interval, cohen_kappa, count_table, fleiss_kappa, krippendorff_alpha

_ = np.nan
# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: 4 observers, 12 units.
KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]
# Fleiss (1971), table 1: 30 patients, 6 psychiatrists, 5 diagnoses.
FLEISS = """00060 03003 01401 00006 03030 20400 00402 20310 20040 00006
            10050 11040 03300 10050 02031 00501 30012 51000 02040 10203
            00006 01050 02013 20040 10041 05010 40002 02040 10500 00006"""


def test_cohen_by_hand():
    """Cohen's own layout: 20 and 15 agree, 5 and 10 do not; P = 0.7, P_e = 0.5·0.6 + 0.5·0.4 = 0.5, κ = 0.4."""
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)


def test_cohen_weighted_by_hand():
    """(1,1), (1,2), (3,1): linear cost seen (0 + 1 + 2)/3 = 1, by chance 2/9·1 + 2/9·2 + 1/9·1 = 7/9; κ = −2/7."""
    assert cohen_kappa([1, 1, 3], [1, 2, 1], "linear", [1, 2, 3]) == pytest.approx(-2 / 7)


def test_cohen_extremes():
    assert cohen_kappa("ab" * 5, "ab" * 5) == 1
    assert cohen_kappa("ab" * 5, "ba" * 5) == -1
    assert np.isnan(cohen_kappa("aaa", "aaa"))


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=40))
@settings(max_examples=60, deadline=None)
def test_cohen_is_sklearns(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    first, second = (list(side) for side in zip(*pairs, strict=True))
    if len({*first, *second}) == 1:
        assert np.isnan(cohen_kappa(first, second))
        return
    for weights in (None, "linear", "quadratic"):
        theirs = metrics.cohen_kappa_score(first, second, labels=[1, 2, 3, 4, 5], weights=weights)
        assert cohen_kappa(first, second, weights, [1, 2, 3, 4, 5]) == pytest.approx(theirs, abs=1e-12)


def test_cohen_refuses():
    with pytest.raises(DataError, match="got 1 and 2"):
        cohen_kappa("a", "ab")
    with pytest.raises(DataError, match="at least one"):
        cohen_kappa([], [])
    with pytest.raises(DataError, match="need the answers in order"):
        cohen_kappa("a", "b", "linear")
    with pytest.raises(DataError, match="'c'"):
        cohen_kappa("a", "c", order="ab")


def test_fleiss_published():
    counts = np.array([[int(digit) for digit in row] for row in FLEISS.split()])
    assert counts.sum(0).tolist() == [26, 26, 30, 55, 43]  # the paper's column totals
    assert fleiss_kappa(counts) == pytest.approx(0.430, abs=5e-4)


def test_fleiss_by_hand():
    """Three items, two annotators: agree, agree, differ. P̄ = 2/3; p = (1/2, 1/2), P̄_e = 1/2; κ = 1/3."""
    assert fleiss_kappa([[2, 0], [0, 2], [1, 1]]) == pytest.approx(1 / 3)
    assert np.isnan(fleiss_kappa([[3], [3]]))


def test_fleiss_refuses():
    for counts, rule in (([[1, 2], [2, 2]], r"\[3.0, 4.0\]"), ([[1, 0]], "2 or more"), ([], "table")):
        with pytest.raises(DataError, match=rule):
            fleiss_kappa(counts)


@pytest.mark.parametrize(("level", "value"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorff_published(level, value):
    assert krippendorff_alpha(KRIPPENDORFF, level) == pytest.approx(value, abs=6e-4)


def test_krippendorff_by_hand():
    """Two annotators, items (0,0) (1,1) (0,1): o_01 = 1, n = 6, n_0 = n_1 = 3; α = 1 − 5·2/(2·9) = 4/9."""
    assert krippendorff_alpha([[0, 1, 0], [0, 1, 1]]) == pytest.approx(4 / 9)


def brute_alpha(values, distance):
    """The definition, pair by pair: mean distance within items over mean distance of all paired answers."""
    items = [[v for v in column if not np.isnan(v)] for column in np.array(values, float).T]
    items = [item for item in items if len(item) >= 2]
    everything = [v for item in items for v in item]
    seen = sum(sum(distance(a, b) for a, b in itertools.permutations(i, 2)) / (len(i) - 1) for i in items)
    expected = sum(distance(a, b) for a, b in itertools.permutations(everything, 2)) / (len(everything) - 1)
    return 1 - seen / expected


@given(st.lists(st.lists(st.sampled_from([1.0, 2.0, 3.0, 5.0, np.nan]), min_size=3, max_size=3), min_size=3))
@settings(max_examples=60, deadline=None)
def test_krippendorff_is_its_definition(columns):
    values = np.array(columns).T
    paired = values[:, (~np.isnan(values)).sum(0) >= 2]
    kinds = np.unique(paired[~np.isnan(paired)])
    if not paired.size:
        with pytest.raises(DataError, match="two annotators"):
            krippendorff_alpha(values)
    elif len(kinds) == 1:
        assert np.isnan(krippendorff_alpha(values))
    else:
        assert krippendorff_alpha(values) == pytest.approx(brute_alpha(values, lambda a, b: a != b))
        assert krippendorff_alpha(values, "interval") == pytest.approx(brute_alpha(values, lambda a, b: (a - b) ** 2))


def test_ordinal_is_interval_on_mid_ranks():
    """Equal numbers of each answer put mid-ranks at equal steps, so ordinal and interval agree."""
    values = [[1, 2, 3, 1, 2, 3], [1, 2, 3, 2, 3, 1]]
    assert krippendorff_alpha(values, "ordinal") == pytest.approx(krippendorff_alpha(values, "interval"))


def test_two_complete_annotators_approach_scotts_pi():
    """Nominal, no missing: 1 − α = (1 − π)·(n − 1)/n with Scott's π (Krippendorff 2011), n answers."""
    first, second = [0, 0, 1, 2, 1, 0, 2, 2], [0, 1, 1, 2, 1, 0, 2, 0]
    shares = np.bincount(first + second) / 16
    agreed = np.mean(np.array(first) == second)
    pi = (agreed - (shares**2).sum()) / (1 - (shares**2).sum())
    assert krippendorff_alpha([first, second]) == pytest.approx(1 - (1 - pi) * 15 / 16)


def test_interval_covers_and_counts():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 400)
    values = np.array([np.where(rng.random(400) < 0.8, truth, 1 - truth) for _annotator in range(3)], float)
    values[0, :100] = np.nan
    values[1:, 0] = [0, np.nan]  # one item with a single answer does not count
    result = alpha_with_interval(values)
    assert (result.items, result.answers) == (399, 399 * 3 - 99)
    # Two answers agree with probability 0.8² + 0.2² = 0.68, by chance 0.5: α = 0.36.
    assert result.ci95[0] < 0.36 < result.ci95[1]
    assert 0.05 < result.ci95[1] - result.ci95[0] < 0.2
    assert result == alpha_with_interval(values)
    same = alpha_with_interval([[1, 1], [1, 1]])
    assert np.isnan([same.value, *same.ci95]).all()


def test_krippendorff_refuses():
    with pytest.raises(DataError, match="nominal, ordinal, interval"):
        krippendorff_alpha([[1, 2], [1, 2]], "ratio")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="table"):
        krippendorff_alpha([1, 2])


def test_count_table():
    assert count_table([["a", "b", "a"], ["b", "b", "b"]]).tolist() == [[2, 1], [0, 3]]
