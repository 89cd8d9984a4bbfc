r"""From what a model says to what may be believed: calibration, ties, and when nobody needs to look.

- Slope: P' = σ(a·logit P), Platt scaling (Platt 1999) without its intercept, which a judge that treats both sides alike
  cannot have. a minimises the log loss plus ½·(log a)², a standard normal prior on log a, so that a few pairs which are
  all right do not make it infinite.
- Isotonic: the non-decreasing step function of logit P with least squares, through pairs in both orders (Zadrozny and
  Elkan 2002). Needs hundreds of pairs.
- Tie width: the ε for which "tie where |P − ½| < ε" has most right among left, right and tie (Deutsch et al. 2023,
  arXiv 2305.14324), on validation pairs; fitted on the test set, as reward boards do, it flatters.
- Conformal: the takes of a group that may be the best, so that the labelled best is among them with probability at
  least 1 − α over groups (Vovk et al. 2005; Angelopoulos and Bates 2021, eq. 1). Where one take is left, no review is
  needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["slope", "isotonic", "none"]
EDGE = 1e-4  # probabilities are kept this far from 0 and 1, so that logits are finite


@dataclass(frozen=True)
class Calibration:
    """P' = σ(slope·logit P), or the steps of isotonic regression where ``knots`` are given.

    Args:
        slope: a.
        knots: logits, ascending, of the isotonic function.
        heights: its values there, between which it is linear.
    """

    slope: float = 1.0
    knots: tuple[float, ...] = ()
    heights: tuple[float, ...] = ()

    def __call__(self, chances: np.ndarray) -> np.ndarray:
        """Calibrated probabilities; the same shape, and P'(1 − p) = 1 − P'(p)."""
        logits = logit(chances)
        if not self.knots:
            scaled: np.ndarray = 1 / (1 + np.exp(-self.slope * logits))
            return scaled
        forward = np.interp(logits, self.knots, self.heights)
        backward = np.interp(-logits, self.knots, self.heights)
        symmetric: np.ndarray = 0.5 + (forward - backward) / 2
        return symmetric


def logit(chances: np.ndarray) -> np.ndarray:
    """log(p/(1 − p)), with p kept ``EDGE`` away from 0 and 1."""
    kept = np.clip(chances, EDGE, 1 - EDGE)
    logits: np.ndarray = np.log(kept) - np.log1p(-kept)
    return logits


def calibrate(chances: np.ndarray, left_wins: np.ndarray, kind: Kind = "slope") -> Calibration:
    """Fit to validation pairs with a preference; the identity where there is none.

    Args:
        chances: [n] symmetrised probabilities.
        left_wins: [n] bool.
        kind: ``slope``, ``isotonic`` or ``none``.
    """
    if kind == "none" or not len(chances):
        return Calibration()
    of_winner = logit(np.where(left_wins, chances, 1 - chances))
    if kind == "slope":
        return Calibration(slope=_fit_slope(of_winner))
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    model.fit(np.concatenate([of_winner, -of_winner]), np.repeat([1.0, 0.0], len(of_winner)))
    return Calibration(knots=tuple(model.X_thresholds_.tolist()), heights=tuple(model.y_thresholds_.tolist()))


def _fit_slope(of_winner: np.ndarray) -> float:
    """The a that minimises Σ log(1 + exp(−a·l)) + ½·(log a)² over logits l of the winners, to 1 % of a."""
    log_slopes = np.linspace(-4, 4, 801)
    losses = [np.logaddexp(0, -math.exp(x) * of_winner).sum() + 0.5 * x**2 for x in log_slopes]
    return math.exp(log_slopes[int(np.argmin(losses))])


def tie_width(chances: np.ndarray, truth: np.ndarray) -> float:
    """ε with most of left, right and tie right; 0 where the truth has no tie, the smallest of equals.

    Args:
        chances: [n] probabilities that left wins.
        truth: [n] of ``left``, ``right``, ``tie``.
    """
    if not (truth == "tie").any():
        return 0.0
    distance = np.abs(chances - 0.5)
    order = np.unique(distance)
    candidates = np.concatenate([[0.0], (order[:-1] + order[1:]) / 2, [order[-1] + 1e-9]])
    right = [(verdict(chances, float(width)) == truth).mean() for width in candidates]
    return float(candidates[int(np.argmax(right))])


def verdict(chances: np.ndarray, width: float) -> np.ndarray:
    """``tie`` where |P − ½| < ε, else ``left`` or ``right``; exactly ½ at ε = 0 is a tie as well."""
    sides = np.where(chances > 0.5, "left", "right")
    return np.where((np.abs(chances - 0.5) < width) | (chances == 0.5), "tie", sides)


def doubt(wins: np.ndarray) -> np.ndarray:
    """Nonconformity of each take of a group, [n]: the largest probability with which another take beats it.

    Args:
        wins: [n,n], P(row beats column); the diagonal is ignored.
    """
    beaten = wins.T.copy()
    np.fill_diagonal(beaten, -np.inf)
    return beaten.max(axis=1) if len(wins) > 1 else np.zeros(len(wins))


def conformal_bound(doubts: np.ndarray, alpha: float) -> float:
    """The ⌈(n + 1)(1 − α)⌉-th smallest doubt of n labelled winners; infinite where n is too small to promise 1 − α."""
    rank = math.ceil(round((len(doubts) + 1) * (1 - alpha), 9))
    return float(np.sort(doubts)[rank - 1]) if rank <= len(doubts) else math.inf
