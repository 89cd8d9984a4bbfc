"""The released Self-Forcing inference loop, restated from a description of what it does, on the same weights.

What it does, and ``reelign`` does not: keys and values are written into buffers of the clip's (or the window's) size,
and shifted to the left when those overflow; every frame of a block has its own embedded time even where all are equal;
queries and keys are turned in complex doubles, sample by sample, with a table that is put together anew in each layer
of each pass; σ is looked up at the nearest of 1000 times, in doubles; one more clean pass follows the last block, whose
memory nobody reads.

What it shares with ``reelign``, so as to be no weaker than it is: text keys and values once a clip, the fused attention
of the same library, batched linear layers, no autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TABLE, THETA, TRAIN_STEPS = 1024, 10_000.0, 1000


class OfficialLoop:
    """Rolls out clips as the release does.

    Args:
        network: a ``WanTransformer3DModel``.
        block: latent frames of a block.
        local: latent frames of the window; -1 is none.
        sink: latent frames that are never evicted.
        shift: of noise levels.
        steps: unshifted times of the few-step list.
    """

    def __init__(
        self, network: Any, block: int, local: int = -1, sink: int = 0, shift: float = 5.0, steps: Any = None
    ) -> None:
        self.network, self.block, self.local, self.sink = network, block, local, sink
        self.device = network.proj_out.weight.device
        u = torch.linspace(1, 0, TRAIN_STEPS + 1, dtype=torch.float64)[:-1]
        self.sigmas = (shift * u / (1 + (shift - 1) * u)).to(self.device)
        self.timesteps = self.sigmas * TRAIN_STEPS
        chosen = torch.tensor(steps or [1000, 750, 500, 250])
        self.steps = self.timesteps[TRAIN_STEPS - chosen]
        head = network.config.attention_head_dim
        third = 2 * (head // 6)
        self.tables = [_table(size).to(self.device) for size in (head - 2 * third, third, third)]
        self.passes = 0

    @torch.no_grad()
    def __call__(self, noise: Tensor, text: Tensor, renoise: Any) -> Tensor:
        """A clip from noise [B,F,C,h,w] and text states [B,L,D]; ``renoise`` draws a block's fresh noise."""
        batch, frames, _, height, width = noise.shape
        self.passes, output = 0, torch.zeros_like(noise)
        tokens = (height // 2) * (width // 2)
        config = self.network.config
        room = (frames if self.local < 0 else self.local) * tokens
        shape = (batch, room, config.num_attention_heads, config.attention_head_dim)
        self_cache = [
            {"k": noise.new_zeros(shape), "v": noise.new_zeros(shape), "global_end": 0, "local_end": 0}
            for _ in range(config.num_layers)
        ]
        cross_cache: list[dict[str, Any]] = [{"is_init": False} for _ in range(config.num_layers)]
        caches = (self_cache, cross_cache)
        for start in range(0, frames, self.block):
            x = noise[:, start : start + self.block]
            for index, current in enumerate(self.steps):
                t = torch.ones(batch, self.block, dtype=torch.float64, device=self.device) * current
                x0 = self._clean(self._forward(x, text, t, caches, start), x, t)
                if index < len(self.steps) - 1:
                    following = self.steps[index + 1] * torch.ones(batch * self.block, device=self.device)
                    flat = x0.flatten(0, 1)
                    x = self._noised(flat, renoise(x0).flatten(0, 1), following).unflatten(0, x0.shape[:2])
            output[:, start : start + self.block] = x0
            self._forward(x0, text, torch.zeros_like(t), caches, start)
        return output

    def _sigma(self, t: Tensor) -> Tensor:
        nearest = (self.timesteps[None] - t.double()[:, None]).abs().argmin(dim=1)
        return self.sigmas[nearest].reshape(-1, 1, 1, 1)

    def _clean(self, flow: Tensor, x: Tensor, t: Tensor) -> Tensor:
        flat, sigma = x.flatten(0, 1), self._sigma(t.flatten(0, 1))
        clean = flat.double() - sigma * flow.flatten(0, 1).double()
        return clean.to(x.dtype).unflatten(0, x.shape[:2])

    def _noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        sigma = self._sigma(t)
        return ((1 - sigma) * clean + sigma * noise).type_as(noise)

    def _forward(self, x: Tensor, text: Tensor, t: Tensor, caches: Any, start: int) -> Tensor:
        """One pass over a block x [B,f,C,h,w] at times t [B,f]; writes the caches."""
        self.passes += 1
        network = self.network
        hidden = network.patch_embedding(x.transpose(1, 2))
        frames, rows, columns = hidden.shape[2:]
        hidden = hidden.flatten(2).transpose(1, 2)  # [B,L,D]
        time = self._time(t.flatten())
        embedder = network.condition_embedder
        modulation = embedder.time_proj(embedder.act_fn(time)).unflatten(1, (6, -1)).unflatten(0, t.shape)
        for block, own, cross in zip(network.blocks, *caches, strict=True):
            hidden = self._layer(block, hidden, modulation, text, own, cross, (frames, rows, columns, start))
        table = network.scale_shift_table[:, None] + time.unflatten(0, t.shape)[:, :, None]
        shift, scale = table.chunk(2, dim=2)
        hidden = _layer_norm(network.norm_out, hidden).unflatten(1, (frames, rows * columns)) * (1 + scale) + shift
        out = network.proj_out(hidden).reshape(len(x), frames, rows, columns, 2, 2, -1)
        return out.permute(0, 1, 6, 2, 4, 3, 5).reshape(x.shape)

    def _time(self, t: Tensor) -> Tensor:
        half = self.network.config.freq_dim // 2
        angles = torch.outer(t.double(), THETA ** (-torch.arange(half, dtype=torch.float64, device=t.device) / half))
        wave = torch.cat([angles.cos(), angles.sin()], dim=1)
        embedder = self.network.condition_embedder.time_embedder
        return embedder(wave.to(embedder.linear_1.weight.dtype))

    def _layer(
        self, block: Any, x: Tensor, e: Tensor, text: Tensor, own: dict[str, Any], cross: dict[str, Any], grid: Any
    ) -> Tensor:
        frames, rows, columns, _ = grid
        split = (frames, rows * columns)
        parts = (block.scale_shift_table[:, None] + e).chunk(6, dim=2)  # [B,f,1,D] each
        y = _layer_norm(block.norm1, x).unflatten(1, split) * (1 + parts[1]) + parts[0]
        y = self._self_attention(block.attn1, y.flatten(1, 2), own, grid)
        x = x + (y.unflatten(1, split) * parts[2]).flatten(1, 2)
        x = x + self._cross_attention(block.attn2, _layer_norm(block.norm2, x), text, cross)
        y = (_layer_norm(block.norm3, x).unflatten(1, split) * (1 + parts[4]) + parts[3]).flatten(1, 2)
        y = block.ffn(y)
        return x + (y.unflatten(1, split) * parts[5]).flatten(1, 2)

    def _self_attention(self, part: Any, x: Tensor, cache: dict[str, Any], grid: Any) -> Tensor:
        heads = part.heads
        q = part.norm_q(part.to_q(x)).unflatten(2, (heads, -1))
        k = part.norm_k(part.to_k(x)).unflatten(2, (heads, -1))
        v = part.to_v(x).unflatten(2, (heads, -1))
        q, k = self._rope(q, grid).type_as(v), self._rope(k, grid).type_as(v)
        frames, rows, columns, start = grid
        tokens = rows * columns
        new, end, room, sink = q.shape[1], (start + frames) * tokens, cache["k"].shape[1], self.sink * tokens
        evicted = 0
        if self.local > 0 and end > cache["global_end"] and new + cache["local_end"] > room:
            evicted = new + cache["local_end"] - room
            kept = cache["local_end"] - evicted - sink
            for name in ("k", "v"):
                shifted = cache[name][:, sink + evicted : sink + evicted + kept].clone()
                cache[name][:, sink : sink + kept] = shifted
        local_end = cache["local_end"] + end - cache["global_end"] - evicted
        cache["k"][:, local_end - new : local_end] = k
        cache["v"][:, local_end - new : local_end] = v
        cache["global_end"], cache["local_end"] = end, local_end
        first = max(0, local_end - room)
        out = _attention(q, cache["k"][:, first:local_end], cache["v"][:, first:local_end])
        return part.to_out[0](out.flatten(2))

    def _cross_attention(self, part: Any, x: Tensor, text: Tensor, cache: dict[str, Any]) -> Tensor:
        q = part.norm_q(part.to_q(x)).unflatten(2, (part.heads, -1))
        if not cache["is_init"]:
            states = self.network.condition_embedder.text_embedder(text)
            cache["k"] = part.norm_k(part.to_k(states)).unflatten(2, (part.heads, -1))
            cache["v"] = part.to_v(states).unflatten(2, (part.heads, -1))
            cache["is_init"] = True
        return part.to_out[0](_attention(q, cache["k"], cache["v"]).flatten(2))

    def _rope(self, x: Tensor, grid: Any) -> Tensor:
        frames, rows, columns, start = grid
        length, turned = frames * rows * columns, []
        for sample in x:
            pairs = torch.view_as_complex(sample[:length].double().reshape(length, x.shape[2], -1, 2))
            time, high, wide = self.tables
            wave = torch.cat(
                [
                    time[start : start + frames].view(frames, 1, 1, -1).expand(frames, rows, columns, -1),
                    high[:rows].view(1, rows, 1, -1).expand(frames, rows, columns, -1),
                    wide[:columns].view(1, 1, columns, -1).expand(frames, rows, columns, -1),
                ],
                dim=-1,
            ).reshape(length, 1, -1)
            turned.append(torch.cat([torch.view_as_real(pairs * wave).flatten(2), sample[length:]]))
        return torch.stack(turned)


def _table(size: int) -> Tensor:
    frequencies = THETA ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.outer(torch.arange(TABLE, dtype=torch.float64), frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def _layer_norm(norm: Any, x: Tensor) -> Tensor:
    if isinstance(norm, torch.nn.Identity):
        return x
    return functional.layer_norm(x.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps).type_as(x)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).contiguous()
