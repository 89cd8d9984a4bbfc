r"""How far made clips are from wanted ones, as losses on latents: distribution matching, score identity, adversarial.

x is a clip that a generator made, x_t = (1 − σ)·x + σ·ε its noised copy. The real score is a frozen model of the wanted
clips, the fake score a model of the made ones; both say x̂_0 of x_t: r and f. At equal scores the generator is done.

Pure functions; ``critics`` puts networks behind them and ``self_forcing`` trains with them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from reelign.errors import NonFiniteError
from reelign.paths import shift_sigma


def guide(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    r"""c + w·(c − u): guidance as Self-Forcing's real score is given it (Huang et al. 2025, section 4).

    w = 3 is a guidance scale of 4 in the sampler's convention u + s·(c − u); w = 0 is none.

    Args:
        positive, negative: c and u, same shape.
    """
    return positive + scale * (positive - negative)


def score_sigma(u: Tensor, shift: float, limits: tuple[float, float], span: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    r"""Noise levels at which scores are compared: σ = clamp(k·v/(1 + (k − 1)·v), limits), v = a + (b − a)·u.

    The level is used as it is. The release looks it up on a grid of 1000 and so is off by up to 0.0024 (k = 5) or
    0.0038 (k = 8).

    Args:
        u: [B], uniform in [0, 1).
        shift: k of the path.
        limits: least and largest level.
        span: a and b, levels before the shift between which v lies.
    """
    low, high = span
    return shift_sigma(low + (high - low) * u, shift).clamp(*limits)


def normaliser(x: Tensor, real: Tensor) -> Tensor:
    r"""mean |x − r| of each clip, [B,1,…], without gradient (Yin et al. 2024, DMD, eq. 8).

    Raises:
        NonFiniteError: it is 0 or not a number, so that there is nothing to divide by.
    """
    value = (x - real).detach().abs().mean(dim=tuple(range(1, x.ndim)), keepdim=True)
    if not bool((value > 0).all() and value.isfinite().all()):
        raise NonFiniteError(
            "distribution matching divides by mean |x − r| of each clip, which must be above 0 and finite; "
            f"got {value.flatten().tolist()}: the teacher gives clips back unchanged, or a network gave no numbers"
        )
    return value


def dmd_gradient(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    r"""g = (f − r) / mean |x − r| (Yin et al. 2024, DMD, eq. 7 and 8).

    Args:
        x, real, fake: [B,…], the clip, r and f; no gradient flows into any.
    """
    return ((fake - real) / normaliser(x, real)).detach()


def dmd_loss(x: Tensor, gradient: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""½·mean (x − sg[x − g])², so that dL/dx = g/N (Yin et al. 2024, DMD, algorithm 1); in double precision.

    Args:
        x: [B,…] with gradient.
        gradient: g, same shape.
        mask: bool, broadcastable to ``x``; False is left out, of the mean too.
    """
    target = (x.double() - gradient.double()).detach()
    return 0.5 * _mean((x.double() - target).square(), mask)


def sid_loss(x: Tensor, real: Tensor, fake: Tensor, alpha: float, mask: Tensor | None = None) -> Tensor:
    r"""mean [(r − f)·((r − x) − α·(r − f)) / mean |x − r|] (Zhou et al. 2024, SiD, section 4).

    With the divisor aside this is (r − f)(f − x) + (1 − α)·(r − f)². Gradient flows through x and both scores, not
    through the divisor.

    Args:
        x, real, fake: [B,…], the clip, r and f.
        mask: as in ``dmd_loss``.
    """
    x, real, fake = x.double(), real.double(), fake.double()
    difference = real - fake
    return _mean(difference * ((real - x) - alpha * difference) / normaliser(x, real), mask)


def flow_loss(output: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
    r"""mean (v − (ε − x))², with which the fake score learns made clips (Lipman et al. 2023, eq. 23).

    Args:
        output, clean, noise: [B,…], v, x and ε.
    """
    return (output - (noise - clean)).square().mean()


def relativistic_loss(better: Tensor, worse: Tensor) -> Tensor:
    r"""mean softplus(−(D(better) − D(worse))) (Jolicoeur-Martineau 2019; Huang et al. 2024, R3GAN).

    The discriminator's loss for (real, made) and the generator's for (made, real).

    Args:
        better, worse: [B] logits, paired.
    """
    return functional.softplus(worse - better).mean()


def difference_penalty(value: Tensor, moved: Tensor, sigma: float) -> Tensor:
    r"""mean ((D(x + σ·n) − D(x))/σ)², n normal, which tends to E ‖∇D‖² as σ → 0: R1 on real clips, R2 on made ones.

    Divided by σ, so that its weight does not hang on σ. Without the division, as Lin et al. 2025 (APT, section 3.3) and
    the Self-Forcing paper write it, a weight λ is λ·σ² here: their 30 at σ = 0.05 is 0.075.

    Args:
        value, moved: [B] logits of x and of x + σ·n.
    """
    return ((moved - value) / sigma).square().mean()


def _mean(value: Tensor, mask: Tensor | None) -> Tensor:
    return value.mean() if mask is None else torch.masked_select(value, mask).mean()
