"""``reelign score``: a folder of clips in, a table of scores beside them, which grows and is never computed twice."""

from __future__ import annotations

from os.path import commonpath, relpath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from reelign.cli.bars import COLUMNS
from reelign.errors import ConfigError

if TYPE_CHECKING:
    from pandas import DataFrame

    from reelign.build import MetricSpec
    from reelign.selection.takes import TakesFolder

SHOWN = 40  # rows on the screen; the rest is in the file
WIDEST = 6  # values of which each clip gets a row
console = Console()


def score(
    folder: Annotated[
        Path, typer.Argument(help="Folder of clips, searched at any depth, or a .csv or .jsonl that names some.")
    ],
    metrics: Annotated[
        str | None, typer.Option(help="Names, separated by commas; default: all that need no weights.")
    ] = None,
    rewards: Annotated[str | None, typer.Option(help="Rewards to score with too; see 'reelign rewards'.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="An option: clip_score.model=FOLDER.")] = None,
    takes: Annotated[Path | None, typer.Option(help="Where the takes table goes; default: into the folder.")] = None,
    on: Annotated[str, typer.Option(help="here, pool (processes) or ray.")] = "pool",
    workers: Annotated[int | None, typer.Option(help="Processes; default: one a core.")] = None,
    gpus: Annotated[float, typer.Option(help="Share of a GPU that a worker on Ray reserves.", min=0)] = 0.0,
    out: Annotated[Path | None, typer.Option(help="Also write one table: .parquet, with a .csv beside it.")] = None,
    max_frames: Annotated[int, typer.Option(help="A reward sees at most this many frames of a clip.", min=1)] = 256,
    allow_damaged: Annotated[bool, typer.Option(help="Score what decodes of a damaged clip.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Compute again what ended in an error.")] = False,
) -> None:
    """Score every clip with every metric, once; a clip that cannot be scored is a row that says why."""
    from functools import partial

    from reelign.build import build_scorers
    from reelign.selection.executors import executor
    from reelign.selection.scoring import Once, check_writable, columns_of, score_takes, scored_table, write_scores
    from reelign.selection.takes_import import import_takes

    if out is not None:
        check_writable(out)
    specs = chosen_metrics(metrics, rewards, set_ or [], max_frames)
    build, execute = Once(partial(build_scorers, specs)), executor(on, workers, gpus)
    with Progress(*COLUMNS, console=console, transient=True) as bars:
        hashing, scoring = bars.add_task("reading names", total=None), bars.add_task("scoring", total=None)
        table = import_takes(
            takes or (folder.parent if folder.is_file() else folder),
            folder,
            progress=lambda done, total: bars.update(hashing, completed=done, total=total),
        )
        done = score_takes(
            table,
            build,
            execute,
            strict=not allow_damaged,
            retry=retry or allow_damaged,
            progress=lambda done, total: bars.update(scoring, completed=done, total=total),
        )
    columns = columns_of(build())
    _show(table, columns, done)
    if out is not None:
        scores = scored_table(table, columns)
        saved = write_scores(scores, out)
        console.print(f"saved: {saved[0]} and {saved[1].name}", soft_wrap=True, highlight=False, markup=False)


def chosen_metrics(metrics: str | None, rewards: str | None, settings: list[str], max_frames: int) -> list[MetricSpec]:
    """The metrics and rewards that a user names, with their options."""
    from reelign.build import MetricSpec, weight_free
    from reelign.config import parse_options

    named = [("metric", name) for name in (_names(metrics) if metrics is not None else weight_free())]
    if metrics is None and rewards is not None:
        named = []
    named += [("reward", name) for name in (_names(rewards) if rewards is not None else [])]
    options = parse_options(settings)
    if lost := sorted(set(options) - {name for _, name in named}):
        raise ConfigError(f"--set gives options to metrics that are asked for; {', '.join(lost)} is not")
    return [
        MetricSpec(kind, name, tuple(sorted(options.get(name, {}).items())), max_frames)  # type: ignore[arg-type]
        for kind, name in named
    ]


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"metrics and rewards are different names separated by commas; got {text!r}")
    return names


def _show(takes: TakesFolder, columns: list[str], done: int) -> None:
    from reelign.selection.scoring import scored_table

    scores = scored_table(takes, columns)
    console.print(_table(scores) if len(columns) <= WIDEST else _summary(scores, columns))
    if len(columns) > WIDEST:
        _show_reasons(scores)
    failed = int((scores["status"] == "error").sum())
    console.print(f"{len(scores) - failed} of {len(scores)} clips scored", end="; " if failed else "\n")
    if failed:
        console.print(f"{failed} with an error, see the column reason")
    console.print(
        f"{done} computed now, the rest was there; table: {takes.path}", soft_wrap=True, highlight=False, markup=False
    )


def _summary(scores: DataFrame, columns: list[str]) -> Table:
    """A row a value, where a row a clip would be too wide for any screen."""
    table = Table("value", "clips", "least", "median", "mean", "most", box=None, padding=(0, 2, 0, 0))
    for name in columns:
        there = scores[name].dropna()
        numbers = (there.min(), there.median(), there.mean(), there.max()) if len(there) else ()
        table.add_row(name, str(len(there)), *(f"{number:.4g}" for number in numbers))
    return table


def _show_reasons(scores: DataFrame) -> None:
    failed = scores[scores["status"] == "error"]
    for row in failed.head(SHOWN).to_dict("records"):
        console.print(f"[yellow]{escape(row['file'])}[/]: {escape(row['reason'])}", soft_wrap=True)
    if len(failed) > SHOWN:
        console.print(f"and {len(failed) - SHOWN} more")


def _table(scores: DataFrame) -> Table:
    hidden = ("reason", "prompt", "group")
    columns = [name for name in scores.columns if name not in hidden]
    table = Table(*columns, "reason", caption=f"the first {SHOWN} of {len(scores)}" if len(scores) > SHOWN else None)
    shown = scores.head(SHOWN)
    home = commonpath([Path(file).parent for file in shown["file"]])
    for row in shown.assign(file=[relpath(file, home or ".") for file in shown["file"]]).to_dict("records"):
        cells = (f"{row[name]:.4g}" if isinstance(row[name], float) else escape(row[name]) for name in columns)
        table.add_row(*cells, escape(row["reason"]))
    return table
