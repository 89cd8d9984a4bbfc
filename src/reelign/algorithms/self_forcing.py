r"""Self-Forcing: a causal few-step generator trained on its own rollouts (Huang et al. 2025, algorithm 1).

    x ~ p_θ, block after block, each from the memory of the blocks before it that θ itself made; a block's chain of T
    steps is left at a step s drawn at random, and that step alone is differentiated
    minimise  D(p_θ,t ‖ p_data,t)  over whole clips x, at noise levels t

D is one of three (``distribution_matching``): the reverse KL, by the difference of a real and a fake score (``dmd``),
the Fisher divergence by score identity (``sid``), or a relativistic GAN on real clips (``gan``). A critic learns the
made clips on every update; the generator learns on every ``critic_ratio``-th, from a critic that is thus up to date.

Clips longer than ``gradient_frames`` are judged by their end: the last frames, the first of them encoded anew from its
picture, since no clip of the teacher's begins in the middle; the block that this frame is in is left out of the loss.

Beyond the paper: exact accumulation of gradients, the fake score as an adapter on the real one, windows that overflow
while training. On an update of the generator one rollout serves generator and critic. Left out: schedules of noise
levels by exit step for ``dmd`` and ``sid``, which no published run uses.

Run: ``reelign train self_forcing``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from reelign.algorithms.critics import Critic, LogitCritic, Made, ScoreCritic
from reelign.algorithms.distribution_matching import score_sigma
from reelign.contracts import CausalGenerator, Condition, Request
from reelign.distributed import place
from reelign.errors import ConfigError, DataError
from reelign.generators.discriminator import Discriminator
from reelign.generators.lora import LoraOptions
from reelign.generators.scores import load_score
from reelign.generators.wan import WanOptions
from reelign.latents import LatentCache
from reelign.objectives import require_finite
from reelign.optimisation import Optimisation, OptimiserName
from reelign.paths import FlowPath, shift_sigma
from reelign.sampling import RolloutOptions, SeededNoise, rollout


class Config(BaseModel):
    """Settings of self-forcing. Counts of frames are of latent frames.

    Args:
        objective: ``dmd``, ``sid``, or ``gan``, which needs clips.
        steps: T, of each block, in training and evaluation.
        guidance_scale: w of the generator's own guidance, likewise; 1 is none, and half the work.
        eta: has no part in a causal chain.
        frames: of a rollout: a number, or [least, most], from which whole blocks are drawn; None is a clip's own.
        gradient_frames: how many frames at the end of a rollout are differentiated and judged; None is a clip's own.
        same_step_across_blocks: one exit step for all blocks of a rollout.
        last_step_only: always leave at the last step.
        kv_grad: ``detached``, as the paper says, or ``official``, as its code does; see ``sampling.RolloutOptions``.
        teacher: the real score, also what the critic begins as; None is the model that the generator is made of.
        real_guidance, fake_guidance: w of r = c + w·(c − u), and of f.
        score_range: least and largest noise level of scores.
        sid_alpha: α of ``sid``.
        critic: what of the critic is trained: an adapter (``lora``), ``all``, which takes a second copy of the
            teacher, or, of a discriminator, the head alone (``frozen``).
        critic_lora: the adapter.
        critic_ratio: updates of the critic for one of the generator.
        penalty: λ of R1 + R2 of ``gan``; 0 is off.
        penalty_sigma: how far clips are moved for them.
        optimiser: ``adamw``, or ``adamw8bit``, whose moments take a quarter of the memory.
        lr, critic_lr, weight_decay, betas: of AdamW.
        max_grad_norm: gradients are scaled down to this joint norm.
        average: decay of the moving average of weights that is evaluated and exported; 0 is off.
        average_from: updates of the generator before it begins.
        micro_batch: clips per forward and backward pass; gradients add up to the same update. 0 is all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: Literal["dmd", "sid", "gan"] = "dmd"
    steps: int = Field(4, ge=1)
    guidance_scale: float = Field(1.0, ge=1)
    eta: float = Field(0.0, ge=0, le=0)
    frames: int | tuple[int, int] | None = None
    gradient_frames: int | None = Field(None, ge=1)
    same_step_across_blocks: bool = True
    last_step_only: bool = False
    kv_grad: Literal["detached", "official"] = "detached"
    teacher: WanOptions | None = None
    real_guidance: float = Field(3.0, ge=0)
    fake_guidance: float = Field(0.0, ge=0)
    score_range: tuple[float, float] = (0.02, 0.98)
    sid_alpha: float = 1.0
    critic: Literal["lora", "all", "frozen"] = "lora"
    critic_lora: LoraOptions = LoraOptions(rank=32, alpha=32)
    critic_ratio: int = Field(5, ge=1)
    penalty: float = Field(0.075, ge=0)
    penalty_sigma: float = Field(0.05, gt=0)
    lr: float = Field(2e-6, gt=0)
    critic_lr: float = Field(4e-7, gt=0)
    optimiser: OptimiserName = "adamw"
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.0, 0.999)
    max_grad_norm: float = Field(10.0, gt=0)
    average: float = Field(0.99, ge=0, lt=1)
    average_from: int = Field(10, ge=0)
    micro_batch: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _makes_sense(self) -> Config:
        low, high = self.score_range
        if not 0 < low < high <= 1:
            raise ConfigError(f"score_range is two noise levels, 0 < least < largest <= 1; got {[low, high]}")
        if self.critic == "frozen" and self.objective != "gan":
            raise ConfigError(f"a fake score has to learn: critic 'frozen' goes with gan, not with {self.objective}")
        if isinstance(self.frames, tuple) and not 1 <= self.frames[0] <= self.frames[1]:
            raise ConfigError(f"frames is a number or [least, most]; got {list(self.frames)}")
        return self


def frame_choices(generator: CausalGenerator, frames: int | tuple[int, int] | None) -> list[int]:
    """Lengths of whole blocks that rollouts may have, ascending.

    Raises:
        DataError: a number that blocks do not divide.
        ConfigError: no length between the two.
    """
    if not isinstance(frames, tuple):
        length = generator.latent_shape()[1] if frames is None else frames
        generator.blocks(length)
        return [length]
    found = [length for length in range(frames[0], frames[1] + 1) if _divides(generator, length)]
    if not found:
        raise ConfigError(f"no clip of whole blocks has between {frames[0]} and {frames[1]} latent frames")
    return found


def _divides(generator: CausalGenerator, frames: int) -> bool:
    try:
        generator.blocks(frames)
    except DataError:
        return False
    return True


def judged_window(generator: CausalGenerator, x: Tensor, keep: int, sizes: list[int]) -> tuple[Tensor, Tensor | None]:
    """The end of a clip that a teacher can judge, and which of its frames count.

    The last ``keep`` frames, the first of them made from its own picture, as the first frame of a clip; without
    gradient. Frames of the block that it is in do not count.

    Args:
        x: [B,C,F,h,w].
        sizes: of the blocks of F.

    Returns:
        [B,C,keep,h,w] and a mask [keep]; the clip itself and None where it is not longer than ``keep``.
    """
    start = x.shape[2] - keep
    if start <= 0:
        return x, None
    end = next(e for e in torch.tensor(sizes).cumsum(0).tolist() if e > start)
    with torch.no_grad():
        picture = generator.decode(x[:, :, : start + 1])[:, -1:]
        first = generator.encode_video(picture).to(x)
    mask = torch.arange(start, x.shape[2]) >= end
    return torch.cat([first, x[:, :, start + 1 :]], dim=2), mask


@dataclass(frozen=True)
class _Draws:
    """What is drawn for one update: rollouts, and two sets of noise levels."""

    trains: bool
    sizes: list[int]
    exits: tuple[int, ...]
    seeds: list[int]
    sigma: Tensor  # [B], for the generator
    critic_sigma: Tensor  # [B]


class SelfForcing:
    """Self-Forcing as an ``Algorithm``: a ``step`` updates the critic, and every few steps the generator too.

    Args:
        generator: what is trained, on a flow path.
        config: settings.
        seed: of rollouts, exits and noise levels.
        cache: folder for latents of real clips.
        critic: in place of the one that the settings describe.
    """

    def __init__(
        self,
        generator: CausalGenerator,
        config: Config,
        seed: int = 0,
        cache: Path | None = None,
        critic: Critic | None = None,
    ) -> None:
        if not isinstance(generator, CausalGenerator) or not isinstance(generator.path, FlowPath):
            raise ConfigError("self_forcing trains causal generators on flow paths: set generator.kind to causal_wan")
        self.generator = generator
        self.config = config
        self.path = generator.path
        self.schedule = generator.path.schedule(config.steps)
        self.latents = LatentCache(generator, cache)
        self.random = torch.Generator().manual_seed(seed)
        self.updates = 0
        self.lengths = frame_choices(generator, config.frames)
        self.keep = config.gradient_frames or generator.latent_shape()[1]
        self._check_window()
        self.critic = critic or build_critic(generator, config, seed)
        optimisation = partial(
            Optimisation,
            weight_decay=config.weight_decay,
            betas=config.betas,
            optimiser=config.optimiser,
            max_grad_norm=config.max_grad_norm,
        )
        self.optimisation = optimisation(
            generator.trainable(), config.lr, average=config.average, average_from=config.average_from
        )
        self.critic_optimisation = optimisation(self.critic.parameters, config.critic_lr)
        self.parameters = self.optimisation.parameters

    def _check_window(self) -> None:
        for length in self.lengths:
            if length > self.keep and self.generator.blocks(length)[-1] >= self.keep:
                raise ConfigError(
                    "of rollouts longer than gradient_frames the first block judged does not count, so "
                    f"gradient_frames holds at least two blocks; got {self.keep}"
                )
        if self.config.objective == "gan" and min(self.lengths) < self.keep:
            raise ConfigError(
                f"gan compares with real clips of {self.keep} latent frames; frames may be {min(self.lengths)}"
            )

    def step(self, request: Request) -> dict[str, float]:
        """One update from these prompts.

        Logs ``critic_loss``, ``critic_gradient_norm``, the mean ``exit`` step, ``frames``, and ``passes`` of the
        generator over a block; on updates of the generator ``loss`` and ``gradient_norm`` too.
        """
        real = self._real(request)
        draws = self._draw(*place(len(request)))
        self.optimisation.clear()
        self.critic_optimisation.clear()
        size, logged = self.config.micro_batch or len(request), dict[str, float]()
        for start in range(0, len(request), size):
            rows = slice(start, min(start + size, len(request)))
            share = (rows.stop - start) / len(request)
            values = self._accumulate(request[rows], None if real is None else real[rows], draws, rows, share)
            for name, value in values.items():
                logged[name] = logged.get(name, 0.0) + share * value
        logged["critic_gradient_norm"] = self.critic_optimisation.step()
        if draws.trains:
            logged["gradient_norm"] = self.optimisation.step()
        self.updates += 1
        return logged | {
            "exit": sum(draws.exits) / len(draws.exits),
            "frames": float(sum(draws.sizes)),
            "passes": float(sum(draws.exits) + 2 * len(draws.exits) - 1),
        }

    def _real(self, request: Request) -> Tensor | None:
        if self.config.objective != "gan":
            return None
        if request.source_videos is None:
            raise DataError("the objective 'gan' learns from real clips; this request has none: set 'clips'")
        return self.latents.encode(request.source_videos)

    def _draw(self, count: int, mine: slice) -> _Draws:
        """What all ``count`` rows of an update draw, cut to those that are of this process."""

        def whole(high: int, size: int = 1) -> list[int]:
            drawn: list[int] = torch.randint(high, (size,), generator=self.random).tolist()
            return drawn

        sizes = self.generator.blocks(self.lengths[whole(len(self.lengths))[0]])
        last = self.config.steps - 1
        exits = whole(last + 1, 1 if self.config.same_step_across_blocks else len(sizes))
        exits = [last] if self.config.last_step_only else exits
        exits = exits * (len(sizes) // len(exits))
        return _Draws(
            trains=(self.updates + 1) % self.config.critic_ratio == 0,
            sizes=sizes,
            exits=tuple(exits),
            seeds=whole(2**62, count)[mine],
            sigma=self._sigma(exits, count)[mine],
            critic_sigma=self._sigma(exits, count)[mine],
        )

    def _sigma(self, exits: list[int], count: int) -> Tensor:
        """Noise levels [B]: any, or for ``gan`` those between an exit step and the one after it."""
        span = (0.0, 1.0)
        if self.config.objective == "gan":
            ends = self.schedule.sigma[[max(exits) + 1, min(exits)]]
            low, high = shift_sigma(ends, 1 / self.path.shift).tolist()
            span = (low, high)
        u = torch.rand(count, generator=self.random)
        return score_sigma(u, self.path.shift, self.config.score_range, span)

    def _accumulate(
        self, request: Request, real: Tensor | None, draws: _Draws, rows: slice, share: float
    ) -> dict[str, float]:
        """Forward and backward passes of one micro-batch, for the critic and, where due, the generator."""
        condition = self.generator.encode(request)
        device = next(iter(condition.positive.values())).device
        draw = SeededNoise(draws.seeds[rows], device)
        with torch.set_grad_enabled(draws.trains):
            x, mask = self._rollout(condition, draws, draw)
        require_finite("a rollout", x)
        made = Made(x.detach(), condition, draws.sigma[rows], draw, mask, real)
        logged: dict[str, float] = {}
        if draws.trains:
            loss, gradient = self.critic.gradient(made)
            require_finite("the loss", loss)
            x.backward((share * gradient).to(x))  # type: ignore[no-untyped-call]
            logged["loss"] = loss.item()
        critic_loss = self.critic.loss(replace(made, sigma=draws.critic_sigma[rows]))
        require_finite("the critic's loss", critic_loss)
        (share * critic_loss).backward()  # type: ignore[no-untyped-call]
        return logged | {"critic_loss": critic_loss.item()}

    def _rollout(self, condition: Condition, draws: _Draws, draw: SeededNoise) -> tuple[Tensor, Tensor | None]:
        frames = sum(draws.sizes)
        options = RolloutOptions(
            self.config.guidance_scale, draws.exits, max(0, frames - self.keep), self.config.kv_grad
        )
        x = rollout(self.generator, condition, frames, self.schedule, draw, options)
        return judged_window(self.generator, x, self.keep, draws.sizes)

    def exported(self) -> AbstractContextManager[None]:
        """A context in which the generator holds the averaged weights, where there are any."""
        return self.optimisation.exported()

    def lower_rate(self, factor: float) -> None:
        """Multiply both learning rates, for good."""
        self.optimisation.lower_rate(factor)
        self.critic_optimisation.lower_rate(factor)

    def state(self) -> dict[str, Any]:
        """Weights, average and optimiser of the generator, those of the critic, counter and random state."""
        return self.optimisation.state() | {
            "critic": self.critic_optimisation.state(),
            "steps": self.updates,
            "random": self.random.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue, bit for bit, from what ``state`` gave."""
        self.optimisation.restore(state)
        self.critic_optimisation.restore(state["critic"])
        self.updates = int(state["steps"])
        self.random.set_state(state["random"])


def build_critic(generator: CausalGenerator, config: Config, seed: int) -> Critic:
    """The critic that settings describe, made of the teacher."""
    fake = load_score(
        generator,
        config.teacher,
        config.critic_lora if config.critic == "lora" else None,
        train_all=config.critic == "all",
    )
    if config.objective == "gan":
        return LogitCritic(Discriminator(fake, seed), config.penalty, config.penalty_sigma)
    teacher = fake if config.critic == "lora" else load_score(generator, config.teacher)
    guidance = (config.real_guidance, config.fake_guidance)
    return ScoreCritic(teacher, fake, config.objective, guidance, config.sid_alpha)
