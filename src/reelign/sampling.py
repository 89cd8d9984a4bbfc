r"""Sampling: one step, whole chains, and the gradient tail. Training and inference share every line of this file.

One step from noise level t to s, for every path (Song et al. 2021, DDIM, eq. 12, in α/σ form):

    x_s = α_s·x̂_0 + sqrt(σ_s² − η²·σ_{s|t}²)·ε̂ + η·σ_{s|t}·z

η = 0 is DDIM and, on a flow path, exactly the Euler step; η = 1 is ancestral sampling.

Left out: multistep solvers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from itertools import groupby

import torch
from torch import Tensor

from reelign.contracts import Condition, Generator, Request, Schedule, VideoBatch
from reelign.paths import endpoints

Observer = Callable[[int, Tensor, Tensor], None]


def guided(generator: Generator, x: Tensor, t: Tensor, condition: Condition, scale: float) -> Tensor:
    r"""Classifier-free guidance e = e_u + w·(e_c − e_u), both branches in one batch (Ho and Salimans 2022, eq. 6).

    Args:
        x: [B,…].
        t: scalar tensor, the network's time.
        scale: w; 1 runs the conditional branch alone.
    """
    if scale == 1:
        return generator.predict(x, t, condition).to(x.dtype)
    output = generator.predict(torch.cat([x, x]), t, condition.both()).to(x.dtype)
    negative, positive = output.chunk(2)
    return negative + scale * (positive - negative)


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
    random: torch.Generator | None = None,
) -> Tensor:
    """Run a chain from ``x`` at the start of ``schedule`` to its end.

    The network runs under ``no_grad``, with its adapter folded into the weights, except in ``options.gradient_steps``.
    Between and after those, the latent still carries gradient through the step itself, which is linear, with the
    prediction a constant (VADER, algorithm 1).

    Args:
        x: [B,…] float32 or float64.
        schedule: from the generator's path; a tail of one for a partial chain.
        random: source of fresh noise; needed where ``options.eta`` is above 0.
    """
    schedule = schedule.to(x)
    recording = torch.is_grad_enabled()

    def advance(x: Tensor, i: int, live: bool) -> Tensor:
        inside = x.detach() if live and options.detach_input else x
        with torch.set_grad_enabled(live):
            output = guided(generator, inside, schedule.t[i], condition, options.guidance_scale)
        if live and options.observe is not None:
            options.observe(i, x, output)
        x0, eps = endpoints(generator.path.prediction, output, x, schedule.alpha[i], schedule.sigma[i])
        noise = torch.randn(x.shape, generator=random, dtype=x.dtype).to(x.device) if options.eta > 0 else None
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
        observe: called in each gradient step with (index, latent, guided network output).
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


@torch.no_grad()
def sample(
    generator: Generator, request: Request, seeds: Sequence[int], steps: int, guidance_scale: float, eta: float = 0.0
) -> Tensor:
    """Latents [B,…] for a request, one seed a prompt, without gradient."""
    condition = generator.encode(request)
    device = next(iter(condition.positive.values())).device
    x = seeded_noise(generator.latent_shape(), seeds, device)
    random = torch.Generator().manual_seed(seeds[0])
    return chain(generator, x, condition, generator.path.schedule(steps), ChainOptions(guidance_scale, eta), random)


@torch.no_grad()
def generate(
    generator: Generator, request: Request, seeds: Sequence[int], steps: int, guidance_scale: float, eta: float = 0.0
) -> VideoBatch:
    """Clips for a request, one seed a prompt, without gradient."""
    x = sample(generator, request, seeds, steps, guidance_scale, eta)
    return VideoBatch(generator.decode(x), generator.fps, request)
