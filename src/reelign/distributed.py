"""The only file that knows of several processes: which rows are whose, what is averaged, gathered and agreed on.

``torchrun`` and ``accelerate launch`` start the processes; ``processes`` joins them. All draw the same random numbers
for the whole update and each takes its rows, so an update is the same in any number of processes. In a single process
every function here gives back what it was given.

Before anything is exchanged, processes tell one another whether they are well (``_meet``), so an error in one ends all
of them instead of leaving the others waiting. A process that is killed breaks the connection, or the launcher ends the
others.

Where accelerate is told to shard (FSDP2), networks are kept in parts; how is in ``sharding``. Passes then exchange
weights, so all processes make as many, and one that fails cannot speak while others wait for its weights: it leaves its
reason in the launcher's store, where they look when the connection breaks.

Left out: DeepSpeed, and whole gradients that are sent while the backward pass is running.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

from reelign.errors import ConfigError, ContractError, ProcessError, ReelignError
from reelign.launch import asked_for_parts, choose_gpu

SYNCHRONISED = 1e-3  # relative difference of gradient norms that round-off may cause
TRACKERS = ("tensorboard", "trackio", "wandb")
TIMEOUT = timedelta(minutes=30)  # a process may wait so long for the others: for the first one's files, at most
BUCKET = 1 << 24  # numbers sent at once
REASON = "reelign/why_one_ended"

_stores: list[Any] = []  # the launcher's, while networks are kept in parts

Value = TypeVar("Value")
Item = TypeVar("Item")


def count() -> int:
    """How many processes this run has."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def leads() -> bool:
    """Whether this is the process that writes, logs and speaks."""
    return rank() == 0


def shards() -> bool:
    """Whether this run keeps its networks in parts."""
    return bool(_stores)


@contextmanager
def processes(timeout: timedelta = TIMEOUT) -> Iterator[None]:
    """Join the processes that a launcher started, one a GPU where there are any; inside, they are one run.

    An error in one ends all. The first process raises it, or a ``ProcessError`` that names it; others end quietly
    where it is the user's to mend.

    Raises:
        ConfigError: more processes than GPUs, or a launcher told to wrap networks in a way that is not supported.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    in_parts = asked_for_parts()
    choose_gpu()
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"  # they agree on the CPU
    store, number, total = next(rendezvous("env://", timeout=timeout))
    dist.init_process_group(backend, store=store, rank=number, world_size=total, timeout=timeout)
    _stores[:] = [store] if in_parts else []
    if not leads():
        logging.getLogger("reelign").setLevel(logging.ERROR)
    try:
        with passes_together():
            yield
        _meet()
    except ProcessError:
        if leads():
            raise
        raise SystemExit(2) from None
    except ReelignError as error:
        _tell(error)
        if leads():
            raise
        raise SystemExit(2) from None
    except Exception as error:
        _tell(error)
        raise
    finally:
        _stores.clear()
        dist.destroy_process_group()


def _tell(error: Exception) -> None:
    """Let the others know why this process ends; those that are gone need not know."""
    problem = str(error) if isinstance(error, ReelignError) else f"{type(error).__name__}: {error}"
    try:
        if shards():
            _stores[0].set(REASON, f"process {rank() + 1} of {count()} failed: {problem}")
        else:
            _meet(problem)
    except (ProcessError, dist.DistError) as everyones:
        logging.getLogger(__name__).debug("%s", everyones)


def _meet(problem: str = "") -> None:
    """Wait for all processes, and see whether they are well.

    Args:
        problem: why this one is not.

    Raises:
        ProcessError: one is not, or is gone.
    """
    with _connected():
        bad = torch.tensor([bool(problem)], dtype=torch.int32)
        dist.all_reduce(bad)
        if not bad.item():
            return
        problems: list[Any] = [None] * count()
        dist.all_gather_object(problems, problem)
    first = next(number for number, text in enumerate(problems) if text)
    raise ProcessError(f"process {first + 1} of {count()} failed: {problems[first]}")


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessError(_why_one_is_gone(error)) from error


@contextmanager
def passes_together() -> Iterator[None]:
    """Inside, passes through networks kept in parts: a connection that breaks in one is a ``ProcessError``."""
    try:
        yield
    except RuntimeError as error:
        if shards() and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise ProcessError(_why_one_is_gone(error)) from error
        raise


def _why_one_is_gone(error: RuntimeError) -> str:
    with suppress(dist.DistError):  # the store may be gone too
        if shards() and _stores[0].check([REASON]):
            return str(_stores[0].get(REASON).decode())
    return (
        f"all processes of a run go on together; one is gone or silent ({str(error).splitlines()[0][:120]}): see "
        "what it wrote last, and go on with --resume"
    )


def share(total: int) -> slice:
    """Which rows of an update of ``total`` are this process's: as many for each, in order.

    Raises:
        ConfigError: it cannot be shared alike.
    """
    if total % count():
        raise ConfigError(
            f"each process takes as many of training.batch as the others: a multiple of {count()}; got {total}"
        )
    each = total // count()
    return slice(rank() * each, (rank() + 1) * each)


def place(rows: int) -> tuple[int, slice]:
    """Where the ``rows`` of this process are in the whole update: the number of all rows, and which are these."""
    return rows * count(), slice(rows * rank(), rows * (rank() + 1))


def start_alike(parameters: Mapping[str, nn.Parameter]) -> None:
    """Give every process the values that the first one holds; parts were cut from such."""
    if count() == 1:
        return
    _meet()
    with _connected(), torch.no_grad():
        for parameter in _held_whole(parameters).values():
            dist.broadcast(parameter.data, 0)


def _held_whole(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those that every process has; of the others FSDP2 averages the gradients as it cuts them into parts."""
    return {name: p for name, p in parameters.items() if not isinstance(p, DTensor)}


def average_gradients(parameters: Mapping[str, nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; one that none has stays absent."""
    if count() == 1:
        return
    _meet()
    parameters = _held_whole(parameters)
    with _connected(), torch.no_grad():
        there = torch.tensor([p.grad is not None for p in parameters.values()], dtype=torch.int32)
        dist.all_reduce(there, dist.ReduceOp.MAX)
        gradients = []
        for parameter, used in zip(parameters.values(), there.tolist(), strict=True):
            if used and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if used and parameter.grad is not None:
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            parts = torch.split(flat / count(), [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors of one type and device together, up to ``BUCKET`` numbers."""
    buckets: list[list[Tensor]] = []
    filled, kind = 0, None
    for tensor in sorted(tensors, key=lambda t: (str(t.dtype), str(t.device))):
        if not buckets or kind != (tensor.dtype, tensor.device) or filled + tensor.numel() > BUCKET:
            buckets.append([])
            filled, kind = 0, (tensor.dtype, tensor.device)
        buckets[-1].append(tensor)
        filled += tensor.numel()
    return buckets


def require_synchronised(parameters: Mapping[str, nn.Parameter]) -> None:
    """After a backward pass: every process holds the same gradients. Nothing to do in a single process.

    Raises:
        ContractError: the processes differ; each would train a model of its own.
    """
    if count() == 1:
        return
    present = [p.grad.double().norm() for p in _held_whole(parameters).values() if p.grad is not None]
    if not present:
        return
    norms = torch.stack(present)
    gathered = [torch.empty_like(norms) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, norms)
    spread = torch.stack(gathered)
    worst = float(((spread.amax(0) - spread.amin(0)) / spread.amax(0).clamp_min(1e-12)).max())
    if worst > SYNCHRONISED:
        raise ContractError(
            f"all processes hold the same gradients; their norms differ by {worst:.0%}: average them before "
            "the update (distributed.average_gradients), or call the DDP-wrapped model, not its .module"
        )


def mean(values: Mapping[str, float]) -> dict[str, float]:
    """What is logged, as one process would log it: means over the processes, each of which has as many rows."""
    if count() == 1:
        return dict(values)
    _meet()
    with _connected():
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(total)
    return dict(zip(values, (total / count()).tolist(), strict=True))


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if count() == 1:
        return number
    _meet()
    with _connected():
        found = torch.tensor([number])
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def gather(value: Value) -> list[Value]:
    """The processes' values, in order; they have to pickle."""
    if count() == 1:
        return [value]
    _meet()
    with _connected():
        values: list[Any] = [None] * count()
        dist.all_gather_object(values, value)
    return values


def from_first(make: Callable[[], Value]) -> Value:
    """What the first process makes, for all; the others do not call ``make``."""
    if count() == 1:
        return make()
    made = [make() if leads() else None]
    _meet()
    with _connected():
        dist.broadcast_object_list(made, 0)
    found: Any = made[0]
    return found  # type: ignore[no-any-return]


def spread(work: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
    """``work`` done on each item in one of the processes; every process gets all results, in the order of items."""
    mine = items[rank() :: count()]
    if shards() and len(mine) < -(-len(items) // count()):  # passes are made together: who is done repeats the last
        mine = [*mine, items[-1]]
    parts = gather([work(item) for item in mine])
    return [parts[i % count()][i // count()] for i in range(len(items))]


class Tracker:
    """Sends logged values to the trackers a run names; none by default.

    Args:
        names: of ``TRACKERS``.
        folder: where file-based trackers write.
        config: shown with the run.

    Raises:
        ConfigError: an unknown tracker, or its package is not installed.
    """

    def __init__(self, names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> None:
        unknown = [name for name in names if name not in TRACKERS]
        if unknown:
            raise ConfigError(f"trackers are {', '.join(TRACKERS)}; got {unknown[0]!r}")
        self._accelerator = Accelerator(log_with=list(names), project_dir=str(folder), cpu=True) if names else None
        if self._accelerator is None:
            return
        missing = set(names) - {str(getattr(t, "value", t)) for t in self._accelerator.log_with}
        if missing:
            name = sorted(missing)[0]
            raise ConfigError(f"the tracker {name!r} is not installed: pip install 'reelign[{name}]'")
        self._accelerator.init_trackers("reelign", config=_flat(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send values of one step."""
        if self._accelerator is not None:
            self._accelerator.log(dict(values), step=step)

    def close(self) -> None:
        """Flush and end."""
        if self._accelerator is not None:
            for tracker in self._accelerator.trackers:  # end_training would end the connection of processes too
                tracker.finish()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``section.key`` to plain values, which every tracker accepts."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
