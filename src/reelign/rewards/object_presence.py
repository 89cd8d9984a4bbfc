r"""Object present, or absent: does a detector see the object in each frame?

    present(x) = 1 − Π_q (1 − p_q(c | x)),      absent(x) = 1 − present(x)

p_q is the probability that box q of a detector shows the object c: YOLOS (Fang et al. 2021) by a softmax over its
classes, Grounding DINO (Liu et al. 2023) by a sigmoid at the words of the object's name. The product over boxes has a
gradient even where no box is sure, which VADER's form (Prabhudesai et al. 2024, section 4.1; ``form: mean_detected``)
has not: the mean of p over the boxes above a threshold whose best class is c, 0 where there is none.

Left out: box sizes and places; counting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import AutoConfig, GroundingDinoForObjectDetection, YolosForObjectDetection

from reelign.contracts import RewardCard, VideoBatch
from reelign.errors import ConfigError, ModelError
from reelign.rewards.clip_tower import load_tokenizer
from reelign.rewards.frames import average
from reelign.rewards.labels import Labels
from reelign.rewards.preprocess import resize
from reelign.zoo.models import IMAGENET_MEAN, IMAGENET_STD, load_whole, normalise, resolve_model

Form = Literal["any_box", "mean_detected"]
YOLOS_THRESHOLD, DINO_THRESHOLD = 0.2, 0.4
SURE = 1 - 1e-6  # keeps log(1 − p) finite


def any_box(p_NQ: Tensor) -> Tensor:
    """1 − Π_q (1 − p_q), [N], from probabilities [N,Q]."""
    return -torch.expm1(torch.log1p(-p_NQ.clamp_max(SURE)).sum(-1))


def mean_detected(p_NQ: Tensor, best_NQ: Tensor, threshold: float) -> Tensor:
    """Mean probability [N] of the boxes that are detected (best class and above the threshold), 0 without one."""
    detected = (best_NQ & (p_NQ > threshold)).to(p_NQ.dtype)
    return (p_NQ * detected).sum(-1) / detected.sum(-1).clamp_min(1)


class ObjectPresence:
    """Mean over frames of the probability that the object is there (or is not), in [0, 1].

    Args:
        model: a folder or hub id with a YOLOS or Grounding DINO, for example ``hustvl/yolos-tiny``.
        target: the object; for YOLOS one of its classes, read off the prompt where None.
        absent: reward its absence.
        form: ``any_box``, or ``mean_detected`` as VADER.
        classes: for YOLOS, more ways to name a class: keyword to one of its labels.
        height: frames are resized to this many rows, the aspect kept (VADER: 512).
    """

    card = RewardCard(
        name="object_presence",
        summary="Probability that a detector sees the object (or does not) in each frame.",
        range=(0.0, 1.0),
        needs_prompt=True,
        licence="that of the weights (YOLOS, Grounding DINO: Apache-2.0)",
        source="hustvl/yolos-*, IDEA-Research/grounding-dino-*",
    )

    def __init__(
        self,
        model: str,
        target: str | None = None,
        absent: bool = False,
        form: Form = "any_box",
        classes: Mapping[str, str] | None = None,
        height: int = 512,
    ) -> None:
        if form not in get_args(Form):
            raise ConfigError(f"the form of object_presence is one of {get_args(Form)}; got {form!r}")
        try:
            kind = AutoConfig.from_pretrained(resolve_model(model)).model_type
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"no detector could be loaded from {model}: {reason}") from error
        if kind not in ("yolos", "grounding-dino"):
            raise ModelError(f"object_presence takes a YOLOS or a Grounding DINO; {model} is a {kind}")
        self.grounded = kind == "grounding-dino"
        self.model = load_whole(GroundingDinoForObjectDetection if self.grounded else YolosForObjectDetection, model)
        self.target, self.absent, self.form, self.height = target, absent, form, height
        if self.grounded:
            if target is None:
                raise ConfigError("object_presence with Grounding DINO needs the option 'target', for example 'book'")
            tokenizer = load_tokenizer(model)
            self.tokens = tokenizer(f"{target.lower().rstrip('.')}.", return_tensors="pt")
            marks = torch.tensor([*tokenizer.all_special_ids, tokenizer.convert_tokens_to_ids(".")])
            self.words = (~torch.isin(self.tokens["input_ids"][0], marks)).nonzero()[:, 0]
        else:
            self.labels = Labels(self.model.config.id2label, classes or {}, model)
        self.card = replace(type(self).card, needs_prompt=target is None)

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B] in [0, 1]."""
        device, (clips, frames) = batch.video.device, batch.video.shape[:2]
        self.model.to(device)
        rows, columns = batch.video.shape[-2:]
        width = max(1, round(self.height * columns / rows))
        pixels = normalise(resize(batch.video.flatten(0, 1), self.height, width), IMAGENET_MEAN, IMAGENET_STD)
        if self.grounded:
            p, best = self._grounding_dino(pixels)
        else:
            asked = torch.tensor([self.labels.class_of(self.target or p) for p in batch.request.prompts], device=device)
            p, best = self._yolos(pixels, asked.repeat_interleave(frames))
        threshold = DINO_THRESHOLD if self.grounded else YOLOS_THRESHOLD
        present = any_box(p) if self.form == "any_box" else mean_detected(p, best, threshold)
        return average((1 - present if self.absent else present).view(clips, frames), batch)

    def _yolos(self, pixels: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Probability [N,Q] of the asked class in each box, and whether it is the box's best; the last is none."""
        probabilities = self.model(pixel_values=pixels).logits.softmax(-1)[..., :-1]
        p = probabilities.gather(-1, asked[:, None, None].expand(-1, probabilities.shape[1], 1))[..., 0]
        return p, probabilities.argmax(-1) == asked[:, None]

    def _grounding_dino(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Probability [N,Q] that a box shows the target: the largest over the words of its name."""
        text = {name: value.expand(len(pixels), -1).to(pixels.device) for name, value in self.tokens.items()}
        logits = self.model(pixel_values=pixels, **text).logits  # padded with −∞ to the longest text
        p = logits[..., self.words.to(logits.device)].sigmoid().amax(-1)
        return p, torch.ones_like(p, dtype=torch.bool)

    def golden_prompts(self, captions: Sequence[str]) -> tuple[str, ...]:
        """Prompts that this detector can be checked with."""
        return tuple(captions) if self.grounded or self.target else self.labels.golden_prompts(captions)
