"""Models without weights: what a checkpoint's configs say, as networks whose tensors have shapes and no memory.

Inside ``without_weights`` the package's loaders build from ``config.json`` files alone and read no weights. The tensors
are PyTorch's fake tensors: they go through real code, autograd and optimisers included, and only shapes are computed.
Fake and real tensors mix. Tokenizers, schedulers and image processors are the checkpoint's own, and real.

Where sizes stand in no config but in the weights themselves, a file's names and shapes are read, and a model that is
not here is taken to be the published one. Left out: the heads of rewards, whose loaders do not come here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

_fake: ContextVar[FakeTensorMode | None] = ContextVar("fake", default=None)


class Answers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets code that reads values off fake tensors go on: bad things are counted 0, conditions hold, the rest is ½."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return answer(args[0])
        return func(*args, **(kwargs or {}))


def answer(asked: Tensor) -> bool | int | float:
    """What a fake number says when code asks for its value."""
    if asked.dtype == torch.bool:
        return True
    return 0.5 if asked.is_floating_point() else 0


@contextmanager
def without_weights() -> Iterator[FakeTensorMode]:
    """Inside, loaders build networks of fake tensors, from configs."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    token = _fake.set(fake)
    try:
        yield fake
    finally:
        _fake.reset(token)


def hollow() -> bool:
    """Whether weights are left out just now."""
    return _fake.get() is not None


def open_component(kind: Any, place: str, subfolder: str = "", **options: Any) -> Any:
    """``kind.from_pretrained``; without weights, a network of this class from its config, in the asked precision."""
    fake = _fake.get()
    if fake is None or not issubclass(kind, nn.Module):
        return kind.from_pretrained(place, subfolder=subfolder, **options)
    dtype = options.get("dtype", options.get("torch_dtype", torch.float32))
    if hasattr(kind, "load_config"):  # of diffusers
        return fake_network(lambda: kind.from_config(kind.load_config(place, subfolder=subfolder)), dtype)
    return fake_network(lambda: kind(kind.config_class.from_pretrained(place, subfolder=subfolder)), dtype)


def fake_network(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> Any:
    """What ``make`` builds, of fake tensors, weights in ``dtype``; for use inside ``without_weights``."""
    fake = current_fake()
    with fake, Answers():  # type: ignore[no-untyped-call]
        network = make()
    return settle(network, fake, dtype)


def open_pipeline(kind: Any, place: str, dtypes: Mapping[str, torch.dtype]) -> Any:
    """A diffusers pipeline, its components in ``dtypes`` or its ``default``; without weights, of fake tensors."""
    if not hollow():
        return kind.from_pretrained(place, dtype=dict(dtypes))
    index = kind.load_config(place)
    parts: dict[str, Any] = {}
    for name, value in index.items():
        if isinstance(value, (list, tuple)) and not name.startswith("_"):
            library, of = value
            part = None if of is None else getattr(importlib.import_module(library), of)
            dtype = dtypes.get(name, dtypes["default"])
            network = part is not None and issubclass(part, nn.Module)
            options = {"dtype": dtype} if network else {}
            parts[name] = None if part is None else open_component(part, place, name, **options)
    settings = {name: value for name, value in index.items() if name not in parts and not name.startswith("_")}
    return kind(**parts, **settings)


def fake_zeros(*shape: int) -> Tensor:
    """Zeros of a shape, without memory; for use inside ``without_weights``."""
    with current_fake():
        return torch.zeros(shape)


def current_fake() -> FakeTensorMode:
    """The mode of fake tensors; for use inside ``without_weights``."""
    fake = _fake.get()
    assert fake is not None
    return fake


def settle(network: nn.Module, fake: FakeTensorMode, dtype: torch.dtype | None = None) -> nn.Module:
    """Make every tensor of a network fake, weights of ``dtype`` but those the class keeps exact; it stays where it is.

    Moving a fake network swaps its tensors one by one, which PyTorch refuses for tied ones; there is nothing to move.
    """
    kept = tuple(getattr(network, "_keep_in_fp32_modules", None) or ()) if hasattr(network, "load_config") else ()
    done: dict[int, nn.Parameter] = {}
    for place, module in network.named_modules():
        for name, weight in module._parameters.items():
            if weight is None or id(weight) in done:
                module._parameters[name] = None if weight is None else done[id(weight)]
                continue
            exact = dtype is None or not weight.is_floating_point() or bool({*place.split("."), name} & {*kept})
            with fake, torch.no_grad():
                value = weight.detach() if isinstance(weight, FakeTensor) else fake.from_tensor(weight.detach())
                value = value if exact or dtype is None else value.to(dtype)
            done[id(weight)] = module._parameters[name] = nn.Parameter(value, weight.requires_grad)
            done[id(module._parameters[name])] = done[id(weight)]
    vars(network)["to"] = lambda *args, **kwargs: network
    return network


class RoundedLinear(nn.Linear):
    """A frozen linear layer of as many bytes as bitsandbytes' of 8 or 4 bits, at rest and at work; inside
    ``without_weights``.

    ``int8`` has a number of 4 bytes a row. ``nf4`` has a byte for each 64 weights and a number for each 64·256. Both
    have their weights in full for as long as the layer works, forwards and backwards; ``int8`` keeps its input.
    """

    def __init__(self, layer: nn.Linear, kind: Literal["int8", "nf4"]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        self.kind, self.dtype, size = kind, layer.weight.dtype, layer.weight.numel()
        stored = size + 4 * layer.out_features if kind == "int8" else size // 2 + size // 64 + size // 64 // 64
        with current_fake():
            self.weight = nn.Parameter(torch.zeros(stored, dtype=torch.uint8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of the input's precision, [...,out] of x [...,in]."""
        out: Tensor = _RoundedProduct.apply(x, self)  # type: ignore[no-untyped-call]
        return out


class _RoundedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: RoundedLinear) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(*([x] if layer.kind == "int8" else []))
        with torch.autocast("cpu", enabled=False):
            inside = x.to(torch.int8).to(layer.dtype) if layer.kind == "int8" else x.to(layer.dtype)
            full = inside.new_empty(layer.out_features, layer.in_features)
            bias = None if layer.bias is None else layer.bias.to(layer.dtype)
            return linear(inside, full, bias).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        layer, gradient = ctx.layer, gradients[0]
        full = gradient.new_empty(layer.out_features, layer.in_features)
        return gradient @ full, None
