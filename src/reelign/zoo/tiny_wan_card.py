"""What ``zoo:tiny-wan`` can do, measured on the saved files through the package's own sampler, and its model card."""

from __future__ import annotations

from pathlib import Path

import torch

from reelign.contracts import Request
from reelign.datasets.moving_shapes import ATTRIBUTES, ROTATIONS, MovingShapes, all_specs
from reelign.generators.wan import WanGenerator, load_wan
from reelign.metrics.shapes_instrument import agreement
from reelign.sampling import generate
from reelign.zoo.models import write_measured
from reelign.zoo.tiny_wan import CAPTION_NOISE, DEFAULTS


def measure(generator: WanGenerator) -> dict[str, float]:
    """Share of clips with the asked colour, shape and motion, one clip for each caption of the grammar; VAE quality."""
    specs, steps, scale = all_specs(), int(DEFAULTS["steps"]), float(DEFAULTS["guidance_scale"])
    request = Request(tuple(spec.caption for spec in specs))
    videos = []
    for index, part in enumerate(request.split(16)):
        seeds = range(16 * index, 16 * index + len(part))
        videos.append(generate(generator, part, list(seeds), steps, scale).video)
    right = agreement(torch.cat(videos), specs)
    rigid = torch.tensor([spec.motion not in ROTATIONS for spec in specs])
    drawn, truth, _ = MovingShapes().batch(128, torch.Generator().manual_seed(4))
    with torch.no_grad():
        restored = torch.cat([generator.decode(generator.encode_video(part)) for part in torch.split(drawn, 16)])
    kept = agreement(restored, truth)
    return {
        **{name: float(values.mean()) for name, values in right.items()},
        "motion_without_rotations": float(right["motion"][rigid].mean()),
        "vae_psnr_db": float(-10 * torch.log10((restored - drawn).square().mean())),
        **{f"vae_{name}": float(values.mean()) for name, values in kept.items()},
    }


def write_card(folder: Path) -> dict[str, float]:
    """Measure the checkpoint in ``folder`` and write its card beside it."""
    measured = measure(load_wan(model=str(folder), lora=None))
    write_measured(folder, measured, card(measured))
    return measured


def card(measured: dict[str, float]) -> str:
    """The model card, from what ``measure`` returned."""
    noise = ", ".join(f"{rate:.0%} in {name}" for rate, name in zip(CAPTION_NOISE, ATTRIBUTES, strict=True))
    steps, scale = DEFAULTS["steps"], DEFAULTS["guidance_scale"]
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
tags: [reelign, moving-shapes]
---

# tiny-wan

A text-to-video `WanPipeline` (transformer 3.9 M, causal VAE 1.8 M, UMT5 text encoder 0.1 M parameters) for 64×64 clips
of 17 frames, 8 a second, of reelign's moving shapes: "a red circle moving left". It knows these captions and no others.

Trained by `reelign zoo train tiny-wan` on drawn clips only; no outside data. On purpose the captions lie: {noise}
(a colour is called by another's name), so that there is something to align.
As run, the first 6500 of 9100 steps drew faster rotations and called a colour mostly by one fixed other name.
Files are float16; compute in float32 or bfloat16.

One clip for each of the {len(all_specs())} captions, {steps} steps, guidance {scale}, read by the measuring instrument:

| measure | value |
|---|---|
| asked colour | {measured["colour"]:.1%} |
| asked shape | {measured["shape"]:.1%} |
| asked motion | {measured["motion"]:.1%} |
| asked motion, without the rotations, which it hardly ever makes | {measured["motion_without_rotations"]:.1%} |

The autoencoder alone, on fresh drawn clips: {measured["vae_psnr_db"]:.1f} dB PSNR; the instrument still reads colour in
{measured["vae_colour"]:.1%}, shape in {measured["vae_shape"]:.1%} and motion in {measured["vae_motion"]:.1%} of them.
"""
