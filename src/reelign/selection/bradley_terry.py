r"""Bradley–Terry strengths from comparisons of pairs, ties included, and how sure one may be of the best.

    P(i ≻ j) = e^{θ_i}/(e^{θ_i} + k·e^{θ_j}) = σ(θ_i − θ_j − ln k)          (Bradley and Terry 1952; k = 1: no ties)
    P(i ~ j) = (k² − 1)·P(i ≻ j)·P(j ≻ i)                                   (Rao and Kupper 1967, k > 1)

A ridge, θ ~ N(0, 1/λ), makes the maximum unique and finite: for takes that never met, for one that always won, and for
graphs in several pieces. It also fixes the free constant: Σθ = 0. Newton's method finds it; the inverse Hessian there
is the covariance of the Gaussian (Laplace) approximation, from which come standard errors and P(i is best).

Left out: Plackett–Luce for rankings of more than two, strengths that change with time, annotators of unequal care.

Run: ``fit(wins).theta`` for wins[i, j] = how often i was preferred to j.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelign.errors import DataError, NonFiniteError

Array = NDArray[np.floating[Any]]
RIDGE = 0.5  # θ has a prior deviation of 1.4: most pairs of takes are told apart between 55 and 95 times in a hundred
DRAWS = 20_000  # of the posterior; the Monte Carlo error of a probability is at most 0.0036
STEPS, TOLERANCE = 100, 1e-12  # of the objective, the tolerance
LARGEST_TIE_FACTOR = 1e4


@dataclass(frozen=True)
class Strengths:
    """What a fit gives.

    Args:
        theta: [n] in logits, summing to 0; the higher, the better.
        covariance: [n, n] of the Gaussian approximation to the posterior.
        log_likelihood: of the comparisons at ``theta``, the ridge left out.
    """

    theta: Array
    covariance: Array
    log_likelihood: float

    @property
    def standard_error(self) -> Array:
        """Posterior deviation of every strength, [n]."""
        return np.sqrt(np.diag(self.covariance))

    def beats(self, i: int, j: int) -> float:
        """Posterior P(θ_i > θ_j) = Φ((θ_i − θ_j)/sqrt(Var(θ_i − θ_j)))."""
        c = self.covariance
        deviation = math.sqrt(c[i, i] + c[j, j] - 2 * c[i, j])
        return 0.5 * math.erfc(-float(self.theta[i] - self.theta[j]) / (deviation * math.sqrt(2)))


def fit(wins: Array, ties: Array | None = None, tie_factor: float | None = None, ridge: float = RIDGE) -> Strengths:
    r"""The strengths that maximise Σ_ij W_ij·ln P(i ≻ j) + Σ_{i<j} T_ij·ln P(i ~ j) − (λ/2)·Σθ².

    Args:
        wins: W [n, n] ≥ 0, how often i was preferred to j; shares count, so that 0.7 and 0.3 may be one soft judgement.
        ties: T [n, n] ≥ 0, symmetric, how often a pair tied.
        tie_factor: k > 1 of Rao and Kupper; None counts a tie as half a win for each.
        ridge: λ > 0.

    Raises:
        DataError: shapes, signs, a diagonal that is not 0, or options as they cannot be.
        NonFiniteError: Newton's method did not converge, which a concave function should not let happen.
    """
    wins, ties = _check(wins, ties, ridge)
    if tie_factor is not None and not 1 < tie_factor <= LARGEST_TIE_FACTOR:
        raise DataError(f"a tie factor lies above 1 and up to {LARGEST_TIE_FACTOR:g}, for example 5; got {tie_factor}")
    # A tie says of both that they were not beaten by more than the factor, so it enters as a shifted win of each.
    shifted, shift = (wins + ties / 2, 0.0) if tie_factor is None else (wins + ties, math.log(tie_factor))
    constant = 0.0 if tie_factor is None else ties.sum() / 2 * math.log(tie_factor**2 - 1)
    theta: Array = np.zeros(len(wins))
    value = _objective(theta, shifted, shift, ridge)
    for _ in range(STEPS):
        gradient, information = _derivatives(theta, shifted, shift, ridge)
        step = np.linalg.solve(information, gradient)
        if float(gradient @ step) < TOLERANCE * (1 + abs(value)):
            theta = theta + step  # so near, the last step lands on the maximum to rounding
            covariance = np.linalg.inv(information)
            likelihood = _objective(theta, shifted, shift, 0.0) + constant
            return Strengths(theta, (covariance + covariance.T) / 2, float(likelihood))
        theta, value = _climb(theta, step, value, (shifted, shift, ridge))
    raise NonFiniteError(f"Bradley–Terry did not converge in {STEPS} Newton steps: are the counts huge? raise ridge")


def fit_tie_factor(wins: Array, ties: Array, ridge: float = RIDGE) -> float:
    """The k of Rao and Kupper under which these comparisons are likeliest, to four digits.

    The likelihood is concave in (θ, ln k), so its profile over ln k has one maximum, and thirds of the range find it.

    Raises:
        DataError: nothing ties, where k would be 1, or nothing but ties, where it would be infinite.
    """
    wins, ties = _check(wins, ties, ridge)
    if not ties.any() or not wins.any():
        raise DataError("a tie factor is fitted to pairs of which some tie and some don't; leave tie_factor at None")

    def profile(log_factor: float) -> float:
        strengths = fit(wins, ties, math.exp(log_factor), ridge)
        return strengths.log_likelihood - ridge / 2 * float(strengths.theta @ strengths.theta)

    low, high = 1e-4, math.log(LARGEST_TIE_FACTOR)
    while high - low > 1e-5:
        first, second = low + (high - low) / 3, high - (high - low) / 3
        low, high = (first, high) if profile(first) < profile(second) else (low, second)
    return math.exp((low + high) / 2)


def posterior_draws(strengths: Strengths, draws: int = DRAWS, seed: int = 0) -> Array:
    """Strengths that the comparisons allow: draws [draws, n] from N(θ, covariance), mirrored in pairs around θ."""
    root = np.linalg.cholesky(strengths.covariance)
    noise = np.random.default_rng(seed).standard_normal((-(-draws // 2), len(root))) @ root.T
    found: Array = strengths.theta + np.concatenate([noise, -noise])[:draws]
    return found


def luce_draws(theta: Array, draws: int = DRAWS, seed: int = 0) -> Array:
    """θ plus Gumbel noise, [draws, n]: its maximum is i with Luce's probability e^{θ_i}/Σ e^{θ_j} (Yellott 1977).

    Where pairs are decided by σ(θ_i − θ_j), these are the orders in which one decision over all takes could come out.
    """
    noise: Array = np.random.default_rng(seed).gumbel(size=(draws, len(theta)))
    return theta + noise


def probability_top(draws: Array, k: int = 1) -> Array:
    """Share of the draws [draws, n] in which each is among the best k, [n]; sums to k.

    Raises:
        DataError: k is not between 1 and n.
    """
    count, n = draws.shape
    if not 1 <= k <= n:
        raise DataError(f"the best k of {n} takes has 1 ≤ k ≤ {n}; got {k}")
    best = np.argpartition(-draws, k - 1, axis=1)[:, :k]
    shares: Array = np.bincount(best.ravel(), minlength=n) / count
    return shares


def probability_best(strengths: Strengths, draws: int = DRAWS, seed: int = 0) -> Array:
    """Posterior P(i is the best), [n], by Monte Carlo; sums to 1."""
    return probability_top(posterior_draws(strengths, draws, seed))


def _check(wins: Array, ties: Array | None, ridge: float) -> tuple[Array, Array]:
    wins = np.asarray(wins, dtype=np.float64)
    ties = np.zeros_like(wins) if ties is None else np.asarray(ties, dtype=np.float64)
    if wins.ndim != 2 or wins.shape[0] != wins.shape[1] or not len(wins) or ties.shape != wins.shape:
        raise DataError(f"wins and ties are square tables of the same takes; got shapes {wins.shape} and {ties.shape}")
    for name, table in (("wins", wins), ("ties", ties)):
        if not (np.isfinite(table).all() and (table >= 0).all() and not np.diag(table).any()):
            raise DataError(f"{name} are finite, not negative, and 0 on the diagonal: a take never meets itself")
    if not np.array_equal(ties, ties.T):
        raise DataError("ties[i, j] and ties[j, i] count the same comparisons and are equal: add them up on both sides")
    if not (math.isfinite(ridge) and ridge > 0):
        raise DataError(f"a ridge is above 0, or takes that never met have no strength; got {ridge}")
    return wins, ties


def _objective(theta: Array, shifted: Array, shift: float, ridge: float) -> float:
    margin = theta[:, None] - theta[None, :] - shift
    return float(-(shifted * np.logaddexp(0, -margin)).sum() - ridge / 2 * (theta @ theta))


def _derivatives(theta: Array, shifted: Array, shift: float, ridge: float) -> tuple[Array, Array]:
    """Gradient [n] of the objective, and its negative Hessian [n, n]."""
    margin = theta[:, None] - theta[None, :] - shift
    lost = np.exp(-np.logaddexp(0, margin))  # 1 − σ(margin), exact far out too
    pull = shifted * lost
    weight = pull * np.exp(-np.logaddexp(0, -margin))
    weight = weight + weight.T
    information = np.diag(weight.sum(1) + ridge) - weight
    return pull.sum(1) - pull.sum(0) - ridge * theta, information


def _climb(theta: Array, step: Array, value: float, terms: tuple[Array, float, float]) -> tuple[Array, float]:
    """The Newton step, halved until it climbs; a full one can overshoot far from the maximum."""
    for halving in range(30):
        moved = theta + step / 2**halving
        reached = _objective(moved, *terms)
        if reached >= value:
            return moved, reached
    return theta, value
