"""``reelign score``: a folder of clips in, a table of scores out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from reelign.errors import ConfigError

if TYPE_CHECKING:
    from pandas import DataFrame

    from reelign.contracts import Reward

SHOWN = 40  # rows on the screen; the rest is in the file
console = Console()


def score(
    folder: Annotated[Path, typer.Argument(help="Folder of clips, searched at any depth.")],
    rewards: Annotated[str, typer.Option(help="Names, separated by commas; see 'reelign rewards'.")],
    out: Annotated[Path, typer.Option(help="Where the table goes: .parquet, with a .csv beside it.")],
    prompts: Annotated[
        Path | None, typer.Option(help="A .csv or .jsonl with file_name and text; default: those beside the clips.")
    ] = None,
    max_frames: Annotated[int, typer.Option(help="Read at most this many frames of a clip.", min=1)] = 256,
    allow_damaged: Annotated[bool, typer.Option(help="Score what decodes of a damaged clip.")] = False,
) -> None:
    """Score every clip with every reward; a clip that cannot be scored is a row that says why."""
    from reelign.datasets.video_folder import read_captions
    from reelign.selection.scoring import check_writable, score_folder, write_scores

    check_writable(out)
    judges = _build(rewards)
    texts = None if prompts is None else read_captions(prompts)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("scoring")
        scores = score_folder(
            folder,
            judges,
            texts,
            max_frames,
            strict=not allow_damaged,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    saved = write_scores(scores, out)
    console.print(_table(scores))
    failed = int((scores["status"] == "error").sum())
    console.print(f"{len(scores) - failed} of {len(scores)} clips scored", end="; " if failed else "\n")
    if failed:
        console.print(f"{failed} with an error, see the column reason")
    console.print(f"saved: {saved[0]} and {saved[1].name}", soft_wrap=True, highlight=False, markup=False)


def _build(rewards: str) -> dict[str, Reward]:
    from reelign.build import build_reward

    names = [name.strip() for name in rewards.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"rewards are different names separated by commas; got {rewards!r}")
    return {name: build_reward(name) for name in names}


def _table(scores: DataFrame) -> Table:
    columns = [name for name in scores.columns if name != "reason"]
    table = Table(*columns, "reason", caption=f"the first {SHOWN} of {len(scores)}" if len(scores) > SHOWN else None)
    for row in scores.head(SHOWN).to_dict("records"):
        cells = (f"{row[name]:.4f}" if isinstance(row[name], float) else escape(row[name]) for name in columns)
        table.add_row(*cells, escape(row["reason"]))
    return table
