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

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from reelign.contracts import Condition, Generator, Request, Schedule, VideoBatch
from reelign.errors import ConfigError
from reelign.objectives import prediction_divergence, require_finite
from reelign.optimisation import Optimisation, OptimiserName
from reelign.rewards.balance import Balance, conflicts
from reelign.rewards.frames import FramePolicy
from reelign.rewards.weighted import WeightedReward
from reelign.sampling import ChainOptions, chain, guided


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


Start = Callable[[Request, Tensor, torch.Generator], tuple[Tensor, Schedule]]


class RewardGradient:
    """VADER as an ``Algorithm``: one ``step`` is one update of the generator.

    Args:
        generator: what is trained.
        reward: what is maximised.
        config: settings.
        seed: of noise, frames and steps.
        start: where chains begin, from a request and noise [B,…]: latents and the schedule from there on. None begins
            with pure noise and runs the whole chain.
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
        live = gradient_steps(self.config, self.random)
        noise = torch.randn(len(request), *self.generator.latent_shape(), generator=self.random)
        self.optimisation.clear()
        size, start, logged = self.config.micro_batch or len(request), 0, dict[str, float]()
        seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        for part in request.split(size):
            share = len(part) / len(request)
            values = self._accumulate(part, noise[start : start + len(part)], live, share, seen)
            start += len(part)
            for name, value in values.items():
                logged[name] = logged.get(name, 0.0) + share * value
        logged["gradient_norm"] = self.optimisation.step()
        self.updates += 1
        return logged | self.balance.update(*(_joined([pair[i] for pair in seen]) for i in (0, 1)))

    def _accumulate(
        self,
        request: Request,
        noise: Tensor,
        live: frozenset[int],
        share: float,
        seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]],
    ) -> dict[str, float]:
        """Forward and backward pass of one micro-batch; its gradient counts by its share of the batch."""
        frames = self.config.frames.indices(self.generator.frames(), self.random)
        base = self._base_scores(request, noise, frames)
        batch, divergence = self.rollout(request, noise, live, frames)
        scores = self.reward.scores(batch)
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
    def _base_scores(self, request: Request, noise: Tensor, frames: list[int]) -> dict[str, Tensor]:
        """The constraints' scores of the same prompts, noise and frames with the adapter off; empty without any."""
        if not self.balance.constraints:
            return {}
        position = self.random.get_state()
        with self.generator.reference():
            batch, _ = self.rollout(request, noise, frozenset(), frames)
        self.random.set_state(position)
        return {term.name: self.reward.score(term, batch) for term in self.balance.constraints}

    def rollout(
        self, request: Request, noise: Tensor, live: frozenset[int], frames: list[int]
    ) -> tuple[VideoBatch, Tensor]:
        """Clips with gradient from the steps ``live``, and the mean divergence from the reference in those steps."""
        condition = self.generator.encode(request)
        x, schedule = self.start(request, noise.to(next(iter(condition.positive.values())).device), self.random)
        schedule = schedule.to(x)
        divergences: list[Tensor] = []

        def observe(i: int, latent: Tensor, condition: Condition, output: Tensor) -> None:
            if self.config.kl_weight:
                divergences.append(self._divergence(schedule.t[i], latent, output, condition))

        options = ChainOptions(self.config.guidance_scale, self.config.eta, live, self.config.detach_input, observe)
        x = chain(self.generator, x, condition, schedule, options, self.random)
        require_finite("the sampled latent", x)
        video = self.generator.decode(x, frames)
        policy = self.config.frames
        weights = policy.weights(frames, self.generator.frames())
        divergence = torch.stack(divergences).mean() if divergences else x.new_zeros(())
        return VideoBatch(video, policy.fps(self.generator.fps), request, weights), divergence

    def _from_noise(self, request: Request, noise: Tensor, random: torch.Generator) -> tuple[Tensor, Schedule]:
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
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue, bit for bit, from what ``state`` gave."""
        self.optimisation.restore(state)
        self.random.set_state(state["random"])
        self.balance.restore(state["balance"])
        self.updates = int(state["updates"])


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
