r"""Tournaments: which pairs of takes to compare, round after round, and who wins in the end.

A scheme is a generator: it yields a list of pairs, its ``Ledger`` is told how they came out, it goes on, and it returns
the takes from best to worst. It never asks anybody itself: a judge, people at a page and a simulation drive it alike.

    elimination   single elimination; who does not fill the bracket passes the first round    n − 1 comparisons
    swiss         rounds of pairs of equals, then Bradley–Terry                               ⌈log₂ n⌉·⌊n/2⌋
    halving       successive halving: equal shares of the comparisons in each round among     n(n − 1)/4
                  those still in, Bradley–Terry over all so far, the better half stays
    round_robin   everybody meets everybody, then Bradley–Terry                               n(n − 1)/2

The right column is what a scheme takes where it is not told how many. Takes are numbers from 0 in an order that the
caller fixes; whatever is equal goes to the lower number.

Left out: double elimination, Elo (depends on the order of games).

Run: ``play(halving, Ledger(16), ask)`` with ``ask(pairs)`` giving the outcome of each for the first of the pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence

import numpy as np

from reelign.errors import DataError, UnknownNameError
from reelign.selection.bradley_terry import Array, Strengths, fit

Pairs = list[tuple[int, int]]
Scheme = Generator[Pairs, None, list[int]]
VOTE_RIDGE, BELIEF_RIDGE = 0.5, 0.01


class Ledger:
    """What came out of the comparisons of n takes so far.

    Args:
        n: takes.
        votes: whether an outcome is one draw of a noisy judge, a vote, which may be asked again, or what a judge
            believes, a probability, which would be the same the next time. Beliefs need less of a ridge: each says
            as much as many votes.
    """

    def __init__(self, n: int, votes: bool = False) -> None:
        if n < 1:
            raise DataError(f"a tournament has at least one take; got {n}")
        self.n, self.votes = n, votes
        self.wins: Array = np.zeros((n, n))
        self.comparisons = 0

    @property
    def met(self) -> Array:
        """How often each pair was compared, [n, n]."""
        return (self.wins + self.wins.T).round()  # p + (1 − p) may miss 1 by a rounding

    def record(self, pairs: Sequence[tuple[int, int]], outcomes: Iterable[float]) -> None:
        """Add the outcomes of pairs for the first of each: 1 won, 0 lost, ½ a tie, or a probability.

        Raises:
            DataError: an outcome is not between 0 and 1, or there are not as many as pairs.
        """
        outcomes = list(outcomes)
        if len(outcomes) != len(pairs):
            raise DataError(f"each of {len(pairs)} pairs has an outcome; got {len(outcomes)}")
        for (i, j), outcome in zip(pairs, outcomes, strict=True):
            if not 0 <= outcome <= 1:
                raise DataError(f"the outcome of a comparison lies between 0 and 1; got {outcome}")
            self.wins[i, j] += outcome
            self.wins[j, i] += 1 - outcome
        self.comparisons += len(pairs)

    def strengths(self) -> Strengths:
        """The Bradley–Terry fit of everything so far."""
        return fit(self.wins, ridge=VOTE_RIDGE if self.votes else BELIEF_RIDGE)

    def order(self, among: Sequence[int] | None = None) -> list[int]:
        """Takes from strongest to weakest; equal ones by number."""
        theta = self.strengths().theta.round(9)  # equal in all but rounding is equal
        return sorted(range(self.n) if among is None else among, key=lambda i: (-theta[i], i))


def play(
    scheme: Callable[[Ledger, int | None], Scheme],
    ledger: Ledger,
    ask: Callable[[Pairs], Iterable[float]],
    comparisons: int | None = None,
) -> list[int]:
    """Play a scheme to its end; the takes from best to worst."""
    rounds = scheme(ledger, comparisons)
    while True:
        try:
            pairs = next(rounds)
        except StopIteration as end:
            return list(end.value)
        ledger.record(pairs, ask(pairs))


def elimination(ledger: Ledger, comparisons: int | None = None) -> Scheme:
    """Single elimination over a bracket in order of number; a match is asked comparisons/(n − 1) times.

    Byes are all in the first round, so nobody has two: in the published form the last take can pass several rounds.
    Those who lose in the same round are ordered by their strengths.
    """
    n = ledger.n
    allowed = _at_least(n - 1, comparisons)
    repeats = max(1, allowed // max(1, n - 1)) if ledger.votes else 1
    byes = (1 << (n - 1).bit_length()) - n
    alive, out = list(range(n)), []
    while len(alive) > 1:
        through, playing = alive[:byes], alive[byes:]
        pairs = list(zip(playing[::2], playing[1::2], strict=True))
        before = ledger.wins.copy()
        yield [pair for pair in pairs for _ in range(repeats)]
        scored = ledger.wins - before
        won = [i if scored[i, j] >= scored[j, i] else j for i, j in pairs]
        out.append([i for i in playing if i not in won])
        alive, byes = through + won, 0
    order = ledger.order()
    return alive + [i for losers in reversed(out) for i in sorted(losers, key=order.index)]


def round_robin(ledger: Ledger, comparisons: int | None = None) -> Scheme:
    """Every pair, comparisons/(n(n − 1)/2) times, then Bradley–Terry."""
    pairs = [(i, j) for i in range(ledger.n) for j in range(i + 1, ledger.n)]
    allowed = _at_least(len(pairs), comparisons)
    yield pairs * (allowed // max(1, len(pairs)) if ledger.votes else 1)
    return ledger.order()


def swiss(ledger: Ledger, comparisons: int | None = None) -> Scheme:
    """Rounds of pairs close in strength that have met least, then Bradley–Terry; with an odd n one sits out in turn."""
    n, each = ledger.n, max(1, ledger.n // 2)
    rounds = (n - 1).bit_length() if comparisons is None else _at_least(n - 1, comparisons) // each
    games = np.zeros(n, dtype=int)
    for _ in range(rounds if n > 1 else 0):
        waiting = ledger.order()
        if n % 2:
            waiting.remove(max(reversed(waiting), key=lambda i: games[i]))
        pairs: Pairs = []
        while waiting:
            first = waiting.pop(0)
            met = ledger.met[first]
            second = min(waiting, key=lambda j: met[j])  # the closest in strength of those met least
            waiting.remove(second)
            if ledger.votes or not met[second]:
                pairs.append((first, second))
        games[[i for pair in pairs for i in pair]] += 1
        yield pairs
    return ledger.order()


def halving(ledger: Ledger, comparisons: int | None = None) -> Scheme:
    """Successive halving (Karnin, Koren and Somekh 2013) with Bradley–Terry over all comparisons so far.

    The last round is between two, and everybody plays in every round they are in. Since a belief is not asked
    twice, the first round then gets what later ones could not use.
    """
    n = ledger.n
    least = sum(-(-size // 2) for size in _rounds(n))
    budget = max(least, n * (n - 1) // 4) if comparisons is None else _at_least(least, comparisons)
    alive, start, sizes = list(range(n)), ledger.comparisons, _rounds(n)
    for number, size in enumerate(sizes):
        left = budget - (ledger.comparisons - start)
        share = max(left // (len(sizes) - number), -(-size // 2))
        if not ledger.votes:  # later rounds have no more than the pairs of the next, each once
            share = max(share, left - math.comb(-(-size // 2), 2))
        yield _balanced(ledger, alive, share)
        alive = ledger.order(alive)[: -(-size // 2)]
    order = ledger.order()
    return alive + [i for i in order if i not in alive]


SCHEMES: dict[str, Callable[[Ledger, int | None], Scheme]] = {
    "elimination": elimination,
    "swiss": swiss,
    "halving": halving,
    "round_robin": round_robin,
}


def named(scheme: str) -> Callable[[Ledger, int | None], Scheme]:
    """The scheme of this name.

    Raises:
        UnknownNameError: there is none.
    """
    if scheme not in SCHEMES:
        raise UnknownNameError("scheme", scheme, SCHEMES)
    return SCHEMES[scheme]


def _at_least(least: int, comparisons: int | None) -> int:
    if comparisons is not None and comparisons < least:
        raise DataError(f"this scheme needs at least {least} comparisons of these takes; got {comparisons}: allow more")
    return least if comparisons is None else comparisons


def _rounds(n: int) -> list[int]:
    """How many are in each round of halving, from n down to 2."""
    sizes = []
    while n > 1:
        sizes.append(n)
        n = -(-n // 2)
    return sizes


def _balanced(ledger: Ledger, among: Sequence[int], count: int) -> Pairs:
    """``count`` pairs, those that met least first, and of these in the order of a circle's matchings.

    Each matching pairs everybody once, and two that follow each other join all into one path, so that strengths can be
    compared across pairs as soon as possible.
    """
    circle, table = _circle(among), ledger.met
    met = np.array([table[pair] for pair in circle])
    pairs: Pairs = []
    while len(pairs) < count and len(circle) and (ledger.votes or not met.min()):
        least = np.flatnonzero(met == met.min())[: count - len(pairs)]
        pairs += [circle[index] for index in least]
        met[least] += 1
    return pairs


def _circle(among: Sequence[int]) -> Pairs:
    """Every pair once, as m − 1 matchings of m one after the other (the circle method; a ghost makes m even)."""
    seats: list[int | None] = [*among, *([None] if len(among) % 2 else [])]
    pairs: Pairs = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        facing = zip(seats[:half], reversed(seats[half:]), strict=True)
        pairs += [(i, j) for i, j in facing if i is not None and j is not None]
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return pairs
