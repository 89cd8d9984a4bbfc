r"""ImageReward: learned human preference between a frame and its prompt, by a BLIP that reads the prompt while looking.

    r = (1/T) Σ_t w_t · (m(h_CLS(prompt, x_t)) − μ)/s,     μ = 0.16717, s = 1.03334      (Xu et al. 2023, ImageReward)

h is the BERT of BLIP with cross-attention to the ViT's tokens of the frame (Li et al. 2022), m five linear layers
without activations. The published file holds BLIP's own names, which ``convert`` turns into those of transformers.

Left out: the official package, which imports what transformers has removed (zai-org/ImageReward#118).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from reelign.contracts import RewardCard, VideoBatch
from reelign.errors import ModelError
from reelign.rewards.clip_tower import load_tokenizer
from reelign.rewards.frames import average
from reelign.rewards.laion_aesthetic import load_head
from reelign.rewards.preprocess import Aspect, Preprocess
from reelign.zoo.models import CLIP_MEAN, CLIP_STD
from reelign.zoo.published import depth, fill, read_weights

MEAN, SPREAD = 0.16717362830052426, 1.0333394966054072
TEXT_LENGTH = 35
PARTS = {"blip.visual_encoder.": "vision", "blip.text_encoder.": "text", "mlp.": "head"}
VISION_PLACES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
}
VISION_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
}


def convert(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The published names as ``vision``, ``text`` and ``head``, each named as its class here names it."""
    parts: dict[str, dict[str, Tensor]] = {"vision": {}, "text": {}, "head": {}}
    for name, value in weights.items():
        start = next((start for start in PARTS if name.startswith(start)), None)
        if start is None:
            raise ModelError(f"ImageReward's weights are named blip.* and mlp.*; got {name}")
        part, rest = PARTS[start], name.removeprefix(start)
        if part == "vision":
            rest = _vision_name(rest)
        if not rest.endswith("position_ids"):  # a constant, which newer versions do not store
            parts[part][rest] = value
    return parts


def _vision_name(name: str) -> str:
    for old, new in VISION_PLACES.items():
        if name == old or name.startswith(old + "."):
            return new + name.removeprefix(old)
    number, _, rest = name.removeprefix("blocks.").partition(".")
    part, _, kind = rest.rpartition(".")
    return f"encoder.layers.{number}.{VISION_BLOCK.get(part, part)}.{kind}"


class ImageReward:
    """Mean ImageReward of the frames, about −2 to 2.

    Args:
        weights: a file, or ``THUDM/ImageReward:ImageReward.pt`` on the hub, 1.8 GB.
        tokenizer: a folder or hub id with BERT's tokenizer, ``bert-base-uncased``.
        aspect: ``crop`` as published, ``squash`` or ``pad``.
        heads: of the ViT and of the BERT; a weight file does not say.
    """

    card = RewardCard(
        name="image_reward",
        summary="ImageReward: learned human preference between the prompt and each frame.",
        range=(-100.0, 100.0),
        resolution=(224, 224),
        needs_prompt=True,
        source="THUDM/ImageReward; Xu et al. 2023, arXiv 2304.05977",
    )

    def __init__(
        self, weights: str, tokenizer: str, aspect: Aspect = "crop", heads: tuple[int, int] = (16, 12)
    ) -> None:
        parts = convert(read_weights(weights))
        self.vision, self.text = build_blip(parts["vision"], parts["text"], heads)
        self.head = load_head(parts["head"], weights)
        self.tokenizer = load_tokenizer(tokenizer)
        side = self.vision.config.image_size
        self.preprocess = Preprocess(side, side, CLIP_MEAN, CLIP_STD, aspect)

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B]."""
        return average(self.frame_scores(batch.video, batch.request.prompts), batch)

    def frame_scores(self, video: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B,T] of every frame of clips [B,T,3,H,W]."""
        for network in (self.vision, self.text, self.head):
            network.to(video.device)
        pixels = self.preprocess(video)
        seen = self.vision(pixels.flatten(0, 1)).last_hidden_state
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"
        ).to(video.device)
        frames = video.shape[1]
        read = self.text(
            input_ids=tokens["input_ids"].repeat_interleave(frames, 0),
            attention_mask=tokens["attention_mask"].repeat_interleave(frames, 0),
            encoder_hidden_states=seen,
            encoder_attention_mask=seen.new_ones(seen.shape[:2]),
        ).last_hidden_state
        scores: Tensor = (self.head(read[:, 0]) - MEAN) / SPREAD
        return scores.view(video.shape[:2])


def build_blip(
    vision: Mapping[str, Tensor], text: Mapping[str, Tensor], heads: tuple[int, int]
) -> tuple[BlipVisionModel, Any]:
    """A frozen BLIP image encoder and text encoder with cross-attention, sizes read off the converted weights.

    Raises:
        ModelError: weights are missing or left over.
    """
    try:
        patch = vision["embeddings.patch_embedding.weight"]
        tokens = vision["embeddings.position_embedding"].shape[1]
        words, width = text["embeddings.word_embeddings.weight"].shape
        vision_config = BlipVisionConfig(
            hidden_size=len(patch),
            intermediate_size=len(vision["encoder.layers.0.mlp.fc1.weight"]),
            num_hidden_layers=depth(vision, "encoder.layers."),
            num_attention_heads=heads[0],
            image_size=patch.shape[-1] * round((tokens - 1) ** 0.5),
            patch_size=patch.shape[-1],
            layer_norm_eps=1e-6,
        )
        text_config = BlipTextConfig(
            vocab_size=words,
            hidden_size=width,
            encoder_hidden_size=len(patch),
            intermediate_size=len(text["encoder.layer.0.intermediate.dense.weight"]),
            num_hidden_layers=depth(text, "encoder.layer."),
            num_attention_heads=heads[1],
            max_position_embeddings=len(text["embeddings.position_embeddings.weight"]),
            is_decoder=True,
        )
    except KeyError as error:
        raise ModelError(f"ImageReward's weights hold BLIP's; {error} is not among them") from error
    image_encoder, text_encoder = BlipVisionModel(vision_config), BlipTextModel(text_config, add_pooling_layer=False)
    fill(image_encoder, vision, "the ImageReward checkpoint")
    fill(text_encoder, text, "the ImageReward checkpoint")
    return image_encoder, text_encoder
