"""A random ModelScope text-to-video of a few thousand weights, in the published layout."""

from __future__ import annotations

import json

import torch
from diffusers import AutoencoderKL, DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SIZE = {"height": 32, "width": 32, "frames": 4, "device": "cpu"}


def build(folder):
    """Write a ``TextToVideoSDPipeline`` to a folder; returns the folder."""
    torch.manual_seed(0)
    unet = UNet3DConditionModel(
        block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8,
    )  # fmt: skip
    words = {
        w: i for i, w in enumerate(["<|startoftext|>", "<|endoftext|>", *"abcdefgot", *(f"{c}</w>" for c in "agt")])
    }
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    pipeline = TextToVideoSDPipeline(vae, text, tokenizer, unet, scheduler)
    pipeline.save_pretrained(folder)
    return folder
