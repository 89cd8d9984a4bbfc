"""VideoCrafter2's text-to-video U-Net (Chen et al. 2024, arXiv 2401.09047), under its published names.

A latent-diffusion U-Net of pictures whose every residual block ends in convolutions over time, and whose every
transformer over space is followed by one over time. It predicts ε, and is told the time, the text and the frame rate.

Left out: the image branch of VideoCrafter's image-to-video model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reelign.errors import ModelError
from reelign.generators.videocrafter_layers import (
    GROUPS,
    INITIAL_HEADS,
    Down,
    Given,
    Residual,
    SpatialTransformer,
    TemporalTransformer,
    Up,
    to_pictures,
    to_video,
)
from reelign.zoo.published import depth, fill, read_weights

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Sizes:
    """How large a VideoCrafter U-Net is; the defaults are the published one, of 1,413,284,420 parameters.

    Args:
        channels: of each level, finest first.
        attention: which levels have transformers.
        blocks: residual blocks a level.
        head: width of an attention head.
        text: width of the text states.
        latent: channels of a latent.
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention: tuple[bool, ...] = (True, True, True, False)
    blocks: int = 2
    head: int = 64
    text: int = 1024
    latent: int = 4


class VideoCrafterUNet(nn.Module):
    """ε of latents [B,C,F,h,w]; h and w are multiples of 2^(levels − 1).

    Args:
        sizes: see ``Sizes``.
    """

    def __init__(self, sizes: Sizes | None = None) -> None:
        super().__init__()
        self.sizes = sizes = sizes or Sizes()
        self.gradient_checkpointing = False
        base = sizes.channels[0]
        self.time_embed, self.fps_embedding = (
            nn.Sequential(nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, 4 * base)) for _ in range(2)
        )
        self.init_attn = nn.ModuleList([TemporalTransformer(base, sizes.head, initial=True)])
        first = nn.ModuleList([nn.Conv2d(sizes.latent, base, 3, padding=1)])
        self.input_blocks, kept = nn.ModuleList([first]), [base]
        for level, channels in enumerate(sizes.channels):
            for _ in range(sizes.blocks):
                self.input_blocks.append(self._block(level, kept[-1]))
                kept.append(channels)
            if level + 1 < len(sizes.channels):
                self.input_blocks.append(nn.ModuleList([Down(channels)]))
                kept.append(channels)
        last = sizes.channels[-1]
        self.middle_block = nn.ModuleList(
            [Residual(last, last, 4 * base), *self._transformers(last), Residual(last, last, 4 * base)]
        )
        self.output_blocks, inside = nn.ModuleList(), last
        for level, channels in reversed(list(enumerate(sizes.channels))):
            for number in range(sizes.blocks + 1):
                block = self._block(level, inside + kept.pop())
                if level and number == sizes.blocks:
                    block.append(Up(channels))
                self.output_blocks.append(block)
                inside = channels
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, base), nn.SiLU(), nn.Conv2d(base, sizes.latent, 3, padding=1))

    def _block(self, level: int, inside: int) -> nn.ModuleList:
        channels = self.sizes.channels[level]
        residual = Residual(inside, channels, 4 * self.sizes.channels[0])
        return nn.ModuleList([residual, *(self._transformers(channels) if self.sizes.attention[level] else ())])

    def _transformers(self, channels: int) -> tuple[nn.Module, nn.Module]:
        head = self.sizes.head
        return SpatialTransformer(channels, head, self.sizes.text), TemporalTransformer(channels, head)

    def forward(self, x: Tensor, t: Tensor, text: Tensor, fps: Tensor) -> Tensor:
        """ε [B,C,F,h,w].

        Args:
            x: [B,C,F,h,w].
            t: [B], index of the diffusion step, 0 to 999.
            text: [B,L,D].
            fps: [B], frames per second of the clip.
        """
        embedding = self.time_embed(self._sinusoid(t)) + self.fps_embedding(self._sinusoid(fps))
        given = Given(embedding, text, x.shape[2])
        hidden = self.input_blocks[0][0](to_pictures(x))  # type: ignore[index]
        kept = [hidden := self._run(self.init_attn, hidden, given)]
        for block in self.input_blocks[1:]:
            kept.append(hidden := self._run(block, hidden, given))
        hidden = self._run(self.middle_block, hidden, given)
        for block in self.output_blocks:
            hidden = self._run(block, torch.cat([hidden, kept.pop()], dim=1), given)
        return to_video(self.out(hidden), given.frames)

    def _sinusoid(self, values: Tensor) -> Tensor:
        weight: Tensor = self.time_embed[0].weight  # type: ignore[assignment]
        return sinusoid(values, self.sizes.channels[0]).to(weight.dtype)

    def _run(self, block: nn.Module, x: Tensor, given: Given) -> Tensor:
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        for layer in block.children():
            # nothing in a layer is random
            x = (
                checkpoint(layer, x, given, use_reentrant=False, preserve_rng_state=False)
                if recompute
                else layer(x, given)
            )
        return x

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the inside of each layer in the backward pass."""
        self.gradient_checkpointing = True

    def save_pretrained(self, folder: Path) -> None:
        """Write every weight to ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)

    @classmethod
    def from_pretrained(cls, folder: Path) -> VideoCrafterUNet:
        """Read back what ``save_pretrained`` wrote; raises ModelError where there is none."""
        weights = read_weights(str(folder / WEIGHTS), float32=False)
        network = cls(read_sizes(weights, str(folder)))
        fill(network, weights, str(folder))
        return network


def sinusoid(values: Tensor, size: int) -> Tensor:
    r"""cos(v·ω_k), then sin(v·ω_k), with ω_k = 10000^(−k/(size/2)): [B] to [B,size], at least single precision."""
    exact = torch.float64 if values.dtype == torch.float64 else torch.float32
    half = torch.arange(size // 2, dtype=exact, device=values.device)
    angles = values.to(exact)[:, None] * torch.exp(-math.log(10_000) * half / (size // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def read_sizes(weights: Mapping[str, Tensor], source: str) -> Sizes:
    """The sizes of a U-Net, read off its published weights.

    Raises:
        ModelError: they are not those of a VideoCrafter text-to-video U-Net with a frame rate.
    """
    needed = ("input_blocks.0.0.weight", "init_attn.0.proj_in.weight", "fps_embedding.0.weight",
              "middle_block.1.transformer_blocks.0.attn2.to_k.weight")  # fmt: skip
    if missing := [name for name in needed if name not in weights]:
        raise ModelError(f"a VideoCrafter2 checkpoint holds model.diffusion_model.{missing[0]}; {source} does not")
    levels: list[list[int]] = [[]]
    for number in range(1, depth(weights, "input_blocks.")):
        if f"input_blocks.{number}.0.op.weight" in weights:
            levels.append([])
        else:
            levels[-1].append(number)
    residuals = (f"input_blocks.{number}.0.out_layers.3.weight" for level in levels for number in level)
    if not all(levels) or any(name not in weights for name in residuals):
        raise ModelError(f"the blocks of a VideoCrafter2 U-Net begin with a residual block; those in {source} do not")
    return Sizes(
        channels=tuple(len(weights[f"input_blocks.{level[0]}.0.out_layers.3.weight"]) for level in levels),
        attention=tuple(f"input_blocks.{level[0]}.1.norm.weight" in weights for level in levels),
        blocks=len(levels[0]),
        head=len(weights["init_attn.0.proj_in.weight"]) // INITIAL_HEADS,
        text=weights["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        latent=weights["input_blocks.0.0.weight"].shape[1],
    )
