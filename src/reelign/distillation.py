"""``zoo:tiny-causal-wan``: the zoo's bidirectional Wan made causal and few-step, by recipes that users run.

    WORK/ode_init/        ODE initialisation: the student learns where its teacher's trajectories end
    FOLDER/               transformer/ (float16), reelign.json, card: everything else is ``zoo:tiny-wan``'s

A training that was stopped goes on where it was. Self-forcing may come after it (``STAGES``); it is left out because on
clips of five blocks it adds next to nothing (docs/algorithms/self_forcing.md).

Run: ``reelign zoo train tiny-causal-wan``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from reelign.build import build_generator
from reelign.config import load_config
from reelign.contracts import Request
from reelign.datasets.prompts import load_prompts, split_prompts
from reelign.errors import RunFolderError
from reelign.loop import Listener, Run
from reelign.metrics.shapes_instrument import shapes_measure
from reelign.run_folder import RunFolder
from reelign.sampling import generate
from reelign.zoo.models import write_measured

BASE = "zoo:tiny-wan"
STAGES = ("ode_init",)
STEPS, TEACHER_STEPS, TEACHER_GUIDANCE = 4, 10, 3.0
HELD_OUT, SEED = 96, 40_000


def train_student(
    folder: Path, work: Path, listener: Listener, scale: float = 1.0, overrides: Sequence[str] = ()
) -> Path:
    """Run the recipes and write the student; returns ``folder``.

    Args:
        work: the run folders' place.
        scale: share of the recipes' steps.
        overrides: of the recipes, ``section.key=value``.

    Raises:
        RunFolderError: a signal stopped a run.
    """
    weights: Path | None = None
    for stage in STAGES:
        place = work / stage
        changes = [*overrides, f"output={json.dumps(str(place))}"]
        changes += [] if weights is None else [f"generator.transformer={json.dumps(str(weights))}"]
        config = load_config(Path(stage), changes)
        steps = max(1, round(config.training.steps * scale))
        config = config.model_copy(update={"training": config.training.model_copy(update={"steps": steps})})
        run = Run(config, resume=(place / "config.yaml").is_file())
        if not run.train(listener):
            raise RunFolderError(f"stopped in {place}; the same command goes on there")
        weights = newest_weights(place)
    assert weights is not None
    return write_student(folder, weights)


def newest_weights(run: Path) -> Path:
    """The transformer folder of a run's newest checkpoint.

    Raises:
        RunFolderError: there is none.
    """
    found = sorted(RunFolder(run).checkpoints.glob("step_*/adapter/transformer"))
    if not found:
        raise RunFolderError(f"{run} has no checkpoint with a whole transformer: train with generator.train_all")
    return found[-1]


def write_student(folder: Path, weights: Path) -> Path:
    """Write a student in the zoo's layout, measure it from there, and write its card."""
    student = build_generator({**_student(), "transformer": str(weights)})
    network = student.network.half()
    network.save_pretrained(folder / "transformer", safe_serialization=True)
    config = folder / "transformer" / "config.json"
    kept = {key: value for key, value in json.loads(config.read_text()).items() if key != "_name_or_path"}
    config.write_text(json.dumps(kept, indent=2) + "\n")
    native = {"base": BASE, "frames_per_block": 1, "noise": "fresh", "steps": STEPS, "guidance_scale": 1.0}
    (folder / "reelign.json").write_text(json.dumps(native, indent=2) + "\n")
    measured = measure(folder)
    write_measured(folder, measured, card(measured))
    return folder


def measure(folder: Path) -> dict[str, float]:
    """Accuracies of student and teacher on held-out prompts with the same seeds, and how fast each makes frames."""
    student = build_generator({"kind": "causal_wan", "model": str(folder), "lora": None})
    teacher = build_generator({"model": BASE, "lora": None})
    ours, pace = _examined(student, STEPS, 1.0)
    theirs, teacher_pace = _examined(teacher, TEACHER_STEPS, TEACHER_GUIDANCE)
    return {
        **ours,
        **{f"teacher_{name}": value for name, value in theirs.items()},
        "speed_over_teacher": pace / teacher_pace,
    }


def _examined(generator: Any, steps: int, guidance_scale: float) -> tuple[dict[str, float], float]:
    """Shares of held-out clips with the asked colour, shape and motion, and frames a second."""
    prompts = split_prompts(load_prompts("shapes"), HELD_OUT, 0).held_out
    found, seconds, frames = [], 0.0, 0
    for start in range(0, len(prompts), 16):
        request, began = Request(prompts[start : start + 16]), time.process_time()
        clips = generate(generator, request, range(SEED + start, SEED + start + len(request)), steps, guidance_scale)
        seconds += time.process_time() - began
        frames += clips.video.shape[0] * clips.video.shape[1]
        found.append(shapes_measure(clips))
    means = {name: float(torch.cat([part[name] for part in found]).float().mean()) for name in found[0]}
    return {name.removesuffix("_accuracy"): value for name, value in means.items()}, frames / seconds


def _student() -> dict[str, Any]:
    return {"kind": "causal_wan", "model": BASE, "frames_per_block": 1, "lora": None, "device": "cpu"}


def card(measured: dict[str, float]) -> str:
    """The model card, from what ``measure`` returned."""
    rows = "\n".join(
        f"| asked {name} | {measured[name]:.1%} | {measured[f'teacher_{name}']:.1%} |"
        for name in ("colour", "shape", "motion")
    )
    teacher = f"the teacher in {TEACHER_STEPS} steps with guidance {TEACHER_GUIDANCE:g}"
    speed = f"{measured['speed_over_teacher']:.1f} times the teacher's frames"
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
tags: [reelign, moving-shapes, causal]
---

# tiny-causal-wan

A causal, four-step `WanTransformer3DModel` (3.9 M parameters): it writes a clip one latent frame after the other from
the memory of its own past, and can go on for ever. Text encoder and autoencoder are those of `zoo:tiny-wan`, which is
also its teacher; it knows the same captions and no others.

Trained by `reelign zoo train tiny-causal-wan`: ODE initialisation (Yin et al. 2025, CausVid) by the recipe `ode_init`.
Files are float16; compute in float32 or bfloat16.

One clip for each of {HELD_OUT} captions that training did not ask for; {teacher},
the student in {STEPS} without. In a second of CPU time it makes {speed}, decoding included.

| measure | student | teacher |
|---|---|---|
{rows}
"""
