r"""Reward gradients through the sampler: VADER (Prabhudesai et al. 2024, algorithm 1).

    maximise  J(θ) = E_{c, x_T} [ R(decode(x_0), c) ],      x_0 = the sampling chain of p_θ from noise x_T

Every step runs the whole chain, but the network's output is a constant except in K chosen steps (K = 1, the last, in
all of the paper's experiments), so memory does not grow with the number of steps. Guidance is differentiated through
both branches, which run as one batch. Only the rewarded frames are decoded.

    loss = −(1/B) Σ_b Σ_k w_k · (−ℓ_k(R_k(x_b))) + λ · mean ‖e_θ − e_ref‖²

with ℓ_k the loss form of reward k (see ``rewards/weighted.py``) and e the guided predictions of the chosen steps,
with and without the adapter.

Beyond the paper: the divergence term, micro-batches, an average of weights, and steps other than a tail. Left out:
offloading saved tensors to the host (not needed when the prefix keeps none).

Run: ``reelign train recipes/demo.yaml``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from reelign.contracts import Condition, Generator, Request, Schedule, VideoBatch
from reelign.distributed import gather, place
from reelign.errors import ConfigError
from reelign.objectives import prediction_divergence, require_finite
from reelign.optimisation import Optimisation, OptimiserName
from reelign.rewards.balance import Balance, conflicts
from reelign.rewards.frames import FramePolicy
from reelign.rewards.weighted import WeightedReward
from reelign.sampling import ChainOptions, Draw, SeededNoise, chain, guided, update_seeds


class Config(BaseModel):
    """Settings of reward gradients.

    Args:
        steps: S, denoising steps of a chain.
        guidance_scale: w of classifier-free guidance; 1 is none.
        eta: fresh noise of a step; 0 is deterministic, 1 ancestral.
        k: K, how many steps carry gradient.
        mode: which ones. ``last``: the last K. ``random``: K different ones, drawn anew for each update.
            ``uniform``: K evenly spread ones that include the last. ``specific``: those of ``gradient_steps``.
        gradient_steps: indices, 0 is the noisiest; for ``specific`` only.
        detach_input: stop the gradient at the network's input (DRTune), which steadies K above 1.
        frames: what is decoded and rewarded: the name of a choice (``all``, ``first``, ``random``, ``alternate``,
            ``segments``), a list of indices, or a whole ``FramePolicy``.
        optimiser: ``adamw``, or ``adamw8bit``, whose moments take a quarter of the memory.
        lr, weight_decay, betas: of AdamW.
        max_grad_norm: gradients are scaled down to this joint norm.
        micro_batch: prompts per forward and backward pass; gradients of a batch add up to the same update. 0 is all.
        average: decay of the moving average of weights that is evaluated and exported; 0 is off.
        kl_weight: λ; 0 is off.
        conflict_every: log the cosines between the rewards' gradients every so many updates; 0 is never.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(25, ge=1)
    guidance_scale: float = Field(3.0, ge=1)
    eta: float = Field(0.0, ge=0, le=1)
    k: int = Field(1, ge=1)
    mode: Literal["last", "random", "uniform", "specific"] = "last"
    gradient_steps: tuple[int, ...] = ()
    detach_input: bool = False
    frames: FramePolicy = FramePolicy()
    lr: float = Field(2e-4, gt=0)
    optimiser: OptimiserName = "adamw"
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = Field(1.0, gt=0)
    micro_batch: int = Field(0, ge=0)
    average: float = Field(0.0, ge=0, lt=1)
    kl_weight: float = Field(0.0, ge=0)
    conflict_every: int = Field(0, ge=0)

    @field_validator("frames", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"choose": value} if isinstance(value, (str, list, tuple)) else value

    @model_validator(mode="after")
    def _steps_exist(self) -> Config:
        if (self.mode == "specific") != bool(self.gradient_steps):
            raise ConfigError("gradient_steps goes with mode 'specific' and with no other")
        if self.mode == "specific" and not all(0 <= i < self.steps for i in self.gradient_steps):
            raise ConfigError(f"gradient_steps run from 0 to {self.steps - 1}; got {list(self.gradient_steps)}")
        if self.mode != "specific" and self.k > self.steps:
            raise ConfigError(f"k must be at most steps ({self.steps}); got {self.k}")
        return self


def gradient_steps(config: Config, random: torch.Generator) -> frozenset[int]:
    """The chain indices whose network call is differentiated in this update."""
    if config.mode == "specific":
        return frozenset(config.gradient_steps)
    if config.mode == "random":
        return frozenset(torch.randperm(config.steps, generator=random)[: config.k].tolist())
    if config.mode == "uniform":
        return frozenset(config.steps - 1 - round(j * config.steps / config.k) for j in range(config.k))
    return frozenset(range(config.steps - config.k, config.steps))


def passes(total: int, mine: slice, size: int) -> Iterator[tuple[int, slice]]:
    """The micro-batches of ``size`` that the rows ``mine`` of an update of ``total`` are in: first row, and our part.

    They are those of the whole update, so that what a micro-batch draws is the same in any number of processes.
    """
    for first in range(0, total, size):
        rows = slice(max(first, mine.start), min(first + size, mine.stop))
        if rows.start < rows.stop:
            yield first, rows


@dataclass(frozen=True)
class _Pass:
    """One forward and backward pass: rows, their noise and seeds, the frames and the steps with gradient."""

    request: Request
    noise: Tensor
    seeds: list[int]
    frames: list[int]
    live: frozenset[int]

    def draw(self) -> SeededNoise:
        """Fresh noise of the rows, from its beginning."""
        return SeededNoise(self.seeds, self.noise.device)


Start = Callable[[Request, Tensor, Draw], tuple[Tensor, Schedule]]
Seen = list[tuple[dict[str, Tensor], dict[str, Tensor]]]  # scores and the base's, of each pass


class RewardGradient:
    """VADER as an ``Algorithm``: one ``step`` is one update of the generator.

    Args:
        generator: what is trained.
        reward: what is maximised.
        config: settings.
        seed: of noise, frames and steps.
        start: where chains begin, from a request, noise [B,…] and a source of more: latents and the schedule from
            there on. None begins with pure noise and runs the whole chain.
    """

    def __init__(
        self,
        generator: Generator,
        reward: WeightedReward,
        config: Config,
        seed: int = 0,
        start: Start | None = None,
    ) -> None:
        self.generator = generator
        self.reward = reward
        self.balance = Balance(reward)
        self.config = config
        self.updates = 0
        self.seed = seed
        self.start = start or self._from_noise
        self.random = torch.Generator().manual_seed(seed)
        self.optimisation = Optimisation(
            generator.trainable(),
            config.lr,
            weight_decay=config.weight_decay,
            betas=config.betas,
            optimiser=config.optimiser,
            max_grad_norm=config.max_grad_norm,
            average=config.average,
        )
        self.parameters = self.optimisation.parameters
        self._check_frames()

    def _check_frames(self) -> None:
        frames = self.config.frames.indices(self.generator.frames(), torch.Generator())
        for term in self.reward.terms:
            needed = term.reward.card.frames
            if needed != "any" and needed > 1 and len(frames) == 1:
                raise ConfigError(
                    f"reward {term.name!r} looks at {needed} frames; frames={self.config.frames.choose!r} gives it 1"
                )

    def step(self, request: Request) -> dict[str, float]:
        """One update from these prompts; logs the objective, each reward, the divergence and the gradient norm."""
        total, mine = place(len(request))
        live = gradient_steps(self.config, self.random)
        noise = torch.randn(total, *self.generator.latent_shape(), generator=self.random)
        seeds = update_seeds(self.seed, self.updates, 2 * total)  # of each row, then of a micro-batch that begins there
        self.optimisation.clear()
        logged, seen = dict[str, float](), Seen()
        for first, rows in passes(total, mine, self.config.micro_batch or total):
            random = torch.Generator().manual_seed(seeds[total + first])
            frames = self.config.frames.indices(self.generator.frames(), random)
            part = request[rows.start - mine.start : rows.stop - mine.start]
            share = len(part) / len(request)
            values = self._accumulate(_Pass(part, noise[rows], seeds[rows], frames, live), share, seen)
            for name, value in values.items():
                logged[name] = logged.get(name, 0.0) + share * value
        logged["gradient_norm"] = self.optimisation.step()
        self.updates += 1
        return logged | self.balance.update(*self._everyones(seen))

    def _everyones(self, seen: Seen) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The scores of all rows of the update, and the base's, where running scales or constraints need them."""
        scores, base = (_joined([pair[i] for pair in seen]) for i in (0, 1))
        if not self.balance.scales and not self.balance.constraints:
            return scores, base
        parts = gather((_on_cpu(scores), _on_cpu(base)))
        return _joined([part[0] for part in parts]), _joined([part[1] for part in parts])

    def _begin_balance(self, scores: dict[str, Tensor]) -> None:
        """Running scales begin with the first micro-batch of the whole update."""
        if self.balance.new:
            whole = _joined(gather(_on_cpu(scores)))
            size = self.config.micro_batch or len(next(iter(whole.values())))
            self.balance.begin({name: score[:size] for name, score in whole.items()})

    def _accumulate(self, one: _Pass, share: float, seen: Seen) -> dict[str, float]:
        """Forward and backward pass of one micro-batch; its gradient counts by its share of the batch."""
        base = self._base_scores(one)
        batch, divergence = self.rollout(one.request, one.noise, one.live, one.frames, one.draw())
        scores = self.reward.scores(batch)
        self._begin_balance(scores)
        loss = -self.balance.objective(scores).mean() + self.config.kl_weight * divergence
        require_finite("the loss", loss)
        logged = {"loss": loss.item(), "reward": self.reward.objective(scores).mean().item()}
        logged.update({f"reward/{name}": score.mean().item() for name, score in scores.items()})
        if self.config.kl_weight:
            logged["divergence"] = divergence.item()
        if self.config.conflict_every and self.updates % self.config.conflict_every == 0:
            parts = {term.name: term.contribution(scores[term.name]).sum() for term in self.reward.terms}
            logged.update(conflicts(parts, list(self.parameters.values())))
        (share * loss).backward()  # type: ignore[no-untyped-call]
        seen.append(({name: score.detach() for name, score in scores.items()}, base))
        return logged

    @torch.no_grad()
    def _base_scores(self, one: _Pass) -> dict[str, Tensor]:
        """The constraints' scores of the same prompts, noise and frames with the adapter off; empty without any."""
        if not self.balance.constraints:
            return {}
        with self.generator.reference():
            batch, _ = self.rollout(one.request, one.noise, frozenset(), one.frames, one.draw())
        return {term.name: self.reward.score(term, batch) for term in self.balance.constraints}

    def rollout(
        self, request: Request, noise: Tensor, live: frozenset[int], frames: list[int], draw: Draw
    ) -> tuple[VideoBatch, Tensor]:
        """Clips with gradient from the steps ``live``, and the mean divergence from the reference in those steps."""
        condition = self.generator.encode(request)
        x, schedule = self.start(request, noise.to(next(iter(condition.positive.values())).device), draw)
        schedule = schedule.to(x)
        divergences: list[Tensor] = []

        def observe(i: int, latent: Tensor, condition: Condition, output: Tensor) -> None:
            if self.config.kl_weight:
                divergences.append(self._divergence(schedule.t[i], latent, output, condition))

        options = ChainOptions(self.config.guidance_scale, self.config.eta, live, self.config.detach_input, observe)
        x = chain(self.generator, x, condition, schedule, options, draw)
        require_finite("the sampled latent", x)
        video = self.generator.decode(x, frames)
        policy = self.config.frames
        weights = policy.weights(frames, self.generator.frames())
        divergence = torch.stack(divergences).mean() if divergences else x.new_zeros(())
        return VideoBatch(video, policy.fps(self.generator.fps), request, weights), divergence

    def _from_noise(self, request: Request, noise: Tensor, draw: Draw) -> tuple[Tensor, Schedule]:
        return noise, self.generator.path.schedule(self.config.steps)

    def _divergence(self, t: Tensor, latent: Tensor, output: Tensor, condition: Condition) -> Tensor:
        with torch.no_grad(), self.generator.reference():
            reference = guided(self.generator, latent.detach(), t, condition, self.config.guidance_scale)
        return prediction_divergence(output, reference)

    def lower_rate(self, factor: float) -> None:
        """Multiply the learning rate, for good."""
        self.optimisation.lower_rate(factor)

    def exported(self) -> AbstractContextManager[None]:
        """A context in which the generator holds the averaged weights, where there are any."""
        return self.optimisation.exported()

    def state(self) -> dict[str, Any]:
        """Weights, their average, optimiser and random state."""
        return {
            **self.optimisation.state(),
            "random": self.random.get_state(),
            "balance": self.balance.state(),
            "updates": self.updates,
            "seed": self.seed,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue, bit for bit, from what ``state`` gave."""
        self.optimisation.restore(state)
        self.random.set_state(state["random"])
        self.balance.restore(state["balance"])
        self.updates = int(state["updates"])
        self.seed = int(state.get("seed", self.seed))  # older checkpoints do not have it


def _on_cpu(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: score.detach().cpu() for name, score in scores.items()}


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
