r"""Open-Sora 1.2 text-to-video (hpcai-tech 2024, github.com/hpcaitech/Open-Sora) from its published checkpoints.

A transformer that predicts the flow (``opensora_network.py``), a video autoencoder that makes 5 latent frames of 17
(``opensora_vae.py``), and T5-XXL for text. Noise levels are spread by size and length,

    σ_s = r·u/(1 + (r − 1)·u),   u = 1 − s/S,   r = sqrt(height·width/512²)·sqrt(latent frames),

and a step is z ← z + v·(σ_s − σ_{s+1}), which is Euler's. Guidance is away from a learned null caption, cut to the
length of the prompt.

VADER's run (Prabhudesai et al. 2024): ``reelign train vader_opensora_hps``.

Left out: pictures and clips to begin from, motion scores and camera words in the prompt, lengths other than 1 or a
multiple of 17 (for 2 to 16 the published r is 0, and the first time is not a number).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from pydantic import Field, field_validator
from torch import Tensor, nn
from transformers import AutoTokenizer, T5EncoderModel

from reelign.contracts import NoisePath
from reelign.errors import ConfigError, DataError, ModelError
from reelign.generators.family import FamilyOptions, Features, Native, Size, check_text_length
from reelign.generators.family_generator import FamilyGenerator
from reelign.generators.lora import AdapterLayout, LoraOptions
from reelign.generators.opensora_network import STDiT3
from reelign.generators.opensora_vae import PIECE, SPATIAL_RATIO, OpenSoraVAE, latent_frames, load_opensora_vae
from reelign.paths import FlowPath
from reelign.zoo.models import resolve_model
from reelign.zoo.skeletons import open_component

NATIVE = Native(frames=51, height=276, width=368, fps=24.0, steps=30, guidance_scale=7.0)
PICTURE_FPS = 120.0  # what a clip of one frame is called
SCORE = "aesthetic score:"
SPARE_WORDS = 128  # T5 has room for up to so many more words than its tokenizer knows
LORA = LoraOptions(rank=16, alpha=8, targets=("qkv", "q_linear", "kv_linear"))


class OpenSoraOptions(FamilyOptions):
    """What all families have, and Open-Sora's own.

    Args:
        kind: always ``opensora``.
        model: the transformer, ``hpcai-tech/OpenSora-STDiT-v3`` or a folder with its ``config.json`` and weights.
        vae, text_encoder: the video autoencoder and T5, likewise.
        height, width: what the network is told; clips are as large as the multiples of 8 below (276 makes 272).
        negative_prompt: empty is the learned null caption, the only one there is; None is no guidance.
        aesthetic_score: written after each prompt for the model, not for rewards; None writes nothing.
        lora: VADER's, with PEFT's own alpha of 8 whatever the rank.
    """

    kind: Literal["opensora"] = "opensora"
    model: str = "hpcai-tech/OpenSora-STDiT-v3"
    vae: str = "hpcai-tech/OpenSora-VAE-v1.2"
    text_encoder: str = "DeepFloyd/t5-v1_1-xxl"
    aesthetic_score: float | None = Field(6.5, ge=0, le=10)
    lora: LoraOptions | None = LORA

    @field_validator("lora", mode="before")
    @classmethod
    def _own_layers_unless_told(cls, value: Any) -> Any:
        return {**LORA.model_dump(), **value} if isinstance(value, dict) else value


def time_shift(height: float, width: float, frames: int) -> float:
    """r = sqrt(height·width/512²)·sqrt(latent frames), in pixels and frames of the clip."""
    return math.sqrt(height * width) / 512 * math.sqrt(latent_frames(frames))


def noise_path(height: float, width: float, frames: int) -> FlowPath:
    """The path of clips of a size: S steps from σ = 1 down to 0 in equal parts, shifted."""
    return FlowPath(time_shift(height, width, frames), grid_end=0.0)


class OpenSora:
    """The family (see ``family.Family``).

    Args:
        network: the transformer.
        vae: the video autoencoder.
        text_encoder, tokenizer: of T5.
        options: what was asked.

    Raises:
        ConfigError: a length that is neither 1 nor a multiple of 17, or a negative prompt.
    """

    path: NoisePath
    native = NATIVE
    takes_image = False
    guidance: Tensor | None = None
    adapter_layout: AdapterLayout = "peft"

    def __init__(
        self, network: STDiT3, vae: OpenSoraVAE, text_encoder: nn.Module, tokenizer: Any, options: OpenSoraOptions
    ) -> None:
        asked = options.size(NATIVE)
        if asked.frames != 1 and asked.frames % PIECE:
            raise ConfigError(
                f"Open-Sora makes one frame or a multiple of {PIECE}; got {asked.frames}: set generator.frames to "
                f"{max(1, round(asked.frames / PIECE)) * PIECE}"
            )
        if options.negative_prompt:
            raise ConfigError(
                "Open-Sora is guided away from its learned null caption and takes no negative prompt; got "
                f"{options.negative_prompt!r}: leave generator.negative_prompt empty"
            )
        self.network, self.vae, self.text_encoder, self.tokenizer = network, vae, text_encoder, tokenizer
        vae.recompute = options.decode_checkpointing
        self.path = noise_path(asked.height, asked.width, asked.frames)
        self.told = (float(asked.height), float(asked.width))
        self.told_fps = PICTURE_FPS if asked.frames == 1 else float(options.fps or NATIVE.fps)
        self.size = Size(asked.frames, *(n // SPATIAL_RATIO * SPATIAL_RATIO for n in asked[1:]))
        self.networks = {"stdit": network}
        self.frozen: Sequence[nn.Module] = [vae]
        self.encoders: Sequence[nn.Module] = [text_encoder]
        self.suffix = "" if options.aesthetic_score is None else f" {SCORE} {options.aesthetic_score:.1f}."

    def latent_shape(self) -> tuple[int, int, int, int]:
        """[C,F,h,w] of one clip."""
        frames, height, width = self.size
        channels = self.network.config.in_channels
        return (channels, latent_frames(frames), height // SPATIAL_RATIO, width // SPATIAL_RATIO)

    def encode_text(self, text: str, device: torch.device) -> Features:
        """Text states [L,D] and which of them count [L]; raises DataError where the text is too long."""
        words = self.model_text(text)
        length = self.network.config.model_max_length
        check_text_length(self.tokenizer, words, length)
        tokens = self.tokenizer(words, max_length=length, padding="max_length", return_tensors="pt").to(device)
        states = self.text_encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return {"text": states.last_hidden_state[0], "mask": tokens.attention_mask[0].bool()}

    def model_text(self, prompt: str) -> str:
        """What T5 reads: mended, in lower case, with the aesthetic score unless the prompt has one."""
        suffix = "" if SCORE in prompt.lower() else self.suffix
        return str(prompt_clean(prompt + suffix)).lower()

    def negative(self, positive: Features) -> Features:
        """The learned null caption for each prompt, cut to the prompt's length by its mask."""
        null = self.network.y_embedder.y_embedding.to(positive["text"])
        return {"text": null.expand_as(positive["text"]), "mask": positive["mask"]}

    def encode_image(self, pictures: Tensor) -> tuple[Features, Features]:
        """Never asked: clips are made from text alone."""
        raise DataError(f"this model makes clips from text alone; got {len(pictures)} pictures: leave them out")

    def predict(self, x: Tensor, t: Tensor, features: Features) -> Tensor:
        """The flow ε − x_0 for latents x [B,C,F,h,w] at t [B] in [0,1000]; the network says x_0 − ε."""
        fps = torch.full_like(t, self.told_fps, dtype=torch.float32)
        output = self.networks["stdit"](x, t, features["text"], features["mask"], self.told, fps)
        return -output[:, : x.shape[1]]  # type: ignore[no-any-return]

    def decode(self, x: Tensor, frames: Sequence[int]) -> Tensor:
        """The asked frames [B,T',3,H,W] in about [-1,1]; of the rest only what the temporal decoder needs."""
        return self.vae.decode(x, frames)

    def encode_video(self, video: Tensor) -> Tensor:
        """One clip [B,T,3,H,W] in [-1,1] to latents, by the modes of the posteriors."""
        return self.vae.encode(video)


def load_opensora(**options: Any) -> FamilyGenerator:
    """Load an Open-Sora 1.2 generator; keyword arguments are those of ``OpenSoraOptions``.

    Raises:
        ModelError: a checkpoint is not there, or does not fit.
    """
    chosen = OpenSoraOptions(**options)
    # What is trained whole keeps full precision.
    dtype = torch.float32 if chosen.train_all else getattr(torch, chosen.dtype)
    encoder, tokenizer = _load_text(chosen.text_encoder, getattr(torch, chosen.dtype))
    network = STDiT3.from_pretrained(chosen.model, dtype)
    if encoder.config.d_model != network.config.caption_channels:
        raise ModelError(
            f"the transformer reads text states of width {network.config.caption_channels}; the text encoder "
            f"{chosen.text_encoder!r} has {encoder.config.d_model}: set generator.text_encoder to the one it came with"
        )
    family = OpenSora(network, load_opensora_vae(chosen.vae), encoder, tokenizer, chosen)
    return FamilyGenerator(family, chosen)


def _load_text(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """T5's encoder and its tokenizer; transformers may make one without words of a folder that has none."""
    source = resolve_model(name)
    try:
        encoder = open_component(T5EncoderModel, source, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, ImportError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        hint = "" if find_spec("sentencepiece") else "; a spiece.model needs sentencepiece: pip install 'reelign[t5]'"
        raise ModelError(
            f"generator.text_encoder is T5 with its tokenizer; none in {name!r}: {reason}{hint}"
        ) from error
    if not 0 <= encoder.config.vocab_size - len(tokenizer) < SPARE_WORDS:
        raise ModelError(
            f"generator.text_encoder is T5 with its tokenizer; {name!r} has {encoder.config.vocab_size} words in one "
            f"and {len(tokenizer)} in the other: put T5's tokenizer beside it"
        )
    return encoder, tokenizer
