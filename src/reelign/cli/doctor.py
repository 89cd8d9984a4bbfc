"""``reelign doctor``: is the installation sound, and do the invariants hold here?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

console = Console()


def doctor(
    generator: Annotated[str, typer.Option(help="The generator to examine.")] = "zoo:tiny-wan",
    bugs: Annotated[bool, typer.Option("--bugs", help="Plant known silent bugs and show each being caught.")] = False,
) -> None:
    """Check versions, files and the invariants: adapter without effect, gradient at the pixels, sampler parity."""
    from reelign.diagnosis import examine
    from reelign.planted_bugs import examine_bugs

    good = "[green]caught[/]" if bugs else "[green]ok[/]"
    table = Table("planted" if bugs else "check", "", "found")
    failed = 0
    for finding in examine_bugs(generator) if bugs else examine(generator):
        failed += not finding.ok
        table.add_row(finding.name, good if finding.ok else "[bold red]FAILED[/]", finding.detail)
    console.print(table)
    if failed:
        raise typer.Exit(1)
