"""Published weight files: find them, read them without running code, and put every one of them where it belongs.

A file is named by a local path, or by ``owner/name:file`` on the hub, which is fetched only because it was named; a
folder by its path or by ``owner/name``.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from reelign.errors import ModelError
from reelign.zoo.models import resolve_model
from reelign.zoo.skeletons import current_fake, fake_zeros, hollow, settle

WEIGHT_FILES = ("*.json", "*.safetensors")


def find_file(name: str) -> Path:
    """The local file behind a path or behind ``owner/name:file`` on the hub.

    Raises:
        ModelError: there is none.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    repository, colon, file = name.partition(":")
    if not colon or repository.count("/") != 1:
        raise ModelError(f"no weight file at {name}: give an existing file, or owner/name:file on the hub")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"cannot fetch {name}: {' '.join(str(error).split())[:200]}") from error


def find_folder(name: str, files: Sequence[str]) -> Path:
    """The local folder behind a path or behind ``owner/name`` on the hub, of which only ``files`` are fetched.

    Args:
        files: patterns, for example ``checkpoint-*/*``.

    Raises:
        ModelError: there is none.
    """
    place = resolve_model(name)
    if Path(place).is_dir():
        return Path(place)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(place, allow_patterns=list(files)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(f"cannot fetch {name}: {' '.join(str(error).split())[:200]}") from error


def read_weights(name: str, float32: bool = True) -> dict[str, Tensor]:
    """Named tensors of a safetensors or torch file, on the CPU; unwraps a ``state_dict`` or ``model`` key.

    Args:
        float32: turn every tensor into it; otherwise as stored, which for the largest files saves half the memory.

    Raises:
        ModelError: the file is not there, or holds anything but tensors.
    """
    return _named(_content(name), name, float32)


def read_tensors(name: str) -> dict[str, Tensor] | list[Tensor]:
    """As ``read_weights``; a list of tensors stays one."""
    content = _content(name)
    if isinstance(content, list) and all(isinstance(value, Tensor) for value in content):
        return [value.detach().float() for value in content]
    return _named(content, name, float32=True)


def _content(name: str) -> Any:
    if hollow():
        raise ModelError(f"the weights in {name} say themselves how large they are, and none are read")
    file = find_file(name)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ModelError(f"cannot read the weights in {file}: {' '.join(str(error).split())[:200]}") from error


def _named(content: Any, file: str, float32: bool) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"a weight file maps names to tensors; {file} does not")
    return {name.removeprefix("module."): value.float() if float32 else value for name, value in content.items()}


def read_shapes(file: Path) -> dict[str, Tensor]:
    """Names and shapes of a weight file that is here, as tensors without memory; inside ``without_weights`` only."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            return {name: fake_zeros(*opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    with current_fake():
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    weights: dict[str, Tensor] = content.get("state_dict", content)
    return weights


def read_folder(name: str) -> dict[str, Tensor]:
    """As ``read_weights``, as stored, of every safetensors file of a folder or of ``owner/name`` on the hub.

    Inside ``without_weights`` names and shapes, as ``read_shapes``.

    Raises:
        ModelError: there is none.
    """
    folder = find_folder(name, WEIGHT_FILES)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"weights are in .safetensors files; there is none in {folder}")
    read = read_shapes if hollow() else lambda file: read_weights(str(file), float32=False)
    return {key: value for file in files for key, value in read(file).items()}


def fill(model: nn.Module, weights: Mapping[str, Tensor], source: str, ignore: tuple[str, ...] = ()) -> None:
    """Load every weight of ``model`` from ``weights``, then freeze it in evaluation mode.

    Args:
        ignore: beginnings of names in the file that are known to have no place in the model.

    Raises:
        ModelError: a weight is missing, left over, or of another shape: a network in part random still gives
            plausible numbers.
    """
    weights = {name: value for name, value in weights.items() if not name.startswith(ignore)} if ignore else weights
    own = model.state_dict()
    missing, left = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    odd = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if missing or left or odd:
        found = (("lacks", missing), ("has no place for", left), ("has other shapes for", odd))
        said = "; ".join(f"{verb} {len(names)} ({', '.join(names[:2])}, …)" for verb, names in found if names)
        raise ModelError(f"{source} does not fit {type(model).__name__}: it {said}")
    if hollow():
        settle(model, current_fake())
    else:
        model.load_state_dict(dict(weights))
    model.eval().requires_grad_(False)


def depth(weights: Mapping[str, Tensor], before: str) -> int:
    """How many numbered blocks ``before``0, ``before``1, … a state dict holds."""
    numbers = {name.removeprefix(before).split(".")[0] for name in weights if name.startswith(before)}
    return len(numbers)
