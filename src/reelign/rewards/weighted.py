r"""Several rewards as one: a weighted sum of loss forms.

    objective = − Σ_i w_i·ℓ_i(r_i),     ℓ(r) = −r,  |r − target|,  or −log r

The three forms are those of VADER (Prabhudesai et al. 2024, section 4.1 and its code): maximise (HPS, PickScore),
distance to a target (|aesthetic − 10|), cross-entropy of a probability (video action). Higher is better.

Left out: Pareto methods, and normalising each reward by its running spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from reelign.contracts import Reward, RewardCard, VideoBatch
from reelign.errors import ConfigError, ContractError, NonFiniteError
from reelign.rewards.card import ReadsSomePrompts
from reelign.rewards.parking import score_and_leave

LossForm = Literal["maximise", "distance", "cross_entropy"]
FPS_SLACK = 1.5  # ratio of frame rates up to which scores stay comparable
PROBABILITY_SLACK = 1e-5  # round-off of a probability


def loss_form(score: Tensor, loss: LossForm, target: float | None = None) -> Tensor:
    r"""Turn a score into something to minimise: −r, |r − target| or −log r; same shape.

    Raises:
        ContractError: cross-entropy of something outside (0, 1].
    """
    if loss == "maximise":
        return -score
    if loss == "distance":
        if target is None:
            raise ConfigError("the loss form 'distance' needs a target; got none")
        return (score - target).abs()
    low, high = float(score.detach().min()), float(score.detach().max())
    if not (low > 0 and high <= 1 + PROBABILITY_SLACK):
        raise ContractError(
            f"the loss form 'cross_entropy' needs probabilities in (0, 1]; got [{low:.4g}, {high:.4g}]: use 'maximise'"
        )
    return -score.log()


@dataclass(frozen=True)
class Term:
    """One reward's part of the sum.

    Args:
        name: how logs call it; each name occurs once.
        reward: any reward.
        weight: w, finite and not 0.
        loss: ``maximise`` the score, bring its ``distance`` to a target to 0, or ``cross_entropy`` of a probability.
        target: of ``distance``, in units of the score; None for the others.
        normalise: divide by the running deviation of the scores while training.
        keep_within: makes the term a constraint: the score stays within this much of the base's. It is then no part of
            the trained reward; see ``rewards/balance.py``.
        multiplier_rate: ρ, how fast a constraint's multiplier moves.
    """

    name: str
    reward: Reward
    weight: float = 1.0
    loss: LossForm = "maximise"
    target: float | None = None
    normalise: bool = False
    keep_within: float | None = None
    multiplier_rate: float = 0.5

    def __post_init__(self) -> None:
        if self.loss not in get_args(LossForm):
            raise ConfigError(
                f"the loss form of reward {self.name!r} is one of {get_args(LossForm)}; got {self.loss!r}"
            )
        if not math.isfinite(self.weight) or self.weight == 0:
            raise ConfigError(f"the weight of reward {self.name!r} is finite and not 0; got {self.weight}")
        if (self.target is not None) != (self.loss == "distance"):
            raise ConfigError(
                f"a target goes with the loss form 'distance' and with no other; reward {self.name!r} has the form "
                f"{self.loss!r} and the target {self.target}"
            )

        if self.keep_within is not None and (self.keep_within <= 0 or self.loss != "maximise" or self.normalise):
            raise ConfigError(
                f"a constraint has keep_within above 0, loss 'maximise' and no normalise; reward {self.name!r} "
                f"has {self.keep_within}, {self.loss!r} and {self.normalise}"
            )

    def contribution(self, score: Tensor) -> Tensor:
        """−w·ℓ(score): what this term adds to the objective; same shape."""
        return -self.weight * loss_form(score, self.loss, self.target)

    def contribution_range(self) -> tuple[float, float]:
        """Least and largest contribution over the range of the reward's card."""
        low, high = self.reward.card.range
        if self.loss == "maximise":
            ends = [low, high]
        elif self.loss == "cross_entropy":
            ends = [math.log(low) if low > 0 else -math.inf, math.log(high) if high > 0 else -math.inf]
        else:
            target = self.target or 0.0
            ends = [-abs(low - target), -abs(high - target)] + ([0.0] if low <= target <= high else [])
        values = [self.weight * end for end in ends]
        return min(values), max(values)


class WeightedReward:
    """A reward made of rewards.

    Args:
        terms: at least one, names distinct.
        park: score one reward after the other, and leave nothing of it on the device; see ``rewards/parking.py``.
    """

    def __init__(self, terms: Sequence[Term], park: bool = False) -> None:
        names = [term.name for term in terms]
        if not terms or len(set(names)) < len(names):
            raise ConfigError(f"a weighted reward has at least one term and each name once; got {names}")
        self.terms = tuple(terms)
        self.park = park
        if all(term.keep_within is not None for term in self.terms):
            raise ConfigError("at least one reward is no constraint: leave out keep_within in the one to raise")
        self.card = _joint_card(self.terms)

    def __call__(self, batch: VideoBatch) -> Tensor:
        """The objective [B]."""
        return self.objective(self.scores(batch))

    def scores(self, batch: VideoBatch) -> dict[str, Tensor]:
        """Each reward's own scores, before loss form and weight: name to [B].

        Raises:
            ContractError: a reward returned a wrong shape or lost a gradient that its card promises.
            NonFiniteError: a score is NaN or infinite.
        """
        return {term.name: self.score(term, batch) for term in self.terms}

    def score(self, term: Term, batch: VideoBatch) -> Tensor:
        """One term's reward's own scores [B]; raises as ``scores`` does."""
        return _checked(term, batch, score_and_leave if self.park else _score)

    def objective(self, scores: dict[str, Tensor]) -> Tensor:
        """−Σ w·ℓ(score), [B], from what ``scores`` gave; constraints are no part of it."""
        raised = [term for term in self.terms if term.keep_within is None]
        return torch.stack([term.contribution(scores[term.name]) for term in raised]).sum(0)

    def golden_prompts(self, captions: Sequence[str]) -> tuple[str, ...]:
        """Prompts for the golden clip that the choosiest term understands; see ``reelign.rewards.card``."""
        for term in self.terms:
            if isinstance(term.reward, ReadsSomePrompts):
                captions = term.reward.golden_prompts(captions)
        return tuple(captions)


def _score(reward: Reward, batch: VideoBatch) -> Tensor:
    return reward(batch)


def _checked(term: Term, batch: VideoBatch, ask: Callable[[Reward, VideoBatch], Tensor]) -> Tensor:
    rate = term.reward.card.fps
    if rate is not None and not 1 / FPS_SLACK <= batch.fps / rate <= FPS_SLACK:
        raise ContractError(
            f"reward {term.name!r} was trained at {rate:g} frames a second; these clips have {batch.fps:g}: choose "
            "frames at its rate, or correct the clips' fps"
        )
    score = ask(term.reward, batch)
    if score.shape != (len(batch),):
        raise ContractError(
            f"a reward returns one score per clip; reward {term.name!r} returned shape {list(score.shape)} "
            f"for {len(batch)} clips"
        )
    bad = int((~torch.isfinite(score.detach())).sum())
    if bad:
        raise NonFiniteError(f"reward {term.name!r} is not a number for {bad} of {len(batch)} clips: {score.tolist()}")
    wanted = batch.video.requires_grad and torch.is_grad_enabled() and term.reward.card.differentiable
    if wanted and not score.requires_grad:
        raise ContractError(
            f"the card of reward {term.name!r} says it is differentiable, but its score is detached from the pixels: "
            "remove the detach, no_grad or .item() in it, or correct the card"
        )
    return score


def _joint_card(terms: tuple[Term, ...]) -> RewardCard:
    """The strictest promise that all terms keep together."""
    cards = [term.reward.card for term in terms]
    ranges = [term.contribution_range() for term in terms if term.keep_within is None]
    lengths = {card.frames for card in cards} - {"any"}
    return RewardCard(
        name="+".join(term.name for term in terms),
        summary="Weighted sum: " + ", ".join(f"{t.weight:g}×{t.name} ({t.loss})" for t in terms) + ".",
        range=(sum(low for low, _ in ranges), sum(high for _, high in ranges)),
        frames=lengths.pop() if len(lengths) == 1 else "any",
        differentiable=all(card.differentiable for card in cards),
        needs_prompt=any(card.needs_prompt for card in cards),
        licence="; ".join(dict.fromkeys(card.licence for card in cards)),
        source="; ".join(dict.fromkeys(card.source for card in cards)),
    )
