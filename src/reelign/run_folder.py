"""What a run leaves on disk, and in which file.

config.yaml  environment.json  metrics.jsonl  status.json    plan.json (on a GPU)
samples/step_000000/0000.mp4 …, scores.csv    checkpoints/step_000010/ (adapter, state)
prompt_sets/NAME/samples/…                    (further prompt sets, where there are any)
summary.json  report.html                     (written by ``reelign report``)
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from reelign import __version__, checkpoint
from reelign.distributed import count, shards
from reelign.errors import RunFolderError
from reelign.sharding import whole

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "av")


class RunFolder:
    """The one writer of a run's files.

    Args:
        path: the folder; made on ``create``.
        writes: whether this process does; others of the same run leave the folder to it.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self.checkpoints = path / "checkpoints"

    def check(self, resume: bool) -> None:
        """See, without touching anything, whether ``create`` will succeed: models take long to load.

        Raises:
            RunFolderError: it holds a run and ``resume`` is false, it holds none and ``resume`` is true, or it cannot
                be written.
        """
        if not self.writes:
            return
        exists = (self.path / "config.yaml").exists()
        if exists and not resume:
            raise RunFolderError(f"{self.path} already holds a run: add --resume, or choose another output")
        if resume and not exists:
            raise RunFolderError(f"{self.path} holds no run to resume: leave out --resume")
        nearest = next(p for p in (self.path.absolute(), *self.path.absolute().parents) if p.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise RunFolderError(f"the output folder {self.path} cannot be written: see {nearest}")

    def create(self) -> None:
        """Make the folder.

        Raises:
            RunFolderError: it cannot be written.
        """
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise RunFolderError(f"the output folder {self.path} cannot be written: {error.strerror}") from error

    def samples(self, step: int, prompt_set: str | None = None) -> Path:
        """The folder of the clips of one step, of the held-out prompts or of another set."""
        root = self.path if prompt_set is None else self.path / "prompt_sets" / prompt_set
        return root / "samples" / f"step_{step:06d}"

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint of one step."""
        return self.checkpoints / f"step_{step:06d}"

    def save(self, place: Path, parts: dict[str, Any], write_more: Callable[[Path], None]) -> None:
        """Write a checkpoint (see ``checkpoint.save``); processes that keep weights in parts put them together."""
        joined = whole(parts) if shards() else parts
        if self.writes:
            checkpoint.save(place, joined, write_more)
        elif shards():
            write_more(place)  # takes part, and writes nothing

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole or not at all."""
        if not self.writes:
            return
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file whole or not at all."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def log(self, values: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``."""
        if not self.writes:
            return
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Every whole line of ``metrics.jsonl``; a last line cut off by a kill is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1] if line]

    def forget_after(self, step: int) -> None:
        """Drop logged lines of later steps, which a resumed run will make again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))


def environment(device: str) -> dict[str, Any]:
    """What the run ran on: versions, processor, device."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "reelign": __version__,
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "processes": count(),
        "device": gpu or device,
        "command": " ".join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv)),
    }
