r"""What every CLIP-shaped reward shares: unit features of frames and of prompts, and their cosine.

    cos(f_image(x), f_text(p)),      f = projected feature / ‖projected feature‖₂       (Radford et al. 2021, figure 3)

A tower is composed into a reward, which adds its own formula. Text is encoded once per prompt and remembered.

Left out: prompt templates.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from reelign.errors import ModelError
from reelign.rewards.preprocess import Aspect, Preprocess, preprocess_for
from reelign.zoo.models import CLIP_MEAN, CLIP_STD, load_whole, read_preprocessor, resolve_model

REMEMBERED_PROMPTS = 4096


class ClipTower:
    """A frozen CLIP with its tokenizer and its way of seeing frames.

    Args:
        model: a transformers ``CLIPModel``, frozen.
        tokenizer: of transformers.
        preprocess: from pixels in [0,1] to the model's input.
    """

    def __init__(self, model: Any, tokenizer: Any, preprocess: Preprocess) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self._text: OrderedDict[str, Tensor] = OrderedDict()

    def image_features(self, video: Tensor) -> Tensor:
        """Unit features [B,T,D] of clips [B,T,3,H,W] in [0,1]; the model moves to where the clips are."""
        self._move(video.device)
        pixels = self.preprocess(video)
        features = F.normalize(as_tensor(self.model.get_image_features(pixels.flatten(0, 1))), dim=-1)
        return features.view(*pixels.shape[:2], -1)

    def text_features(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """Unit features [B,D] of the prompts, from memory where they were asked before."""
        self._move(device)
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._text]
        if new:
            self._text.update(zip(new, self._encode(new), strict=True))
        for prompt in prompts:
            self._text.move_to_end(prompt)
        features = torch.stack([self._text[prompt] for prompt in prompts])
        while len(self._text) > REMEMBERED_PROMPTS:
            self._text.popitem(last=False)
        return features.to(device)

    def cosines(self, video: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine [B,T] of each frame and its clip's prompt."""
        text_BD = self.text_features(prompts, video.device)
        return torch.einsum("btd,bd->bt", self.image_features(video), text_BD)

    def _move(self, device: torch.device) -> None:
        if self.model.device != device:
            self.model.to(device)

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> Tensor:
        """Unit text features [N,D]; longer prompts are cut at the length the model was made for."""
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(prompts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        tokens = tokens.to(self.model.device)
        features = self.model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
        return F.normalize(as_tensor(features), dim=-1)


def load_tower(model: str, tokenizer: str | None = None, aspect: Aspect | None = None) -> ClipTower:
    """A tower from a transformers ``CLIPModel`` checkpoint.

    Args:
        model: ``zoo:NAME``, a folder or a hub id.
        tokenizer: where the tokenizer is, if not beside the model.
        aspect: how frames are brought to the model's size; the model's own way where None.

    Raises:
        ModelError: the checkpoint or its tokenizer cannot be loaded.
    """
    network = load_whole(CLIPModel, model)
    preprocess = preprocess_for(
        network.config.vision_config.image_size, read_preprocessor(model), (CLIP_MEAN, CLIP_STD), aspect
    )
    return ClipTower(network, load_tokenizer(tokenizer or model), preprocess)


def load_tokenizer(name: str) -> Any:
    """The tokenizer in a folder, of the zoo, or on the hub.

    Raises:
        ModelError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(resolve_model(name))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the tokenizer of {name}: {' '.join(str(error).split())[:200]}") from error


def as_tensor(output: Any) -> Tensor:
    """Projected features [N,D]; transformers 5 wraps them in an output object (huggingface/lerobot#3419)."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features
