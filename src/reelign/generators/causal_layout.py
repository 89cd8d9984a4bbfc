"""Which latent frames of a causal clip form blocks, and which of them each block sees.

With a local window these are the ``sink`` first frames and the latest ones (Huang et al. 2025, Self-Forcing, section
3.3; Xiao et al. 2024, StreamingLLM).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from reelign.errors import ConfigError, DataError


@dataclass(frozen=True)
class Layout:
    """Which frames form a block, and which frames a block sees. Counts are of latent frames.

    Args:
        frames_per_block: frames that are denoised together.
        independent_first: the first frame is a block of its own, for image-to-video.
        window: frames a block sees at most, its own included; None is all.
        sink: of these, how many are the first of the clip.
        rebase_sink: rotate the sink's keys to the place right before the window, whatever lies between.
    """

    frames_per_block: int = 3
    independent_first: bool = False
    window: int | None = None
    sink: int = 0
    rebase_sink: bool = False

    def __post_init__(self) -> None:
        if self.frames_per_block < 1 or self.sink < 0:
            raise ConfigError(
                f"a block has at least 1 frame and a sink at least 0; got {self.frames_per_block} and {self.sink}"
            )
        if self.window is not None and self.window < self.sink + self.frames_per_block:
            raise ConfigError(
                f"a window holds at least the sink and one block, {self.sink} + {self.frames_per_block} latent frames; "
                f"got {self.window}"
            )
        if self.sink and self.window is None:
            raise ConfigError(f"a sink of {self.sink} frames goes with a window; without one every frame is seen")

    def blocks(self, frames: int, start: int = 0) -> list[int]:
        """Sizes of the blocks of ``frames`` frames that begin at frame ``start``.

        Raises:
            DataError: no frame, or the frames do not divide into blocks.
        """
        first = [1] if self.independent_first and start == 0 and frames > 0 else []
        rest = frames - sum(first)
        if frames < 1 or rest % self.frames_per_block:
            rule = f"{'1 + ' if first else ''}n·{self.frames_per_block}"
            raise DataError(f"a causal clip is made of whole blocks, {rule} latent frames; got {frames}")
        return first + [self.frames_per_block] * (rest // self.frames_per_block)

    def parts(self, low: int, high: int) -> list[int]:
        """Sizes of the parts into which the clip's blocks divide its frames ``low`` to ``high``."""
        cuts = range(int(self.independent_first), high, self.frames_per_block)
        ends = [cut for cut in cuts if cut > low] + [high]
        return [end - start for start, end in pairwise([low, *ends])]

    def seen(self, end: int) -> list[tuple[int, int]]:
        """Ranges of frames that a block ending before frame ``end`` sees."""
        if self.window is None or end <= self.window:
            return [(0, end)]
        sink = [(0, self.sink)] if self.sink else []
        return [*sink, (end - self.window + self.sink, end)]

    def ends(self, frames: int) -> list[int]:
        """The frame before which each block of a clip ends."""
        return list(accumulate(self.blocks(frames)))


def visible(layout: Layout, frames: int) -> Tensor:
    """Which frame (row) sees which (column), [F,F] bool: what the slices above amount to, for tests and pictures."""
    mask = torch.zeros(frames, frames, dtype=torch.bool)
    start = 0
    for end in layout.ends(frames):
        for low, high in layout.seen(end):
            mask[start:end, low:high] = True
        start = end
    return mask
