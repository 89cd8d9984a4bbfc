"""``reelign reject TAKES``: which takes are out, why, and a page to see for oneself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reelign.errors import ConfigError

if TYPE_CHECKING:
    from reelign.selection.reject import RejectOptions, Verdicts

NOTES = 8  # on the screen
SHOWN = 40  # rows on the screen; the rest is in the files
console = Console()


def reject(
    takes: Annotated[Path, typer.Argument(help="A takes folder with scores.")],
    level: Annotated[float, typer.Option(help="Chance that a good take is called an outlier, at most 0.5.")] = 0.01,
    calibrate: Annotated[
        Path | None, typer.Option(help="A takes folder of clips people accepted: sets the limits, and gives advice.")
    ] = None,
    limits: Annotated[Path | None, typer.Option(help="Limits saved before.")] = None,
    save_limits: Annotated[Path | None, typer.Option(help="Save the limits as JSON.")] = None,
    metrics: Annotated[
        str, typer.Option(help="Directed metrics, separated by commas; default: the standard ones.")
    ] = "",
    frames: Annotated[
        int | None, typer.Option(help="Frames every take must have; default: its group's majority.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Rate every take must have.")] = None,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT every take must have, for example 832x480.")] = "",
    black: Annotated[float, typer.Option(help="Refuse from this share of black frames; 0 never.")] = 0.5,
    frozen: Annotated[float, typer.Option(help="Refuse from this share of frozen frames; 0 never.")] = 0.9,
    cohort: Annotated[int, typer.Option(help="Comparable takes needed before one can be an outlier.", min=3)] = 5,
    keep: Annotated[list[str] | None, typer.Option(help="A take to keep, by file or hash; may be repeated.")] = None,
    page: Annotated[bool, typer.Option(help="Write rejected.html with pictures.")] = True,
) -> None:
    """Reject takes for a stated reason; writes rejected.parquet, .csv and .html, and advice beside them."""
    from reelign.report.rejects import write_page
    from reelign.selection.reject import add_keep, read_keep, reject_takes, resolve, write_verdicts
    from reelign.selection.takes import TakesFolder

    if calibrate is not None and limits is not None:
        raise ConfigError("limits are either calibrated or loaded; got --calibrate and --limits: give one")
    folder = TakesFolder(takes)
    options = _options(
        level=level, cohort=cohort, metrics=metrics, frames=frames, fps=fps, size=size, black=black, frozen=frozen
    )
    wide = folder.wide()
    add_keep(takes, resolve(wide, keep or ()))
    accepted = None if calibrate is None else TakesFolder(calibrate).wide()
    verdicts = reject_takes(
        wide, folder.current_scores(), options, accepted, _load(limits), resolve(wide, read_keep(takes))
    )
    written = write_verdicts(takes, verdicts)
    if save_limits is not None:
        verdicts.limits.save(save_limits)
    _show(verdicts)
    console.print(f"saved: {written}", soft_wrap=True, highlight=False, markup=False)
    if page:
        made = write_page(takes, verdicts, wide, options, folder.locate)
        console.print(f"page:  {made}", soft_wrap=True, highlight=False, markup=False)


def _options(metrics: str, size: str, black: float, frozen: float, **given: Any) -> RejectOptions:
    from pydantic import ValidationError

    from reelign.selection.reject import RejectOptions

    width, cross, height = size.lower().partition("x")
    if size and not (cross and width.isdigit() and height.isdigit()):
        raise ConfigError(f"a size is WIDTHxHEIGHT in pixels, for example 832x480; got {size!r}")
    gates = {
        "frames": given.pop("frames"),
        "fps": given.pop("fps"),
        "height": int(height) if size else None,
        "width": int(width) if size else None,
        "black": black or None,
        "frozen": frozen or None,
    }
    columns = tuple(name.strip() for name in metrics.split(",") if name.strip()) or None
    try:
        return RejectOptions.model_validate({"gates": gates, "columns": columns, **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}; got {first['input']!r}") from error


def _load(path: Path | None) -> Any:
    from reelign.selection.outliers import load_limits

    return None if path is None else load_limits(path)


def _show(verdicts: Verdicts) -> None:
    count = verdicts.rejected["take"].nunique()
    more = len(verdicts.rejected) - SHOWN
    if len(verdicts.rejected):
        table = Table("take", "gate", "reason", caption=f"{more} more in the files" if more > 0 else None)
        for row in verdicts.rejected.head(SHOWN).itertuples():
            table.add_row(escape(row.file), row.gate, escape(row.reason))
        console.print(table)
    for note in verdicts.notes[:NOTES]:
        console.print(f"[dim]note: {escape(note)}[/]")
    if len(verdicts.notes) > NOTES:
        console.print(f"[dim]{len(verdicts.notes) - NOTES} more notes of the kind are on the page[/]")
    kept, advice = verdicts.kept["take"].nunique(), verdicts.advice["take"].nunique()
    parts = [f"{count} of {verdicts.takes} takes rejected"]
    parts += [f"{kept} kept by people"] if kept else []
    parts += [f"{advice} worth a look"] if advice else []
    console.print(f"{'; '.join(parts)}; {verdicts.limits.say()}", highlight=False)
