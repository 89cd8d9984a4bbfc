"""Error rate of the measuring instrument on fresh clips, clean and degraded; writes JSON for docs/moving_shapes.md.

Run: ``python benchmarks/shapes_instrument.py`` (a minute on one core).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from reelign.datasets.moving_shapes import ALL_MOTIONS, MovingShapes
from reelign.metrics.shapes_instrument import agreement
from reelign.metrics.statistics import wilson
from reelign.video_io import read_clip, write_clip


def noise(video: Tensor, random: torch.Generator) -> Tensor:
    return (video + 0.08 * torch.randn(video.shape, generator=random)).clamp(0, 1)


def blur(video: Tensor, random: torch.Generator) -> Tensor:
    kernel = torch.exp(-0.5 * (torch.arange(-4, 5) / 1.5).square())
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1).repeat(3, 1, 1, 1)
    flat = F.pad(video.flatten(0, 1), (4, 4, 4, 4), mode="replicate")
    flat = F.conv2d(F.conv2d(flat, kernel, groups=3), kernel.transpose(2, 3), groups=3)
    return flat.view(video.shape)


def dim(video: Tensor, random: torch.Generator) -> Tensor:
    return 0.7 * video


def half_size(video: Tensor, random: torch.Generator) -> Tensor:
    small = F.interpolate(video.flatten(0, 1), scale_factor=0.5, mode="area")
    return F.interpolate(small, scale_factor=2.0, mode="bilinear").view(video.shape)


def h264(video: Tensor, random: torch.Generator) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        clips = []
        for clip in video:
            write_clip(path, clip, 8.0)
            clips.append(read_clip(path).video)
    return torch.stack(clips)


DEGRADATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "clean": lambda video, random: video,
    "noise, sd 0.08": noise,
    "blur, sd 1.5 px": blur,
    "brightness × 0.7": dim,
    "half size and back": half_size,
    "H.264 4:2:0, crf 18": h264,
}


def measure(clips: int, seed: int) -> dict[str, dict[str, object]]:
    data, results = MovingShapes(motions=ALL_MOTIONS), {}
    for name, degrade in DEGRADATIONS.items():
        random = torch.Generator().manual_seed(seed)
        wrong = {"colour": 0, "shape": 0, "motion": 0}
        for start in range(0, clips, 64):
            video, specs, _ = data.batch(min(64, clips - start), random)
            for attribute, right in agreement(degrade(video, random), specs).items():
                wrong[attribute] += int((right == 0).sum())
        results[name] = {
            attribute: {"wrong": count, "error": count / clips, "ci95": list(wilson(count, clips))}
            for attribute, count in wrong.items()
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shapes_instrument.json"))
    options = parser.parse_args()
    results = measure(options.clips, options.seed)
    table = Table("clips", "colour wrong", "shape wrong", "motion wrong", title=f"{options.clips} clips each")
    for name, row in results.items():
        table.add_row(name, *(f"{100 * row[a]['error']:.2f} %" for a in ("colour", "shape", "motion")))
    Console().print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"clips": options.clips, "seed": options.seed, "results": results}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
