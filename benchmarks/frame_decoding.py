"""Memory of decoding S of F frames with gradient: a picture autoencoder (ModelScope's kind) and a causal one (Wan's).

Each row decodes S evenly spread frames and runs the backward pass of their mean; the number is the peak of bytes alive
above what was there before, as a share of decoding all F. A picture autoencoder is charged S/F. A causal one decodes
every latent up to the last frame that is asked for, so only an early last frame makes it cheaper; recomputing latent by
latent in the backward pass lowers all of its rows.

Run: ``python benchmarks/frame_decoding.py`` (a minute).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from meters import peak_bytes
from rich.console import Console
from rich.table import Table
from torch import Tensor

from reelign.generators.family_generator import FamilyGenerator
from reelign.generators.modelscope import ModelScope, ModelScopeOptions
from reelign.generators.wan import load_wan

CHOSEN = (1, 2, 4, 8)
FRAMES = {"picture": 16, "causal": 17}
BOUND = 1.3  # times S/F, for the picture autoencoder

Decode = Callable[[Tensor, list[int]], Tensor]


def picture() -> tuple[Decode, Tensor]:
    """A random picture autoencoder with Stable Diffusion's blocks at half their width, 16 frames of 128×128."""
    vae = AutoencoderKL(
        block_out_channels=(64, 128, 256, 256), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4,
    )  # fmt: skip
    unet = UNet3DConditionModel(
        block_out_channels=(32,), down_block_types=("DownBlock3D",), up_block_types=("UpBlock3D",), layers_per_block=1,
        cross_attention_dim=16, attention_head_dim=8,
    )  # fmt: skip
    parts = {"unet": unet, "vae": vae, "text_encoder": torch.nn.Identity(), "tokenizer": None}
    options = ModelScopeOptions(model="random", height=128, width=128, lora=None, device="cpu")
    generator = FamilyGenerator(ModelScope({**parts, "scheduler": DDIMScheduler()}, options), options)
    return generator.decode, torch.randn(1, *generator.latent_shape())


def causal(checkpointing: bool) -> tuple[Decode, Tensor]:
    """The autoencoder of zoo:tiny-wan, 17 frames of 64×64."""
    generator = load_wan(model="zoo:tiny-wan", lora=None, device="cpu", decode_checkpointing=checkpointing)
    return generator.decode, torch.randn(1, *generator.latent_shape())


def measure(decode: Decode, latent: Tensor, frames: list[int]) -> int:
    """Peak bytes of decoding these frames and of the backward pass to the latent."""
    leaf = latent.clone().requires_grad_()
    with peak_bytes(latent.device) as peak:
        decode(leaf, frames).mean().backward()
        return peak()


def spread(chosen: int, frames: int) -> list[int]:
    """The first frame of each of ``chosen`` equal segments."""
    return [segment * frames // chosen for segment in range(chosen)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "frame_decoding.json")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    cases = {"picture": picture(), "causal": causal(False), "causal, recomputed": causal(True)}
    rows = []
    table = Table("autoencoder", "frames", "S/F", "MB", "share of all")
    for name, (decode, latent) in cases.items():
        frames = FRAMES[name.split(",")[0]]
        choices = {f"{s} evenly spread": spread(s, frames) for s in CHOSEN}
        choices |= {"the first 5": list(range(5)), "all": list(range(frames))}
        peaks = {choice: measure(decode, latent, indices) for choice, indices in choices.items()}
        for choice, indices in choices.items():
            row = {
                "autoencoder": name,
                "frames": f"{choice} of {frames}",
                "share_of_frames": len(indices) / frames,
                "megabytes": peaks[choice] / 1e6,
                "share_of_bytes": peaks[choice] / peaks["all"],
            }
            rows.append(row)
            table.add_row(*(value if isinstance(value, str) else f"{value:.3g}" for value in row.values()))
    Console().print(table)
    worst = max(r["share_of_bytes"] / r["share_of_frames"] for r in rows if r["autoencoder"] == "picture")
    print(f"picture autoencoder: at most {worst:.2f} × S/F (bound {BOUND}): {'met' if worst <= BOUND else 'MISSED'}")
    arguments.out.write_text(json.dumps({"rows": rows, "worst_over_share": worst, "bound": BOUND}, indent=2) + "\n")


if __name__ == "__main__":
    main()
