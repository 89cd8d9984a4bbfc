"""``reelign rewards``: every reward with its card; ``reelign rewards check`` holds one to it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

app = typer.Typer(help="The rewards, and whether they keep what their cards promise.", invoke_without_command=True)
console = Console()


@app.callback()
def list_(context: typer.Context) -> None:
    """List the rewards: what they measure, their range, whether gradient reaches the pixels, licence and source."""
    if context.invoked_subcommand is not None:
        return
    from reelign.build import reward_cards

    table = Table(Column("name", no_wrap=True), Column("what it measures, from what", overflow="fold"), show_lines=True)
    for card in reward_cards():
        low, high = card.range
        gradient = "differentiable" if card.differentiable else "not differentiable"
        prompts = ", needs prompts" if card.needs_prompt else ""
        facts = f"{low:g} … {high:g}, {gradient}{prompts}; licence: {card.licence}; source: {card.source}"
        table.add_row(card.name, f"{card.summary}\n[dim]{escape(facts)}[/]")
    console.print(table)


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A name from the list, or module:object.")],
    option: Annotated[list[str] | None, typer.Option(help="An option of the reward: key=value, in YAML.")] = None,
) -> None:
    """Load one reward and hold it to its card: golden clip, gradient at the pixels, batches; show its sensitivity."""
    from reelign.build import check_reward
    from reelign.config import parse_options

    table = Table("check", "", "found")
    failed = 0
    for finding in check_reward(name, parse_options(option or [])):
        failed += not finding.ok
        table.add_row(finding.name, "[green]ok[/]" if finding.ok else "[bold red]FAILED[/]", finding.detail)
    console.print(table)
    if failed:
        raise typer.Exit(1)
