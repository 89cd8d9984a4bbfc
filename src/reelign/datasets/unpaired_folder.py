"""A folder of real clips as one side of an unpaired translation: random windows and crops.

A clip is read once, thinned to the asked frame rate, resized so that its short side is 9/8 of the crop (never
enlarged), and kept as bytes while there is room; a draw is a clip, a window and a crop of it. What cannot be used (not
readable, under two frames or a window, smaller than the crop) is named once in a warning and left out; a folder in
which nothing is left is an error. Files are looked at when the folder is opened; damage further in shows later.

Left out: frames after the first 1,000 of a clip, mirroring, sound.

Run: ``x: my_clips/`` under ``domains`` in a run file.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reelign.errors import ClipError, DataError
from reelign.video_decode import FrameStream, cut_short
from reelign.video_io import CLIP_SUFFIXES, find_clips

log = logging.getLogger(__name__)

LONGEST = 1_000  # frames read of a clip
ROOM = 512 * 2**20  # bytes of clips kept between draws
MARGIN = (9, 8)  # short side that clips are resized to, over the crop


@dataclass(frozen=True)
class Window:
    """What is cut out of clips.

    Args:
        frames: T, at least 2.
        size: height and width in pixels.
        fps: frames per second that faster clips are thinned to; slower ones keep their own.
    """

    frames: int
    size: int
    fps: float


@dataclass
class ClipShelf:
    """Clips as uint8 [T,H,W,3], read when first asked for; the longest unused go when they take more than ``ROOM``.

    Args:
        window: what will be cut out.
    """

    window: Window
    _kept: OrderedDict[Path, NDArray[np.uint8]] = field(default_factory=OrderedDict)
    _bad: set[Path] = field(default_factory=set)

    def get(self, path: Path) -> NDArray[np.uint8] | None:
        """The whole clip, or None where it cannot be used, which is said once."""
        if path in self._bad:
            return None
        if path not in self._kept:
            try:
                self._keep(path, read_small(path, self.window))
            except ClipError as error:
                self._bad.add(path)
                log.warning("left out: %s", error)
                return None
        self._kept.move_to_end(path)
        return self._kept[path]

    def _keep(self, path: Path, clip: NDArray[np.uint8]) -> None:
        self._kept[path] = clip
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > ROOM:
            self._kept.popitem(last=False)


def usable_clips(folder: str | Path, window: Window) -> list[Path]:
    """The clips of a folder that a window can be cut out of, as far as their beginnings tell; others are named.

    Raises:
        DataError: no such folder, no clip in it, or none that can be used; the last with the first reason.
    """
    found = find_clips(Path(folder).expanduser())
    if not found:
        raise DataError(f"a domain needs at least one clip ({', '.join(CLIP_SUFFIXES)}); {folder} holds none")
    usable, reasons = [], []
    for path in found:
        try:
            _glance(path, window)
            usable.append(path)
        except ClipError as error:
            reasons.append(str(error))
            log.warning("left out: %s", error)
    if not usable:
        raise DataError(f"none of the {len(found)} clips in {folder} can be used; the first: {reasons[0]}")
    return usable


def read_small(path: Path, window: Window) -> NDArray[np.uint8]:
    """A clip thinned to ``window.fps`` and resized: uint8 [T,H,W,3], T ≥ ``window.frames``.

    Raises:
        ClipError: it cannot be read, is too short, or smaller than the crop.
    """
    shape, fps, _ = _glance(path, window)
    stream = FrameStream(path, LONGEST, _small(shape, window.size), eight_bits=True)
    stride = max(1.0, fps / window.fps)
    frames: list[NDArray[np.uint8]] = []
    for index, picture in enumerate(stream):
        if index >= len(frames) * stride - 0.5:
            frames.append(picture.astype(np.uint8, copy=False))
    stream.check()
    _check_length(path, len(frames), window)
    return np.stack(frames)


def draw(paths: list[Path], shelf: ClipShelf, count: int, generator: torch.Generator) -> Tensor:
    """Windows of random clips at random times and places: float32 [count,T,3,H,W] in [0,1].

    Raises:
        DataError: none of the clips can be read.
    """
    size, length = shelf.window.size, shelf.window.frames
    bad: set[Path] = set()
    clips: list[Tensor] = []
    while len(clips) < count:
        path = paths[_below(len(paths), generator)]
        whole = shelf.get(path)
        if whole is None:
            bad.add(path)
            if len(bad) == len(paths):
                raise DataError(f"none of the {len(paths)} clips beside {path} can be read: mend or replace them")
            continue
        begin, top, left = (
            _below(have - take + 1, generator) for have, take in zip(whole.shape[:3], (length, size, size), strict=True)
        )
        cut = whole[begin : begin + length, top : top + size, left : left + size]
        clips.append(torch.from_numpy(cut.copy()).permute(0, 3, 1, 2).float().div_(255))
    return torch.stack(clips)


def _glance(path: Path, window: Window) -> tuple[tuple[int, int], float, int]:
    """Upright height and width, frames per second, and number of frames, from the beginning of a file.

    Raises:
        ClipError: it cannot be used.
    """
    stream = FrameStream(path, 1, eight_bits=True)
    shape = next((picture.shape[:2] for picture in stream), None)
    stream.check()
    assert shape is not None  # else check has raised
    if missing := cut_short(path):
        raise ClipError(f"{path}: damaged: {missing}; render or copy it again")
    if min(shape) < window.size:
        raise ClipError(
            f"{path}: clips are at least as large as the crop of {window.size} pixels; this one is "
            f"{shape[1]}x{shape[0]}: choose a smaller size"
        )
    count = stream.announced or _packets(path)
    fps = stream.stated_fps or window.fps
    _check_length(path, int((count - 1) / max(1.0, fps / window.fps)) + 1 if count else 0, window)
    return (shape[0], shape[1]), fps, count


def _check_length(path: Path, frames: int, window: Window) -> None:
    if frames < window.frames:
        raise ClipError(
            f"{path}: a window is {window.frames} frames at {window.fps:g} a second; this clip has {frames}: "
            "choose fewer frames or a higher rate"
        )


def _packets(path: Path) -> int:
    """Frames of a file whose container does not say."""
    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def _small(shape: tuple[int, int], crop: int) -> tuple[int, int]:
    """Height and width with the short side at 9/8 of the crop, or as they are where that would enlarge."""
    scale = min(1.0, crop * MARGIN[0] / MARGIN[1] / min(shape))
    height, width = (max(crop, round(side * scale)) for side in shape)
    return height, width


def _below(bound: int, generator: torch.Generator) -> int:
    return int(torch.randint(bound, (1,), generator=generator))
