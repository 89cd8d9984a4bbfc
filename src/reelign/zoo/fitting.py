"""The plain training loop that every zoo checkpoint is made with: AdamW, warm-up, cosine decay, averaged weights.

This is pre-training of small checkpoints, not the post-training that the package is about (that is ``loop.py``).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reelign.errors import NonFiniteError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast.

    Args:
        steps: optimiser steps.
        lr: peak learning rate, reached after ``warmup`` steps, then decayed to 0 by a cosine.
        weight_decay: AdamW's.
        clip: largest gradient norm.
        average: decay of the moving average of weights; 0 keeps the last weights.
    """

    steps: int
    lr: float
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.0


def learning_rate(step: int, config: FitConfig) -> float:
    """Linear warm-up, then a cosine to zero at ``config.steps``."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def fit(modules: Iterable[nn.Module], loss: Callable[[int], Tensor], config: FitConfig, name: str) -> float:
    """Minimise ``loss(step)`` over the parameters of ``modules``; returns the mean loss of the last tenth.

    Raises:
        NonFiniteError: the loss is NaN or infinite.
    """
    modules = list(modules)
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay)
    averaged = [p.detach().clone() for p in parameters] if config.average else []
    began, recent = time.monotonic(), []
    for step in range(config.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, config)
        value = loss(step)
        if not torch.isfinite(value):
            raise NonFiniteError(f"training {name}: the loss at step {step} is {value.item()}; lower the learning rate")
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        optimiser.step()
        if averaged:
            decay = min(config.average, (step + 1) / (step + 10))
            torch._foreach_lerp_(averaged, [p.detach() for p in parameters], 1 - decay)
        recent.append(value.item())
        if step % 50 == 0 or step == config.steps - 1:
            spent = time.monotonic() - began
            left = spent / (step + 1) * (config.steps - step - 1)
            mean = sum(recent[-50:]) / len(recent[-50:])
            log.info("%s step %d/%d loss %.5f, %.0f s, %.0f s left", name, step, config.steps, mean, spent, left)
    for parameter, average in zip(parameters, averaged, strict=False):
        parameter.data.copy_(average)
    tail = recent[-max(1, config.steps // 10) :]
    return sum(tail) / len(tail)
