"""Weights in open_clip's layout as transformers models: HPSv2 and VideoCrafter2's text are published that way.

Facts of the layout: packed ``in_proj`` of q, k, v; projections stored width × embedding and multiplied from the
right; the text feature is that of the highest token id, which is the end token. Sizes are read off the weights, all
but the number of heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

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
HEAD = 64
TEXT = ("positional_embedding", "token_embedding.weight", "transformer.resblocks.0.mlp.c_fc.weight")
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
    _require(
        weights,
        *(*TRANSPOSED, "visual.positional_embedding", "visual.conv1.weight", *TEXT),
        "visual.transformer.resblocks.0.mlp.c_fc.weight",
    )
    patches, width = weights["visual.positional_embedding"].shape
    patch = weights["visual.conv1.weight"].shape[-1]
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
        text_config={**shared, **_text_sizes(weights, heads[1])},
        projection_dim=shared["projection_dim"],
    )
    with torch.device("meta"):
        model = CLIPModel(config)
    model = model.to_empty(device="cpu")
    for tower in (model.text_model, model.vision_model):
        _count_positions(tower)
    fill(model, convert(weights), "the open_clip checkpoint")
    return model


def build_text(weights: Mapping[str, Tensor], skip: int = 1, act: str = "gelu") -> CLIPTextModel:
    """A frozen text tower whose states are those before the last ``skip`` layers, through the final layer norm.

    The layers that are skipped are never run, so they are not loaded. Heads are 64 wide, as in every published tower.

    Args:
        weights: by open_clip's names; those of an image tower are left aside.

    Raises:
        ModelError: as ``build``; or too few layers.
    """
    _require(weights, *TEXT)
    sizes = _text_sizes(weights, max(1, weights["positional_embedding"].shape[1] // HEAD))
    layers = sizes["num_hidden_layers"] - skip
    if layers < 1:
        raise ModelError(f"a text tower needs more than the {skip} layers to skip; this one has {layers + skip}")
    skipped = (f"transformer.resblocks.{layers + extra}." for extra in range(skip))
    unused = ("visual.", "logit_scale", "text_projection", "attn_mask", *skipped)
    kept = {name: value for name, value in weights.items() if not name.startswith(unused)}
    with torch.device("meta"):
        model = CLIPTextModel(
            CLIPTextConfig(hidden_act=act, layer_norm_eps=1e-5, **{**sizes, "num_hidden_layers": layers})
        )
    model = model.to_empty(device="cpu")
    tower = getattr(model, "text_model", model)  # transformers 5 has dropped the level between
    _count_positions(tower)
    plain = {name.removeprefix("text_model."): value for name, value in convert(kept).items()}
    fill(tower, plain, "the text tower of the checkpoint")
    return model.eval().requires_grad_(False)


def _require(weights: Mapping[str, Tensor], *names: str) -> None:
    if missing := [name for name in names if name not in weights]:
        raise ModelError(f"open_clip's weights hold {missing[0]}; this file does not: is it another model's?")


def _text_sizes(weights: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
    length, width = weights["positional_embedding"].shape
    words = len(weights["token_embedding.weight"])
    return {
        "hidden_size": width,
        "intermediate_size": len(weights["transformer.resblocks.0.mlp.c_fc.weight"]),
        "num_hidden_layers": depth(weights, "transformer.resblocks."),
        "num_attention_heads": heads,
        "vocab_size": words,
        "max_position_embeddings": length,
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": 0,
    }


def _count_positions(tower: Any) -> None:
    """Counted positions are no weights of the file."""
    positions = tower.embeddings.position_ids
    positions.copy_(torch.arange(positions.shape[1]).expand(positions.shape))
