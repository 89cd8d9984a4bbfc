"""What metrics with a frame model share: frames in small stacks, sizes as VBench has them, and means over frames.

Memory: at most ``chunk`` frames wait, and one stack of floats exists at a time, however long the clip is.

Sizes are those of VBench's programs (Huang et al. 2024, arXiv 2311.17982), which resize floats without antialiasing.
That differs from CLIP's own way, bicubic with antialiasing, which ``clip_score`` and the rewards have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reelign.errors import ConfigError, DataError, NonFiniteError
from reelign.metrics.clip import Frame, Picture, Undefined

CHUNK = 8  # frames a model sees at once
NO_PROMPT = "needs a prompt, and this clip has none; add it to metadata.csv"


def to_frames(pictures: Sequence[Picture], device: torch.device) -> Tensor:
    """Pictures uint8 [H,W,3] of one size to float32 [N,3,H,W] in [0,1] on a device."""
    stack = torch.from_numpy(np.stack(pictures)).to(device)
    return stack.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def resize_shorter(frames: Tensor, side: int, mode: Literal["bilinear", "bicubic"]) -> Tensor:
    """Frames [N,3,H,W] with the shorter side at ``side``, no antialiasing; the longer is ⌊side·longer/shorter⌋."""
    height, width = frames.shape[-2:]
    short, long = min(height, width), int(side * max(height, width) / min(height, width))
    size = (side, long) if height == short else (long, side)
    return frames if size == (height, width) else F.interpolate(frames, size, mode=mode, align_corners=False)


def cap_longer(frames: Tensor, side: int) -> Tensor:
    """Frames [N,3,H,W] shrunk until the longer side is at most ``side``: bilinear, no antialiasing, floored sizes."""
    height, width = frames.shape[-2:]
    if max(height, width) <= side:
        return frames
    scale = side / max(height, width)
    size = (max(1, int(scale * height)), max(1, int(scale * width)))
    return F.interpolate(frames, size, mode="bilinear", align_corners=False)


def centre_crop(frames: Tensor, side: int) -> Tensor:
    """The middle side × side of frames [N,3,H,W] whose sides are at least that; an odd remainder rounds to even."""
    top, left = (round((length - side) / 2) for length in frames.shape[-2:])
    return frames[..., top : top + side, left : left + side]


class InChunks:
    """Gathers frames and hands them on as stacks float32 [N,3,H,W] in [0,1], N at most ``size``; no gradient.

    Args:
        see: what gets each stack, in order.
        device: where the stacks are made.
        size: frames a stack.
    """

    def __init__(self, see: Callable[[Tensor], None], device: torch.device, size: int = CHUNK) -> None:
        if size < 1:
            raise ConfigError(f"a model sees at least one frame at once; got chunk={size}")
        self.see, self.device, self.size = see, device, size
        self.waiting: list[Picture] = []

    def add(self, frame: Frame) -> None:
        """Take the next frame."""
        self.waiting.append(frame.rgb)
        if len(self.waiting) == self.size:
            self.flush()

    def flush(self) -> None:
        """Hand on what waits."""
        if self.waiting:
            pictures, self.waiting = self.waiting, []
            with torch.no_grad():
                self.see(to_frames(pictures, self.device))


class NotApplicable:
    """The accumulator of a clip that a metric does not apply to: it sees nothing and has no value.

    Args:
        reason: why, in words.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def add(self, frame: Frame) -> None:
        """See nothing."""

    def finish(self) -> dict[str, float]:
        """Raises ``Undefined``."""
        raise Undefined(self.reason)


class FrameMean:
    """Accumulates the mean over all frames of a score of one frame.

    Args:
        name: of the value.
        score: frames [N,3,H,W] in [0,1] to scores [N].
        device: where frames are scored.
        chunk: frames scored at once.
    """

    def __init__(self, name: str, score: Callable[[Tensor], Tensor], device: torch.device, chunk: int = CHUNK) -> None:
        self.name, self.score = name, score
        self.chunks = InChunks(self._see, device, chunk)
        self.total, self.count = 0.0, 0

    def add(self, frame: Frame) -> None:
        """See the next frame."""
        self.chunks.add(frame)

    def finish(self) -> dict[str, float]:
        """The mean, by its name; raises ``NonFiniteError`` where a frame's score is no number."""
        self.chunks.flush()
        return {self.name: finite_mean(self.name, self.total, self.count)}

    def _see(self, frames: Tensor) -> None:
        self.total += float(self.score(frames).cpu().double().sum())  # some devices have no float64
        self.count += len(frames)


def finite_mean(name: str, total: float, count: int) -> float:
    """total/count.

    Raises:
        DataError: ``count`` is 0.
        NonFiniteError: ``total`` is no number.
    """
    if not count:
        raise DataError(f"{name} is a mean over at least one frame; got none")
    if not math.isfinite(total):
        raise NonFiniteError(f"{name} is a finite number; got {total}: look for a broken checkpoint")
    return total / count
