r"""Training by the denoising loss on captioned clips: pretraining and plain fine-tuning, of ε, v, flow, x_0 networks.

    minimise  E_{z, c, ε, i} [ ‖ o_θ(α_i·z + σ_i·ε, t_i, c) − target ‖² ],     z = encode(clip)

with i uniform on the fine grid of the model's own path, and target what its network predicts: ε, α·ε − σ·z (v), ε − z
(flow) or z (Ho et al. 2020, eq. 14; Lipman et al. 2023, eq. 23). Adapter or all weights, as the generator's options
say. ``best_of_n`` is this very training, on clips that a selector kept.

Some captions are replaced by the negative prompt, so that guidance goes on working. Latents are encoded once and kept.

Left out: random beginnings of clips, learned variances, schedules of the learning rate.

Run: ``reelign train flow_matching --set clips.source=FOLDER``, or ``clips.source=shapes`` for moving shapes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from reelign.contracts import Generator, Request
from reelign.distributed import place
from reelign.errors import DataError
from reelign.latents import LatentCache
from reelign.objectives import drop_captions
from reelign.optimisation import Optimisation, OptimiserName
from reelign.paths import training_target

LEVELS = 999  # noise levels of the fine grid; a table of 1000 is sampled at 1 … 999


class Config(BaseModel):
    """Settings of training by the denoising loss.

    Args:
        steps, guidance_scale, eta: of the sampling that evaluates; training does not sample.
        caption_dropout: share of captions replaced by the negative prompt.
        optimiser: ``adamw``, or ``adamw8bit``, whose moments take a quarter of the memory.
        lr, weight_decay, betas: of AdamW.
        max_grad_norm: gradients are scaled down to this joint norm.
        micro_batch: clips per forward and backward pass; 0 is all.
        average: decay of the moving average of weights that is evaluated and exported; 0 is off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class FlowMatching:
    """The denoising loss as an ``Algorithm``. Requests carry ``source_videos``.

    Args:
        generator: what is trained.
        config: settings.
        seed: of noise, noise levels and dropped captions.
        cache: folder for latents.
    """

    def __init__(self, generator: Generator, config: Config, seed: int = 0, cache: Path | None = None) -> None:
        self.generator = generator
        self.config = config
        self.latents = LatentCache(generator, cache)
        self.levels = generator.path.schedule(LEVELS)
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
        level = torch.randint(len(self.levels), (total,), generator=self.random)[mine]
        dropped = torch.rand(total, generator=self.random)[mine] < self.config.caption_dropout

        def loss(rows: slice) -> Tensor:
            return self.loss(request[rows], clean[rows], noise[rows], level[rows], dropped[rows])

        return self.optimisation.update(loss, len(request), self.config.micro_batch)

    def loss(self, request: Request, clean: Tensor, noise: Tensor, level: Tensor, dropped: Tensor) -> Tensor:
        """Mean squared error of the network's output.

        Args:
            request: B captions.
            clean, noise: [B,…] latents and ε.
            level: [B], indices of noise levels.
            dropped: [B] bool, rows without their caption.
        """
        condition = drop_captions(self.generator.encode(request), dropped)
        device = next(iter(condition.positive.values())).device
        clean, noise = clean.to(device), noise.to(device)
        levels = self.levels.to(clean)
        alpha, sigma = (part[level].view(-1, *[1] * (clean.ndim - 1)) for part in (levels.alpha, levels.sigma))
        output = self.generator.predict(alpha * clean + sigma * noise, levels.t[level], condition)
        target = training_target(self.generator.path.prediction, clean, noise, alpha, sigma)
        return (output.float() - target).square().mean()

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
