r"""The models behind a judge: P(left beats right) from the scores of two takes.

- ``forest``: a random forest of 100 trees on the scores of both takes side by side, as AirScape publishes it
  (arXiv 2507.08885), but seeded.
- ``boosting``: gradient boosting (histograms, NaN read natively) on the differences of scores.
- ``bradley_terry``: logistic regression on the differences, P = σ(wᵀ(φ(a) − φ(b))), without intercept and with ridge λ:
  min_w Σ log(1 + exp(−wᵀ(φ(winner) − φ(loser)))) + λ/2·‖w‖²     (Bradley and Terry 1952; Springall 1973)

Every pair is learned in both orders, and every judgement is symmetrised, P = ½ + (f(a,b) − f(b,a))/2, so the side on
which a take is shown cannot matter. The published ranker asks f(a,b) only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from reelign.errors import DataError, UnknownNameError

Inputs = Literal["concatenated", "differences"]


@dataclass(frozen=True)
class Recipe:
    """One kind of model.

    Args:
        build: an unfitted classifier of scikit-learn, from the seed and the ridge.
        inputs: what it sees of a pair unless asked otherwise.
        reads_missing: whether it reads NaN itself.
    """

    build: Callable[[int, float], Any]
    inputs: Inputs
    reads_missing: bool = False


def _forest(seed: int, ridge: float) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(100, random_state=seed)


def _boosting(seed: int, ridge: float) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=100, learning_rate=0.05, max_leaf_nodes=8, early_stopping=False, random_state=seed
    )


def _bradley_terry(seed: int, ridge: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    # Each pair is there twice, once in either order, so the penalty is doubled as well: C = 1/(2λ).
    return LogisticRegression(C=1 / (2 * ridge), fit_intercept=False, tol=1e-8, max_iter=1000)


MODELS = {
    "forest": Recipe(_forest, "concatenated"),
    "boosting": Recipe(_boosting, "differences", reads_missing=True),
    "bradley_terry": Recipe(_bradley_terry, "differences"),
}


def recipe(kind: str) -> Recipe:
    """The recipe of a name.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if kind not in MODELS:
        raise UnknownNameError("judge model", kind, MODELS)
    return MODELS[kind]


def pair_inputs(left: np.ndarray, right: np.ndarray, inputs: Inputs) -> np.ndarray:
    """What a model sees of pairs with features [n,F]: both side by side [n,2F], or left − right [n,F]."""
    return np.hstack([left, right]) if inputs == "concatenated" else left - right


@dataclass(frozen=True)
class PairModel:
    """A fitted classifier of pairs.

    Args:
        estimator: of scikit-learn, with ``predict_proba`` and classes 0 and 1.
        inputs: what it sees of a pair.
        reads_missing: whether it reads NaN itself.
    """

    estimator: Any
    inputs: Inputs
    reads_missing: bool = False

    def one_sided(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """f(a,b), [n]: depends on the order for all models but ``bradley_terry``."""
        with _one_thread():
            chances: np.ndarray = self.estimator.predict_proba(pair_inputs(left, right, self.inputs))[:, 1]
        return chances

    def probability(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """½ + (f(a,b) − f(b,a))/2, [n], for features [n,F] of the two sides."""
        if not len(left):
            return np.zeros(0)
        both = self.one_sided(np.vstack([left, right]), np.vstack([right, left]))
        chances: np.ndarray = 0.5 + (both[: len(left)] - both[len(left) :]) / 2
        return chances


def fit_pairs(
    kind: str, left: np.ndarray, right: np.ndarray, left_wins: np.ndarray, *, inputs: Inputs, seed: int, ridge: float
) -> PairModel:
    """Learn from pairs in both orders.

    Args:
        kind: a name of ``MODELS``.
        left, right: features [n,F] of the two sides.
        left_wins: [n] bool.
        inputs: what the model sees of a pair.
        seed: of the model.
        ridge: λ > 0 of ``bradley_terry``, for features of deviation 1.

    Raises:
        DataError: there is no pair, or the ridge is not above 0.
    """
    if not len(left):
        raise DataError("a judge learns from pairs with a preference; there is none: label some, not only ties")
    if not ridge > 0:
        raise DataError(f"a ridge is above 0; got {ridge}")
    winner = np.where(left_wins[:, None], left, right)
    loser = np.where(left_wins[:, None], right, left)
    seen = np.vstack([pair_inputs(winner, loser, inputs), pair_inputs(loser, winner, inputs)])
    truth = np.repeat([1, 0], len(left))
    with _one_thread():
        fitted = recipe(kind).build(seed, ridge).fit(seen, truth)
    return PairModel(fitted, inputs, recipe(kind).reads_missing)


def _one_thread() -> AbstractContextManager[Any]:
    """Labels are few; on a busy machine, threads that wait for each other make boosting crawl."""
    limit: AbstractContextManager[Any] = _threads().limit(limits=1)
    return limit


@cache
def _threads() -> Any:
    import sklearn.ensemble  # noqa: F401  its OpenMP has to be loaded to be found
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()
