"""The networks that a generator trains: frozen with adapters, or whole; switched, saved and loaded together.

A generator has one denoiser, or several experts that share the noise levels between them (Wan 2.2). What is here is
the same for every family: ``WanGenerator`` and ``FamilyGenerator`` both hold a ``Denoisers``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from reelign.distributed import leads, shards
from reelign.errors import ConfigError, ContractError, ModelError
from reelign.generators.levers import MemoryOptions, check_memory, put_on_device, quantise, recompute_blocks
from reelign.generators.lora import (
    AdapterLayout,
    LoraOptions,
    adapter_parameters,
    add_adapter,
    load_adapter,
    merged,
    save_adapter,
    switched_off,
)
from reelign.generators.loss_scale import LossScale
from reelign.sharding import load_network, save_network, shard


class TrainingOptions(Protocol):
    """What a generator's options say about its networks; see ``family.FamilyOptions``."""

    @property
    def dtype(self) -> Literal["float32", "bfloat16", "float16"]: ...  # noqa: D102

    @property
    def lora(self) -> LoraOptions | None: ...  # noqa: D102

    @property
    def train_all(self) -> bool: ...  # noqa: D102

    @property
    def gradient_checkpointing(self) -> bool: ...  # noqa: D102

    @property
    def merge_adapter(self) -> bool: ...  # noqa: D102

    @property
    def memory(self) -> MemoryOptions: ...  # noqa: D102


class Denoisers:
    """Denoising networks, put on the device and made ready to train as the options say.

    Args:
        networks: by the name of their folder in the pipeline, in the order in which sampling uses them.
        options: what is trained.
        device: where they go.
        layout: of saved adapters.

    Raises:
        ConfigError: no layer matches the LoRA targets; levers of ``options.memory`` that exclude one another.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        options: TrainingOptions,
        device: torch.device,
        layout: AdapterLayout = "diffusers",
    ) -> None:
        self.networks = dict(networks)
        self.options = options
        self.layout = layout
        self._frozen = sum(p.numel() for network in self.networks.values() for p in network.parameters())
        check_memory(options.memory, train_all=options.train_all)
        _check_parts(options)
        for network in self.networks.values():
            network.eval().requires_grad_(options.train_all)
            quantise(network, options.memory.quantise)
            if options.lora is not None and not options.train_all:
                add_adapter(network, options.lora)
            if options.gradient_checkpointing:
                recompute_blocks(network)
            if shards():
                shard(network, device, options.train_all)
            else:
                put_on_device(network, device, options.memory)
        self._scale = LossScale(self.trainable().values()) if options.dtype == "float16" else None

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained, not every weight or none."""
        return self.options.lora is not None and not self.options.train_all

    def all(self) -> list[nn.Module]:
        """The networks, in order."""
        return list(self.networks.values())

    def parameter_count(self) -> int:
        """Parameters of the networks, adapters included."""
        adapters = (adapter_parameters(network).values() for network in self.all())
        return self._frozen + sum(p.numel() for part in adapters for p in part)

    def run(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``network(x)``, with its gradients kept within the range of its precision."""
        if self._scale is None or not torch.is_grad_enabled():
            return network(x)
        return self._scale.leave(network(self._scale.enter(x)))

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapters' parameters, or every weight; prefixed by the network's number."""
        chosen: dict[str, nn.Parameter] = {}
        for index, network in enumerate(self.all()):
            part = dict(network.named_parameters()) if self.options.train_all else adapter_parameters(network)
            chosen.update({f"{index}.{name}": parameter for name, parameter in part.items()})
        return chosen

    def merged(self) -> AbstractContextManager[None]:
        """Inside, for passes without gradient, the adapters are folded into the weights, where options allow."""
        exact = self.options.dtype == "float32" and self.options.memory.foldable
        there = exact and not shards()  # between passes a process has no whole weight to fold into
        fold = self.options.merge_adapter and self.has_adapter and there
        return merged(self.all()) if fold else nullcontext()

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Switch the adapters off: inside, this is the generator that training started from.

        Raises:
            ContractError: there are none.
        """
        if not self.has_adapter:
            raise ContractError(
                "without an adapter there is no reference generator: set generator.lora, or kl_weight to 0"
            )
        with switched_off(self.all()):
            yield

    def save(self, folder: str) -> None:
        """Write the adapter of the first network to ``folder``, of others to a folder of their name in it; or weights.

        The first process writes; where networks are kept in parts, all have to call this.

        Raises:
            ContractError: nothing was trained.
        """
        if not (self.has_adapter or self.options.train_all):
            raise ContractError("there is no adapter to save: set generator.lora")
        for network, place, part in self._places(folder):
            if self.options.train_all:
                save_network(network, place / part)
            elif leads():
                save_adapter(network, place, part, self.layout)

    def load(self, folder: str) -> None:
        """Read back what ``save`` wrote, bit for bit.

        Raises:
            ModelError: it is not there, or does not fit.
        """
        if not (self.has_adapter or self.options.train_all):
            raise ModelError(f"a generator without an adapter takes none from {folder}: set generator.lora")
        for network, place, part in self._places(folder):
            if self.options.train_all:
                load_network(network, place / part)
            else:
                load_adapter(network, place, part)

    def _places(self, folder: str) -> Iterator[tuple[nn.Module, Path, str]]:
        first = next(iter(self.networks))
        for index, (name, network) in enumerate(self.networks.items()):
            yield network, Path(folder) / (name if index else "."), first


def _check_parts(options: TrainingOptions) -> None:
    """Refuse what does not go with networks in parts.

    Raises:
        ConfigError: weights are quantised or offloaded, or trained whole in float16.
    """
    if not shards():
        return
    if not options.memory.foldable:
        raise ConfigError("FSDP cuts plain weights; leave out memory.quantise and memory.offload, or launch without it")
    if options.train_all and options.dtype == "float16":
        raise ConfigError("with FSDP, train_all is in float32 or bfloat16; got dtype float16")
