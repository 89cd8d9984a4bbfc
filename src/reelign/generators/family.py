"""What a family of generators is: options, a ``Family`` of what it does its own way, and tools that families share.

``family_generator.py`` makes a ``contracts.Generator`` of a ``Family``. To add a family, write one file with options, a
``Family`` and a loader, and name the loader in ``catalogue.py`` and the options in ``config.py``.

Loaders import diffusers' pipelines themselves, so that reading a run file does not.

Left out: training of text and image encoders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from torch import Tensor, nn

from reelign.contracts import NoisePath, Request
from reelign.errors import ConfigError, DataError, ModelError
from reelign.generators.levers import MemoryOptions
from reelign.generators.lora import AdapterLayout, LoraOptions
from reelign.zoo.models import resolve_model
from reelign.zoo.skeletons import open_pipeline

Features = dict[str, Tensor]
# Which kind of generator makes clips from a folder, by the class that its model_index.json names.
KINDS = {
    "WanPipeline": "wan",
    "WanImageToVideoPipeline": "wan_image",
    "CogVideoXPipeline": "cogvideox",
    "CogVideoXImageToVideoPipeline": "cogvideox",
    "LTXPipeline": "ltx",
    "LTXImageToVideoPipeline": "ltx",
    "LTXConditionPipeline": "ltx",
    "HunyuanVideoPipeline": "hunyuan_video",
    "StableVideoDiffusionPipeline": "stable_video_diffusion",
    "TextToVideoSDPipeline": "modelscope",
    "VideoToVideoSDPipeline": "modelscope",
}
LOADING = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError)


class Size(NamedTuple):
    """Of one clip, in pixels and frames."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Native:
    """What a family was published to make; taken wherever the options are silent.

    Args:
        frames, height, width, fps: of a clip.
        steps: denoising steps.
        guidance_scale: w of classifier-free guidance.
    """

    frames: int
    height: int
    width: int
    fps: float
    steps: int
    guidance_scale: float


class FamilyOptions(BaseModel):
    """What every family's options have; a family adds what is its own.

    Args:
        kind: the family, one word that it alone takes.
        model: a folder, or a hub id, in the published layout.
        height, width, frames, fps: of a clip; None takes the family's own.
        negative_prompt: what guidance moves away from; None is a generator without guidance.
        dtype: of the networks and their arithmetic; adapters and the autoencoder stay in float32.
        lora: the adapter; None leaves the generator as it is, to sample from.
        adapter: folder of a saved adapter of this very rank to go on from.
        train_all: train every weight instead of an adapter.
        gradient_checkpointing: recompute the network's blocks in the backward pass.
        decode_checkpointing: recompute the decoder in the backward pass.
        merge_adapter: fold the adapter into the weights in passes without gradient: faster, at the price of a second
            copy of the adapted weights. Only in float32, because half precision would round the adapter away, and
            not in weights that ``memory`` quantises or offloads.
        memory: levers for small GPUs; see ``MemoryOptions``.
        first_frames: of image-to-video, a ``.jsonl`` file with a ``prompt`` and a ``first_frame`` a line, for requests
            that bring neither pictures nor clips.
        clips: of image-to-video, how many clips follow one another; each begins with the last frame of the one before.
        device: ``auto`` is cuda where there is one, else cpu.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    model: str
    height: int | None = Field(None, ge=8)
    width: int | None = Field(None, ge=8)
    frames: int | None = Field(None, ge=1)
    fps: float | None = Field(None, gt=0)
    negative_prompt: str | None = ""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    lora: LoraOptions | None = LoraOptions()
    adapter: str | None = None
    train_all: bool = False
    gradient_checkpointing: bool = False
    decode_checkpointing: bool = False
    merge_adapter: bool = True
    memory: MemoryOptions = MemoryOptions()
    first_frames: str | None = None
    clips: int = Field(1, ge=1)
    device: str = "auto"

    def size(self, native: Native) -> Size:
        """Of one clip: as asked, else as the family was published."""
        return Size(self.frames or native.frames, self.height or native.height, self.width or native.width)


class ModelOptions(Protocol):
    """What a generator's options say about its folder; see ``FamilyOptions``."""

    @property
    def kind(self) -> str: ...  # noqa: D102

    @property
    def model(self) -> str: ...  # noqa: D102

    @property
    def dtype(self) -> Literal["float32", "bfloat16", "float16"]: ...  # noqa: D102

    @property
    def train_all(self) -> bool: ...  # noqa: D102


class Family(Protocol):
    """What one family of models does its own way.

    Everything is of one clip of ``size``: x is [B,C,F,h,w], whatever the network itself takes. Features are named
    tensors that go through ``Condition``, batch first unless said otherwise.
    """

    @property
    def path(self) -> NoisePath:
        """The noise path."""
        ...

    @property
    def native(self) -> Native:
        """What it was published to make."""
        ...

    @property
    def size(self) -> Size:
        """Of one clip; the family has checked that the model can make it."""
        ...

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The denoisers by the name of their folder."""
        ...

    @property
    def frozen(self) -> Sequence[nn.Module]:
        """Autoencoders; they stay on the device."""
        ...

    @property
    def encoders(self) -> Sequence[nn.Module]:
        """Of texts and pictures; on the device only while they work."""
        ...

    @property
    def takes_image(self) -> bool:
        """Whether clips begin from a picture."""
        ...

    @property
    def guidance(self) -> Tensor | None:
        """How guidance varies over a clip, see ``Condition``; None where it does not."""
        ...

    @property
    def adapter_layout(self) -> AdapterLayout:
        """Of saved adapters."""
        ...

    def latent_shape(self) -> tuple[int, int, int, int]:
        """[C,F,h,w] of one clip."""
        ...

    def encode_text(self, text: str, device: torch.device) -> Features:
        """Features of one text, without a batch axis; raises DataError where it is too long."""
        ...

    def encode_image(self, pictures: Tensor) -> tuple[Features, Features]:
        """Features of first frames [B,3,H,W] in [0,1], for the positive and for the negative branch."""
        ...

    def predict(self, x: Tensor, t: Tensor, features: Features) -> Tensor:
        """Raw network output for x [B,C,F,h,w] at times t [B]."""
        ...

    def decode(self, x: Tensor, frames: Sequence[int]) -> Tensor:
        """The asked frames [B,T',3,H,W] in [-1,1] of one clip; values a little outside are cut off later."""
        ...

    def encode_video(self, video: Tensor) -> Tensor:
        """One clip [B,T,3,H,W] in [-1,1] to latents, by the mode of the posterior."""
        ...


@runtime_checkable
class OwnNegative(Protocol):
    """A family whose guidance is away from something of its own, and not from a text."""

    def negative(self, positive: Features) -> Features:
        """What the negative branch sees beside these features of the prompts, batch first."""
        ...


def pick_device(name: str) -> str:
    """``auto`` is cuda where there is one, else cpu; any other name is itself."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def checked_frames(frames: Sequence[int] | None, total: int) -> list[int]:
    """The asked frames of a clip of ``total``, all where None; raises DataError where one does not exist."""
    wanted = list(range(total)) if frames is None else list(frames)
    if not (wanted and all(0 <= f < total for f in wanted)):
        raise DataError(f"frames of this clip run from 0 to {total - 1}; asked for {wanted}")
    return wanted


def check_size(family: str, size: Size, multiple: int, every: int = 1) -> None:
    """Refuse a size that the model cannot make; raises ConfigError.

    Args:
        family: its name, for the error.
        size: of one clip.
        multiple: of which height and width are multiples.
        every: frames are this times n, and 1.
    """
    if (size.frames - 1) % every:
        raise ConfigError(f"{family} makes clips of {every}·n + 1 frames; got {size.frames}")
    if size.height % multiple or size.width % multiple:
        raise ConfigError(
            f"height and width must be multiples of {multiple} for this model; got {size.height}x{size.width}"
        )


def refuse_pictures(request: Request) -> None:
    """Refuse first frames for a model of texts; raises DataError."""
    if request.first_frames is not None:
        raise DataError("this model makes clips from text alone: leave first_frames out of the request")


def check_text_length(tokenizer: Any, text: str, limit: int) -> None:
    """Refuse a prompt that the model would cut; raises DataError."""
    tokens = len(tokenizer(text, verbose=False).input_ids)
    if tokens > limit:
        raise DataError(
            f"a prompt has at most {limit} tokens for this model; shorten this one of {tokens}: "
            f"{text[:60]!r}{'…' if len(text) > 60 else ''}"
        )


def discrete_prediction(scheduler: Any) -> Literal["epsilon", "v"]:
    """What a network on a table of noise levels predicts, from its scheduler's config.

    Raises:
        ModelError: neither ε nor v.
    """
    kinds: dict[str, Literal["epsilon", "v"]] = {"epsilon": "epsilon", "v_prediction": "v"}
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in kinds:
        raise ModelError(f"this network should predict epsilon or v_prediction; the scheduler's config says {kind!r}")
    return kinds[kind]


def check_kind(options: ModelOptions, source: str) -> str:
    """The class of pipeline that a folder or hub id names; refuses one that another kind of generator reads.

    Raises:
        ModelError: of another kind, the folder names none, or lacks a part that it names.
    """
    from diffusers import DiffusionPipeline

    try:
        index = DiffusionPipeline.load_config(source)
    except (OSError, ValueError) as error:
        raise not_loaded(options, error) from error
    found = str(index.get("_class_name"))
    # Wan 2.2 TI2V 5B is published as a WanPipeline, and begins from pictures too.
    if KINDS.get(found) == options.kind or (options.kind == "wan_image" and index.get("expand_timesteps")):
        _check_parts(options, source, index)
        return found
    wanted = " or ".join(name for name, kind in KINDS.items() if kind == options.kind)
    hint = f"set generator.kind to {KINDS[found]}" if found in KINDS else "choose another model"
    raise ModelError(f"generator.kind {options.kind} reads a {wanted}; {options.model!r} holds a {found}: {hint}")


def _check_parts(options: ModelOptions, source: str, index: Mapping[str, Any]) -> None:
    """Refuse a local folder without the folder of a part: libraries then say nothing, or not which."""
    parts = [name for name, value in index.items() if isinstance(value, (list, tuple)) and value[0] is not None]
    missing = [name for name in parts if Path(source).is_dir() and not (Path(source) / name).is_dir()]
    if missing:
        raise ModelError(
            f"a model of kind {options.kind} has the parts {', '.join(parts)}; {options.model!r} lacks "
            f"{', '.join(missing)}: fetch the whole folder"
        )


def not_loaded(options: ModelOptions, error: Exception) -> ModelError:
    """That nothing could be loaded, and why, in one line."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ModelError(f"no model of kind {options.kind} could be loaded from {options.model!r}: {reason}")


def load_pipeline(pipeline: Any, options: ModelOptions, half: Sequence[str] = ()) -> Any:
    """A diffusers pipeline of a folder or hub id.

    Args:
        pipeline: the class.
        options: which model, in what precision.
        half: components that go to ``dtype``; all others are float32, as the decoder loses detail in half precision.

    Raises:
        ModelError: the folder or hub id holds no such pipeline.
    """
    dtype = getattr(torch, options.dtype)
    # What is trained whole keeps full precision.
    dtypes = {name: torch.float32 if options.train_all and "encoder" not in name else dtype for name in half}
    source = resolve_model(options.model)
    check_kind(options, source)
    try:
        return open_pipeline(pipeline, source, {**dtypes, "default": torch.float32})
    except LOADING as error:
        raise not_loaded(options, error) from error
