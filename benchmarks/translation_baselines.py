"""What a translator must beat: no change at all, and matching histograms of colour channels, exactly, in numpy."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reelign.datasets.translation import SIDES, Domains, Side

LEVELS = 256
Shares = NDArray[np.float64]


def cumulative(levels: NDArray[np.uint8]) -> Shares:
    """Share of values at or below each of 256 levels."""
    counts = np.bincount(levels.ravel(), minlength=LEVELS)
    return np.cumsum(counts) / counts.sum()


def matching_table(source: Shares, target: Shares) -> NDArray[np.uint8]:
    """Level to level, so that the cumulative shares agree: T(v) = min{w : F_target(w) ≥ F_source(v)}."""
    return np.searchsorted(target, source - 1e-12).clip(max=LEVELS - 1).astype(np.uint8)


class NoChange:
    """Gives clips back as they are."""

    def translate(self, video: Tensor, to: Side) -> tuple[Tensor, None]:
        return video, None


class HistogramMatching:
    """Each channel of each clip, or of the whole domain, gets the distribution that the target's training clips have.

    Args:
        domains: where clips to fit to come from.
        clips: how many of each domain.
        seed: of their draw.
        per_clip: whether the source's distribution is that of the clip, or of all clips of its domain.
    """

    def __init__(self, domains: Domains, clips: int = 256, seed: int = 0, per_clip: bool = False) -> None:
        random = torch.Generator().manual_seed(seed)
        self.per_clip = per_clip
        self.shares: dict[Side, list[Shares]] = {}
        for side in SIDES:
            levels = to_levels(domains.batch(side, clips, random))
            self.shares[side] = [cumulative(levels[:, :, channel]) for channel in range(3)]

    def translate(self, video: Tensor, to: Side) -> tuple[Tensor, None]:
        start: Side = "x" if to == "y" else "y"
        clips = []
        for clip in to_levels(video):
            channels = []
            for channel in range(3):
                values = clip[:, channel]
                source = cumulative(values) if self.per_clip else self.shares[start][channel]
                channels.append(matching_table(source, self.shares[to][channel])[values])
            clips.append(np.stack(channels, 1))
        return torch.from_numpy(np.stack(clips)).float() / 255, None


def to_levels(video: Tensor) -> NDArray[np.uint8]:
    return (video * 255).round().to(torch.uint8).numpy()
