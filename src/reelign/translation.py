"""Translating clips of any length: ``reelign translate``, without the command line.

A clip goes through a few frames at a time: decoded, translated with the state of the frames before, encoded. Nothing
grows with its length. The result has the clip's size (odd sides get one more pixel), the times of its frames, and its
sound. A folder gives one file a clip and ``translations.csv`` with one row each; one that cannot be read is a row with
its error. ``metadata.csv`` names the files that are there, so ``reelign score`` and the like take the folder.

Left out: several clips at once; other containers than MP4.

Run: ``reelign translate CLIP_OR_FOLDER --model RUN --to y --out OUT``.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reelign.contracts import Translator
from reelign.datasets.translation import Side
from reelign.datasets.video_folder import captions, write_metadata
from reelign.errors import ConfigError, DataError, ReelignError, RunFolderError
from reelign.video_decode import FrameStream
from reelign.video_dub import dubbed_clip
from reelign.video_io import CLIP_SUFFIXES, find_clips, replacing, to_pictures, to_video

Picture = NDArray[np.uint8]
TABLE = "translations.csv"


@dataclass(frozen=True)
class Translated:
    """What became of one clip.

    Args:
        source: the clip, relative to its folder.
        file: the translation, relative to the output folder; empty where there is none.
        frames, width, height: of the translation.
        fps: frames per second.
        sound: ``copied``, ``encoded again …``, or empty where the clip has none.
        notes: what a reader should know.
        error: why there is no translation.
    """

    source: str
    file: str = ""
    frames: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    sound: str = ""
    notes: str = ""
    error: str = ""


@dataclass(frozen=True)
class TranslationJob:
    """Clips and where their translations go, checked before the first.

    Args:
        generator: what translates.
        to: ``x`` or ``y``.
        files: source to output.
        names: source to its name in tables.
        out: of a folder, where tables go; None for a single file.
        short_side: pixels that clips are shrunk to; None keeps their size.
        chunk: frames at a time.
    """

    generator: Translator
    to: Side
    files: dict[Path, Path]
    names: dict[Path, str]
    out: Path | None
    short_side: int | None = None
    chunk: int = 8

    @staticmethod
    def prepare(
        generator: Translator,
        clips: Path,
        to: Side,
        out: Path,
        short_side: int | None = None,
        chunk: int = 8,
    ) -> TranslationJob:
        """Find the clips and name their outputs.

        Args:
            clips: a file, or a folder whose clips at any depth are taken.
            out: for a file, an ``.mp4`` or a folder; for a folder, a new or empty one.

        Raises:
            DataError: there is no clip. RunFolderError: the output is there already. ConfigError: a wrong number.
        """
        if chunk < 1 or (short_side is not None and short_side < 16):
            raise ConfigError(
                f"chunks are 1 frame or more, the short side 16 pixels or more; got {chunk}, {short_side}"
            )
        if clips.is_dir():
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise RunFolderError(f"translations go to a new or empty folder; {out} is neither")
            found = find_clips(clips)
            if not found:
                raise DataError(f"a folder to translate holds clips ({', '.join(CLIP_SUFFIXES)}); {clips} has none")
            names = {path: path.relative_to(clips).as_posix() for path in found}
            files = dict(zip(found, (out / name for name in _outputs(names.values())), strict=True))
            return TranslationJob(generator, to, files, names, out, short_side, chunk)
        if not clips.is_file():
            raise DataError(f"a clip or a folder of clips is translated; there is no {clips}")
        target = out if out.suffix.lower() == ".mp4" else out / f"{clips.stem}.mp4"
        if target.exists():
            raise RunFolderError(f"{target} is there already: move it or choose another output")
        return TranslationJob(generator, to, {clips: target}, {clips: clips.name}, None, short_side, chunk)

    def run(self, progress: Callable[[str, int, int], None]) -> Iterator[Translated]:
        """Translate each clip; of a folder, write the tables at the end.

        Args:
            progress: called with a clip's name, its frames so far and, where its container says, in all (else 0).

        Raises:
            ReelignError: a single file cannot be translated; in a folder this is a row.
        """
        rows: list[Translated] = []
        for source, target in self.files.items():
            name = self.names[source]
            try:
                row = self._translate(source, target, partial(progress, name))
            except ReelignError as error:
                if self.out is None:
                    raise
                row = Translated(name, error=" ".join(str(error).split()).removeprefix(f"{source}: "))
            rows.append(row)
            yield row
        if self.out is not None:
            self._write_tables(rows)

    def _translate(self, source: Path, target: Path, progress: Callable[[int, int], None]) -> Translated:
        size = None if self.short_side is None else _shrunk(source, self.short_side)
        stream = FrameStream(source, size=size, eight_bits=True)
        chunks = _chunks(stream, self.chunk)
        first = next(chunks, None)
        if first is None:
            stream.check()
        assert first is not None
        height, width = first[0][0].shape[:2]
        state: Any = None
        with dubbed_clip(target, source, height, width) as clip:
            for pictures, times in _with_first(first, chunks):
                translated, state = self._step(pictures, state)
                for picture, time_s in zip(translated, times, strict=True):
                    clip.add(picture, time_s)
                progress(clip.frames, stream.announced)
            stream.check()
        notes = list(stream.notes())
        if size is not None:
            notes.append(f"shrunk to {width}x{height}")
        if height % 2 or width % 2:
            notes.append(f"padded from {width}x{height} with its edge, because H.264 takes even sides")
        name = target.name if self.out is None else target.relative_to(self.out).as_posix()
        even = (width + width % 2, height + height % 2)
        return Translated(
            self.names[source], name, clip.frames, *even, round(stream.fps(), 4), clip.sound, "; ".join(notes)
        )

    @torch.no_grad()
    def _step(self, pictures: list[Picture], state: Any) -> tuple[list[Picture], Any]:
        video, state = self.generator.translate(to_video(pictures)[None], self.to, state)
        return to_pictures(video[0]), state

    def _write_tables(self, rows: list[Translated]) -> None:
        assert self.out is not None
        with replacing(self.out / TABLE) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Translated)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
        done = [row for row in rows if row.file]
        known = self._captions()
        if done:
            text = {row.source: known.get(row.source, f"{row.source} as {self.to}") for row in done}
            write_metadata(
                self.out,
                [
                    {"file_name": row.file, "text": text[row.source], "source": row.source, "to": self.to}
                    for row in done
                ],
            )

    def _captions(self) -> dict[str, str]:
        """Captions of the sources, where their folder has them."""
        source, name = next(iter(self.names.items()))
        folder = source.parents[len(Path(name).parts) - 1]
        return captions(folder)


def _outputs(names: Iterable[str]) -> list[str]:
    """An output name for each clip: its own with ``.mp4``, after its whole name where two would be one."""
    taken: set[str] = set()
    outputs = []
    for name in names:
        short = Path(name).with_suffix(".mp4").as_posix()
        chosen = short if short not in taken else f"{name}.mp4"
        taken.add(chosen)
        outputs.append(chosen)
    return outputs


def _chunks(stream: FrameStream, size: int) -> Iterator[tuple[list[Picture], list[float | None]]]:
    """Frames with their times, so many at a time."""
    pictures: list[Picture] = []
    times: list[float | None] = []
    for picture in stream:
        pictures.append(picture.astype(np.uint8, copy=False))
        times.append(stream.time_s())
        if len(pictures) == size:
            yield pictures, times
            pictures, times = [], []
    if pictures:
        yield pictures, times


def _with_first(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _shrunk(source: Path, short_side: int) -> tuple[int, int] | None:
    """Height and width with the short side as asked, even; None where the clip is not larger."""
    stream = FrameStream(source, 1, eight_bits=True)
    shape = next((picture.shape for picture in stream), None)
    stream.check()
    assert shape is not None
    if min(shape[:2]) <= short_side:
        return None
    height, width = (2 * max(1, round(side * short_side / min(shape[:2]) / 2)) for side in shape[:2])
    return height, width
