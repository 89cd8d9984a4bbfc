r"""Quality along a clip: the same instruments, part by part, so that one sees where a long clip goes wrong.

A part is a second (``second_parts``), or the frames of a block of latents (``block_parts``). Of each part of each clip:

    sharpness      as ``picture_quality.sharpness``, mean over its frames
    motion_energy  mean |I_t − I_{t−1}| in grey levels a frame; the step into the part counts, the first frame has none
    colour, shape, motion   for moving shapes: share of its frames whose colour is the asked one; whether its frames
                   show the asked shape; whether what the prompt says moves, moves that way, and fast enough

``drift`` compares two parts of the same clips, with an interval.

Left out: motion of ``bouncing`` and ``turning`` clips, which only a whole clip shows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reelign.datasets.moving_shapes import ROTATIONS, TRANSLATIONS, ShapeSpec
from reelign.errors import DataError
from reelign.metrics.picture_quality import sharpness
from reelign.metrics.shapes_instrument import SYMMETRY, Tracks, interpret, nearest_colour, track
from reelign.metrics.statistics import RESAMPLES, Paired, bootstrap_interval, paired_delta

STEADY = (*TRANSLATIONS, "growing", "shrinking", *ROTATIONS)  # motions that every part of a clip shows
# Least change a frame that counts as motion: half of what the instrument asks of a whole clip of 17 frames.
LEAST = {"move": 0.06 / 16, "grow": 0.3 / 16, "turn": math.radians(25) / 16}


@dataclass(frozen=True)
class Part:
    """One measure of one part of several clips.

    Args:
        mean: over the clips.
        ci95: bootstrap interval of the mean.
        n: clips.
    """

    mean: float
    ci95: tuple[float, float]
    n: int


def second_parts(frames: int, fps: float) -> list[slice]:
    """The whole seconds of a clip; what is left over at the end belongs to none.

    Raises:
        DataError: the clip is shorter than a second.
    """
    edges = [round(second * fps) for second in range(int(frames / fps) + 1)]
    if len(edges) < 2:
        raise DataError(f"a clip has seconds if it lasts one; got {frames} frames at {fps:g} a second")
    return [slice(low, high) for low, high in itertools.pairwise(edges)]


def block_parts(sizes: Sequence[int], ratio: int = 4) -> list[slice]:
    """Pixel frames of blocks of latent frames: the first latent frame is one picture, the others ``ratio`` each."""
    ends = np.cumsum(sizes).tolist()
    edges = [0, *(1 + (end - 1) * ratio for end in ends)]
    return [slice(low, high) for low, high in itertools.pairwise(edges)]


def pictures_over_time(video: Tensor, parts: Sequence[slice]) -> dict[str, Tensor]:
    """``sharpness`` and ``motion_energy`` [N,P] of clips [N,T,3,H,W] in [0,1]; for any clips.

    A first part of one frame has the motion of the step out of it.
    """
    _check(video, parts)
    levels = (255 * video.detach().clamp(0, 1)).round().to(torch.uint8).permute(0, 1, 3, 4, 2).cpu().numpy()
    sharp = np.array([[sharpness(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)) for frame in clip] for clip in levels])
    change = 255 * video.detach().float().diff(dim=1).abs().mean(dim=(2, 3, 4)).cpu().numpy()  # [N,T-1]
    moved = [change[:, slice(max(part.start, 1) - 1, max(part.stop, 2) - 1)].mean(1) for part in parts]
    return {
        "sharpness": torch.from_numpy(np.stack([sharp[:, part].mean(1) for part in parts], 1)).float(),
        "motion_energy": torch.from_numpy(np.stack(moved, 1)).float(),
    }


def shapes_over_time(video: Tensor, asked: Sequence[ShapeSpec], parts: Sequence[slice]) -> dict[str, Tensor]:
    """``colour``, ``shape`` and ``motion`` [N,P], shares from 0 to 1, of clips [N,T,3,H,W] that should show ``asked``.

    A part of one frame has the motion of the step out of it.

    Raises:
        DataError: a prompt's motion is not one of ``STEADY``.
    """
    _check(video, parts)
    if odd := sorted({spec.motion for spec in asked} - set(STEADY)):
        raise DataError(f"only a steady motion shows in every part of a clip ({', '.join(STEADY)}); got {odd[0]!r}")
    clips = video.detach().float().cpu().permute(0, 1, 3, 4, 2).numpy()
    rows = [
        [_reading(found, spec, part) for part in parts] for found, spec in zip(map(track, clips), asked, strict=True)
    ]
    values = torch.tensor(rows, dtype=torch.float32)  # [N,P,3]
    return {name: values[:, :, i] for i, name in enumerate(("colour", "shape", "motion"))}


def _reading(tracks: Tracks, asked: ShapeSpec, part: slice) -> tuple[float, float, float]:
    own = _cut(tracks, part)
    right = [bool(seen) and nearest_colour(rgb) == asked.colour for seen, rgb in zip(own.seen, own.colour, strict=True)]
    shape = interpret(own).shape if own.seen.sum() > 1 else _shape_of_one(own)
    step = _cut(tracks, slice(max(part.start, 1) - 1, max(part.stop, 2)))
    return float(np.mean(right)), float(shape == asked.shape), float(_moves(step, asked))


def _cut(tracks: Tracks, part: slice | NDArray[np.intp]) -> Tracks:
    moment = {order: values[part] for order, values in tracks.moment.items()}
    return Tracks(tracks.seen[part], tracks.x[part], tracks.y[part], tracks.area[part], tracks.colour[part], moment)


def _shape_of_one(tracks: Tracks) -> str:
    """The shape in a part that shows one only once: the instrument wants two frames, and reads the same twice."""
    if not tracks.seen.any():
        return interpret(tracks).shape
    place = np.flatnonzero(tracks.seen).repeat(2)
    return interpret(_cut(tracks, place)).shape


def _moves(tracks: Tracks, asked: ShapeSpec) -> bool:
    """Whether the asked motion shows between the first and the last frame in which something is seen."""
    places = np.flatnonzero(tracks.seen)
    if len(places) < 2 or len(places) < 2 / 3 * len(tracks.seen):
        return False
    steps = int(places[-1] - places[0])
    if asked.motion in TRANSLATIONS:
        across, down = TRANSLATIONS[asked.motion]
        moved = across * _change(tracks.x, places) + down * _change(tracks.y, places)
        return bool(moved > LEAST["move"] * steps)
    if asked.motion in ROTATIONS:
        moment = tracks.moment[SYMMETRY[asked.shape]][places]
        turned = float(np.angle(moment[1:] * np.conj(moment[:-1])).sum()) / SYMMETRY[asked.shape]
        return (turned if asked.motion == ROTATIONS[0] else -turned) > LEAST["turn"] * steps
    grown = _change(np.log(tracks.area), places)
    return bool((grown if asked.motion == "growing" else -grown) > LEAST["grow"] * steps)


def _change(values: NDArray[np.float64], places: NDArray[np.intp]) -> float:
    return float(values[places[-1]] - values[places[0]])


def summarise(values: Tensor, resamples: int = RESAMPLES, seed: int = 0) -> list[Part]:
    """The mean of each part with its interval, from a measure [N,P] of N clips; resampling is of clips.

    Raises:
        DataError: fewer than two clips, which have no interval.
    """
    rows = values.double().numpy()
    if rows.ndim != 2 or len(rows) < 2:
        raise DataError(f"a measure of parts is [clips, parts] with at least 2 clips; got shape {rows.shape}")
    return [
        Part(float(column.mean()), bootstrap_interval(column, resamples, 0.95, seed), len(column)) for column in rows.T
    ]


def drift(values: Tensor, first: int = 0, last: int = -1) -> Paired:
    """How a measure [N,P] changed from one part to another of the same clips, with an interval."""
    return paired_delta(values[:, first].numpy(), values[:, last].numpy())


def _check(video: Tensor, parts: Sequence[slice]) -> None:
    if video.ndim != 5 or video.shape[1] < 2:
        raise DataError(f"clips in parts are [N,T,3,H,W] with at least 2 frames; got shape {tuple(video.shape)}")
    if not parts or any(not 0 <= part.start < part.stop <= video.shape[1] for part in parts):
        raise DataError(f"parts lie within the clip, each with a frame; got {list(parts)} of {video.shape[1]} frames")
