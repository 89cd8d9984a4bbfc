"""Levers for small GPUs, each in one place for every family: quantised and offloaded networks, decoding in parts.

    quantise        frozen linear layers of the blocks in 8 or 4 bits, by bitsandbytes             approximate
    offload         frozen layers stay in main memory; each is on the device while it works        exact
    decode_slicing  one clip at a time through the autoencoder                                     exact
    decode_tiling   overlapping tiles of the picture through the autoencoder, blended              approximate

A layer whose weights come and go cannot simply be emptied: autograd keeps the very parameter it multiplied with and
would find it empty in the backward pass. So what is loaded is a tensor of its own, which lives as long as the graph
needs it; with gradient checkpointing that is as long as its block is worked on. (diffusers' group offloading swaps the
data of parameters, LoRA's included, and is made for inference.)

diffusers' own slicing and tiling are not used: they know nothing of the graph, and some families lack them. Parts here
go through a family's own ``decode``, which recomputes them one by one where ``decode_checkpointing`` says so.

Left out: quantised autoencoders and encoders; copies to the device that overlap with computing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reelign.errors import ConfigError
from reelign.optimisation import bitsandbytes
from reelign.zoo.skeletons import RoundedLinear, hollow

Result = TypeVar("Result")
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # they hold nearly all weights, and are only ever called


class MemoryOptions(BaseModel):
    """What a generator does to fit a small GPU.

    Args:
        quantise: frozen linear layers of the network's blocks in 8 bits (LLM.int8) or 4 (NF4, in blocks of 64).
            Needs ``pip install 'reelign[bitsandbytes]'``.
        offload: keep the network's frozen weights in main memory, each layer's on the device only while it works. With
            gradient, ``gradient_checkpointing`` is what lets them go again.
        decode_slicing: decode and encode one clip of a batch at a time.
        decode_tiling: edge in pixels of the square tiles that are decoded one by one, each overlapping its neighbours
            by a quarter; 0 is off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantise: Literal["none", "int8", "nf4"] = "none"
    offload: bool = False
    decode_slicing: bool = False
    decode_tiling: int = Field(0, ge=0)

    @property
    def foldable(self) -> bool:
        """Whether the network's weights are there to fold an adapter into."""
        return self.quantise == "none" and not self.offload


def recompute_blocks(network: nn.Module) -> None:
    """Recompute the network's blocks in the backward pass: as its class does it, else every block as a whole.

    diffusers does not do it for ModelScope's U-Net.
    """
    if getattr(network, "_supports_gradient_checkpointing", True):
        network.enable_gradient_checkpointing()  # type: ignore[operator]
        return
    blocks = [block for name in ("down_blocks", "up_blocks") for block in network.get_submodule(name).children()]
    for block in (network.get_submodule("transformer_in"), *blocks, network.get_submodule("mid_block")):
        block.forward = _in_backward(block.forward)


def _in_backward(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        return recomputed(partial(forward, **named), *arguments)

    return run


def recomputed(function: Callable[..., Result], *arguments: Any, when: bool = True) -> Result:
    """``function(*arguments)``, whose activations are computed again in the backward pass ``when`` so asked."""
    if not (when and torch.is_grad_enabled()):
        return function(*arguments)
    result: Result = checkpoint(function, *arguments, use_reentrant=False)
    return result


def check_memory(memory: MemoryOptions, *, train_all: bool = False, compiled: bool = False) -> None:
    """Refuse levers that exclude one another.

    Raises:
        ConfigError: weights that are trained cannot be quantised or offloaded, quantised ones not be offloaded, and
            weights that come and go not be compiled.
    """
    if memory.foldable:
        return
    name = "memory.offload" if memory.offload else "memory.quantise"
    if train_all:
        raise ConfigError(f"{name} is for frozen weights, and train_all trains them: choose one of the two")
    if memory.offload and memory.quantise != "none":
        raise ConfigError(f"memory.offload moves weights as they are; got quantise {memory.quantise!r} too: choose one")
    if memory.offload and compiled:
        raise ConfigError("memory.offload swaps weights under the compiler: set compile to false, or offload to false")


def quantise(network: nn.Module, kind: Literal["none", "int8", "nf4"]) -> None:
    """Replace the linear layers in the network's blocks by quantised ones; they shrink when they go to the device.

    Embeddings, norms, convolutions and the last layer, a few percent of the weights, stay as they are.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if kind == "none":
        return
    library = None if hollow() else bitsandbytes(f"memory.quantise: {kind}")
    blocks = [block for child in network.children() if isinstance(child, nn.ModuleList) for block in child]
    for parent in {id(m): m for block in blocks for m in block.modules()}.values():
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                setattr(parent, name, _quantised(library, layer, kind))


def _quantised(library: Any, layer: nn.Linear, kind: Literal["int8", "nf4"]) -> nn.Module:
    if library is None:
        return RoundedLinear(layer, kind)
    shape, biased = (layer.in_features, layer.out_features), layer.bias is not None
    if kind == "nf4":
        new = library.nn.Linear4bit(*shape, bias=biased, compute_dtype=layer.weight.dtype, quant_type="nf4")
        new.support_avx512bf16_for_cpu = False  # on a CPU it repacks weights in place for passes without gradient
        new.weight = library.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    else:
        new = library.nn.Linear8bitLt(*shape, bias=biased, has_fp16_weights=False)
        new.weight = library.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    new.bias = layer.bias
    quantised: nn.Module = new.eval().requires_grad_(False)
    return quantised


def put_on_device(network: nn.Module, device: torch.device, memory: MemoryOptions) -> None:
    """Put a network on the device; what is frozen and heavy stays in main memory where ``offload`` says so."""
    if memory.offload:
        for layer in network.modules():
            if isinstance(layer, LAYERS):
                _Offloaded(layer, device)
    network.to(device)


class _Offloaded:
    """The frozen weights of one layer: in main memory, and on the device while it works."""

    def __init__(self, layer: nn.Module, device: torch.device) -> None:
        frozen = {name: p for name, p in layer.named_parameters(recurse=False) if not p.requires_grad}
        self.device = device
        self.kept = {name: p.data.pin_memory() if device.type == "cuda" else p.data for name, p in frozen.items()}
        self.nothing = {n: nn.Parameter(p.new_empty(0), requires_grad=False) for n, p in frozen.items()}
        layer._parameters.update(self.nothing)
        layer.register_forward_pre_hook(self._load)
        layer.register_forward_hook(self._leave, always_call=True)

    def _load(self, layer: nn.Module, inputs: Any) -> None:
        loaded: Any = {
            # Without weights there is no device to copy to, and what would be copied there counts.
            name: value.to(self.device, non_blocking=True, copy=hollow())
            for name, value in self.kept.items()
        }
        layer._parameters.update(loaded)

    def _leave(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        layer._parameters.update(self.nothing)


def decode_in_parts(decode: Callable[[Tensor], Tensor], x: Tensor, ratio: int, memory: MemoryOptions) -> Tensor:
    """Pixels [B,T,3,H,W] of latents x [B,C,F,h,w], clip by clip and tile by tile as ``memory`` says.

    Args:
        decode: from latents [b,C,F,h',w'] to pixels [b,T,3,h'·ratio,w'·ratio].
        ratio: pixels a latent, along an edge.
    """
    size = memory.decode_tiling // ratio

    def one(part: Tensor) -> Tensor:
        return tiled(decode, part, size, ratio) if size and max(x.shape[-2:]) > size else decode(part)

    return in_slices(one, x, memory)


def in_slices(function: Callable[[Tensor], Tensor], x: Tensor, memory: MemoryOptions) -> Tensor:
    """``function(x)``, one row of x at a time where ``memory`` says so."""
    if not memory.decode_slicing or len(x) == 1:
        return function(x)
    return torch.cat([function(x[i : i + 1]) for i in range(len(x))])


def check_tiles(memory: MemoryOptions, ratio: int) -> None:
    """Refuse tiles of less than four latents, whose quarter would be none; raises ConfigError."""
    if memory.decode_tiling and memory.decode_tiling < 4 * ratio:
        raise ConfigError(
            f"memory.decode_tiling is 0 or at least four latents, {4 * ratio} pixels for this model; got "
            f"{memory.decode_tiling}"
        )


def tiled(decode: Callable[[Tensor], Tensor], x: Tensor, size: int, ratio: int) -> Tensor:
    """As ``decode``, by tiles of ``size`` latents that overlap by a quarter and fade into one another linearly.

    A pixel is Σ w·p / Σ w over the tiles that hold it, w falling from 1 to 0 over the overlap.
    """
    height, width = x.shape[-2:]
    picture: Tensor | None = None
    for (top, down), (left, across) in product(_tiles(height, size, ratio), _tiles(width, size, ratio)):
        part = decode(x[..., top : top + size, left : left + size])
        if picture is None:
            picture = part.new_zeros(*part.shape[:-2], height * ratio, width * ratio)
        place = picture[..., top * ratio :, left * ratio :][..., : part.shape[-2], : part.shape[-1]]
        place += part * (down[:, None] * across).to(part)
    assert picture is not None
    return picture


def _tiles(length: int, size: int, ratio: int) -> list[tuple[int, Tensor]]:
    """Of each tile along an edge, where it begins and its weight in each of its pixels; weights of a pixel sum to 1."""
    starts, pixels, overlap = _starts(length, size), min(size, length) * ratio, size // 4 * ratio
    up, flat = ((torch.arange(pixels) + 1) / (overlap + 1)).clamp(max=1), torch.ones(pixels)
    shares, total = [], torch.zeros(length * ratio)
    for start in starts:
        share = (flat if start == 0 else up) * (flat if start == starts[-1] else up.flip(0))
        shares.append(share)
        total[start * ratio :][:pixels] += share
    return [(start, share / total[start * ratio :][:pixels]) for start, share in zip(starts, shares, strict=True)]


def _starts(length: int, size: int) -> list[int]:
    """Where tiles begin along an edge: as few as overlap by a quarter at least, spread evenly."""
    if length <= size:
        return [0]
    count = math.ceil((length - size) / (size - size // 4)) + 1
    return [round(i * (length - size) / (count - 1)) for i in range(count)]
