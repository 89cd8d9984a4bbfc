"""What a metric of one clip is: a card, and an accumulator that sees every frame once.

A clip is decoded once and each frame goes to all metrics, so scoring costs one pass over the file, and memory does not
grow with the length of the clip. Views of a frame that several metrics need (grey, small grey) are made once.

A metric that does not apply to a clip raises ``Undefined`` with the reason; it never gives 0 for "cannot say".

Run: ``measure(frames, fps=8, metrics=[TemporalFlickering()])``, or ``reelign score TAKES``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from reelign.errors import DataError, ReelignError

Picture = NDArray[np.uint8]
T = TypeVar("T")
SMALL = 256  # short side of ``Frame.small``, in pixels


class Undefined(ReelignError):  # noqa: N818 (it is a result, not a fault)
    """A metric does not apply to this clip; the message says why."""


@dataclass(frozen=True)
class MetricCard:
    """What a metric promises.

    Args:
        name: the name users type.
        version: rises whenever the same clip may get another number; part of a score's key.
        values: names of the columns it gives.
        unit: of the values, for example ``px`` or ``grey levels of 255``; one for all, or one a column.
        range: least and largest possible value.
        better: which direction is better, or ``neither``.
        protocol: the exact definition in one sentence: size, rate, model.
        source: paper or program whose definition it is.
        needs_prompt: whether the value depends on the clip's prompt, which is then part of a score's key.
    """

    name: str
    version: int
    values: tuple[str, ...]
    unit: str
    range: tuple[float, float]
    better: Literal["higher", "lower", "neither"]
    protocol: str
    source: str = "reelign"
    needs_prompt: bool = False


@dataclass(eq=False)
class Frame:
    """One decoded frame, with the views that metrics share.

    Args:
        index: from 0.
        rgb: uint8 [H,W,3], contiguous, upright.
    """

    index: int
    rgb: Picture
    _shared: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def grey(self) -> Picture:
        """uint8 [H,W], BT.601 luma."""
        return np.asarray(cv2.cvtColor(self.rgb, cv2.COLOR_RGB2GRAY), np.uint8)

    @cached_property
    def small(self) -> Picture:
        """``grey`` with its short side at most 256 pixels, area-averaged."""
        height, width = self.grey.shape
        scale = SMALL / min(height, width)
        if scale >= 1:
            return self.grey
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return np.asarray(cv2.resize(self.grey, size, interpolation=cv2.INTER_AREA), np.uint8)

    def shared(self, name: str, make: Callable[[], T]) -> T:
        """A further view by name, made once: ``frame.shared("lab", lambda: …)``."""
        if name not in self._shared:
            self._shared[name] = make()
        value: T = self._shared[name]
        return value


@dataclass(frozen=True)
class ClipInfo:
    """What is known before the first frame.

    Args:
        fps: frames per second, as the container states it.
        height, width: of the upright picture.
        prompt: what the clip answers; empty where unknown.
    """

    fps: float
    height: int
    width: int
    prompt: str = ""

    def __post_init__(self) -> None:
        if not self.prompt.strip():  # blanks are no prompt
            object.__setattr__(self, "prompt", "")


class Accumulator(Protocol):
    """The state of one metric on one clip."""

    def add(self, frame: Frame) -> None:
        """See the next frame."""
        ...

    def finish(self) -> Mapping[str, float]:
        """A finite number for each of the card's ``values``; raises ``Undefined`` where the metric does not apply."""
        ...


@runtime_checkable
class ClipMetric(Protocol):
    """Rates one clip without knowing any other."""

    card: MetricCard

    def start(self, info: ClipInfo) -> Accumulator:
        """A fresh accumulator for a clip."""
        ...


def measure(
    frames: Iterable[Picture], fps: float, metrics: Sequence[ClipMetric], prompt: str = ""
) -> dict[str, float | Undefined]:
    """Every value of every metric on one clip, in one pass; where a metric does not apply, its reason.

    Args:
        frames: uint8 [H,W,3] each, all of one size.
        fps: frames per second.
        metrics: each with its own column names.
        prompt: what the clip answers.

    Raises:
        DataError: there is no frame.
    """
    running: list[tuple[ClipMetric, Accumulator]] = []
    for index, rgb in enumerate(frames):
        if not running:
            info = ClipInfo(fps, rgb.shape[0], rgb.shape[1], prompt)
            running = [(metric, metric.start(info)) for metric in metrics]
        frame = Frame(index, rgb)
        for _, state in running:
            state.add(frame)
    if metrics and not running:
        raise DataError("a clip to measure has at least one frame; got none")
    return {name: value for metric, state in running for name, value in _finish(metric, state).items()}


def _finish(metric: ClipMetric, state: Accumulator) -> Mapping[str, float | Undefined]:
    try:
        return state.finish()
    except Undefined as reason:
        return dict.fromkeys(metric.card.values, reason)
