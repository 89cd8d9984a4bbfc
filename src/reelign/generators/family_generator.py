"""A generator of any family: what all families share, around a ``Family`` that says what it does its own way.

Devices and precision, adapters, text features that are kept, encoders that are parked off the device, checked frames
and pictures, and, for image-to-video, clips that go on from one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from reelign.contracts import Condition, Request
from reelign.datasets.first_frames import FirstFrames
from reelign.errors import ConfigError, DataError
from reelign.generators.denoisers import Denoisers
from reelign.generators.family import (
    Family,
    FamilyOptions,
    Features,
    OwnNegative,
    checked_frames,
    load_pipeline,
    pick_device,
    refuse_pictures,
)
from reelign.generators.levers import check_tiles, decode_in_parts, in_slices

Options = TypeVar("Options", bound=FamilyOptions)


class FamilyGenerator:
    """A generator (see ``contracts.Generator``) of any family.

    Args:
        family: what is its own.
        options: what was asked.

    Raises:
        ConfigError: several clips or first frames for a family that takes no picture, LoRA targets that match no
            layer, or levers of ``options.memory`` that do not go together.
        DataError: ``options.first_frames`` cannot be read.
        ModelError: ``options.adapter`` does not fit.
    """

    def __init__(self, family: Family, options: FamilyOptions) -> None:
        self.family = family
        self.options = options
        self.path = family.path
        self.fps = float(options.fps or family.native.fps)
        self.default_steps = family.native.steps
        self.default_guidance_scale = family.native.guidance_scale
        self.clips = options.clips
        if self.clips > 1 and not family.takes_image:
            raise ConfigError(
                f"clips follow one another in image-to-video only; set generator.clips to 1, not {self.clips}"
            )
        self.device = torch.device(pick_device(options.device))
        if options.first_frames is not None and not family.takes_image:
            raise ConfigError("first_frames are for image-to-video, and this model makes clips from text alone")
        self._pictures = None if options.first_frames is None else FirstFrames(options.first_frames)
        self._dtype = getattr(torch, options.dtype)
        self._texts: dict[str, Features] = {}
        for module in (*family.frozen, *family.encoders):
            module.eval().requires_grad_(False)
        for module in family.frozen:
            module.to(self.device)
        self._ratio = family.size.height // family.latent_shape()[2]
        check_tiles(options.memory, self._ratio)
        self.denoisers = Denoisers(family.networks, options, self.device, family.adapter_layout)
        if options.adapter is not None:
            self.load(options.adapter)

    def latent_shape(self) -> tuple[int, ...]:
        """[C,F,h,w] of all clips, one after another along F."""
        channels, frames, *space = self.family.latent_shape()
        return (channels, frames * self.clips, *space)

    def frames(self) -> int:
        """Frames of what is decoded; clips that go on from another lose their first, which shows its last."""
        return self.family.size.frames + (self.clips - 1) * (self.family.size.frames - 1)

    def picture_size(self) -> tuple[int, int]:
        """Height and width of a decoded clip in pixels."""
        return self.family.size.height, self.family.size.width

    def parameter_count(self) -> int:
        """Parameters of the denoising networks, adapters included."""
        return self.denoisers.parameter_count()

    @torch.no_grad()
    def encode(self, request: Request) -> Condition:
        """Features of prompts, of the negative prompt and of first frames; each text is encoded once and kept.

        First frames are the request's, else those of its source videos, else those of its prompts in
        ``options.first_frames``.

        Raises:
            DataError: a prompt is too long; an image-to-video model is given no first frames, or frames of another
                size; a text-to-video model is given some.
        """
        count, negative_prompt = len(request), self.options.negative_prompt
        texts = self._encode_texts([*request.prompts, *([] if negative_prompt is None else [negative_prompt])])
        positive = {name: torch.stack([text[name] for text in texts[:count]]) for name in texts[0]}
        negative = None
        if negative_prompt is not None and isinstance(self.family, OwnNegative):
            negative = self.family.negative(self._on_device(positive))
        elif negative_prompt is not None:
            negative = {name: value.expand(count, *value.shape) for name, value in texts[-1].items()}
        condition = Condition(self._on_device(positive), negative and self._on_device(negative), self.family.guidance)
        pictures = self._first_frames(request)
        return condition if pictures is None else self._with_pictures(condition, pictures)

    def _on_device(self, features: Features) -> Features:
        return {name: value.to(self.device) for name, value in features.items()}

    def _encode_texts(self, texts: Sequence[str]) -> list[Features]:
        missing = [text for text in dict.fromkeys(texts) if text not in self._texts]
        with self._encoding() if missing else torch.no_grad():
            for text in missing:
                features = self.family.encode_text(text, self.device)
                self._texts[text] = {
                    name: (value.float() if value.is_floating_point() else value).cpu()
                    for name, value in features.items()
                }
        return [self._texts[text] for text in texts]

    @contextmanager
    def _encoding(self) -> Iterator[None]:
        """Encoders on the device; after, they are parked on the CPU."""
        for encoder in self.family.encoders:
            encoder.to(self.device)
        yield
        for encoder in self.family.encoders:
            encoder.to("cpu")

    def _first_frames(self, request: Request) -> Tensor | None:
        pictures = request.first_frames
        if not self.family.takes_image:
            refuse_pictures(request)
            return None
        if pictures is None and request.source_videos is not None:
            pictures = request.source_videos[:, 0]
        if pictures is None and self._pictures is not None:
            pictures = self._pictures.read(request.prompts, *self.picture_size())
        if pictures is None:
            raise DataError(
                "an image-to-video model begins from pictures, and this request has none: give it first_frames, or set "
                "generator.first_frames to a .jsonl file with a prompt and a first_frame a line"
            )
        if pictures.shape[1:] != (3, *self.picture_size()):
            raise DataError(
                f"first frames are [B,3,{self.family.size.height},{self.family.size.width}] for this generator; got "
                f"{list(pictures.shape)}: resize them, or set generator.height and width"
            )
        return pictures

    def _with_pictures(self, condition: Condition, pictures: Tensor) -> Condition:
        with self._encoding():
            given, without = self.family.encode_image(pictures.to(self.device, torch.float32))
        positive, negative = condition.positive | given, condition.negative
        return replace(condition, positive=positive, negative=None if negative is None else negative | without)

    @torch.no_grad()
    def continued(self, x: Tensor, condition: Condition) -> Condition:
        """The condition of the clip that follows the clip of latents x [B,C,F,h,w]: it begins with its last frame."""
        last = self._decode_clip(x.detach(), [self.family.size.frames - 1])
        return self._with_pictures(condition, last[:, 0].float())

    def predict(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Raw network output for latents x [B,C,F,h,w] of one clip at t, one time for all or [B].

        Raises:
            DataError: x holds several clips; they have no condition in common.
        """
        if x.shape[2] != self.family.latent_shape()[1]:
            raise DataError(
                f"a network sees one clip of {self.family.latent_shape()[1]} latent frames at a time; got "
                f"{x.shape[2]}: training by the denoising loss needs generator.clips to be 1"
            )
        features = {n: v.to(x.dtype) if v.is_floating_point() else v for n, v in condition.positive.items()}
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            times = t.to(self.device).expand(len(x))
            return self.denoisers.run(lambda x: self.family.predict(x, times, features), x)

    def decode(self, x: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """Latents to float32 [B,T',3,H,W] in [0,1]; only the asked frames, in the asked order.

        Raises:
            DataError: a frame lies outside the clip, or none is asked for.
        """
        wanted = checked_frames(frames, self.frames())
        first, later = self.family.size.frames, self.family.size.frames - 1
        places = [(0, f) if f < first else (1 + (f - first) // later, 1 + (f - first) % later) for f in wanted]
        parts: dict[tuple[int, int], Tensor] = {}
        for number, clip in enumerate(x.chunk(self.clips, dim=2)):
            inside = sorted({frame for place, frame in places if place == number})
            if inside:
                decoded = self._decode_clip(clip, inside)
                parts |= {(number, frame): decoded[:, i] for i, frame in enumerate(inside)}
        return torch.stack([parts[place] for place in places], dim=1).float()

    def _decode_clip(self, x: Tensor, frames: Sequence[int]) -> Tensor:
        def decode(part: Tensor) -> Tensor:
            return self.family.decode(part, frames)

        return (decode_in_parts(decode, x, self._ratio, self.options.memory) * 0.5 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_video(self, video: Tensor) -> Tensor:
        """Clips [B,T,3,H,W] in [0,1], T being ``frames()``, to latents."""
        pixels = video.to(self.device, torch.float32) * 2 - 1
        length = self.family.size.frames
        starts = [number * (length - 1) for number in range(self.clips)]
        encode, memory = self.family.encode_video, self.options.memory
        return torch.cat([in_slices(encode, pixels[:, s : s + length], memory).float() for s in starts], dim=2)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters, or every weight; prefixed by the network's number."""
        return self.denoisers.trainable()

    def merged(self) -> AbstractContextManager[None]:
        """Inside, for passes without gradient, the adapter is folded into the weights, where options allow."""
        return self.denoisers.merged()

    def reference(self) -> AbstractContextManager[None]:
        """Switch the adapter off: inside, this is the generator that training started from."""
        return self.denoisers.reference()

    def save(self, folder: str) -> None:
        """Write the adapter, as ``pipe.load_lora_weights`` or PEFT reads it, or whole weights."""
        self.denoisers.save(folder)

    def load(self, folder: str) -> None:
        """Read back what ``save`` wrote, bit for bit."""
        self.denoisers.load(folder)


def load_family(
    family: Callable[[Any, Options], Family], options: Options, pipeline: Any, half: Sequence[str]
) -> FamilyGenerator:
    """A generator of a family around a diffusers pipeline.

    Args:
        family: made of the loaded pipeline and the options.
        options: what was asked.
        pipeline, half: as for ``load_pipeline``.

    Raises:
        ModelError: the folder or hub id holds no such pipeline, or one of another kind.
        ConfigError: a size that the model cannot make.
    """
    return FamilyGenerator(family(load_pipeline(pipeline, options, half), options), options)
