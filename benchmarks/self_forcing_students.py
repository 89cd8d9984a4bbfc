"""Trains the students that ``self_forcing.py`` compares: one teacher's clips, one budget of processor seconds each.

    ode_init            regresses the ends of the teacher's trajectories; 0.7 of the budget makes the start of:
    dmd, sid, gan       self-forcing from that start, for what is left of the budget
    dmd_long            goes on from dmd, on rollouts of up to 17 latent frames under a window of 5, judged by their end
    teacher_forcing     flow matching on the teacher's clips, each block after clean ones, from the teacher's weights
    diffusion_forcing   the same after noisy ones
    ode_alone           ODE initialisation for the whole budget

The clips are the ends of the same trajectories, so nobody knows more than the teacher does; making them is not counted.
Prompts that ``self_forcing.py`` asks for are never trained on. Seconds are of the processor, one thread.

Run: ``python benchmarks/self_forcing_students.py`` (an hour), ``… --only dmd``; it goes on where it was.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from clips_over_time import choose
from rich.console import Console
from rich.progress import Progress

from reelign.algorithms import causal_finetuning, ode_init, self_forcing
from reelign.build import build_generator
from reelign.contracts import Request
from reelign.datasets.moving_shapes import all_specs

BATCH, SEEDS, STEPS, HELD_OUT, START_SHARE = 16, 4, 4, 96, 0.7
WINDOW = 5  # latent frames, as many as a clip of the teacher's has
TRAJECTORIES = {"steps": STEPS, "teacher_steps": 12, "teacher_guidance_scale": 3.0, "seeds": SEEDS}
REGRESSION = {"lr": 5e-4, "average": 0.98}
FORCING = {"steps": STEPS, "critic": "all", "average": 0.9, "average_from": 5, "weight_decay": 0.0}
STUDENTS: dict[str, tuple[Any, dict[str, Any], str | None]] = {  # algorithm, its settings, what it goes on from
    "ode_init": (ode_init, {**TRAJECTORIES, **REGRESSION}, None),
    "dmd": (
        self_forcing,
        {**FORCING, "objective": "dmd", "real_guidance": 0.5, "critic_ratio": 2, "lr": 1e-4, "critic_lr": 5e-5},
        "ode_init",
    ),
    "dmd_long": (
        self_forcing,
        {**FORCING, "real_guidance": 0.5, "critic_ratio": 2, "lr": 1e-4, "critic_lr": 5e-5, "frames": (5, 17)},
        "dmd",
    ),
    "sid": (
        self_forcing,
        {**FORCING, "objective": "sid", "real_guidance": 0.5, "critic_ratio": 2, "lr": 2e-5, "critic_lr": 1e-4},
        "ode_init",
    ),
    "gan": (
        self_forcing,
        {**FORCING, "objective": "gan", "critic_ratio": 1, "lr": 5e-5, "critic_lr": 1e-4},
        "ode_init",
    ),
    "teacher_forcing": (causal_finetuning, {**REGRESSION, "mode": "teacher_forcing"}, None),
    "diffusion_forcing": (causal_finetuning, {**REGRESSION, "mode": "diffusion_forcing"}, None),
    "ode_alone": (ode_init, {**TRAJECTORIES, **REGRESSION}, None),
}
ALGORITHM = {ode_init: "OdeInit", self_forcing: "SelfForcing", causal_finetuning: "CausalFinetuning"}


class Lessons:
    """The teacher's trajectories of all training prompts, and their ends as clips.

    Args:
        folder: where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        asked = {spec.caption for spec in choose(HELD_OUT)}
        self.prompts = [spec.caption for spec in all_specs() if spec.caption not in asked]
        self.folder = folder
        self._ends: torch.Tensor | None = None

    def trajectories(self, generator: Any) -> Any:
        """Drawn where they are missing."""
        config = ode_init.Config(**TRAJECTORIES, pairs=str(self.folder))
        found = ode_init.OdeInit(generator, config).trajectories
        with Progress() as progress:
            for prompt in progress.track(self.prompts, description="the teacher's trajectories"):
                found.states(prompt, 0)
        return found

    def request(self, generator: Any, random: torch.Generator, clips: bool) -> Request:
        """A batch of prompts, with a clip of the teacher's for each where wanted."""
        rows = torch.randint(len(self.prompts), (BATCH,), generator=random).tolist()
        prompts = tuple(self.prompts[row] for row in rows)
        if not clips:
            return Request(prompts)
        if self._ends is None:
            found = self.trajectories(generator)
            ends = [found.states(prompt, seed)[-1] for prompt in self.prompts for seed in range(SEEDS)]
            with torch.no_grad():
                self._ends = torch.cat([generator.decode(part) for part in torch.stack(ends).split(32)])
        seeds = torch.randint(SEEDS, (BATCH,), generator=random).tolist()
        return Request(prompts, self._ends[[row * SEEDS + seed for row, seed in zip(rows, seeds, strict=True)]])


def train(name: str, lessons: Lessons, folder: Path, seconds: float, overrides: dict[str, Any]) -> dict[str, Any]:
    """Train a student for so many processor seconds, save it, and say what it took."""
    module, settings, start = STUDENTS[name]
    options = {"kind": "causal_wan", "model": "zoo:tiny-wan", "frames_per_block": 1, "noise": "fresh", "device": "cpu"}
    if start is not None:
        options["transformer"] = str(folder.parent / start / "transformer")
    window = WINDOW if "frames" in settings else None
    generator = build_generator({**options, "window": window, "lora": None, "train_all": True})
    settings = settings | overrides | ({"pairs": str(lessons.folder)} if module is ode_init else {})
    algorithm = getattr(module, ALGORITHM[module])(generator, module.Config(**settings))
    random, clips = torch.Generator().manual_seed(3), module is causal_finetuning or name == "gan"
    if module is ode_init:
        lessons.trajectories(generator)
    logged: list[dict[str, float]] = []
    spent = 0.0
    with Progress() as progress:
        bar = progress.add_task(name, total=seconds)
        while spent < seconds:
            request = lessons.request(generator, random, clips)
            spent += _timed(lambda request=request: logged.append(algorithm.step(request)))
            progress.update(bar, completed=spent)
    with algorithm.exported():
        generator.save(str(folder))
    trained = sum("loss" in row for row in logged)
    said = {"settings": settings, "from": start, "cpu_seconds": spent, "updates": len(logged), "of_generator": trained}
    (folder / "training.json").write_text(json.dumps(said | {"logged": logged}, indent=2, default=str) + "\n")
    return said


def _timed(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--budget", type=float, default=400.0, help="processor seconds a student")
    parser.add_argument("--out", type=Path, default=Path("runs/students"))
    parser.add_argument("--set", default="{}", help="JSON: other settings, for trying")
    parser.add_argument("--name", help="with one student: its folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lessons, console = Lessons(arguments.out / "trajectories"), Console()
    for name in arguments.only:
        folder = arguments.out / (arguments.name or name)
        if (folder / "training.json").is_file():
            console.print(f"{name} is there")
            continue
        start = STUDENTS[name][2]
        share = START_SHARE if name == "ode_init" else 1 - START_SHARE if start else 1.0
        said = train(name, lessons, folder, share * arguments.budget, json.loads(arguments.set))
        console.print(f"{name}: {said['of_generator']} updates in {said['cpu_seconds']:.0f} s")


if __name__ == "__main__":
    main()
