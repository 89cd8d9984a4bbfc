"""What to ask an annotator next: which pair, in which order, on which side; hidden repeats and attention checks.

Questions are stored before they are shown, so that sides, repeats and checks are known to the database and not to the
page, a reload shows the same question again, and no answer can be made up for a pair that nobody was shown.

Choices are drawn from (seed, annotator, task, number of the question): the same review asks the same again.

Left out: work shared out between annotators by hand.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from random import Random

import pandas as pd

from reelign.review.database import LabelStore, Question
from reelign.review.library import Shelf, spoiled_name
from reelign.review.settings import ReviewSettings

REPEAT_AFTER = 5  # questions in between, so that the first answer is not simply remembered
LARGE_GROUP = 64  # beyond this, ``informative`` falls back to ``balanced``: its fit grows with the cube of the takes

Pair = tuple[str, frozenset[str]]  # group and the two takes, whichever side


@dataclass(frozen=True)
class Progress:
    """How far one annotator is: questions answered, and how many there are to answer in all."""

    answered: int
    goal: int


def next_questions(
    store: LabelStore, shelf: Shelf, settings: ReviewSettings, annotator: str, task: str, n: int
) -> list[Question]:
    """Up to n open questions of this annotator, oldest first; new ones are drawn and stored as needed.

    Returns:
        Fewer than n, or none, where the annotator has reached the goal.
    """
    opened = _showable(store.open_questions(annotator, task), shelf)
    for _ in range(n - len(opened)):
        question = _draw(store, shelf, settings, annotator, task)
        if question is None:
            break
        opened += store.ask([question])
    return opened[:n]


def progress(store: LabelStore, shelf: Shelf, settings: ReviewSettings, annotator: str, task: str) -> Progress:
    """How many label questions the annotator has answered, of how many."""
    return Progress(store.answered(annotator, task), total_goal(shelf, settings, task))


def total_goal(shelf: Shelf, settings: ReviewSettings, task: str) -> int:
    """Questions of one annotator that reach the goal."""
    if task == "rate":
        return len(shelf.rows)
    return sum(_group_goal(len(takes), settings.goal) for takes in shelf.compared.values())


def _group_goal(takes: int, goal: int) -> int:
    every = takes * (takes - 1) // 2
    return min(every, math.ceil(takes * goal / 2)) if goal else every


def _showable(questions: list[Question], shelf: Shelf) -> list[Question]:
    return [q for q in questions if shelf.holds(q.left) and (q.task == "rate" or shelf.holds(q.right))]


def _draw(store: LabelStore, shelf: Shelf, settings: ReviewSettings, annotator: str, task: str) -> Question | None:
    asked = store.asked(annotator, task)
    random = Random(f"{settings.seed}:{annotator}:{task}:{len(asked)}")
    answers = store.answers()
    answers = answers[answers["task"] == task]
    chance = random.random()
    if task == "pair" and chance < settings.checks:
        return _check(asked, shelf, annotator, random)
    fresh = _fresh_take if task == "rate" else _fresh_pair
    question = fresh(asked, answers, shelf, settings, annotator, random)
    if question is not None and settings.checks <= chance < settings.checks + settings.repeats:
        return _repeat(asked, answers, annotator, random) or question
    return question


def _check(asked: list[Question], shelf: Shelf, annotator: str, random: Random) -> Question:
    """A take against a spoiled copy of itself; takes not checked with before come first."""
    used = {side for q in asked if q.purpose == "check" for side in (q.left, q.right)}
    takes = sorted(set(shelf.rows) - used) or sorted(shelf.rows)
    take = random.choice(takes)
    sides = [take, spoiled_name(take)]
    random.shuffle(sides)
    expected = "left" if sides[0] == take else "right"
    group = shelf.fact(take, "group")
    return Question(annotator, "pair", group, sides[0], sides[1], purpose="check", expected=expected)


def _repeat(asked: list[Question], answers: pd.DataFrame, annotator: str, random: Random) -> Question | None:
    """A question answered at least five questions ago and not repeated yet, sides swapped."""
    repeated = {q.repeats for q in asked}
    answered = set(answers.loc[answers["annotator"] == annotator, "question"])
    able = [q for q in asked[:-REPEAT_AFTER] if q.purpose == "label" and q.id in answered and q.id not in repeated]
    if not able:
        return None
    first = random.choice(able)
    left, right = (first.right, first.left) if first.task == "pair" else (first.left, "")
    return Question(annotator, first.task, first.group, left, right, purpose="repeat", repeats=first.id)


def _fresh_take(
    asked: list[Question],
    answers: pd.DataFrame,
    shelf: Shelf,
    settings: ReviewSettings,
    annotator: str,
    random: Random,
) -> Question | None:
    """The least rated take that this annotator was not asked about."""
    seen = {q.left for q in asked}
    left = [take for take in sorted(shelf.rows) if take not in seen]
    if not left:
        return None
    rated = Counter(answers["left"])
    take = min(left, key=lambda one: (rated[one], random.random()))
    return Question(annotator, "rate", shelf.fact(take, "group"), take)


def _fresh_pair(
    asked: list[Question],
    answers: pd.DataFrame,
    shelf: Shelf,
    settings: ReviewSettings,
    annotator: str,
    random: Random,
) -> Question | None:
    """A pair that this annotator was not asked about, or None where the goal of every group is reached."""
    mine = [(q.group, frozenset((q.left, q.right))) for q in asked if q.purpose == "label"]
    done = Counter(group for group, _pair in mine)
    groups = {
        group: takes for group, takes in shelf.compared.items() if done[group] < _group_goal(len(takes), settings.goal)
    }
    if not groups:
        return None
    labels = answers[answers["purpose"] == "label"]
    pair = _shared(labels, set(mine), groups) if random.random() < settings.overlap else None
    if pair is None:
        group = min(groups, key=lambda one: (done[one] / len(groups[one]), random.random()))
        seen = {takes for where, takes in mine if where == group}
        within = labels[labels["group"] == group]
        informative = settings.pairing == "informative" and len(groups[group]) <= LARGE_GROUP
        choose = _informative if informative else _balanced
        pair = (group, choose(groups[group], within, seen, random))
    left, right = random.sample(sorted(pair[1]), 2)
    return Question(annotator, "pair", pair[0], left, right)


def _shared(labels: pd.DataFrame, mine: set[Pair], groups: dict[str, tuple[str, ...]]) -> Pair | None:
    """The pair that the fewest others answered, at least one, and this annotator was not asked about."""
    people: dict[Pair, set[str]] = {}
    for group, left, right, who in labels[["group", "left", "right", "annotator"]].itertuples(index=False):
        people.setdefault((group, frozenset((left, right))), set()).add(who)
    able = [p for p in people if p not in mine and p[0] in groups and p[1] <= set(groups[p[0]])]
    return min(able, key=lambda p: (len(people[p]), p[0], sorted(p[1])), default=None)


def _balanced(
    takes: tuple[str, ...], labels: pd.DataFrame, seen: set[frozenset[str]], random: Random
) -> frozenset[str]:
    """The least compared take that has an unseen partner, with its least compared unseen partner."""
    one_axis = labels.drop_duplicates("submission")
    met = Counter([*one_axis["left"], *one_axis["right"]])
    for pair in seen:  # also those shown and not answered yet
        met.update(pair)
    ordered = sorted(takes, key=lambda take: (met[take], random.random()))
    return next(
        frozenset((first, second))
        for place, first in enumerate(ordered)
        for second in ordered[place + 1 :]
        if frozenset((first, second)) not in seen
    )


def _informative(
    takes: tuple[str, ...], labels: pd.DataFrame, seen: set[frozenset[str]], random: Random
) -> frozenset[str]:
    """The most informative unseen pair, from everybody's answers on the first axis."""
    from reelign.selection.tournament import informative_pairs

    first_axis = labels.drop_duplicates("submission")
    pairs = informative_pairs(first_axis[["left", "right", "choice"]], sorted(takes), len(seen) + 1)
    return next(pair for pair in map(frozenset, pairs) if pair not in seen)
