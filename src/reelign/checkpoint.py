"""Checkpoints: named parts to disk, whole or not at all, and back bit for bit.

A checkpoint is a folder written under a temporary name, flushed, and renamed. ``manifest.json`` in it lists every file
with its size and SHA-256; a folder whose manifest is missing or does not match is torn, and is skipped with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from reelign.errors import RunFolderError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "state.pt"


def save(folder: Path, parts: dict[str, Any], write_more: Callable[[Path], None] | None = None) -> Path:
    """Write ``parts`` (what ``torch.load(weights_only=True)`` reads) to ``folder``, atomically.

    Args:
        folder: its final name; replaced if it exists.
        write_more: writes further files (the adapter) into the temporary folder before it is sealed.

    Raises:
        RunFolderError: the disk refuses.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        torch.save(parts, temporary / STATE)
        if write_more is not None:
            write_more(temporary)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(temporary)): [p.stat().st_size, digest(p)] for p in files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in (*files, temporary / MANIFEST):
            _flush(path)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunFolderError(f"the checkpoint {folder} could not be written: {error.strerror or error}") from error
    return folder


def load(folder: Path) -> dict[str, Any]:
    """Read the parts of a whole checkpoint.

    Raises:
        RunFolderError: it is missing or torn.
    """
    problem = torn(folder)
    if problem:
        raise RunFolderError(f"the checkpoint {folder} is not whole: {problem}")
    parts: dict[str, Any] = torch.load(folder / STATE, weights_only=True)
    return parts


def torn(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, or None where it is whole."""
    if not (folder / MANIFEST).is_file():
        return f"{MANIFEST} is missing"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except ValueError:
        return f"{MANIFEST} is cut off"
    for name, (size, sha256) in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size or digest(path) != sha256:
            return f"{name} is not what was written"
    return None


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint among ``step_*`` in ``folder``; torn ones are named in the log and skipped."""
    for candidate in sorted(folder.glob("step_*"), reverse=True):
        problem = torn(candidate)
        if problem is None:
            return candidate
        log.warning("skipping the torn checkpoint %s: %s", candidate, problem)
    return None


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return sha256.hexdigest()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
