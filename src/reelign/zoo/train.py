"""``reelign zoo train``: make a checkpoint from nothing, measure it, write it with its card."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from reelign.errors import RunFolderError, UnknownNameError
from reelign.zoo.models import ZOO, packaged_folder

log = logging.getLogger(__name__)


def make_folder(name: str, out: Path | None = None) -> Path:
    """The folder that ``zoo:name`` is written to, made and writable.

    Args:
        out: None is the package's own.

    Raises:
        UnknownNameError: no such checkpoint.
        RunFolderError: the folder cannot be written.
    """
    if name not in ZOO:
        raise UnknownNameError("zoo checkpoint", name, ZOO)
    folder = out or packaged_folder(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"the folder {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise RunFolderError(f"the folder {folder} cannot be written")
    return folder


def train_zoo(name: str, out: Path | None = None, scale: float = 1.0) -> Path:
    """Train ``zoo:name`` with ``scale`` times the shipped number of steps; returns the folder it was written to.

    The causal student is not made here but by runs; see ``reelign.distillation``.

    Raises:
        UnknownNameError, RunFolderError: as ``make_folder``.
    """
    folder = make_folder(name, out)
    trainers: dict[str, Callable[[Path, float], None]] = {
        "tiny-wan": _tiny_wan,
        "tiny-clip": _tiny_clip,
        "tiny-videomae": _tiny_videomae,
    }
    trainers[name](folder, scale)
    return folder


def _tiny_wan(folder: Path, scale: float) -> None:
    from reelign.zoo.tiny_wan import CLIPS, save_pipeline, train_transformer
    from reelign.zoo.tiny_wan_card import write_card
    from reelign.zoo.tiny_wan_vae import train_vae

    kept = folder / ".vae"  # the first half of the work; an interrupted training goes on from here
    if (kept / "config.json").exists():
        vae = AutoencoderKLWan.from_pretrained(kept).eval().requires_grad_(False)
    else:
        vae = train_vae(scale)
        vae.save_pretrained(kept)
    clips = max(32, 32 * round(CLIPS / 32 * min(1.0, scale)))
    transformer, encoder, tokenizer = train_transformer(vae, scale, clips=clips)
    save_pipeline(folder, vae, transformer, encoder, tokenizer)
    for file in kept.iterdir():
        file.unlink()
    kept.rmdir()
    write_card(folder)


def _tiny_clip(folder: Path, scale: float) -> None:
    from reelign.zoo import tiny_clip

    torch.manual_seed(0)
    tiny_clip.make(folder, scale)


def _tiny_videomae(folder: Path, scale: float) -> None:
    from reelign.zoo import tiny_videomae

    torch.manual_seed(0)
    tiny_videomae.make(folder, scale)
