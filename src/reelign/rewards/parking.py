"""Rewards that share a small GPU: each is on it only while it scores, and leaves only numbers behind.

A score depends on its own clip alone (``card.verify`` holds every reward to it), so the gradient of Σ_b g_b·r_b is

    ∂/∂x_b  Σ g·r  =  g_b · ∂r_b/∂x_b

and the slopes ∂r_b/∂x_b, the size of the clips, can be taken as soon as the scores are there. The reward's activations
go at once, its weights go back to main memory, and the backward pass of the generator multiplies. Exact, at the price
of two copies of the weights a score.

Left out: second derivatives, gradients to the reward's own weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from reelign.contracts import Reward, VideoBatch


class _Known(torch.autograd.Function):
    """Scores [B] whose slopes [B,T,3,H,W] are known."""

    @staticmethod
    def forward(ctx: Any, video: Tensor, scores: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(slopes)
        return scores.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * gradients[0].view(-1, *[1] * (slopes.ndim - 1)).to(slopes), None, None


def score_and_leave(reward: Reward, batch: VideoBatch) -> Tensor:
    """``reward(batch)``, [B], with the same gradient to the clips, after which the reward is off the device."""
    if not (batch.video.requires_grad and torch.is_grad_enabled()):
        score = reward(batch)
    else:
        video = batch.video.detach().requires_grad_()
        score = reward(replace(batch, video=video))
        if score.requires_grad and score.shape == (len(batch),):
            (slopes,) = torch.autograd.grad(score.sum(), video)
            score = _Known.apply(batch.video, score.detach(), slopes)  # type: ignore[no-untyped-call]
    for network in networks_of(reward):
        network.to("cpu")
    return score


def networks_of(reward: Any) -> list[nn.Module]:
    """The networks that a reward, or what it is made of, holds; each once."""
    return list({id(network): network for network in _networks(reward, set())}.values())


def _networks(thing: Any, seen: set[int]) -> Iterator[nn.Module]:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        yield thing
        return
    parts: list[Any] = []
    if isinstance(thing, Mapping):
        parts = list(thing.values())
    elif isinstance(thing, (list, tuple)):
        parts = list(thing)
    elif hasattr(thing, "__dict__") and not isinstance(thing, type):
        parts = list(vars(thing).values())
    for part in parts:
        yield from _networks(part, seen)
