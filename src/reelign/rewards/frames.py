r"""Which frames a reward sees, and how much each counts. Any image reward works with any policy.

    R = (1/S) Σ_i f(g(i))·r(x_{g(i)}),      f(n) = exp(−λ·|n − ⌊F/2⌋|)     (InstructVideo, Yuan et al. 2024, eq. 9, 10)

Segmental sparse sampling (SegVR) cuts F frames into S segments and takes one of each, drawn anew for every batch of
prompts, or the first. Temporally attenuated reward (TAR) counts frames near the middle more. The paper does not divide
by Σf, so the scale of its gradient is random and mostly that of the middle segments; ``normalised`` does.

Only chosen frames are decoded. One draw serves all clips of a micro-batch, so that a batch is decoded at once: for a
draw of its own for each clip, as InstructVideo's program has it, set ``micro_batch: 1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from reelign.contracts import VideoBatch
from reelign.errors import ConfigError


class FramePolicy(BaseModel):
    """A choice of frames and their weights.

    Args:
        choose: ``all``, the ``first``, one ``random`` frame, ``alternate`` (0, 2, 4, …), one of each of ``segments``,
            or a list of indices.
        segments: S, for ``segments`` only.
        draw: which frame of a segment: a ``random`` one, or the ``first``.
        attenuation: λ; 0 weighs all frames alike. The paper has 1.
        normalised: divide the weights by their mean over the chosen frames.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    choose: Literal["all", "first", "random", "alternate", "segments"] | tuple[int, ...] = "all"
    segments: int = Field(4, ge=1)
    draw: Literal["random", "first"] = "random"
    attenuation: float = Field(0.0, ge=0)
    normalised: bool = False

    def indices(self, total: int, random: torch.Generator) -> list[int]:
        """The chosen indices for a clip of ``total`` frames, in order of time.

        Raises:
            ConfigError: more segments than frames, or an index that does not exist.
        """
        if self.choose == "all":
            return list(range(total))
        if self.choose == "first":
            return [0]
        if self.choose == "random":
            return [int(torch.randint(total, (1,), generator=random))]
        if self.choose == "alternate":
            return list(range(0, total, 2))
        if self.choose == "segments":
            return [
                start if self.draw == "first" else int(torch.randint(start, end, (1,), generator=random))
                for start, end in segment_bounds(total, self.segments)
            ]
        if outside := [index for index in self.choose if not 0 <= index < total]:
            raise ConfigError(f"frames of this generator run from 0 to {total - 1}; got {outside}")
        return list(self.choose)

    def weights(self, indices: Sequence[int], total: int) -> Tensor | None:
        """f of the chosen frames, [S]; None where all count alike."""
        if not self.attenuation:
            return None
        weights = attenuation(torch.tensor(indices, dtype=torch.float32), total, self.attenuation)
        return weights / weights.mean() if self.normalised else weights

    def fps(self, fps: float) -> float:
        """Frames per second of the chosen frames, where they are evenly spaced."""
        return fps / 2 if self.choose == "alternate" else fps


def segment_bounds(total: int, segments: int) -> list[tuple[int, int]]:
    """Start and end (excluded) of each segment, ⌊F/S⌋ frames each; a remainder at the end is in none, as published.

    Raises:
        ConfigError: more segments than frames.
    """
    if segments > total:
        raise ConfigError(f"a clip of {total} frames has at most {total} segments; got {segments}")
    length = total // segments
    return [(i * length, (i + 1) * length) for i in range(segments)]


def attenuation(index: Tensor, total: int, rate: float) -> Tensor:
    """f(n) = exp(−λ·|n − ⌊F/2⌋|) for frame indices n (InstructVideo, eq. 10, with its program's floor); same shape."""
    return (-rate * (index - total // 2).abs()).exp()


def average(scores: Tensor, batch: VideoBatch) -> Tensor:
    """(1/T) Σ_t w_t·s_t for scores [B,T] of the frames of ``batch``; w is 1 where the batch has no weights."""
    if batch.frame_weights is not None:
        scores = scores * batch.frame_weights.to(scores)
    return scores.mean(1)
