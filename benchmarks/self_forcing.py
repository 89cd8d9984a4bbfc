"""Students block by block: what each block of a clip is worth, by how the student was trained.

A student is ``name=path``: a folder with an adapter, a folder with whole weights (``transformer/`` in it or itself),
or a run folder, of which the last checkpoint is taken. All get the same prompts, seeds, steps and blocks; the teacher,
a bidirectional model in its own number of steps, is cut at the same frames. 95 % bootstrap intervals over prompts.
The first student named is compared with every other on the last block, prompt by prompt, and every other with ``its
start``, where there is one.

``goal`` is the mean of the three shares: whether colour, shape and motion are as asked.

Run: ``python benchmarks/self_forcing.py`` on what ``self_forcing_students.py`` left, or
``python benchmarks/self_forcing.py self-forcing=runs/sf teacher-forcing=runs/tf`` on your own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from clips_over_time import SHARES, choose, clips, drawn, measure, panels, rows
from rich.console import Console
from rich.table import Table
from torch import Tensor

from reelign.build import build_generator
from reelign.datasets.moving_shapes import ShapeSpec
from reelign.generation import adapter_options
from reelign.generators.wan import WEIGHTS
from reelign.metrics.over_time import block_parts
from reelign.metrics.statistics import paired_delta
from reelign.plots.over_time import over_time_figure

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("goal", "colour", "shape", "motion", "sharpness", "motion_energy")
START = "its start"
DRAWN = 4  # students in the figure, the first ones
TRAINED = {"self-forcing (DMD)": "dmd", "teacher forcing": "teacher_forcing", "diffusion forcing": "diffusion_forcing",
           START: "ode_init", "ODE initialisation": "ode_alone", "self-forcing (SiD)": "sid",
           "self-forcing (GAN)": "gan"}  # fmt: skip


def student(path: Path) -> dict[str, Any]:
    """Options that put the weights at a path into a generator."""
    places = [path, path / "adapter"]
    places += [step / "adapter" for step in sorted((path / "checkpoints").glob("step_*"), reverse=True)]
    for place in places:
        if (place / WEIGHTS).is_file():
            return {"adapter": str(place), "lora": adapter_options(place)}
        for whole in (place, place / "transformer"):
            if (whole / "diffusion_pytorch_model.safetensors").is_file():
                return {"transformer": str(whole), "lora": None}
    raise SystemExit(f"a student's folder holds {WEIGHTS}, transformer weights or checkpoints; {path} does not")


def named(text: str) -> tuple[str, Path]:
    """``name=path``."""
    name, _, path = text.partition("=")
    if not path:
        raise SystemExit(f"a student is written name=path; got {text!r}")
    return name, Path(path)


def against(found: dict[str, Any], pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """One student minus another on the last block, for each pair, with intervals."""
    return [
        {"student": one, "against": other, "measure": name, "last_block": True,
         **asdict(paired_delta(found[other][name][:, -1].numpy(), found[one][name][:, -1].numpy()))}
        for one, other in pairs
        for name in SHOWN
    ]  # fmt: skip


def judged(video: Tensor, specs: Sequence[ShapeSpec], parts: Sequence[slice], prompts: int) -> dict[str, Tensor]:
    """Every measure, and ``goal``, [prompts, parts]: the mean over the clips of each prompt."""
    found = {name: value.unflatten(0, (-1, prompts)).mean(0) for name, value in measure(video, specs, parts).items()}
    return {"goal": torch.stack([found[name] for name in SHARES]).mean(0), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    folder = "runs/students"
    trained = [f"{name}={folder}/{place}" for name, place in TRAINED.items()]
    parser.add_argument("students", nargs="*", default=trained, help="name=path, the one of interest first")
    parser.add_argument("--model", default="zoo:tiny-wan", help="what students were trained from")
    parser.add_argument("--teacher", default="zoo:tiny-wan", help="a bidirectional model; '' for none")
    parser.add_argument("--teacher-guidance", type=float, nargs="+", default=[3.0, 1.5])
    parser.add_argument("--frames-per-block", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--noise", choices=("fresh", "kept"), default="fresh", help="fresh for few-step students")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--per-prompt", type=int, default=3, help="clips of each, of which the mean counts")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "self_forcing.json")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "assets" / "self_forcing.png")
    arguments = parser.parse_args()
    shared = {
        "kind": "causal_wan", "model": arguments.model, "device": "cpu", "noise": arguments.noise,
        "frames_per_block": arguments.frames_per_block,
    }  # fmt: skip
    specs, found, parts = choose(arguments.prompts) * arguments.per_prompt, {}, []
    chosen = dict(named(text) for text in arguments.students)
    for name, path in chosen.items():
        generator = build_generator(shared | student(path))
        parts = block_parts(generator.blocks(generator.latent_shape()[1]))
        video = clips(generator, specs, arguments.steps, arguments.guidance)
        found[name] = judged(video, specs, parts, arguments.prompts)
    if arguments.teacher:
        teacher = build_generator({"kind": "wan", "model": arguments.teacher, "lora": None, "device": "cpu"})
        for scale in arguments.teacher_guidance:
            video = clips(teacher, specs, teacher.default_steps, scale)
            found[f"teacher, guidance {scale:g}"] = judged(video, specs, parts, arguments.prompts)
    found["drawn"] = judged(drawn(specs, video.shape[1]), specs, parts, arguments.prompts)
    first = next(iter(chosen))
    others = [name for name in found if name not in (first, START, "drawn")]
    pairs = [(first, name) for name in (*others, START) if name in found]
    pairs += [(name, START) for name in others if START in found]
    table = Table("who", *(f"{m}, last block" for m in SHOWN))
    for name, values in found.items():
        table.add_row(name, *(f"{values[m][:, -1].mean().item():.3f}" for m in SHOWN))
    Console().print(table)
    shown = {name: values for name, values in found.items() if name not in list(chosen)[DRAWN:]}
    over_time_figure(panels(shown, SHOWN), "block", ("goal", *SHARES), "drawn").savefig(arguments.figure, dpi=130)
    record = {
        "students": {name: str(path) for name, path in chosen.items()},
        "model": arguments.model, "teacher": arguments.teacher, "frames_per_block": arguments.frames_per_block,
        "steps": arguments.steps, "guidance": arguments.guidance, "noise": arguments.noise,
        "prompts": arguments.prompts, "per_prompt": arguments.per_prompt,
        "rows": rows(found), "comparisons": against(found, pairs),
    }  # fmt: skip
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
