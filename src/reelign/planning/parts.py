"""Which networks a run has, and where they are: the planner's only knowledge of how generators are made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from reelign.rewards.parking import networks_of
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


@dataclass(frozen=True)
class Weights:
    """Bytes of weights on a device.

    Args:
        resting: all the time, by part.
        encoders: while texts and pictures are encoded.
        rewards: while it scores, by name of the reward; empty where all of them rest.
    """

    resting: dict[str, int]
    encoders: int
    rewards: dict[str, int]


def weights_of(generator: Any, reward: WeightedReward, gpu: bool) -> Weights:
    """Where weights are; what is parked in main memory is on the device of a run without a GPU, which has no other."""
    trained = {id(p) for p in generator.trainable().values()}
    denoisers = [t for network in networks(generator) for t in _tensors([network])]
    parts = {
        "networks": _bytes(t for t in denoisers if id(t) not in trained),
        "trained": _bytes(t for t in denoisers if id(t) in trained),
        "autoencoder": _bytes(_tensors(_autoencoders(generator))),
    }
    encoders = _bytes(_tensors(_encoders(generator)))
    rewards = {term.name: _bytes(_tensors(networks_of(term.reward))) for term in reward.terms}
    if gpu and reward.park:
        return Weights(parts, encoders, rewards)
    parts["rewards"] = _bytes(_tensors([m for term in reward.terms for m in networks_of(term.reward)]))
    return Weights(parts, encoders, {}) if gpu else Weights(parts | {"encoders": encoders}, 0, {})


def _tensors(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of distinct tensors."""
    sizes = {id(tensor): math.prod(tensor.shape) * tensor.element_size() for tensor in tensors}
    return sum(sizes.values())
