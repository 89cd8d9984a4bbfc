"""What is asked next, and what the answers say, against counts made by hand; and the command line."""

from __future__ import annotations

import itertools
import math
import re
import socket
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import typer
from review_takes import make_takes
from typer.testing import CliRunner

from reelign.cli.review import review
from reelign.errors import ConfigError
from reelign.metrics.statistics import wilson
from reelign.review.database import LabelStore, Question
from reelign.review.library import Shelf, read_shelf
from reelign.review.queue import next_questions, progress
from reelign.review.results import agreement, people, win_rates
from reelign.review.settings import ReviewSettings

STRENGTH = {f"{group}{index}": index for group in "xyz" for index in range(6)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LabelStore]:
    opened = LabelStore.open(tmp_path / "labels.sqlite")
    yield opened
    opened.close()


def shelf_of(sizes: dict[str, int], generators: tuple[str, ...] = ("",)) -> Shelf:
    """Takes x0, x1, … of group x, and so on; generators in turn."""
    rows = [
        (f"{group}{index}", f"{group}{index}.mp4", f"prompt {group}", group, generators[index % len(generators)], index)
        for group, size in sizes.items()
        for index in range(size)
    ]
    wide = pd.DataFrame(rows, columns=["take", "file", "prompt", "group", "generator", "seed"])
    return read_shelf(wide, pd.DataFrame())


def choose(question: Question) -> str:
    """The take with the higher number."""
    return "left" if STRENGTH[question.left] > STRENGTH[question.right] else "right"


def work(
    store: LabelStore, shelf: Shelf, settings: ReviewSettings, who: str, most: int = 10_000, task: str = "pair"
) -> list[Question]:
    """Answer what is asked until nothing is, or ``most``; the questions answered."""
    done: list[Question] = []
    while len(done) < most and (asked := next_questions(store, shelf, settings, who, task, 1)):
        choice = "3" if task == "rate" else asked[0].expected or choose(asked[0])
        store.answer(str(uuid.uuid4()), asked[0].id, who, {"overall": choice}, 1.0, task)
        done += asked
    return done


def pair(question: Question) -> frozenset[str]:
    return frozenset((question.left, question.right))


@pytest.mark.parametrize("pairing", ["balanced", "informative"])
def test_every_pair_is_asked_once(store, pairing):
    """4·3/2 + 3·2/2 pairs, within groups only; z has one take and is left out."""
    shelf = shelf_of({"x": 4, "y": 3, "z": 1})
    settings = ReviewSettings(pairing=pairing, goal=0, repeats=0)
    done = work(store, shelf, settings, "ann")
    expected = [
        frozenset(p) for g, n in (("x", 4), ("y", 3)) for p in itertools.combinations([f"{g}{i}" for i in range(n)], 2)
    ]
    assert Counter(map(pair, done)) == Counter(expected)
    assert vars(progress(store, shelf, settings, "ann", "pair")) == {"answered": 9, "goal": 9}


def test_the_goal_is_reached_and_balanced(store):
    """Six takes, two comparisons each: six pairs, and nobody is compared more than three times."""
    shelf, settings = shelf_of({"x": 6, "y": 6}), ReviewSettings(pairing="balanced", goal=2, repeats=0, overlap=0)
    done = work(store, shelf, settings, "ann")
    assert len(done) == 12
    counts = Counter(take for q in done for take in pair(q))
    assert set(counts) == set(shelf.rows)
    assert set(counts.values()) == {2}
    groups = [q.group for q in done]
    assert all(abs(groups[: i + 1].count("x") - groups[: i + 1].count("y")) <= 1 for i in range(12))


def test_informative_pairs_turn_to_the_best(store):
    """After some answers the three best takes are asked about more than the three worst."""
    shelf, settings = shelf_of({"x": 6}), ReviewSettings(goal=0, repeats=0)
    done = work(store, shelf, settings, "ann", most=10)
    late = Counter(STRENGTH[take] for q in done[4:] for take in pair(q))
    assert late[5] + late[4] + late[3] > late[0] + late[1] + late[2]


def test_sides_are_drawn_and_drawn_the_same_again(store, tmp_path):
    shelf, settings = shelf_of({"x": 6, "y": 6, "z": 6}), ReviewSettings(goal=0, repeats=0)
    done = work(store, shelf, settings, "ann")
    first_left = sum(q.left < q.right for q in done)
    assert 0.25 < first_left / len(done) < 0.75
    again = LabelStore.open(tmp_path / "again.sqlite")
    assert [(q.left, q.right) for q in work(again, shelf, settings, "ann")] == [(q.left, q.right) for q in done]
    again.close()


def test_an_unanswered_question_comes_again(store):
    shelf, settings = shelf_of({"x": 4}), ReviewSettings(repeats=0)
    first = next_questions(store, shelf, settings, "ann", "pair", 3)
    assert len({pair(q) for q in first}) == 3
    assert next_questions(store, shelf, settings, "ann", "pair", 3) == first
    assert next_questions(store, shelf, settings, "bob", "pair", 1)[0].id not in {q.id for q in first}


def test_hidden_repeats_come_later_with_sides_swapped(store):
    shelf, settings = shelf_of({"x": 6, "y": 6}), ReviewSettings(goal=0, repeats=0.4)
    done = work(store, shelf, settings, "ann")
    labels, repeats = ([q for q in done if q.purpose == purpose] for purpose in ("label", "repeat"))
    assert len(labels) == 30  # repeats take no label's place
    assert 5 <= len(repeats) <= 25
    by_id = {q.id: q for q in labels}
    for question in repeats:
        first = by_id[question.repeats]
        assert (question.left, question.right) == (first.right, first.left)
        assert question.number - first.number > 5
    assert len({q.repeats for q in repeats}) == len(repeats)
    assert len(store.labels()) == 30
    (person,) = people(store.answers())
    assert (person.pairs, person.steady, person.repeated) == (30, len(repeats), len(repeats))


def test_attention_checks_show_a_take_and_its_spoiled_copy(store):
    shelf, settings = shelf_of({"x": 6, "y": 6}), ReviewSettings(goal=0, repeats=0, checks=0.3)
    done = work(store, shelf, settings, "ann")
    checks = [q for q in done if q.purpose == "check"]
    assert 4 <= len(checks) <= 25
    for question in checks:
        sides = {"left": question.left, "right": question.right}
        other = sides["right" if question.expected == "left" else "left"]
        assert shelf.spoiled[other] == sides[question.expected]
    assert {q.expected for q in checks} == {"left", "right"}
    (person,) = people(store.answers())
    assert (person.pairs, person.passed, person.checked) == (30, len(checks), len(checks))


@pytest.mark.parametrize(("overlap", "least", "most"), [(1.0, 12, 12), (0.0, 0, 9)])
def test_overlap_asks_what_others_answered(store, overlap, least, most):
    shelf = shelf_of({"x": 6, "y": 6})
    settings = ReviewSettings(pairing="balanced", goal=2, repeats=0, overlap=overlap)
    first, second = ({pair(q) for q in work(store, shelf, settings, who)} for who in ("ann", "bob"))
    assert least <= len(first & second) <= most


def test_every_take_is_rated_once_by_each(store):
    shelf, settings = shelf_of({"x": 4, "z": 1}), ReviewSettings(repeats=0)
    done = work(store, shelf, settings, "ann", task="rate")
    assert sorted(q.left for q in done) == ["x0", "x1", "x2", "x3", "z0"]
    assert all(q.right == "" for q in done)
    assert store.labels().empty
    assert vars(progress(store, shelf, settings, "ann", "rate")) == {"answered": 5, "goal": 5}


def test_a_large_group_is_asked_about_quickly(store):
    import time

    shelf, settings = shelf_of({"x": 3000}), ReviewSettings(repeats=0)
    start = time.process_time()
    questions = next_questions(store, shelf, settings, "ann", "pair", 20)
    assert len({take for q in questions for take in pair(q)}) == 40
    assert time.process_time() - start < 10


# ---- what the answers say


def say(store: LabelStore, who: str, left: str, right: str, choice: str, task: str = "pair") -> None:
    question = store.ask([Question(who, task, left[0], left, right)])[0]
    store.answer(str(uuid.uuid4()), question.id, who, {"overall": choice}, 2.0, task)


def test_agreement_does_not_depend_on_sides(store):
    """Items x0-x1, x0-x2, x1-x2: ann and bob choose the same take in two of three, on swapped sides.

    Answers by first or second of the pair: ann 1 1 1, bob 1 1 2: o_12 = 1, n_1 = 5, n_2 = 1, α = 1 − 5·2/10 = 0.
    """
    for who, choices in (("ann", ("left", "left", "left")), ("bob", ("right", "right", "left"))):
        for (one, other), choice in zip((("x0", "x1"), ("x0", "x2"), ("x1", "x2")), choices, strict=True):
            left, right = (one, other) if who == "ann" else (other, one)
            say(store, who, left, right, choice)
    (axis,) = agreement(store.answers())
    assert (axis.task, axis.axis, axis.level, axis.alpha.items, axis.alpha.answers) == (
        "pair",
        "overall",
        "nominal",
        3,
        6,
    )
    assert axis.alpha.value == pytest.approx(0)
    assert (axis.fleiss_items, axis.fleiss_people) == (3, 2)
    # P = 2/3, P_e = (5/6)² + (1/6)² = 26/36: κ = (24 − 26)/10 = −0.2
    assert axis.fleiss == pytest.approx(-0.2)
    ((first, second, kappa, items),) = axis.cohen
    assert (first, second, items) == ("ann", "bob", 3)
    assert kappa == pytest.approx(0)  # ann never varies: P_e = P = 2/3


def test_ratings_are_ordinal_and_missing_answers_are_allowed(store):
    for who, ratings in {"ann": "1123", "bob": "1124", "cid": "11"}.items():
        for index, rating in enumerate(ratings):
            say(store, who, f"x{index}", "", rating, "rate")
    (axis,) = agreement(store.answers())
    assert (axis.task, axis.level, axis.alpha.items, axis.alpha.answers) == ("rate", "ordinal", 4, 10)
    assert 0.8 < axis.alpha.value < 1
    assert (axis.fleiss_people, axis.fleiss_items) == (3, 2)
    assert math.isnan(axis.fleiss)  # those two items were given the same by everybody
    assert len(axis.cohen) == 3


def test_one_person_has_nobody_to_agree_with(store):
    say(store, "ann", "x0", "x1", "tie")
    (axis,) = agreement(store.answers())
    assert (axis.alpha, axis.fleiss, axis.cohen) == (None, None, ())
    assert agreement(store.answers().iloc[:0]) == []
    assert people(store.answers().iloc[:0]) == []


def test_win_rates_by_hand(store):
    """alpha has even numbers, beta odd ones: three wins of beta, one of alpha; a match among alpha does not count."""
    shelf = shelf_of({"x": 6}, ("alpha", "beta"))
    for left, right, choice in (
        ("x0", "x1", "right"), ("x1", "x2", "left"), ("x3", "x4", "left"), ("x4", "x5", "left"), ("x0", "x3", "tie"),
        ("x0", "x5", "both_bad"), ("x0", "x2", "left"),
    ):  # fmt: skip
        say(store, "ann", left, right, choice)
    beta, alpha = win_rates(store.answers(), shelf)
    assert [vars(rate) for rate in (beta, alpha)] == [
        {"generator": "beta", "axis": "overall", "wins": 3, "losses": 1, "ties": 1, "both_bad": 1},
        {"generator": "alpha", "axis": "overall", "wins": 1, "losses": 3, "ties": 1, "both_bad": 1},
    ]
    assert (beta.rate, alpha.rate, beta.ci95) == (0.75, 0.25, wilson(3, 4))


def test_people_by_hand(store):
    say(store, "ann", "x0", "x1", "left")
    say(store, "ann", "x1", "x2", "left")
    say(store, "ann", "x2", "x3", "right")
    say(store, "ann", "x3", "x4", "tie")
    say(store, "ann", "x0", "", "5", "rate")
    (person,) = people(store.answers())
    assert (person.pairs, person.ratings, person.seconds) == (4, 1, 2.0)
    assert person.left_share == pytest.approx(2 / 3)


# ---- the command line


@pytest.fixture(scope="module")
def takes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_takes(tmp_path_factory.mktemp("review") / "takes", frames=8).path


def command(*arguments: object) -> str:
    """Run the command; its output, or its error raised."""
    app = typer.Typer()
    app.command()(review)
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False)
    return result.output


def test_export_from_the_command_line(takes, tmp_path):
    store = LabelStore.open(takes / "labels.sqlite")
    table = pd.read_parquet(takes / "takes.parquet")
    first, second = table["take"][:2]
    question = store.ask([Question("ann", "pair", "group 0", first, second)])[0]
    store.answer(str(uuid.uuid4()), question.id, "ann", {"overall": "left"})
    store.close()
    for name in ("labels.csv", "labels.parquet", "labels.jsonl"):
        assert "1 labels" in command(takes, "--export", tmp_path / "out" / name)
    assert pd.read_csv(tmp_path / "out" / "labels.csv")["left"].tolist() == [first]
    command(takes, "--export", tmp_path / "p.jsonl", "--kind", "preferences")
    assert pd.read_json(tmp_path / "p.jsonl", lines=True)["chosen"].tolist() == ["clips/0/0.mp4"]


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--token", "short"], "at least 16"),
        (["--axes", "a,a"], "--axes"),
        (["--axes", ""], "--axes"),
        (["--repeats", "2"], "--repeats"),
        (["--pairing", "random"], "--pairing"),
        (["--database", "oracle://x"], "SQLite and PostgreSQL"),
        (["--export", "labels.xlsx"], r"\.csv, \.parquet, \.jsonl"),
        (["--host", "no.such.host.invalid"], "choose another"),
    ],
)
def test_options_are_checked(takes, arguments, rule, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    from reelign.errors import ReelignError

    with pytest.raises(ReelignError, match=rule) as caught:
        command(takes, "--port", "0", *arguments)
    assert "\n" not in str(caught.value)


def test_a_port_in_use_is_one_line(takes):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="another --port"):
        command(takes, "--port", taken.getsockname()[1])


def test_beyond_loopback_a_token_is_printed(takes, monkeypatch):
    served = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: served.append(self.config.app))
    for host, token in (("127.0.0.1", False), ("::1", False), ("0.0.0.0", True)):
        try:
            said = command(takes, "--port", "0", "--host", host)
        except ConfigError:
            assert host == "::1"  # a machine without IPv6
            continue
        assert bool(re.search(r"sign-in#[\w-]{32}", said.replace("\n", ""))) == token
        assert (served[-1].session is not None) == token
