"""The names of Wan's weights in the official releases (Wan 2.1, CausVid, Self-Forcing), to and from diffusers' names.

``read_weights`` reads what is released or was trained elsewhere; ``write_official`` writes what that code reads.

Left out: image-to-video weights.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reelign.errors import ModelError

# official -> diffusers, matched at the beginning of a name or of what follows ``blocks.N.``
OUTSIDE = {
    "text_embedding.0.": "condition_embedder.text_embedder.linear_1.",
    "text_embedding.2.": "condition_embedder.text_embedder.linear_2.",
    "time_embedding.0.": "condition_embedder.time_embedder.linear_1.",
    "time_embedding.2.": "condition_embedder.time_embedder.linear_2.",
    "time_projection.1.": "condition_embedder.time_proj.",
    "head.modulation": "scale_shift_table",
    "head.head.": "proj_out.",
    "patch_embedding.": "patch_embedding.",
}
INSIDE = {
    "modulation": "scale_shift_table",
    "norm3.": "norm2.",
    "ffn.0.": "ffn.net.0.proj.",
    "ffn.2.": "ffn.net.2.",
    **{
        f"{theirs}.{a}.": f"{ours}.{b}."
        for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for a, b in (
            ("q", "to_q"),
            ("k", "to_k"),
            ("v", "to_v"),
            ("o", "to_out.0"),
            ("norm_q", "norm_q"),
            ("norm_k", "norm_k"),
        )
    },
}
BLOCK = re.compile(r"^blocks\.\d+\.")
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.", "module.")
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
PARTS = ("generator_ema", "generator", "model")  # of a training checkpoint, the averaged weights first


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names to diffusers' names.

    Raises:
        ModelError: a name that is not of a text-to-video Wan transformer.
    """
    return {_renamed(name, OUTSIDE, INSIDE): value for name, value in state.items()}


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Diffusers' names to official names; raises as ``to_diffusers``."""
    outside, inside = ({new: old for old, new in table.items()} for table in (OUTSIDE, INSIDE))
    return {_renamed(name, outside, inside): value for name, value in state.items()}


def _renamed(name: str, outside: Mapping[str, str], inside: Mapping[str, str]) -> str:
    block = BLOCK.match(name)
    prefix, table = (block.group(), inside) if block else ("", outside)
    rest = name.removeprefix(prefix)
    for old, new in table.items():
        if rest == old or (old.endswith(".") and rest.startswith(old)):
            return prefix + new + rest.removeprefix(old)
    raise ModelError(f"weight {name!r} is not of a text-to-video Wan transformer")


def read_weights(source: str) -> dict[str, Tensor]:
    """As ``read_transformer``, from a file, or from a folder in diffusers' layout with one file or several.

    Raises:
        ModelError: there is no such file, or it is not of that kind.
    """
    place = Path(source).expanduser()
    index = place / INDEX
    files = [place / WEIGHTS if place.is_dir() else place]
    if index.is_file():
        files = [place / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    for file in files:
        if not file.is_file():
            raise ModelError(f"weights are a file, or a folder with {WEIGHTS}; there is no {file}")
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(read_transformer(file))
    return state


def write_official(state: Mapping[str, Tensor], file: Path) -> None:
    """Write weights under diffusers' names in the official layout.

    Args:
        file: ``.safetensors``, bare names as Wan 2.1 is released; or ``.pt``, as ``generator`` and with ``model.``, as
            Self-Forcing and CausVid are.

    Raises:
        ModelError: another ending, or a name that is not of a text-to-video Wan transformer.
    """
    official = {name: value.detach().cpu().contiguous() for name, value in to_official(state).items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        save_file(official, file)
    elif file.suffix == ".pt":
        torch.save({"generator": {f"model.{name}": value for name, value in official.items()}}, file)
    else:
        raise ModelError(f"official weights are written to .pt or .safetensors; got {file.name}")


def read_transformer(file: Path, part: str | None = None) -> dict[str, Tensor]:
    """The weights of a Wan transformer under diffusers' names, from a released or trained checkpoint.

    Args:
        file: ``.safetensors``, or ``.pt`` read without running code; names official or diffusers', with or without
            ``model.`` and the prefixes that wrapping leaves.
        part: of a training checkpoint, for example ``generator``; None prefers the averaged ``generator_ema``.

    Raises:
        ModelError: not such a file, or no such part.
    """
    try:
        loaded: Any = load_file(file) if file.suffix == ".safetensors" else _load_pt(file)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ModelError(f"cannot read weights from {file}: {' '.join(str(error).split())[:200]}") from error
    state = _part_of(loaded, part, file)
    if odd := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ModelError(f"{odd[0]!r} in {file} is {type(state[odd[0]]).__name__}, not a tensor: keep only its weights")
    plain = {_unwrapped(name): value for name, value in state.items()}
    official = any(name.startswith(("text_embedding.", "head.")) for name in plain)
    return to_diffusers(plain) if official else plain


def _load_pt(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ModelError(f"{file} holds more than weights, which would run as code: keep only its tensors") from error


def _part_of(loaded: Any, part: str | None, file: Path) -> Mapping[str, Tensor]:
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{file} holds {type(loaded).__name__}, not named weights")
    parts = [name for name, value in loaded.items() if isinstance(value, Mapping)]
    if not parts and part is None:
        return loaded
    chosen = part or next((name for name in PARTS if name in parts), None)
    if chosen not in parts:
        raise ModelError(f"{file} has no part {chosen or PARTS[0]!r}; it has {', '.join(parts) or 'weights alone'}")
    return loaded[chosen]  # type: ignore[no-any-return]


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removeprefix("model.")
