"""Folders of the published models' configs as plain numbers, without weights, for the planner.

The classes' own defaults stand where a number is not given. Tokenizers are a stand-in: only the length of texts counts.
Of VideoCrafter2 and of Open-Sora's autoencoder reelign itself knows the sizes.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from reelign.generators.opensora_network import FIXED

T5 = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
      "feed_forward_proj": "gated-gelu"}  # fmt: skip
UMT5 = T5 | {"vocab_size": 256384}
CLIP_L_TEXT = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
               "num_attention_heads": 12, "max_position_embeddings": 77}  # fmt: skip
CLIP_H_TEXT = {"vocab_size": 49408, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
               "num_attention_heads": 16, "max_position_embeddings": 77}  # fmt: skip
CLIP_H_VISION = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
                 "image_size": 224, "patch_size": 14, "projection_dim": 1024}  # fmt: skip
LLAMA_8B = {"vocab_size": 128320, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192}  # fmt: skip
WAN_VAE = {"base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [],
           "temperal_downsample": [False, True, True]}  # fmt: skip
WAN_22_VAE = WAN_VAE | {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12,
                        "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48,
                        "latents_std": [1.0] * 48}  # fmt: skip
PICTURE_VAE = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4}
COG_VAE = {"block_out_channels": [128, 256, 256, 512], "down_block_types": ["CogVideoXDownBlock3D"] * 4,
           "up_block_types": ["CogVideoXUpBlock3D"] * 4, "latent_channels": 16, "layers_per_block": 3}  # fmt: skip
COG_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
             "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
             "timestep_spacing": "trailing"}  # fmt: skip
KARRAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "use_karras_sigmas": True,
          "prediction_type": "v_prediction", "sigma_min": 0.002, "sigma_max": 700.0, "timestep_spacing": "leading",
          "timestep_type": "continuous"}  # fmt: skip

Component = tuple[str, dict[str, Any]]  # class, numbers


def wan(heads: int, layers: int, wide: int, vae: dict[str, Any] = WAN_VAE, **network: Any) -> dict[str, Component]:
    """Wan 2.1 text-to-video, or a relative."""
    sizes = {
        "num_attention_heads": heads,
        "attention_head_dim": 128,
        "num_layers": layers,
        "ffn_dim": wide,
        "in_channels": vae["z_dim"],
        "out_channels": vae["z_dim"],
        "text_dim": 4096,
        "freq_dim": 256,
    }
    return {
        "transformer": ("WanTransformer3DModel", sizes | network),
        "vae": ("AutoencoderKLWan", vae),
        "text_encoder": ("UMT5EncoderModel", UMT5),
        "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        "tokenizer": ("tokenizer", {"length": 512}),
    }


WAN_14B = wan(40, 40, 13824)


def cogvideox(heads: int, layers: int, rotary: bool) -> dict[str, Component]:
    """CogVideoX text-to-video."""
    network = {"num_attention_heads": heads, "num_layers": layers, "use_rotary_positional_embeddings": rotary}
    return {
        "transformer": ("CogVideoXTransformer3DModel", network),
        "vae": ("AutoencoderKLCogVideoX", COG_VAE),
        "text_encoder": ("T5EncoderModel", T5),
        "scheduler": ("CogVideoXDDIMScheduler", COG_NOISE),
        "tokenizer": ("tokenizer", {"length": 226}),
    }


# name: kind of generator, pipeline, components
PUBLISHED: dict[str, tuple[str, str, dict[str, Component]]] = {
    "Wan2.1-T2V-1.3B": ("wan", "WanPipeline", wan(12, 30, 8960)),
    "Wan2.1-T2V-14B": ("wan", "WanPipeline", WAN_14B),
    "Wan2.2-T2V-A14B": ("wan", "WanPipeline", WAN_14B | {"transformer_2": WAN_14B["transformer"]}),
    "Wan2.2-TI2V-5B": ("wan", "WanPipeline", wan(24, 30, 14336, WAN_22_VAE)),
    "Wan2.1-I2V-14B": (
        "wan_image",
        "WanImageToVideoPipeline",
        wan(40, 40, 13824, in_channels=36, image_dim=1280, added_kv_proj_dim=5120)
        | {"image_encoder": ("CLIPVisionModel", CLIP_H_VISION), "image_processor": ("CLIPImageProcessor", {})},
    ),
    "CogVideoX-2b": ("cogvideox", "CogVideoXPipeline", cogvideox(30, 30, False)),
    "CogVideoX-5b": ("cogvideox", "CogVideoXPipeline", cogvideox(48, 42, True)),
    "LTX-Video 2B": (
        "ltx",
        "LTXPipeline",
        {
            "transformer": ("LTXVideoTransformer3DModel", {}),
            "vae": ("AutoencoderKLLTXVideo", {}),
            "text_encoder": ("T5EncoderModel", T5),
            "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 1.0}),
            "tokenizer": ("tokenizer", {"length": 128}),
        },
    ),
    "HunyuanVideo": (
        "hunyuan_video",
        "HunyuanVideoPipeline",
        {
            "transformer": ("HunyuanVideoTransformer3DModel", {}),
            "vae": ("AutoencoderKLHunyuanVideo", {}),
            "text_encoder": ("LlamaModel", LLAMA_8B),
            "text_encoder_2": ("CLIPTextModel", CLIP_L_TEXT),
            "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 7.0}),
            "tokenizer": ("tokenizer", {"length": 1024}),
            "tokenizer_2": ("tokenizer", {"length": 77}),
        },
    ),
    "Stable Video Diffusion": (
        "stable_video_diffusion",
        "StableVideoDiffusionPipeline",
        {
            "unet": ("UNetSpatioTemporalConditionModel", {"num_frames": 14}),
            "vae": (
                "AutoencoderKLTemporalDecoder",
                PICTURE_VAE | {"down_block_types": ["DownEncoderBlock2D"] * 4},
            ),
            "image_encoder": ("CLIPVisionModelWithProjection", CLIP_H_VISION),
            "scheduler": ("EulerDiscreteScheduler", KARRAS),
            "feature_extractor": ("CLIPImageProcessor", {}),
        },
    ),
    "ModelScope": (
        "modelscope",
        "TextToVideoSDPipeline",
        {
            "unet": ("UNet3DConditionModel", {}),
            "vae": (
                "AutoencoderKL",
                PICTURE_VAE
                | {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4},
            ),
            "text_encoder": ("CLIPTextModel", CLIP_H_TEXT),
            "scheduler": ("DDIMScheduler", {}),
            "tokenizer": ("tokenizer", {"length": 77}),
        },
    ),
    "VideoCrafter2": ("videocrafter2", "", {"tokenizer": ("clip_tokenizer", {"words": 49408})}),
    "Open-Sora 1.2": (
        "opensora",
        "",
        {
            "transformer": ("stdit", {}),
            "text_encoder": ("T5EncoderModel", T5),
            "tokenizer": ("tokenizer", {"length": 300, "words": 32100}),
        },
    ),
}
# What else stands in the index, and what is asked for.
INDEX: dict[str, dict[str, Any]] = {
    "Wan2.2-T2V-A14B": {"boundary_ratio": 0.875},
    "Wan2.2-TI2V-5B": {"expand_timesteps": True},
}
SIZES = {"Wan2.2-TI2V-5B": {"frames": 121, "height": 704, "width": 1280}}


def options(name: str, folder: Path) -> dict[str, Any]:
    """A published model's options in a run file, its configs written to ``folder``."""
    kind = PUBLISHED[name][0]
    write(name, folder)
    if kind == "videocrafter2":
        return {"kind": kind, "model": "VideoCrafter/VideoCrafter2:model.ckpt", "tokenizer": str(folder / "tokenizer")}
    if kind == "opensora":
        (folder / "tokenizer").rename(folder / "text_encoder" / "tokenizer")
        for file in (folder / "text_encoder" / "tokenizer").iterdir():
            file.rename(folder / "text_encoder" / file.name)
        return {"kind": kind, "model": str(folder / "transformer"), "text_encoder": str(folder / "text_encoder")}
    return {"kind": kind, "model": str(folder)} | SIZES.get(name, {})


def write(name: str, folder: Path) -> Path:
    """A folder of configs of a published model, in diffusers' layout; no weights."""
    _, pipeline, components = PUBLISHED[name]
    index: dict[str, Any] = {
        "_class_name": pipeline,
        "_diffusers_version": diffusers.__version__,
        **INDEX.get(name, {}),
    }
    for part, (kind, numbers) in components.items():
        index[part] = _component(folder / part, kind, numbers)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def _component(place: Path, kind: str, numbers: Mapping[str, Any]) -> list[str]:
    place.mkdir(parents=True)
    if kind == "tokenizer":
        _tokenizer(**numbers).save_pretrained(place)
        return ["transformers", "PreTrainedTokenizerFast"]
    if kind == "clip_tokenizer":
        _clip_tokenizer(place, **numbers)
        return ["transformers", "CLIPTokenizer"]
    if kind == "stdit":
        (place / "config.json").write_text(json.dumps(FIXED))
        return ["reelign", "STDiT3"]
    if hasattr(diffusers, kind):
        file = "scheduler_config.json" if "Scheduler" in kind else "config.json"
        (place / file).write_text(json.dumps({"_class_name": kind, **numbers}))
        return ["diffusers", kind]
    made = getattr(transformers, kind)
    (made.config_class(**numbers) if hasattr(made, "config_class") else made(**numbers)).save_pretrained(place)
    return ["transformers", kind]


def _tokenizer(length: int, words: int = 0) -> transformers.PreTrainedTokenizerFast:
    """One token a word or sign; filled up to so many words."""
    vocab = _filled(["<pad>", "</s>", "<unk>", *string.ascii_letters], words)
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )


def _clip_tokenizer(place: Path, words: int) -> None:
    """One token a letter."""
    letters = [f"{letter}{end}" for letter in string.ascii_lowercase for end in ("", "</w>")]
    vocab = _filled(letters, words - 2)
    vocab |= {"<|startoftext|>": words - 2, "<|endoftext|>": words - 1}
    (place / "vocab.json").write_text(json.dumps(vocab))
    (place / "merges.txt").write_text("#version: 0.2\n")
    files = (str(place / "vocab.json"), str(place / "merges.txt"))
    transformers.CLIPTokenizer(*files, model_max_length=77).save_pretrained(place)


def _filled(words: list[str], count: int) -> dict[str, int]:
    return {word: i for i, word in enumerate([*words, *(f"word{i}" for i in range(len(words), count))])}
