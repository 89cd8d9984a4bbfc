r"""CLIP similarity: does each frame look like what the prompt says?

    r = mean over frames t of cos(f_image(x_t), f_text(prompt))       (Radford et al. 2021, CLIP, section 2.3)

The cosine itself, without the learned temperature, so it lies in (−1, 1) and its gradient does not saturate. Any
transformers ``CLIPModel`` works; PickScore (Kirstain et al. 2023) is one, and differs from this by its factor
exp(logit_scale) alone. Text is encoded once per prompt and remembered.

Left out: prompt templates; CLIPScore's factor and clipping at 0 (Hessel et al. 2021), which has no gradient below 0.

Run: ``reelign score CLIPS --reward clip``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from reelign.contracts import RewardCard, VideoBatch
from reelign.errors import ModelError
from reelign.rewards.card import read_golden
from reelign.rewards.preprocess import Aspect, preprocess_for
from reelign.zoo.models import CLIP_MEAN, CLIP_STD, PREFIX, load_whole, read_preprocessor, resolve_model

REMEMBERED_PROMPTS = 4096


class ClipSimilarity:
    """Mean cosine between the prompt's feature and each frame's, in (−1, 1).

    Args:
        model: ``zoo:NAME``, a folder or a hub id with a transformers ``CLIPModel`` and its tokenizer.
        aspect: ``squash`` or ``crop``; the model's own way where None.
    """

    def __init__(self, model: str = "zoo:tiny-clip", aspect: Aspect | None = None) -> None:
        self.model = load_whole(CLIPModel, model)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(resolve_model(model))
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot load the tokenizer of {model}: {' '.join(str(error).split())[:200]}") from error
        image_size = self.model.config.vision_config.image_size
        self.preprocess = preprocess_for(image_size, read_preprocessor(model), (CLIP_MEAN, CLIP_STD), aspect)
        self._text: OrderedDict[str, Tensor] = OrderedDict()
        self.card = RewardCard(
            name="clip",
            summary=f"Mean cosine between the prompt and each frame, by {model}.",
            range=(-1.0, 1.0),
            resolution=(self.preprocess.height, self.preprocess.width),
            needs_prompt=True,
            licence="Apache-2.0" if model.startswith(PREFIX) else f"that of {model}",
            source=f"{model}; Radford et al. 2021, arXiv 2103.00020",
            golden=read_golden(model),
        )

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B] in (−1, 1)."""
        text_BD = self.text_features(batch.request.prompts, batch.video.device)
        pixels = self.preprocess(batch.video)
        image = F.normalize(_features(self.model.get_image_features(pixels.flatten(0, 1))), dim=-1)
        image_BTD = image.view(*pixels.shape[:2], -1)
        return torch.einsum("btd,bd->b", image_BTD, text_BD) / pixels.shape[1]

    def text_features(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """Unit text features [B,D] of the prompts, from memory where they were asked before.

        The model moves to ``device``, where the clips are.
        """
        if self.model.device != device:
            self.model.to(device)
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._text]
        if new:
            self._text.update(zip(new, self._encode(new), strict=True))
        for prompt in prompts:
            self._text.move_to_end(prompt)
        features = torch.stack([self._text[prompt] for prompt in prompts])
        while len(self._text) > REMEMBERED_PROMPTS:
            self._text.popitem(last=False)
        return features.to(device)

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> Tensor:
        """Unit text features [N,D]; longer prompts are cut at the length the model was made for."""
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(prompts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        tokens = tokens.to(self.model.device)
        features = self.model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
        return F.normalize(_features(features), dim=-1)


def _features(output: Any) -> Tensor:
    """Projected features [N,D]; transformers 5 wraps them in an output object (huggingface/lerobot#3419)."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features
