r"""Does a clip keep its subject, and its background, from frame to frame? VBench's two consistencies.

    s = 1/(T − 1) · Σ_{t=2..T} ½·(max(0, cos(f_t, f_{t−1})) + max(0, cos(f_t, f_1)))      (Huang et al. 2024, section 3)

f_t is the feature of frame t: of DINO ViT-B/16 for the subject (Caron et al. 2021), of CLIP ViT-B/32 for the
background. Every frame counts, at the clip's own rate; a frozen clip scores 1. A clip of one frame has no value.

VBench's program averages subject consistency over all frames of all videos; here, as in its paper, a clip is a row, and
means are taken over clips.

Run: ``measure(frames, 8.0, [SubjectConsistency("facebook/dino-vitb16")])``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, ViTModel

from reelign.metrics.clip import ClipInfo, Frame, MetricCard, Undefined
from reelign.metrics.frame_features import CHUNK, InChunks, centre_crop, finite_mean, resize_shorter
from reelign.rewards.clip_tower import as_tensor
from reelign.rewards.preprocess import Preprocess, preprocess_for
from reelign.zoo.models import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    load_whole,
    normalise,
    read_preprocessor,
)

DINO_SIDE = 224


def consistency(features_TD: Tensor) -> float:
    """s of the features [T,D] of a clip's frames, of any length above 0, in [0, 1].

    Raises:
        Undefined: T is below 2.
    """
    if len(features_TD) < 2:
        raise Undefined(f"consistency compares at least 2 frames; this clip has {len(features_TD)}")
    unit = F.normalize(features_TD.double(), dim=-1)
    return float(_pairs(unit[1:], unit[:-1], unit[:1]).mean())


def _pairs(now: Tensor, before: Tensor, first: Tensor) -> Tensor:
    """½·(max(0, cos to the frame before) + max(0, cos to the first)) [N] of unit features [N,D], [N,D] and [1,D]."""
    return ((now * before).sum(-1).clamp_min(0) + (now * first).sum(-1).clamp_min(0)) / 2


class Consistency:
    """Accumulates s; keeps the features of the first frame and of the last one.

    Args:
        name: of the value.
        encode: frames [N,3,H,W] in [0,1] to features [N,D].
        device: where frames are encoded.
        chunk: frames encoded at once.
    """

    def __init__(self, name: str, encode: Callable[[Tensor], Tensor], device: torch.device, chunk: int = CHUNK) -> None:
        self.name, self.encode = name, encode
        self.chunks = InChunks(self._see, device, chunk)
        self.ends: Tensor | None = None  # features of the first frame and of the last so far [2,D]
        self.total, self.count = 0.0, 0

    def add(self, frame: Frame) -> None:
        """See the next frame."""
        self.chunks.add(frame)

    def finish(self) -> dict[str, float]:
        """s, by its name; raises ``Undefined`` for a clip of one frame."""
        self.chunks.flush()
        if not self.count:
            raise Undefined("consistency compares at least 2 frames; this clip has 1")
        return {self.name: finite_mean(self.name, self.total, self.count)}

    def _see(self, frames: Tensor) -> None:
        unit = F.normalize(self.encode(frames).cpu().double(), dim=-1)  # some devices have no float64
        if self.ends is None:
            first, now, before = unit[:1], unit[1:], unit[:-1]
        else:
            first, now, before = self.ends[:1], unit, torch.cat([self.ends[1:], unit[:-1]])
        self.total += float(_pairs(now, before, first).sum())
        self.count += len(now)
        self.ends = torch.cat([first, unit[-1:]])


class SubjectConsistency:
    """VBench's subject consistency, with DINO.

    Args:
        model: a folder or hub id with a transformers ``ViTModel``; VBench's: ``facebook/dino-vitb16``.
        device: where frames are encoded.
        chunk: frames encoded at once.
    """

    def __init__(self, model: str, device: str = "cpu", chunk: int = CHUNK) -> None:
        self.device, self.chunk = torch.device(device), chunk
        self.model = load_dino(model).to(self.device)
        self.card = MetricCard(
            name="subject_consistency",
            version=1,
            values=("subject_consistency",),
            unit="cosine",
            range=(0.0, 1.0),
            better="higher",
            protocol=f"VBench: {model}, class token of all frames at the clip's own rate, shorter side {DINO_SIDE} "
            "bilinear without antialiasing or crop; mean over t ≥ 2 of ½(max(0, cos to frame t−1) + max(0, cos to 1))",
            source="Huang et al. 2024, arXiv 2311.17982",
        )

    def start(self, info: ClipInfo) -> Consistency:
        """A fresh accumulator for a clip."""
        return Consistency(self.card.name, self.features, self.device, self.chunk)

    def features(self, frames: Tensor) -> Tensor:
        """Features [N,D] of frames [N,3,H,W] in [0,1]: the class token after the last norm."""
        pixels = normalise(resize_shorter(frames, DINO_SIDE, "bilinear"), IMAGENET_MEAN, IMAGENET_STD)
        hidden: Tensor = self.model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
        return hidden[:, 0]


class BackgroundConsistency:
    """VBench's background consistency, with CLIP.

    Args:
        model: ``zoo:NAME``, a folder or hub id with a transformers ``CLIPModel``; VBench's:
            ``openai/clip-vit-base-patch32``.
        device: where frames are encoded.
        chunk: frames encoded at once.
    """

    def __init__(self, model: str = "zoo:tiny-clip", device: str = "cpu", chunk: int = CHUNK) -> None:
        self.device, self.chunk = torch.device(device), chunk
        self.model, self.preprocess = load_clip_image(model, self.device)
        self.card = MetricCard(
            name="background_consistency",
            version=1,
            values=("background_consistency",),
            unit="cosine",
            range=(0.0, 1.0),
            better="higher",
            protocol=f"VBench: {model}, all frames at the clip's own rate, shorter side {self.preprocess.height} "
            "bicubic without antialiasing, cropped; mean over t ≥ 2 of ½(max(0, cos to frame t−1) + max(0, cos to 1))",
            source="Huang et al. 2024, arXiv 2311.17982",
        )

    def start(self, info: ClipInfo) -> Consistency:
        """A fresh accumulator for a clip."""
        return Consistency(self.card.name, self.features, self.device, self.chunk)

    def features(self, frames: Tensor) -> Tensor:
        """Features [N,D] of frames [N,3,H,W] in [0,1]."""
        return clip_image_features(self.model, self.preprocess, frames)


def load_clip_image(model: str, device: torch.device) -> tuple[Any, Preprocess]:
    """A frozen ``CLIPModel``, with the size and the colour statistics of its input.

    Raises:
        ModelError: the checkpoint cannot be loaded whole.
    """
    network = load_whole(CLIPModel, model).to(device)
    size = network.config.vision_config.image_size
    return network, preprocess_for(size, read_preprocessor(model), (CLIP_MEAN, CLIP_STD), "crop")


def clip_image_features(model: Any, preprocess: Preprocess, frames: Tensor) -> Tensor:
    """CLIP's projected features [N,D] of frames [N,3,H,W] in [0,1], sized as in VBench."""
    side = preprocess.height
    pixels = centre_crop(resize_shorter(frames, side, "bicubic"), side)
    return as_tensor(model.get_image_features(normalise(pixels, preprocess.mean, preprocess.std)))


class ViTWithoutPooler:
    """Loads a ``ViTModel`` without its pooler: DINO has none, and its checkpoints hold no weights for one."""

    @staticmethod
    def from_pretrained(place: str, **options: Any) -> Any:
        """As transformers' own."""
        return ViTModel.from_pretrained(place, add_pooling_layer=False, **options)


def load_dino(model: str) -> Any:
    """A frozen ``ViTModel`` that stretches its position embeddings to other sizes as DINO's program does.

    Raises:
        ModelError: the checkpoint cannot be loaded whole.
    """
    network = load_whole(ViTWithoutPooler, model)
    # transformers 5 maps the corners of the grid exactly, DINO by a scale factor that is a little larger.
    network.embeddings.interpolate_pos_encoding = partial(_dino_positions, network.embeddings)
    return network


def _dino_positions(embeddings: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    """Position embeddings [1,1+hw,D] for pixels height × width: the class token's, then the grid's.

    A size of 1 + hw tokens that the model was made for is left as it is; otherwise bicubic, with the scale factor
    (h + 0.1)/√N of facebookresearch/dino (its issue 8), which also places the samples.
    """
    own: Tensor = embeddings.position_embeddings
    if tokens.shape[1] == own.shape[1] and height == width:
        return own
    side = round((own.shape[1] - 1) ** 0.5)
    patch: int = embeddings.patch_size if isinstance(embeddings.patch_size, int) else embeddings.patch_size[0]
    grid = own[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = tuple((length // patch + 0.1) / side for length in (height, width))
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
    return torch.cat([own[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
