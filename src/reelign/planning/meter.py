"""Bytes alive and arithmetic done, by phase, of real code that runs on fake or real tensors.

A storage counts from the operator that returns it until it is freed, so what an operator takes and gives back within
one call is not seen; libraries' own workspaces neither.
"""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from reelign.zoo.skeletons import answer, current_fake, hollow

aten = torch.ops.aten
CONVOLUTIONS = (aten.convolution, aten.convolution_backward)
LARGE = 1 << 28  # numbers; a real tensor of so many, such as a mask of attention over a clip, is made fake


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
    def during(self, phase: str, hold: bool = False, guest: int = 0) -> Iterator[None]:
        """Inside, all belongs to ``phase``; ``hold`` keeps it from what is inside; ``guest`` bytes more are there."""
        before, held = self.phase, self._held
        self.phase = before if held else phase
        self._held = held or hold
        self.now += guest
        try:
            yield
        finally:
            self.phase, self._held = before, held
            self.now -= guest

    def label(self, owner: Any, name: str, phase: Callable[[], str], guest: Callable[..., int] | None = None) -> None:
        """From now on, what this method of one object does belongs to the phase that ``phase`` tells.

        Args:
            guest: from the method's arguments, bytes that are there while it works; all it does is then its own, a
                backward pass of its own too.
        """
        method = getattr(owner, name)

        def labelled(*args: Any, **kwargs: Any) -> Any:
            with self.during(phase(), guest is not None, guest(*args, **kwargs) if guest else 0):
                return method(*args, **kwargs)

        setattr(owner, name, labelled)

    @property
    def peak(self) -> int:
        """The largest number of bytes alive in any phase."""
        return max(self.peaks.values(), default=0)

    def forget(self) -> None:
        """Begin peaks and arithmetic anew; what is alive stays."""
        self.peaks.clear()
        self.flops.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return answer(args[0])
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        out = _faked(func, args, kwargs) if _may_be_large(given) else None
        out = func(*args, **kwargs) if out is None else out
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


def _may_be_large(given: list[Tensor]) -> bool:
    """Whether real tensors, in a prediction, may make a ``LARGE`` one."""
    real = hollow() and not any(isinstance(tensor, FakeTensor) for tensor in given)
    return real and math.prod(tensor.numel() for tensor in given) > LARGE


def _faked(func: Any, args: Any, kwargs: Any) -> Any:
    """The result without its values where it is ``LARGE``, else None."""
    fake = current_fake()
    args, kwargs = tree_map_only(Tensor, fake.from_tensor, (args, kwargs))
    with fake:
        out = func(*args, **kwargs)
    return out if isinstance(out, Tensor) and out.numel() > LARGE else None
