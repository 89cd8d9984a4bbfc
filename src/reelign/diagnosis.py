"""The checks of ``reelign doctor``: each runs the real code on a small case and compares with an exact expectation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.nn.modules.dropout import _DropoutNd

from reelign.build import build_generator, build_reward
from reelign.contracts import Request, VideoBatch
from reelign.generators.wan import WanGenerator
from reelign.rewards.card import golden_clip
from reelign.sampling import ChainOptions, chain, seeded_noise

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "av", "safetensors")
STEPS = 3
SCALE = 3.0


@dataclass(frozen=True)
class Finding:
    """One check: its name, whether it held, and the number behind it."""

    name: str
    ok: bool
    detail: str


def examine(model: str) -> Iterator[Finding]:
    """Run every check on a generator; the zoo's takes seconds."""
    for package in PACKAGES:
        yield Finding(f"package {package}", True, metadata.version(package))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    yield Finding("device", True, f"{device}, {torch.get_num_threads()} threads")
    generator = build_generator({"model": model})
    yield Finding("generator loads", True, f"{model}, {generator.parameter_count() / 1e6:.1f} M parameters")
    yield adapter_has_no_effect(generator)
    yield no_dropout_is_live(generator)
    yield sampler_parity(generator)
    yield from reward_gradients(generator)


@torch.no_grad()
def adapter_has_no_effect(generator: WanGenerator) -> Finding:
    """At step 0 the adapter changes no bit of the network's output."""
    condition = generator.encode(Request(("a red circle moving left",)))
    x = seeded_noise(generator.latent_shape(), [0], generator.device)
    t = torch.tensor(500.0)
    with_adapter = generator.predict(x, t, condition)
    with generator.reference():
        without = generator.predict(x, t, condition)
    difference = (with_adapter - without).abs().max().item()
    return Finding("adapter is the identity at step 0", difference == 0, f"largest difference {difference:.1e}")


def no_dropout_is_live(generator: WanGenerator) -> Finding:
    """No layer of the network drops anything while it samples."""
    live = [
        name
        for expert in generator.experts()
        for name, module in expert.named_modules()
        if isinstance(module, _DropoutNd) and module.training and module.p > 0
    ]
    return Finding("no dropout is live", not live, f"live: {', '.join(live[:3])}" if live else "none")


@torch.no_grad()
def sampler_parity(generator: WanGenerator) -> Finding:
    """reelign's chain equals the library's pipeline with Euler steps on its grid, at equal noise, to 1e-4."""
    prompt = "a red circle moving left"
    condition = generator.encode(Request((prompt,)))
    x = seeded_noise(generator.latent_shape(), [0], generator.device)
    ours = chain(generator, x, condition, generator.path.schedule(STEPS), ChainOptions(SCALE))
    theirs = pipeline_latents(generator, [prompt], x)
    difference = (ours - theirs).abs().max().item() / theirs.abs().max().item()
    return Finding("sampler equals diffusers' pipeline", difference <= 1e-4, f"relative difference {difference:.1e}")


class WanGrid(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """diffusers' Euler steps on the grid that Wan's own scheduler has; see ``FlowPath.schedule``."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device | None = None, **kwargs: Any) -> None:
        """σ from 1 to 1/1000 in equal parts without the last; the base class shifts them."""
        grid = np.linspace(1, 1 / self.config.num_train_timesteps, num_inference_steps + 1)[:-1]
        super().set_timesteps(sigmas=grid.tolist(), device=device)


def pipeline_latents(generator: WanGenerator, prompts: list[str], noise: torch.Tensor) -> torch.Tensor:
    """What ``WanPipeline`` itself makes of this noise, with Euler steps on Wan's grid."""
    pipeline = generator.pipeline
    kept = pipeline.scheduler
    pipeline.scheduler = WanGrid(shift=generator.path.shift)
    pipeline.set_progress_bar_config(disable=True)
    _, _, height, width = generator.latent_shape()
    space = pipeline.vae.config.scale_factor_spatial
    try:
        latents: torch.Tensor = pipeline(
            prompt=prompts,
            negative_prompt=generator.options.negative_prompt,
            height=height * space,
            width=width * space,
            num_frames=generator.frames(),
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            latents=noise,
            max_sequence_length=generator.text_length,
            output_type="latent",
        ).frames
    finally:
        pipeline.scheduler = kept
    return latents


def reward_gradients(generator: WanGenerator) -> Iterator[Finding]:
    """Gradient of every weight-free and zoo reward reaches the pixels, and from there the adapter."""
    for name in ("clip", "video_action", "temporal_smoothness", "brightness_range", "compressibility"):
        clip = golden_clip()
        video = clip.video.clone().requires_grad_()
        reward = build_reward(name)
        reward(VideoBatch(video, clip.fps, clip.request)).sum().backward()  # type: ignore[no-untyped-call]
        size = 0.0 if video.grad is None else video.grad.norm().item()
        yield Finding(f"gradient of {name} reaches the pixels", 0 < size < float("inf"), f"norm {size:.2e}")
    yield gradient_reaches_adapter(generator)


def gradient_reaches_adapter(generator: WanGenerator) -> Finding:
    """One differentiated step: the adapter's up matrices get gradient, its down matrices none yet, the base never."""
    condition = generator.encode(Request(("a red circle moving left",)))
    x = seeded_noise(generator.latent_shape(), [0], generator.device)
    x = chain(generator, x, condition, generator.path.schedule(1), ChainOptions(1.0, gradient_steps=(0,)))
    generator.decode(x, [0]).mean().backward()  # type: ignore[no-untyped-call]
    adapter = generator.trainable()
    up = [p for name, p in adapter.items() if "lora_B" in name]
    reached = sum(p.grad is not None and bool(p.grad.abs().max() > 0) for p in up)
    frozen = all(p.grad is None for e in generator.experts() for n, p in e.named_parameters() if "lora_" not in n)
    for parameter in adapter.values():
        parameter.grad = None
    ok = reached > 0 and frozen
    return Finding("gradient reaches the adapter and nothing else", ok, f"{reached} of {len(up)} up matrices")
