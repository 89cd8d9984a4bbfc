"""Translated clips as one GIF: source, translation, cycle and known translation next to each other, a clip a row.

Clips are the first saved ones of the direction, never the best; small ones are enlarged without smoothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from reelign.errors import DataError
from reelign.report.translation import FILES, read_evaluations
from reelign.video_io import read_clip, write_gif

GAP = 4  # pixels between clips
PAPER = 0.98


def translation_gif(run: Path, path: Path, clips: int = 4, scale: int = 2, to: str = "y") -> Path:
    """Save a GIF of the last evaluation.

    Args:
        run: run folder.
        path: file to write, ``.gif``.
        clips: at most so many rows.
        scale: whole factor by which clips are enlarged.
        to: the direction, by the domain it ends in.

    Raises:
        DataError: no clip of this direction was saved.
    """
    samples = read_evaluations(Path(run))
    step = max(samples)
    table = samples[step]
    saved = table[(table["to"] == to) & (table["file"] != "")].head(clips)
    if saved.empty:
        raise DataError(f"{run} saved no clip translated to {to!r}: evaluate with clips saved")
    folder = Path(run) / "samples" / f"step_{step:06d}"
    fps, rows = 8.0, []
    for _, row in saved.iterrows():
        read = [read_clip(folder / row[column]) for column in FILES if row[column]]
        fps = read[0].fps
        rows.append(_beside([clip.video for clip in read], scale))
    movie = torch.cat([torch.nn.functional.pad(row, (0, 0, 0, GAP), value=PAPER) for row in rows], 2)
    write_gif(Path(path), movie, fps)
    return Path(path)


def _beside(videos: list[Tensor], scale: int) -> Tensor:
    """Clips [T,3,H,W] of one size next to each other, enlarged."""
    large = [video.repeat_interleave(scale, 2).repeat_interleave(scale, 3) for video in videos]
    return torch.cat([torch.nn.functional.pad(video, (0, GAP), value=PAPER) for video in large], 3)
