"""``reelign export``: a saved adapter in the layout of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

console = Console()


def export(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved adapter.")],
    out: Annotated[Path, typer.Option(help="A folder, or for comfyui a .safetensors file.")],
    layout: Annotated[str, typer.Option(help="diffusers, peft or comfyui.")] = "comfyui",
    kind: Annotated[str, typer.Option(help="Family; comfyui knows wan, wan_image, ltx, hunyuan_video.")] = "wan",
    part: Annotated[str, typer.Option(help="For diffusers: the network's name, transformer or unet.")] = "transformer",
) -> None:
    """Write an adapter as diffusers, PEFT or ComfyUI loads it."""
    from reelign.generators.lora_export import export_adapter

    chosen: Any = layout
    export_adapter(folder, out, chosen, kind, part)
    console.print(f"the adapter of {folder}, as {layout} reads it, is in {out}")
