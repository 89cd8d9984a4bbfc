"""Bytes alive and arithmetic done, by phase, of real code that runs on fake or real tensors.

A storage counts from the operator that returns it until it is freed, so what an operator takes and gives back within
one call is not seen; libraries' own workspaces neither.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from reelign.zoo.skeletons import answer

aten = torch.ops.aten
CONVOLUTIONS = (aten.convolution, aten.convolution_backward)


def _attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(q.shape, k.shape, v.shape))  # type: ignore[no-untyped-call]


def _attention_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_backward_flop_count(gradient.shape, q.shape, k.shape, v.shape))  # type: ignore[no-untyped-call]


FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Meter(TorchDispatchMode):
    """Counts what runs inside.

    Args:
        resting: bytes of what is there all the time, such as weights.
        visiting: bytes that are there in some phases only, by phase.
    """

    def __init__(self, resting: int = 0, visiting: Mapping[str, int] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = "rest"
        self.now = resting
        self.visiting = dict(visiting or {})
        self.peaks: dict[str, int] = defaultdict(int)
        self.flops: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._alive: dict[int, int] = {}
        self._held = False

    @contextmanager
    def during(self, phase: str, hold: bool = False) -> Iterator[None]:
        """Inside, all belongs to ``phase``; ``hold`` keeps it from what is inside."""
        before, held = self.phase, self._held
        self.phase = before if held else phase
        self._held = held or hold
        try:
            yield
        finally:
            self.phase, self._held = before, held

    def label(self, owner: Any, name: str, phase: Callable[[], str]) -> None:
        """From now on, what this method of one object does belongs to the phase that ``phase`` tells."""
        method = getattr(owner, name)

        def labelled(*args: Any, **kwargs: Any) -> Any:
            with self.during(phase()):
                return method(*args, **kwargs)

        setattr(owner, name, labelled)

    def forget(self) -> None:
        """Begin peaks and arithmetic anew; what is alive stays."""
        self.peaks.clear()
        self.flops.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return answer(args[0])
        out = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = {leaf.untyped_storage()._cdata for leaf in given}
        phase = "backward" if torch._C._current_graph_task_id() != -1 and not self._held else self.phase
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in known:
                self._born(leaf)
        self.peaks[phase] = max(self.peaks[phase], self.now + self.visiting.get(phase, 0))
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            half = bool(given) and given[0].dtype in (torch.bfloat16, torch.float16)
            kind = "half" if half else "convolution" if func._overloadpacket in CONVOLUTIONS else "float32"
            self.flops[phase][kind] += formula(*args, **kwargs, out_val=out)
        return out

    def _born(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or size == 0:
            return
        self._alive[key] = size
        self.now += size
        weakref.finalize(storage, self._died, key)

    def _died(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)
