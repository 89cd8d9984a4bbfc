"""Clips in and out of files: the only place of the package that changes range, layout or frame rate.

Reading takes whatever PyAV (FFmpeg) decodes and gives float32 [T,3,H,W] in [0,1], upright, in presentation order; a
file that cannot be read whole is a ``ClipError`` with a one-line reason, never a shorter clip. Writing gives H.264 MP4
that every browser plays, or a looping GIF; both appear under their name only once they are complete.

Colour follows FFmpeg: the matrix and range that the stream states, BT.601 where it states none. 8-bit video is read at
8 bits, deeper video at 16. Left out: sound, alpha, tone mapping of HDR, deinterlacing, pixels that are not square.

Run: ``clip = read_clip("a.mp4")``, ``write_clip("b.mp4", clip.video, clip.fps)``.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from reelign.errors import ClipError, ContractError, DataError, RunFolderError

CLIP_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif", ".m4v")
GIF_MAX_FPS = 50  # browsers show shorter delays than 20 ms at 10 frames a second
BT709 = 1  # in the colour fields of H.264 (ITU-T H.273)
LIMITED_RANGE = 1  # luma 16 to 235, what players expect
# Without these flags swscale rounds down: pictures come out 1.2 of 255 levels too dark on average.
EXACT = 0x2 | 0x40000 | 0x2000  # SWS_BILINEAR, ACCURATE_RND, FULL_CHR_H_INT; PyAV 17 has no names for the last two
VARIABLE = 1.6  # longest gap over shortest from which a rate counts as variable; rounding a GIF's 40 fps gives 1.5

Picture = NDArray[np.uint8] | NDArray[np.uint16]
Size = tuple[int, int] | None  # height and width


@dataclass(frozen=True)
class Clip:
    """One clip as it was read.

    Args:
        video: float32 [T,3,H,W] in [0,1], RGB, upright.
        fps: frames per second; the average where the rate varies.
        notes: what a reader should know, one sentence each; empty for an ordinary clip.
    """

    video: Tensor
    fps: float
    notes: tuple[str, ...] = ()


@dataclass
class _Decoded:
    """What came out of the decoder: pictures [H,W,3], times and the last duration in seconds, and what went wrong."""

    pictures: list[Picture] = field(default_factory=list)
    times_s: list[float | None] = field(default_factory=list)
    last_duration_s: float = 0.0
    stated_fps: float = 0.0
    announced: int = 0
    faults: list[str] = field(default_factory=list)
    capped: bool = False

    def damage(self) -> str:
        """What is wrong, in words, or an empty string."""
        total = f" of {self.announced} announced" if self.announced and not self.capped else ""
        return f"{len(self.pictures)}{total} frames decode ({self.faults[0]})" if self.faults else ""

    def gaps_s(self) -> list[float]:
        """Seconds between frames; empty where a time is missing."""
        return [b - a for a, b in itertools.pairwise(self.times_s) if a is not None and b is not None]


def find_clips(folder: str | Path) -> list[Path]:
    """Every clip under ``folder``, at any depth, sorted; told by extension (``CLIP_SUFFIXES``), hidden ones left out.

    Raises:
        DataError: ``folder`` is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"clips are looked for in a folder; {folder} is {'a file' if folder.exists() else 'not there'}")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in CLIP_SUFFIXES and path.is_file())
    # macOS leaves "._clip.mp4" beside a clip on foreign disks: not a video, and not the user's doing.
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def read_clip(path: str | Path, max_frames: int | None = None, size: Size = None, *, strict: bool = True) -> Clip:
    """Read one clip of any codec, pixel format, size and frame rate that FFmpeg decodes.

    Memory: about 15·T·H·W bytes at the peak, of which 12 stay.

    Args:
        path: the file.
        max_frames: read at most this many frames, from the start; a note says so where the clip is longer.
        size: height and width of the upright picture to resize to (bilinear, anti-aliased); None keeps the clip's own.
        strict: whether any damage is an error; if not, what decodes comes back, with a note.

    Returns:
        The clip. ``fps`` is the container's rate, or the average over timestamps where those say otherwise.

    Raises:
        ClipError: missing, empty, not a video, truncated or damaged, or no frame decodes; the message says which.
    """
    path = Path(path)
    if min(1 if max_frames is None else max_frames, *(size or (1, 1))) < 1:
        raise DataError(f"at least one frame and one pixel are read; got max_frames={max_frames}, size={size}")
    decoded = _decode(path, max_frames, size)
    if not decoded.capped and (missing := _cut_short(path)):
        decoded.faults.insert(0, missing)
    damage = decoded.damage()
    if not decoded.pictures:
        raise ClipError(f"{path}: no frame decodes{damage and f': {damage}'}; render or copy it again")
    if damage and strict:
        raise ClipError(f"{path}: damaged: {damage}; render or copy it again, or allow damaged clips (strict=False)")
    fps = _frame_rate(path, decoded)
    return Clip(_to_tensor(decoded.pictures), fps, _notes(decoded, fps))


def write_clip(path: str | Path, video: Tensor, fps: float, crf: int = 18) -> None:
    """Write H.264 in 4:2:0 as MP4 that any browser plays, index first; the file appears only when complete.

    Args:
        path: where to; ends in ``.mp4``; its folder is made.
        video: [T,3,H,W] in [0,1], any float type and device. Odd sizes are padded to even ones with the edge pixels.
        fps: frames per second, above 0.
        crf: x264's quality, 0 (lossless luma) to 51; 18 is hard to tell from the original.

    Raises:
        ContractError: ``video`` or ``fps`` is not as above.
        DataError: ``path`` does not end in ``.mp4``.
        RunFolderError: the folder cannot be written, or the encoder refuses.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise DataError(f"a clip is written as .mp4; got {path.name}")
    _check_video(video, fps)
    with replacing(path) as part:
        try:
            _encode(part, video, Fraction(fps).limit_denominator(1001), crf)
        except av.FFmpegError as error:
            raise RunFolderError(f"cannot write {path}: {error.strerror}; check the folder and H×W") from error


def write_gif(path: str | Path, video: Tensor, fps: float) -> None:
    """Write a GIF that loops for ever, with one palette of 256 colours for all frames, so that colours do not flicker.

    A GIF counts time in hundredths of a second; delays are rounded so that the whole lasts T/fps. Equal frames in a row
    become one longer frame.

    Args:
        path: where to; its folder is made.
        video: [T,3,H,W] in [0,1].
        fps: frames per second, above 0, at most 50.

    Raises:
        ContractError: ``video`` or ``fps`` is not as above.
        DataError: ``fps`` is above 50, which browsers play at 10.
        RunFolderError: the folder cannot be written.
    """
    path = Path(path)
    _check_video(video, fps)
    if fps > GIF_MAX_FPS:
        raise DataError(f"a GIF plays at most {GIF_MAX_FPS} frames a second; got {fps:g}: pass every second frame")
    sample = torch.linspace(0, len(video) - 1, min(8, len(video))).round().long()
    montage = np.concatenate(list(_to_pictures(video[sample])))
    palette = Image.fromarray(montage).quantize(256, method=Image.Quantize.MEDIANCUT)
    # No dithering: its noise pattern would crawl over parts of the picture that stand still.
    frames = [Image.fromarray(p).quantize(palette=palette, dither=Image.Dither.NONE) for p in _to_pictures(video)]
    ends = [round((i + 1) * 100 / fps) for i in range(len(frames))]
    delays_ms = [10 * (end - start) for start, end in zip([0, *ends], ends, strict=False)]
    with replacing(path) as part:
        frames[0].save(part, "GIF", save_all=True, append_images=frames[1:], duration=delays_ms, loop=0)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; renamed to ``path`` at the end, removed if anything fails.

    Raises:
        RunFolderError: the folder cannot be made or written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror}; choose a folder you may write to") from error
    finally:
        with suppress(OSError):  # gone already where all went well
            part.unlink()


def _decode(path: Path, max_frames: int | None, size: Size) -> _Decoded:
    decoded = _Decoded()
    with _open(path) as container:
        stream = container.streams.best("video")
        # Decoding without a codec context kills the process before PyAV 18.1 (PyAV issue 2344).
        if stream is None or stream.codec_context is None:
            reason = _cut_short(path) or "only sound or data, or an unknown codec"
            raise ClipError(f"{path}: holds no pictures that decode ({reason}); convert it or take it out")
        decoded.stated_fps = float(stream.average_rate or stream.guessed_rate or 0)
        decoded.announced = stream.frames
        for frame, picture in _frames(container, stream, size, decoded.faults):
            if len(decoded.pictures) == max_frames:
                decoded.capped = True
                break
            if decoded.pictures and picture.shape != decoded.pictures[0].shape:
                raise ClipError(f"{path}: the picture changes size after {len(decoded.pictures)} frames; re-encode it")
            decoded.pictures.append(picture)
            decoded.times_s.append(frame.time)
            decoded.last_duration_s = float((frame.duration or 0) * (frame.time_base or 0))
    return decoded


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        if path.stat().st_size == 0:
            raise ClipError(f"{path}: empty file (0 bytes); render or copy it again")
        # An absolute path cannot be taken for a protocol ("pipe:0.mp4"); tags need not be UTF-8.
        container = av.open(str(path.absolute()), metadata_errors="replace")
    except (OSError, av.FFmpegError) as error:
        if not isinstance(error, OSError) and (missing := _cut_short(path)):
            raise ClipError(f"{path}: truncated: {missing}; render or copy it again") from error
        raise ClipError(f"{path}: cannot be opened as a video ({error.strerror}); check or convert it") from error
    with container:
        yield container


def _frames(container: Any, stream: Any, size: Size, faults: list[str]) -> Iterator[tuple[Any, Picture]]:
    """Frames in presentation order; decoding goes on after a damaged packet, and ``faults`` grows by what was wrong."""
    reformatter = VideoReformatter()
    try:
        for packet in container.demux(stream):
            try:
                frames = [(frame, _picture(frame, reformatter, size)) for frame in packet.decode()]
            except av.FFmpegError as error:
                faults.append(error.strerror)
                continue
            # H.264 paints over lost parts and goes on; such a picture is made up, so it counts as damage.
            faults.extend("a frame is patched over lost data" for frame, _ in frames if frame.is_corrupt)
            yield from frames
    except av.FFmpegError as error:
        faults.append(error.strerror)


def _picture(frame: Any, reformatter: Any, size: Size) -> Picture:
    """RGB [H,W,3], turned upright by the display matrix; 16 bits where the source has more than 8."""
    across, down, turned = _turn(frame.side_data.get("DISPLAYMATRIX"))
    height, width = (frame.height, frame.width) if size is None else (size[::-1] if turned else size)
    pixels = "rgb48le" if max(part.bits for part in frame.format.components) > 8 else "rgb24"
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


def _frame_rate(path: Path, decoded: _Decoded) -> float:
    """The rate the container states, or the average over timestamps where that differs by 1 % or more."""
    frames, span_s = len(decoded.pictures) - 1, sum(decoded.gaps_s())
    if decoded.last_duration_s:
        frames, span_s = frames + 1, span_s + decoded.last_duration_s
    measured = frames / span_s if span_s > 0 and None not in decoded.times_s else 0.0
    stated = decoded.stated_fps
    # Lost frames stretch the average, so a damaged clip keeps its stated rate.
    if stated and (not measured or decoded.faults or abs(measured / stated - 1) < 0.01):
        return stated
    if not measured:
        raise ClipError(f"{path}: neither the container nor the timestamps give a frame rate; re-encode it")
    return measured


def _notes(decoded: _Decoded, fps: float) -> tuple[str, ...]:
    count, gaps = len(decoded.pictures), decoded.gaps_s()
    total = f" of {decoded.announced}" if decoded.announced > count else ""
    notes = [f"only the first {count}{total} frames were read"] if decoded.capped else []
    if decoded.faults:
        notes.append(f"damaged: {decoded.damage()}")
    elif gaps and max(gaps) > VARIABLE * min(gaps):
        notes.append(f"variable frame rate: {fps:.4g} a second on average")
    return tuple(notes)


def _to_tensor(pictures: list[Picture]) -> Tensor:
    height, width, _ = pictures[0].shape
    video = torch.empty(len(pictures), 3, height, width)
    for row, picture in zip(video, pictures, strict=True):
        levels = torch.from_numpy(picture.astype(np.float32))
        row.copy_(levels.permute(2, 0, 1)).div_(float(np.iinfo(picture.dtype).max))
    return video


def _cut_short(path: Path) -> str:
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


def _check_video(video: Tensor, fps: float) -> None:
    if video.ndim != 4 or video.shape[1] != 3 or not video.numel():
        raise ContractError(f"a clip to write is [T,3,H,W] with at least one pixel; got shape {tuple(video.shape)}")
    low, high = (bound.item() for bound in torch.aminmax(video.detach()))
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ContractError(f"video values lie in [0,1]; got [{low:.4g}, {high:.4g}] (NaN counts as outside)")
    if not (math.isfinite(fps) and fps > 0):
        raise ContractError(f"frames per second are above 0; got {fps}")


def _to_pictures(video: Tensor) -> Iterator[NDArray[np.uint8]]:
    """One uint8 picture [H,W,3] at a time, so that a long clip is never held twice."""
    for frame in video.detach():
        levels = frame.float().clamp(0, 1).mul(255).round().to(torch.uint8)
        yield levels.permute(1, 2, 0).contiguous().cpu().numpy()


def _encode(path: Path, video: Tensor, rate: Fraction, crf: int) -> None:
    odd_rows, odd_columns = video.shape[2] % 2, video.shape[3] % 2
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "medium"})
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = video.shape[2] + odd_rows, video.shape[3] + odd_columns
        context = stream.codec_context
        # Said outright, because players guess by picture size where the file is silent.
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        reformatter = VideoReformatter()
        colours: dict[str, Any] = {"dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG}
        for picture in _to_pictures(video):
            # 4:2:0 halves the chroma, so both sides must be even.
            even = np.pad(picture, ((0, odd_rows), (0, odd_columns), (0, 0)), mode="edge")
            rgb = av.VideoFrame.from_ndarray(even, "rgb24")
            container.mux(stream.encode(reformatter.reformat(rgb, format="yuv420p", interpolation=EXACT, **colours)))
        container.mux(stream.encode())
