"""Schemes and group tournaments: known answers, order and sides, the published selector's defects, and noise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelign.errors import ConfigError, ContractError, DataError, UnknownNameError
from reelign.selection.schemes import SCHEMES, Ledger, _circle, named, play
from reelign.selection.tournament import (
    ColumnJudge,
    column_judge,
    run_groups,
    standings_from_labels,
    symmetric,
)

NAMES = list(SCHEMES)


def sure(theta):
    """Answers by true strength, without doubt."""
    return lambda pairs: [float(theta[i] > theta[j]) for i, j in pairs]


class Leaning:
    """A judge of a column that adds a constant for whatever stands on the left, and notes what it was asked."""

    def __init__(self, lean: float = 0.0, column: str = "u") -> None:
        self.lean, self.column, self.asked, self.calls = lean, column, [], 0

    def probability(self, left: pd.DataFrame, right: pd.DataFrame) -> np.ndarray:
        self.calls += 1
        self.asked += list(zip(left["group"], left["take"], right["take"], strict=True))
        return 1 / (1 + np.exp(right[self.column].to_numpy() - left[self.column].to_numpy() - self.lean))


def table(groups: dict[str, list[float]]) -> pd.DataFrame:
    rows = [(f"{g}{i}", g, u) for g, values in groups.items() for i, u in enumerate(values)]
    return pd.DataFrame(rows, columns=["take", "group", "u"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", range(1, 18))
@pytest.mark.parametrize("votes", [False, True])
def test_a_sure_judge_finds_the_best_of_any_number(name: str, n: int, votes: bool) -> None:
    theta = np.random.default_rng(n).permutation(n).astype(float)
    ledger, asked = Ledger(n, votes), []

    def ask(pairs):
        asked.extend(pairs)
        return sure(theta)(pairs)

    order = play(SCHEMES[name], ledger, ask)
    assert sorted(order) == list(range(n))
    assert ledger.comparisons == len(asked)
    if name in ("elimination", "round_robin"):
        assert order[0] == int(theta.argmax())
    assert not any(i == j for i, j in asked)
    if not votes:
        assert len({frozenset(pair) for pair in asked}) == len(asked), "a belief was asked for twice"


def test_comparisons_by_hand() -> None:
    counts = {name: Ledger(16, votes=True) for name in NAMES}
    for name, ledger in counts.items():
        play(SCHEMES[name], ledger, sure(range(16)))
    assert {name: ledger.comparisons for name, ledger in counts.items()} == {
        "elimination": 15, "swiss": 32, "halving": 60, "round_robin": 120,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "allowed", "made"), [("elimination", 50, 45), ("swiss", 64, 64), ("round_robin", 250, 240)]
)
def test_more_comparisons_are_used_whole(name: str, allowed: int, made: int) -> None:
    ledger = Ledger(16, votes=True)
    play(SCHEMES[name], ledger, sure(range(16)), allowed)
    assert ledger.comparisons == made


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 20), st.integers(0, 60), st.booleans())
def test_halving_spends_what_it_may_and_everybody_plays(n: int, more: int, votes: bool) -> None:
    rounds, ledger = [], Ledger(n, votes)
    least = 0
    size = n
    while size > 1:
        least += -(-size // 2)
        size = -(-size // 2)

    def ask(pairs):
        rounds.append(pairs)
        return sure(range(n))(pairs)

    order = play(SCHEMES["halving"], ledger, ask, least + more)
    assert {i for pair in rounds[0] for i in pair} == set(range(n))
    assert ledger.comparisons <= least + more
    if votes:
        assert ledger.comparisons == least + more
    assert sorted(order) == list(range(n))
    with pytest.raises(DataError, match=f"at least {least} comparisons"):
        play(SCHEMES["halving"], Ledger(n, votes), ask, least - 1)


def test_the_bracket_by_hand() -> None:
    """Six takes: two pass the first round, 2-3 and 4-5 play; then 0-1 and 3-5; then 1-5; strengths rise with number."""
    seen = []

    def ask(pairs):
        seen.append(pairs)
        return sure(range(6))(pairs)

    order = play(SCHEMES["elimination"], Ledger(6), ask)
    assert seen == [[(2, 3), (4, 5)], [(0, 1), (3, 5)], [(1, 5)]]
    assert order[:2] == [5, 1]
    assert set(order[2:4]) == {0, 3}
    assert set(order[4:]) == {2, 4}


def test_matchings_of_the_circle() -> None:
    for m in range(2, 10):
        pairs = _circle(range(m))
        assert {frozenset(pair) for pair in pairs} == {frozenset(pair) for pair in itertools.combinations(range(m), 2)}
        for start in range(0, len(pairs), m // 2):
            players = [i for pair in pairs[start : start + m // 2] for i in pair]
            assert len(players) == len(set(players))


def test_swiss_pairs_equals_and_avoids_rematches() -> None:
    rounds = []

    def ask(pairs):
        rounds.append(pairs)
        return sure(range(8))(pairs)

    play(SCHEMES["swiss"], Ledger(8, votes=True), ask)
    assert len({frozenset(pair) for pairs in rounds for pair in pairs}) == 12
    wins = {i: sum(max(pair) == i for pair in rounds[0]) for i in range(8)}
    assert all(wins[i] == wins[j] for i, j in rounds[1])


def test_odd_takes_sit_out_in_turn() -> None:
    ledger = Ledger(5, votes=True)
    play(SCHEMES["swiss"], ledger, sure(range(5)), 10)
    assert list(ledger.met.sum(1)) == [4, 4, 4, 4, 4]


def test_what_a_ledger_refuses() -> None:
    for outcomes in ([1.2], [math.nan], []):
        with pytest.raises(DataError):
            Ledger(2).record([(0, 1)], outcomes)
    with pytest.raises(DataError, match="at least one take"):
        Ledger(0)
    with pytest.raises(UnknownNameError, match="did you mean 'halving'"):
        named("halvin")
    with pytest.raises(DataError, match="at least 15 comparisons"):
        play(SCHEMES["elimination"], Ledger(16), sure(range(16)), 14)


# --- groups --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", NAMES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), lean=st.floats(-3, 3))
def test_order_of_rows_and_leaning_to_a_side_change_nothing(scheme: str, seed: int, lean: float) -> None:
    """Defects D: winners of the published selector depend on the order of a glob and on who is shown first."""
    random = np.random.default_rng(seed)
    frame = table({"a": list(random.normal(size=7)), "b": list(random.normal(size=4).round()), "c": [0.0]})
    expected = run_groups(frame, Leaning(), scheme)
    shuffled = frame.sample(frac=1, random_state=seed)
    assert {g: (s.takes, s.order) for g, s in run_groups(shuffled, Leaning(), scheme).items()} == {
        g: (s.takes, s.order) for g, s in expected.items()
    }
    mirrored = Leaning(lean)

    class Mirror:
        def probability(self, left, right):
            return 1 - mirrored.probability(right, left)

    one, other = run_groups(frame, mirrored, scheme), run_groups(shuffled, Mirror(), scheme)
    assert {g: s.order for g, s in one.items()} == {g: s.order for g, s in other.items()}


def test_the_published_bracket_does_depend_on_order_and_side() -> None:
    """Why all this is done: the same one-sided judge, files in another order, another winner."""

    def bracket(names, beats):
        while len(names) > 1:
            names = [a if beats(a, b) else b for a, b in zip(names[::2], names[1::2], strict=False)] + (
                names[-1:] if len(names) % 2 else []
            )
        return names[0]

    theta = {"a": 0.0, "b": 0.2, "c": 0.4, "d": 0.5, "e": 0.6}

    def leaning(left, right):
        return theta[left] + 0.3 > theta[right]

    winners = {bracket(list(order), leaning) for order in itertools.permutations(theta)}
    assert len(winners) > 1
    frame = pd.DataFrame({"take": list(theta), "group": "g", "u": list(theta.values())})
    for scheme in ("elimination", "round_robin"):
        standing = run_groups(frame, Leaning(0.3), scheme)["g"]
        assert standing.takes[standing.order[0]] == "e"


def test_ties_go_to_the_smaller_hash_in_every_scheme() -> None:
    frame = table({"g": [1.0] * 6})
    for scheme in NAMES:
        standing = run_groups(frame.sample(frac=1, random_state=3), Leaning(), scheme)["g"]
        assert standing.takes[standing.order[0]] == "g0"
        assert standing.confidence() == pytest.approx([1 / 6] * 6)


def test_groups_are_the_column_and_nothing_else() -> None:
    """Names that share their first five tokens compete only where the column says so."""
    frame = pd.DataFrame(
        {"take": ["a_b_c_d_e_1", "a_b_c_d_e_2", "x"], "group": ["one", "two", "two"], "u": [0.0, 1.0, 2.0]}
    )
    standings = run_groups(frame, Leaning())
    assert {g: s.takes for g, s in standings.items()} == {"one": ("a_b_c_d_e_1",), "two": ("a_b_c_d_e_2", "x")}


def test_one_take_and_copies() -> None:
    frame = pd.concat([table({"g": [0.0]}), table({"g": [0.0]}), table({"h": [1.0, 0.0]})])
    standings = run_groups(frame, judge := Leaning())
    assert standings["g"].takes == ("g0",)
    assert (standings["g"].comparisons, list(standings["g"].confidence())) == (0, [1.0])
    assert standings["h"].comparisons == 1
    assert len(judge.asked) == 2  # both ways


def test_the_judge_is_asked_once_a_round_for_all_groups() -> None:
    frame = table({f"{g:02d}": list(np.random.default_rng(g).normal(size=8)) for g in range(20)})
    run_groups(frame, judge := Leaning(), "elimination")
    assert judge.calls == 2 * 3
    assert len(judge.asked) == 2 * 20 * 7


def test_a_seed_shuffles_the_bracket_but_not_by_order_of_rows() -> None:
    frame = table({"g": [0.0] * 8})
    first = run_groups(frame, Leaning(), "elimination", seed=1)["g"]
    assert first.takes == tuple(f"g{i}" for i in range(8))
    again = run_groups(frame.sample(frac=1, random_state=9), Leaning(), "elimination", seed=1)["g"]
    assert again.order == first.order
    winners = {run_groups(frame, Leaning(), "elimination", seed=s)["g"].order[0] for s in range(9)}
    assert len(winners) > 2


@pytest.mark.parametrize(
    "answer", [lambda n: np.full(n, 1.5), lambda n: np.full(n, math.nan), lambda n: np.zeros(n + 1), lambda n: 0.5]
)
def test_a_judge_must_give_probabilities(answer) -> None:
    class Bad:
        def probability(self, left, right):
            return answer(len(left))

    with pytest.raises(ContractError, match="one probability in"):
        run_groups(table({"g": [0.0, 1.0]}), Bad())


def test_symmetric_by_hand() -> None:
    left, right = table({"g": [0.0]}), table({"g": [math.log(3)]})
    assert symmetric(Leaning(), left, right) == pytest.approx([0.25])
    f_ab, f_ba = 1 / (1 + 3 / math.e), 1 / (1 + 1 / (3 * math.e))
    assert symmetric(Leaning(1.0), left, right) == pytest.approx([(f_ab + 1 - f_ba) / 2])


def test_confidence_of_beliefs_is_luces_choice() -> None:
    """Utilities ln 1, ln 2, ln 5: a round robin of exact beliefs gives back ⅛, ¼, ⅝, up to its small ridge."""
    standing = run_groups(table({"g": [0.0, math.log(2), math.log(5)]}), Leaning(), "round_robin")["g"]
    assert standing.confidence() == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.02)
    assert standing.confidence(2).sum() == pytest.approx(2)
    assert standing.beats(2, 1) == pytest.approx(5 / 7, abs=0.02)


def test_confidence_is_right_where_the_judge_is_calibrated_on_pairs_with_the_chosen_take() -> None:
    """Choices drawn with e^u: the slope that (chosen, other) pairs give makes the confidence of groups right too."""
    random, frames, chosen = np.random.default_rng(3), {}, {}
    for g in range(500):
        u = random.normal(0, 1, 6)
        frames[f"{g:03d}"], chosen[f"{g:03d}"] = list(2.5 * u), f"{g:03d}{int(np.argmax(u + random.gumbel(size=6)))}"
    frame = table(frames)
    margins = [
        rows.set_index("take").loc[chosen[g], "u"] - value
        for g, rows in frame.groupby("group")
        for take, value in zip(rows["take"], rows["u"], strict=True)
        if take != chosen[g]
    ]
    slopes = np.linspace(0.05, 2, 400)
    slope = slopes[int(np.argmin([np.logaddexp(0, -a * np.array(margins)).sum() for a in slopes]))]
    assert slope == pytest.approx(0.4, abs=0.08)
    played = run_groups(frame.assign(u=slope * frame["u"]), Leaning(), "round_robin")
    right = np.mean([s.takes[s.order[0]] == chosen[g] for g, s in played.items()])
    stated = np.mean([s.confidence()[s.order[0]] for s in played.values()])
    assert stated == pytest.approx(right, abs=0.05)


def test_missing_columns_of_the_frame_are_said() -> None:
    with pytest.raises(DataError, match="columns take and group; group is missing"):
        run_groups(pd.DataFrame({"take": ["a"]}), Leaning())
    with pytest.raises(DataError, match="some are empty"):
        run_groups(pd.DataFrame({"take": ["a", None], "group": "g"}), Leaning())


# --- columns -------------------------------------------------------------------------------------------------------


def test_column_judge_by_hand() -> None:
    """clip 1, 2, 3 has mean 2 and deviation sqrt(2/3); cost 5, 5, 8 has mean 6 and deviation sqrt 2."""
    frame = pd.DataFrame({"take": list("abc"), "group": "g", "clip": [1.0, 2, 3], "cost": [5.0, 5, 8]})
    judge = column_judge(frame, {"clip": 1.0, "cost": -0.5})
    z = 1 / math.sqrt(2 / 3)
    expected = {"a": -z + 0.5 / math.sqrt(2), "b": 0.5 / math.sqrt(2), "c": z - 1 / math.sqrt(2)}
    assert {take: judge.utility["g", take] for take in "abc"} == pytest.approx(expected)
    p = judge.probability(frame.iloc[[0]], frame.iloc[[2]])
    assert p == pytest.approx([1 / (1 + math.exp(expected["c"] - expected["a"]))])


def test_levels_of_groups_and_constant_columns_say_nothing() -> None:
    """A hard prompt lowers all its takes; within the group nothing changes, whatever the level or unit."""
    frame = table({"a": [0.1, 0.2, 0.4], "b": [1000.1, 1000.2, 1000.4]})
    utility = column_judge(frame, {"u": 1}).utility
    assert list(utility["a"]) == pytest.approx(list(utility["b"]), rel=1e-6)
    flat = column_judge(table({"a": [0.1 + 0.2, 0.3, 0.3]}), {"u": 1})  # equal but for a rounding
    assert list(flat.utility) == [0, 0, 0]


def test_a_missing_value_is_no_zero() -> None:
    """Similarity 0.3, 0.4, 0.5 and one that failed: it stands in the middle, neither worst nor best."""
    frame = pd.DataFrame({"take": list("abcd"), "group": "g", "similarity": [0.3, 0.4, 0.5, math.nan]})
    utility = column_judge(frame, {"similarity": 1}).utility["g"]
    assert utility["d"] == pytest.approx(utility["b"], abs=1e-9)
    assert utility["a"] < utility["d"] < utility["c"]
    standing = run_groups(frame, column_judge(frame, {"similarity": 1}), "round_robin")["g"]
    assert standing.takes[standing.order[0]] == "c"
    assert standing.takes[standing.order[-1]] == "a"


def test_column_judge_does_not_depend_on_order() -> None:
    frame = table({"a": list(np.random.default_rng(2).normal(size=9) * 1e-3 + 7)})
    assert column_judge(frame, {"u": 1}).utility.equals(column_judge(frame.iloc[::-1], {"u": 1}).utility)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({}, ConfigError, "finite weights"),
        ({"u": 0.0}, ConfigError, "finite weights"),
        ({"u": math.inf}, ConfigError, "finite weights"),
        ({"v": 1.0}, DataError, "'v' is none of u"),
        ({"take": 1.0}, DataError, "'take' is none of u"),
    ],
)
def test_column_judge_refuses(weights, error, message) -> None:
    with pytest.raises(error, match=message):
        column_judge(table({"g": [0.0, 1.0]}), weights)
    with pytest.raises(DataError, match="something else"):
        column_judge(table({"g": [0.0, math.inf]}), {"u": 1})


# --- votes ---------------------------------------------------------------------------------------------------------


def test_standings_from_labels() -> None:
    frame = table({"a": [0, 0, 0], "b": [0, 0]})
    labels = pd.DataFrame(
        [("a", "a1", "a0", "left")] * 5 + [("a", "a2", "a1", "left")] * 4 + [("a", "a0", "a2", "tie")],
        columns=["group", "left", "right", "choice"],
    )
    standings = standings_from_labels(labels, frame)
    assert [standings["a"].takes[i] for i in standings["a"].order] == ["a2", "a1", "a0"]
    assert standings["a"].comparisons == 10
    assert standings["a"].votes
    assert standings["b"].comparisons == 0
    assert standings["b"].confidence() == pytest.approx([0.5, 0.5], abs=0.01)
    mirrored = labels.assign(
        left=labels["right"], right=labels["left"], choice=labels["choice"].replace("left", "right")
    )
    assert standings_from_labels(mirrored, frame)["a"].strengths.theta == pytest.approx(standings["a"].strengths.theta)


def simulate(name: str, comparisons: int, repeats: int = 250) -> tuple[float, float, float]:
    """Mean regret, its standard error, and stated minus real share of the best found; 16 takes, deviation 2."""
    regret, stated, right = [], [], []
    for repeat in range(repeats):
        random = np.random.default_rng(repeat)
        theta, ledger = random.normal(0, 2, 16), Ledger(16, votes=True)

        def ask(pairs, theta=theta, random=random):
            return [float(random.random() < 1 / (1 + math.exp(theta[j] - theta[i]))) for i, j in pairs]

        winner = play(SCHEMES[name], ledger, ask, comparisons)[0]
        regret.append(theta.max() - theta[winner])
        if repeat % 5 == 0:
            from reelign.selection.bradley_terry import probability_best

            stated.append(probability_best(ledger.strengths(), 2000)[winner])
            right.append(winner == theta.argmax())
    return float(np.mean(regret)), float(np.std(regret) / repeats**0.5), float(np.mean(stated) - np.mean(right))


def test_halving_needs_half_of_a_round_robin() -> None:
    """Specs 4.2: with sixty noisy comparisons halving loses no more than a round robin with a hundred and twenty."""
    halving, robin = simulate("halving", 60), simulate("round_robin", 120)
    assert halving[0] < robin[0] - 2 * math.hypot(halving[1], robin[1]) / 2
    assert abs(halving[2]) < 0.2  # 50 repeats: three standard errors


def test_columnjudge_is_a_judge() -> None:
    frame = table({"g": [0.0, 1.0]})
    assert isinstance(column_judge(frame, {"u": 1}), ColumnJudge)
    p = symmetric(column_judge(frame, {"u": 1}), frame.iloc[[0]], frame.iloc[[1]])
    assert p == pytest.approx([1 / (1 + math.exp(2))])
