r"""Reward tuning as editing: InstructVideo (Yuan et al. 2024), on ε, v and flow paths.

    z_τ = α_τ·z + σ_τ·ε̃,   z = encode(clip),   ε̃ = ε + 0.1·ξ            (eq. 5; ξ is one number a channel and frame)
    maximise  (1/S) Σ_i f(g(i))·R(frame g(i) of decode(z_0), caption)       (eq. 9 to 11)

z_0 is what the last ⌊τD⌋ of the D steps of the sampler make of z_τ; the network's output is a constant except in the
last K of them. So an update costs τ of a whole chain, and the clip's own motion guides the result. With frames chosen
by segment and attenuated in time (``rewards/frames.py``), this is the paper; the update itself is that of
``reward_gradient``, begun elsewhere on the chain.

On a flow path the same two lines hold with α = 1 − σ. Only chosen frames are decoded; the authors' program decodes
all with gradient. Latents of clips are encoded once and kept.

Left out: reconstruction weights (unused in the published runs).

Run: ``reelign train instructvideo_modelscope`` or, on the zoo's generator, ``reelign train partial_chain``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from torch import Tensor

from reelign.algorithms import reward_gradient
from reelign.algorithms.reward_gradient import RewardGradient
from reelign.contracts import Generator, Request, Schedule
from reelign.errors import ConfigError, DataError
from reelign.latents import LatentCache
from reelign.rewards.frames import FramePolicy
from reelign.rewards.weighted import WeightedReward
from reelign.sampling import Draw


class Config(reward_gradient.Config):
    """Settings of ``reward_gradient``, with the published defaults, and three more.

    Args:
        tau: τ, the share of the chain that is run.
        offset_noise: strength of the noise shared by all pixels of a channel and frame; 0.1 as published, 0 is off.
    """

    steps: int = Field(20, ge=1)
    lr: float = Field(1e-5, gt=0)
    frames: FramePolicy = FramePolicy(choose="segments", segments=4, attenuation=1.0)
    tau: float = Field(0.6, gt=0, le=1)
    offset_noise: float = Field(0.1, ge=0)

    @model_validator(mode="after")
    def _chain_is_long_enough(self) -> Config:
        run = int(self.tau * self.steps + 1e-9)
        if run < 1:
            raise ConfigError(f"tau·steps is at least 1; got {self.tau} · {self.steps}")
        if self.mode != "specific" and self.k > run:
            raise ConfigError(f"k must be at most tau·steps ({run}); got {self.k}")
        if any(i >= run for i in self.gradient_steps):
            raise ConfigError(f"gradient_steps run from 0 to {run - 1}; got {list(self.gradient_steps)}")
        return self


def tail(schedule: Schedule, steps: int) -> Schedule:
    """The last ``steps`` steps of a chain."""
    first = len(schedule) - steps
    return Schedule(*(part[first:] for part in (schedule.t, schedule.alpha, schedule.sigma, schedule.ancestral)))


def corrupt(clean: Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """z_τ = α·z + σ·ε̃ at the beginning of ``schedule`` (InstructVideo, eq. 5); all shapes alike."""
    schedule = schedule.to(clean)
    return schedule.alpha[0] * clean + schedule.sigma[0] * noise


class PartialChain:
    """InstructVideo as an ``Algorithm``. Requests carry ``source_videos``.

    Args:
        generator: what is trained.
        reward: what is maximised.
        config: settings.
        seed: of noise, frames and steps.
        cache: folder for latents.
    """

    def __init__(
        self,
        generator: Generator,
        reward: WeightedReward,
        config: Config,
        seed: int = 0,
        cache: Path | None = None,
    ) -> None:
        self.config = config
        self.latents = LatentCache(generator, cache)
        self.schedule = tail(generator.path.schedule(config.steps), int(config.tau * config.steps + 1e-9))
        inner = config.model_copy(update={"steps": len(self.schedule)})
        self.update = RewardGradient(generator, reward, inner, seed, start=self.begin)
        self.reward = reward
        self.parameters = self.update.parameters

    def begin(self, request: Request, noise: Tensor, draw: Draw) -> tuple[Tensor, Schedule]:
        """Corrupted latents of the request's clips, and the rest of the chain."""
        if request.source_videos is None:
            raise DataError("partial_chain edits clips; this request has none: name a folder of clips under 'clips'")
        clean = self.latents.encode(request.source_videos).to(noise)
        if self.config.offset_noise:
            shared = draw((*noise.shape[1:3], 1, 1)).to(noise)
            noise = noise + self.config.offset_noise * shared
        return corrupt(clean, noise, self.schedule), self.schedule

    def step(self, request: Request) -> dict[str, float]:
        """One update from these clips and captions; logs what ``reward_gradient`` logs."""
        return self.update.step(request)

    def exported(self) -> AbstractContextManager[None]:
        """A context in which the generator holds the averaged weights, where there are any."""
        return self.update.exported()

    def lower_rate(self, factor: float) -> None:
        """Multiply the learning rate, for good."""
        self.update.lower_rate(factor)

    def state(self) -> dict[str, Any]:
        """Weights, their average, optimiser and random state."""
        return self.update.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue, bit for bit, from what ``state`` gave."""
        self.update.restore(state)
