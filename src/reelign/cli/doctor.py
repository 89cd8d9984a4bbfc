"""``reelign doctor``: is the installation sound, and do the invariants hold here?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

console = Console()


def doctor(
    generator: Annotated[str, typer.Option(help="The generator to examine.")] = "zoo:tiny-wan",
) -> None:
    """Check versions, files and the invariants: adapter without effect, gradient at the pixels, sampler parity."""
    from reelign.diagnosis import examine

    table = Table("check", "", "found")
    failed = 0
    for finding in examine(generator):
        failed += not finding.ok
        table.add_row(finding.name, "[green]ok[/]" if finding.ok else "[bold red]FAILED[/]", finding.detail)
    console.print(table)
    if failed:
        raise typer.Exit(1)
