"""CogVideoX and CogVideoX 1.5 (Yang et al. 2024), text-to-video and image-to-video, from diffusers' folders or hub ids.

A transformer over text and video tokens that predicts v, on a table of noise levels that is shifted to lower signal and
ends without any (``snr_shift_scale``, ``rescale_betas_zero_snr``); the chain is DDIM on the trailing grid, as the
pipeline samples. Whether a model begins from a picture is read from its folder. The causal autoencoder is decoded in
the pairs of latent frames it was trained on, and no further than the last asked frame.

Left out: the DPM solver that the 5B models' folders name, dynamic guidance.

Run: ``generator: {kind: cogvideox, model: THUDM/CogVideoX-2b}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from reelign.generators.family import (
    FamilyOptions,
    Features,
    Native,
    check_kind,
    check_size,
    check_text_length,
    discrete_prediction,
)
from reelign.generators.family_generator import FamilyGenerator, load_family
from reelign.generators.levers import recomputed
from reelign.generators.lora import AdapterLayout
from reelign.paths import DiscretePath
from reelign.zoo.models import resolve_model

OFFSET = 2.0  # what the pipeline gives the offset embedding of CogVideoX 1.5 image-to-video


class CogVideoXOptions(FamilyOptions):
    """Which CogVideoX, at what size, with what adapter; see ``FamilyOptions``.

    Args:
        kind: always ``cogvideox``.
        height, width, frames, fps: None takes the model's own: 480×720, 49 frames, 8 a second; of version 1.5
            768×1360, 81 frames, 16 a second. Frames are 8·n + 1.
    """

    kind: Literal["cogvideox"] = "cogvideox"


class CogVideoX:
    """A ``Family`` around a ``CogVideoXPipeline`` or ``CogVideoXImageToVideoPipeline``."""

    adapter_layout: AdapterLayout = "diffusers"
    guidance: Tensor | None = None

    def __init__(self, pipeline: Any, options: CogVideoXOptions) -> None:
        self.pipeline = pipeline
        self.options = options
        network, self.vae = pipeline.transformer, pipeline.vae
        self.config = network.config
        scheduler = pipeline.scheduler
        self.path = DiscretePath(
            scheduler.alphas_cumprod.double(), discrete_prediction(scheduler.config), grid="trailing"
        )
        later = self.config.patch_size_t is not None  # version 1.5
        self.native = Native(
            frames=self.config.sample_frames,
            height=self.config.sample_height * pipeline.vae_scale_factor_spatial,
            width=self.config.sample_width * pipeline.vae_scale_factor_spatial,
            fps=16.0 if later else 8.0,
            steps=50,
            guidance_scale=6.0,
        )
        self.size = options.size(self.native)
        self.takes_image = "ImageToVideo" in type(pipeline).__name__
        self.networks = {"transformer": network}
        self.frozen, self.encoders = [self.vae], [pipeline.text_encoder]
        check_size("CogVideoX", self.size, pipeline.vae_scale_factor_spatial * self.config.patch_size, 8)
        latent_frames = (self.size.frames - 1) // 4 + 1
        self._padding = -latent_frames % self.config.patch_size_t if later else 0

    def latent_shape(self) -> tuple[int, int, int, int]:
        """[C,F,h,w]; version 1.5 has a frame more in front, so that F is even."""
        space, frames = self.pipeline.vae_scale_factor_spatial, (self.size.frames - 1) // 4 + 1 + self._padding
        return (self.vae.config.latent_channels, frames, self.size.height // space, self.size.width // space)

    def encode_text(self, text: str, device: torch.device) -> Features:
        """T5's states [L,D], padded to the length that the transformer was built for."""
        length = self.config.max_text_seq_length
        check_text_length(self.pipeline.tokenizer, text, length)
        states, _ = self.pipeline.encode_prompt(
            text, do_classifier_free_guidance=False, max_sequence_length=length, device=device
        )
        return {"text": states[0]}

    def encode_image(self, pictures: Tensor) -> tuple[Features, Features]:
        """Latents [B,C,F,h,w] of first frames, zero after the first; the same for both branches."""
        z = self.vae.encode((pictures * 2 - 1)[:, :, None].to(self.vae.dtype)).latent_dist.mode().float()
        scale = self.vae.config.scaling_factor
        z = z / scale if self.vae.config.invert_scale_latents else z * scale
        channels, frames, height, width = self.latent_shape()
        rest = z.new_zeros(len(z), channels, frames - 1, height, width)
        features = {"image_latents": torch.cat([z, rest], dim=2)}
        return features, features

    def predict(self, x: Tensor, t: Tensor, features: Features) -> Tensor:
        """v for x [B,C,F,h,w] at t in [0,999]."""
        inside = torch.cat([x, features["image_latents"]], dim=1) if self.takes_image else x
        rotary = None
        if self.config.use_rotary_positional_embeddings:
            rotary = self.pipeline._prepare_rotary_positional_embeddings(
                self.size.height, self.size.width, x.shape[2], x.device
            )
        output: Tensor = self.networks["transformer"](
            hidden_states=inside.transpose(1, 2),
            encoder_hidden_states=features["text"],
            timestep=t,
            ofs=None if self.config.ofs_embed_dim is None else x.new_full((1,), OFFSET),
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]
        return output.transpose(1, 2)

    def decode(self, x: Tensor, frames: Sequence[int]) -> Tensor:
        """The asked frames; decodes the first three latent frames, then pairs, up to the last one that is asked for."""
        z = (x[:, :, self._padding :] / self.vae.config.scaling_factor).to(self.vae.dtype)
        first = z.shape[2] if z.shape[2] < 3 else 3
        parts: list[Tensor] = []
        cache = None
        for chunk in (z[:, :, :first], *z[:, :, first:].split(2, dim=2)):
            if sum(part.shape[2] for part in parts) > max(frames) or not chunk.shape[2]:
                break
            out, cache = recomputed(self._decode_chunk, chunk, cache, when=self.options.decode_checkpointing)
            parts.append(out)
        return torch.cat(parts, dim=2)[:, :, list(frames)].transpose(1, 2)

    def _decode_chunk(self, z: Tensor, cache: Any) -> tuple[Tensor, Any]:
        if self.vae.post_quant_conv is not None:
            z = self.vae.post_quant_conv(z)
        out, cache = self.vae.decoder(z, conv_cache=cache)
        return out, cache

    def encode_video(self, video: Tensor) -> Tensor:
        """Latents of a clip [B,T,3,H,W] in [-1,1]; the frame in front of version 1.5 repeats the first."""
        posterior = self.vae.encode(video.transpose(1, 2).to(self.vae.dtype)).latent_dist
        z: Tensor = posterior.mode() * self.vae.config.scaling_factor
        return torch.cat([z[:, :, : self._padding], z], dim=2)


def load_cogvideox(**options: Any) -> FamilyGenerator:
    """A CogVideoX generator; options are those of ``CogVideoXOptions``. Raises as ``load_family``."""
    import diffusers

    chosen = CogVideoXOptions(**options)
    pipeline = getattr(diffusers, check_kind(chosen, resolve_model(chosen.model)))
    return load_family(CogVideoX, chosen, pipeline, ("transformer", "text_encoder"))
