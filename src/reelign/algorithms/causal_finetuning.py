r"""Teacher forcing and diffusion forcing: how a causal generator learns from clips, and the baselines of self-forcing.

    minimise  E_{z, c, ε, i} [ mean_b w(t_{i_b})·‖ o_θ(x_b, t_{i_b}, c | past_b) − target_b ‖² ],     z = encode(clip)
    x_b = α_{i_b}·z_b + σ_{i_b}·ε_b,       i_b uniform on the fine grid, for each block b on its own

``diffusion_forcing`` (Chen et al. 2024; Yin et al. 2025, CausVid): the past of a block is the noisy blocks before it.
``teacher_forcing``: it is the clean blocks before it, of the data, all blocks at once (both as in Huang et al. 2025,
Self-Forcing, section 3.1). Neither ever sees a past of its own making, which is what self-forcing mends. Target is what
the network predicts, ε − z for flow.

    w(t) ∝ exp(−2·((t − 500)/1000)²) − min,   mean 1 over the grid             (``bell``, as in the authors' program)

``augment`` gives the clean past noise up to a time, and tells the network so: the authors' option against drift.

A block sampled after this training takes many steps with guidance, and keeps its noise: ``generator.noise=kept``.

Run: ``reelign train causal_finetuning --set clips.source=FOLDER``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from reelign.contracts import CausalGenerator, Condition, Generator, Request
from reelign.distributed import place
from reelign.errors import ConfigError, DataError
from reelign.latents import LatentCache
from reelign.objectives import drop_captions, per_frame, signal_and_noise
from reelign.optimisation import Optimisation, OptimiserName
from reelign.paths import training_target

LEVELS = 1000  # of the fine grid; of a causal generator's path these are u = 1, 0.999, … 0.001, shifted


class Config(BaseModel):
    """Settings of teacher forcing and diffusion forcing.

    Args:
        mode: what a block's past is in training: the data's clean blocks, or noisy ones.
        weighting: of the squared error by time: ``bell`` or ``none``.
        augment: largest time of the noise on a clean past, drawn a block; 0 is none. For teacher forcing.
        steps, guidance_scale, eta: of the sampling that evaluates; training does not sample. eta is not used: a block
            keeps its noise or draws it anew, as the generator's ``noise`` says.
        caption_dropout: share of captions replaced by the negative prompt.
        optimiser: ``adamw``, or ``adamw8bit``, whose moments take a quarter of the memory.
        lr, weight_decay, betas: of AdamW.
        max_grad_norm: gradients are scaled down to this joint norm.
        micro_batch: clips per forward and backward pass; 0 is all.
        average: decay of the moving average of weights that is evaluated and exported; 0 is off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["teacher_forcing", "diffusion_forcing"] = "teacher_forcing"
    weighting: Literal["bell", "none"] = "bell"
    augment: float = Field(0.0, ge=0, lt=1000)
    steps: int = Field(25, ge=1)
    guidance_scale: float = Field(3.0, ge=1)
    eta: float = Field(0.0, ge=0, le=1)
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    lr: float = Field(2e-4, gt=0)
    optimiser: OptimiserName = "adamw"
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = Field(1.0, gt=0)
    micro_batch: int = Field(0, ge=0)
    average: float = Field(0.0, ge=0, lt=1)


@runtime_checkable
class TeacherForced(CausalGenerator, Protocol):
    """A causal generator that runs all blocks of a clip at once."""

    def predict_after(self, x: Tensor, t: Tensor, condition: Condition, clean: Tensor, clean_t: Tensor) -> Tensor:
        """Output for the noisy blocks of x [B,C,F,h,w], each after the blocks of ``clean`` before it."""
        ...


def bell_weights(t: Tensor) -> Tensor:
    r"""w_i = N·(y_i − min y)/Σ_j (y_j − min y), y = exp(−2·((t − 500)/1000)²): mean 1, most in the middle.

    Args:
        t: [N], all times of the grid.
    """
    bell = torch.exp(-2 * ((t - 500) / 1000).square())
    bell = bell - bell.min()
    return len(t) * bell / bell.sum()


class CausalFinetuning:
    """Teacher and diffusion forcing as an ``Algorithm``. Requests carry ``source_videos``.

    Args:
        generator: what is trained; a causal one.
        config: settings.
        seed: of noise, noise levels and dropped captions.
        cache: folder for latents.

    Raises:
        ConfigError: the generator is not causal, or ``augment`` is below the least time of its path.
    """

    def __init__(self, generator: Generator, config: Config, seed: int = 0, cache: Path | None = None) -> None:
        if not isinstance(generator, TeacherForced):
            raise ConfigError(
                f"causal_finetuning trains a causal generator; got {type(generator).__name__}: "
                "set generator.kind to causal_wan"
            )
        self.generator = generator
        self.config = config
        self.latents = LatentCache(generator, cache)
        self.levels = generator.path.schedule(LEVELS)
        self.weights = bell_weights(self.levels.t) if config.weighting == "bell" else torch.ones(LEVELS)
        self.mildest = int((self.levels.t > config.augment).sum())  # from here on the grid is no noisier than augment
        if config.augment and (config.mode != "teacher_forcing" or self.mildest == LEVELS):
            raise ConfigError(
                "augment goes with teacher_forcing and is at least the least time of the path, "
                f"{self.levels.t[-1]:.3g}; got {config.augment:g} with {config.mode}"
            )
        self.sizes = generator.blocks(generator.latent_shape()[1])
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

    def step(self, request: Request) -> dict[str, float]:
        """One update from these clips and captions; logs ``loss`` and ``gradient_norm``."""
        if request.source_videos is None:
            raise DataError("this training learns from clips; the request has none: name a folder of clips in 'clips'")
        clean = self.latents.encode(request.source_videos)
        total, mine = place(len(request))
        noise = torch.randn(total, *clean.shape[1:], generator=self.random)[mine]
        level = self._draw(0, total)[mine]
        past, past_t = self._past(clean)
        dropped = torch.rand(total, generator=self.random)[mine] < self.config.caption_dropout

        def loss(rows: slice) -> Tensor:
            before = (past[rows], past_t[rows])
            return self.loss(request[rows], (clean[rows], noise[rows]), level[rows], before, dropped[rows])

        return self.optimisation.update(loss, len(request), self.config.micro_batch)

    def _draw(self, first: int, rows: int) -> Tensor:
        """Indices [rows,F] of levels from the ``first`` on, drawn for each block."""
        drawn = torch.randint(first, LEVELS, (rows, len(self.sizes)), generator=self.random)
        return per_frame(drawn, self.sizes)

    def _past(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """What teacher forcing shows of the past, and at which times [B,F]: the clips, or noised versions of them."""
        if not self.config.augment:
            return clean, torch.zeros(len(clean), clean.shape[2])
        total, mine = place(len(clean))
        level = self._draw(self.mildest, total)[mine]
        noise = torch.randn(total, *clean.shape[1:], generator=self.random)[mine]
        levels = self.levels.to(clean)
        alpha, sigma = signal_and_noise(levels, level)
        return alpha * clean + sigma * noise, levels.t[level]

    def loss(
        self,
        request: Request,
        ends: tuple[Tensor, Tensor],
        level: Tensor,
        past: tuple[Tensor, Tensor],
        dropped: Tensor,
    ) -> Tensor:
        """Mean over blocks of the weighted squared error of the network's output.

        Args:
            request: B captions.
            ends: latents and ε, [B,C,F,h,w].
            level: [B,F], indices of noise levels.
            past: for teacher forcing; latents [B,C,F,h,w], and their times [B,F].
            dropped: [B] bool, rows without their caption.
        """
        condition = drop_captions(self.generator.encode(request), dropped)
        device = next(iter(condition.positive.values())).device
        clean, noise, before = (part.to(device) for part in (*ends, past[0]))
        levels = self.levels.to(clean)
        alpha, sigma = signal_and_noise(levels, level)
        x, t = alpha * clean + sigma * noise, levels.t[level]
        if self.config.mode == "teacher_forcing":
            output = self.generator.predict_after(x, t, condition, before, past[1])
        else:
            output = self.generator.predict(x, t, condition)
        target = training_target(self.generator.path.prediction, clean, noise, alpha, sigma)
        weight = self.weights.to(clean)[level][:, None, :, None, None]
        return (weight * (output.float() - target).square()).mean()

    def exported(self) -> AbstractContextManager[None]:
        """A context in which the generator holds the averaged weights, where there are any."""
        return self.optimisation.exported()

    def lower_rate(self, factor: float) -> None:
        """Multiply the learning rate, for good."""
        self.optimisation.lower_rate(factor)

    def state(self) -> dict[str, Any]:
        """Weights, their average, optimiser and random state."""
        return self.optimisation.state() | {"random": self.random.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue, bit for bit, from what ``state`` gave."""
        self.optimisation.restore(state)
        self.random.set_state(state["random"])
