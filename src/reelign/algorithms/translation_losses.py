r"""The losses of unpaired video translation, each a pure function of tensors.

Frames are in [0,1], squared errors are means over values, logits are a discriminator's. ‖·‖² below is such a mean.

    adversarial   bce    D: E[−log σ(D(r))] + E[−log(1 − σ(D(f)))]      G: E[−log σ(D(f))]  (Goodfellow et al. 2014)
                  hinge  D: E[max(0, 1 − D(r))] + E[max(0, 1 + D(f))]   G: E[−D(f)]         (Lim and Ye 2017)
    R1            γ/2·E‖∇_r D(r)‖²                                        (Mescheder et al. 2018, eq. 9)
    recurrent     Σ_t ‖x_{t+1} − P_X(x_{1:t})‖²                             (Bansal et al. 2018, Recycle-GAN, eq. 2)
    recycle       Σ_t ‖x_{t+1} − G_X(P_Y(G_Y(x_{1:t})))‖²                   (the same, eq. 4)
    steadiness    Σ_t E_{u ∈ M_t} |y_t(u) − y_{t−1}(u + B_t(u))|, y = G_Y(x), B_t the flow of x from frame t to t − 1
                  and M_t where it can be trusted                           (Lai et al. 2018, eqs. 3 and 5)

Sums over t are means here, so that weights do not depend on the length. The published code of RL-V2V-GAN compares
G_Y(G_X(x)) with y in its recycle loss, a clip that is no pair of x; the definitions above are meant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from reelign.errors import DataError

Adversarial = Literal["bce", "hinge"]
Map = Callable[[Tensor], Tensor]  # clips to clips, causal


def discriminator_loss(real: Tensor, fake: Tensor, kind: Adversarial) -> Tensor:
    """Of a discriminator, from logits [N] and [M]; at a logit of 0 everywhere it is 2·log 2 (bce) or 2 (hinge)."""
    if kind == "bce":
        return functional.softplus(-real).mean() + functional.softplus(fake).mean()
    return functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()


def generator_loss(fake: Tensor, kind: Adversarial) -> Tensor:
    """L_g, for each logit [N]; its mean is the loss. bce is at least 0, hinge any number."""
    return functional.softplus(-fake) if kind == "bce" else -fake


def r1_penalty(discriminator: Map, real: Tensor) -> Tensor:
    """E‖∇_r D(r)‖², the sum of squares for each of real [N,…], averaged; times γ/2 it is R1."""
    real = real.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return slope.square().flatten(1).sum(1).mean()


def next_frame_error(predicted: Tensor, clips: Tensor) -> Tensor:
    """‖x_{t+1} − x̂_{t+1}‖² for each clip and t < T: [B,T−1].

    Args:
        predicted: [B,T,3,H,W], at t the guess of the frame after t; the last guess has no truth and is left out.
        clips: [B,T,3,H,W].

    Raises:
        DataError: the clips have one frame, which nothing follows.
    """
    if clips.shape[1] < 2:
        raise DataError(f"to predict a next frame, clips have at least 2; got {clips.shape[1]}")
    return (clips[:, 1:] - predicted[:, :-1]).square().mean((2, 3, 4))


def recurrent_loss(predict: Map, clips: Tensor) -> Tensor:
    """L_rr: how far P(x_{1:t}) is from x_{t+1}, over all t < T.

    Args:
        predict: P, all positions at once.
        clips: [B,T,3,H,W] of its domain.
    """
    return next_frame_error(predict(clips), clips).mean()


def recycle_loss(there: Map, predict: Map, back: Map, clips: Tensor) -> Tensor:
    """L_rc: how far back(predict(there(x_{1:t}))) is from x_{t+1}, over all t < T.

    Args:
        there, predict, back: G_Y, P_Y and G_X for clips of x; G_X, P_X and G_Y for clips of y.
        clips: [B,T,3,H,W].
    """
    return next_frame_error(back(predict(there(clips))), clips).mean()


def cycle_loss(there: Map, back: Map, clips: Tensor) -> Tensor:
    """E|x − back(there(x))|, mean of absolute values (Zhu et al. 2017, CycleGAN, eq. 2); no part of RL-V2V-GAN."""
    return (clips - back(there(clips))).abs().mean()


def identity_loss(to_own: Map, clips: Tensor) -> Tensor:
    """E|y − G_Y(y)|: what is of the domain stays as it is (Zhu et al. 2017, section 5.2); no part of RL-V2V-GAN."""
    return (clips - to_own(clips)).abs().mean()


def steadiness_loss(made: Tensor, flow: Tensor, trusted: Tensor) -> Tensor:
    """How far a translation is from moving as its source, mean over trusted pixels; no part of RL-V2V-GAN.

    Args:
        made: [B,T,3,H,W], the translation.
        flow: [B,T−1,2,H,W], of the source from each frame but the first to the one before; x and y, in pixels.
        trusted: bool [B,T−1,H,W]. 0 where there is none.
    """
    before, after = pictures(made[:, :-1]), pictures(made[:, 1:])
    height, width = made.shape[-2:]
    rows, columns = torch.meshgrid(*(torch.arange(n, device=made.device) for n in (height, width)), indexing="ij")
    where = torch.stack([columns, rows], -1) + pictures(flow).movedim(1, -1)
    where = 2 * where / where.new_tensor([width - 1, height - 1]) - 1
    moved = functional.grid_sample(before, where, padding_mode="border", align_corners=True)
    error = (after - moved).abs().mean(1) * pictures(trusted)
    return error.sum() / trusted.sum().clamp(min=1)


def pictures(clips: Tensor) -> Tensor:
    """[B,T,3,H,W] to [B·T,3,H,W]."""
    return clips.flatten(0, 1)
