"""Moving shapes as files: mp4 clips with ``metadata.csv``, in the Hugging Face ``videofolder`` convention."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from reelign.datasets.moving_shapes import MovingShapes
from reelign.datasets.video_folder import write_metadata
from reelign.errors import RunFolderError
from reelign.video_io import write_clip


def write_shapes(out: Path, data: MovingShapes, clips: int, seed: int) -> Iterator[int]:
    """Draw clips into ``out``, then the metadata (caption, and the true attributes); yields the count so far.

    Raises:
        RunFolderError: the folder is not empty or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"clips go to a new or empty folder; {out} is neither")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"the output folder {out} cannot be made: {error.strerror}") from error
    random = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Any]] = []
    for index in range(clips):
        video, (spec,), (caption,) = data.batch(1, random)
        name = f"{index:05d}.mp4"
        write_clip(out / name, video[0], data.fps)
        truth = {"shape": spec.shape, "colour": spec.colour, "colour_to": spec.colour_to or "", "motion": spec.motion}
        rows.append({"file_name": name, "text": caption, **truth})
        yield index + 1
    write_metadata(out, rows)
