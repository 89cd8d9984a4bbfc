"""``reelign rewards``: every reward with its card."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

console = Console()


def rewards() -> None:
    """List the rewards: what they measure, their range, whether gradient reaches the pixels, licence and source."""
    from reelign.build import reward_cards

    table = Table("name", "measures", "range", "gradient", "prompt", "licence", "weights")
    for card in reward_cards():
        low, high = card.range
        answers = ("yes" if card.differentiable else "no", "yes" if card.needs_prompt else "no")
        table.add_row(card.name, card.summary, f"{low:g} … {high:g}", *answers, card.licence, card.source)
    console.print(table)
