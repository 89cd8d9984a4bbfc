r"""Brightness range: how well the pixels are exposed.

With luma Y = 0.299·R + 0.587·G + 0.114·B (BT.601) and the accepted range [low, high], each pixel costs how far it is
outside, as a share of the farthest it could be on that side,

    d = max(0, low − Y)/low + max(0, Y − high)/(1 − high),      r = 1 − mean of d over frames and pixels

so a clip inside the range scores 1, and an all black or all white one 0. There is no gradient inside the range.

Run: ``reelign score CLIPS --reward brightness_range``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from reelign.contracts import RewardCard, VideoBatch
from reelign.errors import ConfigError
from reelign.rewards.frames import average

LUMA = (0.299, 0.587, 0.114)


def luma(video_BTCHW: Tensor) -> Tensor:
    """BT.601 luma of RGB clips: [B,T,3,H,W] in [0,1] to [B,T,H,W] in [0,1]."""
    weights = torch.tensor(LUMA, dtype=video_BTCHW.dtype, device=video_BTCHW.device)
    return torch.einsum("btchw,c->bthw", video_BTCHW, weights)


def exposure_error(y: Tensor, low: float, high: float) -> Tensor:
    """Share of the way from the range [low, high] to black or white, 0 inside and 1 at the end; same shape as ``y``.

    A side whose bound is 0 or 1 has nothing outside and costs nothing.
    """
    under = (low - y).clamp_min(0) / low if low > 0 else torch.zeros_like(y)
    over = (y - high).clamp_min(0) / (1 - high) if high < 1 else torch.zeros_like(y)
    return under + over


class BrightnessRange:
    """One minus the mean exposure error, from 0 to 1.

    Args:
        low, high: luma accepted without cost, 0 ≤ low < high ≤ 1, not both at the ends.
    """

    card = RewardCard(
        name="brightness_range",
        summary="One minus how far the luma of the pixels lies outside a range, by default [0.05, 0.9].",
        range=(0.0, 1.0),
        golden=0.992986,
    )

    def __init__(self, low: float = 0.05, high: float = 0.9) -> None:
        if not 0 <= low < high <= 1 or (low, high) == (0, 1):
            raise ConfigError(f"a brightness range has 0 ≤ low < high ≤ 1 and excludes something; got [{low}, {high}]")
        self.low, self.high = low, high
        if (low, high) != (0.05, 0.9):
            self.card = replace(type(self).card, golden=None)

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B] in [0, 1]."""
        return average(1 - exposure_error(luma(batch.video), self.low, self.high).flatten(2).mean(2), batch)
