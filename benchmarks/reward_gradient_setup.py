"""The networks that ``reward_gradient_step.py`` measures: the same weights, adapter, noise and reward for every row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from transformers import UMT5EncoderModel

from reelign.generators.wan import WanGenerator, load_wan
from reelign.rewards.clip_similarity import ClipSimilarity
from reelign.zoo.models import is_checkpoint, packaged_folder
from reelign.zoo.tiny_clip import TEXT_LENGTH as CLIP_TEXT_LENGTH
from reelign.zoo.tiny_clip import build_clip
from reelign.zoo.tiny_clip import save as save_clip
from reelign.zoo.tiny_wan import TEXT_LENGTH, build_text_encoder, build_transformer, save_pipeline
from reelign.zoo.tiny_wan_vae import build_vae
from reelign.zoo.words import word_tokenizer

PROMPTS = (
    "a red circle moving left",
    "a blue square bouncing",
    "a green triangle rotating clockwise",
    "an orange circle moving up",
)
LORA_EFFECT = 0.02  # deviation of the up matrices, so that the adapter does something


@dataclass(frozen=True)
class Model:
    """One generator to measure on.

    Args:
        name: ``tiny`` or ``large``.
        weights: in words, where its weights come from.
        folder: a ``WanPipeline`` folder.
        device: where to run.
    """

    name: str
    weights: str
    folder: Path
    device: str

    def generator(self, **options: Any) -> WanGenerator:
        """A generator of its own, loaded as users load it, always with the same adapter."""
        generator = load_wan(model=str(self.folder), device=self.device, **options)
        generator.pipeline.text_encoder.to(generator.device)
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in generator.trainable().items():
                if "lora_B" in name:
                    parameter += LORA_EFFECT * torch.randn(parameter.shape, generator=random).to(parameter)
        return generator

    def noise(self, batch: int) -> Tensor:
        """Start of the chain, [B,C,F,h,w]."""
        shape = load_wan(model=str(self.folder), device=self.device, lora=None).latent_shape()
        return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(2)).to(self.device)


def load_model(name: str, device: str, temporary: Path) -> Model:
    """``tiny``: the zoo's, or a random one of its size. ``large``: a random transformer ten times that size."""
    zoo = packaged_folder("tiny-wan")
    trained = is_checkpoint(zoo)
    if name == "tiny" and trained:
        return Model(name, "zoo:tiny-wan", zoo, device)
    torch.manual_seed(0)
    transformer = build_transformer() if name == "tiny" else build_large_transformer()
    encoder = UMT5EncoderModel.from_pretrained(zoo / "text_encoder") if trained else build_text_encoder()
    vae = AutoencoderKLWan.from_pretrained(zoo / "vae") if trained else build_vae()
    folder = temporary / name
    save_pipeline(folder, vae, transformer, encoder, word_tokenizer(TEXT_LENGTH))
    others = "decoder and text encoder of zoo:tiny-wan" if trained else "random decoder and text encoder"
    return Model(name, f"random transformer, {others}", folder, device)


def build_large_transformer() -> WanTransformer3DModel:
    """12 layers of 7 heads of 64, about 39 M parameters; otherwise the zoo's."""
    larger = {"num_layers": 12, "num_attention_heads": 7, "attention_head_dim": 64, "ffn_dim": 1792, "freq_dim": 256}
    return WanTransformer3DModel.from_config({**build_transformer().config, **larger})


def load_reward(folder: Path, device: str, frozen: bool) -> ClipSimilarity:
    """The zoo's CLIP, or the random one that ``reward_source`` left in ``folder``; ``frozen`` is how reelign has it."""
    reward = ClipSimilarity(str(folder))
    reward.tower.model.to(device)
    reward.tower.model.requires_grad_(not frozen)
    return reward


def reward_source(temporary: Path) -> tuple[Path, str]:
    """The folder of the reward's weights, and in words where they come from."""
    zoo = packaged_folder("tiny-clip")
    if is_checkpoint(zoo):
        return zoo, "zoo:tiny-clip"
    torch.manual_seed(0)
    measured = dict.fromkeys(
        (f"{word}{kind}" for word in ("colour", "shape") for kind in ("", "_degraded", "_margin")), 0.0
    )
    save_clip(temporary / "clip", build_clip(), word_tokenizer(CLIP_TEXT_LENGTH), measured)
    return temporary / "clip", "random weights of the size of zoo:tiny-clip"
