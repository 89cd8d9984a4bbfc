"""``reelign plan RUN.yaml``: will it fit, how long is a step, and which settings would make it fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from reelign.planning.levers import Pull
    from reelign.planning.predict import Prediction

console = Console(highlight=False)
DOES_NOT_FIT = 1


def plan(
    run: Annotated[Path, typer.Argument(help="The run file (YAML), or the name of a recipe.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change one value: section.key=value.")] = None,
    device: Annotated[str, typer.Option(help="h100, 4090, …; 24GB for any GPU of that size; cpu; auto.")] = "auto",
    fit: Annotated[bool, typer.Option("--fit", help="Choose settings that fit, in a fixed order.")] = False,
) -> None:
    """Predict the peak memory and the time of a step; nothing is loaded. Exit code 1 where the run does not fit."""
    from reelign.config import load_config
    from reelign.planning.devices import find_device
    from reelign.planning.levers import fit as make_fit
    from reelign.planning.levers import helpful
    from reelign.planning.predict import predict

    config, place = load_config(run, set_ or []), find_device(device)
    pulls: list[Pull] = []
    if fit:
        config, now, pulls = make_fit(config, place)
    else:
        now = predict(config, place)
    show(now)
    for pull in pulls:
        console.print(told(pull))
    if pulls:
        joined = {key: value for pull in pulls for key, value in pull.settings.items()}
        console.print(f"[bold]reelign train {run} {' '.join(f'--set {s}' for s in set_ or [])} {flags(joined)}[/]")
    if now.fits:
        return
    first = None if fit else next(helpful(config, now), None)
    if first is None:
        console.print("no lever is left: choose a smaller model, or a larger device")
    else:
        console.print(f"first lever to pull: {told(first[2])}; all at once: --fit")
    raise typer.Exit(DOES_NOT_FIT)


def show(now: Prediction) -> None:
    """Weights, phases and the verdict, as a table."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for part, size in now.weights.items():
        table.add_row("weights", part, gib(size))
    for phase, size in now.phases.items():
        table.add_row("peak", phase, f"{gib(size)}{' ←' if phase == now.fullest else ''}")
    console.print(table)
    for note in now.notes:
        console.print(f"[yellow]{note}[/]", soft_wrap=True)
    needed, there = gib(now.device.needed(now.peak)), gib(now.device.memory)
    verdict = "[green]fits[/]" if now.fits else "[red]does not fit[/]"
    time = "" if now.seconds is None else f"; {now.seconds:.3g} s a step at {now.device.efficiency:.0%} of its speed"
    console.print(f"predicted: {needed} of {there} on {now.device.name}: {verdict}{time}")


def told(pull: Pull) -> str:
    """What a lever does to the peak, how it is typed, and what it costs."""
    return f"{gib(pull.before)} → {gib(pull.after)}  [bold]{flags(pull.settings)}[/]  [dim]{pull.price}[/]"


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"


def flags(settings: dict[str, Any]) -> str:
    """Settings as they are typed after ``train``."""
    import json

    written = {key: json.dumps(value, separators=(",", ":")) for key, value in settings.items()}
    return " ".join(f"--set {key}={value if value[0] not in '{[' else repr(value)}" for key, value in written.items())
