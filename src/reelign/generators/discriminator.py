r"""A discriminator made of a video transformer: which of two clips is a real one, told from their noised latents.

Three learned tokens look at the hidden states of three layers, about half way, three quarters and at the end; what they
saw, side by side, becomes one logit (Huang et al. 2025, Self-Forcing, appendix A; Lin et al. 2025, APT, section 3.2).

``contracts.TrainableReward`` says that a discriminator is a reward that learns. This one judges latents at a noise
level, not clips, so it is none; it lives in the latent space of its generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reelign.contracts import Condition
from reelign.generators.wan import WanGenerator

PLACES = (14 / 30, 22 / 30, 1.0)  # after which share of the layers the tokens look


class Discriminator:
    """Logits of noised latents.

    Args:
        backbone: whose transformer is looked into. What of it is trained is its own matter: an adapter, all, nothing.
        seed: of the first values of what is new.
    """

    def __init__(self, backbone: WanGenerator, seed: int = 0) -> None:
        self.backbone = backbone
        network: Any = backbone.experts()[0]
        config, depth = network.config, len(network.blocks)
        self.network = network
        width = config.num_attention_heads * config.attention_head_dim
        self.layers = [max(0, round(depth * place) - 1) for place in PLACES]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = _Head(width, config.num_attention_heads).to(backbone.device)

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Logits [B] of noised latents x [B,C,F,h,w] at times t [B]; higher is more like a real clip."""
        seen: dict[int, Tensor] = {}
        with self._watched(seen):
            self.backbone.predict(x, t, condition)
        logits: Tensor = self.head([seen[layer].float() for layer in self.layers])
        return logits

    @contextmanager
    def _watched(self, seen: dict[int, Tensor]) -> Iterator[None]:
        """Inside, the hidden states after the watched layers are written down."""

        def note(layer: int, hidden: Tensor) -> None:
            seen[layer] = hidden

        hooks = [
            self.network.blocks[layer].register_forward_hook(
                lambda _module, _inputs, output, layer=layer: note(layer, output)
            )
            for layer in set(self.layers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def trainable(self) -> dict[str, nn.Parameter]:
        """The head's parameters and what the backbone trains, by name."""
        head = {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}
        return head | {f"backbone.{name}": parameter for name, parameter in self.backbone.trainable().items()}


class _Head(nn.Module):
    """From hidden states [B,N,D] of some layers to one logit [B]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        count = len(PLACES)
        self.tokens = nn.Parameter(0.02 * torch.randn(count, 1, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(count))
        self.looks = nn.ModuleList(nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(count))
        self.logit = nn.Sequential(
            nn.LayerNorm(count * width), nn.Linear(count * width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, states: list[Tensor]) -> Tensor:
        found = []
        for token, norm, look, state in zip(self.tokens, self.norms, self.looks, states, strict=True):
            query, keys = token.expand(len(state), 1, -1), norm(state)
            found.append(query + look(query, keys, keys, need_weights=False)[0])
        logit: Tensor = self.logit(torch.cat(found, dim=-1))
        return logit.flatten()
