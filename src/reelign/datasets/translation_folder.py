"""Drawn domains as files: unpaired clips in ``x/`` and ``y/``, and known translations in ``pairs/``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from reelign.datasets.translation import SIDES, Domains
from reelign.errors import DataError, RunFolderError
from reelign.video_io import write_clip


def write_domains(out: Path, domains: Domains, clips: int, pairs: int, seed: int) -> Iterator[int]:
    """Write ``clips`` clips of each domain, then ``pairs`` pairs; yields the count of files so far.

    Clips of the two domains show different scenes, and pairs others again; ``pairs/x`` and ``pairs/y`` hold files of
    the same names.

    Raises:
        DataError: pairs are asked for and these domains have none.
        RunFolderError: the folder is not empty or cannot be written.
    """
    if pairs and not domains.has_pairs:
        raise DataError("no pairing of these domains is known: draw both with one motion, or ask for 0 pairs")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"clips go to a new or empty folder; {out} is neither")
    random, done = torch.Generator().manual_seed(seed), 0
    for index in range(clips):
        for side in SIDES:
            write_clip(out / side / f"{index:05d}.mp4", domains.batch(side, 1, random)[0], domains.fps)
            done += 1
            yield done
    for index in range(pairs):
        for side, video in zip(SIDES, domains.pair(1, random), strict=True):
            write_clip(out / "pairs" / side / f"{index:05d}.mp4", video[0], domains.fps)
            done += 1
            yield done
