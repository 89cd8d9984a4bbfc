"""``reelign demo``: the whole thing in minutes on a laptop; ``--hack`` shows what goes wrong without care."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()


def demo(
    hack: Annotated[bool, typer.Option("--hack", help="Train on colour alone and watch the motion freeze.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/demo or runs/demo-hack.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change one value: section.key=value.")] = None,
) -> None:
    """Align the tiny Wan with two rewards, on held-out prompts, and write a report that proves what changed."""
    from reelign.cli.train import execute
    from reelign.config import load_config, recipe
    from reelign.loop import Run

    name = "demo_hack" if hack else "demo"
    folder = out or Path("runs") / name.replace("_", "-")
    resume = make_room(folder)
    overrides = [*(set_ or []), f"output={json.dumps(str(folder))}"]
    command = "reelign demo --hack" if hack else "reelign demo"
    execute(Run(load_config(recipe(name), overrides), resume), command)
    if hack:
        console.print("This was the hack: the reward rose while what it does not see fell. `reelign demo` is the cure.")


def make_room(folder: Path) -> bool:
    """Keep an earlier finished demo under a numbered name; an unfinished one is resumed (returns True)."""
    if not (folder / "config.yaml").exists():
        return False
    status = folder / "status.json"
    if not (status.exists() and json.loads(status.read_text())["finished"]):
        return True
    number = next(n for n in range(1, 10_000) if not folder.with_name(f"{folder.name}-{n}").exists())
    kept = folder.rename(folder.with_name(f"{folder.name}-{number}"))
    console.print(f"the earlier run is kept in {kept}")
    return False
