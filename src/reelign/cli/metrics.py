"""``reelign metrics``: what can be measured on one clip, and what each number means."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

console = Console()


def metrics(
    name: Annotated[str | None, typer.Argument(help="One metric, in full.")] = None,
) -> None:
    """The metrics of clips: columns, units, which direction is better, and the exact definition."""
    from reelign.build import metric_cards
    from reelign.catalogue import TABLE
    from reelign.errors import UnknownNameError

    cards = {card.name: card for card in metric_cards()}
    known = [*TABLE["metric"], *TABLE["model_metric"]]
    if name is not None and name not in known:
        raise UnknownNameError("metric", name, known)
    table = Table("metric", "values", "unit", "better", "definition")
    for key in known if name is None else [name]:
        card = cards.get(key)
        if card is None:
            table.add_row(key, "", "", "", "needs weights: --set " + key + ".model=FOLDER; see docs/metrics_models.md")
            continue
        table.add_row(key, "\n".join(card.values), escape(card.unit), card.better, escape(card.protocol))
    console.print(table)
