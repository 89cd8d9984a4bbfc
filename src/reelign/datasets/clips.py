"""Captioned clips to train on: from a folder, a table or a ``path|||caption`` list, cut to a generator's size.

A clip gives its first frames at the generator's frame rate, resized to cover the picture and cut at the centre. A
clip that cannot be read or is too short is named once, left out, and another is drawn; InstructVideo's loader fills
such clips with grey frames instead.

Left out: random beginnings (a clip's latents are encoded once and kept).

Run: ``clips: {source: takes/}`` in a run file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from reelign.contracts import Request
from reelign.datasets.prompts import ALL, PromptOrder
from reelign.datasets.video_folder import captions, read_captions, rows_beside
from reelign.distributed import gather
from reelign.errors import ClipError, DataError
from reelign.video_io import read_clip

log = logging.getLogger(__name__)

SEPARATOR = "|||"
LONGEST = 16  # a clip's frame rate over the generator's, up to which it is read far enough


@dataclass(frozen=True)
class CaptionedClip:
    """A file, what it shows, and how often it is drawn relative to others."""

    path: Path
    caption: str
    weight: float = 1.0


def load_clips(source: str | Path) -> list[CaptionedClip]:
    """The captioned clips of a source, in order.

    Args:
        source: a folder in the ``videofolder`` convention, a ``.csv`` or ``.jsonl`` table, or a text file with a line
            ``path|||caption`` a clip; paths in files are relative to the file. Tables in a folder may have a column
            ``weight``.

    Raises:
        DataError: there is no such source, no captioned clip in it, or a line is of another form.
    """
    place = Path(source).expanduser()
    if place.is_dir():
        rows = rows_beside(place)
        texts = sorted(captions(place).items())
        found = [CaptionedClip(place / name, text, _weight(rows[name], name)) for name, text in texts]
    elif place.suffix in (".csv", ".jsonl"):
        found = [CaptionedClip(place.parent / name, text) for name, text in read_captions(place).items()]
    elif place.is_file():
        found = _read_list(place)
    else:
        raise DataError(f"clips come from a folder, a .csv or .jsonl table or a list; there is no {str(source)!r}")
    if not found:
        raise DataError(f"at least one captioned clip is needed; {source} holds none")
    return found


def _weight(row: Mapping[str, Any], name: str) -> float:
    given = row.get("weight", "")
    try:
        weight = 1.0 if given in ("", None) else float(given)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < math.inf:
        raise DataError(f"the weight of a clip is a number from 0; {name} has {given!r}")
    return weight


def _read_list(file: Path) -> list[CaptionedClip]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"a clip list is UTF-8 text; {file} is not") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        path, separator, caption = line.partition(SEPARATOR)
        if not separator or not path.strip() or not caption.strip():
            raise DataError(
                f"a line of a clip list reads path{SEPARATOR}caption; {file}, line {number}, has {line[:60]!r}"
            )
        found.append(CaptionedClip(file.parent / path.strip(), caption.strip()))
    return found


class Reader(Protocol):
    """Reads a clip of a source, cut for a generator."""

    def read(self, path: Path) -> Tensor:
        """Frames [T,3,H,W] in [0,1]; raises ClipError where that is not possible."""
        ...


@dataclass(frozen=True)
class ClipReader:
    """How clips are cut for a generator.

    Args:
        frames, height, width: of the result.
        fps: of the result.
    """

    frames: int
    height: int
    width: int
    fps: float

    def read(self, path: Path) -> Tensor:
        """The first frames of a clip at ``fps``: [T,3,H,W] in [0,1].

        Raises:
            ClipError: it cannot be read, or is too short.
        """
        clip = read_clip(path, max_frames=self.frames * LONGEST)
        ratio = clip.fps / self.fps
        index = [math.floor(i * ratio + 0.5) for i in range(self.frames)]
        if index[-1] >= len(clip.video):
            have, needed = len(clip.video) / clip.fps, self.frames / self.fps
            raise ClipError(f"{path}: a clip to train on lasts {needed:.2f} s or more; this one lasts {have:.2f} s")
        return cover(clip.video[index], self.height, self.width)


def cover(video: Tensor, height: int, width: int) -> Tensor:
    """Resize frames [T,3,H,W] to just cover height × width, and cut at the centre."""
    scale = max(height / video.shape[-2], width / video.shape[-1])
    size = [max(round(side * scale), least) for side, least in zip(video.shape[-2:], (height, width), strict=True)]
    if size != list(video.shape[-2:]):
        video = F.interpolate(video, size, mode="bilinear", align_corners=False, antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return video[..., top : top + height, left : left + width].clamp(0, 1)


class ClipOrder:
    """Endless requests of captioned clips; its state goes into checkpoints.

    Clips of equal weight come in passes, each in a new order; others are drawn at random in proportion to their weight.

    Args:
        clips: what is drawn from.
        reader: how they are cut.
        seed: of the orders.
    """

    def __init__(self, clips: Sequence[CaptionedClip], reader: Reader, seed: int) -> None:
        self.clips = tuple(clips)
        self.reader = reader
        self._order = PromptOrder([str(i) for i in range(len(clips))], seed)
        self._weights = torch.tensor([clip.weight for clip in clips], dtype=torch.float64)
        self._random = torch.Generator().manual_seed(seed)
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return len(self.clips)

    def texts(self) -> tuple[str, ...]:
        """The captions, one a clip."""
        return tuple(clip.caption for clip in self.clips)

    def request(self, count: int, rows: slice = ALL) -> Request:
        """Those in ``rows`` of the next ``count`` clips that can be read, with their captions; no others are read.

        Processes that take other rows tell one another which clips cannot be read, and so all draw the same.

        Raises:
            DataError: no clip can be read.
        """
        drawn: list[int] = []
        read: dict[int, Tensor] = {}
        bad = True
        while bad:
            while len(drawn) < count:
                drawn += [index for index in self._draw(count - len(drawn)) if index not in self._bad]
            bad = self._leave_out(self._read(set(drawn[rows]) - set(read), read))
            drawn = [index for index in drawn if index not in self._bad]
        captions = tuple(self.clips[index].caption for index in drawn[rows])
        return Request(captions, source_videos=torch.stack([read[index] for index in drawn[rows]]))

    def _draw(self, count: int) -> list[int]:
        if (self._weights == self._weights[0]).all():
            return [int(index) for index in self._order.draw(count)]
        return [int(torch.multinomial(self._weights, 1, generator=self._random)) for _ in range(count)]

    def _read(self, indices: set[int], into: dict[int, Tensor]) -> dict[int, str]:
        """Read clips; returns why some could not be."""
        problems = {}
        for index in sorted(indices):
            try:
                into[index] = self.reader.read(self.clips[index].path)
            except ClipError as error:
                problems[index] = str(error)
        return problems

    def _leave_out(self, problems: dict[int, str]) -> bool:
        """Never again draw clips that some process could not read; returns whether there were any."""
        everyones = {index: why for part in gather(problems) for index, why in part.items()}
        for why in everyones.values():
            log.warning("left out: %s", why)
        self._bad.update(everyones)
        if len(self._bad) == len(self.clips):
            raise DataError(f"none of the {len(self.clips)} clips can be used; the last: {why}")
        return bool(everyones)

    def state(self) -> dict[str, object]:
        """What ``restore`` needs to continue."""
        return self._order.state() | {"weighted": self._random.get_state()}

    def restore(self, state: dict[str, object]) -> None:
        """Continue from what ``state`` gave."""
        self._order.restore(state)
        weighted = state["weighted"]
        assert isinstance(weighted, Tensor)
        self._random.set_state(weighted)
