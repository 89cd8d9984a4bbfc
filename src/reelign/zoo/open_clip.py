"""Weights in open_clip's layout as a transformers ``CLIPModel``: HPSv2 and others are published that way.

Facts of the layout: packed ``in_proj`` of q, k, v; projections stored width × embedding and multiplied from the
right; the text feature is that of the highest token id, which is the end token. Sizes are read off the weights, all
but the number of heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from reelign.errors import ModelError
from reelign.zoo.published import depth, fill

LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
PLAIN = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}


def convert(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names to those of transformers."""
    converted: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in PLAIN:
            converted[PLAIN[name]] = value
        elif name in TRANSPOSED:
            converted[TRANSPOSED[name]] = value.T.contiguous()
        elif "resblocks." in name:
            converted.update(_layer(name, value))
        elif name != "attn_mask":
            converted[name] = value  # left over: ``fill`` names it
    return converted


def _layer(name: str, value: Tensor) -> dict[str, Tensor]:
    tower = "vision_model" if name.startswith("visual.") else "text_model"
    number, _, rest = name.partition("resblocks.")[2].partition(".")
    place = f"{tower}.encoder.layers.{number}."
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return {
            f"{place}self_attn.{part}_proj.{kind}": piece for part, piece in zip("qkv", value.chunk(3), strict=True)
        }
    part, _, kind = rest.rpartition(".")
    return {f"{place}{LAYER.get(part, part)}.{kind}": value}


def build(weights: Mapping[str, Tensor], heads: tuple[int, int] = (16, 16), act: str = "gelu") -> CLIPModel:
    """A frozen ``CLIPModel`` with open_clip's weights.

    Args:
        weights: by open_clip's names.
        heads: of the image and of the text transformer; both are 16 in ViT-H/14.
        act: ``gelu``, or ``quick_gelu`` for OpenAI's own weights.

    Raises:
        ModelError: weights are missing or left over, or not in open_clip's layout at all.
    """
    needed = (*TRANSPOSED, "visual.positional_embedding", "visual.conv1.weight", "positional_embedding",
              "token_embedding.weight", "visual.transformer.resblocks.0.mlp.c_fc.weight",
              "transformer.resblocks.0.mlp.c_fc.weight")  # fmt: skip
    if missing := [name for name in needed if name not in weights]:
        raise ModelError(f"open_clip's weights hold {missing[0]}; this file does not: is it another model's?")
    patches, width = weights["visual.positional_embedding"].shape
    patch = weights["visual.conv1.weight"].shape[-1]
    length, text_width = weights["positional_embedding"].shape
    words = len(weights["token_embedding.weight"])
    shared = {"hidden_act": act, "layer_norm_eps": 1e-5, "projection_dim": weights["visual.proj"].shape[1]}
    config = CLIPConfig(
        vision_config={
            **shared,
            "hidden_size": width,
            "intermediate_size": len(weights["visual.transformer.resblocks.0.mlp.c_fc.weight"]),
            "num_hidden_layers": depth(weights, "visual.transformer.resblocks."),
            "num_attention_heads": heads[0],
            "image_size": patch * round((patches - 1) ** 0.5),
            "patch_size": patch,
        },
        text_config={
            **shared,
            "hidden_size": text_width,
            "intermediate_size": len(weights["transformer.resblocks.0.mlp.c_fc.weight"]),
            "num_hidden_layers": depth(weights, "transformer.resblocks."),
            "num_attention_heads": heads[1],
            "vocab_size": words,
            "max_position_embeddings": length,
            "bos_token_id": words - 2,
            "eos_token_id": words - 1,
            "pad_token_id": 0,
        },
        projection_dim=shared["projection_dim"],
    )
    with torch.device("meta"):
        model = CLIPModel(config)
    model = model.to_empty(device="cpu")
    for tower in (model.text_model, model.vision_model):  # counted positions are no weights of the file
        positions = tower.embeddings.position_ids
        positions.copy_(torch.arange(positions.shape[1]).expand(positions.shape))
    fill(model, convert(weights), "the open_clip checkpoint")
    return model
