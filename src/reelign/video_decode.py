"""Frames out of files, one at a time: whatever PyAV (FFmpeg) decodes, upright, in presentation order; no torch.

``FrameStream`` keeps no frame, so a clip of any length costs the memory of one. What only the end of a file tells
(damage, the true frame rate) is known when the last frame has been taken.

Run: ``stream = FrameStream(path)``, then ``for picture in stream: …``, then ``stream.check()``. Whole clips as tensors
are read by ``video_io.read_clip``, which says what is done about colour and depth.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from reelign.errors import ClipError, DataError

# Without these flags swscale rounds down: pictures come out 1.2 of 255 levels too dark on average.
EXACT = 0x2 | 0x40000 | 0x2000  # SWS_BILINEAR, ACCURATE_RND, FULL_CHR_H_INT; PyAV 17 has no names for the last two
VARIABLE = 1.6  # longest gap over shortest from which a rate counts as variable; rounding a GIF's 40 fps gives 1.5

Picture = NDArray[np.uint8] | NDArray[np.uint16]
Size = tuple[int, int] | None  # height and width


class FrameStream:
    """The frames of one file, to be taken once.

    Args:
        path: the file.
        max_frames: at most this many, from the start.
        size: height and width of the upright picture to resize to (bilinear, anti-aliased); None keeps the clip's own.
        eight_bits: give deeper video at 8 bits too.

    With each frame: ``count`` with it, ``time_s()``. After the last: ``damage()``, ``fps()``, ``notes()``, ``check()``.
    """

    def __init__(
        self, path: str | Path, max_frames: int | None = None, size: Size = None, *, eight_bits: bool = False
    ) -> None:
        if min(1 if max_frames is None else max_frames, *(size or (1, 1))) < 1:
            raise DataError(f"at least one frame and one pixel are read; got max_frames={max_frames}, size={size}")
        self.path = Path(path)
        self.max_frames = max_frames
        self.size = size
        self.eight_bits = eight_bits
        self.count = 0
        self.stated_fps = 0.0
        self.announced = 0
        self.capped = False
        self.shape: tuple[int, ...] = ()
        self.faults: list[str] = []
        self._times_s: list[float | None] = []
        self._last_duration_s = 0.0

    def __iter__(self) -> Iterator[Picture]:
        """RGB pictures [H,W,3], contiguous; uint8, or uint16 where the source is deeper and 8 bits were not asked.

        Raises:
            ClipError: missing, empty, not a video, or the picture changes size; damage does not stop the stream.
        """
        with _open(self.path) as container:
            stream = container.streams.best("video")
            # Decoding without a codec context kills the process before PyAV 18.1 (PyAV issue 2344).
            if stream is None or stream.codec_context is None:
                reason = cut_short(self.path) or "only sound or data, or an unknown codec"
                raise ClipError(f"{self.path}: holds no pictures that decode ({reason}); convert it or take it out")
            self.stated_fps = float(stream.average_rate or stream.guessed_rate or 0)
            self.announced = stream.frames
            for frame, picture in self._pictures(container, stream):
                if self.count == self.max_frames:
                    self.capped = True
                    break
                self._take(frame, picture)
                yield picture
        if not self.capped and (missing := cut_short(self.path)):
            self.faults.insert(0, missing)

    def _take(self, frame: Any, picture: Picture) -> None:
        if self.count and picture.shape != self.shape:
            raise ClipError(f"{self.path}: the picture changes size after {self.count} frames; re-encode it")
        self.shape = picture.shape
        self.count += 1
        self._times_s.append(frame.time)
        self._last_duration_s = float((frame.duration or 0) * (frame.time_base or 0))

    def _pictures(self, container: Any, stream: Any) -> Iterator[tuple[Any, Picture]]:
        """Frames in presentation order; decoding goes on after a damaged packet, and ``faults`` says what was wrong."""
        reformatter = VideoReformatter()
        try:
            for packet in container.demux(stream):
                try:
                    frames = [(f, _picture(f, reformatter, self.size, self.eight_bits)) for f in packet.decode()]
                except av.FFmpegError as error:
                    self.faults.append(error.strerror)
                    continue
                # H.264 paints over lost parts and goes on; such a picture is made up, so it counts as damage.
                self.faults.extend("a frame is patched over lost data" for frame, _ in frames if frame.is_corrupt)
                yield from frames
        except av.FFmpegError as error:
            self.faults.append(error.strerror)

    def time_s(self) -> float | None:
        """When the frame that came last is shown, in seconds from the file's zero; None where the file does not say."""
        return self._times_s[-1] if self._times_s else None

    def damage(self) -> str:
        """What is wrong, in words, or an empty string."""
        total = f" of {self.announced} announced" if self.announced and not self.capped else ""
        return f"{self.count}{total} frames decode ({self.faults[0]})" if self.faults else ""

    def check(self, *, strict: bool = True) -> None:
        """Refuse a clip without a frame and, unless ``strict`` is off, one with any damage.

        Raises:
            ClipError: with what is wrong.
        """
        damage = self.damage()
        if not self.count:
            raise ClipError(f"{self.path}: no frame decodes{damage and f': {damage}'}; render or copy it again")
        if damage and strict:
            way_out = "render or copy it again, or allow damaged clips (strict=False)"
            raise ClipError(f"{self.path}: damaged: {damage}; {way_out}")

    def fps(self) -> float:
        """The rate the container states, or the average over timestamps where that differs by 1 % or more.

        Raises:
            ClipError: neither gives a rate.
        """
        frames, span_s = self.count - 1, sum(self._gaps_s())
        if self._last_duration_s:
            frames, span_s = frames + 1, span_s + self._last_duration_s
        measured = frames / span_s if span_s > 0 and None not in self._times_s else 0.0
        stated = self.stated_fps
        # Lost frames stretch the average, so a damaged clip keeps its stated rate.
        if stated and (not measured or self.faults or abs(measured / stated - 1) < 0.01):
            return stated
        if not measured:
            raise ClipError(f"{self.path}: neither the container nor the timestamps give a frame rate; re-encode it")
        return measured

    def notes(self) -> tuple[str, ...]:
        """What a reader should know, one sentence each; empty for an ordinary clip."""
        gaps = self._gaps_s()
        total = f" of {self.announced}" if self.announced > self.count else ""
        notes = [f"only the first {self.count}{total} frames were read"] if self.capped else []
        if self.faults:
            notes.append(f"damaged: {self.damage()}")
        elif gaps and max(gaps) > VARIABLE * min(gaps):
            notes.append(f"variable frame rate: {self.fps():.4g} a second on average")
        return tuple(notes)

    def _gaps_s(self) -> list[float]:
        """Seconds between frames; empty where a time is missing."""
        return [b - a for a, b in itertools.pairwise(self._times_s) if a is not None and b is not None]


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        if path.stat().st_size == 0:
            raise ClipError(f"{path}: empty file (0 bytes); render or copy it again")
        # An absolute path cannot be taken for a protocol ("pipe:0.mp4"); tags need not be UTF-8.
        container = av.open(str(path.absolute()), metadata_errors="replace")
    except (OSError, av.FFmpegError) as error:
        if not isinstance(error, OSError) and (missing := cut_short(path)):
            raise ClipError(f"{path}: truncated: {missing}; render or copy it again") from error
        raise ClipError(f"{path}: cannot be opened as a video ({error.strerror}); check or convert it") from error
    with container:
        yield container


def _picture(frame: Any, reformatter: Any, size: Size, eight_bits: bool) -> Picture:
    """RGB [H,W,3], turned upright by the display matrix; 16 bits where the source has more than 8."""
    across, down, turned = _turn(frame.side_data.get("DISPLAYMATRIX"))
    height, width = (frame.height, frame.width) if size is None else (size[::-1] if turned else size)
    deep = not eight_bits and max(part.bits for part in frame.format.components) > 8
    pixels = "rgb48le" if deep else "rgb24"
    stored = reformatter.reformat(frame, width, height, pixels, interpolation=EXACT).to_ndarray()
    picture: Picture = np.ascontiguousarray((stored.transpose(1, 0, 2) if turned else stored)[::down, ::across])
    return picture


def _turn(matrix: Any) -> tuple[int, int, bool]:
    """Steps (1 or −1) along x and y, and whether x and y change places first.

    A display matrix maps x' = a·x + c·y, y' = b·x + d·y with a, b, c, d at 0, 1, 3, 4 (ISO/IEC 14496-12, 6.2.2).
    Quarter turns and mirrors are what cameras write; other angles go to the nearest quarter turn.
    """
    if matrix is None:
        return 1, 1, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    turned = abs(b) > abs(a)
    x, y = (c, b) if turned else (a, d)
    return (-1 if x < 0 else 1), (-1 if y < 0 else 1), turned


def cut_short(path: Path) -> str:
    """Why the file is shorter than its container announces, or an empty string; codecs often don't notice."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:3] == b"GIF":
            file.seek(-1, os.SEEK_END)
            return "" if file.read(1) in b";\0" else "the end of the file is missing"
        if head[:4] == b"\x1aE\xdf\xa3":
            announced = _matroska_bytes(file)
        elif head[:4] == b"RIFF":
            announced = 8 + int.from_bytes(head[4:8], "little")
        else:
            announced = _mp4_bytes(file, size) if head[4:8] == b"ftyp" else 0
    return f"{size} of {announced} bytes are there" if announced > size else ""


def _mp4_bytes(file: BinaryIO, size: int) -> int:
    """Where the last box of media or index ends (ISO/IEC 14496-12, 4.2); other boxes may be junk after the end."""
    start, announced = 0, 0
    while start + 8 <= size:
        file.seek(start)
        length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length < 8:  # 0 means "to the end of the file"
            break
        start += length
        if kind in (b"mdat", b"moov", b"moof"):
            announced = start
    return announced


def _matroska_bytes(file: BinaryIO) -> int:
    """Where the segment ends (RFC 8794, section 4), or 0 where the writer did not know."""

    def number() -> int:
        first = (file.read(1) or b"\0")[0]
        width = 9 - first.bit_length()
        value = int.from_bytes(bytes([first & (0xFF >> width)]) + file.read(width - 1), "big")
        return 0 if value == (1 << 7 * width) - 1 else value

    file.seek(4)
    file.seek(number() + 4, os.SEEK_CUR)
    length = number()
    return file.tell() + length if length else 0
