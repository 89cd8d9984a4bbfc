"""From clips to what a reward model was trained on: size, aspect, normalisation, all differentiable.

Bicubic with antialiasing for every model, as the official CLIP, HPSv2 and PickScore pipelines (VideoMAE's own resize
is bilinear). Bicubic may overshoot [0,1] at sharp edges; values are not clamped, because a clamp has no gradient there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from reelign.errors import ConfigError
from reelign.zoo.models import normalise

Aspect = Literal["squash", "crop", "pad"]


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Bicubic, antialiased resize of frames [N,3,H,W] to [N,3,height,width]; the aspect may change."""
    if frames.shape[-2:] == (height, width):
        return frames
    return F.interpolate(frames, (height, width), mode="bicubic", align_corners=False, antialias=True)


def resize_and_crop(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize frames [N,3,H,W] to just cover height × width with the aspect kept, then cut out the centre."""
    scale = max(height / frames.shape[-2], width / frames.shape[-1])
    covering = [max(round(side * scale), least) for side, least in zip(frames.shape[-2:], (height, width), strict=True)]
    covered = resize(frames, *covering)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return covered[..., top : top + height, left : left + width]


def resize_and_pad(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize frames [N,3,H,W] to just fit into height × width with the aspect kept, and pad with black around them."""
    scale = min(height / frames.shape[-2], width / frames.shape[-1])
    fitting = [
        min(max(round(side * scale), 1), most) for side, most in zip(frames.shape[-2:], (height, width), strict=True)
    ]
    fitted = resize(frames, *fitting)
    below, right = height - fitting[0], width - fitting[1]
    return F.pad(fitted, (right // 2, right - right // 2, below // 2, below - below // 2))


RESIZES = {"squash": resize, "crop": resize_and_crop, "pad": resize_and_pad}


@dataclass(frozen=True)
class Preprocess:
    """How one model sees a clip.

    Args:
        height, width: pixels of the model's input.
        mean, std: of each colour, in units of the [0,1] range: the model sees (x − mean)/std.
        aspect: ``squash`` resizes height and width on their own; ``crop`` fits the short side and keeps the centre;
            ``pad`` fits the long side and fills with black.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    aspect: Aspect = "crop"

    def __post_init__(self) -> None:
        if self.aspect not in get_args(Aspect):
            raise ConfigError(f"the aspect of a reward's input is squash, crop or pad; got {self.aspect!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(
                f"normalisation takes three means and three deviations above 0; got {self.mean}, {self.std}"
            )

    def __call__(self, video_BTCHW: Tensor) -> Tensor:
        """Clips [B,T,3,H,W] in [0,1] to normalised clips [B,T,3,height,width]."""
        frames = RESIZES[self.aspect](video_BTCHW.flatten(0, 1), self.height, self.width)
        return normalise(frames, self.mean, self.std).view(*video_BTCHW.shape[:2], 3, self.height, self.width)


def preprocess_for(
    image_size: int | Sequence[int],
    config: dict[str, Any],
    default: tuple[tuple[float, ...], tuple[float, ...]],
    aspect: Aspect | None,
) -> Preprocess:
    """The preprocessing that a checkpoint's own configuration asks for.

    Args:
        image_size: the side, or height and width, that the model's position embeddings are made for.
        config: of the checkpoint's image processor, from ``read_preprocessor``; may be empty.
        default: mean and deviation where ``config`` names none.
        aspect: overrides the configuration, in which a ``height`` squashes and a ``shortest_edge`` (or nothing) crops.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    mean, std = config.get("image_mean", default[0]), config.get("image_std", default[1])
    if config.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    size = config.get("size", {})
    own: Aspect = "squash" if isinstance(size, dict) and "height" in size else "crop"
    return Preprocess(height, width, tuple(mean), tuple(std), aspect or own)
