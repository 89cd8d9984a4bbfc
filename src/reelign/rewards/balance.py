r"""How several rewards pull together while training: weights, running scales, and constraints.

    objective = Σ_k −w_k·ℓ_k(r_k)/s_k + Σ_j λ_j·w_j·r_j
    λ_j ← max(0, λ_j + ρ·(r̄_j(base) − r̄_j − x_j)/x_j)

s_k is 1, or the running deviation of r_k where a term asks for it. A constraint j says: keep r_j within x_j of the
base. Its multiplier λ starts at 0, rises while the constraint is broken and falls back when it holds (dual ascent on
the Lagrangian; Boyd and Vandenberghe 2004, section 5.6, and Stooke et al. 2020 for learned policies). r_j(base) comes
from the same prompts and noise with the adapter off, so the comparison is exact, at the price of one more chain
without gradient.

Left out: PID control of the multipliers; gradients projected off one another (``conflicts`` only shows a fight).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reelign.rewards.weighted import Term, WeightedReward

LARGEST = 100.0  # of a multiplier; a constraint that needs more cannot be met


@dataclass
class RunningDeviation:
    """Mean and deviation of everything seen so far (Welford 1962).

    Args:
        count, mean, squares: how many numbers, their mean, and the sum of their squared deviations from it.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def see(self, values: Tensor) -> None:
        """Take in numbers of any shape."""
        for value in values.flatten().double().tolist():
            self.count += 1
            before = value - self.mean
            self.mean += before / self.count
            self.squares += before * (value - self.mean)

    def deviation(self) -> float:
        """The standard deviation; 1 until there are two different numbers."""
        return (self.squares / (self.count - 1)) ** 0.5 if self.count > 1 and self.squares > 0 else 1.0


@dataclass
class Balance:
    """The moving parts of a weighted reward; they go into checkpoints.

    Args:
        reward: the terms.
    """

    reward: WeightedReward
    scales: dict[str, RunningDeviation] = field(default_factory=dict)
    multipliers: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scales = {term.name: RunningDeviation() for term in self.reward.terms if term.normalise}
        self.multipliers = {term.name: 0.0 for term in self.constraints}

    @property
    def constraints(self) -> list[Term]:
        """The terms that are constraints."""
        return [term for term in self.reward.terms if term.keep_within is not None]

    @property
    def new(self) -> bool:
        """Whether there is a running scale that has seen nothing yet."""
        return any(not scale.count for scale in self.scales.values())

    def begin(self, scores: Mapping[str, Tensor]) -> None:
        """Give running scales their first scores, where they have none."""
        for name, scale in self.scales.items():
            if not scale.count:
                scale.see(scores[name].detach())

    def objective(self, scores: Mapping[str, Tensor]) -> Tensor:
        """What is maximised now, [B], from scores by name."""
        self.begin(scores)
        return torch.stack([self.contribution(term, scores[term.name]) for term in self.reward.terms]).sum(0)

    def contribution(self, term: Term, score: Tensor) -> Tensor:
        """One term's part of the objective, [B]."""
        if term.keep_within is not None:
            return self.multipliers[term.name] * term.contribution(score)
        scale = self.scales[term.name].deviation() if term.normalise else 1.0
        return term.contribution(score) / scale

    def update(self, scores: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, float]:
        """After an update of the generator: move scales and multipliers; returns what to log.

        Args:
            scores: of the batch, by name.
            base: of the same prompts and noise with the adapter off; the constraints' only.
        """
        logged: dict[str, float] = {}
        for name, scale in self.scales.items():
            scale.see(scores[name].detach())
            logged[f"scale/{name}"] = scale.deviation()
        for term in self.constraints:
            assert term.keep_within is not None
            excess = float((base[term.name] - scores[term.name]).mean()) - term.keep_within
            raised = self.multipliers[term.name] + term.multiplier_rate * excess / term.keep_within
            self.multipliers[term.name] = min(max(0.0, raised), LARGEST)
            logged[f"multiplier/{term.name}"] = self.multipliers[term.name]
            logged[f"below_base/{term.name}"] = excess + term.keep_within
        return logged

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs to go on."""
        scales = {name: (scale.count, scale.mean, scale.squares) for name, scale in self.scales.items()}
        return {"scales": scales, "multipliers": dict(self.multipliers)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        self.scales = {name: RunningDeviation(*numbers) for name, numbers in state["scales"].items()}
        self.multipliers = dict(state["multipliers"])


def conflicts(parts: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> dict[str, float]:
    """Cosine of every two terms' gradients: −1 is a fight, 0 no relation, 1 the same direction.

    Args:
        parts: each term's contribution, summed to a scalar, by name; their graphs are kept.
        parameters: what is trained.
    """
    gradients = {}
    for name, part in parts.items():
        found = torch.autograd.grad(part, parameters, retain_graph=True, allow_unused=True)
        gradients[name] = torch.cat([g.flatten() for g in found if g is not None])
    names = list(gradients)
    return {
        f"conflict/{a}|{b}": float(torch.cosine_similarity(gradients[a], gradients[b], dim=0))
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }
