"""``reelign selfplay RUN.yaml``: rounds of takes, judging, selecting and training, with bars, and a report a round."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn

from reelign.cli.bars import COLUMNS
from reelign.cli.train import Bars

console = Console()


class RoundBars(Bars):
    """Progress bars for self-play; a ``selfplay.Watcher``."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress)
        self._stages: dict[tuple[int, str], Any] = {}

    def stage(self, number: int, name: str, done: int, total: int) -> None:
        """Move the bar of one stage."""
        if (number, name) not in self._stages:
            self._stages[number, name] = self._progress.add_task(f"round {number}: {name}", total=total, note="")
        self._progress.update(self._stages[number, name], completed=done, total=total)

    def finished_round(self, record: dict[str, Any]) -> None:
        """Print what the round came to, and begin the next with fresh bars."""
        from reelign.report.selfplay import round_in_words

        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._stages.clear()
        self.forget()
        self._progress.console.print(round_in_words(record))


def selfplay(
    run: Annotated[Path, typer.Argument(help="The file of self-play (YAML), or 'selfplay', the recipe.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change one value: section.key=value.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")] = False,
) -> None:
    """Generate takes, select winners, train on them, and again; stop when held-out prompts gain nothing more."""
    from reelign.report.selfplay import build_selfplay_report
    from reelign.selfplay import SelfPlay
    from reelign.selfplay_config import load_selfplay

    play = SelfPlay(load_selfplay(run, set_ or []), resume)
    with Progress(*COLUMNS, TextColumn("{task.fields[note]}"), console=console) as progress:
        result = play.run(RoundBars(progress))
    console.print(f"stopped: {result['stopped']}")
    best = f"round {result['best_round']}: {result['adapter']}" if result["adapter"] else "none better than the base"
    console.print(f"best: {best}", soft_wrap=True, highlight=False, markup=False)
    page = build_selfplay_report(play.folder.path)
    console.print(f"report: {page}", soft_wrap=True, highlight=False, markup=False)
