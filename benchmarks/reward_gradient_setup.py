"""The networks that ``reward_gradient_step.py`` measures: the same weights, adapter, noise and reward for every row."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor

from reelign.generators.wan import WanGenerator, WanOptions
from reelign.rewards.clip_similarity import ClipSimilarity
from reelign.zoo.models import is_checkpoint, packaged_folder
from reelign.zoo.tiny_clip import TEXT_LENGTH as CLIP_TEXT_LENGTH
from reelign.zoo.tiny_clip import build_clip
from reelign.zoo.tiny_clip import save as save_clip
from reelign.zoo.tiny_wan import DEFAULTS, SHIFT, TEXT_LENGTH, build_text_encoder, build_transformer
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
        pipeline: without adapter.
        device: where to run.
    """

    name: str
    weights: str
    pipeline: WanPipeline
    device: str

    def generator(self, **options: Any) -> WanGenerator:
        """A generator with its own copy of the transformer, the shared decoder, and always the same adapter."""
        parts = {**self.pipeline.components, "transformer": copy.deepcopy(self.pipeline.transformer)}
        generator = WanGenerator(WanPipeline(**parts), WanOptions(device=self.device, **options), DEFAULTS)
        generator.pipeline.text_encoder.to(generator.device)
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in generator.trainable().items():
                if "lora_B" in name:
                    parameter += LORA_EFFECT * torch.randn(parameter.shape, generator=random).to(parameter)
        return generator

    def noise(self, batch: int) -> Tensor:
        """Start of the chain, [B,C,F,h,w]."""
        shape = WanGenerator(self.pipeline, WanOptions(device=self.device, lora=None), DEFAULTS).latent_shape()
        return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(2)).to(self.device)


def load_model(name: str, device: str) -> Model:
    """``tiny``: the zoo's, or a random one of its size. ``large``: a random transformer ten times that size."""
    zoo = packaged_folder("tiny-wan")
    trained = is_checkpoint(zoo)
    torch.manual_seed(0)
    if trained:
        pipeline = WanPipeline.from_pretrained(zoo, torch_dtype=torch.float32)
    else:
        pipeline = _random_pipeline(build_transformer())
    if name == "large":
        components = {**pipeline.components, "transformer": build_large_transformer()}
        pipeline = WanPipeline(**components)
    decoder = "decoder of zoo:tiny-wan" if trained else "random decoder"
    weights = f"random weights, {decoder}" if name == "large" or not trained else "zoo:tiny-wan"
    return Model(name, weights, pipeline, device)


def build_large_transformer() -> WanTransformer3DModel:
    """12 layers of 7 heads of 64, about 39 M parameters; otherwise the zoo's."""
    return WanTransformer3DModel.from_config(
        {**build_transformer().config, "num_layers": 12, "num_attention_heads": 7, "attention_head_dim": 64,
         "ffn_dim": 1792, "freq_dim": 256}
    )  # fmt: skip


def _random_pipeline(transformer: WanTransformer3DModel) -> WanPipeline:
    vae: AutoencoderKLWan = build_vae()
    return WanPipeline(
        tokenizer=word_tokenizer(TEXT_LENGTH),
        text_encoder=build_text_encoder(),
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    )


def load_reward(folder: Path, device: str, frozen: bool) -> ClipSimilarity:
    """The zoo's CLIP, or the random one that ``reward_source`` left in ``folder``; ``frozen`` is how reelign has it."""
    reward = ClipSimilarity(str(folder))
    reward.model.to(device)
    reward.model.requires_grad_(not frozen)
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
    save_clip(temporary, build_clip(), word_tokenizer(CLIP_TEXT_LENGTH), measured)
    return temporary, "random weights of the size of zoo:tiny-clip"
