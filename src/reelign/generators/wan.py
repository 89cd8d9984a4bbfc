"""Wan 2.1 and 2.2 text-to-video, from any diffusers ``WanPipeline`` folder or hub id; the zoo's tiny one included.

The pipeline's own text encoding is used; the sampler is reelign's. With two experts (Wan 2.2 A14B) the noisy steps go
to the first and the others to the second, and both get an adapter. Multi-timestep inputs (Wan 2.2 TI2V 5B) are given
one time for all tokens.

Left out: image-to-video, which is ``wan_image.py``; a second guidance scale for the second expert.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import WanPipeline
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reelign.contracts import Condition, Request
from reelign.distributed import shards
from reelign.errors import ConfigError, ModelError
from reelign.generators.denoisers import Denoisers
from reelign.generators.family import Size, check_size, check_text_length, load_pipeline, pick_device, refuse_pictures
from reelign.generators.levers import MemoryOptions, check_memory, check_tiles, decode_in_parts, in_slices
from reelign.generators.lora import FILES, LoraOptions
from reelign.generators.wan_vae import decode_frames, decode_latent_frame, empty_memory, latent_statistics
from reelign.paths import FlowPath
from reelign.zoo.models import resolve_model

log = logging.getLogger(__name__)

WEIGHTS = FILES["diffusers"]
NATIVE = {"height": 480, "width": 832, "frames": 81, "fps": 16.0, "steps": 50, "guidance_scale": 5.0}


class WanOptions(BaseModel):
    """Which Wan, at what size, with what adapter.

    Args:
        kind: always ``wan``.
        model: ``zoo:tiny-wan``, a folder, or a hub id such as ``Wan-AI/Wan2.1-T2V-1.3B-Diffusers``.
        height, width, frames: of clips in pixels; None takes the model's own (``reelign.json``, else 480×832×81).
        negative_prompt: what guidance moves away from.
        dtype: of the transformer and its arithmetic; the adapter stays in float32.
        lora: the adapter; None leaves the generator as it is, to sample from.
        adapter: folder of a saved adapter of this very rank to go on from.
        train_all: train every weight instead of an adapter.
        gradient_checkpointing: recompute the transformer's blocks in the backward pass.
        decode_checkpointing: recompute the decoder, one latent frame at a time, in the backward pass.
        merge_adapter: fold the adapter into the weights in passes without gradient: faster, at the price of a second
            copy of the adapted weights. Only in float32, because half precision would round the adapter away, and
            not in weights that ``memory`` quantises or offloads.
        memory: levers for small GPUs; see ``MemoryOptions``.
        compile: compile the transformer's repeated blocks.
        device: ``auto`` is cuda where there is one, else cpu.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["wan"] = "wan"
    model: str = "zoo:tiny-wan"
    height: int | None = Field(None, ge=16)
    width: int | None = Field(None, ge=16)
    frames: int | None = Field(None, ge=1)
    fps: float | None = Field(None, gt=0)
    negative_prompt: str = ""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    lora: LoraOptions | None = LoraOptions()
    adapter: str | None = None
    train_all: bool = False
    gradient_checkpointing: bool = False
    decode_checkpointing: bool = False
    merge_adapter: bool = True
    memory: MemoryOptions = MemoryOptions()
    compile: bool = False
    device: str = "auto"


class WanGenerator:
    """A generator (see ``contracts.Generator``) around a ``WanPipeline``."""

    def __init__(self, pipeline: WanPipeline, options: WanOptions, native: dict[str, Any] | None = None) -> None:
        native = {**NATIVE, **(native or {})}
        self.pipeline = pipeline
        self.options = options
        self.path = noise_path(pipeline.scheduler.config)
        self.fps = float(options.fps or native["fps"])
        self.default_steps = int(native["steps"])
        self.default_guidance_scale = float(native["guidance_scale"])
        self.device = torch.device(pick_device(options.device))
        self._dtype = getattr(torch, options.dtype)
        self._size = Size(*(int(getattr(options, edge) or native[edge]) for edge in ("frames", "height", "width")))
        vae, network = pipeline.vae.config, pipeline.transformer or pipeline.transformer_2
        multiple = vae.scale_factor_spatial * network.config.patch_size[1]
        check_size("Wan", self._size, multiple, vae.scale_factor_temporal)
        check_memory(options.memory, compiled=options.compile)
        check_tiles(options.memory, pipeline.vae.config.scale_factor_spatial)
        self._texts: dict[str, Tensor] = {}
        self.text_length = min(512, int(pipeline.tokenizer.model_max_length))
        for module in (pipeline.vae, pipeline.text_encoder):
            module.eval().requires_grad_(False)
        pipeline.vae.to(self.device)
        names = [name for name in ("transformer", "transformer_2") if getattr(pipeline, name) is not None]
        self.denoisers = Denoisers({name: getattr(pipeline, name) for name in names}, options, self.device)
        if options.compile and shards():
            raise ConfigError("with FSDP blocks are not compiled: set generator.compile to false")
        for expert in self.experts() if options.compile else ():
            expert.compile_repeated_blocks()  # type: ignore[operator]

    def experts(self) -> list[nn.Module]:
        """The denoising networks, in the order in which sampling uses them."""
        return self.denoisers.all()

    def latent_shape(self) -> tuple[int, ...]:
        """[C,F,h,w] of one clip."""
        vae = self.pipeline.vae.config
        frames, height, width = self._size
        space = vae.scale_factor_spatial
        return (vae.z_dim, (frames - 1) // vae.scale_factor_temporal + 1, height // space, width // space)

    def frames(self) -> int:
        """Frames of a decoded clip."""
        return self._size.frames

    def picture_size(self) -> tuple[int, int]:
        """Height and width of a decoded clip in pixels."""
        return self._size.height, self._size.width

    def parameter_count(self) -> int:
        """Parameters of the denoising networks, adapters included."""
        return self.denoisers.parameter_count()

    @torch.no_grad()
    def encode(self, request: Request) -> Condition:
        """Text states [B,L,D] of the prompts and of the negative prompt; each text is encoded once and kept.

        Raises:
            DataError: a prompt has more tokens than the model reads, or the request has first frames.
        """
        refuse_pictures(request)
        wanted = dict.fromkeys((self.options.negative_prompt, *request.prompts))
        missing = [text for text in wanted if text not in self._texts]
        for text in missing:
            check_text_length(self.pipeline.tokenizer, prompt_clean(text), self.text_length)
        if missing:
            self._encode_texts(missing)
        negative = self._texts[self.options.negative_prompt].expand(len(request), -1, -1)
        positive = torch.stack([self._texts[text] for text in request.prompts])
        return Condition({"text": positive.to(self.device)}, {"text": negative.to(self.device)})

    def _encode_texts(self, texts: list[str]) -> None:
        """Encode on the device and park the encoder on the CPU again; features are kept on the CPU."""
        encoder = self.pipeline.text_encoder
        encoder.to(self.device)
        for text in texts:
            states, _ = self.pipeline.encode_prompt(
                text, do_classifier_free_guidance=False, max_sequence_length=self.text_length, device=self.device
            )
            self._texts[text] = states[0].float().cpu()
        encoder.to("cpu")

    def predict(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The flow ε − x_0 for latents x [B,C,F,h,w] at t in [0,1000], one for all or [B]."""
        if t.ndim and len(self.experts()) > 1:  # each row may be another expert's
            if shards():
                raise ConfigError("with FSDP all processes run the same expert, and this training mixes them by row")
            return torch.cat([self.predict(x[i : i + 1], t[i], condition[i : i + 1]) for i in range(len(x))])
        expert = self._expert_at(t)
        time = t.to(self.device, torch.float32).expand(len(x))
        if self.pipeline.config.expand_timesteps:
            tokens = x.shape[2] * (x.shape[3] // 2) * (x.shape[4] // 2)
            time = time[:, None].expand(len(x), tokens)
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            text = condition.positive["text"].to(x.dtype)
            return self.denoisers.run(lambda x: expert(x, time, text, return_dict=False)[0], x)

    def _expert_at(self, t: Tensor) -> nn.Module:
        experts = self.experts()
        boundary = self.pipeline.config.boundary_ratio
        if len(experts) == 1 or boundary is None:
            return experts[0]
        return experts[0] if float(t) >= boundary * self.path.train_steps else experts[1]

    def decode(self, x: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """Latents to float32 [B,T',3,H,W] in [0,1]; decodes the least causal prefix that holds ``frames``."""
        vae = self.pipeline.vae
        mean, std = latent_statistics(vae, x)

        def decode(z: Tensor) -> Tensor:
            return decode_frames(vae, z, frames, self.options.decode_checkpointing).float().transpose(1, 2)

        z = (x * std + mean).to(vae.dtype)
        return decode_in_parts(decode, z, vae.config.scale_factor_spatial, self.options.memory) * 0.5 + 0.5

    @torch.no_grad()
    def decode_next(self, x: Tensor, memory: list[Any] | None = None) -> tuple[Tensor, list[Any]]:
        """As ``decode``, of latents x [B,C,f,h,w] that follow those in ``memory``; and the memory with them."""
        vae = self.pipeline.vae
        mean, std = latent_statistics(vae, x)
        memory, parts = empty_memory(vae) if memory is None else memory, []
        for z in torch.split((x * std + mean).to(vae.dtype), 1, dim=2):
            out, memory = decode_latent_frame(vae, z, memory)
            parts.append(out)
        return torch.cat(parts, dim=2).float().transpose(1, 2) * 0.5 + 0.5, memory

    @torch.no_grad()
    def encode_video(self, video: Tensor) -> Tensor:
        """Clips [B,T,3,H,W] in [0,1] to normalised latents, by the mode of the posterior."""
        vae = self.pipeline.vae
        pixels = (video.transpose(1, 2) * 2 - 1).to(self.device, vae.dtype)
        x = in_slices(lambda part: vae.encode(part).latent_dist.mode(), pixels, self.options.memory).float()
        mean, std = latent_statistics(vae, x)
        return (x - mean) / std

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapters' parameters, or every weight where there is no adapter; prefixed by the expert's number."""
        return self.denoisers.trainable()

    def merged(self) -> AbstractContextManager[None]:
        """Inside, for passes without gradient, the adapters are folded into the weights, where options allow."""
        return self.denoisers.merged()

    def reference(self) -> AbstractContextManager[None]:
        """Switch the adapters off: inside, this is the generator that training started from."""
        return self.denoisers.reference()

    def save(self, folder: str) -> None:
        """Write adapters for ``pipe.load_lora_weights``, the second's in ``transformer_2/``; or whole weights."""
        self.denoisers.save(folder)

    def load(self, folder: str) -> None:
        """Read back what ``save`` wrote."""
        self.denoisers.load(folder)


def noise_path(scheduler: dict[str, Any]) -> FlowPath:
    """The flow path of a scheduler's config (FlowMatchEuler, UniPC or DPM-Solver with flow settings).

    Raises:
        ModelError: the scheduler does not belong to a flow model with a fixed shift.
    """
    if (
        scheduler.get("use_dynamic_shifting")
        or scheduler.get("prediction_type", "flow_prediction") != "flow_prediction"
    ):
        raise ModelError(
            "Wan needs a flow scheduler with a fixed shift; this model folder's scheduler config has another"
        )
    shift = scheduler.get("flow_shift", scheduler.get("shift", 1.0))
    return FlowPath(float(shift), int(scheduler.get("num_train_timesteps", 1000)))


def load_wan(**options: Any) -> WanGenerator:
    """Load a Wan generator; keyword arguments are those of ``WanOptions``.

    Raises:
        ModelError: the folder or hub id holds no ``WanPipeline``.
    """
    chosen = WanOptions(**options)
    pipeline = load_pipeline(WanPipeline, chosen, ("transformer", "transformer_2", "text_encoder"))
    native = Path(resolve_model(chosen.model)) / "reelign.json"
    generator = WanGenerator(pipeline, chosen, json.loads(native.read_text()) if native.is_file() else None)
    if chosen.adapter is not None:
        generator.load(chosen.adapter)
    return generator
