"""``reelign generate``: prompts in, mp4 files and a metadata table out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from reelign.errors import ConfigError

console = Console()


def generate(
    out: Annotated[Path, typer.Option(help="Folder for the clips and metadata.csv.")],
    prompts: Annotated[str | None, typer.Option(help="A text file, 'shapes', 'animals', or one prompt.")] = None,
    generator: Annotated[str, typer.Option(help="zoo:tiny-wan, a folder, or a hub id.")] = "zoo:tiny-wan",
    kind: Annotated[
        str, typer.Option(help="Family of the generator: wan, cogvideox, ltx, … (docs: families).")
    ] = "wan",
    sources: Annotated[Path | None, typer.Option(help="Clips instead of prompts, for a translator's run.")] = None,
    to: Annotated[str, typer.Option(help="Of a translator: the domain to translate to, x or y.")] = "y",
    adapter: Annotated[Path | None, typer.Option(help="A folder with an adapter that a run saved.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; default: the model's own.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Default: the model's own.")] = None,
    eta: Annotated[
        float, typer.Option(help="Fresh noise of each step: 0 is none, 1 ancestral, as VADER samples.", min=0, max=1)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the first clip; each next one counts on.")] = 0,
    limit: Annotated[int | None, typer.Option(help="At most this many prompts.")] = None,
    batch: Annotated[int, typer.Option(help="Clips at a time.", min=1)] = 8,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Write one clip a prompt, or a source clip, with a metadata table in the videofolder convention."""
    if sources is not None and prompts is None:
        if any(given is not None for given in (adapter, steps, guidance_scale, limit, eta or None)):
            raise ConfigError(
                "a translator has no adapter, steps, guidance, eta or limit: leave these out with --sources"
            )
        from reelign.cli.translate import translate

        translate(sources, generator, out, to)
        return
    if prompts is None or sources is not None:
        raise ConfigError("clips are generated from --prompts, or by a translator from --sources: give one of the two")
    from reelign.generation import GenerationJob

    job = GenerationJob.prepare(generator, prompts, out, adapter=adapter, limit=limit, kind=kind, dtype=dtype)
    clips = job.run(seed, steps, guidance_scale, batch, eta)
    for _ in track(clips, total=job.batches(batch), description="generating"):
        pass
    console.print(f"{len(job.prompts)} clips and metadata.csv in {out}")
