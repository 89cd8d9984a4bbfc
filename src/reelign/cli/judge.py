"""``reelign judge``: learn which take people prefer, from labels; show what a judge is worth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from reelign.errors import ConfigError

if TYPE_CHECKING:
    from pandas import DataFrame
    from pydantic import BaseModel

    from reelign.selection.takes import TakesFolder

    Config = TypeVar("Config", bound=BaseModel)

app = typer.Typer(help="Learn which of two takes people prefer, and show what a judge is worth.", no_args_is_help=True)
console = Console()


@app.command()
def fit(
    takes: Annotated[Path, typer.Argument(help="A takes folder with scores.")],
    labels: Annotated[
        str,
        typer.Option(help="A .csv or .parquet of labels (reelign's, AirScape's, VideoAlign's), a .sqlite or a URL."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the judge.")],
    model: Annotated[
        str, typer.Option(help="bradley_terry, boosting or forest, on scores; network, on the clips themselves.")
    ] = "bradley_terry",
    features: Annotated[
        str | None, typer.Option(help="Scores it reads, separated by commas; default: the five of AirScape.")
    ] = None,
    zero_is_missing: Annotated[
        str, typer.Option(help="Scores in which exactly 0 means 'could not be computed', separated by commas.")
    ] = "similarity",
    inputs: Annotated[
        str | None, typer.Option(help="What the model sees of a pair: concatenated or differences.")
    ] = None,
    calibration: Annotated[str, typer.Option(help="slope, isotonic or none.")] = "slope",
    axis: Annotated[str, typer.Option(help="Which question of the labels.")] = "overall",
    folds: Annotated[int, typer.Option(help="Rotations of the 6:1:1 split by group; 1 is a single split.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Of the split and the model.")] = 0,
    steps: Annotated[int, typer.Option(help="network: updates of its head.", min=1)] = 200,
    video: Annotated[
        str, typer.Option(help="network: zoo:NAME, folder or hub id of a VideoMAE classifier.")
    ] = "zoo:tiny-videomae",
    text: Annotated[str, typer.Option(help="network: zoo:NAME, folder or hub id of a CLIP.")] = "zoo:tiny-clip",
    device: Annotated[str, typer.Option(help="network: where it looks at the clips, cpu or cuda.")] = "cpu",
) -> None:
    """Learn a judge from labels, measure it on held-out groups and save it."""
    from reelign.selection.takes import TakesFolder

    folder = TakesFolder(takes)
    settings = {"axis": axis, "folds": folds, "calibration": calibration, "seed": seed}
    if model == "network":
        _fit_network(folder, labels, out, settings | {"steps": steps, "video": video, "text": text, "device": device})
        return
    from reelign.selection.judge_features import PUBLISHED

    columns = PUBLISHED if features is None else _names(features)
    zeros = _names(zero_is_missing)
    _fit_scores(
        folder,
        labels,
        out,
        settings | {"model": model, "features": columns, "zero_is_missing": zeros, "inputs": inputs},
    )


@app.command()
def show(judge: Annotated[Path, typer.Argument(help="A folder that 'reelign judge fit' wrote.")]) -> None:
    """Load a judge, check that it gives the numbers of its card, and print how good it is on held-out groups."""
    if (judge / "network.json").is_file():
        from reelign.build import build_reward
        from reelign.rewards.judge_network import JudgeNetwork

        network = build_reward("reelign.rewards.judge_network:JudgeNetwork", {"model": str(judge)})
        assert isinstance(network, JudgeNetwork)
        _show(network.facts)
        return
    from reelign.selection.judge_storage import load_judge

    _show(load_judge(judge).card)


def _fit_scores(folder: TakesFolder, labels: str, out: Path, settings: Mapping[str, Any]) -> None:
    """Learn a judge that reads scores."""
    from reelign.plots.judge import save_judge_figure
    from reelign.selection.judge import JudgeConfig
    from reelign.selection.judge_fit import fit_judge
    from reelign.selection.judge_storage import save_judge

    config = _config(JudgeConfig, settings)
    table = folder.wide(config.features)
    judge = fit_judge(table, _read_labels(labels, table), config)
    save_judge(judge, out)
    saved = save_judge_figure(judge.card, out)
    _show(judge.card)
    _say(f"saved: {out} and {saved[0].name}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _config(kind: type[Config], settings: Mapping[str, Any]) -> Config:
    """The settings of a judge; what does not fit is one line."""
    from pydantic import ValidationError

    try:
        return kind(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{option}: {first['msg']}; got {first['input']!r}") from error


def _read_labels(place: str, takes: DataFrame) -> DataFrame:
    """Labels from a file, or from the review page's database."""
    from reelign.selection.labels import read_labels

    if "://" not in place and Path(place).suffix in (".csv", ".parquet"):
        return read_labels(Path(place), takes)
    if "://" not in place and not Path(place).is_file():
        raise ConfigError(f"labels are a .csv, .parquet or .sqlite file or a database URL; there is no {place!r}")
    from reelign.review.database import LabelStore

    store = LabelStore.open(place)
    try:
        return store.labels()
    finally:
        store.close()


def _show(card: Mapping[str, Any]) -> None:
    """The held-out table of a card."""
    data, held = card["data"], card["held-out"]
    model = f"{card['config']['model']}, {card['inputs']}" if "inputs" in card else "network"
    table = Table(
        Column("on held-out groups", no_wrap=True),
        Column("", justify="right"),
        "95 % over groups",
        title=model,
        title_justify="left",
    )
    for name in ("accuracy", "F1", "AUC", "Brier score", "calibration error"):
        table.add_row(name, *_numbers(held[name]))
    if held["ties"]:
        table.add_row("left, right or tie", *_numbers(held["ties"]["three-class accuracy"]))
        table.add_row("  floor: share of ties", f"{held['ties']['floor']:.3f}", "")
    if held["best take"]:
        table.add_row("best take first", *_numbers(held["best take"]))
        table.add_row("  by chance", f"{held['best take']['chance']:.3f}", "")
    _add_unreviewed(table, held["without review"])
    console.print(table)
    if card["importance"]:
        rests = Table(Column("it rests on", no_wrap=True), Column("accuracy lost", justify="right"), "95 % over groups")
        for row in card["importance"]:
            rests.add_row(escape(row["feature"]), *_numbers({"value": row["drop"], **row}))
        console.print(rests)
    counts = ", ".join(f"{data[name]} {name}" for name in ("groups", "takes", "pairs", "ties"))
    _say(f"{counts}; {card['protocol']}")


def _add_unreviewed(table: Table, found: Mapping[str, Any] | None) -> None:
    """What conformal selection keeps, and how many groups it leaves to nobody's review."""
    if not found:
        return
    table.add_row(f"best take kept, promised {found['promised']:.2f}", *_numbers(found["covered"]))
    table.add_row("  takes kept of a group", f"{found['mean plausible takes']:.1f}", "")
    table.add_row("  one kept: no review", f"{found['accepted']:.3f}", "")
    if found["right where accepted"]:
        table.add_row("  of these right", *_numbers(found["right where accepted"]))


def _numbers(estimate: Mapping[str, Any]) -> tuple[str, str]:
    return f"{estimate['value']:.3f}", f"{estimate['low']:.3f} … {estimate['high']:.3f}"


def _fit_network(folder: TakesFolder, labels: str, out: Path, settings: Mapping[str, Any]) -> None:
    """Learn the video-text network from the clips."""
    from rich.progress import Progress

    from reelign.plots.judge import save_judge_figure
    from reelign.selection.judge_clips import NetworkTraining, fit_network

    config = _config(NetworkTraining, settings)
    takes = folder.takes()
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("reading clips")
        network = fit_network(
            takes,
            _read_labels(labels, takes),
            folder.locate,
            config,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    network.save(out)
    saved = save_judge_figure(network.facts, out)
    _show(network.facts)
    _say(f"saved: {out} and {saved[0].name}; as a reward: name judge_network, options model={out}")


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
