"""Generators of Gaussian clips, whose scores, rollouts and gradients have exact answers."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from reelign.contracts import Condition, Request
from reelign.errors import DataError
from reelign.paths import FlowPath

SPREAD = 0.5
SHAPE = (2, 4, 1, 1)


class _Gaussian(nn.Module):
    """What both share: means, and latents that are their own pictures."""

    fps = 8.0

    def __init__(self, mean: list[float], path: FlowPath) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.path = path

    def latent_shape(self) -> tuple[int, ...]:
        return SHAPE

    def frames(self) -> int:
        return SHAPE[1]

    def encode(self, request: Request) -> Condition:
        y = torch.tensor([[float(len(p))] for p in request.prompts], dtype=torch.float64)
        return Condition({"y": y}, {"y": torch.zeros_like(y)})

    def decode(self, x: Tensor, frames=None) -> Tensor:
        video = x[:, [0, 1, 0]].transpose(1, 2)
        return video if frames is None else video[:, list(frames)]

    def encode_video(self, video: Tensor) -> Tensor:
        return video.transpose(1, 2)[:, :2].double()

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())

    def merged(self):
        return nullcontext()

    def reference(self):
        return nullcontext()

    def save(self, folder: str) -> None:
        raise AssertionError("not needed here")

    def load(self, folder: str) -> None:
        raise AssertionError("not needed here")


class GaussianScore(_Gaussian):
    """The exact flow of clips N(mean, SPREAD²), each number on its own; the negative prompt's mean is 0.

    Every frame has a mean of its own, which begins as its channel's.
    """

    def __init__(self, mean: list[float], path: FlowPath) -> None:
        super().__init__(mean, path)
        self.mean = nn.Parameter(self.mean.detach()[:, None].repeat(1, SHAPE[1]))

    def predict(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        sigma = (t / 1000).view(-1, 1, 1, 1, 1)
        named = (condition.positive["y"] != 0).view(-1, 1, 1, 1, 1)
        mean = named * self.mean[None, :, : x.shape[2], None, None]
        alpha = 1 - sigma
        gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
        clean = mean + gain * (x - alpha * mean)
        return (x - clean) / sigma


class GaussianStudent(_Gaussian):
    """A causal generator of clips around its mean, each block also moved by ``pull`` times the block before it."""

    fresh_noise = True

    def __init__(self, mean: list[float], path: FlowPath, pull: float = 0.3, block: int = 2) -> None:
        super().__init__(mean, path)
        self.pull = nn.Parameter(torch.tensor(pull, dtype=torch.float64))
        self.block = block
        self.passes = 0

    def blocks(self, frames: int, start: int = 0) -> list[int]:
        if frames < 1 or frames % self.block:
            raise DataError(f"whole blocks of {self.block}; got {frames}")
        return [self.block] * (frames // self.block)

    def begin(self, condition: Condition, frame: int = 0) -> Tensor:
        return torch.zeros(len(condition.positive["y"]), 2, 1, 1, 1, dtype=torch.float64)

    def advance(self, x: Tensor, t: Tensor, condition: Condition, memory: Tensor) -> tuple[Tensor, Tensor]:
        self.passes += 1
        sigma = (t / 1000).clamp_min(1e-6)
        mean = self.mean.view(1, -1, 1, 1, 1)
        clean = mean + self.pull * memory + SPREAD * sigma * (x - (1 - sigma) * mean)
        return (x - clean) / sigma, x.mean(dim=(2, 3, 4), keepdim=True)

    def advance_after(self, x, t, condition, memory, clean, clean_t) -> tuple[Tensor, Tensor]:
        memory = self.advance(clean, clean_t, condition, memory)[1]
        return self.advance(x, t, condition, memory)[0], memory

    def predict(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        raise AssertionError("rollouts do not need it")


class GaussianJudge(nn.Module):
    """A linear discriminator."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Linear(8, 1).double()
        nn.init.zeros_(self.look.weight)
        nn.init.zeros_(self.look.bias)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.look(x.double().flatten(1)).flatten()

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())
