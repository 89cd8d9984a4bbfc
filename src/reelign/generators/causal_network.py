r"""Wan's transformer run causally: block after block with a memory that is returned, or whole clips at once.

Every latent frame has its own time. Queries of a block see the keys of their own block and of those before it, or, with
a local window, of the ``sink`` first frames and the latest ones (Huang et al. 2025, Self-Forcing, section 3.3; Xiao et
al. 2024, StreamingLLM). Three ways to compute the same network:

    advance         one block after the frames in a memory; returns the output and the memory with this block in it
    whole           all blocks of a clip at once, each at its own noise level (diffusion forcing)
    teacher_forced  noisy blocks, each after the clean blocks before it (teacher forcing)

No mask is ever built: each block's queries meet a slice of the keys, so nothing is computed to be thrown away and any
fused attention kernel will do. Keys are kept after the rotary embedding, at absolute positions.

Left out: image conditions, patches over time, per-token times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from reelign.errors import ConfigError, DataError
from reelign.generators.causal_layers import (
    KeysAndValues,
    attention,
    rotate,
    run_layers,
    temporal_angles,
    tokens_per_frame,
)


@dataclass(frozen=True)
class Layout:
    """Which frames form a block, and which frames a block sees. Counts are of latent frames.

    Args:
        frames_per_block: frames that are denoised together.
        independent_first: the first frame is a block of its own, for image-to-video.
        window: frames a block sees at most, its own included; None is all.
        sink: of these, how many are the first of the clip.
        rebase_sink: rotate the sink's keys to the place right before the window, whatever lies between.
    """

    frames_per_block: int = 3
    independent_first: bool = False
    window: int | None = None
    sink: int = 0
    rebase_sink: bool = False

    def __post_init__(self) -> None:
        if self.window is not None and self.window < self.sink + self.frames_per_block:
            raise ConfigError(
                f"a window holds at least the sink and one block, {self.sink} + {self.frames_per_block} latent frames; "
                f"got {self.window}"
            )
        if self.sink and self.window is None:
            raise ConfigError(f"a sink of {self.sink} frames goes with a window; without one every frame is seen")

    def blocks(self, frames: int, start: int = 0) -> list[int]:
        """Sizes of the blocks of ``frames`` frames that begin at frame ``start``.

        Raises:
            DataError: no frame, or the frames do not divide into blocks.
        """
        first = [1] if self.independent_first and start == 0 and frames > 0 else []
        rest = frames - sum(first)
        if frames < 1 or rest % self.frames_per_block:
            rule = f"{'1 + ' if first else ''}n·{self.frames_per_block}"
            raise DataError(f"a causal clip is made of whole blocks, {rule} latent frames; got {frames}")
        return first + [self.frames_per_block] * (rest // self.frames_per_block)

    def seen(self, end: int) -> list[tuple[int, int]]:
        """Ranges of frames that a block ending before frame ``end`` sees."""
        if self.window is None or end <= self.window:
            return [(0, end)]
        return [(0, self.sink), (end - self.window + self.sink, end)]


@dataclass(frozen=True)
class Memory:
    """What is known of the frames before a block. Nothing in it ever changes; a later memory is another one.

    Args:
        layers: keys and values of each layer, of the frames that the layout lets the last block see.
        frames: how many frames there have been in all.
        text: keys and values of the text in each layer, for passes without gradient.
    """

    layers: tuple[KeysAndValues, ...]
    frames: int
    text: tuple[KeysAndValues, ...]

    def detach(self) -> Memory:
        """The same memory, cut from its graph."""
        return replace(self, layers=tuple((k.detach(), v.detach()) for k, v in self.layers))

    def straight_through(self, noisy: Memory) -> Memory:
        """This memory's values with the gradient of another one of the same frames."""
        pairs = zip(self.layers, noisy.layers, strict=True)
        moved = tuple(tuple(a + b - b.detach() for a, b in zip(*pair, strict=True)) for pair in pairs)
        return replace(self, layers=moved)  # type: ignore[arg-type]

    def bytes(self) -> int:
        """Memory of keys and values of frames, in bytes."""
        return sum(x.numel() * x.element_size() for pair in self.layers for x in pair)


def empty_memory(network: Any, text: tuple[KeysAndValues, ...], frames: int = 0) -> Memory:
    """The memory before the first frame, or before frame ``frames`` of a clip whose past is not known."""
    nothing = text[0][0][:, :0]
    return Memory(((nothing, nothing),) * len(network.blocks), frames, text)


def advance(
    network: Any, layout: Layout, x: Tensor, t: Tensor, memory: Memory, text: Sequence[KeysAndValues]
) -> tuple[Tensor, Memory]:
    """The output for one block, and the memory with it.

    Args:
        x: [B,C,f,h,w], the frames that follow those in ``memory``.
        t: time of the network, one for all, [B] or [B,f].
        text: of ``text_memory``; that in the memory, or one with gradient.
    """
    tokens = tokens_per_frame(network, x)
    kept: list[KeysAndValues] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (
            torch.cat([_keep(layout, old, x.shape[2], tokens), new], dim=1)
            for old, new in zip(memory.layers[layer], (k, v), strict=True)
        )
        kept.append((keys, values))
        return attention(q, _rebased(network, layout, keys, memory.frames + x.shape[2], tokens), values)

    positions = torch.arange(memory.frames, memory.frames + x.shape[2])
    output = run_layers(network, x, t, text, positions, attend)
    return output, Memory(tuple(kept[: len(network.blocks)]), memory.frames + x.shape[2], memory.text)


def recall(network: Any, layout: Layout, x: Tensor, t: Tensor, end: int, text: tuple[KeysAndValues, ...]) -> Memory:
    """The memory that clean frames x [B,C,f,h,w], the sink and the latest before frame ``end``, make with this text.

    For a text that changes in the middle of a clip (Yang et al. 2025, LongLive, section 3.2: KV-recache).
    """
    memory, latest = empty_memory(network, text), x
    if end > x.shape[2]:
        if layout.sink:
            memory = advance(network, layout, x[:, :, : layout.sink], t, memory, text)[1]
        latest = x[:, :, layout.sink :]
        memory = replace(memory, frames=end - latest.shape[2])
    for block in torch.split(latest, layout.blocks(latest.shape[2], memory.frames), dim=2):
        memory = advance(network, layout, block, t, memory, text)[1]
    return memory


def whole(network: Any, layout: Layout, x: Tensor, t: Tensor, text: Sequence[KeysAndValues]) -> Tensor:
    """The output for a whole clip [B,C,F,h,w] at once; block-causal, each block seeing what the others are given.

    Args:
        t: one time for all, [B] or [B,F].
    """
    tokens, ends = tokens_per_frame(network, x), _ends(layout, x.shape[2])

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _by_block(network, layout, ends, tokens, q, (k, v), (k, v))

    return run_layers(network, x, t, text, torch.arange(x.shape[2]), attend)


def teacher_forced(
    network: Any, layout: Layout, x: Tensor, t: Tensor, text: Sequence[KeysAndValues], clean: Tensor, clean_t: Tensor
) -> Tensor:
    """The output for noisy blocks of a clip, each after the clean blocks before it, all at once.

    Args:
        x, clean: [B,C,F,h,w].
        t, clean_t: one time for all, [B] or [B,F].
    """
    frames = x.shape[2]
    tokens, ends = tokens_per_frame(network, x), _ends(layout, frames)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (q_clean, q_noisy), (k_clean, k_noisy), (v_clean, v_noisy) = (part.chunk(2, dim=1) for part in (q, k, v))
        known = (k_clean, v_clean)
        first = _by_block(network, layout, ends, tokens, q_clean, known, known)
        second = _by_block(network, layout, ends, tokens, q_noisy, known, (k_noisy, v_noisy))
        return torch.cat([first, second], dim=1)

    times = torch.cat([_per_frame(clean_t, x), _per_frame(t, x)], dim=1)
    both = torch.cat([clean, x], dim=2)
    output = run_layers(network, both, times, text, torch.arange(frames).repeat(2), attend)
    return output[:, :, frames:]


def visible(layout: Layout, frames: int) -> Tensor:
    """Which frame (row) sees which (column), [F,F] bool: what the slices above amount to, for tests and pictures."""
    mask = torch.zeros(frames, frames, dtype=torch.bool)
    start = 0
    for end in _ends(layout, frames):
        for low, high in layout.seen(end):
            mask[start:end, low:high] = True
        start = end
    return mask


def _by_block(
    network: Any,
    layout: Layout,
    ends: Sequence[int],
    tokens: int,
    q: Tensor,
    known: KeysAndValues,
    own: KeysAndValues,
) -> Tensor:
    """Attention of each block's queries to the known frames that it sees, and to its own."""
    parts, start = [], 0
    for end in ends:
        past = [(low, min(high, start)) for low, high in layout.seen(end)]
        keys, values = (
            torch.cat(
                [*(a[:, low * tokens : high * tokens] for low, high in past), b[:, start * tokens : end * tokens]], 1
            )
            for a, b in zip(known, own, strict=True)
        )
        parts.append(
            attention(q[:, start * tokens : end * tokens], _rebased(network, layout, keys, end, tokens), values)
        )
        start = end
    return torch.cat(parts, dim=1)


def _keep(layout: Layout, old: Tensor, new: int, tokens: int) -> Tensor:
    """Of the keys or values in a memory, those that a block of ``new`` frames sees: the sink and the latest."""
    if layout.window is None or old.shape[1] // tokens + new <= layout.window:
        return old
    latest = old[:, old.shape[1] - (layout.window - layout.sink - new) * tokens :]
    return torch.cat([old[:, : layout.sink * tokens], latest], dim=1) if layout.sink else latest


def _rebased(network: Any, layout: Layout, keys: Tensor, end: int, tokens: int) -> Tensor:
    """Keys with those of the sink rotated to the place right before the window, where the layout asks for it."""
    gap = end - keys.shape[1] // tokens  # frames that have been forgotten
    if not layout.rebase_sink or not gap:
        return keys
    angles = temporal_angles(network, torch.tensor([gap]))  # [1,pairs of time]
    still = torch.zeros(1, keys.shape[-1] // 2 - angles.shape[1], dtype=angles.dtype)
    angles = torch.cat([angles, still], dim=1).to(keys.device)
    sink = layout.sink * tokens
    moved = rotate(keys[:, :sink], torch.polar(torch.ones_like(angles), angles)[:, None]).to(keys.dtype)
    return torch.cat([moved, keys[:, sink:]], dim=1)


def _ends(layout: Layout, frames: int) -> list[int]:
    return torch.tensor(layout.blocks(frames)).cumsum(0).tolist()


def _per_frame(t: Tensor, x: Tensor) -> Tensor:
    """Times as [B,F]."""
    t = t.to(x.device)
    return t if t.ndim == 2 else t.reshape(-1, 1).expand(len(x), x.shape[2])
