"""One training step of video translation: the published layers against ours, in time, memory, weights and operations.

    python benchmarks/translation_step.py            # minutes
    python benchmarks/translation_step.py --quick    # see that it runs

Three parts, written to ``benchmarks/results/translation_step.json``:

- **counted**: weights, multiply-adds and bytes kept for the backward pass of one pass of a generator and a
  discriminator at the published size, 16×64×64, on PyTorch's meta device, which computes and allocates nothing. So the
  8.6 billion weights of the published dense layer can be counted though they do not fit.
- **measured**: whole steps of both on this machine, at sizes where the published layers fit: their widths on small
  clips, and a quarter of their widths on larger ones, each pooled before its dense layer. Ours takes the same clips,
  with the published losses, without and with the agent, at the width of its recipe.
- **frames**: bytes that a pass keeps, by the number of frames, and what translating in pieces of 8 frames takes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from meters import SavedBytes
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from translation import environment
from translation_published import WIDTHS, Discriminator, Generator, Published

from reelign.algorithms.video_translation import Config, VideoTranslation
from reelign.contracts import Request
from reelign.generators.translation import TranslationGenerator, TranslationOptions
from reelign.generators.translation_layers import FrameDiscriminator, FrameNetwork, VideoDiscriminator
from reelign.planning.meter import Meter
from reelign.video_io import replacing

RESULTS = Path(__file__).parent / "results" / "translation_step.json"
FULL = (16, 64, 64)
CHANNELS = 16  # of the recipe
QUARTER = tuple(width // 4 for width in WIDTHS)
# Frames, height, width; widths of the published layers.
MEASURED = (((4, 16, 16), WIDTHS), ((8, 16, 16), WIDTHS), ((4, 32, 32), QUARTER), ((8, 32, 32), QUARTER))
PUBLISHED_LOSSES = {"lambda_cycle": 0.0, "lambda_identity": 0.0, "r1": 0.0, "average": 0.0}


def counted() -> list[dict[str, Any]]:
    """Weights, multiply-adds and kept bytes of single passes at the published size."""
    frames, height, width = FULL
    with torch.device("meta"):
        theirs = torch.zeros(1, 3, frames, height, width)
        ours = theirs.transpose(1, 2)
        rows = [
            ("published generator", Generator(), theirs),
            ("our generator", FrameNetwork(CHANNELS, CHANNELS), ours),
            ("published discriminator", Discriminator(FULL, pooled=False), theirs),
            ("published discriminator, pooled", Discriminator(FULL), theirs),
            ("our frame discriminator, all frames", FrameDiscriminator(12), ours[0]),
            ("our video discriminator", VideoDiscriminator(6), ours),
        ]
        return [count(name, network, clip) for name, network, clip in rows]


def count(name: str, network: nn.Module, clip: Tensor) -> dict[str, Any]:
    saved = SavedBytes([network])
    with saved.hooks(), FlopCounterMode(display=False) as flops:
        out = network(clip)
    kept = saved.now
    del out
    return {
        "what": name,
        "weights": sum(p.numel() for p in network.parameters()),
        "multiply_adds": flops.get_total_flops() // 2,
        "kept_bytes": kept,
    }


def timed(step: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Medians after one step to warm up, and the peak of bytes alive above weights and optimiser state.

    Seconds on the clock, and of processor time over all threads, which others on the machine disturb less.
    """
    step()
    seconds, processor = [], []
    for _ in range(repeats):
        began, worked = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - worked)
    with Meter() as meter:
        step()
    return {
        "seconds": statistics.median(seconds),
        "processor_seconds": statistics.median(processor),
        "of": repeats,
        "peak_bytes": meter.peak,
    }


def measured(sizes: Sequence[tuple[tuple[int, int, int], Sequence[int]]], repeats: int) -> list[dict[str, Any]]:
    rows = []
    for size, widths in sizes:
        clips = [torch.rand(1, size[0], 3, *size[1:], generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
        theirs = Published(size, widths)
        found = {"published": timed(partial(theirs.step, *clips), repeats)}
        weights = {"published": sum(p.numel() for m in (theirs.networks, theirs.judges) for p in m.parameters())}
        for name, rl in (("ours", False), ("ours with the agent", True)):
            options = TranslationOptions(frames=size[0], height=size[1], width=size[2], device="cpu")
            algorithm = VideoTranslation(TranslationGenerator(options), Config(rl=rl, **PUBLISHED_LOSSES), 0)
            request = Request(("x", "y"), torch.cat(clips))
            found[name] = timed(partial(algorithm.step, request), repeats)
            weights[name] = sum(p.numel() for p in [*algorithm.parameters.values(), *algorithm.judges.parameters()])
        for name, row in found.items():
            rows.append({"size": size, "published_widths": list(widths), "what": name, "weights": weights[name], **row})
            times = f"{row['seconds']:.2f} s, {row['processor_seconds']:.2f} s of processor"
            memory = f"{row['peak_bytes'] / 2**20:.0f} MiB, {weights[name] / 1e6:.2f} M weights"
            print(f"{size}, widths {tuple(widths)}, {name}: {times}, {memory}", flush=True)
    return rows


def by_frames(counts: Sequence[int]) -> dict[str, Any]:
    """Kept bytes of one pass with gradient, and the peak of translating in pieces without, by the number of frames."""
    network = FrameNetwork(CHANNELS, CHANNELS)
    kept = {}
    for frames in counts:
        saved = SavedBytes([network])
        with saved.hooks():
            out, _ = network(torch.rand(1, frames, 3, 64, 64))
        kept[frames] = saved.now
        del out
    pieces = {frames: streamed(network, frames) for frames in counts}
    slopes = [(kept[b] - kept[a]) / (b - a) for a, b in itertools.pairwise(counts)]
    return {
        "kept_bytes": kept,
        "bytes_per_frame": slopes,
        "linear_within": max(slopes) / min(slopes) - 1,
        "peak_bytes_in_pieces_of_8": pieces,
    }


@torch.no_grad()
def streamed(network: nn.Module, frames: int) -> int:
    """Peak bytes alive while a clip goes through 8 frames at a time, each piece drawn when it is needed."""
    state = None
    with Meter() as meter:
        for start in range(0, frames, 8):
            clip = torch.rand(1, min(8, frames - start), 3, 64, 64)
            _, state = network(clip, state)
    return meter.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.quick:
        given.out = Path("translation_step_quick.json") if given.out == RESULTS else given.out
    counts = counted()
    for row in counts:
        print(f"{row['what']}: {row['weights']:,} weights, {row['multiply_adds'] / 1e9:.2f} G multiply-adds, "
              f"{row['kept_bytes'] / 2**20:,.1f} MiB kept")  # fmt: skip
    sizes = MEASURED[:1] if given.quick else MEASURED
    steps = measured(sizes, 1 if given.quick else given.repeats)
    frames = by_frames((8, 16, 32) if given.quick else (8, 16, 32, 64, 128))
    print(json.dumps(frames, indent=1))
    result = {
        "environment": environment(),
        "full_size": FULL,
        "counted": counts,
        "measured": steps,
        "frames": frames,
    }
    with replacing(given.out) as part:
        part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
