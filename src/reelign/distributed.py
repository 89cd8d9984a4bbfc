"""The only file that knows Accelerate: experiment trackers now, ranks and wrapping when several processes come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn

from reelign.errors import ConfigError, ContractError

SYNCHRONISED = 1e-3  # relative difference of gradient norms that round-off may cause
TRACKERS = ("tensorboard", "trackio", "wandb")


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
            self._accelerator.end_training()


def require_synchronised(parameters: Mapping[str, nn.Parameter]) -> None:
    """After a backward pass: every process holds the same gradients. Nothing to do in a single process.

    Raises:
        ContractError: the processes differ; each would train a model of its own.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    norms = torch.stack([p.grad.double().norm() for p in parameters.values() if p.grad is not None])
    gathered = [torch.empty_like(norms) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, norms)
    spread = torch.stack(gathered)
    worst = float(((spread.amax(0) - spread.amin(0)) / spread.amax(0).clamp_min(1e-12)).max())
    if worst > SYNCHRONISED:
        raise ContractError(
            f"all processes hold the same gradients; their norms differ by {worst:.0%}: call the wrapped model, not "
            "its .module, so that gradients are averaged"
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``section.key`` to plain values, which every tracker accepts."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
