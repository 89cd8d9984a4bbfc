"""Formulas that at least two algorithms use, each a pure function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from reelign.contracts import Condition, Schedule
from reelign.errors import NonFiniteError


def prediction_divergence(output: Tensor, reference: Tensor) -> Tensor:
    r"""Mean squared difference of two network outputs: KL of the two denoising steps up to a factor per step.

    For Gaussian steps of equal variance s², KL = ‖μ − μ_ref‖²/(2·s²), and μ is linear in the output
    (Fan et al. 2023, DPOK, lemma 4.2). A deterministic step has no s², so the factor is left to the weight.

    Args:
        output, reference: [B,…]; no gradient flows to ``reference``.
    """
    return (output - reference.detach()).square().mean()


def drop_captions(condition: Condition, dropped: Tensor) -> Condition:
    """The condition with the captions of the rows in ``dropped``, [B] bool, replaced by the negative prompt."""
    if condition.negative is None or not dropped.any():
        return condition
    mixed = {name: value.clone() for name, value in condition.positive.items()}
    for name, value in mixed.items():
        value[dropped] = condition.negative[name][dropped].to(value)
    return replace(condition, positive=mixed)


def per_frame(of_blocks: Tensor, sizes: Sequence[int]) -> Tensor:
    """[B,blocks] to [B,F]: all latent frames of a block, whose counts are ``sizes``, share its value."""
    return of_blocks.repeat_interleave(torch.tensor(sizes), dim=1)


def signal_and_noise(levels: Schedule, index: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ of every latent frame, each [B,1,F,1,1], from indices [B,F] of levels."""
    alpha, sigma = (part[index][:, None, :, None, None] for part in (levels.alpha, levels.sigma))
    return alpha, sigma


def require_finite(name: str, value: Tensor) -> None:
    """Raise ``NonFiniteError`` that names ``value`` and how much of it is NaN or infinite."""
    bad = int((~torch.isfinite(value.detach())).sum())
    if bad:
        raise NonFiniteError(f"{name} must be finite; {bad} of {value.numel()} values are NaN or infinite")


def clip_gradients(parameters: Mapping[str, nn.Parameter], max_norm: float) -> float:
    """Scale all gradients so that their joint norm is at most ``max_norm``; returns the norm before.

    Raises:
        NonFiniteError: a gradient is NaN or infinite; names the first such parameter.
    """
    norm = nn.utils.clip_grad_norm_(parameters.values(), max_norm)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if not torch.isfinite(norm):
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                gradient = parameter.grad
                require_finite(
                    f"the gradient of {name}", gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
                )
    return float(norm)


@torch.no_grad()
def update_average(average: Iterable[Tensor], weights: Iterable[Tensor], decay: float) -> None:
    """Exponential moving average in place: a ← decay·a + (1 − decay)·w."""
    for a, w in zip(average, weights, strict=True):
        a.lerp_(w.to(a.dtype), 1 - decay)
