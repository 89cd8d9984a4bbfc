"""Gradients in float16: held inside its narrow range on their way through a network, and nowhere else.

float16 ends at 6·10⁻⁸, and the gradient of a mean over a clip's pixels begins there: without care the adapter learns
nothing, without a word. So the gradient that arrives at the network's output is multiplied by a power of two that makes
its largest entry about 1, and what leaves the network, to its input and to its parameters, is divided by it again. A
power of two rounds nothing, so algorithms, rewards, clipping and optimisers see plain gradients; a scale lives for one
backward pass, so there is no state to save and no update to skip, as there is with a scaled loss (Micikevicius et al.
2018, section 3.2). A gradient that overflows all the same is infinite, and ``Optimisation.step`` says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class LossScale:
    """The scale of one generator's gradients.

    Args:
        parameters: what is trained inside the networks; none of it may be used outside ``enter`` and ``leave``.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.scale: float | None = None
        for parameter in parameters:
            parameter.register_hook(self.back)  # type: ignore[no-untyped-call]

    def enter(self, x: Tensor) -> Tensor:
        """x itself, on its way into a network."""
        entered: Tensor = _Enter.apply(x, self)  # type: ignore[no-untyped-call]
        return entered

    def leave(self, output: Tensor) -> Tensor:
        """A network's output in float32, on its way out."""
        left: Tensor = _Leave.apply(output, self)  # type: ignore[no-untyped-call]
        return left

    def back(self, gradient: Tensor) -> Tensor:
        """A scaled gradient as it is."""
        return gradient if self.scale is None else gradient / self.scale

    def scaled(self, gradient: Tensor) -> Tensor:
        """A gradient as networks take it; the first of a backward pass sets the scale for all of it."""
        if self.scale is None:
            largest = float(gradient.abs().max())
            usable = 0 < largest < math.inf
            self.scale = 2.0 ** -round(math.log2(largest)) if usable else 1.0
            torch.autograd.Variable._execution_engine.queue_callback(self._forget)
        return gradient * self.scale

    def _forget(self) -> None:
        self.scale = None


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, owner: LossScale) -> Tensor:
        ctx.owner = owner
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.owner.back(gradients[0]), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, owner: LossScale) -> Tensor:
        ctx.owner, ctx.dtype = owner, output.dtype
        return output.float().view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.owner.scaled(gradients[0]).to(ctx.dtype), None
