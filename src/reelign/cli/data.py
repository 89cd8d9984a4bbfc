"""``reelign data``: make embedded data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

app = typer.Typer(help="Make embedded data sets.", no_args_is_help=True)
console = Console()


@app.callback()
def group() -> None:
    """Make embedded data sets."""


@app.command()
def shapes(
    out: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    clips: Annotated[int, typer.Option(help="How many.", min=1)] = 100,
    size: Annotated[int, typer.Option(help="Height and width in pixels, an even number.", min=32)] = 64,
    frames: Annotated[int, typer.Option(help="Frames of a clip.", min=2)] = 17,
    noise: Annotated[float, typer.Option(help="Share of captions with one wrong attribute.", min=0, max=1)] = 0.0,
    seed: int = 0,
) -> None:
    """Moving shapes as mp4 files with metadata.csv, in the Hugging Face videofolder convention."""
    from reelign.datasets.moving_shapes import MovingShapes
    from reelign.datasets.shapes_folder import write_shapes

    data = MovingShapes(frames=frames, size=size, caption_noise=(noise / 3, noise / 3, noise / 3))
    for _ in track(write_shapes(out, data, clips, seed), total=clips, description="drawing"):
        pass
    console.print(f"{clips} clips and metadata.csv in {out}")
