"""The two domains of an unpaired translation, X and Y: drawn scenes by day and night, or folders of clips.

A source is ``shapes:day`` or ``shapes:night``, with ``:bouncing`` or ``:rotating`` for one motion only, or a folder.
``Domains.batch`` gives unpaired clips of one domain. ``Domains.pair`` gives clips whose translation is known, for
evaluation only: of drawn scenes, or of a folder ``pairs`` with ``x/`` and ``y/`` that hold files of the same names.

Left out: pairs to train on; captions.

Run: ``reelign data translation OUT``, or ``domains: {x: "shapes:day", y: "shapes:night"}`` in a run file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from reelign.datasets.day_night import LIGHTS, MOTIONS, DayNight, Light
from reelign.datasets.unpaired_folder import ClipShelf, Window, draw, read_small, usable_clips
from reelign.errors import ConfigError, DataError
from reelign.video_io import find_clips

Side = Literal["x", "y"]
SIDES: tuple[Side, ...] = ("x", "y")
SHAPES = "shapes"


class DomainOptions(BaseModel):
    """Two domains and what is cut out of them.

    Args:
        x, y: sources: ``shapes:day``, ``shapes:night:rotating``, …, or folders of clips.
        pairs: a folder with ``x/`` and ``y/`` whose files of one name belong together, to judge translations by.
        held_out: share of each folder's clips that is only judged on; 0 judges on those trained on.
        size: height and width of clips in pixels; folders are cropped to it.
        frames: of a clip.
        fps: frames per second; faster clips are thinned.
        seed: of which clips are held out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    x: str = "shapes:day"
    y: str = "shapes:night"
    pairs: str | None = None
    held_out: float = Field(0.2, ge=0, lt=1)
    size: int = Field(64, ge=16)
    frames: int = Field(16, ge=2)
    fps: float = Field(8.0, gt=0)
    seed: int = 0


@dataclass
class Domains:
    """Clips of two domains, at random; the generator of random numbers is all the state there is.

    Args:
        options: where they come from. ``size``, ``frames`` and ``fps`` are those of every clip.
    """

    options: DomainOptions = field(default_factory=DomainOptions)

    def __post_init__(self) -> None:
        chosen = self.options
        self.size, self.frames, self.fps = chosen.size, chosen.frames, chosen.fps
        self._window = Window(chosen.frames, chosen.size, chosen.fps)
        self._shelf = ClipShelf(self._window)
        self._scenes: dict[Side, tuple[Light, DayNight]] = {}
        self._files: dict[Side, tuple[list[Path], list[Path]]] = {}
        for side, source in zip(SIDES, (chosen.x, chosen.y), strict=True):
            if is_drawn(source):
                self._scenes[side] = self._scene(source)
            else:
                self._files[side] = _split(usable_clips(source, self._window), source, chosen)
        self._pairs = [] if chosen.pairs is None else _paired_files(Path(chosen.pairs).expanduser())

    def batch(self, domain: Side, count: int, generator: torch.Generator, held_out: bool = False) -> Tensor:
        """Unpaired clips: float32 [count,T,3,H,W] in [0,1].

        Args:
            domain: ``x`` or ``y``.
            count: how many.
            generator: of every draw.
            held_out: of folders, from the clips that are never trained on; drawn scenes are always new.

        Raises:
            DataError: no clip of the folder can be read.
        """
        if domain in self._scenes:
            light, scenes = self._scenes[domain]
            return scenes.batch(light, count, generator)
        return draw(self._files[domain][held_out], self._shelf, count, generator)

    @property
    def has_pairs(self) -> bool:
        """Whether the translation of some clips is known."""
        return self.pairs_at_most != 0

    @property
    def pairs_at_most(self) -> int | None:
        """How many pairs are known; None where they are drawn, without end."""
        drawn = len(self._scenes) == len(SIDES) and self._scenes["x"][1] == self._scenes["y"][1]
        return None if drawn and not self._pairs else len(self._pairs)

    def pair(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clips of X and what they are in Y, without noise where drawn: twice float32 [count,T,3,H,W] in [0,1].

        A folder of pairs gives its pairs in order, from the beginning of each clip, cut at the centre.

        Raises:
            DataError: no pairing is known, or the folder has fewer pairs.
        """
        if not self.has_pairs:
            raise DataError("no pairing of these domains is known: give a folder 'pairs', or draw both with one motion")
        if not self._pairs:
            both = dict(zip(LIGHTS, self._scenes["x"][1].pair(count, generator), strict=True))
            return both[self._scenes["x"][0]], both[self._scenes["y"][0]]
        if count > len(self._pairs):
            raise DataError(f"{count} pairs are asked for; {self.options.pairs} holds {len(self._pairs)}")
        x, y = (
            torch.stack([self._beginning(files[rank]) for files in self._pairs[:count]]) for rank in range(len(SIDES))
        )
        return x, y

    def filmed(self, side: Side, clips: Tensor, generator: torch.Generator) -> Tensor:
        """Clips of ``pair`` as a camera sees them: with grain where they are drawn, and else as they are."""
        if self._pairs:
            return clips
        light, scenes = self._scenes[side]
        return scenes.filmed(light, clips, generator)

    def judged_on(self) -> dict[Side, int]:
        """Of each side that is a folder, how many clips its held-out windows come from."""
        return {side: len(held_out) for side, (_, held_out) in self._files.items()}

    def describe(self) -> str:
        """What the domains are, for people."""
        words = []
        for side, source in zip(SIDES, (self.options.x, self.options.y), strict=True):
            files = self._files.get(side)
            words.append(source if files is None else f"{source} ({len(files[0])} clips, {len(files[1])} held out)")
        return " ↔ ".join(words)

    def _scene(self, source: str) -> tuple[Light, DayNight]:
        _, light, motion = (*source.split(":"), MOTIONS[0])[:3]
        return next(known for known in LIGHTS if known == light), DayNight(self.frames, self.size, self.fps, motion)

    def _beginning(self, path: Path) -> Tensor:
        clip = read_small(path, self._window)[: self.frames]
        top, left = ((side - self.size) // 2 for side in clip.shape[1:3])
        cut = clip[:, top : top + self.size, left : left + self.size].copy()
        return torch.from_numpy(cut).permute(0, 3, 1, 2).float().div_(255)


def is_drawn(source: str) -> bool:
    """Whether a source is drawn scenes rather than a folder.

    Raises:
        ConfigError: it begins with ``shapes`` and names no light or motion.
    """
    name, *rest = source.split(":")
    if name != SHAPES or Path(source).expanduser().exists():
        return False
    if not 1 <= len(rest) <= 2 or rest[0] not in LIGHTS or (len(rest) == 2 and rest[1] not in MOTIONS):
        known = f"{SHAPES}:{{{','.join(LIGHTS)}}}, with :{' or :'.join(MOTIONS[1:])} for one motion only"
        raise ConfigError(f"a drawn domain is named {known}; got {source!r}")
    return True


def _split(files: list[Path], source: str, options: DomainOptions) -> tuple[list[Path], list[Path]]:
    """Clips to train on and clips held out; the same where ``held_out`` is 0."""
    if options.held_out == 0:
        return files, files
    count = max(1, math.floor(options.held_out * len(files) + 0.5))
    if count >= len(files):
        raise DataError(
            f"some clips must be left for training: {len(files)} usable in {source}, {count} to be held out; add "
            "clips, or set held_out to 0 to judge on those trained on"
        )
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(options.seed)).tolist()
    return [files[i] for i in sorted(order[count:])], [files[i] for i in sorted(order[:count])]


def _paired_files(folder: Path) -> list[tuple[Path, Path]]:
    first, second = ({path.relative_to(folder / side): path for path in find_clips(folder / side)} for side in SIDES)
    if not first or set(first) != set(second):
        lonely = sorted(map(str, set(first) ^ set(second)))
        what = f"{len(lonely)} names are on one side only, first {lonely[0]}" if lonely else "there is no clip"
        raise DataError(f"pairs are files of one name in {folder}/x and {folder}/y; {what}")
    return [(first[name], second[name]) for name in sorted(first)]
