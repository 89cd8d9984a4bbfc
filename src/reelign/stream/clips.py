"""The clips of streams, on disk while they are made, and some time after, so that they can be saved."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, field
from pathlib import Path

from reelign.errors import DataError
from reelign.video_io import GrowingClip

KEPT = 4  # streams that ended, which can still be saved
SNAPSHOTS = 2  # files of one stream: the latest, and the one that may be on its way


@dataclass
class KeptClip:
    """The clip of one stream.

    Args:
        id: a secret name.
        clip: its frames.
        prompts: each with the frame at which it began.
        ended: whether no more frames will come.
    """

    id: str
    clip: GrowingClip
    prompts: list[tuple[int, str]] = field(default_factory=list)
    ended: bool = False
    snapshots: list[Path] = field(default_factory=list)


class ClipShelf:
    """Every clip that can be saved, by its secret name. Safe for threads.

    Args:
        folder: for their files; whoever gives it removes it.
        kept: how many streams that ended are kept.
    """

    def __init__(self, folder: Path, kept: int = KEPT) -> None:
        self.folder, self.kept = folder, kept
        self._clips: dict[str, KeptClip] = {}
        self._lock = threading.Lock()

    def begin(self, size: tuple[int, int], fps: float) -> KeptClip:
        """A new clip of pictures of this height and width."""
        name = secrets.token_urlsafe(12)
        made = KeptClip(name, GrowingClip(self.folder / f"{name}.h264", *size, fps))
        with self._lock:
            self._clips[name] = made
        return made

    def end(self, kept: KeptClip) -> None:
        """No more frames will come. The oldest clips go, and those without frames."""
        kept.clip.close()
        kept.ended = True
        with self._lock:
            self._clips[kept.id] = self._clips.pop(kept.id)  # the latest to end is the last to go
            ended = [clip for clip in self._clips.values() if clip.ended]
            full = [clip for clip in ended if clip.clip.frames]
            for clip in ended:
                if clip not in full[-self.kept :]:
                    self._drop(clip)

    def find(self, name: str) -> KeptClip:
        """The clip of this name.

        Raises:
            DataError: there is none, or none any more.
        """
        with self._lock:
            if name in self._clips:
                return self._clips[name]
        raise DataError(f"the last {self.kept} streams that ended can be saved; this one is not among them")

    def save(self, name: str) -> tuple[str, int]:
        """Pack the frames so far into a file; returns its name, for ``file``, and how many frames it has.

        Raises:
            DataError: no such clip, or no frame yet.
        """
        kept = self.find(name)
        with self._lock:
            frames = kept.clip.frames
            path = self.folder / f"{kept.id}-{frames}.mp4"
            if path not in kept.snapshots:
                kept.clip.save(path, frames)
                kept.snapshots.append(path)
            while len(kept.snapshots) > SNAPSHOTS:
                kept.snapshots.pop(0).unlink()
        return path.name, frames

    def file(self, name: str) -> Path | None:
        """A file that ``save`` made, or None."""
        with self._lock:
            found = [path for kept in self._clips.values() for path in kept.snapshots if path.name == name]
        return found[0] if found else None

    def _drop(self, kept: KeptClip) -> None:
        del self._clips[kept.id]
        for path in (kept.clip.path, *kept.snapshots):
            path.unlink(missing_ok=True)
