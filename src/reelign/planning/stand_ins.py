"""What stands in a prediction for what cannot run without weights or on fake tensors, with the same bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

LEAST_IN_8_BITS, BLOCK = 4096, 256  # of bitsandbytes


class Uncounted:
    """Stands for a reward whose weights are not in a layout that can be read without them: the mean of the pixels."""

    def __init__(self, card: Any) -> None:
        self.card = card

    def __call__(self, batch: Any) -> Tensor:
        """Scores [B], with gradient."""
        mean: Tensor = batch.video.mean((1, 2, 3, 4))
        return mean


class AdamW8bit(torch.optim.Optimizer):
    """The state of bitsandbytes' optimiser of that name: two moments in 8 bits, with a scale for each 256 numbers.

    Its update is one kernel that takes no memory; so this one does nothing.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    def step(self, closure: Any = None) -> Any:
        """Make the state where there is none."""
        for parameter in (p for group in self.param_groups for p in group["params"]):
            state = self.state[parameter]
            if not state and parameter.grad is not None:
                small = parameter.numel() < LEAST_IN_8_BITS
                value = torch.zeros_like(parameter, dtype=torch.float32 if small else torch.uint8)
                scales = value.new_zeros(0 if small else math.ceil(parameter.numel() / BLOCK), dtype=torch.float32)
                state.update(first=value, second=value.clone(), scales=scales, second_scales=scales.clone())
