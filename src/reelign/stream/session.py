"""A video without an end: blocks of a causal generator, decoded as they are made, under a prompt that may change.

Nothing is made or decoded twice, and nothing grows: the generator remembers a window, the decoder carries its state
from one latent frame to the next, and of the latents the window alone is kept, because a new prompt needs it: the
memory is computed anew from them under that prompt (Yang et al. 2025, LongLive, section 3.2).

Knows nothing of pages and files. Run:

    with StreamSession(generator, "a red circle moving left", StreamOptions(seed=1)) as session:
        for part in session: show(part.video)
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from reelign.contracts import CausalGenerator, Condition, Request
from reelign.errors import DataError, NonFiniteError
from reelign.generators.causal_layout import Layout
from reelign.generators.causal_wan import CausalWanGenerator
from reelign.sampling import RolloutOptions, SeededNoise, begin, roll
from reelign.stream.memory import give_back_memory

RECENT = 16  # parts over which the speed is measured


class StreamOptions(BaseModel):
    """How a stream is made.

    Args:
        steps: denoising steps of each block; None is the model's own.
        guidance_scale: w of classifier-free guidance; None is the model's own, 1 is none and half the work.
        seed: of all noise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=0, le=100)
    seed: int = Field(0, ge=0, lt=2**63)


@dataclass(frozen=True)
class Part:
    """The frames of one latent frame.

    Args:
        video: float32 [T,3,H,W] in [0,1].
        first: index of the first of them in the stream.
        block: index of their block.
        seconds: since the stream was asked for.
    """

    video: Tensor
    first: int
    block: int
    seconds: float


class _StoppedError(Exception):
    """Leaves a block in its middle."""


class _Watched:
    """A generator that is asked before each pass of its network whether to go on."""

    def __init__(self, generator: CausalWanGenerator, stopped: threading.Event) -> None:
        self._generator, self._stopped = generator, stopped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def advance(self, x: Tensor, t: Tensor, condition: Condition, memory: Any) -> tuple[Tensor, Any]:
        """As the generator's."""
        self._ask()
        return self._generator.advance(x, t, condition, memory)

    def advance_after(self, x: Tensor, t: Tensor, condition: Condition, memory: Any, *clean: Tensor) -> Any:
        """As the generator's."""
        self._ask()
        return self._generator.advance_after(x, t, condition, memory, *clean)

    def _ask(self) -> None:
        if self._stopped.is_set():
            raise _StoppedError


class StreamSession:
    """One stream; an iterator over its parts. Used as a context, so that the adapter is folded in once and comes out.

    ``stop`` may be called from any thread, at any time; everything else from one thread.

    Args:
        generator: with a window; see ``keep_window``.
        prompt: what to begin with.
        options: how.

    Raises:
        DataError: the prompt is empty or too long.
    """

    def __init__(self, generator: CausalWanGenerator, prompt: str, options: StreamOptions | None = None) -> None:
        self._began = time.perf_counter()
        options = options or StreamOptions()
        self.generator = generator
        scale = generator.default_guidance_scale if options.guidance_scale is None else options.guidance_scale
        self._options = RolloutOptions(scale)
        self._schedule = generator.path.schedule(options.steps or generator.default_steps)
        self._draw = SeededNoise([options.seed], generator.device)
        self._condition = self._encode(prompt)
        self._changed = False
        self._stopped = threading.Event()
        self._parts = self._make()
        self._open = ExitStack()
        self._busy: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self.latent_frames, self.frames, self.blocks = 0, 0, 0
        self.first_frame_s: float | None = None
        self.memory_bytes = 0

    def __enter__(self) -> StreamSession:
        self._open.enter_context(self.generator.merged())
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._parts.close()
        self._open.close()

    def __iter__(self) -> Iterator[Part]:
        return self

    @torch.no_grad()
    def __next__(self) -> Part:
        """The next frames, at the price of a block or of decoding only; ends after ``stop``.

        Raises:
            NonFiniteError: the model made something that is no picture.
        """
        began = time.perf_counter()
        if self._stopped.is_set():
            raise StopIteration
        try:
            part = next(self._parts)
        except _StoppedError:
            raise StopIteration from None
        if self.generator.device.type == "cpu":
            give_back_memory()
        self._busy.append((len(part.video), time.perf_counter() - began))
        return part

    def stop(self) -> None:
        """End the stream before the next pass of the network."""
        self._stopped.set()

    @torch.no_grad()
    def change(self, prompt: str) -> int:
        """Go on under another prompt from the next block; returns the index of the first frame it can be seen in.

        Raises:
            DataError: the prompt is empty or too long; the stream goes on as it was.
        """
        self._condition, self._changed = self._encode(prompt), True
        return self._frames_of(self.latent_frames)

    @property
    def frames_per_s(self) -> float:
        """How many frames are made in a second of work, lately; waiting for whoever watches does not count."""
        seconds = sum(spent for _, spent in self._busy)
        return sum(count for count, _ in self._busy) / seconds if seconds else 0.0

    def _make(self) -> Generator[Part, None, None]:
        """Blocks for ever. A new prompt ends the chain of blocks and begins another on a memory that is recalled."""
        watched = cast(CausalGenerator, _Watched(self.generator, self._stopped))
        memory = begin(watched, self._condition, self._options)
        latents: Tensor | None = None
        decoder: list[Any] | None = None
        while True:
            self._changed = False
            sizes = _endless(self.generator.layout, self.latent_frames)
            blocks = roll(watched, self._condition, sizes, self._schedule, self._draw, self._options, memory)
            for x, before in blocks:
                latents = x if latents is None else _latest(self.generator.layout, torch.cat([latents, x], dim=2))
                self.latent_frames += x.shape[2]
                self.memory_bytes = before.bytes()
                for latent in torch.split(x, 1, dim=2):
                    video, decoder = self.generator.decode_next(latent, decoder)
                    yield self._part(video[0])
                self.blocks += 1
                if self._changed:
                    memory = self._recall(latents)
                    break

    def _part(self, video: Tensor) -> Part:
        if not torch.isfinite(video).all():
            raise NonFiniteError(
                f"pixels are numbers, and those of block {self.blocks} are not: load the model with --dtype float32"
            )
        seconds = time.perf_counter() - self._began
        self.first_frame_s = seconds if self.first_frame_s is None else self.first_frame_s
        self.frames += len(video)
        return Part(video, self.frames - len(video), self.blocks, seconds)

    def _recall(self, latents: Tensor) -> Any:
        """The memory of the frames that are still seen, under the prompt as it is now."""
        if self._options.guidance_scale == 1:
            return self.generator.recall(latents, self.latent_frames, self._condition)
        both = torch.cat([latents, latents])
        return self.generator.recall(both, self.latent_frames, self._condition.both())

    def _encode(self, prompt: str) -> Condition:
        return self.generator.encode(Request((checked_prompt(prompt),)))

    def _frames_of(self, latent_frames: int) -> int:
        """How many frames so many latent frames become: the first is one frame, each other ``ratio``."""
        return 1 + (latent_frames - 1) * self.generator.temporal_ratio() if latent_frames else 0


def checked_prompt(prompt: str) -> str:
    """A prompt with single spaces.

    Raises:
        DataError: it is empty.
    """
    if not (text := " ".join(prompt.split())):
        raise DataError("a stream needs a prompt; got an empty one: say what to show")
    return text


def keep_window(generator: CausalWanGenerator, window: int | None = None, sink: int = 0) -> None:
    """Give a generator the window that makes endless streams possible.

    Args:
        window: latent frames that a block sees, its own and the sink included; None is the model's own length.
        sink: of these, how many are the first of the stream.

    Raises:
        ConfigError: the window is smaller than sink and block.
    """
    generator.layout = replace(generator.layout, window=window or generator.latent_shape()[1], sink=sink)


def _endless(layout: Layout, start: int) -> Iterator[int]:
    """Sizes of the blocks from frame ``start`` on."""
    first = [1] if layout.independent_first and start == 0 else []
    return chain(first, repeat(layout.frames_per_block))


def _latest(layout: Layout, x: Tensor) -> Tensor:
    """Of clean latents [B,C,f,h,w], the frames that the layout lets the last block see."""
    frames = x.shape[2]
    kept = [x[:, :, low:high] for low, high in layout.seen(frames)]
    return kept[0] if len(kept) == 1 else torch.cat(kept, dim=2).contiguous()
