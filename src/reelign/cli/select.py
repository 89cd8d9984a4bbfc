"""``reelign select``: a takes folder in, a folder of winners out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reelign.errors import ConfigError

if TYPE_CHECKING:
    from pandas import DataFrame

    from reelign.selection.choose import Jury
    from reelign.selection.takes import TakesFolder
    from reelign.selection.winners import Selection, WinnerOptions

SHOWN = 40  # rows on the screen; the rest is in the table
console = Console()


def select(
    takes: Annotated[Path, typer.Argument(help="A takes folder, scored.")],
    judge: Annotated[Path | None, typer.Option(help="A folder that 'reelign judge fit' made.")] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Judge by scores instead: 'clip=1,motion_smoothness=0.5'; negative: less is better."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Judge by people's choices alone: a .csv, .parquet or .sqlite, or a database URL."),
    ] = None,
    axis: Annotated[str, typer.Option(help="With --labels: the question they answered.")] = "overall",
    scheme: Annotated[str, typer.Option(help="elimination, swiss, halving or round_robin.")] = "halving",
    comparisons: Annotated[int | None, typer.Option(help="Comparisons for each group, at most.", min=1)] = None,
    per_group: Annotated[int, typer.Option(help="Winners of each group, at most.", min=1)] = 1,
    diverse: Annotated[
        str | None, typer.Option(help="With --per-group: scores in which winners should differ, by commas, or 'all'.")
    ] = None,
    min_confidence: Annotated[float, typer.Option(help="Below this a group has no winner.", min=0, max=1)] = 0.0,
    best_of: Annotated[str | None, typer.Option(help="A score to draw the best-of-n curve in, as gold.")] = None,
    rejected: Annotated[bool, typer.Option(help="Leave out what 'reelign reject' rejected.")] = True,
    copy: Annotated[bool, typer.Option(help="Copy clips instead of linking them.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the winners; earlier winners there are replaced.")] = Path(
        "winners"
    ),
) -> None:
    """Choose the best take of every group, and say how sure that is."""
    from reelign.plots.select import winners_sheet
    from reelign.selection.choose import Play, best_of_takes, read_rejected, select_takes
    from reelign.selection.takes import TakesFolder
    from reelign.selection.winners import write_winners

    folder = TakesFolder(takes)
    wide, refused = folder.wide(), read_rejected(takes) if rejected else None
    jury = _jury(folder, judge, columns, labels, axis)
    options = _options(wide, per_group, diverse, min_confidence)
    selection = select_takes(wide, jury, refused, Play(scheme=scheme, comparisons=comparisons), options)
    # The curve can fail for want of scores; so it is computed before anything is written.
    curve = best_of_takes(wide, jury, best_of, refused) if best_of else None
    write_winners(selection, folder.locate, out, copy)
    winners_sheet(selection.winners, folder.locate, out / "winners.png")
    if curve is not None and best_of:
        from reelign.plots.select import best_of_figure

        curve.table.to_csv(out / "best_of.csv", index=False)
        for kind in ("png", "svg"):
            best_of_figure(curve, "strength", best_of).savefig(out / f"best_of.{kind}", dpi=160)
    _show(selection, out)


def _jury(folder: TakesFolder, judge: Path | None, columns: str | None, labels: str | None, axis: str) -> Jury:
    from reelign.selection.choose import Jury, parse_weights

    if sum(option is not None for option in (judge, columns, labels)) != 1:
        raise ConfigError(
            "takes are judged by one of --judge FOLDER, --columns 'clip=1', --labels FILE: give exactly one"
        )
    if judge is not None:
        from reelign.selection.judge_storage import load_judge

        learned = load_judge(judge)
        return Jury(judge=learned, columns=learned.features.columns)
    if columns is not None:
        return Jury(weights=parse_weights(columns))
    assert labels is not None  # one of the three is there
    table = _labels(labels, folder)
    table = table[table["axis"] == axis]
    if not len(table):
        raise ConfigError(f"labels are of one axis; {labels} has none of {axis!r}: see its column axis")
    return Jury(labels=table)


def _labels(place: str, folder: TakesFolder) -> DataFrame:
    """Labels from a file, or from the review page's database."""
    from reelign.selection.labels import read_labels

    if "://" not in place:
        if not Path(place).is_file():
            raise ConfigError(f"labels are a .csv, .parquet or .sqlite file or a database URL; there is no {place!r}")
        if Path(place).suffix in (".csv", ".parquet"):
            return read_labels(Path(place), folder.takes())
    from reelign.review.database import LabelStore

    store = LabelStore.open(place)
    try:
        return store.labels()
    finally:
        store.close()


def _options(wide: DataFrame, per_group: int, diverse: str | None, min_confidence: float) -> WinnerOptions:
    from reelign.selection.takes import TAKE_COLUMNS
    from reelign.selection.winners import WinnerOptions

    if diverse is not None and per_group == 1:
        raise ConfigError("winners can differ where a group has several; got --diverse with --per-group 1: raise it")
    every = [name for name in wide.columns if name not in TAKE_COLUMNS]
    names = [] if diverse is None else every if diverse == "all" else [name.strip() for name in diverse.split(",")]
    return WinnerOptions(per_group=per_group, diverse=tuple(names), min_confidence=min_confidence)


def _show(selection: Selection, out: Path) -> None:
    import pandas as pd

    from reelign.selection.winners import CLOSE, TABLE

    winners = selection.winners
    more = f"the first {SHOWN} of {len(winners)}" if len(winners) > SHOWN else None
    table = Table("group", "winner", "confidence", "score", "comparisons", "note", caption=more)
    for row in winners.head(SHOWN).to_dict("records"):
        cells = (f"{row['confidence']:.2f}", f"{row['score']:+.2f}", str(row["comparisons"]), row["note"])
        table.add_row(escape(row["group"]), escape("/".join(Path(row["file"]).parts[-2:])), *cells)
    console.print(table)
    groups = winners["group"].nunique()
    console.print(f"{groups} of {groups + len(selection.without_winner)} groups have a winner")
    for row in selection.left_out[selection.left_out["take"] == ""].head(SHOWN).to_dict("records"):
        console.print(f"{row['group']}: {row['reason']}", style="yellow", markup=False, highlight=False)
    if close := int((winners["note"] == CLOSE).sum()):
        console.print(f"{close} too close to call: compare them in a review")
    if bare := int((pd.read_parquet(out / TABLE)["clip"] == "").sum()):
        console.print(f"{bare} winners have no clip in the folder, see winners.csv", style="yellow")
    alone = selection.left_out[selection.left_out["take"] != ""]
    if len(alone):
        console.print(f"{len(alone)} takes did not compete, see left_out.csv")
    console.print(f"saved: {out}", soft_wrap=True, highlight=False, markup=False)
