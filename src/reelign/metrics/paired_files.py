"""PSNR and SSIM between two folders whose clips pair up by file name: a reconstruction and its original.

Names pair up without their extension, sub-folders included. Frames are aligned by index (``full_reference``), so clips
of another length or size are a row with the reason, as are clips without a partner and clips that cannot be read. Means
are over the clips that have a value; how many have none is stated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from reelign.errors import DataError
from reelign.metrics.clip import Undefined
from reelign.metrics.full_reference import compare
from reelign.metrics.statistics import RESAMPLES, bootstrap_interval
from reelign.video_decode import FrameStream

VALUES = ("psnr_frame_mean", "psnr_pooled", "ssim")


@dataclass(frozen=True)
class FileMean:
    """A value over all pairs.

    Args:
        name: of ``VALUES``.
        value: mean over the clips that have one.
        low, high: its 95 % bootstrap interval over clips; NaN where there is only one.
        clips: that have a value.
        without: pairs that have none, for one reason or another.
    """

    name: str
    value: float
    low: float
    high: float
    clips: int
    without: int


def compare_files(
    reference: Mapping[str, Path], clips: Mapping[str, Path], progress: Callable[[int, int], None] | None = None
) -> pd.DataFrame:
    """One row a name on either side: ``file``, ``VALUES`` (NaN where there is none), ``reason``.

    Args:
        reference, clips: name to file.
        progress: called with names done and names in all.

    Raises:
        DataError: two clips of a side have one name, or no name is on both sides.
    """
    left, right = _by_stem(reference, "reference"), _by_stem(clips, "clips")
    if not set(left) & set(right):
        raise DataError(
            f"paired clips have the same file names; {next(iter(left))!r} and its like are on one side only"
        )
    names = sorted(set(left) | set(right))
    rows = []
    for done, name in enumerate(names, 1):
        rows.append({"file": name, **_compare(left.get(name), right.get(name))})
        if progress:
            progress(done, len(names))
    return pd.DataFrame(rows, columns=["file", *VALUES, "reason"])


def file_means(table: pd.DataFrame, seed: int = 0) -> list[FileMean]:
    """The mean of every value that a clip has."""
    means = []
    for name in VALUES:
        values = table[name].dropna().to_numpy(float)
        if not len(values):
            continue
        low, high = bootstrap_interval(values, RESAMPLES, 0.95, seed) if len(values) > 1 else (np.nan, np.nan)
        means.append(FileMean(name, float(values.mean()), low, high, len(values), len(table) - len(values)))
    return means


def _by_stem(files: Mapping[str, Path], side: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, path in files.items():
        stem = PurePosixPath(name).with_suffix("").as_posix()
        if stem in found:
            raise DataError(f"clips pair up by name without extension; {side} have two {stem!r}: rename one")
        found[stem] = path
    return found


def _compare(reference: Path | None, clip: Path | None) -> dict[str, float | str]:
    nothing: dict[str, float | str] = dict.fromkeys(VALUES, np.nan)
    if reference is None or clip is None:
        return {**nothing, "reason": f"not among the {'reference' if reference is None else 'clips'}"}
    streams = FrameStream(reference, eight_bits=True), FrameStream(clip, eight_bits=True)
    try:
        found = compare(*streams)  # type: ignore[arg-type]  # eight bits are uint8
        for stream in streams:
            stream.check()
    except DataError as error:
        return {**nothing, "reason": " ".join(str(error).split())}
    reasons = dict.fromkeys(str(value) for value in found.values() if isinstance(value, Undefined))
    values = {name: np.nan if isinstance(value, Undefined) else value for name, value in found.items()}
    return {**values, "reason": "; ".join(reasons)}
