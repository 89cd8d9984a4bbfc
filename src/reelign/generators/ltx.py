"""LTX-Video (HaCohen et al. 2024), text-to-video and image-to-video, from diffusers' folders or hub ids.

A flow transformer over heavily compressed latents (32×32×8 pixels each). Noise levels shift with the number of latents
of a clip and are stretched to end at 0.1, as the model's scheduler says. Image-to-video is the same network: the first
latent frame is the picture's, given as clean, and stays so.

The decoder sees past and future, so all frames of a clip are decoded whichever are asked for.

Left out: noise at decoding (versions from 0.9.1 on are decoded at time ``decode_timestep``, without it), pictures at
other places of a clip, the latent upsampler.

Run: ``generator: {kind: ltx, model: Lightricks/LTX-Video}``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from reelign.errors import ModelError
from reelign.generators.family import FamilyOptions, Features, Native, check_size, check_text_length
from reelign.generators.family_generator import FamilyGenerator, load_family
from reelign.generators.levers import recomputed
from reelign.generators.lora import AdapterLayout
from reelign.paths import FlowPath

TEXT_LENGTH = 128  # tokens the pipeline reads
NATIVE = Native(frames=161, height=512, width=704, fps=25.0, steps=50, guidance_scale=3.0)


class LtxOptions(FamilyOptions):
    """Which LTX-Video, at what size, with what adapter; see ``FamilyOptions``.

    Args:
        kind: always ``ltx``.
        height, width, frames, fps: 512×704, 161 frames, 25 a second unless told otherwise. Frames are 8·n + 1; the
            network is told the frame rate.
        image_to_video: begin from the request's first frames.
        decode_timestep: time given to decoders that take one (from version 0.9.1 on).
    """

    kind: Literal["ltx"] = "ltx"
    image_to_video: bool = False
    decode_timestep: float = Field(0.0, ge=0, le=1)


class Ltx:
    """A ``Family`` around an ``LTXPipeline``."""

    adapter_layout: AdapterLayout = "diffusers"
    guidance: Tensor | None = None
    native = NATIVE

    def __init__(self, pipeline: Any, options: LtxOptions) -> None:
        self.pipeline = pipeline
        self.options = options
        self.vae, network = pipeline.vae, pipeline.transformer
        self.size = options.size(NATIVE)
        self.takes_image = options.image_to_video
        self.networks = {"transformer": network}
        self.frozen, self.encoders = [self.vae], [pipeline.text_encoder]
        self.fps = float(options.fps or NATIVE.fps)
        if network.config.patch_size != 1 or network.config.patch_size_t != 1:
            raise ModelError(f"LTX-Video's tokens are single latents; {options.model!r} has patches of several")
        space, time = pipeline.vae_spatial_compression_ratio, pipeline.vae_temporal_compression_ratio
        check_size("LTX-Video", self.size, space, time)
        _, frames, height, width = self.latent_shape()
        self.path = noise_path(pipeline.scheduler.config, frames * height * width)

    def latent_shape(self) -> tuple[int, int, int, int]:
        """[C,F,h,w] of one clip."""
        space, time = self.pipeline.vae_spatial_compression_ratio, self.pipeline.vae_temporal_compression_ratio
        frames, height, width = self.size
        return (self.vae.config.latent_channels, (frames - 1) // time + 1, height // space, width // space)

    def encode_text(self, text: str, device: torch.device) -> Features:
        """T5's states [L,D], and which of them are text [L]."""
        length = min(TEXT_LENGTH, self.pipeline.tokenizer.model_max_length)
        check_text_length(self.pipeline.tokenizer, text, length)
        states, mask, _, _ = self.pipeline.encode_prompt(
            text, do_classifier_free_guidance=False, max_sequence_length=length, device=device
        )
        return {"text": states[0], "mask": mask[0]}

    def encode_image(self, pictures: Tensor) -> tuple[Features, Features]:
        """The latent frame [B,C,1,h,w] of first frames, the same for both branches."""
        features = {"first": self.encode_video((pictures * 2 - 1)[:, None])}
        return features, features

    def predict(self, x: Tensor, t: Tensor, features: Features) -> Tensor:
        """The flow ε − x_0 for x [B,C,F,h,w] at t in [0,1000].

        Of a latent frame that is known, the network gets the clean one at time 0, and the flow is the one that leads
        from x to it.
        """
        _, _, frames, height, width = x.shape
        time, inside = t, x
        if self.takes_image:
            inside = torch.cat([features["first"], x[:, :, 1:]], dim=2)
            time = t[:, None].repeat(1, frames * height * width)
            time[:, : height * width] = 0
        output = self.networks["transformer"](
            hidden_states=self.pipeline._pack_latents(inside),
            encoder_hidden_states=features["text"],
            timestep=time,
            encoder_attention_mask=features["mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(
                self.pipeline.vae_temporal_compression_ratio / self.fps,
                self.pipeline.vae_spatial_compression_ratio,
                self.pipeline.vae_spatial_compression_ratio,
            ),
            return_dict=False,
        )[0]
        flow: Tensor = self.pipeline._unpack_latents(output, frames, height, width)
        if not self.takes_image:
            return flow
        sigma = (t.to(x.dtype) / self.path.train_steps).view(-1, 1, 1, 1, 1)
        return torch.cat([(x[:, :, :1] - features["first"]) / sigma, flow[:, :, 1:]], dim=2)

    def decode(self, x: Tensor, frames: Sequence[int]) -> Tensor:
        """The asked frames of the whole clip."""
        mean, std = self._statistics(x)
        z = (x * std / self.vae.config.scaling_factor + mean).to(self.vae.dtype)
        video = recomputed(self._decode, z, when=self.options.decode_checkpointing)
        return video[:, :, list(frames)].transpose(1, 2)

    def _decode(self, z: Tensor) -> Tensor:
        time = z.new_full((len(z),), self.options.decode_timestep) if self.vae.config.timestep_conditioning else None
        video: Tensor = self.vae.decode(z, time, return_dict=False)[0]
        return video

    def encode_video(self, video: Tensor) -> Tensor:
        """Normalised latents of a clip [B,T,3,H,W] in [-1,1]."""
        z = self.vae.encode(video.transpose(1, 2).to(self.vae.dtype)).latent_dist.mode().float()
        mean, std = self._statistics(z)
        latents: Tensor = (z - mean) * self.vae.config.scaling_factor / std
        return latents

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (v.view(1, -1, 1, 1, 1).to(like) for v in (self.vae.latents_mean, self.vae.latents_std))
        return mean, std


def noise_path(scheduler: Any, latents: int) -> FlowPath:
    """The flow path for clips of so many latents, from a ``FlowMatchEulerDiscreteScheduler``'s config.

    With dynamic shifting, k = e^μ, and μ goes evenly from ``base_shift`` at ``base_image_seq_len`` latents to
    ``max_shift`` at ``max_image_seq_len`` (Esser et al. 2024, section 5.3.2); ``linear`` shifting takes k = μ.

    Raises:
        ModelError: the scheduler's noise levels are of another kind.
    """
    odd = [name for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas") if scheduler.get(name)]
    if odd or scheduler.get("invert_sigmas"):
        raise ModelError(f"LTX-Video needs a flow scheduler with plain noise levels; this one has {odd or 'inverted'}")
    steps, terminal = int(scheduler.get("num_train_timesteps", 1000)), scheduler.get("shift_terminal") or None
    if not scheduler.get("use_dynamic_shifting"):
        return FlowPath(float(scheduler.get("shift", 1.0)), steps, 0.0, terminal)
    low, high = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    least, most = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    mu = least + (latents - low) * (most - least) / (high - low)
    shift = mu if scheduler.get("time_shift_type") == "linear" else math.exp(mu)
    return FlowPath(shift, steps, 0.0, terminal)


def load_ltx(**options: Any) -> FamilyGenerator:
    """An LTX-Video generator; options are those of ``LtxOptions``. Raises as ``load_family``."""
    from diffusers import LTXPipeline

    return load_family(Ltx, LtxOptions(**options), LTXPipeline, ("transformer", "text_encoder"))
