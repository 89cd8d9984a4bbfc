r"""Noise paths: how each family of models goes from data to noise, as x_t = α_t·x_0 + σ_t·ε.

``FlowPath`` (rectified flow: Wan, LTX-Video, HunyuanVideo, Open-Sora), ``DiscretePath`` (DDPM-style tables:
ModelScope, CogVideoX, VideoCrafter2) and ``KarrasPath`` (EDM: Stable Video Diffusion). A path gives the schedule of a
chain and says what the network predicts; ``endpoints`` turns any of the four predictions into x̂_0 and ε̂.

Left out: learned variances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reelign.contracts import Prediction, Schedule
from reelign.errors import ConfigError


def endpoints(kind: Prediction, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    r"""x̂_0 and ε̂ from a network output at signal level α and noise level σ.

    - ``epsilon``: x̂_0 = (x − σ·ε̂)/α  (Ho et al. 2020, eq. 15)
    - ``v`` = α·ε − σ·x_0, with α² + σ² = 1: x̂_0 = α·x − σ·v, ε̂ = σ·x + α·v  (Salimans and Ho 2022, app. D)
    - ``flow`` = ε − x_0, with α + σ = 1: x̂_0 = x − σ·v, ε̂ = x + α·v  (Liu et al. 2023, eq. 1)
    - ``x0``: ε̂ = (x − α·x̂_0)/σ

    Args:
        output, x: same shape; the result has it too.
        alpha, sigma: scalars, or broadcastable to ``x``.
    """
    if kind == "flow":
        return x - sigma * output, x + alpha * output
    if kind == "epsilon":
        return (x - sigma * output) / alpha, output
    if kind == "v":
        return alpha * x - sigma * output, sigma * x + alpha * output
    return output, (x - alpha * output) / sigma


def training_target(kind: Prediction, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    r"""What a network of this kind should say of x = α·x_0 + σ·ε: the inverse of ``endpoints``.

    ``epsilon``: ε. ``v``: α·ε − σ·x_0. ``flow``: ε − x_0. ``x0``: x_0.

    Args:
        clean, noise: x_0 and ε, same shape; the result has it too.
        alpha, sigma: scalars, or broadcastable to ``clean``.
    """
    if kind == "flow":
        return noise - clean
    if kind == "epsilon":
        return noise
    return alpha * noise - sigma * clean if kind == "v" else clean


def ancestral_noise(alpha: Tensor, sigma: Tensor) -> Tensor:
    r"""σ_{s|t} = (σ_s/σ_t)·sqrt(1 − α_t²/α_s²) for each step of a chain (Song et al. 2021, DDIM, eq. 16).

    Args:
        alpha, sigma: [S+1], from noise to data.

    Returns:
        [S].
    """
    return sigma[1:] / sigma[:-1] * (1 - (alpha[:-1] / alpha[1:]).square()).clamp_min(0).sqrt()


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    r"""Move noise levels towards noise: σ' = k·σ/(1 + (k − 1)·σ) (Esser et al. 2024, Stable Diffusion 3, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


@dataclass(frozen=True)
class FlowPath:
    """Rectified flow, α = 1 − σ, the network predicts ε − x_0 and is given t = 1000·σ.

    Args:
        shift: k of ``shift_sigma``; Wan 2.1 uses 3 at 480p and 5 at 720p.
        train_steps: size of the training grid, which sets the smallest noise level.
        grid_end: unshifted level at which the grid of a chain ends, itself left out; None is 1/train_steps. With 0,
            four steps are at 1, 3/4, 1/2 and 1/4, as few-step students are trained (Huang et al. 2025, Self-Forcing).
        terminal: level that the last step starts from; the levels above are stretched evenly to reach it, as 1 − σ
            goes from 0 to 1 − terminal (LTX-Video, HaCohen et al. 2024: 0.1). None leaves them.
    """

    shift: float = 1.0
    train_steps: int = 1000
    grid_end: float | None = None
    terminal: float | None = None

    @property
    def prediction(self) -> Prediction:
        """Always ``flow``."""
        return "flow"

    def schedule(self, steps: int) -> Schedule:
        """Wan's own grid: σ from 1 to 1/1000 in S + 1 equal parts without the last, shifted, then 0.

        That of diffusers' ``UniPCMultistepScheduler`` with flow sigmas, which Wan ships with. (The grid of
        ``FlowMatchEulerDiscreteScheduler`` ends at 1/1000, so that its last step does nothing: a gradient of the last
        step alone is then as good as none.)
        """
        if steps < 1:
            raise ConfigError(f"a chain has at least 1 step; got {steps}")
        end = 1 / self.train_steps if self.grid_end is None else self.grid_end
        grid = torch.linspace(1, end, steps + 1, dtype=torch.float64)[:-1]
        levels = shift_sigma(grid, self.shift)
        if self.terminal is not None and steps > 1:
            levels = 1 - (1 - levels) * (1 - self.terminal) / (1 - levels[-1])
        sigma = torch.cat([levels, torch.zeros(1, dtype=torch.float64)])
        alpha = 1 - sigma
        return Schedule(sigma[:-1] * self.train_steps, alpha, sigma, ancestral_noise(alpha, sigma))


@dataclass(frozen=True)
class DiscretePath:
    """A table of cumulative products ᾱ, α = s·sqrt(ᾱ) and σ = sqrt(1 − ᾱ), sampled on one of two grids.

    ``leading``: 1 + k·(N // S); the last step goes to index 0 of the table, not to a clean signal, as VGen's and
    VideoCrafter's samplers do. ``trailing``: round(N − k·N/S) − 1, from the noisiest entry on; the last step goes to a
    clean signal, as CogVideoX samples (Lin et al. 2024, Common Diffusion Noise Schedules, table 2).

    Args:
        alphas_cumprod: [N] float64.
        prediction: what the network predicts.
        scale: [N] or longer, s; None is 1 everywhere. VideoCrafter2 lowers it (``falling_scale``). The noise an
            ancestral step adds is computed without it, as its authors do.
        grid: ``leading`` or ``trailing``; the latter takes no scale.
    """

    alphas_cumprod: Tensor
    prediction: Prediction = "epsilon"
    scale: Tensor | None = None
    grid: Literal["leading", "trailing"] = "leading"

    def schedule(self, steps: int) -> Schedule:
        """The points of the grid, descending; each step goes to the point below, the last to index 0 or to data."""
        size = len(self.alphas_cumprod)
        if not 1 <= steps <= size:
            raise ConfigError(f"a chain has 1 to {size} steps; got {steps}")
        if self.grid == "trailing":
            t = (size - torch.arange(steps, dtype=torch.float64) * size / steps).round().long() - 1
            plain = torch.cat([self.alphas_cumprod.double()[t].sqrt(), torch.ones(1, dtype=torch.float64)])
            sigma = (1 - plain.square()).sqrt()
            return Schedule(t.double(), plain, sigma, ancestral_noise(plain, sigma))
        return self.chain(torch.arange(steps).flip(0) * (size // steps) + 1)

    def chain(self, t: Tensor, last: int = 0) -> Schedule:
        """The chain through the descending table indices ``t`` [S], ending at index ``last``."""
        visited = torch.cat([t, torch.tensor([last])])
        plain = self.alphas_cumprod.double()[visited].sqrt()
        scale = torch.ones(len(visited), dtype=torch.float64) if self.scale is None else self.scale.double()[visited]
        sigma = (1 - plain.square()).sqrt()
        return Schedule(t.double(), plain * scale, sigma, ancestral_noise(plain, sigma))


@dataclass(frozen=True)
class KarrasPath:
    r"""EDM's noise levels with the v-prediction of Stable Video Diffusion (Blattmann et al. 2023, app. D).

    EDM adds noise without lowering the signal, y = x_0 + s·ε, and gives the network y/sqrt(s² + 1). Those are the very
    latents here: x = y/sqrt(s² + 1) has α = 1/sqrt(s² + 1) and σ = s/sqrt(s² + 1), starts as noise of variance 1, and
    DDIM on it is EDM's Euler step on y. The network is given t = ln(s)/4.

    Args:
        low, high: least and largest s; Stable Video Diffusion samples from 700 to 0.002.
        rho: how levels crowd towards data (Karras et al. 2022, eq. 5).
    """

    low: float = 0.002
    high: float = 700.0
    rho: float = 7.0

    @property
    def prediction(self) -> Prediction:
        """Always ``v``."""
        return "v"

    def schedule(self, steps: int) -> Schedule:
        """s_i = (high^(1/ρ) + i/(S−1)·(low^(1/ρ) − high^(1/ρ)))^ρ, then 0 (Karras et al. 2022, eq. 5)."""
        if steps < 1:
            raise ConfigError(f"a chain has at least 1 step; got {steps}")
        ends = self.high ** (1 / self.rho), self.low ** (1 / self.rho)
        s = torch.linspace(*ends, steps, dtype=torch.float64) ** self.rho
        alpha = torch.cat([(s.square() + 1).rsqrt(), torch.ones(1, dtype=torch.float64)])
        sigma = torch.cat([s * (s.square() + 1).rsqrt(), torch.zeros(1, dtype=torch.float64)])
        return Schedule(s.log() / 4, alpha, sigma, ancestral_noise(alpha, sigma))


def scaled_linear_alphas(start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> Tensor:
    r"""ᾱ of the schedule of Stable Diffusion and its video heirs: β = linspace(√start, √end, N)², [N] float64."""
    beta = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
    return torch.cumprod(1 - beta, 0)


def falling_scale(end: float = 0.7, fall: int = 400, steps: int = 1000) -> Tensor:
    """s of VideoCrafter2: from 1 to ``end`` in equal parts over ``fall`` entries, then ``end``; [fall + steps] float64.

    Its authors' array has 1400 entries, of which a chain reads the first 1000: the fall ends at 399 of 999.
    """
    return torch.cat([torch.linspace(1, end, fall, dtype=torch.float64), torch.full((steps,), end).double()])
