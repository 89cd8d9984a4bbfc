"""What every algorithm does with its gradients: clip, step, average the weights, and give it all back for a resume.

In several processes all begin with the weights of the first, and gradients are averaged over them once an update,
whatever way they came about: a generator is called by ``predict``, where DDP's hooks on ``forward`` would not fire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from reelign.distributed import average_gradients, require_synchronised, start_alike
from reelign.errors import ConfigError
from reelign.objectives import clip_gradients, require_finite, update_average
from reelign.sharding import laid_out

if TYPE_CHECKING:
    from typing_extensions import Unpack

OptimiserName = Literal["adamw", "adamw8bit"]


class AdamW(TypedDict, total=False):
    """Settings of AdamW: ``weight_decay`` (0), ``betas`` (0.9, 0.999), and whose ``optimiser`` it is (``adamw``).

    ``adamw8bit`` keeps the two moments of every parameter of 4096 numbers or more in 8 bits, in blocks of 256 that
    have a scale each (Dettmers et al. 2022, 8-bit optimizers).
    """

    weight_decay: float
    betas: tuple[float, float]
    optimiser: OptimiserName


class Optimisation:
    """AdamW on some parameters, with a joint limit on the gradient and a moving average of the weights.

    Args:
        parameters: what is trained, by name.
        lr: of AdamW.
        max_grad_norm: gradients are scaled down to this joint norm.
        average: decay of the moving average; 0 is off.
        average_from: updates before it begins; until then it is the weights themselves.
        adamw: further settings of AdamW.

    Raises:
        ConfigError: ``adamw8bit``, and bitsandbytes is not installed.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        lr: float,
        *,
        max_grad_norm: float = 1.0,
        average: float = 0.0,
        average_from: int = 0,
        **adamw: Unpack[AdamW],
    ) -> None:
        start_alike(parameters)
        self.parameters = parameters
        self.max_grad_norm = max_grad_norm
        self.decay = average
        self.average_from = average_from
        self.updates = 0
        self.optimiser = build_optimiser(parameters, lr, adamw)
        self.average = {n: p.detach().clone() for n, p in parameters.items()} if average else {}

    def clear(self) -> None:
        """Forget the gradients."""
        self.optimiser.zero_grad(set_to_none=True)

    def step(self) -> float:
        """One update from the gradients that are there, of all processes; returns their joint norm before clipping.

        Raises:
            NonFiniteError: a gradient is NaN or infinite; names the first such parameter.
        """
        average_gradients(self.parameters)
        if self.updates == 0:
            require_synchronised(self.parameters)
        norm = clip_gradients(self.parameters, self.max_grad_norm)
        self.optimiser.step()
        self.updates += 1
        if self.average:
            decay = self.decay if self.updates > self.average_from else 0.0
            update_average(self.average.values(), self.parameters.values(), decay)
        return norm

    def update(self, loss: Callable[[slice], Tensor], rows: int, micro_batch: int = 0) -> dict[str, float]:
        """One update from the mean loss of a batch, part by part; returns ``loss`` and ``gradient_norm``.

        Args:
            loss: of some rows, a mean over them.
            rows: of the batch.
            micro_batch: rows at a time; 0 is all.

        Raises:
            NonFiniteError: a loss or a gradient is NaN or infinite.
        """
        self.clear()
        size, total = micro_batch or rows, 0.0
        for start in range(0, rows, size):
            part = slice(start, min(start + size, rows))
            value = (part.stop - start) / rows * loss(part)
            require_finite("the loss", value)
            value.backward()  # type: ignore[no-untyped-call]
            total += value.item()
        return {"loss": total, "gradient_norm": self.step()}

    def lower_rate(self, factor: float) -> None:
        """Multiply the learning rate, for good."""
        for group in self.optimiser.param_groups:
            group["lr"] *= factor

    @contextmanager
    def exported(self) -> Iterator[None]:
        """Inside, the parameters hold the averaged weights, where there are any."""
        trained = {name: p.detach().clone() for name, p in self.parameters.items()} if self.average else {}
        copy_into(self.parameters, self.average)
        try:
            yield
        finally:
            copy_into(self.parameters, trained)

    def state(self) -> dict[str, Any]:
        """Weights, their average and the optimiser's state."""
        return {
            "weights": {name: p.detach() for name, p in self.parameters.items()},
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "optimiser_updates": self.updates,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue, bit for bit, from what ``state`` gave."""
        copy_into(self.parameters, state["weights"])
        average: Mapping[str, Tensor] = state["average"]
        self.average = {name: laid_out(value, self.parameters[name]).clone() for name, value in average.items()}
        self.optimiser.load_state_dict(self._laid_out(state["optimiser"]))
        self.updates = int(state["optimiser_updates"])

    def _laid_out(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """An optimiser's state whose moments are in parts where their parameter is."""
        parameters, moments = list(self.parameters.values()), dict[int, dict[str, Any]]()
        for number, values in state["state"].items():
            like = parameters[number]
            alike = {name for name, value in values.items() if getattr(value, "shape", None) == like.shape}
            moments[number] = {n: laid_out(v, like) if n in alike else v for n, v in values.items()}
        return {**state, "state": moments}


def build_optimiser(parameters: Mapping[str, nn.Parameter], lr: float, adamw: AdamW) -> torch.optim.Optimizer:
    """AdamW on some parameters.

    Raises:
        ConfigError: ``adamw8bit``, and bitsandbytes is not installed, or parameters are kept in parts.
    """
    if adamw.get("optimiser") == "adamw8bit" and any(isinstance(p, DTensor) for p in parameters.values()):
        raise ConfigError("with FSDP, train_all goes with optimiser adamw, whose moments are cut too; got adamw8bit")
    decay, betas = adamw.get("weight_decay", 0.0), adamw.get("betas", (0.9, 0.999))
    if adamw.get("optimiser", "adamw") == "adamw":
        return torch.optim.AdamW(parameters.values(), lr, betas=betas, weight_decay=decay)
    make = bitsandbytes("optimiser: adamw8bit").optim.AdamW8bit
    return cast(torch.optim.Optimizer, make(list(parameters.values()), lr=lr, betas=betas, weight_decay=decay))


def bitsandbytes(wanted: str) -> ModuleType:
    """The library of that name.

    Args:
        wanted: the option that asks for it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import bitsandbytes as library
    except ImportError as error:
        raise ConfigError(
            f"{wanted} needs bitsandbytes, which is not installed: pip install 'reelign[bitsandbytes]'"
        ) from error
    module: ModuleType = library
    return module


@torch.no_grad()
def copy_into(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Overwrite parameters by name."""
    for name, value in values.items():
        parameters[name].copy_(laid_out(value, parameters[name]))
