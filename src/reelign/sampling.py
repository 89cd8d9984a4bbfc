r"""Sampling: one step, whole chains, and the gradient tail. Training and inference share every line of this file.

One step from noise level t to s, for every path (Song et al. 2021, DDIM, eq. 12, in α/σ form):

    x_s = α_s·x̂_0 + sqrt(σ_s² − η²·σ_{s|t}²)·ε̂ + η·σ_{s|t}·z

η = 0 is DDIM and, on a flow path, exactly the Euler step; η = 1 is ancestral sampling.

A causal generator makes a clip block after block, each by a chain of its own, on the memory of its own clean blocks:
``rollout``, which training runs too (Huang et al. 2025, Self-Forcing, algorithms 1 and 2).

Left out: multistep solvers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from reelign.contracts import (
    CausalGenerator,
    Condition,
    ContinuingGenerator,
    Generator,
    Request,
    Schedule,
    Translator,
    VideoBatch,
)
from reelign.errors import ConfigError, DataError
from reelign.paths import endpoints

Observer = Callable[[int, Tensor, Condition, Tensor], None]
Draw = Callable[[Sequence[int]], Tensor]  # shape without the batch axis -> normal noise [B,*shape]


def guided(generator: Generator, x: Tensor, t: Tensor, condition: Condition, scale: float) -> Tensor:
    r"""Classifier-free guidance e = e_u + w·(e_c − e_u), both branches in one batch (Ho and Salimans 2022, eq. 6).

    Args:
        x: [B,…].
        t: scalar tensor, the network's time.
        scale: w; 1 runs the conditional branch alone. ``condition.guidance`` spreads it over the latent.
    """
    if scale == 1:
        return generator.predict(x, t, condition).to(x.dtype)
    output = generator.predict(torch.cat([x, x]), t, condition.both()).to(x.dtype)
    negative, positive = output.chunk(2)
    w = scale if condition.guidance is None else 1 + (scale - 1) * condition.guidance.to(x)
    return negative + w * (positive - negative)


def step(x0: Tensor, eps: Tensor, schedule: Schedule, i: int, eta: float = 0.0, noise: Tensor | None = None) -> Tensor:
    """The i-th step of a chain, from x̂_0 and ε̂; ``noise`` z is needed where ``eta`` is above 0."""
    fresh = eta * schedule.ancestral[i]
    kept = (schedule.sigma[i + 1].square() - fresh.square()).clamp_min(0).sqrt()
    x = schedule.alpha[i + 1] * x0 + kept * eps
    return x if noise is None or eta == 0 else x + fresh * noise


def chain(
    generator: Generator,
    x: Tensor,
    condition: Condition,
    schedule: Schedule,
    options: ChainOptions,
    draw: Draw | None = None,
) -> Tensor:
    """Run a chain from ``x`` at the start of ``schedule`` to its end.

    The network runs under ``no_grad``, with its adapter folded into the weights, except in ``options.gradient_steps``.
    Between and after those, the latent still carries gradient through the step itself, which is linear, with the
    prediction a constant (VADER, algorithm 1).

    Clips that follow one another (``ContinuingGenerator``) have a chain each, one after the other. The last frame of
    a clip is a constant to the next one, so gradient stays within a clip and memory does not grow with their number
    beyond the chosen steps'.

    Args:
        x: [B,…] float32 or float64.
        schedule: from the generator's path; a tail of one for a partial chain.
        draw: fresh noise; needed where ``options.eta`` is above 0.
    """
    if options.eta > 0 and draw is None:
        raise ConfigError(f"a chain with eta above 0 needs a source of fresh noise; eta is {options.eta} and draw None")
    schedule = schedule.to(x)
    if not isinstance(generator, ContinuingGenerator) or generator.clips == 1:
        return _chain(generator, x, condition, schedule, options, draw)
    done: list[Tensor] = []
    for clip in x.chunk(generator.clips, dim=2):
        condition = generator.continued(done[-1], condition) if done else condition
        done.append(_chain(generator, clip, condition, schedule, options, draw))
    return torch.cat(done, dim=2)


def _chain(
    generator: Generator,
    x: Tensor,
    condition: Condition,
    schedule: Schedule,
    options: ChainOptions,
    draw: Draw | None,
) -> Tensor:
    """The chain of one clip."""
    recording = torch.is_grad_enabled()

    def advance(x: Tensor, i: int, live: bool) -> Tensor:
        inside = x.detach() if live and options.detach_input else x
        with torch.set_grad_enabled(live):
            output = guided(generator, inside, schedule.t[i], condition, options.guidance_scale)
        if live and options.observe is not None:
            options.observe(i, x, condition, output)
        x0, eps = endpoints(generator.path.prediction, output, x, schedule.alpha[i], schedule.sigma[i])
        noise = draw(x.shape[1:]).to(x) if options.eta > 0 and draw is not None else None
        return step(x0, eps, schedule, i, options.eta, noise)

    for live, indices in groupby(range(len(schedule)), lambda i: recording and i in options.gradient_steps):
        with nullcontext() if live else generator.merged():
            for i in indices:
                x = advance(x, i, live)
    return x


class ChainOptions:
    """How a chain runs.

    Args:
        guidance_scale: w of classifier-free guidance; 1 is none.
        eta: 0 is deterministic, 1 ancestral.
        gradient_steps: indices of the steps whose network call is differentiated.
        detach_input: stop the gradient at the network's input in those steps (DRTune, Wu et al. 2024, eq. 6).
        observe: called in each gradient step with (index, latent, its condition, guided network output).
    """

    def __init__(
        self,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        gradient_steps: Collection[int] = (),
        detach_input: bool = False,
        observe: Observer | None = None,
    ) -> None:
        self.guidance_scale = guidance_scale
        self.eta = eta
        self.gradient_steps = frozenset(gradient_steps)
        self.detach_input = detach_input
        self.observe = observe


def seeded_noise(shape: Sequence[int], seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Normal noise [len(seeds), *shape], each row from its own seed, so a clip does not depend on its batch."""
    rows = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(device)


def update_seeds(seed: int, update: int, count: int) -> list[int]:
    """Seeds for the rows of one update of a run: whatever micro-batch or process a row is in, it draws the same."""
    words = np.random.SeedSequence([seed % 2**64, update]).generate_state(count, np.uint64)
    return [int(word) for word in words >> np.uint64(1)]


@dataclass(frozen=True)
class RolloutOptions:
    """How a causal clip is rolled out.

    Args:
        guidance_scale: w of classifier-free guidance; 1 is none, and half the work.
        exits: of each block, the step whose prediction is kept, counted from 0; empty is the last step for all. That
            step alone is differentiated; those after it are not run.
        gradient_from: blocks that begin before this latent frame of the clip are not differentiated.
        kv_grad: ``detached``, as the paper says: no gradient through the memory. ``official``, as its code does: the
            values of the clean pass, the gradient of the exit step's keys and values.
        context_t: time at which a finished block enters the memory.
    """

    guidance_scale: float = 1.0
    exits: Sequence[int] = ()
    gradient_from: int = 0
    kv_grad: Literal["detached", "official"] = "detached"
    context_t: float = 0.0


def rollout(
    generator: CausalGenerator,
    condition: Condition,
    frames: int,
    schedule: Schedule,
    draw: Draw,
    options: RolloutOptions | None = None,
    given: Tensor | None = None,
) -> Tensor:
    """A clip of ``frames`` latent frames, [B,C,F,h,w], made block after block on its own past.

    Args:
        schedule: the chain of each block.
        draw: noise for each block, then for each step that wants some.
        given: [B,C,G,h,w], clean frames that the clip begins with; they count among ``frames``.
    """
    start, options = 0 if given is None else given.shape[2], options or RolloutOptions()
    sizes = generator.blocks(frames - start, start)
    with nullcontext() if torch.is_grad_enabled() else generator.merged():
        memory = begin(generator, condition, options, given)
        options = replace(options, gradient_from=options.gradient_from - start)
        blocks = [block for block, _ in roll(generator, condition, sizes, schedule, draw, options, memory)]
    return torch.cat(blocks if given is None else [given.to(blocks[0]), *blocks], dim=2)


def begin(
    generator: CausalGenerator,
    condition: Condition,
    options: RolloutOptions | None = None,
    given: Tensor | None = None,
    frame: int = 0,
) -> Any:
    """The memory before the first block, or after the blocks of ``given`` [B,C,G,h,w] that begin at frame ``frame``."""
    options = options or RolloutOptions()
    memory = generator.begin(condition.both() if options.guidance_scale != 1 else condition, frame)
    sizes = [] if given is None else generator.blocks(given.shape[2], frame)
    for block in [] if given is None else torch.split(given, sizes, dim=2):
        memory = remember(generator, block, condition, memory, options)
    return memory


@torch.no_grad()
def remember(generator: CausalGenerator, x: Tensor, condition: Condition, memory: Any, options: RolloutOptions) -> Any:
    """The memory after a clean block x [B,C,f,h,w]."""
    both = condition.both() if options.guidance_scale != 1 else condition
    return _remembered(generator, both, options, memory, (x, None))


def roll(
    generator: CausalGenerator,
    condition: Condition,
    sizes: Iterator[int] | Sequence[int],
    schedule: Schedule,
    draw: Draw,
    options: RolloutOptions,
    memory: Any,
) -> Iterator[tuple[Tensor, Any]]:
    """Blocks of these sizes, one by one, each with the memory before it; endless where ``sizes`` is.

    A block enters the memory when the next one is asked for, in the same pass as the next one's first step unless that
    step has gradient; the last block never does. Here ``options.gradient_from`` counts from the first of these blocks.
    """
    recording, frame, last = torch.is_grad_enabled(), 0, len(schedule) - 1
    channels, _, *space = generator.latent_shape()
    both = condition.both() if options.guidance_scale != 1 else condition
    denoise = partial(_denoise, generator, both, options)
    before: tuple[Tensor, Any] | None = None  # the block before this one, and what its gradient goes through
    for index, size in enumerate(sizes):
        exit_step = _exit_step(options.exits, index, last)
        live = recording and frame >= options.gradient_from
        x = draw((channels, size, *space))
        schedule = schedule.to(x)
        levels = list(zip(schedule.t, schedule.alpha, schedule.sigma, strict=False))  # what comes last is no step
        x = schedule.sigma[0] * x
        clean = None  # the block before this one, if it is to enter the memory in this one's first pass
        with torch.no_grad(), generator.merged():
            if before is not None and before[1] is None and (exit_step > 0 or not live):
                clean = before[0]
            elif before is not None:
                memory = _remembered(generator, both, options, memory, before)
            for i in range(exit_step):
                x0, eps, memory, _ = denoise(levels[i], memory, x, clean)
                noise, clean = draw(x.shape[1:]) if generator.fresh_noise else eps, None
                x = schedule.alpha[i + 1] * x0 + schedule.sigma[i + 1] * noise
        with torch.set_grad_enabled(live), nullcontext() if live else generator.merged():
            x0, _, memory, noisy = denoise(levels[exit_step], memory, x, clean)
        yield x0, memory
        before = x0, noisy if live and options.kv_grad == "official" else None
        frame += size


def _exit_step(exits: Sequence[int], block: int, last: int) -> int:
    if not exits:
        return last
    if block >= len(exits) or not 0 <= exits[block] <= last:
        given = exits[block] if block < len(exits) else f"{len(exits)} exits"
        raise DataError(f"each block leaves its chain at one of the steps 0 to {last}; block {block} got {given}")
    return exits[block]


def _remembered(
    generator: CausalGenerator, both: Condition, options: RolloutOptions, memory: Any, before: tuple[Tensor, Any]
) -> Any:
    """The memory after a clean block, without gradient; a noisy pass that comes with it has gradient through it."""
    x0, noisy = before
    branches = _branches(x0, options)
    _, memory = generator.advance(branches, x0.new_full((), options.context_t), both, memory)
    if noisy is None:
        return memory
    with torch.enable_grad():
        return memory.straight_through(noisy)


def _denoise(
    generator: CausalGenerator,
    both: Condition,
    options: RolloutOptions,
    level: tuple[Tensor, Tensor, Tensor],
    memory: Any,
    x: Tensor,
    clean: Tensor | None,
) -> tuple[Tensor, Tensor, Any, Any]:
    """x̂_0 and ε̂ of a block at t, α and σ, the memory before it, and that with the noisy block in it.

    A ``clean`` block enters the memory in the same pass; the noisy one's memory is then not known.
    """
    branches, (t, alpha, sigma) = _branches(x, options), level
    if clean is None:
        output, noisy = generator.advance(branches, t, both, memory)
    else:
        known = _branches(clean, options), x.new_full((), options.context_t)
        (output, memory), noisy = generator.advance_after(branches, t, both, memory, *known), None
    output = output.to(x.dtype)
    if options.guidance_scale != 1:
        negative, positive = output.chunk(2)
        output = negative + options.guidance_scale * (positive - negative)
    return *endpoints(generator.path.prediction, output, x, alpha, sigma), memory, noisy


def _branches(x: Tensor, options: RolloutOptions) -> Tensor:
    """A block for each branch of the guidance; the condition and the memory hold both."""
    return x if options.guidance_scale == 1 else torch.cat([x, x])


class SeededNoise:
    """Normal noise for a batch, each row from a source of its own, so that a clip does not depend on its batch.

    Args:
        seeds: one a row.
        device: where the noise is wanted; it is always drawn on the CPU.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.sources = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.device = device

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """Noise [B,*shape], the next of each source."""
        return torch.stack([torch.randn(tuple(shape), generator=source) for source in self.sources]).to(self.device)


@torch.no_grad()
def sample(
    generator: Generator, request: Request, seeds: Sequence[int], steps: int, guidance_scale: float, eta: float = 0.0
) -> Tensor:
    """Latents [B,…] for a request, one seed a prompt, without gradient; a causal generator rolls them out.

    Raises:
        ConfigError: η above 0 for a causal generator, which draws its noise as it was trained to.
    """
    condition = generator.encode(request)
    device = next(iter(condition.positive.values())).device
    if isinstance(generator, CausalGenerator):
        if eta:
            raise ConfigError(f"eta has no part in a causal generator's chains, whose noise is an option; got {eta}")
        frames, options = generator.latent_shape()[1], RolloutOptions(guidance_scale)
        schedule = generator.path.schedule(steps)
        return rollout(generator, condition, frames, schedule, SeededNoise(seeds, device), options)
    draw = SeededNoise(seeds, device)
    x = draw(generator.latent_shape())
    return chain(generator, x, condition, generator.path.schedule(steps), ChainOptions(guidance_scale, eta), draw)


@torch.no_grad()
def generate(
    generator: Generator | Translator,
    request: Request,
    seeds: Sequence[int],
    steps: int,
    guidance_scale: float,
    eta: float = 0.0,
) -> VideoBatch:
    """Clips for a request, one seed a prompt, without gradient; a translator translates the request's source clips.

    Raises:
        DataError: a translator is given no source clips.
    """
    if isinstance(generator, Translator):
        if request.source_videos is None:
            raise DataError("a translator is asked with clips, and this request has none: give source_videos")
        return VideoBatch(generator.translate(request.source_videos, generator.to)[0], generator.fps, request)
    x = sample(generator, request, seeds, steps, guidance_scale, eta)
    return VideoBatch(generator.decode(x), generator.fps, request)
