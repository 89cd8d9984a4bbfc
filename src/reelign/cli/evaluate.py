"""``reelign evaluate REFERENCE CLIPS``: how far apart are two folders of clips, and what did their scores do?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

from reelign.errors import ConfigError

if TYPE_CHECKING:
    from reelign.metrics.set_comparison import SetDistance
    from reelign.metrics.set_evaluation import Evaluation

console = Console()
OFTEN = 12  # score rows on the screen; the rest is in the files


def evaluate(
    reference: Annotated[Path, typer.Argument(help="Folder of clips to compare with: real ones, or those before.")],
    clips: Annotated[Path, typer.Argument(help="Folder of clips to judge: generated ones, or those after.")],
    out: Annotated[Path, typer.Option(help="Folder for evaluation.json, .csv, .png and .svg.")],
    metrics: Annotated[
        str, typer.Option(help="Separated by commas: fvd, kvd, fid, kid, cmmd, jedi, frechet_videomae, mmd_videomae.")
    ] = "frechet_videomae,mmd_videomae,cmmd",
    model: Annotated[
        list[str] | None, typer.Option(help="FAMILY=PATH for i3d, inception, videomae, vjepa or clip; repeatable.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="FAMILY.KEY=VALUE, for example i3d.way=stylegan or clip.frames=16."),
    ] = None,
    paired: Annotated[bool, typer.Option(help="Clips pair up by file name: PSNR and SSIM too.")] = False,
    most: Annotated[
        int | None, typer.Option("--clips", help="At most so many clips a side, drawn by the seed.")
    ] = None,
    halves: Annotated[int, typer.Option(help="Half-samples of an interval.")] = 100,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    earlier: Annotated[
        Path | None, typer.Option("--against", help="An earlier evaluation.json, to show where it is comparable.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="Of features; default: in your cache folder.")] = None,
) -> None:
    """Distances between two folders of clips with their intervals and floors, and changes of their takes' scores."""
    from reelign.metrics.feature_sets import default_cache
    from reelign.metrics.set_comparison import Options
    from reelign.metrics.set_evaluation import Plan
    from reelign.metrics.set_evaluation import evaluate as compare
    from reelign.metrics.set_results import against, check_writable, read_distances, save
    from reelign.plots.sets import evaluation_figure, save_evaluation

    plan = Plan(
        metrics=tuple(dict.fromkeys(name.strip() for name in metrics.split(",") if name.strip())),
        models=_models(model or []),
        settings=_settings(override or []),
        options=Options(clips=most, halves=halves, seed=seed),
        device=_device(device),
        cache=cache or default_cache(),
        paired=paired,
    )
    known = read_distances(earlier) if earlier else {}
    check_writable(out)
    with Progress(console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total)

        evaluation = compare(reference, clips, plan, report)
    saved = save(evaluation, out)
    if evaluation.distances or any(change.kind != "undefined" for change in evaluation.scores):
        saved += save_evaluation(evaluation_figure(evaluation.distances, evaluation.scores, evaluation.tables), out)
    _show(evaluation)
    _show_earlier(against(evaluation.distances, known) if earlier else [])
    console.print(f"saved: {out} ({', '.join(path.name for path in saved)})", soft_wrap=True, markup=False)


def _models(named: Iterable[str]) -> dict[str, str]:
    models = {}
    for text in named:
        family, equals, path = text.partition("=")
        if not (family and equals and path):
            raise ConfigError(f"a model is named as FAMILY=PATH, for example i3d=i3d_torchscript.pt; got {text!r}")
        models[family] = path
    return models


def _settings(pairs: Iterable[str]) -> dict[str, dict[str, Any]]:
    import yaml

    settings: dict[str, dict[str, Any]] = {}
    for text in pairs:
        place, equals, value = text.partition("=")
        family, dot, key = place.partition(".")
        if not (family and dot and key and equals):
            raise ConfigError(f"an option is set as FAMILY.KEY=VALUE, for example i3d.frames=32; got {text!r}")
        settings.setdefault(family, {})[key] = yaml.safe_load(value)
    return settings


def _device(name: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _show(evaluation: Evaluation) -> None:
    if evaluation.distances or evaluation.undefined:
        console.print(_distances(evaluation))
        for name, reason in evaluation.undefined.items():
            console.print(f"[red]{name}[/]: {escape(reason)}", soft_wrap=True)
        for distance in evaluation.distances:
            for warning in distance.warnings:
                console.print(f"[yellow]{distance.metric}[/]: {escape(warning)}", soft_wrap=True)
    if evaluation.scores:
        console.print(_scores(evaluation))
    for mean in evaluation.means:
        interval = f" [{mean.low:.4g}, {mean.high:.4g}]" if mean.clips > 1 else ""
        without = f", {mean.without} without a value" if mean.without else ""
        console.print(escape(f"{mean.name} {mean.value:.4g}{interval}, {mean.clips} clips{without}"))
    if evaluation.distances:
        console.print(f"{evaluation.computed} features computed, all others were in the cache")
    if left_out := len(evaluation.left_out.drop_duplicates(["side", "file"])):
        console.print(f"{left_out} clips gave no features, see left_out.csv")


def _show_earlier(rows: Iterable[tuple[SetDistance, SetDistance | None, str]]) -> None:
    for distance, before, reason in rows:
        was = f"was {before.value:.4g} [{before.low:.3g}, {before.high:.3g}]" if before else reason
        console.print(f"{distance.metric}: {escape(was)}", soft_wrap=True, highlight=False)


def _distances(evaluation: Evaluation) -> Table:
    heads = ("distance, 95 %", "clips", "reference from itself", "distance at that size")
    table = Table(Column("set metric", no_wrap=True), *heads, box=None, padding=(0, 2, 0, 0))
    for d in evaluation.distances:
        own = f"{d.floor.value:.3g} [{d.floor.low:.3g}, {d.floor.high:.3g}]"
        at_size = f"{d.floor.distance:.3g} ({d.floor.clips} clips)"
        cells = (d.metric, f"{d.value:.4g} [{d.low:.3g}, {d.high:.3g}]", str(d.clips), own, at_size)
        table.add_row(*(escape(cell) for cell in cells))
    for name in evaluation.undefined:
        table.add_row(name, "[red]undefined[/]")
    return table


def _scores(evaluation: Evaluation) -> Table:
    heads = ("before", "after", "change", "95 % interval", "how", "missing")
    shown = evaluation.scores[:OFTEN]
    caption = f"the first {OFTEN} of {len(evaluation.scores)}" if len(evaluation.scores) > OFTEN else None
    table = Table(Column("score", no_wrap=True), *heads, caption=caption, box=None, padding=(0, 2, 0, 0))
    for c in shown:
        missing = f"{c.missing_before}, {c.missing_after}" if c.missing_before or c.missing_after else ""
        if math.isnan(c.delta):
            table.add_row(c.metric, *[""] * 3, "[red]undefined[/]", escape(c.reason), missing)
            continue
        how = f"{c.kind}, {c.n_before}" + ("" if c.n_before == c.n_after else f" and {c.n_after}")
        interval = escape(f"[{c.low:+.4g}, {c.high:+.4g}]")
        table.add_row(c.metric, f"{c.before:.4g}", f"{c.after:.4g}", f"{c.delta:+.4g}", interval, how, missing)
    return table
