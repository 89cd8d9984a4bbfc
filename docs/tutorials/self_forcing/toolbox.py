"""What the parts of the tutorial share: where figures go, a student, and how a clip's past is chosen.

``TUTORIAL_SHORT=1`` runs everything in seconds, on a few clips; ``TUTORIAL_OUT`` says where figures go, and
``TUTORIAL_WEIGHTS`` where weights are kept for the next time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from reelign.algorithms.causal_finetuning import CausalFinetuning
from reelign.algorithms.causal_finetuning import Config as FinetuningConfig
from reelign.build import build_generator
from reelign.contracts import Request
from reelign.datasets.moving_shapes import MovingShapes, ShapeSpec
from reelign.generators.causal_wan import CausalWanGenerator
from reelign.metrics.over_time import STEADY, Part, block_parts, pictures_over_time, shapes_over_time, summarise
from reelign.sampling import RolloutOptions, SeededNoise, rollout

SHORT = bool(os.environ.get("TUTORIAL_SHORT"))
HERE = Path(__file__).resolve().parent
OUT = Path(os.environ.get("TUTORIAL_OUT") or HERE / "figures")
WEIGHTS = Path(os.environ.get("TUTORIAL_WEIGHTS") or (OUT / "weights" if SHORT else "runs/tutorial"))
STEPS = 4  # of each block's chain
GIVEN = 2  # true blocks that a test begins with: two show where the shape is and how fast it goes
DATA = MovingShapes(motions=STEADY)  # motions that every part of a clip shows


def student(**options: Any) -> CausalWanGenerator:
    """The zoo's text-to-video Wan, run causally, one latent frame a block; every weight may learn."""
    chosen = {"kind": "causal_wan", "model": "zoo:tiny-wan", "frames_per_block": 1, "device": "cpu", "noise": "fresh"}
    generator: CausalWanGenerator = build_generator(chosen | {"lora": None} | options)
    return generator


def clips(count: int, seed: int) -> tuple[Tensor, list[ShapeSpec], Request]:
    """Drawn clips, what they show, and a request with their captions and themselves."""
    video, specs, captions = DATA.batch(count, torch.Generator().manual_seed(seed))
    return video, specs, Request(tuple(captions), source_videos=video)


@torch.no_grad()
def go_on(generator: CausalWanGenerator, request: Request, past: Tensor, frames: int, skip: int = 0) -> Tensor:
    """Clips [B,T,3,H,W] of ``frames`` latent frames that begin with the latents ``past``, the rest the student's.

    Noise is that of ``request``'s row, block and step; that of the first ``skip`` blocks is thrown away.
    """
    draw = SeededNoise(range(len(request)))
    channels, _, *space = generator.latent_shape()
    for _ in range(skip * STEPS):
        draw((channels, 1, *space))
    condition, schedule = generator.encode(request), generator.path.schedule(STEPS)
    return generator.decode(rollout(generator, condition, frames, schedule, draw, RolloutOptions(), past))


def judge(made: Tensor, truth: Tensor, specs: Sequence[ShapeSpec]) -> dict[str, Tensor]:
    """Block by block, [clips, blocks] each: how far from the drawn clip, and what the instruments say."""
    parts = block_parts([1] * (1 + (made.shape[1] - 1) // 4))
    gap = 255 * (made - truth[:, : made.shape[1]]).abs().mean(dim=(2, 3, 4))
    error = torch.stack([gap[:, part].mean(1) for part in parts], dim=1)
    return {"error": error, **shapes_over_time(made, specs, parts), **pictures_over_time(made, parts)}


def two_pasts(generator: CausalWanGenerator, count: int, seed: int = 77) -> dict[str, dict[str, Tensor]]:
    """Blocks 3 to 5 after two true ones, on the student's own past and on the true one; [clips, 3] each."""
    video, specs, request = clips(count, seed)
    truth, blocks = generator.encode_video(video), generator.latent_shape()[1]
    own = judge(go_on(generator, request, truth[:, :, :GIVEN], blocks), video, specs)
    ends = [
        judge(go_on(generator, request, truth[:, :, :frame], frame + 1, frame - GIVEN), video, specs)
        for frame in range(GIVEN, blocks)
    ]
    true = {name: torch.stack([end[name][:, -1] for end in ends], dim=1) for name in own}
    return {"its own past": {name: values[:, GIVEN:] for name, values in own.items()}, "the true past": true}


def teacher_forced(updates: int, clip_count: int, batch: int = 16) -> CausalWanGenerator:
    """A student trained on clean pasts, block after block of drawn clips; its weights are kept."""
    place = WEIGHTS / f"teacher_forced_{updates}"
    generator = student(train_all=True)
    if place.is_dir():
        generator.load(str(place))
        return generator
    video, _, request = clips(clip_count, seed=1)
    config = FinetuningConfig(mode="teacher_forcing", weighting="none", lr=5e-4, average=0.98)
    algorithm, random = CausalFinetuning(generator, config), torch.Generator().manual_seed(2)
    for update in range(updates):
        rows = torch.randint(clip_count, (batch,), generator=random).tolist()
        part = Request(tuple(request.prompts[row] for row in rows), source_videos=video[rows])
        logged = algorithm.step(part)
        if update % max(1, updates // 5) == 0:
            print(f"teacher forcing, update {update}: loss {logged['loss']:.3f}")
    with algorithm.exported():
        generator.save(str(place))
    generator.load(str(place))
    return generator


def panels(found: dict[str, dict[str, Tensor]], names: Sequence[str]) -> dict[str, dict[str, list[Part]]]:
    """For a figure: measure to whose past to blocks."""
    return {name: {past: summarise(values[name]) for past, values in found.items()} for name in names}


def save(figure: Figure, name: str) -> None:
    """Keep a figure beside the page."""
    OUT.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT / name, dpi=110)
