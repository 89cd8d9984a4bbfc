"""The layers of Wan's transformer with a time for each frame, and attention left to whoever calls.

The modules are diffusers' ``WanTransformer3DModel``'s, so adapters and folded weights go on working; only the way
through them is ours. Angles of the rotary embedding are computed, not looked up, so that positions have no end. In
float64 everything is, where diffusers' layer norms and times round to singles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from reelign.errors import DataError

THETA = 10_000.0
KeysAndValues = tuple[Tensor, Tensor]  # [B,N,heads,head_dim] each
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, q, k, v -> [B,N,heads,head_dim]


def text_memory(network: Any, states: Tensor) -> tuple[KeysAndValues, ...]:
    """Keys and values of text states [B,L,D] in the cross-attention of each layer."""
    text = network.condition_embedder.text_embedder(states)
    pairs = []
    for block in network.blocks:
        part = block.attn2
        value = part.to_v(text)
        key = part.norm_k(part.to_k(text)).to(value.dtype)
        pairs.append((split_heads(key, part.heads), split_heads(value, part.heads)))
    return tuple(pairs)


def run_layers(
    network: Any, x: Tensor, t: Tensor, text: Sequence[KeysAndValues], positions: Tensor, attend: Attend
) -> Tensor:
    """The network on frames at given temporal positions; ``attend`` says who sees whom."""
    high, wide = network.config.patch_size[1:]
    rows, columns = x.shape[3] // high, x.shape[4] // wide
    hidden = network.patch_embedding(x).flatten(3).permute(0, 2, 3, 1)  # [B,f,hw,D]
    time, modulation = _time(network, t.to(x.device), hidden)
    angles = _angles(network, positions, rows, columns).to(x.device)
    wave = torch.polar(torch.ones_like(angles), angles)
    recompute = network.gradient_checkpointing and torch.is_grad_enabled()
    for layer, block in enumerate(network.blocks):
        arguments = (block, layer, hidden, modulation, wave, text[layer], attend)
        hidden = checkpoint(_layer, *arguments, use_reentrant=False) if recompute else _layer(*arguments)
    shift, scale = (network.scale_shift_table + time[:, :, None].to(network.scale_shift_table)).chunk(2, dim=2)
    hidden = (_norm(network.norm_out, hidden) * (1 + scale) + shift).to(hidden.dtype)
    patches = network.proj_out(hidden).unflatten(-1, (high, wide, -1)).unflatten(2, (rows, columns))
    output: Tensor = patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)  # [B,C,f,h,w]
    return output.contiguous()


def _layer(
    block: Any, layer: int, x: Tensor, modulation: Tensor, wave: Tensor, text: KeysAndValues, attend: Attend
) -> Tensor:
    """One transformer block on x [B,f,hw,D], modulated frame by frame with [B,f or 1,6,D]."""
    table = block.scale_shift_table
    shift, scale, gate, shift2, scale2, gate2 = (table + modulation.to(table)).unsqueeze(3).unbind(2)
    y = (_norm(block.norm1, x) * (1 + scale) + shift).to(x.dtype)
    x = (x + _self_attention(block.attn1, layer, y, wave, attend) * gate).to(x.dtype)
    x = x + _cross_attention(block.attn2, _norm(block.norm2, x).to(x.dtype), text)
    y = (_norm(block.norm3, x) * (1 + scale2) + shift2).to(x.dtype)
    out: Tensor = (x + block.ffn(y) * gate2).to(x.dtype)
    return out


def _self_attention(part: Any, layer: int, x: Tensor, wave: Tensor, attend: Attend) -> Tensor:
    value = part.to_v(x)
    query, key = (
        rotate(split_heads(norm(linear(x)), part.heads), wave).to(value.dtype).flatten(1, 2)
        for linear, norm in ((part.to_q, part.norm_q), (part.to_k, part.norm_k))
    )
    out = attend(layer, query, key, split_heads(value, part.heads).flatten(1, 2))
    return part.to_out[0](out.flatten(2)).unflatten(1, x.shape[1:3])  # type: ignore[no-any-return]


def _cross_attention(part: Any, x: Tensor, text: KeysAndValues) -> Tensor:
    query = part.norm_q(part.to_q(x)).to(text[0].dtype).flatten(1, 2)
    out = attention(split_heads(query, part.heads), *text)
    return part.to_out[0](out.flatten(2)).unflatten(1, x.shape[1:3])  # type: ignore[no-any-return]


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of all queries to all keys, [B,N,heads,head_dim] each."""
    out = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def _time(network: Any, t: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Embedded times [B,f or 1,D] and modulations [B,f or 1,6,D]; the sinusoid in double precision, as Wan does it."""
    embedder = network.condition_embedder
    half = network.config.freq_dim // 2
    frequencies = THETA ** (-torch.arange(half, dtype=torch.float64, device=t.device) / half)
    times = t if t.ndim == 2 else t.reshape(-1, 1).expand(len(hidden), 1)
    angles = times.double()[..., None] * frequencies
    weight = embedder.time_embedder.linear_1.weight
    time = embedder.time_embedder(torch.cat([angles.cos(), angles.sin()], dim=-1).to(weight.dtype))
    return time, embedder.time_proj(embedder.act_fn(time)).unflatten(-1, (6, -1))


def temporal_angles(network: Any, positions: Tensor) -> Tensor:
    """Angles of the temporal part of the rotary embedding, [frames, pairs]."""
    head = network.config.attention_head_dim
    size = head - 2 * (2 * (head // 6))
    return positions.double()[:, None] * _frequencies(size)


def _angles(network: Any, positions: Tensor, rows: int, columns: int) -> Tensor:
    """Rotary angles [frames, rows·columns, 1, head_dim/2], float64: time, then height, then width (Wan 2.1)."""
    space = 2 * (network.config.attention_head_dim // 6)
    time = temporal_angles(network, positions)
    height, width = (torch.arange(n).double()[:, None] * _frequencies(space) for n in (rows, columns))
    grid = (len(positions), rows, columns, -1)
    parts = (time[:, None, None].expand(grid), height[None, :, None].expand(grid), width[None, None].expand(grid))
    return torch.cat(parts, dim=-1).flatten(1, 2)[:, :, None]


@lru_cache(maxsize=8)
def _frequencies(size: int) -> Tensor:
    return THETA ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)


def rotate(x: Tensor, wave: Tensor) -> Tensor:
    """Neighbouring pairs of the last axis as complex numbers, turned by ``wave``."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    turned = torch.view_as_complex(exact.reshape(*x.shape[:-1], -1, 2))
    turned = turned * wave.to(turned.dtype)
    return torch.view_as_real(turned).flatten(-2)


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Layer norm in at least single precision; diffusers' own rounds doubles to singles."""
    if isinstance(norm, nn.Identity):
        return x
    exact = torch.promote_types(x.dtype, torch.float32)
    weight, bias = (None if p is None else p.to(exact) for p in (norm.weight, norm.bias))
    return functional.layer_norm(x.to(exact), norm.normalized_shape, weight, bias, norm.eps)  # type: ignore[arg-type]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[…,D] to […,heads,D/heads]."""
    return x.reshape(*x.shape[:-1], heads, -1)


def tokens_per_frame(network: Any, x: Tensor) -> int:
    """Tokens of a latent frame."""
    patch = network.config.patch_size
    if patch[0] != 1 or x.shape[3] % patch[1] or x.shape[4] % patch[2]:
        raise DataError(
            f"latents of height and width {tuple(x.shape[3:])} do not divide into patches of {tuple(patch)}"
        )
    return int((x.shape[3] // patch[1]) * (x.shape[4] // patch[2]))
