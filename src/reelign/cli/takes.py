"""``reelign takes``: clips into a takes table, and the table out again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

app = typer.Typer(help="Clips into a takes table, and the table out again.", no_args_is_help=True)
console = Console()


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="Folder of clips, or a .csv or .jsonl that names some.")],
    takes: Annotated[Path | None, typer.Option(help="The takes folder; default: the folder itself.")] = None,
) -> None:
    """Add what is new or changed; numeric columns of a table become scores."""
    from reelign.selection.takes_import import import_takes

    place = takes or (source.parent if source.is_file() else source)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("hashing")
        folder = import_takes(place, source, lambda done, total: bar.update(task, completed=done, total=total))
    table = folder.takes()
    groups, prompts = table["group"].nunique(), int((table["prompt"] != "").sum())
    console.print(
        f"{len(table)} takes in {groups} groups, {prompts} with a prompt: {place}", highlight=False, markup=False
    )


@app.command()
def show(takes: Annotated[Path, typer.Argument(help="A takes folder.")]) -> None:
    """What is in a takes folder: groups, and how complete every score is."""
    from reelign.selection.takes import TakesFolder

    folder = TakesFolder(takes)
    table, scores = folder.takes(), folder.current_scores()
    console.print(f"{len(table)} takes in {table['group'].nunique()} groups", highlight=False)
    shown = Table("score", "version", "ok", "undefined", "error", "mean", "parameters", box=None, padding=(0, 2, 0, 0))
    for metric, rows in scores.groupby("metric"):
        counts = rows["status"].value_counts()
        numbers = (str(counts.get(status, 0)) for status in ("ok", "undefined", "error"))
        mean = f"{rows['value'].mean():.4g}" if counts.get("ok", 0) else ""
        first = rows.iloc[0]
        shown.add_row(escape(str(metric)), str(first["version"]), *numbers, mean, escape(first["parameters"]))
    console.print(shown)


@app.command()
def export(
    takes: Annotated[Path, typer.Argument(help="A takes folder.")],
    out: Annotated[Path, typer.Option(help="Where to: .parquet, with a .csv beside it.")],
) -> None:
    """One row a take with every score, as Parquet and CSV."""
    from reelign.selection.scoring import check_writable, write_scores
    from reelign.selection.takes import TakesFolder

    check_writable(out)
    saved = write_scores(TakesFolder(takes).wide(), out)
    console.print(f"saved: {saved[0]} and {saved[1].name}", soft_wrap=True, highlight=False, markup=False)
