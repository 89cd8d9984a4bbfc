"""Making drawn clips look a little generated, so that zoo rewards judge generated ones too.

Two kinds of change: ``tint`` moves colours and brightness, evenly or drifting in time; ``roughen`` blurs and adds fine
and coarse noise. Each clip draws its own strengths, from none to the given one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def tint(video_BTCHW: Tensor, random: torch.Generator, gain: float = 0.12, offset: float = 0.05) -> Tensor:
    """Scale all colours and shift each one, differently at the two ends of the clip: [B,T,3,H,W] in [0,1] to the same.

    Args:
        gain: largest relative change of brightness.
        offset: standard deviation of the shift of each colour, in units of the pixel range.
    """
    clips, frames = video_BTCHW.shape[:2]
    time = torch.linspace(0, 1, frames)[None, :, None, None, None]
    factor = 1 + gain * (2 * torch.rand(clips, 2, 1, 1, 1, generator=random) - 1)
    shift = offset * torch.randn(clips, 2, 3, 1, 1, generator=random)
    gained = video_BTCHW * torch.lerp(factor[:, :1], factor[:, 1:], time)
    return (gained + torch.lerp(shift[:, :1], shift[:, 1:], time)).clamp(0, 1)


def roughen(video_BTCHW: Tensor, random: torch.Generator, noise: float = 0.06) -> Tensor:
    """Blur by at most half the resolution, then add fine and 8-pixel noise: [B,T,3,H,W] in [0,1] to the same.

    Args:
        noise: largest standard deviation of the fine noise, in units of the pixel range; coarse noise has half of it.
    """
    clips, frames = video_BTCHW.shape[:2]
    images = video_BTCHW.flatten(0, 1)
    height, width = images.shape[-2:]
    blurred = F.interpolate(F.avg_pool2d(images, 2), (height, width), mode="bilinear", align_corners=False)
    strength, fine, coarse = (
        torch.rand(3, clips, 1, generator=random).expand(3, clips, frames).flatten(1)[..., None, None, None]
    )
    images = torch.lerp(images, blurred, strength)
    images = images + noise * fine * torch.randn(images.shape, generator=random)
    grid = torch.randn(len(images), 3, max(1, height // 8), max(1, width // 8), generator=random)
    lumps = F.interpolate(grid, (height, width), mode="bilinear", align_corners=False)
    rough: Tensor = (images + 0.5 * noise * coarse * lumps).clamp(0, 1)
    return rough.view(video_BTCHW.shape)
