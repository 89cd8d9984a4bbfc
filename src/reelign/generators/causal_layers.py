"""The layers of Wan's transformer with a time for each frame, and attention left to whoever calls.

The modules are diffusers' ``WanTransformer3DModel``'s, so adapters and folded weights go on working; only the way
through them is ours. Angles of the rotary embedding are computed, not looked up, so that positions have no end. In
float64 everything is, where diffusers' layer norms and times round to singles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
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
    network: Any,
    x: Tensor,
    t: Tensor,
    text: Sequence[KeysAndValues],
    positions: Sequence[int],
    attend: Attend,
    wanted: int | None = None,
) -> tuple[Tensor, list[KeysAndValues]]:
    """The network on frames x [B,C,f,h,w] at given temporal positions; ``attend`` says who sees whom.

    With ``wanted`` frames, the last ones, only theirs is the output, and each layer's own keys and values of all frames
    come back too. Else there are none: whole clips in training would hold them beside what checkpointing keeps.
    """
    high, wide = network.config.patch_size[1:]
    rows, columns = x.shape[3] // high, x.shape[4] // wide
    hidden = network.patch_embedding(x).flatten(3).permute(0, 2, 3, 1).contiguous()  # [B,f,hw,D]
    time, modulation = _time(network, t.to(x.device), x)
    exact = torch.promote_types(hidden.dtype, torch.float32)
    wave = _wave(network.config.attention_head_dim, tuple(positions), rows, columns, x.device, exact)
    recompute = network.gradient_checkpointing and torch.is_grad_enabled()
    kept: list[KeysAndValues] = []
    for layer, block in enumerate(network.blocks):
        first = x.shape[2] - wanted if wanted is not None and layer == len(network.blocks) - 1 else 0
        arguments = (block, hidden, modulation, wave, text[layer], partial(attend, layer), first)
        hidden, own = _recomputed(*arguments) if recompute else _layer(*arguments)
        if wanted is not None:
            kept.append(own)
    time = time if time.shape[1] == 1 else time[:, -hidden.shape[1] :]
    shift, scale = (network.scale_shift_table + time[:, :, None].to(network.scale_shift_table)).chunk(2, dim=2)
    hidden = torch.addcmul(shift, _norm(network.norm_out, hidden), 1 + scale).to(hidden.dtype)
    patches = network.proj_out(hidden).unflatten(-1, (high, wide, -1)).unflatten(2, (rows, columns))
    output: Tensor = patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)  # [B,C,f,h,w]
    return output.contiguous(), kept


def _layer(
    block: Any,
    x: Tensor,
    modulation: Tensor,
    wave: Tensor,
    text: KeysAndValues,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    first: int,
) -> tuple[Tensor, KeysAndValues]:
    """One transformer block on x [B,f,hw,D], modulated with [B or 1,f or 1,6,D]; and its keys and values.

    Frames before ``first`` give keys and values, and no output.
    """
    table = block.scale_shift_table
    shift, scale, gate, shift2, scale2, gate2 = (table + modulation.to(table)).unsqueeze(3).unbind(2)
    y = torch.addcmul(shift, _norm(block.norm1, x), 1 + scale).to(x.dtype)
    attended, own = _self_attention(block.attn1, y, wave, attend, first)
    if first:
        x = x[:, first:]
        if gate.shape[1] > 1:
            gate, shift2, scale2, gate2 = (part[:, first:] for part in (gate, shift2, scale2, gate2))
    x = torch.addcmul(x, attended, gate).to(x.dtype)
    x = x + _cross_attention(block.attn2, _norm(block.norm2, x).to(x.dtype), text)
    y = torch.addcmul(shift2, _norm(block.norm3, x), 1 + scale2).to(x.dtype)
    return torch.addcmul(x, _feed_forward(block.ffn, y), gate2).to(x.dtype), own


def _recomputed(*arguments: Any) -> tuple[Tensor, KeysAndValues]:
    """A transformer block of which the backward pass makes the inside anew; nothing in it is random."""
    return checkpoint(_layer, *arguments, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]


def _self_attention(
    part: Any, x: Tensor, wave: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor], first: int
) -> tuple[Tensor, KeysAndValues]:
    value = split_heads(part.to_v(x), part.heads).flatten(1, 2)
    asking = (x[:, first:], wave[first:]) if first else (x, wave)
    query, key = (
        rotate(split_heads(norm(linear(y)), part.heads), turn).to(value.dtype).flatten(1, 2)
        for (y, turn), linear, norm in ((asking, part.to_q, part.norm_q), ((x, wave), part.to_k, part.norm_k))
    )
    out = attend(query, key, value)
    return part.to_out[0](out.flatten(2)).unflatten(1, (-1, x.shape[2])), (key, value)


def _cross_attention(part: Any, x: Tensor, text: KeysAndValues) -> Tensor:
    query = part.norm_q(part.to_q(x)).to(text[0].dtype).flatten(1, 2)
    out = attention(split_heads(query, part.heads), *text)
    return part.to_out[0](out.flatten(2)).unflatten(1, x.shape[1:3])  # type: ignore[no-any-return]


def _feed_forward(part: Any, x: Tensor) -> Tensor:
    """The two linear layers and the activation between them, GELU's tanh form: x·(1 + tanh u)/2 = x·σ(2u).

    On a CPU the second way to write it takes half the time; it overwrites, so it is for passes without gradient.
    """
    half = x.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(x.device.type)
    if x.device.type != "cpu" or half or torch.is_grad_enabled():
        return part(x)  # type: ignore[no-any-return]
    x, scale = part.net[0].proj(x), math.sqrt(8 / math.pi)  # 2u = scale·(x + 0.044715·x³)
    return part.net[2](x.square().mul_(0.044715 * scale).add_(scale).mul_(x).sigmoid_().mul_(x))  # type: ignore[no-any-return]


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of all queries to all keys, [B,N,heads,head_dim] each."""
    out = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def _time(network: Any, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Embedded times [B or 1,f or 1,D] and modulations [B or 1,f or 1,6,D].

    Sinusoid in double precision and layers in their weights' own, as Wan does it: half precision cannot tell times.
    """
    embedder = network.condition_embedder
    times = t if t.ndim == 2 else t.reshape(-1, 1)
    if times.shape[0] not in (1, len(x)) or times.shape[1] not in (1, x.shape[2]):
        raise DataError(
            f"times are one for all, [B] or [B,F] for latents of shape {tuple(x.shape)}; got shape {tuple(t.shape)}"
        )
    angles = times.double()[..., None] * _frequencies(network.config.freq_dim, x.device)
    with torch.autocast(x.device.type, enabled=False):
        sinusoid = torch.cat([angles.cos(), angles.sin()], dim=-1)
        time = embedder.time_embedder(sinusoid.to(embedder.time_embedder.linear_1.weight.dtype))
        modulation = embedder.time_proj(embedder.act_fn(time).to(embedder.time_proj.weight.dtype))
    return time, modulation.unflatten(-1, (6, -1))


@lru_cache(maxsize=16)
def _frequencies(size: int, device: torch.device | None = None) -> Tensor:
    """Of the sinusoids in ``size`` channels, [size/2] float64; kept, so never made in inference mode."""
    with torch.inference_mode(mode=False):
        return (THETA ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)).to(device)


@lru_cache(maxsize=32)
def _wave(
    head: int, positions: tuple[int, ...], rows: int, columns: int, device: torch.device, exact: torch.dtype
) -> Tensor:
    """e^{iφ} of the rotary embedding, [frames, rows·columns, 1, head/2]: time, then height, then width (Wan 2.1).

    Angles are float64; a block's are the same in each of its passes, so they are kept.
    """
    space = 2 * (head // 6)
    sizes = (head - 2 * space, space, space)
    with torch.inference_mode(mode=False):
        axes = (torch.tensor(positions), torch.arange(rows), torch.arange(columns))
        parts = torch.meshgrid(*axes, indexing="ij")
        angles = torch.cat(
            [part.double()[..., None] * _frequencies(size) for part, size in zip(parts, sizes, strict=True)], -1
        )
        return _unit(angles.flatten(1, 2)[:, :, None], device, exact)


@lru_cache(maxsize=32)
def time_shift(head: int, frames: int, device: torch.device, exact: torch.dtype) -> Tensor:
    """What turns a key by ``frames`` frames, [head/2]: the temporal angles, the others still."""
    space = 2 * (head // 6)
    with torch.inference_mode(mode=False):
        angles = torch.cat([frames * _frequencies(head - 2 * space), torch.zeros(space, dtype=torch.float64)])
        return _unit(angles, device, exact)


def _unit(angles: Tensor, device: torch.device, exact: torch.dtype) -> Tensor:
    """e^{iφ} in the complex numbers of a real type."""
    return torch.polar(torch.ones_like(angles), angles).to(device, exact.to_complex())


def rotate(x: Tensor, wave: Tensor) -> Tensor:
    """Neighbouring pairs of the last axis as complex numbers, turned by ``wave``; at least single precision."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    turned = torch.view_as_complex(exact.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(turned * wave.to(turned.dtype)).flatten(-2)


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Layer norm in at least single precision; diffusers' own rounds doubles to singles."""
    if isinstance(norm, nn.Identity):
        return x
    exact = torch.promote_types(x.dtype, torch.float32)
    weight, bias = (p if p is None or p.dtype == exact else p.to(exact) for p in (norm.weight, norm.bias))
    return functional.layer_norm(x.to(exact), norm.normalized_shape, weight, bias, norm.eps)  # type: ignore[arg-type]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[…,D] to […,heads,D/heads]."""
    return x.reshape(*x.shape[:-1], heads, -1)


def tokens_per_frame(network: Any, x: Tensor) -> int:
    """Tokens of a latent frame of x [B,C,f,h,w].

    Raises:
        DataError: not latents of this network.
    """
    patch, channels = network.config.patch_size, network.config.in_channels
    if x.ndim != 5 or x.shape[1] != channels or not x.shape[2]:
        raise DataError(f"latents are [B,{channels},f,h,w] with a frame at least; got shape {tuple(x.shape)}")
    if x.shape[3] % patch[1] or x.shape[4] % patch[2]:
        raise DataError(
            f"latents of height and width {tuple(x.shape[3:])} do not divide into patches of {tuple(patch[1:])}"
        )
    return int((x.shape[3] // patch[1]) * (x.shape[4] // patch[2]))
