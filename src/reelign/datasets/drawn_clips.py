"""Moving shapes as captioned clips to train on, drawn when they are read: no folder, no file.

``clips: {source: shapes}`` is 4,096 clips, ``shapes:500`` is 500. Each is drawn from its own number, so a source has
the same clips in every run, whatever order they come in, and latents can be kept. A longer one begins alike.

Left out: wrong captions (write a folder with ``reelign data shapes --noise``).

Run: ``reelign train flow_matching --set clips.source=shapes``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from reelign.datasets.clips import CaptionedClip, ClipReader, load_clips
from reelign.datasets.moving_shapes import MovingShapes, ShapeSpec, random_spec
from reelign.errors import DataError

NAME = "shapes"
COUNT = 4096


class DrawnShapes:
    """Reads moving shapes by number, as ``ClipReader`` reads files.

    Args:
        data: how clips look.
        count: how many there are.
    """

    def __init__(self, data: MovingShapes, count: int = COUNT) -> None:
        self.data = data
        self.count = count

    def clips(self) -> list[CaptionedClip]:
        """All clips, each with a name to read it by and its caption; nothing is drawn."""
        return [CaptionedClip(Path(NAME, str(i)), self._begin(i)[0].caption) for i in range(self.count)]

    def read(self, path: Path) -> Tensor:
        """The clip of this name: [T,3,H,W] in [0,1]."""
        spec, random = self._begin(int(path.name))
        return self.data.render([spec], random)[0]

    def _begin(self, number: int) -> tuple[ShapeSpec, torch.Generator]:
        random = torch.Generator().manual_seed(number)
        return random_spec(random, self.data.motions), random


def open_clips(
    source: str, frames: int, size: tuple[int, int], fps: float
) -> tuple[list[CaptionedClip], ClipReader | DrawnShapes]:
    """The captioned clips of a source, and what reads them for a generator.

    Args:
        source: as in ``load_clips``, or ``shapes``, or ``shapes:COUNT``.
        frames, size, fps: of the generator's clips; size is height and width.

    Raises:
        DataError: there is no such source, or the generator's clips are not square and shapes are.
    """
    name, _, count = source.partition(":")
    if name != NAME or Path(source).expanduser().exists():
        return load_clips(source), ClipReader(frames, *size, fps)
    if count and not (count.isdecimal() and int(count) > 0):
        raise DataError(f"drawn clips are named {NAME} or {NAME}:COUNT; got {source!r}")
    if size[0] != size[1]:
        raise DataError(f"moving shapes are square; this generator makes clips of {size[0]}x{size[1]}")
    reader = DrawnShapes(MovingShapes(frames, size[0], fps), int(count or COUNT))
    return reader.clips(), reader
