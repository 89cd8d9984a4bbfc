"""ModelScope text-to-video (Wang et al. 2023) and its relatives: ``damo-vilab/text-to-video-ms-1.7b``, Zeroscope.

The base of InstructVideo and of VADER's first experiments: a 3-D U-Net that predicts ε, a picture autoencoder, CLIP.
Frames are decoded one by one, so only chosen frames cost anything. The chain is DDIM on the grid 1 + k·(1000 // S),
as InstructVideo samples.

Adapters are saved in PEFT's own layout, which ``peft.PeftModel.from_pretrained(unet, folder)`` loads: diffusers has no
LoRA loader for this U-Net. Those that InstructVideo and VADER published can be gone on from; see ``lora_import``.

Left out: training of the text encoder (in VADER's program it never trained: its embeddings had no gradient).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from pydantic import Field
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from reelign.errors import ConfigError
from reelign.generators.family import (
    LOADING,
    FamilyOptions,
    Features,
    Native,
    check_kind,
    check_size,
    check_text_length,
    discrete_prediction,
    not_loaded,
)
from reelign.generators.family_generator import FamilyGenerator
from reelign.generators.levers import recomputed
from reelign.generators.lora import AdapterLayout, LoraOptions
from reelign.paths import DiscretePath
from reelign.zoo.models import resolve_model
from reelign.zoo.skeletons import open_component

NATIVE = Native(frames=16, height=256, width=256, fps=8.0, steps=50, guidance_scale=9.0)


class ModelScopeOptions(FamilyOptions):
    """Which model, at what size, with what adapter; see ``FamilyOptions``.

    Args:
        kind: always ``modelscope``.
        model: a folder or hub id in the layout of diffusers' ``TextToVideoSDPipeline``.
        height, width, frames, fps: 256×256, 16 frames, 8 a second unless told otherwise.
        lora: InstructVideo's rank unless told otherwise.
        decode_chunk: frames decoded at a time; with gradient each chunk is recomputed in the backward pass. 0 is all.
    """

    kind: Literal["modelscope"] = "modelscope"
    lora: LoraOptions | None = LoraOptions(rank=4, alpha=4)
    decode_chunk: int = Field(0, ge=0)


class ModelScope:
    """A ``Family`` around the parts of a ``TextToVideoSDPipeline``, by their names in its folder."""

    adapter_layout: AdapterLayout = "peft"
    guidance: Tensor | None = None
    takes_image = False
    native = NATIVE

    def __init__(self, parts: Mapping[str, Any], options: ModelScopeOptions) -> None:
        self.options = options
        self.vae, self.text_encoder, self.tokenizer = (parts[name] for name in ("vae", "text_encoder", "tokenizer"))
        self.networks = {"unet": parts["unet"]}
        self.frozen, self.encoders = [self.vae], [self.text_encoder]
        scheduler = parts["scheduler"]
        self.path = DiscretePath(scheduler.alphas_cumprod.double(), discrete_prediction(scheduler.config))
        self.size = options.size(NATIVE)
        self._ratio = 2 ** (len(self.vae.config.block_out_channels) - 1)
        multiple = self._ratio * 2 ** (len(parts["unet"].config.block_out_channels) - 1)
        check_size("ModelScope", self.size, multiple)

    def latent_shape(self) -> tuple[int, int, int, int]:
        """[C,F,h,w] of one clip; a latent frame is a frame."""
        frames, height, width = self.size
        return (self.networks["unet"].config.in_channels, frames, height // self._ratio, width // self._ratio)

    def encode_text(self, text: str, device: torch.device) -> Features:
        """CLIP's states [L,D]."""
        check_text_length(self.tokenizer, text, self.tokenizer.model_max_length)
        tokens = self.tokenizer(text, padding="max_length", return_tensors="pt")
        return {"text": self.text_encoder(tokens.input_ids.to(device)).last_hidden_state[0]}

    def encode_image(self, pictures: Tensor) -> tuple[Features, Features]:
        """Never asked for: this is text-to-video."""
        raise ConfigError("ModelScope is text-to-video; it takes no pictures")

    def predict(self, x: Tensor, t: Tensor, features: Features) -> Tensor:
        """ε (or what the scheduler's config says) for latents x [B,C,F,h,w] at t in [0,999]."""
        output: Tensor = self.networks["unet"](x, t, features["text"], return_dict=False)[0]
        return output

    def decode(self, x: Tensor, frames: Sequence[int]) -> Tensor:
        """The asked frames; decodes these and no other."""
        z = (x[:, :, list(frames)] / self.vae.config.scaling_factor).transpose(1, 2).flatten(0, 1).to(self.vae.dtype)
        again = self.options.decode_checkpointing or self.options.decode_chunk > 0
        chunks = torch.split(z, self.options.decode_chunk or len(z))
        pictures = torch.cat([recomputed(self._decode, chunk, when=again) for chunk in chunks])
        return pictures.view(len(x), len(frames), *pictures.shape[1:])

    def _decode(self, z: Tensor) -> Tensor:
        pictures: Tensor = self.vae.decode(z, return_dict=False)[0]
        return pictures

    def encode_video(self, video: Tensor) -> Tensor:
        """Latents of a clip [B,T,3,H,W] in [-1,1], frame by frame."""
        pixels = video.flatten(0, 1).to(self.vae.dtype)
        chunks = torch.split(pixels, self.options.decode_chunk or len(pixels))
        z = torch.cat([self.vae.encode(chunk).latent_dist.mode() for chunk in chunks]) * self.vae.config.scaling_factor
        latents: Tensor = z.view(*video.shape[:2], *z.shape[1:]).transpose(1, 2)
        return latents


def load_modelscope(**options: Any) -> FamilyGenerator:
    """Load a ModelScope generator; keyword arguments are those of ``ModelScopeOptions``.

    Raises:
        ModelError: the folder or hub id does not hold the parts of a ``TextToVideoSDPipeline``.
        ConfigError: a size that the model cannot make.
    """
    chosen = ModelScopeOptions(**options)
    source, dtype = resolve_model(chosen.model), torch.float32 if chosen.train_all else getattr(torch, chosen.dtype)
    check_kind(chosen, source)
    try:
        parts = {
            "unet": open_component(UNet3DConditionModel, source, "unet", torch_dtype=dtype),
            "vae": open_component(AutoencoderKL, source, "vae", torch_dtype=torch.float32),
            "text_encoder": open_component(CLIPTextModel, source, "text_encoder", dtype=torch.float32),
            "tokenizer": open_component(CLIPTokenizer, source, "tokenizer"),
            "scheduler": open_component(DDIMScheduler, source, "scheduler"),
        }
    except LOADING as error:
        raise not_loaded(chosen, error) from error
    return FamilyGenerator(ModelScope(parts, chosen), chosen)
