"""Clips for the browser: served by the hash of their bytes, as they are where browsers play them, else converted once.

H.264, VP8, VP9 and AV1 with 8 bits and 4:2:0 in MP4, MOV or WebM go out as they are, by range. Anything else (GIF, AVI,
MKV, 16-bit grey, damaged files that still decode in part) is converted to MP4 in a cache. A clip that gives no picture
has its reason instead. A file whose bytes are not those of the take is refused: it is another take.

Left out: sound of converted clips; converting more than ``MAX_FRAMES`` frames.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import av
from PIL import Image

from reelign.checkpoint import digest
from reelign.errors import ClipError
from reelign.video_decode import FrameStream

PLAYABLE = {"h264": "video/mp4", "vp8": "video/webm", "vp9": "video/webm", "av1": "video/mp4"}
CONTAINERS = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
PIXELS = ("yuv420p", "yuvj420p")
MAX_FRAMES, MAX_SIDE = 240, 640  # of converted clips: about 1 GB while converting
POSTER_SIDE, POSTER_FRAME = 480, 8
CHANGED = "the file changed after it was imported; import it again, as a new take"

T = TypeVar("T")


@dataclass(frozen=True)
class ClipFacts:
    """What the page must know of a clip.

    Args:
        frames, fps, width, height: as it will be played; 0 where it cannot be.
        direct: whether the file itself is served.
        note: what a viewer should know, or empty.
        problem: why it cannot be played, or empty.
    """

    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    direct: bool = False
    note: str = ""
    problem: str = ""


class MediaShelf:
    """Finds out about clips, converts them, and makes posters; each once.

    Args:
        cache: folder for what it makes; may be deleted at any time.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._facts: dict[str, tuple[tuple[int, int], ClipFacts]] = {}
        self._lock = threading.Lock()
        self._converting = threading.Lock()  # one at a time: converting takes memory
        self._drawing = threading.Lock()  # so that stills need not wait for it

    def facts(self, take: str, path: Path) -> ClipFacts:
        """Facts of a take; never an error for a bad file, but its ``problem``."""
        try:
            stat = path.stat()
        except OSError as error:
            return ClipFacts(problem=f"the file is not there ({error.strerror})")
        stamp = (stat.st_mtime_ns, stat.st_size)
        with self._lock:
            known = self._facts.get(take)
        if known is None or known[0] != stamp:
            known = (stamp, _look(take, path))
            with self._lock:
                self._facts[take] = known
        return known[1]

    def playable(self, take: str, path: Path) -> tuple[Path, str]:
        """A file that browsers play and its media type; converts where needed.

        Raises:
            ClipError: it cannot be played; the message says why.
        """
        facts = self.facts(take, path)
        if facts.problem:
            raise ClipError(facts.problem)
        if facts.direct:
            return path, CONTAINERS[path.suffix.lower()]
        return self._made(f"{take}.mp4", lambda out: _convert(path, out), self._converting), "video/mp4"

    def spoiled(self, name: str, take: str, path: Path) -> Path:
        """The spoiled copy of a take, for attention checks: coarse blocks and frames out of order.

        Raises:
            ClipError: it cannot be played.
        """
        if problem := self.facts(take, path).problem:
            raise ClipError(problem)
        return self._made(f"{name}.mp4", lambda out: _spoil(path, out), self._converting)

    def poster(self, take: str, path: Path) -> Path:
        """A small still of an early frame, JPEG; does not decode the whole clip, so that browsing is quick.

        Raises:
            ClipError: no frame decodes, or the file is not that of the take.
        """
        out = self.cache / f"{take}.jpg"
        return out if out.exists() else self._made(out.name, lambda made: _still(take, path, made), self._drawing)

    def _made(self, name: str, make: Callable[[Path], None], lock: threading.Lock) -> Path:
        out = self.cache / name
        with lock:
            if not out.exists():
                make(out)
        return out


def _look(take: str, path: Path) -> ClipFacts:
    if digest(path) != take:
        return ClipFacts(problem=CHANGED)
    try:
        stream = FrameStream(path, max_frames=1)
        found = list(stream)
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            video = container.streams.best("video")
            codec, pixels, length = video.codec_context.name, video.codec_context.pix_fmt, video.frames
    except (ClipError, av.FFmpegError) as error:
        return ClipFacts(problem=str(error).replace(f"{path}: ", ""))
    if not found:
        return ClipFacts(problem="no frame decodes; render or copy it again")
    height, width, _ = found[0].shape
    direct = codec in PLAYABLE and pixels in PIXELS and path.suffix.lower() in CONTAINERS
    return _counted(path, ClipFacts(length, stream.stated_fps, width, height, direct))


def _counted(path: Path, facts: ClipFacts) -> ClipFacts:
    """With what only a whole decode tells: damage, frames, the true rate, what must be converted."""
    stream = FrameStream(path, None if facts.direct else MAX_FRAMES, (32, 32), eight_bits=True)
    try:
        for _picture in stream:
            pass
        fps = stream.fps()
    except ClipError as error:
        return replace(facts, problem=str(error).replace(f"{path}: ", ""))
    notes = [note[:1].upper() + note[1:] for note in stream.notes()]
    direct = facts.direct and not stream.damage()
    if not direct and not notes:
        notes.append("Converted so that a browser can play it")
    return replace(facts, frames=stream.count, fps=fps, direct=direct, note="; ".join(notes))


def _fitting(path: Path, side: int) -> tuple[int, int] | None:
    """Height and width that fit a square of ``side``, even; None where the clip is smaller."""
    first = next(iter(FrameStream(path, max_frames=1)), None)
    if first is None:
        raise ClipError("no frame decodes")
    height, width, _ = first.shape
    if max(height, width) <= side:
        return None
    scale = side / max(height, width)
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def _convert(path: Path, out: Path) -> None:
    from reelign.video_io import read_clip, write_clip  # torch takes seconds to load, and most folders need none of it

    clip = read_clip(path, MAX_FRAMES, _fitting(path, MAX_SIDE), strict=False)
    write_clip(out, clip.video, clip.fps)


def _spoil(path: Path, out: Path) -> None:
    import torch

    from reelign.video_io import read_clip, write_clip

    clip = read_clip(path, MAX_FRAMES, _fitting(path, MAX_SIDE), strict=False)
    height, width = clip.video.shape[2:]
    blocks = torch.nn.functional.interpolate(clip.video, (max(1, height // 24), max(1, width // 24)), mode="area")
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(0))
    write_clip(out, torch.nn.functional.interpolate(blocks[order], (height, width), mode="nearest"), clip.fps)


def _still(take: str, path: Path, out: Path) -> None:
    if not path.is_file() or digest(path) != take:
        raise ClipError(CHANGED if path.is_file() else "the file is not there")
    frames = list(FrameStream(path, POSTER_FRAME, _fitting(path, POSTER_SIDE), eight_bits=True))
    if not frames:
        raise ClipError("no frame decodes")
    part = out.with_name(f".{out.name}.part")  # one maker at a time, see ``_made``
    Image.fromarray(frames[-1]).save(part, "JPEG", quality=80)
    part.replace(out)
