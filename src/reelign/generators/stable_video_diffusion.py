"""Stable Video Diffusion (Blattmann et al. 2023), image-to-video, from a diffusers folder or hub id.

A U-Net in EDM's form that predicts v, on Karras noise levels (``paths.KarrasPath``), begun from a picture: its CLIP
features, and its latents, a little noise added, beside those of every frame. The prompt is not read. Guidance rises
from 1 at the first frame to the scale at the last, as the pipeline's does.

With ``clips: 3``, a long clip is three, each begun from the last frame of the one before, as VADER rolls this model out
(Prabhudesai et al. 2024, section 5).

Adapters are saved in PEFT's own layout: diffusers has no LoRA loader for this U-Net.

Left out: churn (EDM's added noise), a least guidance scale other than 1.

Run: ``generator: {kind: stable_video_diffusion, model: stabilityai/stable-video-diffusion-img2vid}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from reelign.errors import ModelError
from reelign.generators.family import FamilyOptions, Features, Native, check_size
from reelign.generators.family_generator import FamilyGenerator, load_family
from reelign.generators.levers import recomputed
from reelign.generators.lora import AdapterLayout
from reelign.paths import KarrasPath


class StableVideoDiffusionOptions(FamilyOptions):
    """Which Stable Video Diffusion, at what size, with what adapter; see ``FamilyOptions``.

    Args:
        kind: always ``stable_video_diffusion``.
        height, width, frames, fps: 576×1024, the model's 14 or 25 frames, 7 a second unless told otherwise; the network
            is told the frame rate.
        motion_bucket_id: how much is to move, from 1 to 255.
        noise_augmentation: strength of the noise added to the picture.
        noise_seed: of that noise, the same for every picture.
        decode_chunk: frames decoded at a time; with gradient and ``decode_checkpointing``, each chunk is recomputed in
            the backward pass. 0 is all, for the steadiest pictures.
    """

    kind: Literal["stable_video_diffusion"] = "stable_video_diffusion"
    negative_prompt: str | None = ""
    motion_bucket_id: int = Field(127, ge=1, le=255)
    noise_augmentation: float = Field(0.02, ge=0)
    noise_seed: int = 0
    decode_chunk: int = Field(0, ge=0)


class StableVideoDiffusion:
    """A ``Family`` around a ``StableVideoDiffusionPipeline``."""

    adapter_layout: AdapterLayout = "peft"
    takes_image = True

    def __init__(self, pipeline: Any, options: StableVideoDiffusionOptions) -> None:
        self.pipeline = pipeline
        self.options = options
        self.vae, unet = pipeline.vae, pipeline.unet
        self.native = Native(unet.config.num_frames, 576, 1024, 7.0, 25, 3.0)
        self.size = options.size(self.native)
        self.fps = float(options.fps or self.native.fps)
        self.path = noise_path(pipeline.scheduler.config)
        self.networks = {"unet": unet}
        self.frozen, self.encoders = [self.vae], [pipeline.image_encoder]
        self.guidance: Tensor | None = torch.linspace(0, 1, self.size.frames).view(-1, 1, 1)
        multiple = pipeline.vae_scale_factor * 2 ** (len(unet.config.block_out_channels) - 1)
        check_size("Stable Video Diffusion", self.size, multiple)

    def latent_shape(self) -> tuple[int, int, int, int]:
        """[C,F,h,w] of one clip; a latent frame is a frame."""
        frames, height, width = self.size
        space = self.pipeline.vae_scale_factor
        return (self.vae.config.latent_channels, frames, height // space, width // space)

    def encode_text(self, text: str, device: torch.device) -> Features:
        """Nothing: the model reads no text."""
        return {}

    def encode_image(self, pictures: Tensor) -> tuple[Features, Features]:
        """CLIP's embedding [B,1,D] and latents [B,C,h,w] of first frames; both zero for the negative branch."""
        from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as theirs

        encoder = self.pipeline.image_encoder
        pixels = pictures * 2 - 1
        small = theirs._resize_with_antialiasing(pixels, (224, 224)) * 0.5 + 0.5
        seen = self.pipeline.feature_extractor(
            images=small.cpu(), do_normalize=True, do_center_crop=False, do_resize=False, do_rescale=False,
            return_tensors="pt",
        ).pixel_values  # fmt: skip
        embedding = encoder(seen.to(pictures.device, encoder.dtype)).image_embeds[:, None].float()
        source = torch.Generator().manual_seed(self.options.noise_seed)
        noise = torch.randn(pixels.shape[1:], generator=source).to(pixels)
        z = self.vae.encode((pixels + self.options.noise_augmentation * noise).to(self.vae.dtype)).latent_dist.mode()
        features = {"image": embedding, "image_latents": z.float()}
        return features, {name: torch.zeros_like(value) for name, value in features.items()}

    def predict(self, x: Tensor, t: Tensor, features: Features) -> Tensor:
        """v for x [B,C,F,h,w] at t = ln(s)/4."""
        latents = features["image_latents"][:, :, None].expand(-1, -1, x.shape[2], -1, -1)
        # The model was trained on the frame rate less one.
        said = x.new_tensor([self.fps - 1, self.options.motion_bucket_id, self.options.noise_augmentation])
        output: Tensor = self.networks["unet"](
            torch.cat([x, latents], dim=1).transpose(1, 2),
            t,
            encoder_hidden_states=features["image"],
            added_time_ids=said.expand(len(x), -1),
            return_dict=False,
        )[0]
        return output.transpose(1, 2)

    def decode(self, x: Tensor, frames: Sequence[int]) -> Tensor:
        """The asked frames; decodes the chunks that hold them and no other."""
        size = self.options.decode_chunk or x.shape[2]
        z = (x / self.vae.config.scaling_factor).transpose(1, 2).to(self.vae.dtype)
        chunks = {
            number: recomputed(self._decode, z[:, number * size :][:, :size], when=self.options.decode_checkpointing)
            for number in sorted({frame // size for frame in frames})
        }
        return torch.stack([chunks[frame // size][:, frame % size] for frame in frames], dim=1)

    def _decode(self, z: Tensor) -> Tensor:
        pictures: Tensor = self.vae.decode(z.flatten(0, 1), num_frames=z.shape[1]).sample
        return pictures.view(*z.shape[:2], *pictures.shape[1:])

    def encode_video(self, video: Tensor) -> Tensor:
        """Latents of a clip [B,T,3,H,W] in [-1,1], frame by frame."""
        z = self.vae.encode(video.flatten(0, 1).to(self.vae.dtype)).latent_dist.mode() * self.vae.config.scaling_factor
        latents: Tensor = z.view(*video.shape[:2], *z.shape[1:]).transpose(1, 2)
        return latents


def noise_path(scheduler: Any) -> KarrasPath:
    """The path of an ``EulerDiscreteScheduler``'s config.

    Raises:
        ModelError: it is no continuous v-prediction on Karras noise levels.
    """
    given = {name: scheduler.get(name) for name in ("prediction_type", "timestep_type", "use_karras_sigmas")}
    wanted = {"prediction_type": "v_prediction", "timestep_type": "continuous", "use_karras_sigmas": True}
    if given != wanted or None in (scheduler.get("sigma_min"), scheduler.get("sigma_max")):
        raise ModelError(f"Stable Video Diffusion's scheduler says {wanted} and its least and largest σ; got {given}")
    return KarrasPath(float(scheduler.sigma_min), float(scheduler.sigma_max))


def load_stable_video_diffusion(**options: Any) -> FamilyGenerator:
    """A generator; options are those of ``StableVideoDiffusionOptions``. Raises as ``load_family``."""
    from diffusers import StableVideoDiffusionPipeline

    return load_family(
        StableVideoDiffusion,
        StableVideoDiffusionOptions(**options),
        StableVideoDiffusionPipeline,
        ("unet", "image_encoder"),
    )
