"""A small causal generator with random weights, and what it makes when nothing is streamed, for tests of streaming."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from reelign.contracts import Request
from reelign.generators.causal_wan import CausalWanGenerator, load_causal_wan
from reelign.sampling import RolloutOptions, SeededNoise, rollout
from reelign.stream.session import StreamOptions, StreamSession, keep_window

RED, BLUE = "a red circle moving left", "a blue square moving up"
STEPS = 2


def small_generator(folder: Any, window: int | None = None, sink: int = 0, **options: Any) -> CausalWanGenerator:
    """32×32 pixels, 8 frames a second, clips of 5 latent frames."""
    given = {"frames_per_block": 1, "lora": None, "height": 32, "width": 32, "frames": 17, "fps": 8.0, **options}
    generator = load_causal_wan(model=str(folder), device="cpu", **given)
    keep_window(generator, window, sink)
    return generator


@torch.no_grad()
def not_streamed(generator: CausalWanGenerator, frames: int, scale: float = 1.0, seed: int = 7) -> torch.Tensor:
    """A rollout of so many latent frames, decoded in one go."""
    condition = generator.encode(Request((RED,)))
    schedule = generator.path.schedule(STEPS)
    x = rollout(generator, condition, frames, schedule, SeededNoise([seed]), RolloutOptions(scale))
    return generator.decode(x)[0]


def session_of(generator: CausalWanGenerator, prompt: str = RED, scale: float = 1.0, **options: Any) -> StreamSession:
    """A stream as ``not_streamed`` makes it."""
    return StreamSession(generator, prompt, StreamOptions(steps=STEPS, guidance_scale=scale, seed=7, **options))


def streamed(session: StreamSession, parts: int) -> torch.Tensor:
    """The video of the next parts."""
    return torch.cat([next(session).video for _ in range(parts)])


def layout_of(generator: CausalWanGenerator, **changes: Any) -> None:
    """Change how a generator sees its past."""
    generator.layout = replace(generator.layout, **changes)
