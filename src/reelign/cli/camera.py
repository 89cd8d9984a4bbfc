"""``reelign camera``: how the camera of a clip, or of every clip of a folder, moves, and whether that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from reelign.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pandas import DataFrame

    from reelign.selection.camera import CameraOptions
    from reelign.selection.camera_words import Instruction

SHOWN = 40  # rows on the screen; the rest is in the file
console = Console()


def camera(
    clips: Annotated[Path, typer.Argument(help="A clip, or a folder of clips, searched at any depth.")],
    instruction: Annotated[
        str | None, typer.Option(help="What was asked, for example 'pan left then dolly forward'.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A .csv or .jsonl with file_name and text; each text's camera words count."),
    ] = None,
    poses: Annotated[
        Path | None, typer.Option(help="True poses of one clip: a .csv with r00 … r22, tx, ty, tz, camera-to-world.")
    ] = None,
    fov: Annotated[float, typer.Option(help="Horizontal field of view in degrees.", min=1, max=170)] = 55.0,
    colmap: Annotated[bool, typer.Option(help="Also run pycolmap where there is parallax; seconds a clip.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where the table goes: .parquet, with a .csv beside it.")] = None,
) -> None:
    """Measure camera motion, hold it against an instruction or poses, and say where it cannot be told."""
    from reelign.selection.camera import CameraOptions, camera_table, failure_rates
    from reelign.selection.scoring import check_writable, write_scores

    if poses is not None and clips.is_dir():
        raise ConfigError(f"--poses go with one clip; {clips} is a folder")
    if out is not None:
        check_writable(out)
    found, asked = _clips(clips), _asked(clips, instruction, prompts)
    options = CameraOptions(fov_deg=fov, colmap=colmap)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("watching cameras")
        table = camera_table(found, asked, options, lambda done, total: bar.update(task, completed=done, total=total))
    console.print(_shown(table))
    rates = failure_rates(table)
    console.print(f"{len(table)} clips; cannot be told: {rates['abstained']:.0%}; cannot be read: {rates['error']:.0%}")
    if poses is not None:
        _show_errors(found[0], poses, options)
    if out is not None:
        saved = write_scores(table, out)
        console.print(f"saved: {saved[0]} and {saved[1].name}", soft_wrap=True, highlight=False, markup=False)


def _clips(place: Path) -> list[Path]:
    from reelign.video_io import find_clips

    if not place.is_dir():
        return [place]
    if not (found := find_clips(place)):
        raise ConfigError(f"a folder of clips has at least one; {place} has none")
    return found


def _asked(place: Path, instruction: str | None, prompts: Path | None) -> Callable[[Path], Instruction | None]:
    """What is asked of each clip: the instruction, the table's text, or that of the tables beside the clips."""
    from reelign.datasets.video_folder import captions, read_captions
    from reelign.selection.camera import read_instruction

    if instruction is not None:
        fixed = read_instruction(instruction, "")
        return lambda clip: fixed
    folder = place if place.is_dir() else place.parent
    texts = captions(folder) if prompts is None else read_captions(prompts)
    return lambda clip: read_instruction(None, texts.get(clip.relative_to(folder).as_posix(), ""))


def _shown(table: DataFrame) -> Table:
    caption = f"the first {SHOWN} of {len(table)}" if len(table) > SHOWN else None
    shown = Table("clip", "camera", "confidence", "obeys", "smooth", box=None, padding=(0, 2, 0, 0), caption=caption)
    for row in table.head(SHOWN).to_dict("records"):
        told = row["sentence"] if row["status"] == "ok" else f"[yellow]{row['status']}[/] {escape(row['reason'])}"
        obeys = {"ok": f"{row['obedience']:.2f}", "abstained": "cannot be told"}.get(row["obeys"], "–")
        if row["obeys"] == "abstained" and row["status"] == "ok":
            told += f" [yellow]({escape(row['reason'])})[/]"
        smooth = "–" if row["smoothness"] != row["smoothness"] else f"{row['smoothness']:.2f}"
        shown.add_row(escape(Path(row["file"]).name), told, f"{row['confidence']:.2f}", obeys, smooth)
    return shown


def _show_errors(clip: Path, poses: Path, options: CameraOptions) -> None:
    from dataclasses import asdict

    from reelign.selection.camera import estimate_camera, judge_camera, read_footage
    from reelign.selection.camera_files import read_poses

    footage = read_footage(clip)
    report = estimate_camera(footage.frames, options, indices=footage.indices)
    judged = judge_camera(report, poses=read_poses(poses, clip.name))
    if judged.errors is None:
        console.print(f"[yellow]no errors against {poses}: {escape(report.best.reason)}[/]")
        return
    for name, value in {"score": judged.score, **asdict(judged.errors)}.items():
        numbers = value if isinstance(value, tuple) else (value,)
        told = ", ".join("does not apply" if number is None else f"{number:.4g}" for number in numbers)
        console.print(f"  {name}: {told}", highlight=False)
