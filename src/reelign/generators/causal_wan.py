"""Causal Wan: any Wan text-to-video transformer made to write a clip block after block, with a memory of its past.

The weights are those of a ``WanPipeline``, or of a released Self-Forcing or CausVid checkpoint put into one; the way
they are run is in ``causal_network``. Everything else (text, latents, adapters) is the Wan generator's.

Left out: two experts (Wan 2.2), per-token times (Wan 2.2 TI2V 5B), image-to-video weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from reelign.contracts import Condition, Request
from reelign.distributed import shards
from reelign.errors import ConfigError, ModelError
from reelign.generators.causal_layers import text_memory
from reelign.generators.causal_layout import Layout
from reelign.generators.causal_network import (
    Memory,
    advance,
    advance_after,
    empty_memory,
    recall,
    teacher_forced,
    whole,
)
from reelign.generators.lora import merged
from reelign.generators.wan import WanGenerator, WanOptions, load_wan
from reelign.generators.wan_layout import read_weights, write_official
from reelign.paths import FlowPath
from reelign.zoo.models import resolve_model


class CausalWanOptions(WanOptions):
    """Which Wan, and how it runs causally. Counts of frames are of latent frames.

    Args:
        kind: always ``causal_wan``.
        model: ``zoo:tiny-causal-wan``, a folder of that kind, or any ``WanPipeline``.
        transformer: weights to put into the pipeline: a folder or file in diffusers' names, or a released checkpoint
            (``self_forcing_dmd.pt``, CausVid's ``model.pt``); of two sets in it, the averaged one.
        frames_per_block: denoised together; 1 is frame-wise. None takes the model's own (``reelign.json``), else 3.
        independent_first: the first frame is a block of its own. None takes the model's own, else no.
        window: frames a block sees at most, its own included; None is all.
        sink: of these, how many are the first of the clip.
        rebase_sink: give the sink the place right before the window, whatever lies between.
        noise: ``fresh`` noise at each step of a block, as few-step students are trained, or ``kept``, the Euler step.
            None takes the model's own, else fresh.
        shift: of noise levels, one for everything; None takes the pipeline's scheduler's. Released checkpoints: 5.
    """

    kind: Literal["causal_wan"] = "causal_wan"  # type: ignore[assignment]
    model: str = "zoo:tiny-causal-wan"
    transformer: str | None = None
    frames_per_block: int | None = Field(None, ge=1)
    independent_first: bool | None = None
    window: int | None = Field(None, ge=1)
    sink: int = Field(0, ge=0)
    rebase_sink: bool = False
    noise: Literal["fresh", "kept"] | None = None
    shift: float | None = Field(None, gt=0)


class CausalWanGenerator:
    """A ``contracts.CausalGenerator`` around a Wan generator.

    Args:
        wan: with one expert.
        options: how it runs causally.
        native: what the model was trained as; see ``reelign.json``.
    """

    def __init__(self, wan: WanGenerator, options: CausalWanOptions, native: dict[str, Any] | None = None) -> None:
        native = {"frames_per_block": 3, "independent_first": False, "noise": "fresh", **(native or {})}
        _check_network(wan, options)
        self.wan = wan
        self.options = options
        self.fps = wan.fps
        self.device = wan.device
        self.default_steps = int(native.get("steps", 4))
        self.default_guidance_scale = float(native.get("guidance_scale", 1.0))
        self.fresh_noise = (options.noise or native["noise"]) == "fresh"
        self.path = FlowPath(options.shift or wan.path.shift, wan.path.train_steps, grid_end=0.0)
        first = native["independent_first"] if options.independent_first is None else options.independent_first
        self.layout = Layout(
            options.frames_per_block or int(native["frames_per_block"]),
            bool(first),
            options.window,
            options.sink,
            options.rebase_sink,
        )
        self.layout.blocks(wan.latent_shape()[1])
        self._dtype = getattr(torch, options.dtype)

    @property
    def network(self) -> Any:
        """The transformer."""
        return self.wan.experts()[0]

    def blocks(self, frames: int, start: int = 0) -> list[int]:
        """Sizes of the blocks that ``frames`` latent frames from frame ``start`` divide into."""
        return self.layout.blocks(frames, start)

    @torch.no_grad()
    def begin(self, condition: Condition, frame: int = 0) -> Memory:
        """The memory before frame ``frame``: the text's keys and values, and no frame."""
        with self._precision():
            return empty_memory(self.network, self._text(condition), frame)

    def advance(self, x: Tensor, t: Tensor, condition: Condition, memory: Memory) -> tuple[Tensor, Memory]:
        """The flow ε − x_0 for the block x [B,C,f,h,w] after ``memory``, and the memory with this block in it.

        With gradient, the text's keys and values are computed anew, so that their weights learn too.
        """
        with self._precision():
            text = self._text(condition) if torch.is_grad_enabled() else memory.text
            return advance(self.network, self.layout, x, t.to(self.device), memory, text)

    @torch.no_grad()
    def advance_after(
        self, x: Tensor, t: Tensor, condition: Condition, memory: Memory, clean: Tensor, clean_t: Tensor
    ) -> tuple[Tensor, Memory]:
        """Two passes in one: the flow for x after ``clean``, and the memory with ``clean`` in it, but not x."""
        with self._precision():
            times = t.to(self.device), clean_t.to(self.device)
            return advance_after(self.network, self.layout, x, times[0], memory, clean, times[1])

    @torch.no_grad()
    def recall(self, x: Tensor, end: int, condition: Condition, t: float = 0.0) -> Memory:
        """The memory of frames already made, under another text.

        Args:
            x: [B,C,f,h,w], the clean frames that ``layout.seen(end)`` names; twice for a condition of both branches.
            end: the frame that comes next.
            t: time at which clean frames enter the memory.
        """
        with self._precision():
            return recall(self.network, self.layout, x, torch.tensor(t), end, self._text(condition))

    def predict(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The flow for a whole clip x [B,C,F,h,w], block-causal; t is one time, [B], or one a frame [B,F]."""
        with self._precision():
            return whole(self.network, self.layout, x, t.to(self.device), self._text(condition))

    def predict_after(self, x: Tensor, t: Tensor, condition: Condition, clean: Tensor, clean_t: Tensor) -> Tensor:
        """The flow for the noisy blocks of x, each after the blocks of ``clean`` before it: teacher forcing."""
        with self._precision():
            times = t.to(self.device), clean_t.to(self.device)
            return teacher_forced(self.network, self.layout, x, times[0], self._text(condition), clean, times[1])

    def _text(self, condition: Condition) -> Any:
        return text_memory(self.network, condition.positive["text"])

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32)

    # What follows is the Wan generator's.

    def latent_shape(self) -> tuple[int, ...]:
        """[C,F,h,w] of one clip."""
        return self.wan.latent_shape()

    def frames(self) -> int:
        """Frames of a decoded clip."""
        return self.wan.frames()

    def picture_size(self) -> tuple[int, int]:
        """Height and width of a decoded clip in pixels."""
        return self.wan.picture_size()

    def parameter_count(self) -> int:
        """Parameters of the transformer, adapter included."""
        return self.wan.parameter_count()

    def encode(self, request: Request) -> Condition:
        """Text states of the prompts and of the negative prompt."""
        return self.wan.encode(request)

    def decode(self, x: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """Latents to float32 [B,T',3,H,W] in [0,1]."""
        return self.wan.decode(x, frames)

    def temporal_ratio(self) -> int:
        """Frames of a clip that a latent frame becomes; the first becomes one."""
        return int(self.wan.pipeline.vae.config.scale_factor_temporal)

    def decode_next(self, x: Tensor, memory: list[Any] | None = None) -> tuple[Tensor, list[Any]]:
        """As ``decode``, of latents that follow those in ``memory``; and the memory with them."""
        return self.wan.decode_next(x, memory)

    def encode_video(self, video: Tensor) -> Tensor:
        """Clips [B,T,3,H,W] in [0,1] to normalised latents."""
        return self.wan.encode_video(video)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters, or every weight."""
        return self.wan.trainable()

    def merged(self) -> AbstractContextManager[None]:
        """Inside, the adapter is folded into the weights."""
        return self.wan.merged()

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the adapter is off."""
        return self.wan.reference()

    def save(self, folder: str) -> None:
        """Write the adapter, or the whole transformer."""
        self.wan.save(folder)

    def load(self, folder: str) -> None:
        """Read back what ``save`` wrote."""
        self.wan.load(folder)

    def export(self, file: str) -> None:
        """Write the transformer under the official names, adapter folded in: ``.pt`` as released, or ``.safetensors``.

        The inverse of ``transformer`` in the options; the official code and its ports read it.
        """
        with merged([self.network]):
            write_official(base_weights(self.network), Path(file))


def load_causal_wan(**options: Any) -> CausalWanGenerator:
    """Load a causal Wan generator; keyword arguments are those of ``CausalWanOptions``.

    A folder with ``base`` in its ``reelign.json`` holds a transformer alone and takes everything else from that model.

    Raises:
        ModelError: no such model, or weights that do not fit it.
    """
    chosen = CausalWanOptions(**options)
    place = Path(resolve_model(chosen.model))
    native_file = place / "reelign.json"
    native: dict[str, Any] = json.loads(native_file.read_text()) if native_file.is_file() else {}
    own = {name for name in CausalWanOptions.model_fields if name not in WanOptions.model_fields} | {"kind", "adapter"}
    plain = chosen.model_dump(exclude=own)
    if "base" in native:
        plain["model"] = native["base"]
    wan = load_wan(**plain)
    source = chosen.transformer or (str(place / "transformer") if "base" in native else None)
    if source is not None:
        put_weights(wan.experts()[0], source)
    if chosen.adapter is not None:
        wan.load(chosen.adapter)
    return CausalWanGenerator(wan, chosen, native)


def _check_network(wan: WanGenerator, options: CausalWanOptions) -> None:
    if len(wan.experts()) != 1 or wan.pipeline.config.expand_timesteps:
        raise ModelError(f"a causal Wan has one transformer, with a time a frame; {options.model!r} has another kind")
    config: Any = wan.experts()[0].config
    if config.patch_size[0] != 1 or config.image_dim is not None or config.in_channels != wan.latent_shape()[0]:
        raise ModelError(
            "a causal Wan is a text-to-video transformer of patches of one frame, its channels those of the latents; "
            f"{options.model!r} has patches of {tuple(config.patch_size)}, {config.in_channels} channels for "
            f"{wan.latent_shape()[0]}, image width {config.image_dim}"
        )
    if shards():
        raise ConfigError(
            "FSDP joins the weights of a block where it is called, and causal generators run parts of blocks: launch "
            "with --multi_gpu"
        )
    if options.compile:
        raise ConfigError("compile is not for causal generators, whose memory grows: set generator.compile to false")
    if options.dtype == "float16" and (options.lora is not None or options.train_all):
        raise ConfigError(
            "causal generators do not scale gradients, which float16 would round to nothing: set dtype to bfloat16, or "
            "lora to null"
        )
    if not options.memory.foldable:
        raise ConfigError(
            "memory.quantise and memory.offload are not for causal generators, whose weights are replaced as a whole: "
            "leave them out"
        )


def put_weights(network: Any, source: str) -> None:
    """Fill a transformer, adapter or not, with the weights of a checkpoint; none missing, none left over.

    Args:
        source: a folder in diffusers' layout, in one file or several, or a file that ``read_transformer`` reads.

    Raises:
        ModelError: there is no such file, or its weights do not fit.
    """
    state = read_weights(source)
    own = base_weights(network)
    for what, names in (("has no", set(own) - set(state)), ("has weights that are not of it,", set(state) - set(own))):
        if names:
            listed = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            raise ModelError(f"{source} does not fit this transformer: it {what} {listed} ({len(names)} in all)")
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise ModelError(
                f"{source} does not fit this transformer: {name} is {tuple(state[name].shape)}, "
                f"not {tuple(value.shape)}"
            )
    for name, value in own.items():
        value.copy_(state[name])


def base_weights(network: Any) -> dict[str, Tensor]:
    """A transformer's weights under diffusers' names, whether or not it has an adapter, which is left out."""
    return {
        name.replace(".base_layer.", "."): value for name, value in network.state_dict().items() if "lora_" not in name
    }
