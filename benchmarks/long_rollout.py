"""Longer than trained: how colour, shape, sharpness and motion drift, second by second, under four memories.

    everything       each block sees all frames before it; positions and contexts grow beyond anything trained
    window           as many latent frames as a training clip has
    window + sink    of these, the first is the clip's first
    … rebased        and it is given the place right before the window, so that no distance is longer than trained

The same prompts and seeds for all; 95 % bootstrap intervals over prompts. ``motion`` is whether the prompt's motion
shows in that second; a shape that moves in one direction for longer than a training clip reaches the border, so past
it motion energy says more. Grey: clips of trained length that the data set draws, for their sharpness and energy.

Run: ``python benchmarks/long_rollout.py`` (minutes); draws docs/assets/long_rollout.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from clips_over_time import SHARES, choose, clips, drawn, measure, panels, rows
from rich.console import Console
from rich.table import Table
from self_forcing import student

from reelign.build import build_generator
from reelign.metrics.over_time import second_parts
from reelign.plots.over_time import over_time_figure
from reelign.video_io import write_clip

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("colour", "shape", "sharpness", "motion_energy")


def layouts(trained: int, block: int) -> dict[str, dict[str, Any]]:
    """The four memories, for a generator trained on so many latent frames."""
    window, sink = max(trained, 2 * block), 1
    return {
        "everything": {},
        "window": {"window": window},
        "window + sink": {"window": window, "sink": sink},
        "window + sink, rebased": {"window": window, "sink": sink, "rebase_sink": True},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="zoo:tiny-causal-wan")
    parser.add_argument("--student", type=Path, help="weights in place of the model's; see self_forcing.py")
    parser.add_argument("--frames-per-block", type=int, help="default: the model's own")
    parser.add_argument("--frames", type=int, default=41, help="latent frames of a clip; 41 are 20 s at 8 a second")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--guidance", type=float, help="default: the model's own")
    parser.add_argument("--save-clips", type=Path, help="folder for a few clips of each memory")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "long_rollout.json")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "assets" / "long_rollout.png")
    arguments = parser.parse_args()
    shared: dict[str, Any] = {"kind": "causal_wan", "model": arguments.model, "device": "cpu"}
    shared |= {"frames_per_block": arguments.frames_per_block, "lora": None}
    if arguments.student:
        shared |= student(arguments.student)
    plain = build_generator(shared)
    trained, block = plain.latent_shape()[1], plain.layout.frames_per_block
    specs, found = choose(arguments.prompts), {}
    steps, guidance = arguments.steps or plain.default_steps, arguments.guidance or plain.default_guidance_scale
    for name, options in layouts(trained, block).items():
        video = clips(build_generator(shared | options), specs, steps, guidance, arguments.frames)
        found[name] = measure(video, specs, second_parts(video.shape[1], plain.fps))
        for index in range(4 if arguments.save_clips else 0):
            file = arguments.save_clips / f"{name.replace(' + ', '-').replace(', ', '-')}-{index}.mp4"
            write_clip(file, video[index], plain.fps)
    usual = drawn(specs, plain.frames())
    reference = measure(usual, specs, [slice(0, plain.frames())])
    table = Table("memory", *SHOWN, title="from the first second to the last")
    records = rows(found)
    for name in found:
        drifts = {row["measure"]: row["drift"] for row in records if row["who"] == name}
        cells = (drifts[m] for m in SHOWN)
        table.add_row(name, *(f"{d['delta']:+.3f} ({d['ci95'][0]:+.3f} … {d['ci95'][1]:+.3f})" for d in cells))
    Console().print(table)
    seconds = next(iter(found.values()))["colour"].shape[1]
    as_drawn = {"drawn": {m: reference[m].expand(-1, seconds) for m in reference}}
    over_time_figure(panels({**found, **as_drawn}, SHOWN), "second", SHARES, "drawn").savefig(arguments.figure, dpi=130)
    record = {
        "model": arguments.model, "student": str(arguments.student or ""), "latent_frames": arguments.frames,
        "trained_latent_frames": trained, "prompts": len(specs), "steps": steps, "guidance": guidance,
        "memories": layouts(trained, block), "drawn": {m: v.mean().item() for m, v in reference.items()},
        "rows": records,
    }  # fmt: skip
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
