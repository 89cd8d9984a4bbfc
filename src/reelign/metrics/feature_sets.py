"""Features of a folder of clips: read as a stream, under a named protocol, each clip computed once and kept on disk.

What a set metric means is decided here, not by its formula: which network with which weights, which frames, how they
are resized. All of it is a ``FeatureProtocol``, and its ``id`` goes with every number.

A clip is decoded frame by frame and only the chosen frames are held. One that cannot be read, or has too few frames,
is left out with its reason. Features are cached as plain ``.npy`` by the file's content and the protocol, so a second
run computes nothing, whatever the files are called.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reelign.errors import ClipError, ConfigError, DataError
from reelign.metrics.frechet import Features
from reelign.video_decode import FrameStream
from reelign.video_io import replacing
from reelign.zoo.models import even_indices

Picture = NDArray[np.uint8]
log = logging.getLogger(__name__)
RATE_SLACK = 0.01  # a clip at 29.97 is at 30 frames a second


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a clip a network sees. Frames are never repeated: a clip with too few is left out.

    Args:
        frames: how many.
        choice: the ``first`` ones in a row, or spread ``even``-ly over the clip, its first and last included.
        fps: for ``first``, the rate to thin to; the clip's own where None. A slower clip is left out.
    """

    frames: int
    choice: Literal["first", "even"] = "even"
    fps: float | None = None

    def __post_init__(self) -> None:
        counts = isinstance(self.frames, int) and self.frames >= 1
        rate = self.fps is None or (isinstance(self.fps, (int, float)) and self.fps > 0)
        if not (counts and rate and self.choice in ("first", "even")):
            raise ConfigError(f"frames are a whole number from 1, first or even, at a rate above 0; got {self}")
        if self.choice == "even" and self.fps is not None:
            raise ConfigError(f"frames spread evenly have no rate of their own; got fps={self.fps:g}: choose 'first'")

    def indices(self, total: int, fps: float) -> list[int]:
        """The chosen indices in a clip of ``total`` frames at ``fps``; some may be beyond its end.

        Raises:
            ClipError: the clip is slower than the rate asked for.
        """
        if self.choice == "even":
            return even_indices(max(total, self.frames), self.frames)
        if self.fps is None:
            return list(range(self.frames))
        if fps < self.fps * (1 - RATE_SLACK):
            raise ClipError(f"plays at {fps:g} frames a second, below the {self.fps:g} of this protocol")
        return [round(i * max(fps / self.fps, 1.0)) for i in range(self.frames)]


@dataclass(frozen=True)
class FeatureProtocol:
    """Everything that decides a feature.

    Args:
        family: ``i3d``, ``videomae``, ``vjepa``, ``clip`` or ``inception``.
        model: as the user named it; not part of the id, because a copied file is the same network.
        weights: SHA-256 of the weights.
        feature: which layer, how pooled, whether normalised, in words.
        preprocessing: resize, crop and scaling, in words.
        resolution: height and width the network sees.
        frames: which frames.
    """

    family: str
    model: str
    weights: str
    feature: str
    preprocessing: str
    resolution: tuple[int, int]
    frames: FrameChoice

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits; equal only if all but the model's name is equal."""
        facts = {key: value for key, value in asdict(self).items() if key != "model"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Extractor:
    """A network under a protocol.

    Args:
        protocol: what it does.
        run: the chosen frames, uint8 [H,W,3] each, to features [rows,d]: one row a clip, or one a frame.
    """

    protocol: FeatureProtocol
    run: Callable[[Sequence[Picture]], Features]


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of clips.

    Args:
        values: float64 [C,F,d], F rows of each of C clips.
        files: [C], relative to the folder.
        hashes: [C], SHA-256 of each file.
        protocol: of the features.
        failed: file to the reason it is not among them.
        computed: how many were not in the cache.
    """

    values: Features
    files: tuple[str, ...]
    hashes: tuple[str, ...]
    protocol: FeatureProtocol
    failed: dict[str, str] = field(default_factory=dict)
    computed: int = 0


def read_frames(path: Path, choice: FrameChoice) -> list[Picture]:
    """The chosen frames, uint8 [H,W,3]; only these are held.

    The container announces length and rate, so one pass is enough; where it was wrong there is a second.

    Raises:
        ClipError: it cannot be read whole, is damaged in what was read, or has too few frames.
    """
    known: tuple[int, float] | None = None
    for _ in range(2):
        stream = FrameStream(path, _last_needed(choice, known), eight_bits=True)
        kept: dict[int, Picture] = {}
        wanted: list[int] = [] if known is None else choice.indices(*known)
        for index, picture in enumerate(stream):
            if index == 0 and known is None:
                wanted = choice.indices(stream.announced, stream.stated_fps)
            if index in wanted:
                kept[index] = np.asarray(picture, np.uint8)
        stream.check()
        if stream.count < choice.frames:
            raise ClipError(f"{path}: has {stream.count} frames, this protocol needs {choice.frames}")
        known = (stream.count, stream.fps() if choice.fps else 0.0)
        if (needed := choice.indices(*known)) == wanted and set(wanted) <= set(kept):
            return [kept[index] for index in needed]
        if choice.choice == "first" and max(needed) >= stream.count:
            raise ClipError(
                f"{path}: lasts {stream.count} frames at {known[1]:g} a second, this protocol needs {max(needed) + 1}"
            )
    raise ClipError(f"{path}: gives another length each time it is decoded; re-encode it")


def _last_needed(choice: FrameChoice, known: tuple[int, float] | None) -> int | None:
    """How many frames to decode; None is all."""
    if choice.choice == "first" and choice.fps is None:
        return choice.frames
    if choice.choice == "first" and known is not None:
        return max(choice.indices(*known)) + 1
    return None


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits.

    Raises:
        ClipError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ClipError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


class FeatureCache:
    """Features on disk: one ``.npy`` a clip and protocol, nothing that could run code.

    Args:
        folder: where; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, content: str, protocol: FeatureProtocol) -> Features | None:
        """The features [F,d], or None where there are none; a damaged file counts as none, and is said."""
        if self.folder is None or not (path := self._path(content, protocol)).is_file():
            return None
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            log.warning("%s cannot be read (%s); its features are computed again", path, error)
            return None
        return np.asarray(values, np.float64)

    def put(self, content: str, protocol: FeatureProtocol, values: Features) -> None:
        """Keep features; several processes may share a cache."""
        if self.folder is None:
            return
        with replacing(self._path(content, protocol)) as part, part.open("wb") as file:
            np.save(file, values, allow_pickle=False)

    def _path(self, content: str, protocol: FeatureProtocol) -> Path:
        assert self.folder is not None
        return self.folder / f"{protocol.family}-{protocol.id}" / content[:2] / f"{content}.npy"


def default_cache() -> Path:
    """``$REELIGN_CACHE/features``, or ``reelign/features`` in the user's cache folder."""
    if own := os.environ.get("REELIGN_CACHE"):
        return Path(own).expanduser() / "features"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "reelign" / "features"


def extract(
    clips: Mapping[str, Path],
    extractor: Extractor,
    cache: FeatureCache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureSet:
    """Features of clips.

    Args:
        clips: name to file.
        extractor: network and protocol.
        cache: where features are looked for and kept.
        progress: called with clips done and clips in all.

    Raises:
        DataError: no clip gave features; the message has the first reason.
    """
    cache, protocol = cache or FeatureCache(None), extractor.protocol
    rows: dict[str, tuple[str, Features]] = {}
    failed: dict[str, str] = {}
    computed = 0
    for done, (name, path) in enumerate(clips.items(), 1):
        try:
            content = content_hash(path)
            values = cache.get(content, protocol)
            if values is None:
                values = _compute(extractor, path)
                cache.put(content, protocol, values)
                computed += 1
            rows[name] = (content, values)
        except ClipError as error:
            failed[name] = " ".join(str(error).split()).removeprefix(f"{path}: ")
        if progress:
            progress(done, len(clips))
    if not rows:
        first = next(iter(failed.items()), ("", "there is no clip"))
        raise DataError(f"no clip gives features of {protocol.family}: {': '.join(filter(None, first))}")
    values = np.stack([values for _, values in rows.values()])
    return FeatureSet(values, tuple(rows), tuple(content for content, _ in rows.values()), protocol, failed, computed)


def _compute(extractor: Extractor, path: Path) -> Features:
    values = np.asarray(extractor.run(read_frames(path, extractor.protocol.frames)), np.float64)
    if not np.isfinite(values).all():
        raise ClipError(f"{path}: {extractor.protocol.family} gives features that are not finite numbers")
    return values
