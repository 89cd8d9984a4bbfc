r"""STDiT3, the network of Open-Sora 1.2 (hpcai-tech, 2024), written here from its facts, under the published names.

Tokens of a latent frame attend to each other, then tokens of one place to each other over time, in turns; after each
self-attention all of them look at the caption. Time and frame rate modulate every block:

    m = table + W·silu(e(t) + e(fps)),      x ← x + g_a·attn(x̂·(1 + c_a) + s_a),      x ← x + cross(x, text),
    x ← x + g_m·mlp(x̂·(1 + c_m) + s_m)

with x̂ the normalised tokens and (s_a, c_a, g_a, s_m, c_m, g_m) the six rows of m.

Left out: the learned variance is predicted (the second half of the channels) and not used by anything here; training
from the beginning, sequence parallelism.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from reelign.errors import ModelError
from reelign.generators.levers import recomputed
from reelign.zoo.published import WEIGHT_FILES, fill, find_folder, read_folder
from reelign.zoo.skeletons import fake_network, hollow

FREQUENCIES = 256  # sinusoids of a time or a frame rate
FIXED = {"qk_norm": True, "pred_sigma": True, "skip_y_embedder": False}  # what all published networks are


@dataclass(frozen=True)
class STDiT3Config:
    """Sizes of the network, under the names of the published ``config.json``; the defaults are STDiT3-XL/2.

    Args:
        in_channels: of the latents.
        patch_size: frames, rows and columns of a token; one frame.
        hidden_size, depth, num_heads, mlp_ratio: width, pairs of blocks, heads, hidden width of an MLP per width.
        caption_channels, model_max_length: width and greatest number of the caption's tokens.
        input_sq_size: side in pixels of the square whose places the position embedding counts in.
    """

    in_channels: int = 4
    patch_size: tuple[int, int, int] = (1, 2, 2)
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    caption_channels: int = 4096
    model_max_length: int = 300
    input_sq_size: int = 512

    @classmethod
    def from_published(cls, config: Mapping[str, Any]) -> STDiT3Config:
        """Sizes from the content of a published ``config.json``; what it does not say is that of XL/2.

        Raises:
            ModelError: a network of another kind than the published ones.
        """
        for name, value in FIXED.items():
            if config.get(name, value) != value:
                raise ModelError(f"a published STDiT3 has {name} {value}; this config.json has {config[name]}")
        known = {field.name for field in fields(cls)}
        chosen = {name: value for name, value in config.items() if name in known}
        if "patch_size" in chosen:
            chosen["patch_size"] = tuple(chosen["patch_size"])
        made = cls(**chosen)
        if made.patch_size[0] != 1 or made.hidden_size % (2 * made.num_heads) or made.hidden_size % 4:
            raise ModelError(
                "an STDiT3 has tokens of one frame, a width divisible by 4 and heads of even width; config.json has "
                f"patch_size {list(made.patch_size)}, hidden_size {made.hidden_size}, num_heads {made.num_heads}"
            )
        return made


def sinusoids(value: Tensor, size: int = FREQUENCIES) -> Tensor:
    """cos, then sin, of value·10000^(−k/(size/2)) (Nichol and Dhariwal 2021): [...] to [...,size] in float32."""
    half = size // 2
    rates = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=value.device))
    angles = value.float()[..., None] * rates
    return torch.cat([angles.cos(), angles.sin()], -1)


def place_embedding(rows: int, columns: int, width: int, pixels: float, like: Tensor) -> Tensor:
    """Where a token of a frame is, [rows·columns, width] in float32 on the device of ``like``.

    Places are counted in tokens of a square of ``input_sq_size`` pixels with as many tokens, and do not depend on the
    resolution. The first half of the channels is the column, the second the row; each is sin, then cos.

    Args:
        pixels: sqrt(height·width) of the clip / ``input_sq_size``.
    """
    square = round(math.sqrt(rows * columns))
    half = width // 2
    rates = 10000 ** (-torch.arange(0, half, 2, dtype=torch.float32, device=like.device) / half)

    def along(count: int) -> Tensor:
        places = torch.arange(count, dtype=torch.float32, device=like.device) / pixels * square / count
        angles = places[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], -1)

    column, row = along(columns)[None].expand(rows, -1, -1), along(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([column, row], -1).flatten(0, 1)


def rotate(x: Tensor, rates: Tensor) -> Tensor:
    """Rotary embedding of neighbouring pairs of channels (Su et al. 2021, eq. 34) along the last axis but one.

    Args:
        x: [...,T,d].
        rates: [d/2], angle of a pair per place.
    """
    angles = torch.arange(x.shape[-2], dtype=torch.float32, device=x.device)[:, None] * rates.float()
    even, odd = x.float()[..., ::2], x.float()[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2).to(x.dtype)


class Rates(nn.Module):
    """Angles of the rotary embedding per frame, 10000^(−2k/d) for pair k of a head of width d."""

    freqs: Tensor

    def __init__(self, head: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 10000 ** (-torch.arange(0, head, 2, dtype=torch.float32) / head))


class RMSNorm(nn.Module):
    """x / sqrt(mean x² + 1e-6) · weight over the last axis, in float32 (Zhang and Sennrich 2019, eq. 4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        normal = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
        return self.weight * normal.to(x.dtype)


class MLP(nn.Module):
    """Two layers with GELU, in its tanh form, between."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """[...,width] to [...,out]."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Embedder(nn.Module):
    """A number (time, frame rate) to a vector: sinusoids, then two layers with SiLU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, value: Tensor) -> Tensor:
        """[B] to [B,width]."""
        out: Tensor = self.mlp(sinusoids(value).to(next(self.parameters()).dtype))
        return out


class CaptionEmbedder(nn.Module):
    """The caption's states to the width of the network; holds the learned null caption."""

    y_embedding: Tensor

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        self.register_buffer("y_embedding", torch.randn(config.model_max_length, config.caption_channels))
        self.y_proj = MLP(config.caption_channels, config.hidden_size, config.hidden_size)

    def forward(self, text: Tensor) -> Tensor:
        """[B,L,caption_channels] to [B,L,width]."""
        out: Tensor = self.y_proj(text)
        return out


class SelfAttention(nn.Module):
    """Attention among tokens, q and k normalised, and rotated where rates are given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rates: Tensor | None = None) -> Tensor:
        """[N,L,width] to the same."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rates is not None:
            q, k = rotate(q, rates), rotate(k, rates)
        out: Tensor = self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class CrossAttention(nn.Module):
    """Attention of tokens to the caption."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        """x [B,N,width], text [B,L,width], mask [B,1,1,L] true where a token counts; [B,N,width]."""
        q = self.q_linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv_linear(text).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return out


class STDiT3Block(nn.Module):
    """One block: attention within frames or over time, then to the caption, then an MLP."""

    def __init__(self, config: STDiT3Config, temporal: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.temporal = temporal
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = SelfAttention(width, config.num_heads)
        self.cross_attn = CrossAttention(width, config.num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = MLP(width, int(width * config.mlp_ratio), width)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None, time: Tensor, rates: Tensor) -> Tensor:
        """x [B,T,S,width], text [B,L,width], time [B,T or 1,1,6·width]; x after the block."""
        rows = self.scale_shift_table + time.view(*time.shape[:-1], 6, -1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = rows.unbind(-2)
        inside = self.norm1(x) * (1 + scale_a) + shift_a
        if self.temporal:
            over_time = self.attn(inside.transpose(1, 2).flatten(0, 1), rates)
            attended = over_time.unflatten(0, (len(x), -1)).transpose(1, 2)
        else:
            attended = self.attn(inside.flatten(0, 1)).unflatten(0, x.shape[:2])
        x = x + gate_a * attended
        x = x + self.cross_attn(x.flatten(1, 2), text, mask).view(x.shape)
        out: Tensor = x + gate_m * self.mlp(self.norm2(x) * (1 + scale_m) + shift_m)
        return out


class FinalLayer(nn.Module):
    """Tokens to the values of their patches."""

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        width = config.hidden_size
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, math.prod(config.patch_size) * 2 * config.in_channels)

    def forward(self, x: Tensor, noisy: Tensor, given: Tensor, frames: Tensor | None) -> Tensor:
        """x [B,T,S,width], times of noisy and of given frames [B,width], frames [B,T]; [B,T,S,ph·pw·2C]."""
        x = self._modulate(x, noisy)
        if frames is not None:  # the published network modulates given frames once more, after they were noisy ones
            x = torch.where(frames[:, :, None, None], x, self._modulate(x, given))
        out: Tensor = self.linear(x)
        return out

    def _modulate(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + time[:, None, None, None]).unbind(-2)
        return self.norm_final(x) * (1 + scale) + shift  # type: ignore[no-any-return]


class STDiT3(nn.Module):
    """The network; its ``state_dict`` has the published names.

    ``gradient_checkpointing`` recomputes each block in the backward pass, one level deep.
    """

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        self.gradient_checkpointing = False
        self.rope = Rates(width // config.num_heads)
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv3d(config.in_channels, width, patch, patch)})
        self.t_embedder, self.fps_embedder = Embedder(width), Embedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.y_embedder = CaptionEmbedder(config)
        self.spatial_blocks = nn.ModuleList(STDiT3Block(config, False) for _ in range(config.depth))
        self.temporal_blocks = nn.ModuleList(STDiT3Block(config, True) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)

    @classmethod
    def from_pretrained(cls, source: str | Path, dtype: torch.dtype = torch.float32) -> STDiT3:
        """A published network from a folder or hub id; its rotary angles stay in float32.

        Raises:
            ModelError: there is none, or it does not fit.
        """
        file = find_folder(str(source), ("config.json",) if hollow() else WEIGHT_FILES) / "config.json"
        if not file.is_file():
            raise ModelError(f"an STDiT3 has a config.json beside its weights; there is no {file}")
        config = STDiT3Config.from_published(json.loads(file.read_text(encoding="utf-8")))
        if hollow():
            hollow_network: STDiT3 = fake_network(lambda: cls(config), dtype)
            return hollow_network
        weights = read_folder(str(source))
        with torch.device("meta"):
            network = cls(config)
        network.to_empty(device="cpu")
        fill(network, weights, str(source))
        rates = network.rope.freqs
        network.to(dtype)
        network.rope.freqs = rates
        return network

    def save_pretrained(self, folder: str | Path) -> None:
        """Write all weights and ``config.json`` as published, for ``from_pretrained``."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(asdict(self.config) | FIXED, indent=2), encoding="utf-8")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, place / "model.safetensors")

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the blocks in the backward pass."""
        self.gradient_checkpointing = True

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        mask: Tensor | None,
        size: tuple[float, float],
        fps: Tensor,
        noisy_frames: Tensor | None = None,
    ) -> Tensor:
        """Velocity from noise to data in the first half of the channels, an unused variance in the second.

        Args:
            x: [B,C,T,h,w]; h and w that no patch divides are filled up with zeros and cut again.
            t: [B], 0 (data) to 1000 (noise).
            text: [B,L,caption_channels], mask [B,L] nonzero where a token counts; None is everywhere. A mask of fewer
                rows is repeated.
            size: height and width of the clip in pixels.
            fps: [B], frames per second.
            noisy_frames: [B,T], false for frames that are given, whose time is 0; None is all noisy.

        Returns:
            [B,2C,T,h,w].
        """
        _, rows, columns = self.config.patch_size
        height, width = x.shape[-2:]
        tokens = self.x_embedder["proj"](pad(x, (0, -width % columns, 0, -height % rows)))
        grid: tuple[int, int] = tokens.shape[-2:]
        tokens = tokens.flatten(3).permute(0, 2, 3, 1)
        pixels = math.sqrt(size[0] * size[1]) / self.config.input_sq_size
        tokens = tokens + place_embedding(*grid, self.config.hidden_size, pixels, tokens).to(tokens.dtype)
        rate, frames = self.fps_embedder(fps), None if noisy_frames is None else noisy_frames.bool()
        noisy, given = self.t_embedder(t) + rate, self.t_embedder(torch.zeros_like(t)) + rate
        time = self.t_block(noisy)[:, None, None]
        if frames is not None:
            time = torch.where(frames[:, :, None, None], time, self.t_block(given)[:, None, None])
        text = self.y_embedder(text)
        if mask is not None:
            mask = mask.bool().repeat(len(x) // len(mask), 1)[:, None, None]
        for pair in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            for block in pair:
                arguments = (tokens, text, mask, time, self.rope.freqs)
                tokens = recomputed(block, *arguments, when=self.gradient_checkpointing)
        out = self.final_layer(tokens, noisy, given, frames).unflatten(-1, (rows, columns, -1)).unflatten(2, grid)
        out = out.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
        return out[..., :height, :width]  # type: ignore[no-any-return]
