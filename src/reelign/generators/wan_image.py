"""Wan 2.1 and 2.2 image-to-video (Wan team 2025), from any diffusers ``WanImageToVideoPipeline`` folder or hub id.

Three ways to begin from a picture, all read from the folder. Wan 2.1 and 2.2 A14B: the latents of a clip that is the
picture and then grey, with a mask of the frames that are known, beside the noise; 2.1 adds the picture's CLIP features.
Wan 2.2 TI2V 5B: the first latent frame is the picture's, at time 0. With two experts (A14B) the noisy steps go to the
first and the others to the second, and both get an adapter.

Left out: a last frame, a second guidance scale for the second expert.

Run: ``generator: {kind: wan_image, model: Wan-AI/Wan2.1-I2V-14B-480P-Diffusers}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from PIL import Image
from torch import Tensor, nn

from reelign.generators.family import FamilyOptions, Features, Native, check_size, check_text_length
from reelign.generators.family_generator import FamilyGenerator, load_family
from reelign.generators.lora import AdapterLayout
from reelign.generators.wan import noise_path
from reelign.generators.wan_vae import decode_frames, latent_statistics

NATIVE = Native(frames=81, height=480, width=832, fps=16.0, steps=50, guidance_scale=5.0)


class WanImageOptions(FamilyOptions):
    """Which Wan image-to-video, at what size, with what adapter; see ``FamilyOptions``.

    Args:
        kind: always ``wan_image``.
        height, width, frames, fps: 480×832, 81 frames, 16 a second unless told otherwise. Frames are 4·n + 1.
    """

    kind: Literal["wan_image"] = "wan_image"


class WanImage:
    """A ``Family`` around a ``WanImageToVideoPipeline``."""

    adapter_layout: AdapterLayout = "diffusers"
    guidance: Tensor | None = None
    takes_image = True
    native = NATIVE

    def __init__(self, pipeline: Any, options: WanImageOptions) -> None:
        self.pipeline = pipeline
        self.options = options
        self.vae = pipeline.vae
        self.path = noise_path(pipeline.scheduler.config)
        self.size = options.size(NATIVE)
        names = [name for name in ("transformer", "transformer_2") if getattr(pipeline, name) is not None]
        self.networks: dict[str, nn.Module] = {name: getattr(pipeline, name) for name in names}
        self.config = getattr(pipeline, names[0]).config
        encoders = (pipeline.text_encoder, pipeline.image_encoder if self.config.image_dim is not None else None)
        self.frozen, self.encoders = [self.vae], [encoder for encoder in encoders if encoder is not None]
        self.text_length = min(512, int(pipeline.tokenizer.model_max_length))
        check_size("Wan", self.size, self._space * self.config.patch_size[1], self.vae.config.scale_factor_temporal)

    @property
    def _space(self) -> int:
        return int(self.vae.config.scale_factor_spatial)

    def latent_shape(self) -> tuple[int, int, int, int]:
        """[C,F,h,w] of one clip."""
        frames, height, width = self.size
        latent_frames = (frames - 1) // self.vae.config.scale_factor_temporal + 1
        return (self.vae.config.z_dim, latent_frames, height // self._space, width // self._space)

    def encode_text(self, text: str, device: torch.device) -> Features:
        """UMT5's states [L,D], zero after the text."""
        check_text_length(self.pipeline.tokenizer, prompt_clean(text), self.text_length)
        states, _ = self.pipeline.encode_prompt(
            text, do_classifier_free_guidance=False, max_sequence_length=self.text_length, device=device
        )
        return {"text": states[0]}

    def encode_image(self, pictures: Tensor) -> tuple[Features, Features]:
        """Latents beside the noise [B,4+C,F,h,w], or a first latent frame [B,C,1,h,w]; CLIP's features [B,257,D]."""
        pixels = (pictures * 2 - 1)[:, :, None]
        features: Features = {}
        if self.pipeline.config.expand_timesteps:
            features["first"] = self._latents(pixels)
        else:
            rest = pixels.new_zeros(len(pixels), 3, self.size.frames - 1, *pixels.shape[3:])
            z = self._latents(torch.cat([pixels, rest], dim=2))
            known = z.new_zeros(len(z), self.vae.config.scale_factor_temporal, *z.shape[2:])
            known[:, :, 0] = 1
            features["beside"] = torch.cat([known, z], dim=1)
        if self.config.image_dim is not None:
            features["image"] = self.pipeline.encode_image(as_images(pictures), pictures.device)
        return features, features

    def _latents(self, pixels: Tensor) -> Tensor:
        """Normalised latents of a clip [B,3,T,H,W] in [-1,1], by the mode of the posterior."""
        z: Tensor = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode().float()
        mean, std = latent_statistics(self.vae, z)
        return (z - mean) / std

    def predict(self, x: Tensor, t: Tensor, features: Features) -> Tensor:
        """The flow ε − x_0 for x [B,C,F,h,w] at t in [0,1000], each row by the expert of its time.

        Of a first latent frame that is known, the flow is the one that leads from x to it.
        """
        boundary, experts = self.pipeline.config.boundary_ratio, list(self.networks.values())
        if len(experts) == 1 or boundary is None:
            return self._predict(experts[0], x, t, features)
        noisy = t >= boundary * self.path.train_steps
        if len(set(noisy.tolist())) == 1:  # as in sampling
            return self._predict(experts[0 if noisy[0] else 1], x, t, features).to(x.dtype)
        flow = torch.zeros_like(x)
        for expert, rows in ((experts[0], noisy), (experts[1], ~noisy)):
            if rows.any():
                part = {name: value[rows] for name, value in features.items()}
                flow[rows] = self._predict(expert, x[rows], t[rows], part).to(x.dtype)
        return flow

    def _predict(self, expert: nn.Module, x: Tensor, t: Tensor, features: Features) -> Tensor:
        time = t.float()
        if "first" in features:
            inside = torch.cat([features["first"], x[:, :, 1:]], dim=2)
            tokens = x.shape[3] // self.config.patch_size[1] * (x.shape[4] // self.config.patch_size[2])
            time = time[:, None].repeat(1, x.shape[2] * tokens)
            time[:, :tokens] = 0
        else:
            inside = torch.cat([x, features["beside"]], dim=1)
        flow: Tensor = expert(inside, time, features["text"], features.get("image"), return_dict=False)[0]
        if "first" not in features:
            return flow
        sigma = (t.to(x.dtype) / self.path.train_steps).view(-1, 1, 1, 1, 1)
        return torch.cat([(x[:, :, :1] - features["first"]) / sigma, flow[:, :, 1:]], dim=2)

    def decode(self, x: Tensor, frames: Sequence[int]) -> Tensor:
        """The asked frames; decodes the least causal prefix that holds them."""
        mean, std = latent_statistics(self.vae, x)
        z = (x * std + mean).to(self.vae.dtype)
        return decode_frames(self.vae, z, frames, self.options.decode_checkpointing).transpose(1, 2)

    def encode_video(self, video: Tensor) -> Tensor:
        """Normalised latents of a clip [B,T,3,H,W] in [-1,1]."""
        return self._latents(video.transpose(1, 2))


def as_images(pictures: Tensor) -> list[Image.Image]:
    """Pictures [B,3,H,W] in [0,1] as 8-bit images, as image processors take them."""
    pixels = (pictures * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


def load_wan_image(**options: Any) -> FamilyGenerator:
    """A Wan image-to-video generator; options are those of ``WanImageOptions``. Raises as ``load_family``."""
    from diffusers import WanImageToVideoPipeline

    return load_family(
        WanImage, WanImageOptions(**options), WanImageToVideoPipeline, ("transformer", "transformer_2", "text_encoder")
    )
