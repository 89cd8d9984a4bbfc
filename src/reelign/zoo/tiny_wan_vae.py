"""``zoo:tiny-wan``'s causal video autoencoder: diffusers' ``AutoencoderKLWan``, 1.8 M parameters.

It compresses 64×64 clips of 4n + 1 frames by 8 in space and by 4 in time into 8 channels, as Wan's own does into 16
or 48. Trained on moving shapes with an absolute error and a light Kullback-Leibler term: single frames, short windows,
whole clips. The latents' mean and spread are measured at the end and written into the config, where
diffusers looks for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d
from torch import Tensor

from reelign.datasets.moving_shapes import ALL_MOTIONS, MovingShapes
from reelign.zoo.fitting import FitConfig, fit

KL_WEIGHT = 1e-4
SHAPE_WEIGHT = 10.0  # a shape covers a twentieth of the picture; without this its colour is never learned
# Peak learning rate, steps, and the windows (frames, clips) that a phase draws from. Single frames teach sharp edges
# cheaply; whole clips are needed because the decoder's memory reaches further back than a short window, and colours
# drift in later frames without them.
MIXED = ((17, 4), (17, 4), (5, 12), (1, 48))
PHASES = (
    (2e-3, 2070, ((1, 16),)),
    (2e-3, 1840, ((5, 8),)),
    (1e-3, 1650, ((17, 4),)),
    (1.5e-3, 1200, ((1, 48),)),
    (1e-3, 1000, MIXED),
    (3e-4, 1000, MIXED),
)
POOL = 64  # clips drawn at a time, from which windows are cut
START_LOGVAR = -5.0  # begin almost deterministic: at unit noise nothing gets through and training stalls


def build_vae() -> AutoencoderKLWan:
    """The untrained autoencoder, with the configuration that ships."""
    return AutoencoderKLWan(
        base_dim=16,
        z_dim=8,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        patch_size=2,
        in_channels=12,
        out_channels=12,
        latents_mean=[0.0] * 8,
        latents_std=[1.0] * 8,
        scale_factor_spatial=8,
        scale_factor_temporal=4,
    )


def reconstruction_loss(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Absolute error, shapes weighted more than background; both [N,3,T,H,W] in [-1,1]."""
    background = target[..., :1, :1]
    shape = ((target - background).abs().amax(1, keepdim=True) > 0.1).to(target.dtype)
    return ((1 + SHAPE_WEIGHT * shape) * (reconstruction - target).abs()).mean()


def kl_to_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean over elements of KL(N(mean, exp(logvar)) ‖ N(0, 1))."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def train_vae(scale: float = 1.0, seed: int = 0) -> AutoencoderKLWan:
    """Train the autoencoder through ``PHASES`` (``scale`` times the steps of each) and calibrate its latents."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    vae = build_vae()
    torch.nn.init.constant_(vae.quant_conv.bias[vae.z_dim :], START_LOGVAR)
    data = MovingShapes(motions=ALL_MOTIONS)
    for lr, steps, windows in PHASES:
        train_phase(vae, data, random, windows, FitConfig(max(1, round(steps * scale)), lr, average=0.99))
    vae.eval().requires_grad_(False)
    calibrate(vae, data, random)
    return vae


def train_phase(
    vae: AutoencoderKLWan,
    data: MovingShapes,
    random: torch.Generator,
    windows: tuple[tuple[int, int], ...],
    config: FitConfig,
) -> None:
    """Train on windows drawn from ``windows`` = ((frames, clips), …)."""
    pool, unused = torch.empty(0), 0

    def loss(step: int) -> Tensor:
        nonlocal pool, unused
        if unused <= 0:
            pool = data.batch(POOL, random)[0].transpose(1, 2) * 2 - 1
            unused = pool.shape[0] * pool.shape[2]
        frames, clips = windows[int(torch.randint(len(windows), (1,), generator=random))]
        rows = torch.randint(len(pool), (clips,), generator=random)
        starts = torch.randint(pool.shape[2] - frames + 1, (clips,), generator=random)
        window = torch.stack(
            [pool[row, :, s : s + frames] for row, s in zip(rows.tolist(), starts.tolist(), strict=True)]
        )
        unused -= frames * clips
        posterior = vae.encode(window).latent_dist
        reconstruction = vae.decode(posterior.sample(generator=random)).sample
        return reconstruction_loss(reconstruction, window) + KL_WEIGHT * kl_to_normal(posterior.mean, posterior.logvar)

    with single_frames_in_two_dimensions():
        fit([vae], loss, config, f"tiny-wan VAE, {len(windows)} kinds of window")


@contextmanager
def single_frames_in_two_dimensions() -> Iterator[None]:
    """Inside, causal convolutions of one frame skip the taps that would see only padding: the same values, faster."""
    original = WanCausalConv3d.forward

    def forward(self: WanCausalConv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        if x.shape[2] > 1 or cache_x is not None or self.stride[0] > 1:
            out: Tensor = original(self, x, cache_x)
            return out
        padded = F.pad(x[:, :, 0], self._padding[:4])
        return F.conv2d(padded, self.weight[:, :, -1], self.bias, self.stride[1:])[:, :, None]

    WanCausalConv3d.forward = forward
    try:
        yield
    finally:
        WanCausalConv3d.forward = original


@torch.no_grad()
def calibrate(vae: AutoencoderKLWan, data: MovingShapes, random: torch.Generator, clips: int = 256) -> None:
    """Write the channel mean and standard deviation of the latents of fresh clips into the VAE's config."""
    latents = []
    for _ in range(clips // 32):
        video = data.batch(32, random)[0].transpose(1, 2) * 2 - 1
        latents.append(vae.encode(video).latent_dist.mode())
    channels = torch.cat(latents).transpose(0, 1).flatten(1)
    vae.register_to_config(
        latents_mean=[round(v, 5) for v in channels.mean(1).tolist()],
        latents_std=[round(v, 5) for v in channels.std(1).tolist()],
    )
