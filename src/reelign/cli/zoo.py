"""``reelign zoo``: the checkpoints that ship with the package, and how they are made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="The tiny checkpoints that ship with the package.", no_args_is_help=True)
console = Console()


@app.command("list")
def list_() -> None:
    """Show every checkpoint with its size and what was measured on it."""
    from reelign.zoo.models import inventory

    table = Table("name", "MB", "measured")
    for entry in inventory():
        table.add_row(f"zoo:{entry.name}", f"{entry.megabytes:.1f}", entry.measured)
    console.print(table)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="tiny-wan, tiny-clip, tiny-videomae or tiny-causal-wan.")],
    out: Annotated[Path | None, typer.Option(help="Where to write it; default: into the package.")] = None,
    scale: Annotated[float, typer.Option(help="Share of the full number of training steps.", min=0.001, max=10)] = 1.0,
) -> None:
    """Train a checkpoint from nothing, measure it, and write it with its model card (tens of minutes)."""
    from reelign.build import record_zoo_golden
    from reelign.zoo.train import make_folder, train_zoo

    folder = make_folder(name, out)
    if name == "tiny-causal-wan":
        _distil(folder, scale)
    else:
        train_zoo(name, folder, scale)
        record_zoo_golden(name, folder)
    console.print(f"zoo:{name} written to {folder}")
    console.print((folder / "README.md").read_text())


def _distil(folder: Path, scale: float) -> None:
    """The student is made by two ordinary runs, which show their bars and stay in ``runs/tiny-causal-wan``."""
    from rich.progress import Progress, TextColumn

    from reelign.cli.bars import COLUMNS
    from reelign.cli.train import Bars
    from reelign.distillation import train_student

    with Progress(*COLUMNS, TextColumn("{task.fields[note]}"), console=console) as progress:
        train_student(folder, Path("runs/tiny-causal-wan"), Bars(progress), scale)
