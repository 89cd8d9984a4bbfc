"""HunyuanVideo (Kong et al. 2024) text-to-video, from a diffusers ``HunyuanVideoPipeline`` folder or hub id.

A flow transformer whose guidance was distilled into it: the scale is an input (``embedded_guidance``), and one pass
does the work of two. So there is no negative prompt, and algorithms run with ``guidance_scale: 1``. A
``negative_prompt`` brings plain guidance back on top, as the pipeline's ``true_cfg_scale`` does.

The autoencoder decodes long clips in overlapping pieces of time, as diffusers does; all frames of a clip are decoded
whichever are asked for.

Left out: image-to-video, other templates around the prompt.

Run: ``generator: {kind: hunyuan_video, model: hunyuanvideo-community/HunyuanVideo}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from reelign.errors import ConfigError, ModelError
from reelign.generators.family import FamilyOptions, Features, Native, check_size, check_text_length
from reelign.generators.family_generator import FamilyGenerator, load_family
from reelign.generators.levers import recomputed
from reelign.generators.lora import AdapterLayout
from reelign.paths import FlowPath

TEXT_LENGTH = 256  # tokens the pipeline reads after its template
NATIVE = Native(frames=129, height=720, width=1280, fps=24.0, steps=50, guidance_scale=1.0)


class HunyuanVideoOptions(FamilyOptions):
    """Which HunyuanVideo, at what size, with what adapter; see ``FamilyOptions``.

    Args:
        kind: always ``hunyuan_video``.
        height, width, frames, fps: 720×1280, 129 frames, 24 a second unless told otherwise. Frames are 4·n + 1.
        negative_prompt: None runs the distilled model as it was made, without guidance in two passes.
        embedded_guidance: the scale that the network is given.
    """

    kind: Literal["hunyuan_video"] = "hunyuan_video"
    negative_prompt: str | None = None
    embedded_guidance: float = Field(6.0, ge=1)


class HunyuanVideo:
    """A ``Family`` around a ``HunyuanVideoPipeline``."""

    adapter_layout: AdapterLayout = "diffusers"
    guidance: Tensor | None = None
    takes_image = False
    native = NATIVE

    def __init__(self, pipeline: Any, options: HunyuanVideoOptions) -> None:
        self.pipeline = pipeline
        self.options = options
        self.vae, self.config = pipeline.vae, pipeline.transformer.config
        self.size = options.size(NATIVE)
        self.networks = {"transformer": pipeline.transformer}
        self.frozen, self.encoders = [self.vae], [pipeline.text_encoder, pipeline.text_encoder_2]
        if self.config.image_condition_type is not None:
            raise ModelError(f"this kind is text-to-video; {options.model!r} begins from pictures")
        scheduler = pipeline.scheduler.config
        if scheduler.get("use_dynamic_shifting"):
            raise ModelError("HunyuanVideo needs a flow scheduler with a fixed shift; this model folder's has another")
        self.path = FlowPath(float(scheduler.get("shift", 1.0)), int(scheduler.num_train_timesteps), grid_end=0.0)
        multiple = self.vae.spatial_compression_ratio * self.config.patch_size
        check_size("HunyuanVideo", self.size, multiple, self.vae.temporal_compression_ratio)

    def latent_shape(self) -> tuple[int, int, int, int]:
        """[C,F,h,w] of one clip."""
        space, time = self.vae.spatial_compression_ratio, self.vae.temporal_compression_ratio
        frames, height, width = self.size
        return (self.config.in_channels, (frames - 1) // time + 1, height // space, width // space)

    def encode_text(self, text: str, device: torch.device) -> Features:
        """Llama's states [L,D] after the template, which of them are text [L], and CLIP's pooled state [E]."""
        check_text_length(self.pipeline.tokenizer, text, TEXT_LENGTH)
        states, pooled, mask = self.pipeline.encode_prompt(text, device=device, max_sequence_length=TEXT_LENGTH)
        return {"text": states[0], "pooled": pooled[0], "mask": mask[0]}

    def encode_image(self, pictures: Tensor) -> tuple[Features, Features]:
        """Never asked for: this is text-to-video."""
        raise ConfigError("HunyuanVideo here is text-to-video; it takes no pictures")

    def predict(self, x: Tensor, t: Tensor, features: Features) -> Tensor:
        """The flow ε − x_0 for x [B,C,F,h,w] at t in [0,1000], at the embedded guidance."""
        scale = x.new_full((len(x),), self.options.embedded_guidance * 1000.0) if self.config.guidance_embeds else None
        output: Tensor = self.networks["transformer"](
            hidden_states=x,
            timestep=t.to(x.dtype),
            encoder_hidden_states=features["text"],
            encoder_attention_mask=features["mask"].to(x.dtype),
            pooled_projections=features["pooled"],
            guidance=scale,
            return_dict=False,
        )[0]
        return output

    def decode(self, x: Tensor, frames: Sequence[int]) -> Tensor:
        """The asked frames of the whole clip."""
        z = (x / self.vae.config.scaling_factor).to(self.vae.dtype)
        video = recomputed(self._decode, z, when=self.options.decode_checkpointing)
        return video[:, :, list(frames)].transpose(1, 2)

    def _decode(self, z: Tensor) -> Tensor:
        video: Tensor = self.vae.decode(z, return_dict=False)[0]
        return video

    def encode_video(self, video: Tensor) -> Tensor:
        """Latents of a clip [B,T,3,H,W] in [-1,1]."""
        posterior = self.vae.encode(video.transpose(1, 2).to(self.vae.dtype)).latent_dist
        z: Tensor = posterior.mode() * self.vae.config.scaling_factor
        return z


def load_hunyuan_video(**options: Any) -> FamilyGenerator:
    """A HunyuanVideo generator; options are those of ``HunyuanVideoOptions``. Raises as ``load_family``."""
    from diffusers import HunyuanVideoPipeline

    return load_family(
        HunyuanVideo,
        HunyuanVideoOptions(**options),
        HunyuanVideoPipeline,
        ("transformer", "text_encoder", "text_encoder_2"),
    )
