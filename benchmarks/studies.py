"""Studies on the demo's budget: which objective, and which part of the chain. Held-out measures with 95 % intervals.

``objective``: a careless reward alone, in a weighted sum with the action reward, and with that as a constraint.
``chain``: the whole chain against InstructVideo's partial chain on drawn clips, per reward call and per second.

Run: ``python benchmarks/studies.py objective chain`` (minutes an arm); arms that are in the folder already are read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from demo_runs import make_runs, read_run
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
COLOUR = "{name: colour_coverage}"
ACTION = '{{name: video_action, {}, options: {{model: "zoo:tiny-videomae"}}}}'
SHORT = ["reward_gradient.lr=1.0e-3", "training.steps=60"]  # the careless reward needs no more
# run: values set over the demo's recipe
RUNS: dict[str, list[str]] = {
    "alone": [f"rewards=[{COLOUR}]", *SHORT],
    "sum": [f"rewards=[{COLOUR}, {ACTION.format('weight: 0.2, loss: cross_entropy')}]", *SHORT],
    "constraint": [f"rewards=[{COLOUR}, {ACTION.format('keep_within: 0.02')}]", *SHORT],
    "demo": [],
    "partial": ["algorithm=partial_chain"],
}
# study: arm, as its table says it, and its run
STUDIES: dict[str, dict[str, str]] = {
    "objective": {"reward alone": "alone", "weighted sum": "sum", "constraint": "constraint"},
    "chain": {"whole chain": "demo", "partial chain": "partial"},
}
HELD_OUT = ("colour_accuracy", "shape_accuracy", "motion_accuracy")
CLIPS = 256  # drawn clips that the partial chain edits


def arguments_of(run: str, folder: Path, seed: int) -> list[str]:
    """What ``reelign demo`` is given for one run."""
    changes = [*RUNS[run], 'guard.action="off"', f"seed={seed}"]
    if run == "partial":
        changes += partial_chain(folder)
    return [word for change in changes for word in ("--set", change)]


def read(arm: str, out: Path) -> dict[str, Any]:
    """What a finished arm amounts to."""
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return {"arm": arm, "training_seconds": last["seconds"], "summary": read_run(out)[0]}


def partial_chain(folder: Path) -> list[str]:
    """Draw the clips to edit, once, and move the demo's settings to the other algorithm."""
    from reelign.config import load_config, recipe

    clips = folder / "clips"
    if not clips.exists():
        command = [sys.executable, "-m", "reelign", "data", "shapes", str(clips), "--clips", str(CLIPS)]
        subprocess.run(command, check=True)
    settings = load_config(recipe("demo"), []).reward_gradient.model_dump(mode="json")
    kept = {key: settings[key] for key in ("steps", "guidance_scale", "lr", "average")}
    return [f"clips={{source: {json.dumps(str(clips))}}}", f"partial_chain={json.dumps({**kept, 'frames': 'all'})}"]


def describe(measure: dict[str, Any]) -> str:
    """Change and interval of one measure."""
    low, high = measure["ci95"]
    return f"{measure['delta']:+.3f} [{low:+.3f}, {high:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("studies", nargs="+", choices=list(STUDIES))
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "studies")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side; seconds then count for little")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for study in arguments.studies:
        outs = {arm: arguments.runs / f"{run}-{arguments.seed}" for arm, run in STUDIES[study].items()}
        make_runs(
            {outs[arm]: arguments_of(run, arguments.runs, arguments.seed) for arm, run in STUDIES[study].items()},
            arguments.at_once,
        )
        rows = [read(arm, out) for arm, out in outs.items()]
        table = Table("arm", "first reward", *(name.removesuffix("_accuracy") for name in HELD_OUT), "seconds")
        for row in rows:
            summary = row["summary"]
            measures = [next(iter(summary["rewards"].values())), *(summary["held_out"][name] for name in HELD_OUT)]
            table.add_row(row["arm"], *(describe(m) for m in measures), f"{row['training_seconds']:.0f}")
        Console().print(table)
        out = Path(__file__).parent / "results" / f"study_{study}.json"
        out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
