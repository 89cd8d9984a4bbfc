"""Meters for benchmarks: bytes alive, bytes kept for the backward pass, and how often the networks ran.

On a CPU bytes alive are those of ``reelign.planning.meter``, the same in every run. On a GPU the allocator's own peak
is used.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from reelign.planning.meter import Meter


@contextmanager
def peak_bytes(device: torch.device) -> Iterator[Callable[[], int]]:
    """Inside, the function that is given tells the peak of bytes alive above what was alive at the start."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - start
        return
    with Meter() as meter:
        yield lambda: meter.peak


class SavedBytes:
    """Bytes that the graph keeps for the backward pass, each storage once; weights do not count.

    Args:
        weights: the modules whose parameters and buffers are there anyway.
    """

    def __init__(self, weights: list[nn.Module]) -> None:
        self._resting = {_storage_key(t) for m in weights for t in (*m.parameters(), *m.buffers())}
        self._users: Counter[int] = Counter()
        self.now = 0

    def hooks(self) -> saved_tensors_hooks:
        """A fresh context to run the forward pass in; an inner ``saved_tensors_hooks`` hides tensors from it."""
        return saved_tensors_hooks(self._pack, lambda kept: kept.tensor)

    def _pack(self, tensor: Tensor) -> _Kept:
        kept, key, size = _Kept(tensor), _storage_key(tensor), tensor.untyped_storage().nbytes()
        if key not in self._resting:
            self.now += size if not self._users[key] else 0
            self._users[key] += 1
            weakref.finalize(kept, self._release, key, size)
        return kept

    def _release(self, key: int, size: int) -> None:
        self._users[key] -= 1
        self.now -= size if not self._users[key] else 0


class _Kept:
    """A saved tensor, whose end can be watched."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an output that held its own graph would never be freed


class Passes:
    """How often the denoising network and the decoder ran since ``reset``.

    ``calls`` and ``rows`` count passes of the network and their batch rows; ``block_rows`` divided by the number of
    blocks counts rows with what checkpointed blocks run again. ``latents`` and ``frames`` are the decoder's, over all
    calls, without what it decodes again; a call decodes them of each clip in its batch.
    """

    def __init__(self, transformer: nn.Module, vae: nn.Module) -> None:
        self.counts: Counter[str] = Counter()
        self.backward = False
        self.blocks = len(transformer.blocks)  # type: ignore[arg-type]
        self.handles = [
            transformer.register_forward_pre_hook(self._network),  # before, since recomputation may stop early
            vae.decoder.register_forward_hook(self._decoder),  # type: ignore[operator, union-attr]
            *(block.register_forward_pre_hook(self._block) for block in transformer.blocks),  # type: ignore[union-attr]
        ]

    def _network(self, module: nn.Module, args: Any) -> None:
        self.counts["calls"] += 1
        self.counts["rows"] += len(args[0])

    def _block(self, module: nn.Module, args: Any) -> None:
        self.counts["block_rows"] += len(args[0])

    def _decoder(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if not self.backward:
            self.counts["latents"] += 1
            self.counts["frames"] += output.shape[2]

    def reset(self) -> None:
        """Start counting anew, in the forward phase."""
        self.counts.clear()
        self.backward = False

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()


def _storage_key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
