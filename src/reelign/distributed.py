"""The only file that knows Accelerate: experiment trackers now, ranks and wrapping when several processes come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from reelign.errors import ConfigError

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


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``section.key`` to plain values, which every tracker accepts."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
