r"""Wan's transformer run causally: block after block with a memory that is returned, or whole clips at once.

Every latent frame has its own time. Queries of a block see the keys of their own block and of those before it, or, with
a local window, of the ``sink`` first frames and the latest ones (Huang et al. 2025, Self-Forcing, section 3.3; Xiao et
al. 2024, StreamingLLM). Three ways to compute the same network:

    advance         one block after the frames in a memory; returns the output and the memory with this block in it
    advance_after   as much, and in the same pass the clean block before it enters the memory
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

from reelign.errors import DataError
from reelign.generators.causal_layers import KeysAndValues, attention, rotate, run_layers, time_shift, tokens_per_frame
from reelign.generators.causal_layout import Layout

Run = tuple[KeysAndValues, ...]  # keys and values of some frames in each layer
Piece = tuple[int, int, int]  # a run, by its index, and the first and the last frame, not included, of a part of it


@dataclass(frozen=True)
class Memory:
    """What is known of the frames before a block. Nothing in it ever changes; a later memory is another one.

    Memories share the tensors of the frames they have in common, so keeping one costs only what is new in it.

    Args:
        runs: keys and values of the frames that the layout lets the last block see, run of frames by run of frames.
        frames: how many frames there have been in all.
        text: keys and values of the text in each layer, for passes without gradient.
        start: how many of the frames were before its first one, and never in it.
    """

    runs: tuple[Run, ...]
    frames: int
    text: Run
    start: int = 0

    @property
    def layers(self) -> Run:
        """Keys and values of each layer, all frames in one."""
        nothing = self.text[0][0][:, :0]
        runs = self.runs or (((nothing, nothing),) * len(self.text),)
        return tuple(_joined([run[layer] for run in runs]) for layer in range(len(self.text)))

    def detach(self) -> Memory:
        """The same memory, cut from its graph."""
        return replace(self, runs=tuple(tuple((k.detach(), v.detach()) for k, v in run) for run in self.runs))

    def straight_through(self, noisy: Memory) -> Memory:
        """This memory's values with the gradient of another one of the same frames."""

        def one(value: Tensor, gradient: Tensor) -> Tensor:  # the sum in brackets is exactly 0
            return value if value is gradient else value.detach() + (gradient - gradient.detach())

        runs = zip(self.runs, noisy.runs, strict=True)
        pairs = (zip(run, other, strict=True) for run, other in runs)
        return replace(self, runs=tuple(tuple((one(k, a), one(v, b)) for (k, v), (a, b) in pair) for pair in pairs))

    def bytes(self) -> int:
        """Memory of keys and values of frames, in bytes."""
        return sum(x.numel() * x.element_size() for run in self.runs for pair in run for x in pair)


def empty_memory(network: Any, text: Run, frames: int = 0) -> Memory:
    """The memory before the first frame, or before frame ``frames`` of a clip whose past is not known."""
    return Memory((), frames, text, frames)


def advance(network: Any, layout: Layout, x: Tensor, t: Tensor, memory: Memory, text: Run) -> tuple[Tensor, Memory]:
    """The output for one block, and the memory with it.

    Args:
        x: [B,C,f,h,w], the frames that follow those in ``memory``.
        t: time of the network, one for all, [B] or [B,f].
        text: of ``text_memory``; that in the memory, or one with gradient.
    """
    output, memories = _advance(network, layout, x, t, memory, text, [x.shape[2]])
    return output, memories[0]


def advance_after(
    network: Any, layout: Layout, x: Tensor, t: Tensor, memory: Memory, clean: Tensor, clean_t: Tensor
) -> tuple[Tensor, Memory]:
    """Two passes in one, without gradient: a clean block enters the memory, and the block after it gets its output.

    In each layer the clean block's keys and values are there when the other's queries look for them, so neither waits
    for the other, and the weights are read once for both.

    Args:
        x, clean: [B,C,f,h,w]; ``clean`` follows the frames in ``memory``, and x follows it.
        t, clean_t: one time for all, or [B].

    Returns:
        The output for x; and the memory with ``clean`` in it, but not x.
    """
    both = torch.cat([clean, x], dim=2)
    times, sizes = _times((clean_t, clean), (t, x)), [clean.shape[2], x.shape[2]]
    output, (after, _) = _advance(network, layout, both, times, memory, memory.text, sizes)
    own = tuple((k.clone(), v.clone()) for k, v in after.runs[-1])  # x's lie beside them, and are to go
    return output, replace(after, runs=(*after.runs[:-1], own))


def _advance(
    network: Any, layout: Layout, x: Tensor, t: Tensor, memory: Memory, text: Run, sizes: Sequence[int]
) -> tuple[Tensor, list[Memory]]:
    """One pass over blocks of these sizes, each after those before it: the last one's output; the memory after each."""
    tokens = tokens_per_frame(network, x)
    _check_blocks(layout, x, memory, sizes)
    cuts = [size * tokens for size in sizes]
    held, pasts, turns = [(i, 0, _frames(run, tokens)) for i, run in enumerate(memory.runs)], [], []
    end = memory.frames
    for index, size in enumerate(sizes):
        past, sink = _known(layout, held, end - memory.start, size)
        forgotten = end - memory.start - sum(last - first for _, first, last in past)
        pasts.append(past)
        turns.append((sink, _sink_turn(network, layout, forgotten, text[0][0])))
        held, end = [*past, (len(memory.runs) + index, 0, size)], end + size
    rooms: list[list[Tensor]] = [[] for _ in sizes]  # for all keys and values; without gradient the layers share it

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own = list(zip(_parts(k, cuts), _parts(v, cuts), strict=True))
        known, outputs = [run[layer] for run in memory.runs] + own, []
        asked = slice(-1 if q.shape[1] < k.shape[1] else 0, None)  # blocks whose queries these are
        each_block = (_parts(q, cuts[asked]), own[asked], pasts[asked], turns[asked], rooms[asked])
        for queries, mine, past, turn, room in zip(*each_block, strict=True):
            pieces = _turned([*(_cut(known[run], first, last, tokens) for run, first, last in past), mine], *turn)
            if past and not room and not torch.is_grad_enabled():
                length = sum(key.shape[1] for key, _ in pieces)
                room.extend(each.new_empty(len(each), length, *each.shape[2:]) for each in mine)
            outputs.append(attention(queries, *_joined(pieces, room)))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    output, layers = run_layers(network, x, t, text, range(memory.frames, end), attend, sizes[-1])
    runs, memories, end = [*memory.runs, *_split(layers, cuts)], [], memory.frames
    for index, (size, past) in enumerate(zip(sizes, pasts, strict=True)):
        end += size
        seen = [*past, (len(memory.runs) + index, 0, size)]
        kept = tuple(tuple(_cut(pair, first, last, tokens) for pair in runs[run]) for run, first, last in seen)
        memories.append(replace(memory, runs=kept, frames=end))
    return output, memories


def recall(network: Any, layout: Layout, x: Tensor, t: Tensor, end: int, text: Run) -> Memory:
    """The memory that clean frames x [B,C,f,h,w], those that ``layout.seen(end)`` names, make with this text.

    For a text that changes in the middle of a clip (Yang et al. 2025, LongLive, section 3.2: KV-recache). Where the
    sink or the window does not end with a block, that part of the block is a block of its own here.

    Raises:
        DataError: another number of frames.
    """
    ranges = layout.seen(end)
    count = sum(high - low for low, high in ranges)
    if x.shape[2] != count:
        raise DataError(f"the memory before frame {end} is made of {count} frames, {ranges}; got {x.shape[2]}")
    memory, done = empty_memory(network, text), 0
    for low, high in ranges:
        memory = replace(memory, frames=low)
        for size in layout.parts(low, high):
            memory = advance(network, layout, x[:, :, done : done + size], t, memory, text)[1]
            done += size
    return memory


def whole(network: Any, layout: Layout, x: Tensor, t: Tensor, text: Run) -> Tensor:
    """The output for a whole clip [B,C,F,h,w] at once; block-causal, each block seeing what the others are given.

    Args:
        t: one time for all, [B] or [B,F].
    """
    tokens, ends = tokens_per_frame(network, x), layout.ends(x.shape[2])

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _by_block(network, layout, ends, tokens, q, (k, v), (k, v))

    return run_layers(network, x, t, text, range(x.shape[2]), attend)[0]


def teacher_forced(
    network: Any, layout: Layout, x: Tensor, t: Tensor, text: Run, clean: Tensor, clean_t: Tensor
) -> Tensor:
    """The output for noisy blocks of a clip, each after the clean blocks before it, all at once.

    Args:
        x, clean: [B,C,F,h,w].
        t, clean_t: one time for all, [B] or [B,F].
    """
    frames = x.shape[2]
    tokens, ends = tokens_per_frame(network, x), layout.ends(frames)
    if clean.shape != x.shape:
        raise DataError(f"clean and noisy clips have one shape; got {tuple(clean.shape)} and {tuple(x.shape)}")

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (q_clean, q_noisy), (k_clean, k_noisy), (v_clean, v_noisy) = (part.chunk(2, dim=1) for part in (q, k, v))
        known = (k_clean, v_clean)
        first = _by_block(network, layout, ends, tokens, q_clean, known, known)
        second = _by_block(network, layout, ends, tokens, q_noisy, known, (k_noisy, v_noisy))
        return torch.cat([first, second], dim=1)

    both, times = torch.cat([clean, x], dim=2), _times((clean_t, clean), (t, x))
    return run_layers(network, both, times, text, [*range(frames)] * 2, attend)[0][:, :, frames:]


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
        seen = layout.seen(end)
        if known is own:
            pieces = [_cut(own, low, high, tokens) for low, high in seen]
        else:
            past = [(low, min(high, start)) for low, high in seen]
            pieces = [_cut(known, low, high, tokens) for low, high in past if low < high]
            pieces.append(_cut(own, start, end, tokens))
        turn = _sink_turn(network, layout, end - sum(high - low for low, high in seen), q)
        queries = q[:, start * tokens : end * tokens]
        parts.append(attention(queries, *_joined(_turned(pieces, len(seen) - 1, turn))))
        start = end
    return torch.cat(parts, dim=1)


def _sink_turn(network: Any, layout: Layout, forgotten: int, like: Tensor) -> Tensor | None:
    """What moves the sink's keys over the frames between it and the rest, where the layout asks for that."""
    if not layout.rebase_sink or not forgotten:
        return None
    exact = torch.promote_types(like.dtype, torch.float32)
    return time_shift(network.config.attention_head_dim, forgotten, like.device, exact)


def _turned(pieces: list[KeysAndValues], sink: int, turn: Tensor | None) -> list[KeysAndValues]:
    """Pieces of the past of which the first ``sink`` are turned."""
    if turn is None:
        return pieces
    return [(rotate(k, turn).to(k.dtype), v) for k, v in pieces[:sink]] + pieces[sink:]


def _joined(pieces: Sequence[KeysAndValues], room: Sequence[Tensor] = ()) -> KeysAndValues:
    """Keys and values of several runs of frames as one, in ``room`` where there is some."""
    if len(pieces) == 1:
        return pieces[0]
    keys, values = zip(*pieces, strict=True)
    if room:
        return torch.cat(keys, dim=1, out=room[0]), torch.cat(values, dim=1, out=room[1])
    return torch.cat(keys, dim=1), torch.cat(values, dim=1)


def _known(layout: Layout, held: Sequence[Piece], frames: int, new: int) -> tuple[list[Piece], int]:
    """What of the held a block of ``new`` frames sees after ``frames``; how many pieces are a sink before a gap."""
    known = sum(last - first for _, first, last in held)
    room = known + new if layout.window is None else layout.window
    if known + new <= room and known == frames:
        return list(held), 0
    sink = _between(held, 0, layout.sink)
    latest = _between(held, max(layout.sink, known + layout.sink + new - room), known)
    return sink + latest, len(sink)


def _between(held: Sequence[Piece], low: int, high: int) -> list[Piece]:
    """The frames ``low`` to ``high`` of those held."""
    chosen, start = [], 0
    for run, first, last in held:
        a, b = first + max(low - start, 0), first + min(high - start, last - first)
        start += last - first
        if a < b:
            chosen.append((run, a, b))
    return chosen


def _cut(pair: KeysAndValues, first: int, last: int, tokens: int) -> KeysAndValues:
    """Keys and values of some frames; the tensors themselves where that is all."""
    if (first, last * tokens) == (0, pair[0].shape[1]):
        return pair
    return pair[0][:, first * tokens : last * tokens], pair[1][:, first * tokens : last * tokens]


def _split(layers: Sequence[KeysAndValues], cuts: Sequence[int]) -> list[Run]:
    """A run of frames as several."""
    return list(zip(*(zip(_parts(k, cuts), _parts(v, cuts), strict=True) for k, v in layers), strict=True))


def _parts(x: Tensor, cuts: Sequence[int]) -> Sequence[Tensor]:
    """x [B,N,…] in parts of so many tokens."""
    return [x] if len(cuts) == 1 else x.split(cuts, dim=1)  # type: ignore[no-untyped-call]


def _frames(run: Run, tokens: int) -> int:
    return run[0][0].shape[1] // tokens


def _check_blocks(layout: Layout, x: Tensor, memory: Memory, sizes: Sequence[int]) -> None:
    if len(memory.text[0][0]) != len(x):
        raise DataError(f"a memory is of one clip a row: it has {len(memory.text[0][0])} rows, the block {len(x)}")
    if layout.window is not None and max(sizes) > layout.window - layout.sink:
        raise DataError(f"a block of {max(sizes)} frames does not fit a window of {layout.window} beside its sink")


def _times(*parts: tuple[Tensor, Tensor]) -> Tensor:
    """Times, each with its clip [B,C,F,h,w], as those of all frames one after the other, [B or 1,F]."""
    rows = 1 if all(t.numel() == 1 for t, _ in parts) else len(parts[0][1])
    times = [(t if t.ndim == 2 else t.reshape(-1, 1), x) for t, x in parts]
    return torch.cat([t.to(x.device).expand(rows, x.shape[2]) for t, x in times], dim=1)
