r"""LAION aesthetic score v2, and heads of its layout: how beautiful is a frame, whatever the prompt?

    s = W₅·W₄·W₃·W₂·W₁·e + b,     e = f_image(x) / ‖f_image(x)‖₂       (Schuhmann 2022, improved-aesthetic-predictor)

Five linear layers without activations on CLIP-L/14's feature, so s is affine in e and unbounded, nominally 1 to 10.
The rain and snow heads of VADER (Prabhudesai et al. 2024) have the same layout and end in a sigmoid.

Unnormalised features give scores above 10 (LAION-AI/aesthetic-predictor#5); the missing activations are deliberate
(christophschuhmann/improved-aesthetic-predictor#1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from reelign.contracts import RewardCard, VideoBatch
from reelign.errors import ModelError
from reelign.rewards.clip_tower import load_tower
from reelign.rewards.frames import average
from reelign.rewards.preprocess import Aspect
from reelign.zoo.published import fill, read_weights

LAYERS = (0, 2, 4, 6, 7)  # where the linear layers sit; dropouts take the other places


class AestheticHead(nn.Module):
    """Five linear layers at the published places; [N,D] to [N].

    Args:
        sizes: widths, from the feature's to 1.
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        places = {str(place): nn.Linear(a, b) for place, a, b in zip(LAYERS, sizes, sizes[1:], strict=False)}
        self.layers = nn.ModuleDict(places)

    def forward(self, unit_features: Tensor) -> Tensor:
        """Scores [N] of unit features [N,D]."""
        for layer in self.layers.values():
            unit_features = layer(unit_features)
        return unit_features[..., 0]


def load_head(weights: Mapping[str, Tensor], source: str) -> AestheticHead:
    """The head in published weights, with its sizes read off them.

    Raises:
        ModelError: it is no head of this layout.
    """
    names = [f"layers.{place}.weight" for place in LAYERS]
    if missing := [name for name in names if name not in weights]:
        raise ModelError(f"an aesthetic head has the linear layers {LAYERS}; {source} lacks {missing[0]}")
    head = AestheticHead((weights[names[0]].shape[1], *(len(weights[name]) for name in names)))
    fill(head, weights, source)
    return head


class LaionAesthetic:
    """Mean aesthetic score of the frames, or the probability that a sigmoid head gives.

    Args:
        head: a weight file, or ``owner/name:file`` on the hub; published: ``sac+logos+ava1-l14-linearMSE.pth``, 3.7 MB.
        clip: a folder or hub id with CLIP-L/14, ``openai/clip-vit-large-patch14``.
        sigmoid: end in a sigmoid, as the rain and snow heads do.
        aspect: ``crop`` as published, ``squash`` as VADER, or ``pad``.
    """

    card = RewardCard(
        name="laion_aesthetic",
        summary="LAION aesthetic score v2 of each frame, nominally 1 to 10; with a sigmoid head a probability.",
        range=(-100.0, 100.0),
        resolution=(224, 224),
        source="sac+logos+ava1-l14-linearMSE.pth on openai/clip-vit-large-patch14; Schuhmann 2022",
    )

    def __init__(self, head: str, clip: str, sigmoid: bool = False, aspect: Aspect | None = None) -> None:
        self.head = load_head(read_weights(head), head)
        self.tower = load_tower(clip, aspect=aspect)
        width, expected = self.tower.model.config.projection_dim, self.head.layers["0"].in_features
        if width != expected:
            raise ModelError(
                f"{head} reads features of {expected} numbers; {clip} gives {width}: use the CLIP it was made for"
            )
        self.sigmoid = sigmoid
        if sigmoid:
            self.card = replace(type(self).card, range=(0.0, 1.0))

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B]."""
        self.head.to(batch.video.device)
        scores = self.head(self.tower.image_features(batch.video))
        return average(torch.sigmoid(scores) if self.sigmoid else scores, batch)
