"""Decoding with Wan's causal video autoencoder, frame by latent frame, without hidden state.

diffusers' ``AutoencoderKLWan.decode`` keeps its memory in the module. Here the memory goes in and comes out, so that a
chunk can be checkpointed inside the graph (memory of one latent frame, not of the clip), decoding can stop at the last
asked frame, and later be continued. Values are those of ``decode``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d, unpatchify
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from reelign.errors import DataError


def latent_statistics(vae: AutoencoderKLWan, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of latents, each [1,C,1,1,1]; networks see (z − mean)/deviation."""
    mean, std = (
        torch.tensor(v, dtype=like.dtype).view(1, -1, 1, 1, 1)
        for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean.to(like.device), std.to(like.device)


def latent_of_frame(frame: int, ratio: int = 4) -> int:
    """Index of the latent frame that holds a pixel frame: the first alone, then ``ratio`` a latent."""
    return 0 if frame == 0 else 1 + (frame - 1) // ratio


def needed_prefix(frames: Sequence[int], ratio: int = 4) -> int:
    """Latent frames that must be decoded to see these pixel frames: all up to the last one, because of causality."""
    return 1 + latent_of_frame(max(frames), ratio)


def empty_memory(vae: AutoencoderKLWan) -> list[Any]:
    """The decoder's memory before the first latent frame."""
    return [None] * sum(isinstance(m, WanCausalConv3d) for m in vae.decoder.modules())


def decode_latent_frame(vae: AutoencoderKLWan, z: Tensor, memory: list[Any]) -> tuple[Tensor, list[Any]]:
    """One latent frame [B,C,1,h,w] to pixels [B,3,1 or ratio,H,W] in [-1,1], and the memory for the next one."""
    first = memory[0] is None
    memory = list(memory)
    out = vae.decoder(vae.post_quant_conv(z), feat_cache=memory, feat_idx=[0], first_chunk=first)
    if vae.config.patch_size is not None:
        out = unpatchify(out, patch_size=vae.config.patch_size)
    return out.clamp(-1, 1), memory


def decode_frames(
    vae: AutoencoderKLWan, z: Tensor, frames: Sequence[int] | None = None, checkpointing: bool = False
) -> Tensor:
    """Latents [B,C,F,h,w], not normalised, to pixels [B,3,T',H,W] in [-1,1].

    Args:
        frames: pixel frames to return, in this order; None is all. Only the least causal prefix is decoded.
        checkpointing: keep one latent frame's activations at a time and recompute the rest in the backward pass.

    Raises:
        DataError: a frame lies outside the clip.
    """
    ratio = int(vae.config.scale_factor_temporal)
    total = (z.shape[2] - 1) * ratio + 1
    if frames is not None and not (frames and all(0 <= f < total for f in frames)):
        raise DataError(f"frames of this clip run from 0 to {total - 1}; asked for {list(frames)}")
    prefix = z.shape[2] if frames is None else needed_prefix(frames, ratio)
    memory, parts = empty_memory(vae), []
    for i in range(prefix):
        chunk = z[:, :, i : i + 1]
        if checkpointing and torch.is_grad_enabled():
            out, memory = checkpoint(decode_latent_frame, vae, chunk, memory, use_reentrant=False)
        else:
            out, memory = decode_latent_frame(vae, chunk, memory)
        parts.append(out)
    video = torch.cat(parts, dim=2)
    return video if frames is None else video[:, :, list(frames)]
