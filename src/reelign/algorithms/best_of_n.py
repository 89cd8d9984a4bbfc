r"""Fine-tuning on winners: best-of-N filtering and reward-weighted regression, on ε, v, flow and x_0 networks.

    minimise  E_{z, c, ε, i} [ w(z)·‖ o_θ(α_i·z + σ_i·ε, t_i, c) − target ‖² ],     z = encode(clip)

with i uniform on the fine grid of the model's own path, and target what its network predicts: ε, α·ε − σ·z (v), ε − z
(flow) or z. Without weights this is the loss that the model was pretrained with (Ho et al. 2020, eq. 14; Lipman et al.
2023, eq. 23), on clips that a selector kept: rejection sampling, also called RAFT (Dong et al. 2023, algorithm 1). With
w = softmax(R/β) it is reward-weighted regression (Peters and Schaal 2007; Lee et al. 2023, eq. 4). Weights are obeyed
by drawing clips in proportion to them, which has the same expected gradient.

Some captions are replaced by the negative prompt, so that guidance goes on working. Latents are encoded once and kept.

Left out: random beginnings of clips, learned variances.

Run: ``reelign train best_of_n --set clips.source=winners/``, or whole rounds with ``reelign selfplay``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from reelign.contracts import Condition, Generator, Request
from reelign.errors import DataError
from reelign.latents import LatentCache
from reelign.objectives import require_finite
from reelign.optimisation import Optimisation
from reelign.paths import training_target

LEVELS = 999  # noise levels of the fine grid; a table of 1000 is sampled at 1 … 999


class Config(BaseModel):
    """Settings of fine-tuning on winners.

    Args:
        steps, guidance_scale, eta: of the sampling that evaluates; training does not sample.
        caption_dropout: share of captions replaced by the negative prompt.
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
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = Field(1.0, gt=0)
    micro_batch: int = Field(0, ge=0)
    average: float = Field(0.0, ge=0, lt=1)


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


def drop_captions(condition: Condition, share: float, random: torch.Generator) -> Condition:
    """The condition with each row's caption replaced by the negative prompt with probability ``share``."""
    rows = len(next(iter(condition.positive.values())))
    dropped = torch.rand(rows, generator=random) < share
    if condition.negative is None or not dropped.any():
        return condition
    mixed = {name: value.clone() for name, value in condition.positive.items()}
    for name, value in mixed.items():
        value[dropped] = condition.negative[name][dropped].to(value)
    return Condition(mixed, condition.negative)


class BestOfN:
    """Filtered and reward-weighted fine-tuning as an ``Algorithm``. Requests carry ``source_videos``.

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
            max_grad_norm=config.max_grad_norm,
            average=config.average,
        )
        self.parameters = self.optimisation.parameters

    def step(self, request: Request) -> dict[str, float]:
        """One update from these clips and captions; logs ``loss`` and ``gradient_norm``."""
        if request.source_videos is None:
            raise DataError(
                "best_of_n learns from clips; this request has none: name a folder of winners under 'clips'"
            )
        clean = self.latents.encode(request.source_videos)
        noise = torch.randn(clean.shape, generator=self.random)
        level = torch.randint(len(self.levels), (len(request),), generator=self.random)
        self.optimisation.clear()
        size, total = self.config.micro_batch or len(request), 0.0
        for start in range(0, len(request), size):
            rows = slice(start, start + size)
            share = len(clean[rows]) / len(request)
            loss = share * self.loss(request[rows], clean[rows], noise[rows], level[rows])
            require_finite("the loss", loss)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return {"loss": total, "gradient_norm": self.optimisation.step()}

    def loss(self, request: Request, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Mean squared error of the network's output.

        Args:
            request: B captions.
            clean, noise: [B,…] latents and ε.
            level: [B], indices of noise levels.
        """
        condition = drop_captions(self.generator.encode(request), self.config.caption_dropout, self.random)
        place = next(iter(condition.positive.values()))
        clean, noise = clean.to(place.device), noise.to(place.device)
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
