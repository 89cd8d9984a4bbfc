"""``reelign train RUN.yaml``: show the plan, train with a live bar, end with the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from reelign.cli.bars import COLUMNS

if TYPE_CHECKING:
    from reelign.loop import Run

console = Console()


class Bars:
    """Progress bars for a run; a ``loop.Listener``."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._training: int | None = None
        self._judging: dict[int, int] = {}

    def stepped(self, step: int, total: int, values: dict[str, float]) -> None:
        """Move the training bar and show the latest reward or loss."""
        if self._training is None:
            self._training = self._progress.add_task("training", total=total, completed=step - 1, note="")
        name = next(name for name in ("reward", "loss", "critic_loss") if name in values)
        note = f"{name} {values[name]:+.4f}"
        self._progress.update(self._training, completed=step, note=note)  # type: ignore[arg-type]

    def evaluating(self, step: int, done: int, total: int) -> None:
        """Move the bar of one evaluation."""
        if step not in self._judging:
            self._judging[step] = self._progress.add_task(f"evaluating step {step}", total=total, note="")
        self._progress.update(self._judging[step], completed=done)  # type: ignore[arg-type]

    def forget(self) -> None:
        """Begin again, with new bars."""
        self._training = None
        self._judging.clear()

    def warned(self, text: str) -> None:
        """Print what the guard has to say above the bars."""
        self._progress.console.print(f"[bold yellow]guard[/] {text}")


def train(
    run: Annotated[Path, typer.Argument(help="The run file (YAML); see recipes/.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change one value: section.key=value.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last whole checkpoint.")] = False,
) -> None:
    """Post-train a generator with reward gradients and report what changed."""
    from reelign.config import load_config
    from reelign.distributed import leads, processes
    from reelign.loop import Run

    with processes():
        console.quiet = not leads()
        built = Run(load_config(run, set_ or []), resume)
        finished = carry_out(built)
    close(built, finished, f"reelign train {run} --resume")


def execute(run: Run, go_on: str) -> None:
    """Train a built run with bars on the screen, then report; says how to go on where it was stopped."""
    close(run, carry_out(run), go_on)


def carry_out(run: Run) -> bool:
    """Train with bars on the screen, and report where the run writes; returns whether it finished."""
    from reelign.cli.report import report

    show_plan(run)
    with Progress(*COLUMNS, TextColumn("{task.fields[note]}"), console=console, disable=console.quiet) as progress:
        finished = run.train(Bars(progress))
    if finished and run.folder.writes:
        report(run.folder.path)
    return finished


def close(run: Run, finished: bool, go_on: str) -> None:
    """Say how to go on with a run that was stopped, and exit with 130."""
    if not finished:
        console.print(f"stopped and saved at step {run.step}; go on with: [bold]{go_on}[/]")
        raise typer.Exit(130)


def show_plan(run: Run) -> None:
    """Print what will be trained before it is."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in run.plan().items():
        table.add_row(f"[bold]{name}[/]", text)
    console.print(table)
