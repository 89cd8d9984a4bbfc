"""The published layers of RL-V2V-GAN (arXiv 2410.20657) in PyTorch, as written down for its TensorFlow code.

- RPB(f): Conv3D(f,3)-BN-ReLU-Conv3D(f,3)-BN-(+input)-ReLU. The original adds without a projection, which cannot run
  where channels change; here a 1×1×1 convolution projects.
- Generator, and predictor: RPB 64, 128, 256, ConvLSTM 256 with BN, RPB 256, 128, 64, each plus the encoder output of
  its size, Conv3D(3,3,tanh). Nothing is ever scaled down.
- Discriminator: RPB 64, 128, 256, flatten, dense 512, ReLU, dense 1. At 16×64×64 its first dense layer has 8.6
  billion weights; ``pooled`` averages to 4×4×4 before it, the only way it fits.

The Q-networks are left out: the original never calls their training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (64, 128, 256)
POOLED = 4
DENSE = 512


class RPB(nn.Module):
    """[N,C,T,H,W] to [N,f,T,H,W]."""

    def __init__(self, inputs: int, f: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(inputs, f, 3, padding=1),
            nn.BatchNorm3d(f),
            nn.ReLU(),
            nn.Conv3d(f, f, 3, padding=1),
            nn.BatchNorm3d(f),
        )
        self.project = nn.Identity() if inputs == f else nn.Conv3d(inputs, f, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.project(x))


class ConvLSTMBlock(nn.Module):
    """ConvLSTM2D(f, 3, same, sequences)-BN, as Keras has it: gates by hard sigmoid, candidates by tanh."""

    def __init__(self, inputs: int, f: int) -> None:
        super().__init__()
        self.inputs, self.states = nn.Conv2d(inputs, 4 * f, 3, padding=1), nn.Conv2d(f, 4 * f, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(f)
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.f, *x.shape[3:])
        c, outputs = h, []
        for t in range(x.shape[2]):
            i, g, a, o = (self.inputs(x[:, :, t]) + self.states(h)).chunk(4, 1)
            c = functional.hardsigmoid(g) * c + functional.hardsigmoid(i) * a.tanh()
            h = functional.hardsigmoid(o) * c.tanh()
            outputs.append(h)
        return self.norm(torch.stack(outputs, 2))


class Generator(nn.Module):
    """[N,3,T,H,W] to the same, in [−1,1]."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        first, second, third = widths
        self.encoder = nn.ModuleList([RPB(3, first), RPB(first, second), RPB(second, third)])
        self.memory = ConvLSTMBlock(third, third)
        self.decoder = nn.ModuleList([RPB(third, third), RPB(third, second), RPB(second, first)])
        self.out = nn.Conv3d(first, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
        x = self.memory(x)
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            x = block(x) + skip
        return self.out(x).tanh()


class Discriminator(nn.Module):
    """[N,3,T,H,W] to [N] logits; the original's sigmoid is part of the loss here."""

    def __init__(self, size: tuple[int, int, int], widths: Sequence[int] = WIDTHS, pooled: bool = True) -> None:
        super().__init__()
        first, second, third = widths
        self.blocks = nn.Sequential(RPB(3, first), RPB(first, second), RPB(second, third))
        self.pool = nn.AdaptiveAvgPool3d(POOLED) if pooled else nn.Identity()
        places = POOLED**3 if pooled else size[0] * size[1] * size[2]
        self.dense, self.last = nn.Linear(third * places, DENSE), nn.Linear(DENSE, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.dense(self.pool(self.blocks(x)).flatten(1))))[:, 0]


class Published:
    """Four generators, two discriminators, and one step of both with the published losses and weights.

    Args:
        size: frames, height, width.
        widths: of the three levels.
    """

    def __init__(self, size: tuple[int, int, int], widths: Sequence[int] = WIDTHS, lr: float = 1e-4) -> None:
        torch.manual_seed(0)
        self.networks = nn.ModuleDict({name: Generator(widths) for name in ("to_x", "to_y", "next_x", "next_y")})
        self.judges = nn.ModuleDict({side: Discriminator(size, widths) for side in ("x", "y")})
        self.optimisers = [torch.optim.Adam(m.parameters(), lr) for m in (self.networks, self.judges)]

    def step(self, x: Tensor, y: Tensor) -> float:
        """One update of everything from clips [B,T,3,H,W] in [0,1]; returns the generators' loss."""
        clips = {side: 2 * clip.transpose(1, 2) - 1 for side, clip in (("x", x), ("y", y))}
        made = {"y": self.networks["to_y"](clips["x"]), "x": self.networks["to_x"](clips["y"])}
        bce = functional.binary_cross_entropy_with_logits
        judged = torch.zeros(())
        for side, real in clips.items():
            for clip, target in ((real, 1.0), (made[side].detach(), 0.0)):
                logit = self.judges[side](clip)
                judged = judged + bce(logit, torch.full_like(logit, target))
        self._update(1, judged)
        loss = torch.zeros(())
        for side, away in (("x", "y"), ("y", "x")):
            logit = self.judges[side](made[side])
            adversarial = bce(logit, torch.ones_like(logit))
            real = clips[side]
            recurrent = (self.networks[f"next_{side}"](real[:, :, :-1]) - real[:, :, 1:]).abs().mean()
            cycled = self.networks[f"to_{side}"](self.networks[f"next_{away}"](made[away]))
            recycle = (cycled[:, :, :-1] - real[:, :, 1:]).abs().mean()
            loss = loss + 2 * adversarial + 0.1 * recurrent + 0.1 * recycle  # the video loss is the same term again
        self._update(0, loss)
        return float(loss.detach())

    def _update(self, index: int, loss: Tensor) -> None:
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        loss.backward()
        self.optimisers[index].step()
