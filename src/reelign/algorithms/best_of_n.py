r"""Fine-tuning on winners: best-of-N filtering and reward-weighted regression, on ε, v, flow and x_0 networks.

    minimise  E_{z, c, ε, i} [ w(z)·‖ o_θ(α_i·z + σ_i·ε, t_i, c) − target ‖² ],     z = encode(clip)

Without weights this is ``flow_matching``, the loss that the model was pretrained with, on clips that a selector kept:
rejection sampling, also called RAFT (Dong et al. 2023, algorithm 1). With w = softmax(R/β) it is reward-weighted
regression (Peters and Schaal 2007; Lee et al. 2023, eq. 4). Weights are obeyed by drawing clips in proportion to them,
which has the same expected gradient; so all that is its own are the weights.

Left out: what ``flow_matching`` leaves out.

Run: ``reelign train best_of_n --set clips.source=winners/``, or whole rounds with ``reelign selfplay``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reelign.algorithms import flow_matching
from reelign.errors import DataError

BestOfN = flow_matching.FlowMatching


class Config(flow_matching.Config):
    """Settings of fine-tuning on winners: those of ``flow_matching``, under a name of their own."""


def reward_weights(scores: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    r"""w_i = N·exp(R_i/β)/Σ_j exp(R_j/β), mean 1 (Peters and Schaal 2007, eq. 8, with a softmax over the N takes).

    β → 0 keeps the best alone, β → ∞ all alike.

    Args:
        scores: [N] finite rewards of takes of one prompt.
        beta: temperature, above 0.
    """
    if not beta > 0 or not np.isfinite(scores).all() or not len(scores):
        raise DataError(f"weights need beta above 0 and finite scores; got beta {beta}, scores {scores.tolist()}")
    raised = np.exp((scores - scores.max()) / beta)
    weights: NDArray[np.float64] = len(scores) * raised / raised.sum()
    return weights
