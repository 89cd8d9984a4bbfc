"""Metrics that look at a few successive frames at a time: the part that is the same in all of them.

A ``Trace`` keeps the last ``window`` frames, and a row of numbers for each place the window stands at, a few hundred
bytes; so its memory is that of a few frames, however long the clip is.

Run: ``Trace(lambda pair: {"change": difference(*pair)}, means, window=2)``.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from reelign.metrics.clip import Frame, Undefined

Rows = Mapping[str, NDArray[np.float64]]
Look = Callable[[Sequence[Frame]], Mapping[str, float]]
Conclude = Callable[[Rows], Mapping[str, float]]


@dataclass
class Trace:
    """An accumulator: ``look`` at each window of frames, and ``conclude`` from all that was seen.

    Args:
        look: frames of the window, oldest first, to numbers by name, the same names every time; {} where this place
            says nothing.
        conclude: name to float64 [places], in order of time, to the values of the metric.
        window: frames of a window, at least 1.
        hop: frames between two places of the window.
        every: only frames whose index this divides are seen.
    """

    look: Look
    conclude: Conclude
    window: int = 1
    hop: int = 1
    every: int = 1
    _held: deque[Frame] = field(default_factory=deque, repr=False)
    _rows: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list), repr=False)
    _frames: int = 0
    _seen: int = 0
    _refused: Undefined | None = None

    def add(self, frame: Frame) -> None:
        """See the next frame."""
        self._frames += 1
        if self._refused or frame.index % self.every:
            return
        self._held.append(frame)
        self._seen += 1
        if len(self._held) > self.window:
            self._held.popleft()
        full = len(self._held) == self.window
        if full and (self._seen - self.window) % self.hop == 0:
            self._note(tuple(self._held))

    def _note(self, frames: Sequence[Frame]) -> None:
        try:
            for name, value in self.look(frames).items():
                self._rows[name].append(value)
        except Undefined as reason:  # for good: the other metrics of this clip go on
            self._refused = reason

    def finish(self) -> Mapping[str, float]:
        """What ``conclude`` makes of it.

        Raises:
            Undefined: ``look`` raised it, the clip is shorter than the window, or no place of it said anything.
        """
        if self._refused:
            raise self._refused
        needed = (self.window - 1) * self.every + 1
        if self._seen < self.window:
            raise Undefined(f"needs at least {needed} frames; this clip has {self._frames}")
        if not self._rows:
            raise Undefined("no frame of this clip can be measured")
        return self.conclude({name: np.array(row, np.float64) for name, row in self._rows.items()})


@dataclass(frozen=True)
class Refused:
    """The accumulator of a metric that cannot say anything about a clip, for a reason known from the start."""

    reason: Undefined

    def add(self, frame: Frame) -> None:
        """Look at nothing."""

    def finish(self) -> Mapping[str, float]:
        """Raise the reason."""
        raise self.reason


def means(rows: Rows) -> dict[str, float]:
    """The plain mean of every row over the clip: the commonest way to conclude."""
    return {name: float(row.mean()) for name, row in rows.items()}
