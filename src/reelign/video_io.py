"""Clips in and out of files: the only place of the package that changes range, layout or frame rate.

Reading takes whatever PyAV (FFmpeg) decodes and gives float32 [T,3,H,W] in [0,1], upright, in presentation order; a
file that cannot be read whole is a ``ClipError`` with a one-line reason, never a shorter clip. Writing gives H.264 MP4
that every browser plays, or a looping GIF; both appear under their name only once they are complete.

Colour follows FFmpeg: the matrix and range that the stream states, BT.601 where it states none. 8-bit video is read at
8 bits, deeper video at 16. Left out: sound, alpha, tone mapping of HDR, deinterlacing, pixels that are not square.

Run: ``clip = read_clip("a.mp4")``, ``write_clip("b.mp4", clip.video, clip.fps)``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from reelign.errors import ContractError, DataError, RunFolderError
from reelign.video_decode import EXACT, FrameStream, Picture, Size

CLIP_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif", ".m4v")
GIF_MAX_FPS = 50  # browsers show shorter delays than 20 ms at 10 frames a second
BT709 = 1  # in the colour fields of H.264 (ITU-T H.273)
# Takes are known by their bytes; with its macroblock tree x264 gives others each time for small noisy pictures.
REPEATABLE = "mbtree=0"
LIMITED_RANGE = 1  # luma 16 to 235, what players expect


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
    stream = FrameStream(path, max_frames, size)
    pictures = list(stream)
    stream.check(strict=strict)
    return Clip(to_video(pictures), stream.fps(), stream.notes())


def to_video(pictures: Sequence[Picture]) -> Tensor:
    """Pictures [H,W,3] of 8 or 16 bits to float32 [T,3,H,W] in [0,1]; the peak is the result and one frame."""
    height, width, _ = pictures[0].shape
    video = torch.empty(len(pictures), 3, height, width)
    for row, picture in zip(video, pictures, strict=True):
        levels = torch.from_numpy(picture.astype(np.float32))
        row.copy_(levels.permute(2, 0, 1)).div_(float(np.iinfo(picture.dtype).max))
    return video


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


def to_pictures(video: Tensor) -> list[NDArray[np.uint8]]:
    """Frames [T,3,H,W] in [0,1] as 8-bit pictures [H,W,3]."""
    return list(_to_pictures(video))


class GrowingClip:
    """A clip that is encoded as its frames come, so that its length costs disk, not memory; ``save`` at any time.

    H.264 without B-frames or look-ahead: each frame is in the file when ``add`` comes back, and ``save`` only packs.

    Args:
        path: of the encoded frames, as a bare H.264 stream; replaced where it exists.
        height, width: of the pictures.
        fps: frames per second.
        crf: x264's quality.
    """

    def __init__(self, path: Path, height: int, width: int, fps: float, crf: int = 18) -> None:
        self.path, self.frames = path, 0
        self._rate, self._size = Fraction(fps).limit_denominator(1001), (height, width)
        self._to_yuv = to_yuv(height, width)
        self._codec: Any = av.CodecContext.create("libx264", "w")
        self._codec.options = {"crf": str(crf), "preset": "veryfast", "tune": "zerolatency"}
        self._codec.framerate, self._codec.time_base = self._rate, 1 / self._rate
        describe_video(self._codec, height, width)
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise RunFolderError(f"cannot write {path}: {error.strerror}; choose a folder you may write to") from error

    def add(self, picture: NDArray[np.uint8]) -> None:
        """The next frame [H,W,3].

        Raises:
            ContractError: the picture has another size. RunFolderError: the disk is full.
        """
        if picture.shape != (*self._size, 3):
            raise ContractError(f"pictures of this clip are {(*self._size, 3)}; got {picture.shape}")
        frame = self._to_yuv(picture)
        frame.pts, frame.time_base = self.frames, 1 / self._rate
        self._write(self._codec.encode(frame))
        self.frames += 1

    def save(self, path: Path, frames: int | None = None) -> None:
        """Write the first ``frames``, or all so far, as MP4, index first, without encoding them again.

        From any thread, while frames are added.

        Raises:
            DataError: there is no frame yet. RunFolderError: the folder cannot be written.
        """
        frames = frames or self.frames
        if not frames:
            raise DataError("a clip to save has at least one frame; this one has none yet")
        with (
            replacing(path) as part,
            av.open(str(self.path), format="h264") as source,
            av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as out,
        ):
            stream = out.add_stream_from_template(source.streams.video[0])
            stream.time_base = 1 / self._rate
            packets = (packet for packet in source.demux(video=0) if packet.size)
            for index, packet in enumerate(islice(packets, frames)):
                packet.time_base, packet.pts, packet.dts = 1 / self._rate, index, index
                packet.duration, packet.stream = 1, stream
                out.mux(packet)

    def close(self) -> None:
        """No more frames will come; ``save`` goes on working while the file is there."""
        if self._codec is not None:
            self._write(self._codec.encode(None))
            self._file.close()
        self._codec = None  # the encoder's pictures go

    def _write(self, packets: list[Any]) -> None:
        try:
            for packet in packets:
                self._file.write(bytes(packet))
            self._file.flush()
        except OSError as error:
            raise RunFolderError(f"cannot write {self.path}: {error.strerror}; free some space") from error


def _encode(path: Path, video: Tensor, rate: Fraction, crf: int) -> None:
    height, width = video.shape[2:]
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        options = {"crf": str(crf), "preset": "medium", "x264-params": REPEATABLE}
        stream = container.add_stream("libx264", rate=rate, options=options)
        describe_video(stream.codec_context, height, width)
        convert = to_yuv(height, width)
        for picture in _to_pictures(video):
            container.mux(stream.encode(convert(picture)))
        container.mux(stream.encode())


def describe_video(context: Any, height: int, width: int) -> None:
    """Size and colours, said outright, because players guess by picture size where the file is silent."""
    context.pix_fmt = "yuv420p"
    context.height, context.width = height + height % 2, width + width % 2
    context.colorspace = context.color_primaries = context.color_trc = BT709
    context.color_range = LIMITED_RANGE


def to_yuv(height: int, width: int) -> Callable[[NDArray[np.uint8]], Any]:
    """From RGB pictures to frames of an encoder; 4:2:0 halves the chroma, so both sides must be even."""
    reformatter = VideoReformatter()
    colours: dict[str, Any] = {"dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG}

    def convert(picture: NDArray[np.uint8]) -> Any:
        even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        rgb = av.VideoFrame.from_ndarray(even, "rgb24")
        return reformatter.reformat(rgb, format="yuv420p", interpolation=EXACT, **colours)

    return convert
