"""Causal Wan generators with random weights, small and full-size, for benchmarks: the real classes, nothing loaded."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

from reelign.contracts import Condition
from reelign.generators.causal_wan import CausalWanGenerator, CausalWanOptions
from reelign.generators.wan import WanGenerator, WanOptions
from reelign.zoo.tiny_wan import build_text_encoder
from reelign.zoo.tiny_wan_vae import build_vae
from reelign.zoo.words import word_tokenizer

SHIFT, STEPS, BLOCK = 5.0, 4, 3  # as the released checkpoints
# layers, heads, widths of a head and of the feed-forward part; channels, height and width of latents; length and width
# of text
SIZES: dict[str, tuple[int, ...]] = {
    "tiny": (2, 2, 24, 64, 8, 8, 8, 12, 64),
    "tiny-wan": (6, 4, 48, 768, 8, 8, 8, 12, 64),
    "middle": (8, 8, 48, 1536, 16, 16, 16, 64, 256),
    "wan-1.3b": (30, 12, 128, 8960, 16, 60, 104, 512, 4096),
}


def build(size: str, device: str = "cpu", dtype: str = "float32", **causal: Any) -> CausalWanGenerator:
    """A generator of a size of ``SIZES``; ``causal`` are further options of ``CausalWanOptions``."""
    layers, heads, width, ffn, channels, height, wide, _, text = SIZES[size]
    torch.manual_seed(0)
    with torch.device(device):
        transformer = WanTransformer3DModel(
            num_attention_heads=heads, attention_head_dim=width, in_channels=channels, out_channels=channels,
            text_dim=text, freq_dim=256, ffn_dim=ffn, num_layers=layers,
        )  # fmt: skip
        vae = AutoencoderKLWan() if channels == 16 else build_vae()
    with torch.no_grad():  # at its first weights a network says nearly nothing: let every part of it matter
        for name, weight in transformer.named_parameters():
            if "scale_shift_table" in name or name.startswith("proj_out.weight"):
                weight.normal_(0, 0.2)
    pipeline = WanPipeline(
        word_tokenizer(12), build_text_encoder(), vae, FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        transformer.to(getattr(torch, dtype)),
    )  # fmt: skip
    space = int(vae.config.scale_factor_spatial)
    native = {"height": height * space, "width": wide * space, "frames": 81, "fps": 16.0, "frames_per_block": BLOCK}
    shared = {"model": "random", "lora": None, "device": device, "dtype": dtype}
    wan = WanGenerator(pipeline, WanOptions(**shared), native)
    return CausalWanGenerator(wan, CausalWanOptions(**shared, **causal), native)


def text(generator: CausalWanGenerator, size: str, batch: int) -> Condition:
    """Random text states, as long and as wide as the model's."""
    length, width = SIZES[size][7:]
    states = torch.randn(batch, length, width, generator=torch.Generator().manual_seed(1))
    return Condition({"text": states.to(generator.device, next(generator.network.parameters()).dtype)})
