"""HunyuanVideo's adapters under the official names: what they add to fused weights, and that diffusers reads them."""

from __future__ import annotations

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.loaders.lora_conversion_utils import _convert_hunyuan_video_lora_to_diffusers
from safetensors.torch import load_file

from reelign.errors import ModelError
from reelign.generators.lora import LoraOptions, adapter_parameters, adapter_state, add_adapter, save_adapter
from reelign.generators.lora_export import export_adapter
from reelign.generators.lora_fused import fuse

TARGETS = ("to_q", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "proj_mlp")


def saved(tmp_path, targets):
    """A tiny transformer's adapter, on disk and in ComfyUI's layout; alpha is half the rank."""
    network = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2, num_single_layers=1,
        num_refiner_layers=1, patch_size=2, text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    add_adapter(network, LoraOptions(rank=4, alpha=2, targets=targets))
    random = torch.Generator().manual_seed(0)
    for parameter in adapter_parameters(network).values():
        parameter.data = torch.randn(parameter.shape, generator=random)
    save_adapter(network, tmp_path / "saved", "transformer")
    return adapter_state(network)


def products(state, scale=1.0):
    """What each layer's weights get."""
    layers = [name.removesuffix(".lora_A.weight") for name in state if name.endswith("lora_A.weight")]
    return {layer: scale * state[f"{layer}.lora_B.weight"] @ state[f"{layer}.lora_A.weight"] for layer in layers}


def test_fused_layers_get_what_their_parts_get(tmp_path):
    """No adapter on the keys: their rows of the fused layer are left alone."""
    own = products(saved(tmp_path, TARGETS), scale=0.5)
    export_adapter(tmp_path / "saved", tmp_path / "h.safetensors", "comfyui", "hunyuan_video")
    file = products(load_file(tmp_path / "h.safetensors"))
    zeros = torch.zeros(20, 20)
    expected = {
        "single_blocks.0.linear1": [
            own["single_transformer_blocks.0.attn.to_q"], zeros, own["single_transformer_blocks.0.attn.to_v"],
            own["single_transformer_blocks.0.proj_mlp"],
        ],
    }  # fmt: skip
    for i in range(2):
        block = f"transformer_blocks.{i}.attn"
        expected |= {
            f"double_blocks.{i}.img_attn_qkv": [own[f"{block}.to_q"], zeros, own[f"{block}.to_v"]],
            f"double_blocks.{i}.img_attn_proj": [own[f"{block}.to_out.0"]],
            f"double_blocks.{i}.txt_attn_qkv": [own[f"{block}.add_{x}_proj"] for x in "qkv"],
            f"double_blocks.{i}.txt_attn_proj": [own[f"{block}.to_add_out"]],
        }
    refiner = "context_embedder.token_refiner.refiner_blocks.0.attn"
    place = "txt_in.individual_token_refiner.blocks.0.self_attn"
    expected |= {
        f"{place}_qkv": [own[f"{refiner}.to_q"], zeros, own[f"{refiner}.to_v"]],
        f"{place}_proj": [own[f"{refiner}.to_out.0"]],
    }
    assert {name.removeprefix("diffusion_model.") for name in file} == set(expected)
    for name, parts in expected.items():
        torch.testing.assert_close(file[f"diffusion_model.{name}"], torch.cat(parts))


def test_diffusers_reads_it_back(tmp_path):
    """Of the blocks with two streams; its reader has the published width of the others written into it."""
    own = products(saved(tmp_path, ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "to_add_out")), scale=0.5)
    export_adapter(tmp_path / "saved", tmp_path / "h.safetensors", "comfyui", "hunyuan_video")
    file = {name: value for name, value in load_file(tmp_path / "h.safetensors").items() if "double_blocks" in name}
    back = products(
        {name.removeprefix("transformer."): v for name, v in _convert_hunyuan_video_lora_to_diffusers(file).items()}
    )
    for name, value in back.items():
        torch.testing.assert_close(value, own.get(name, torch.zeros(20, 20)))
    assert {name for name in own if name.startswith("transformer_blocks")} <= set(back)


def test_by_hand():
    """Queries and values of rank 1 and width 2."""
    pairs = {0: (torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])), 2: (torch.ones(1, 2), torch.ones(2, 1))}
    down, up = fuse(pairs, with_mlp=False)
    assert down.tolist() == [[1, 2], [1, 1]]
    assert up.tolist() == [[3, 0], [4, 0], [0, 0], [0, 0], [0, 1], [0, 1]]


def test_other_layers_are_refused(tmp_path):
    saved(tmp_path, ("to_q", "net.2"))
    with pytest.raises(
        ModelError,
        match=r"attention layers, proj_mlp and proj_out; this adapter is on '.*ff\.net\.2'",
    ):
        export_adapter(tmp_path / "saved", tmp_path / "h.safetensors", "comfyui", "hunyuan_video")
