"""What the package knows about model checkpoints: where they are, how to load them whole, what they expect to see.

A model is named by ``zoo:NAME`` (ships with the package), by a folder, or by a hub id ``owner/name``. A checkpoint that
leaves any weight at its random start is refused: a reward with a random head still returns plausible numbers.

Left out: revisions and subfolders of hub ids; download them first and name the folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reelign.errors import DataError, ModelError, UnknownNameError
from reelign.zoo.skeletons import hollow, open_component

ZOO = ("tiny-wan", "tiny-clip", "tiny-videomae", "tiny-causal-wan")
PREFIX = "zoo:"
MEASURED_FILE = "measured.json"
LONGEST_PATH = 250  # characters; asking the system about a longer one is an error
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".onnx")
WEIGHTS = Path(__file__).parent / "weights"
# Where transformers writes how pixels are prepared, oldest layout first; the last one nests it.
PREPROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


def packaged_folder(name: str) -> Path:
    """The folder of a zoo checkpoint, whether or not it has been trained yet; ``name`` has no ``zoo:``.

    Raises:
        UnknownNameError: no zoo model has this name.
    """
    if name not in ZOO:
        raise UnknownNameError("zoo model", PREFIX + name, [PREFIX + known for known in ZOO])
    return WEIGHTS / name


def fingerprint(model: str) -> str:
    """A short mark of a model's weight files: 16 hexadecimal digits over their names, sizes, first and last 64 KiB.

    Other weights give another mark, unless they differ only in the middle of large files. Empty for what is not a file
    or folder here, for example a hub id or a sentence.

    Args:
        model: ``zoo:NAME``, a file or a folder.
    """
    if len(model) > LONGEST_PATH:
        return ""
    place = packaged_folder(model.removeprefix(PREFIX)) if model.startswith(PREFIX) else Path(model).expanduser()
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.suffix in WEIGHT_SUFFIXES)
    mark = hashlib.sha256()
    for path in files:
        mark.update(f"{path.name} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            mark.update(file.read(1 << 16))
            file.seek(-min(1 << 16, path.stat().st_size), 2)
            mark.update(file.read())
    return mark.hexdigest()[:16] if files else ""


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a model in the layout of diffusers or transformers, or a part of one with its base."""
    return any((folder / name).is_file() for name in ("model_index.json", "config.json", "reelign.json"))


@dataclass(frozen=True)
class ZooEntry:
    """One checkpoint that ships with the package.

    Args:
        name: without ``zoo:``.
        megabytes: on disk, in units of 10⁶ bytes; 0 where it has not been trained.
        measured: what was measured after training, in words, or how to get the checkpoint.
    """

    name: str
    megabytes: float
    measured: str


def inventory() -> list[ZooEntry]:
    """Every zoo checkpoint, trained or not."""
    entries = []
    for name in ZOO:
        folder = packaged_folder(name)
        if not is_checkpoint(folder):
            entries.append(ZooEntry(name, 0.0, f"not there; `reelign zoo train {name}`"))
            continue
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
        numbers = folder / MEASURED_FILE
        measured = json.loads(numbers.read_text(encoding="utf-8")) if numbers.is_file() else {}
        words = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in measured.items())
        entries.append(ZooEntry(name, size, words or "see its README.md"))
    return entries


def write_measured(folder: Path, measured: Mapping[str, float], readme: str) -> None:
    """Write what was measured beside a checkpoint: ``measured.json`` for ``inventory``, ``README.md`` for people."""
    rounded = {name: round(value, 4) for name, value in measured.items()}
    (folder / MEASURED_FILE).write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(readme, encoding="utf-8")


def resolve_model(name: str) -> str:
    """Where a checkpoint is: a local folder, or a hub id returned unchanged.

    Raises:
        UnknownNameError: an unknown ``zoo:`` name.
        ModelError: a folder that does not exist, a zoo model that is not there, or neither a folder nor a hub id.
    """
    if name.startswith(PREFIX):
        folder = packaged_folder(name.removeprefix(PREFIX))
        if not is_checkpoint(folder):
            raise ModelError(f"{name} is not in {folder}: train it with `reelign zoo train {folder.name}`")
        return str(folder)
    path = Path(name).expanduser()
    if path.exists():
        return str(path)
    if name.startswith((".", "/", "~")) or path.is_absolute() or name.count("/") > 1:
        raise ModelError(f"no model folder at {name}: give an existing folder, zoo:NAME or a hub id owner/name")
    if not _HUB_ID.match(name):
        hint = f"; did you mean 'zoo:{name}'?" if name in ZOO else ""
        raise ModelError(f"a model is a folder, zoo:NAME or a hub id owner/name; got {name!r}{hint}")
    return name


def load_whole(architecture: Any, name: str) -> Any:
    """Load a transformers checkpoint in float32, frozen and in evaluation mode, with every weight from the file.

    Args:
        architecture: a transformers model class, for example ``CLIPModel``.
        name: anything ``resolve_model`` takes.

    Raises:
        ModelError: the checkpoint cannot be read, or lacks weights that the architecture has.
    """
    place, wanted = resolve_model(name), architecture.__name__
    try:
        if hollow():
            return open_component(architecture, place).eval().requires_grad_(False)
        model, info = architecture.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"cannot load {name} as {wanted}: {reason}") from error
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ModelError(
            f"every weight of {wanted} must come from the checkpoint; {name} lacks {len(missing)} ({shown}), "
            f"which would stay random: choose a checkpoint of {wanted}"
        )
    return model.eval().requires_grad_(False)


def read_preprocessor(name: str) -> dict[str, Any]:
    """How a checkpoint wants its pixels: its image or video processor configuration, empty where it has none."""
    place = resolve_model(name)
    for filename in PREPROCESSORS:
        file = _companion_file(place, filename)
        if file is None:
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        nested: dict[str, Any] = content.get("image_processor", content.get("video_processor", content))
        return nested
    return {}


def _companion_file(place: str, filename: str) -> Path | None:
    """A small file next to a checkpoint, fetched where the checkpoint is on the hub; None where there is none."""
    if Path(place).exists():
        file = Path(place) / filename
        return file if file.is_file() else None
    from transformers.utils import cached_file  # kept here: this module also serves code that needs no transformers

    found = cached_file(place, filename, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def even_indices(frames: int, wanted: int) -> list[int]:
    """``wanted`` indices spread evenly over ``frames``, ends included: round(i·(T − 1)/(n − 1)), halves up.

    Fewer frames than wanted repeat some, as the official VideoMAE samplers do; one wanted frame is the middle one.
    """
    if frames < 1 or wanted < 1:
        raise DataError(f"choosing frames needs at least one of each; got {wanted} of {frames}")
    if wanted == 1:
        return [(frames - 1) // 2]
    return [(2 * i * (frames - 1) + wanted - 1) // (2 * (wanted - 1)) for i in range(wanted)]


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x − mean)/std for each colour of [...,3,H,W] in [0,1]; mean and std are in units of that range."""
    centre, spread = (torch.tensor(v, dtype=pixels.dtype, device=pixels.device)[:, None, None] for v in (mean, std))
    return (pixels - centre) / spread
