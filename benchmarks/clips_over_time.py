"""What the benchmarks of long and of self-forced clips share: prompts, clips, and measures along them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from reelign.contracts import Generator, Request
from reelign.datasets.moving_shapes import MovingShapes, ShapeSpec, all_specs
from reelign.metrics.over_time import STEADY, Part, drift, pictures_over_time, shapes_over_time, summarise
from reelign.sampling import RolloutOptions, SeededNoise, rollout, sample

SHARES = ("colour", "shape", "motion")
BATCH = 16


def choose(prompts: int) -> list[ShapeSpec]:
    """Prompts spread evenly over the grammar, of motions that every part of a clip shows."""
    specs = all_specs(STEADY)
    if not 2 <= prompts <= len(specs):
        raise SystemExit(f"--prompts: 2 to {len(specs)}; got {prompts}")
    order = torch.randperm(len(specs), generator=torch.Generator().manual_seed(11)).tolist()
    return [specs[i] for i in order[:prompts]]


@torch.no_grad()
def clips(
    generator: Generator, specs: Sequence[ShapeSpec], steps: int, guidance: float, frames: int | None = None
) -> Tensor:
    """A clip a prompt, seeds by place; ``frames`` latent ones, or as many as the generator was trained on."""
    made = []
    for start in range(0, len(specs), BATCH):
        request = Request(tuple(spec.caption for spec in specs[start : start + BATCH]))
        seeds = range(9000 + start, 9000 + start + len(request))
        if frames is None:
            latents = sample(generator, request, list(seeds), steps, guidance)
        else:
            condition, schedule = generator.encode(request), generator.path.schedule(steps)
            draw = SeededNoise(list(seeds), generator.device)
            latents = rollout(generator, condition, frames, schedule, draw, RolloutOptions(guidance))
        made.append(generator.decode(latents).cpu())
    return torch.cat(made)


def drawn(specs: Sequence[ShapeSpec], frames: int) -> Tensor:
    """What the data set draws for these prompts."""
    return MovingShapes(frames=frames).render(list(specs), torch.Generator().manual_seed(5))


def measure(video: Tensor, specs: Sequence[ShapeSpec], parts: Sequence[slice]) -> dict[str, Tensor]:
    """Every measure, [clips, parts] each."""
    return {**shapes_over_time(video, specs, parts), **pictures_over_time(video, parts)}


def panels(found: Mapping[str, Mapping[str, Tensor]], names: Sequence[str]) -> dict[str, dict[str, list[Part]]]:
    """Measures of several generators, turned round for a figure: measure to who to parts."""
    return {name: {who: summarise(values[name]) for who, values in found.items()} for name in names}


def rows(found: Mapping[str, Mapping[str, Tensor]], first: int = 0) -> list[dict[str, Any]]:
    """A row for each generator and measure: every part with its interval, and the change from ``first`` to the last."""
    return [
        {
            "who": who,
            "measure": name,
            "parts": [asdict(part) for part in summarise(values)],
            "drift": asdict(drift(values, first)),
        }
        for who, measures in found.items()
        for name, values in measures.items()
    ]
