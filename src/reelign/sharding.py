"""Networks kept in parts: of N processes, each holds an N-th of every weight (FSDP2, ``torch.distributed.fsdp``).

The weights of a block are joined while it runs, forward and backward, and given up after; a chain may run the network
many times before its backward pass. What is trained whole is cut too, with its gradients, averages and moments: a
parameter is then a ``DTensor``, whose gradient comes averaged and cut. An adapter is small and stays whole.

Zhao et al. 2023, PyTorch FSDP; Rajbhandari et al. 2020, ZeRO, stage 3.

Left out: offloading, mixed precision of what travels, parts of encoders, decoders and rewards.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from reelign.distributed import count, leads, shards, start_alike


def shard(network: nn.Module, device: torch.device, trained_whole: bool) -> None:
    """Put a network's weights on the device, this process's part of each; blocks are the items of its lists.

    Args:
        network: in main memory, with its adapter, the same in every process.
        device: where it goes.
        trained_whole: every weight is trained, not an adapter.
    """
    start_alike({name: p for name, p in network.named_parameters() if p.requires_grad})
    adapter = set() if trained_whole else {p for p in network.parameters() if p.requires_grad}
    mesh = init_device_mesh(device.type, (count(),))
    blocks = [block for child in network.children() if isinstance(child, nn.ModuleList) for block in child]
    for part in (*blocks, network):
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=adapter)
    network.to(device)


def whole(value: Any) -> Any:
    """Nested values with tensors in parts put together on the CPU, of the first process; others get empty ones.

    Every process has to call it, with the same tensors in the same order.
    """
    if isinstance(value, DTensor):
        joined: Tensor = value.full_tensor().detach()
        return joined.cpu() if leads() else joined.new_empty(0)
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(item) for item in value)
    return value


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in parts, where ``like`` is; each process cuts its own from what it has."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def save_network(network: nn.Module, folder: Path) -> None:
    """Write a network as its ``save_pretrained`` does; every process has to call it, and the first one writes."""
    if not shards():
        network.save_pretrained(folder)  # type: ignore[operator]
        return
    state = whole(dict(network.state_dict()))
    if leads():
        with torch.device("meta"):
            copy = plain_class(network).from_config(network.config)
        copy.load_state_dict(state, assign=True)
        copy.save_pretrained(folder)


def load_network(network: nn.Module, folder: Path) -> None:
    """Read back what ``save_network`` wrote, bit for bit."""
    found: Mapping[str, Tensor] = plain_class(network).from_pretrained(folder).state_dict()
    own = network.state_dict()
    network.load_state_dict({n: laid_out(v, own[n]) if n in own else v for n, v in found.items()})


def plain_class(network: nn.Module) -> Any:
    """The class of a network before it was cut into parts."""
    return next(kind for kind in type(network).__mro__ if not issubclass(kind, FSDPModule))
