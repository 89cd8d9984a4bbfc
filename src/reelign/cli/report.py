"""``reelign report RUN``: write the page of a run folder and show its headline numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

console = Console()


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    gif: Annotated[Path | None, typer.Option(help="Also write a GIF of before and after.")] = None,
) -> None:
    """Write report.html and summary.json: what changed on held-out prompts, with intervals and clips."""
    from reelign.report.page import build_report, compared_measures
    from reelign.report.translation import is_translation

    if is_translation(run):
        _report_translation(run, gif)
        return
    page = build_report(run)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    table = Table("measure", "", "before", "after", "change", "95 % interval", box=None, padding=(0, 2, 0, 0))
    for measure in compared_measures(summary):
        numbers = (measure.value("before", 1), measure.value("after", 1), measure.delta(1), measure.interval(1))
        table.add_row(escape(measure.title), measure.role, *numbers)
    console.print(table)
    for warning in summary["warnings"]:
        console.print(f"[yellow]{escape(warning)}[/]")
    if gif is not None:
        from reelign.plots.grids import before_after_gif

        before_after_gif(run, gif)
    console.print(f"{escape(str(page))}", soft_wrap=True)


def _report_translation(run: Path, gif: Path | None) -> None:
    from reelign.plots.translation import translation_gif
    from reelign.report.translation import build_translation_report, table_rows

    page = build_translation_report(run)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    heads = ("direction", "measure", "before", "after", "change", "95 % interval")
    table = Table(*heads, box=None, padding=(0, 2, 0, 0))
    for row in table_rows(summary):
        table.add_row(*map(escape, row))
    console.print(table)
    for warning in summary["warnings"]:
        console.print(f"[yellow]{escape(warning)}[/]")
    if gif is not None:
        translation_gif(run, gif)
    console.print(f"{escape(str(page))}", soft_wrap=True)
