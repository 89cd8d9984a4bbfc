"""Which networks a run has, and where they are: the planner's only knowledge of how generators are made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from reelign.rewards.weighted import WeightedReward


def networks(generator: Any) -> list[nn.Module]:
    """What is trained or carries the adapter."""
    return [generator.unet] if hasattr(generator, "unet") else list(generator.denoisers.all())


def _encoders(generator: Any) -> list[nn.Module]:
    """What a GPU holds only while it works."""
    if hasattr(generator, "family"):
        return list(generator.family.encoders)
    return [] if hasattr(generator, "unet") else [generator.pipeline.text_encoder]


def _autoencoders(generator: Any) -> list[nn.Module]:
    if hasattr(generator, "family"):
        return list(generator.family.frozen)
    return [generator.vae, generator.text_encoder] if hasattr(generator, "unet") else [generator.pipeline.vae]


def weights_of(generator: Any, reward: WeightedReward, gpu: bool) -> tuple[dict[str, int], int]:
    """Bytes on the device all the time, by part, and of encoders that a GPU holds only while they work."""
    trained = {id(p) for p in generator.trainable().values()}
    denoisers = [t for network in networks(generator) for t in _tensors([network])]
    parts = {
        "networks": _bytes(t for t in denoisers if id(t) not in trained),
        "trained": _bytes(t for t in denoisers if id(t) in trained),
        "autoencoder": _bytes(_tensors(_autoencoders(generator))),
        "rewards": _bytes(_tensors([m for term in reward.terms for m in _modules(term.reward)])),
    }
    encoders = _bytes(_tensors(_encoders(generator)))
    return (parts, encoders) if gpu else (parts | {"encoders": encoders}, 0)


def _modules(owner: Any, depth: int = 3) -> list[nn.Module]:
    """Networks that an object holds, however deep in objects of its own."""
    if isinstance(owner, nn.Module):
        return [owner]
    if not depth or not hasattr(owner, "__dict__"):
        return []
    return [module for value in vars(owner).values() for module in _modules(value, depth - 1)]


def _tensors(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of distinct tensors."""
    sizes = {id(tensor): math.prod(tensor.shape) * tensor.element_size() for tensor in tensors}
    return sum(sizes.values())
