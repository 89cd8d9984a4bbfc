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


@app.command()
def translation(
    out: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    clips: Annotated[int, typer.Option(help="How many of each domain.", min=1)] = 100,
    pairs: Annotated[int, typer.Option(help="How many known translations, to judge by.", min=0)] = 16,
    size: Annotated[int, typer.Option(help="Height and width in pixels, an even number.", min=32)] = 64,
    frames: Annotated[int, typer.Option(help="Frames of a clip.", min=2)] = 16,
    x: Annotated[str, typer.Option(help="shapes:day or shapes:night, with :bouncing or :rotating.")] = "shapes:day",
    y: Annotated[str, typer.Option(help="As x.")] = "shapes:night",
    seed: int = 0,
) -> None:
    """Two domains of unpaired clips in x/ and y/, and known translations in pairs/."""
    from reelign.datasets.translation import DomainOptions, Domains
    from reelign.datasets.translation_folder import write_domains

    domains = Domains(DomainOptions(x=x, y=y, size=size, frames=frames))
    total = 2 * (clips + pairs)
    for _ in track(write_domains(out, domains, clips, pairs, seed), total=total, description="drawing"):
        pass
    console.print(f"{clips} clips in {out}/x and {out}/y each, {pairs} pairs in {out}/pairs", soft_wrap=True)
