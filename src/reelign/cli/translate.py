"""``reelign translate``: clips in, the same clips in the other domain out, with their times and sound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from reelign.cli.bars import COLUMNS

console = Console()


def translate(
    clips: Annotated[Path, typer.Argument(help="A clip, or a folder of clips.")],
    model: Annotated[str, typer.Option(help="A run folder, one of its checkpoints, or a saved translator.")],
    out: Annotated[Path, typer.Option(help="An .mp4 for one clip; a new or empty folder for several.")],
    to: Annotated[str, typer.Option(help="The domain to translate to: x or y.")] = "y",
    short_side: Annotated[
        int | None, typer.Option(help="Shrink larger clips to so many pixels; default: keep.")
    ] = None,
    chunk: Annotated[int, typer.Option(help="Frames at a time; memory grows with it, the result does not change.")] = 8,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: a GPU where there is one.")] = None,
) -> None:
    """Translate clips to the other domain: any length, with their size, frame times and sound."""
    from reelign.generators.translation import load_translation
    from reelign.generators.translation import other as other_domain
    from reelign.translation import TABLE, TranslationJob

    target: Literal["x", "y"] = "x" if other_domain(to) == "y" else "y"  # type: ignore[arg-type]
    generator = load_translation(model=model, device=device)
    job = TranslationJob.prepare(generator, clips, target, out, short_side, chunk)
    failed = 0
    with Progress(*COLUMNS, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(escape(name), total=total or None)
            bars.update(tasks[name], completed=done)

        for row in job.run(show):
            if row.error:
                failed += 1
                bars.console.print(f"[red]{escape(row.source)}[/]: {escape(row.error)}", soft_wrap=True)
                continue
            bars.update(tasks[row.source], total=row.frames, completed=row.frames)
            facts = (f"{row.frames} frames", f"{row.width}x{row.height}", f"{row.fps:g} a second")
            sound = f"sound {row.sound}" if row.sound else "no sound"
            words = ", ".join(filter(None, (*facts, sound, row.notes)))
            bars.console.print(f"{escape(row.source)}: {escape(words)}", soft_wrap=True, highlight=False)
    if job.out is None:
        console.print(f"written: {escape(str(next(iter(job.files.values()))))}", soft_wrap=True)
        return
    done = len(job.files) - failed
    console.print(f"{done} of {len(job.files)} clips and {TABLE} in {escape(str(out))}", soft_wrap=True)
    if not done:
        raise typer.Exit(1)
