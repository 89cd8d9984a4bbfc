r"""Open-Sora's video autoencoder 1.2, written here under the published names: a picture VAE, then one over time.

The picture VAE is that of SDXL in diffusers' layout: frames to four channels at an eighth of the size, times 0.18215.
The temporal one is causal: it fills 17 frames up to 20 with zeros in front and makes 5 of them; longer clips go through
it 17 frames at a time, a single picture as one. ``shift`` and ``scale`` of the checkpoint centre and scale the latents.

Group norms look at all frames of such a piece, so a frame depends on the five latents of its piece and on no others;
the picture VAE decodes the asked frames alone.

No golden number holds this file: names, sizes, padding and constants are as published to our knowledge; loading refuses
weights that do not fit, and docs/generators/opensora.md says what is tested.

Left out: clips whose length is not a multiple of 17; draws from the posterior (its mode is taken); training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from reelign.errors import ModelError
from reelign.generators.levers import recomputed
from reelign.zoo.published import depth, fill, read_folder
from reelign.zoo.skeletons import fake_network, hollow

PIECE, PIECE_LATENTS = 17, 5  # frames that the temporal VAE sees at a time, and what they become
SPATIAL_SCALE = 0.18215  # of the picture VAE's latents; SDXL's own would be 0.13025
SPATIAL_RATIO = 8
GROUPS = 32
SHIFT, SCALE = (-0.10, 0.34, 0.27, 0.98), (3.85, 2.32, 2.33, 3.06)  # as published; a checkpoint brings its own


def latent_frames(frames: int) -> int:
    """Latent frames of a clip: 1 of a picture, else 5 of every 17 frames."""
    return 1 if frames == 1 else frames // PIECE * PIECE_LATENTS


@dataclass(frozen=True)
class VAESizes:
    """Sizes that a checkpoint's weights show; the defaults are the published ones.

    Args:
        picture_widths, picture_layers: of the picture VAE, width and residual blocks of each level.
        filters, multipliers, layers: of the temporal VAE, first width, width of each level per that, residual blocks.
        halved: after which levels but the last the number of frames is halved.
    """

    picture_widths: tuple[int, ...] = (128, 256, 512, 512)
    picture_layers: int = 2
    filters: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    layers: int = 4
    halved: tuple[bool, ...] = (False, True, True)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> VAESizes:
        """Read the sizes off the weights.

        Raises:
            ModelError: they are not of this autoencoder.
        """
        picture, time = "spatial_vae.module.encoder.down_blocks.", "temporal_vae.encoder."

        def width(name: str) -> int:
            if f"{name}.weight" not in weights:
                raise ModelError(
                    f"an Open-Sora 1.2 autoencoder has {name}.weight, and these weights do not: give the files of "
                    "hpcai-tech/OpenSora-VAE-v1.2"
                )
            return len(weights[f"{name}.weight"])

        filters = width(f"{time}conv_in.conv")
        levels = depth(weights, f"{time}block_res_blocks.")
        widths = [width(f"{time}block_res_blocks.{i}.0.conv1.conv") for i in range(levels)]
        return cls(
            tuple(width(f"{picture}{i}.resnets.0.conv1") for i in range(depth(weights, picture))),
            depth(weights, f"{picture}0.resnets."),
            filters,
            tuple(w // filters for w in widths),
            depth(weights, f"{time}res_blocks."),
            tuple(f"{time}conv_blocks.{i}.conv.weight" in weights for i in range(levels - 1)),
        )


class CausalConv3d(nn.Module):
    """A convolution that sees no later frame; zeros stand where there is none."""

    def __init__(self, channels: int, out: int, kernel: int, time_stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        around = kernel // 2
        self.padding = (around, around, around, around, kernel - time_stride, 0)
        self.conv = nn.Conv3d(channels, out, kernel, (time_stride, 1, 1), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,T,h,w] to [B,out,T/time_stride,h,w]."""
        out: Tensor = self.conv(pad(x, self.padding))
        return out


class ResBlock(nn.Module):
    """x + f(x), f two causal convolutions, each after a group norm over all frames and SiLU."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv1 = CausalConv3d(channels, out, 3, bias=False)
        self.norm2 = nn.GroupNorm(GROUPS, out)
        self.conv2 = CausalConv3d(out, out, 3, bias=False)
        self.conv3 = CausalConv3d(channels, out, 1, bias=False) if channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        """[B,channels,T,h,w] to [B,out,T,h,w]."""
        inside = self.conv2(silu(self.norm2(self.conv1(silu(self.norm1(x))))))
        out: Tensor = inside + (x if self.conv3 is None else self.conv3(x))
        return out


def res_blocks(channels: int, out: int, count: int) -> nn.Sequential:
    """``count`` blocks one after another, the first of which changes the width."""
    return nn.Sequential(*(ResBlock(channels if i == 0 else out, out) for i in range(count)))


def doubled(x: Tensor) -> Tensor:
    """Twice the frames from pairs of channels, [B,2C,T,h,w] to [B,C,2T,h,w]."""
    batch, channels, frames, *space = x.shape
    return x.view(batch, channels // 2, 2, frames, *space).transpose(2, 3).reshape(batch, -1, 2 * frames, *space)


class Encoder(nn.Module):
    """[B,4,T,h,w] to twice the latents' channels at T/4 frames."""

    def __init__(self, sizes: VAESizes, channels: int) -> None:
        super().__init__()
        widths = [sizes.filters * m for m in sizes.multipliers]
        before = [sizes.filters, *widths]
        self.conv_in = CausalConv3d(channels, sizes.filters, 3, bias=False)
        self.block_res_blocks = nn.ModuleList(
            res_blocks(a, b, sizes.layers) for a, b in zip(before[:-1], widths, strict=True)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(w, w, 3, time_stride=2) if halve else nn.Identity()
            for w, halve in zip(widths[:-1], sizes.halved, strict=True)
        )
        self.res_blocks = res_blocks(widths[-1], widths[-1], sizes.layers)
        self.norm1 = nn.GroupNorm(GROUPS, widths[-1])
        self.conv2 = CausalConv3d(widths[-1], 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Moments before ``quant_conv``."""
        x = self.conv_in(x)
        for level, blocks in enumerate(self.block_res_blocks):
            x = blocks(x)
            if level < len(self.conv_blocks):
                x = self.conv_blocks[level](x)
        out: Tensor = self.conv2(silu(self.norm1(self.res_blocks(x))))
        return out


class Decoder(nn.Module):
    """The encoder's mirror: where it halves the frames, a convolution makes twice the channels, and they become two."""

    def __init__(self, sizes: VAESizes, channels: int) -> None:
        super().__init__()
        widths = [sizes.filters * m for m in sizes.multipliers]
        self.conv1 = CausalConv3d(channels, widths[-1], 3)
        self.res_blocks = res_blocks(widths[-1], widths[-1], sizes.layers)
        after = [*widths[1:], widths[-1]]
        self.block_res_blocks = nn.ModuleList(
            res_blocks(a, b, sizes.layers) for a, b in zip(after, widths, strict=True)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(w, 2 * w, 3) if halved else nn.Identity()
            for w, halved in zip(widths[1:], sizes.halved, strict=True)
        )
        self.norm1 = nn.GroupNorm(GROUPS, widths[0])
        self.conv_out = CausalConv3d(widths[0], channels, 3)

    def forward(self, z: Tensor) -> Tensor:
        """[B,4,F,h,w] after ``post_quant_conv`` to [B,4,4F,h,w]."""
        x = self.res_blocks(self.conv1(z))
        for level in reversed(range(len(self.block_res_blocks))):
            x = self.block_res_blocks[level](x)
            if level > 0 and isinstance(self.conv_blocks[level - 1], CausalConv3d):
                x = doubled(self.conv_blocks[level - 1](x))
        out: Tensor = self.conv_out(silu(self.norm1(x)))
        return out


class TemporalVAE(nn.Module):
    """The VAE over time, of one piece: 17 frames of picture latents, or one."""

    def __init__(self, sizes: VAESizes, channels: int = 4) -> None:
        super().__init__()
        self.ratio = 2 ** sum(sizes.halved)
        self.encoder, self.decoder = Encoder(sizes, channels), Decoder(sizes, channels)
        self.quant_conv = CausalConv3d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = CausalConv3d(channels, channels, 1)

    def encode(self, x: Tensor) -> Tensor:
        """[B,4,T,h,w] to the posterior's mode [B,4,ceil(T/4),h,w]."""
        front = -x.shape[2] % self.ratio
        mode: Tensor = self.quant_conv(self.encoder(pad(x, (0, 0, 0, 0, front, 0)))).chunk(2, dim=1)[0]
        return mode

    def decode(self, z: Tensor, frames: int) -> Tensor:
        """[B,4,F,h,w] to the last ``frames`` of the 4F it becomes, those in front being padding."""
        x: Tensor = self.decoder(self.post_quant_conv(z))
        return x[:, :, x.shape[2] - frames :]


class OpenSoraVAE(nn.Module):
    """Clips in [-1,1] to normalised latents and back; its ``state_dict`` has the published names.

    Frames go through the picture VAE one after another. ``recompute`` computes each again in the backward pass, and
    each piece of the temporal VAE too.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, sizes: VAESizes | None = None) -> None:
        super().__init__()
        self.recompute = False
        sizes = sizes or VAESizes()
        levels = len(sizes.picture_widths)
        picture = AutoencoderKL(
            block_out_channels=sizes.picture_widths,
            layers_per_block=sizes.picture_layers,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            latent_channels=4,
            norm_num_groups=GROUPS,
        )
        self.spatial_vae = nn.ModuleDict({"module": picture})
        self.temporal_vae = TemporalVAE(sizes)
        self.register_buffer("shift", torch.tensor(SHIFT)[None, :, None, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[None, :, None, None, None])

    @property
    def picture_vae(self) -> AutoencoderKL:
        """The VAE of single frames."""
        return self.spatial_vae["module"]

    def decode(self, z: Tensor, frames: Sequence[int]) -> Tensor:
        """Frames of clips, with gradient.

        Args:
            z: [B,4,F,h,w], F being 1 or 5 for every 17 frames.
            frames: indices into the clip, in any order; the others are not decoded.

        Returns:
            [B,len(frames),3,H,W], about in [-1,1].
        """
        plain = z * self.scale.to(z.dtype) + self.shift.to(z.dtype)
        length = 1 if z.shape[2] == 1 else PIECE
        wanted = sorted(set(frames))
        found: dict[int, Tensor] = {}
        for number, piece in enumerate(torch.split(plain, PIECE_LATENTS, dim=2)):
            inside = [f for f in wanted if f // length == number]
            if inside:
                decoded = recomputed(self.temporal_vae.decode, piece, length, when=self.recompute)
                found |= {f: decoded[:, :, f % length] for f in inside}
        pictures = (recomputed(self._picture, found[f] / SPATIAL_SCALE, when=self.recompute) for f in frames)
        return torch.stack(list(pictures), dim=1)

    def encode(self, video: Tensor) -> Tensor:
        """Clips [B,T,3,H,W] in [-1,1], T being 1 or a multiple of 17, to latents by the modes of the posteriors."""
        pictures = [self.picture_vae.encode(part).latent_dist.mode() for part in torch.split(video.flatten(0, 1), 1)]
        x = torch.cat(pictures).view(*video.shape[:2], *pictures[0].shape[1:]).transpose(1, 2) * SPATIAL_SCALE
        z = torch.cat([self.temporal_vae.encode(piece) for piece in torch.split(x, PIECE, dim=2)], dim=2)
        return (z - self.shift) / self.scale

    def _picture(self, z: Tensor) -> Tensor:
        picture: Tensor = self.picture_vae.decode(z, return_dict=False)[0]
        return picture


def load_opensora_vae(source: str) -> OpenSoraVAE:
    """The autoencoder of ``hpcai-tech/OpenSora-VAE-v1.2``, or of a folder in that layout, in float32, frozen.

    Raises:
        ModelError: there is none, or it does not fit.
    """
    if hollow() and not Path(source).expanduser().is_dir():
        published: OpenSoraVAE = fake_network(OpenSoraVAE)
        return published
    weights = read_folder(source)
    with torch.device("meta"):
        vae = OpenSoraVAE(VAESizes.of(weights))
    vae.to_empty(device="cpu")
    fill(vae, weights, source)
    return vae
