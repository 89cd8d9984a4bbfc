r"""A helper task for the zoo's vision transformers: say from each token where the shape is. Thrown away after training.

From labels or captions alone, these small transformers tell no shape from another within the few minutes of training
they get (accuracy 0.35 of 3 after 250 steps; 0.70 with the helper). So two linear readers are trained along: one from
each token to the shape's mask inside its own tube of pixels, one from the mean of a moment's tokens to the shape's
place, size, third and fourth moment, and colour. Both targets come from the clean clip. It stands in for the masked
pre-training of VideoMAE (Tong et al. 2022, section 3), which asks the same of the tokens but takes far longer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASK_WEIGHT = 10.0  # most pixels are easy background
TRACK_SCALE = (3.0, 3.0, 4.0, 30.0, 90.0, 2.0)  # x, y, log area, c_3, c_4, colour: to a spread near 1
USUAL_LOG_AREA = -1.2


def visible_mask(video_BTCHW: Tensor) -> Tensor:
    """Share of each pixel that the shape covers in clean clips: [B,T,H,W] in [0,1].

    It is the distance from the colour of the frame's top left pixel, relative to the largest in the frame.
    """
    distance = (video_BTCHW - video_BTCHW[..., :1, :1]).abs().sum(2)
    return distance / distance.amax((2, 3), keepdim=True)


def visible_track(video_BTCHW: Tensor) -> Tensor:
    """What each frame of clean clips shows, [B,T,10]: x, y, log area, Re and Im of c_3 and c_4, and colour, scaled.

    x and y run from −1 to 1. c_n = Σ w·z^n/A^(n/2 + 1) are size-free complex moments about the centre, large for a
    triangle (n = 3) and a square (n = 4), with the angle in their phase (Flusser, Suk and Zitová 2009, chapter 2); w is
    ``visible_mask``.
    """
    weight = visible_mask(video_BTCHW)
    side = weight.shape[-1]
    place = (torch.arange(side) + 0.5) / side * 2 - 1
    mass = weight.sum((2, 3))
    x, y = weight.sum(2) @ place / mass, weight.sum(3) @ place / mass
    z = (place - x[..., None, None]) + 1j * (place[:, None] - y[..., None, None])
    area = mass * (2 / side) ** 2
    moments = [(weight * z**n).sum((2, 3)) * (2 / side) ** 2 / area ** (n / 2 + 1) for n in (3, 4)]
    colour = (video_BTCHW * weight[:, :, None]).sum((3, 4)) / mass[..., None] - 0.5
    scale = TRACK_SCALE
    columns = [scale[0] * x, scale[1] * y, scale[2] * (area.log() - USUAL_LOG_AREA)]
    columns += [part * factor for c, factor in zip(moments, scale[3:5], strict=True) for part in (c.real, c.imag)]
    return torch.cat([torch.stack(columns, -1), scale[5] * colour], -1)


def tubes(planes_BTHW: Tensor, tube: tuple[int, int, int]) -> Tensor:
    """Cut clips [B,T,H,W] into tubes of t×h×w pixels in the order of a transformer's tokens: [B, N, t·h·w]."""
    t, h, w = tube
    parts = planes_BTHW.unfold(1, t, t).unfold(2, h, h).unfold(3, w, w)
    return parts.flatten(1, 3).flatten(2)


class Helper(nn.Module):
    """The two readers.

    Args:
        width: of the tokens.
        tube: frames, height and width of the pixels behind one token.
    """

    def __init__(self, width: int, tube: tuple[int, int, int]) -> None:
        super().__init__()
        self.tube = tube
        self.mask = nn.Linear(width, tube[0] * tube[1] * tube[2])
        self.track = nn.Linear(width, 10)

    def forward(self, tokens_BND: Tensor, clean_BTCHW: Tensor) -> Tensor:
        """How badly the tokens say what the clean clips show: a scalar, cross-entropy of masks plus squared error."""
        target = tubes(visible_mask(clean_BTCHW), self.tube)
        mask = F.binary_cross_entropy_with_logits(self.mask(tokens_BND), target)
        moments = clean_BTCHW.shape[1] // self.tube[0]
        by_moment = tokens_BND.view(len(tokens_BND), moments, -1, tokens_BND.shape[-1]).mean(2)
        track = visible_track(clean_BTCHW).view(len(tokens_BND), moments, self.tube[0], -1).mean(2)
        return MASK_WEIGHT * mask + F.mse_loss(self.track(by_moment), track)
