r"""HunyuanVideo's adapters under the official names, whose queries, keys and values are one layer.

An adapter of one layer of three, W = (W_q; W_k; W_v), that does what theirs do:

    A = (A_q; A_k; A_v)  [3r,in],      B = diag(B_q, B_k, B_v)  [3·out,3r],      B·A = (B_q·A_q; B_k·A_k; B_v·A_v)

ComfyUI (``comfy/lora.py``, ``model_lora_keys_unet``) and diffusers read these names after ``diffusion_model.``;
diffusers at the published width alone, and without the token refiner, whose A it cuts in three.

Left out: feed-forward and modulation layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from reelign.errors import ModelError

Pair = tuple[Tensor, Tensor]

MLP = 4  # rows of the feed-forward part of ``linear1``, in widths
QKV = ("q", "k", "v")
# Layers of a block in diffusers' names: the official name, and which part of it they are, where it is fused.
DOUBLE = {
    **{f"attn.to_{x}": ("img_attn_qkv", i) for i, x in enumerate(QKV)},
    **{f"attn.add_{x}_proj": ("txt_attn_qkv", i) for i, x in enumerate(QKV)},
    "attn.to_out.0": ("img_attn_proj", None),
    "attn.to_add_out": ("txt_attn_proj", None),
}
SINGLE = {
    **{f"attn.to_{x}": ("linear1", i) for i, x in enumerate(QKV)},
    "proj_mlp": ("linear1", 3),
    "proj_out": ("linear2", None),
}
REFINER = {
    **{f"attn.to_{x}": ("self_attn_qkv", i) for i, x in enumerate(QKV)},
    "attn.to_out.0": ("self_attn_proj", None),
}
BLOCKS = {
    "transformer_blocks": ("double_blocks", DOUBLE),
    "single_transformer_blocks": ("single_blocks", SINGLE),
    "context_embedder.token_refiner.refiner_blocks": ("txt_in.individual_token_refiner.blocks", REFINER),
}


def official_hunyuan(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter of HunyuanVideo's transformer under the official names.

    Args:
        state: ``LAYER.lora_A.weight`` [r,in] and ``LAYER.lora_B.weight`` [out,r], in diffusers' names.

    Raises:
        ModelError: a layer that is none of an attention.
    """
    named: dict[str, Tensor] = {}
    fused: dict[str, dict[int, Pair]] = {}
    for layer in [name.removesuffix(".lora_A.weight") for name in state if name.endswith(".lora_A.weight")]:
        official, part = _official(layer)
        pair = state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"]
        if part is None:
            named |= {f"{official}.lora_{way}.weight": value for way, value in zip("AB", pair, strict=True)}
        else:
            fused.setdefault(official, {})[part] = pair
    for official, parts in fused.items():
        pair = fuse(parts, official.endswith("linear1"))
        named |= {f"{official}.lora_{way}.weight": value for way, value in zip("AB", pair, strict=True)}
    return named


def fuse(parts: Mapping[int, Pair], with_mlp: bool) -> Pair:
    """A [Σr,in] and B [rows,Σr] of the fused layer; parts that have no adapter get zeros.

    Args:
        parts: A [r,in] and B [out,r] of queries (0), keys (1), values (2) and the feed-forward part (3).
        with_mlp: whether the layer has the last.
    """
    part, (_, up) = next(iter(parts.items()))
    width = len(up) // MLP if part == 3 else len(up)
    rows = [width] * 3 + [MLP * width] * with_mlp
    blocks = [parts[i][1] if i in parts else up.new_zeros(rows[i], 0) for i in range(len(rows))]
    diagonal: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return torch.cat([parts[i][0] for i in sorted(parts)]), diagonal


def _official(layer: str) -> tuple[str, int | None]:
    """The official name of a layer, and which part of it this one is."""
    match = re.fullmatch(r"(.+blocks)\.(\d+)\.(.+)", layer)
    block, layers = BLOCKS.get(match[1], ("", {})) if match else ("", {})
    if match is None or match[3] not in layers:
        raise ModelError(
            f"what is exported of HunyuanVideo is attention layers, proj_mlp and proj_out; this adapter is on {layer!r}"
        )
    name, part = layers[match[3]]
    return f"{block}.{match[2]}.{name}", part
