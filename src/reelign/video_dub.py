"""Pictures into an MP4 one at a time, shown when those of another clip are, with the sound of that clip.

For clips that are changed picture by picture: neither pictures nor sound are held, so length costs disk alone. Sound
that MP4 and browsers know (AAC, MP3, Opus, FLAC) is copied bit for bit; other sound is encoded again as AAC.

Left out: further sound tracks, subtitles, chapters.

Run: ``with dubbed_clip(Path("b.mp4"), Path("a.mp4"), 64, 64) as clip: clip.add(picture, 0.0)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from reelign.errors import ClipError, ContractError, DataError, RunFolderError
from reelign.video_io import describe_video, replacing, to_yuv

COPIED = ("aac", "mp3", "mp3float", "opus", "flac")  # decoders' names of what goes into MP4 as it is
AAC_BITS = 192_000  # a second, of sound that is encoded again
COARSEST = Fraction(1, 24)  # of a clip's clock that is kept; others are counted in 1/90000 s


class DubbedClip:
    """An MP4 that is being written; made by ``dubbed_clip``.

    Attributes:
        frames: so far.
        sound: what becomes of the source's sound: ``copied``, ``encoded again as AAC (was …)``, or empty for none.
    """

    def __init__(self, out: Any, source: Any, height: int, width: int, crf: int) -> None:
        video = source.streams.best("video")
        self.frames, self.sound = 0, ""
        self._size, self._out = (height, width), out
        self._rate = Fraction(video.average_rate or video.guessed_rate or 25).limit_denominator(1001)
        self._clock = video.time_base if video.time_base and video.time_base <= COARSEST else Fraction(1, 90_000)
        self._zero_s = float(source.start_time or 0) / av.time_base
        self._last = -1
        self._convert = to_yuv(height, width)
        self._video = out.add_stream("libx264", rate=self._rate, options={"crf": str(crf), "preset": "medium"})
        self._video.codec_context.time_base = self._clock
        describe_video(self._video.codec_context, height, width)
        if video.sample_aspect_ratio:  # pixels that are not square stay as they are
            self._video.codec_context.sample_aspect_ratio = video.sample_aspect_ratio
        self._sound = self._add_sound(source)
        self._waiting = next(self._sound, None)

    def add(self, picture: NDArray[np.uint8], time_s: float | None = None) -> None:
        """The next picture [H,W,3]; odd sizes are padded to even ones with the edge pixels.

        Args:
            picture: uint8, always of one size.
            time_s: when the source shows it; None goes by the source's rate.

        Raises:
            ContractError: the picture has another size.
        """
        if picture.shape != (*self._size, 3):
            raise ContractError(f"pictures of this clip are {(*self._size, 3)}; got {picture.shape}")
        seconds = self.frames / float(self._rate) if time_s is None else time_s - self._zero_s
        self._last = max(self._last + 1, round(seconds / float(self._clock)))  # players need times that rise
        frame = self._convert(picture)
        frame.pts, frame.time_base = self._last, self._clock
        self._out.mux(self._video.encode(frame))
        self.frames += 1
        self._mux_sound(seconds)

    def finish(self) -> None:
        """Write what the encoder holds, and the rest of the sound."""
        self._out.mux(self._video.encode())
        self._mux_sound(float("inf"))

    def _mux_sound(self, until_s: float) -> None:
        """Sound goes in beside the pictures it belongs to, so that neither waits in memory for the other."""
        while self._waiting is not None and self._waiting[0] <= until_s:
            self._out.mux(self._waiting[1])
            self._waiting = next(self._sound, None)

    def _add_sound(self, source: Any) -> Iterator[tuple[float, Any]]:
        """Packets of the sound with their time in seconds."""
        found = source.streams.best("audio")
        if found is None or found.codec_context is None:
            return iter(())
        name = found.codec_context.name
        if name in COPIED:
            self.sound = "copied"
            return self._copy(source, found, self._out.add_stream_from_template(found))
        self.sound = f"encoded again as AAC (was {name})"
        target = self._out.add_stream("aac", rate=found.codec_context.sample_rate)
        target.codec_context.bit_rate = AAC_BITS
        target.codec_context.layout = "mono" if found.codec_context.channels == 1 else "stereo"
        return self._encode(source, found, target)

    def _copy(self, source: Any, stream: Any, target: Any) -> Iterator[tuple[float, Any]]:
        for packet in source.demux(stream):
            if packet.dts is None or packet.pts is None:
                continue
            zero = round(self._zero_s / float(packet.time_base))
            packet.pts, packet.dts = packet.pts - zero, packet.dts - zero
            seconds = float(packet.pts * packet.time_base)
            packet.stream = target
            yield seconds, packet

    def _encode(self, source: Any, stream: Any, target: Any) -> Iterator[tuple[float, Any]]:
        context = target.codec_context
        resampler = av.AudioResampler("fltp", context.layout, context.sample_rate, frame_size=1024)
        samples = -1
        for decoded in _then_none(source.decode(stream)):
            if samples < 0:  # sound that begins after the pictures still does
                begin_s = 0.0 if decoded is None or decoded.time is None else decoded.time - self._zero_s
                samples = max(0, round(begin_s * context.sample_rate))
            for frame in resampler.resample(decoded):
                frame.pts, frame.time_base = samples, Fraction(1, context.sample_rate)
                samples += frame.samples
                for packet in target.encode(frame):
                    yield samples / context.sample_rate, packet
        for packet in target.encode(None):
            yield samples / context.sample_rate, packet


def _then_none(frames: Iterator[Any]) -> Iterator[Any]:
    """The frames, then the None that drains a resampler."""
    yield from frames
    yield None


@contextmanager
def dubbed_clip(path: Path, source: Path, height: int, width: int, crf: int = 18) -> Iterator[DubbedClip]:
    """Write ``path``, whole or not at all, with the times and the sound of ``source``.

    Args:
        path: ends in ``.mp4``; its folder is made.
        source: a file with pictures, and sound or none.
        height, width: of the pictures.
        crf: x264's quality, 0 to 51.

    Raises:
        DataError: ``path`` does not end in ``.mp4``.
        ClipError: the source's sound cannot be read.
        RunFolderError: the folder cannot be written, or the encoder refuses.
    """
    if path.suffix.lower() != ".mp4":
        raise DataError(f"a clip is written as .mp4; got {path.name}")
    with ExitStack() as stack:
        part = stack.enter_context(replacing(path))
        try:
            given = stack.enter_context(av.open(str(source.absolute()), metadata_errors="replace"))
        except (OSError, av.FFmpegError) as error:
            raise ClipError(f"{source}: cannot be opened for its sound ({error.strerror})") from error
        try:
            with av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as out:
                clip = DubbedClip(out, given, height, width, crf)
                yield clip
                clip.finish()
        except av.FFmpegError as error:
            raise RunFolderError(f"cannot write {path}: {error.strerror}; check the folder and the sound") from error
