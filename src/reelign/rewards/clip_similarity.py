r"""CLIP similarity: does each frame look like what the prompt says?

    r = (1/T) Σ_t w_t · cos(f_image(x_t), f_text(prompt))       (Radford et al. 2021, CLIP, section 2.3)

The cosine itself, without the learned temperature, so it lies in (−1, 1) and its gradient does not saturate.
``scale`` gives the two published variants: CLIPScore (Hessel et al. 2021, eq. 1, as torchmetrics has it) is
100·max(cos, 0); PickScore (Kirstain et al. 2023, eq. 1) is exp(logit_scale)·cos with its own weights.

Run: ``reelign score CLIPS --rewards clip``.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from reelign.contracts import RewardCard, VideoBatch
from reelign.rewards.card import read_golden
from reelign.rewards.clip_tower import ClipTower, load_tower
from reelign.rewards.frames import average
from reelign.rewards.preprocess import Aspect
from reelign.zoo.models import PREFIX

CLIP_SCORE = 100.0


class ClipSimilarity:
    """Mean cosine between the prompt's feature and each frame's, in (−1, 1).

    Args:
        model: ``zoo:NAME``, a folder or a hub id with a transformers ``CLIPModel`` and its tokenizer.
        aspect: ``squash``, ``crop`` or ``pad``; the model's own way where None.
    """

    card = RewardCard(
        name="clip",
        summary="Mean cosine between the prompt and each frame.",
        range=(-1.0, 1.0),
        needs_prompt=True,
        source="zoo:tiny-clip or any CLIPModel; Radford et al. 2021, arXiv 2103.00020",
    )

    def __init__(self, model: str = "zoo:tiny-clip", aspect: Aspect | None = None) -> None:
        self.tower = load_tower(model, aspect=aspect)
        self.card = own_card(type(self).card, model, self.tower)

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B] in (−1, 1)."""
        return average(self.tower.cosines(batch.video, batch.request.prompts), batch)


class ClipScore:
    """CLIPScore: 100·max(cos, 0) of each frame, averaged, in [0, 100]. No gradient below 0: train on ``clip`` instead.

    Args:
        model: ``zoo:NAME``, a folder or a hub id with a transformers ``CLIPModel`` and its tokenizer.
        aspect: ``squash``, ``crop`` or ``pad``; the model's own way where None.
    """

    card = RewardCard(
        name="clip_score",
        summary="CLIPScore: 100·max(cosine, 0) between the prompt and each frame.",
        range=(0.0, 100.0),
        needs_prompt=True,
        source="zoo:tiny-clip or any CLIPModel; Hessel et al. 2021, arXiv 2104.08718",
    )

    def __init__(self, model: str = "zoo:tiny-clip", aspect: Aspect | None = None) -> None:
        self.tower = load_tower(model, aspect=aspect)
        self.card = replace(own_card(type(self).card, model, self.tower), golden=None)

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B] in [0, 100]."""
        cosines = self.tower.cosines(batch.video, batch.request.prompts)
        return average(CLIP_SCORE * cosines.clamp_min(0), batch)


class PickScore:
    """PickScore: exp(logit_scale)·cos of each frame and the prompt, averaged; about 18 to 24 as published.

    VADER's program reads row 0 of the similarity matrix, wrong for more than one prompt; here it is the diagonal.

    Args:
        model: a folder or hub id; published: ``yuvalkirstain/PickScore_v1``.
        tokenizer: published: that of ``laion/CLIP-ViT-H-14-laion2B-s32B-b79K``; beside the model where None.
        aspect: ``squash``, ``crop`` or ``pad``; the model's own way (crop) where None.
    """

    card = RewardCard(
        name="pick_score",
        summary="PickScore: learned human preference between the prompt and each frame.",
        range=(-100.0, 100.0),
        needs_prompt=True,
        licence="not stated by its authors",
        source="yuvalkirstain/PickScore_v1; Kirstain et al. 2023, arXiv 2305.01569",
    )

    def __init__(self, model: str, tokenizer: str | None = None, aspect: Aspect | None = None) -> None:
        self.tower = load_tower(model, tokenizer, aspect)
        self.scale = math.exp(float(self.tower.model.logit_scale))
        self.card = replace(own_card(type(self).card, model, self.tower), range=(-self.scale, self.scale))

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B]."""
        return average(self.scale * self.tower.cosines(batch.video, batch.request.prompts), batch)


def own_card(card: RewardCard, model: str, tower: ClipTower) -> RewardCard:
    """The card of a class, completed with what the loaded model is."""
    shipped = model.startswith(PREFIX)
    return replace(
        card,
        resolution=(tower.preprocess.height, tower.preprocess.width),
        licence=card.licence if shipped or card.licence != "Apache-2.0" else f"that of {model}",
        source=f"{model}; {card.source.partition('; ')[2]}",
        golden=read_golden(model),
    )
