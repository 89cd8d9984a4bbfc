"""The measuring instrument for moving shapes: which colour, shape and motion does a clip show?

No weights, nothing learned: a foreground mask by distance from the border's colour, then colour by its direction in
RGB, shape by rotation-invariant complex moments, motion by the tracks of centre, area, angle and colour. It reads
generated clips as well as drawn ones, and serves as the held-out judge of the demo: nothing ever trains on it.

Moments of order n (Flusser, Suk and Zitová, Moments and Moment Invariants, 2009, ch. 2): c_n = Σ w·z^n with
z = (x − x̄) + i(y − ȳ), made free of size by A^(n/2 + 1). A triangle has a large |c_3|, a square a large |c_4|, a
circle neither; the phase of c_n, divided by n, is the angle.

Error rates on clean and degraded clips: ``benchmarks/shapes_instrument.py``, table in ``docs/moving_shapes.md``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from reelign.contracts import VideoBatch
from reelign.datasets.moving_shapes import COLOURS, PALETTE, STILL, TURNING, ShapeSpec, parse_caption

NOTHING = "nothing"
CONTRAST = 0.15  # least distance in RGB between a shape and its background
SYMMETRY = {"triangle": 3, "square": 4}
DIRECTION = {name: np.array(rgb) / np.linalg.norm(rgb) for name, rgb in PALETTE.items()}


@dataclass(frozen=True)
class Reading:
    """What the instrument saw in one clip.

    Args:
        shape: circle, square, triangle, or ``nothing``.
        colour: nearest palette colour over the clip; over its first frames where the motion is ``turning``.
        motion: one of the data set's motions, or ``nothing``.
        colour_to: nearest palette colour of the last frames where the motion is ``turning``, else None.
    """

    shape: str
    colour: str
    motion: str
    colour_to: str | None = None

    def agrees(self, asked: ShapeSpec) -> dict[str, bool]:
        """Whether each attribute is the asked one, as ``{"colour": …, "shape": …, "motion": …}``."""
        return {
            "colour": self.colour == asked.colour and (asked.colour_to is None or self._last() == asked.colour_to),
            "shape": self.shape == asked.shape,
            "motion": self.motion == asked.motion,
        }

    def _last(self) -> str:
        return self.colour_to or self.colour


@dataclass(frozen=True)
class Tracks:
    """Per-frame measurements of one clip; lengths in frame sides, areas in frame areas.

    Args:
        seen: [T], whether the frame shows anything.
        x, y: [T], centre.
        area: [T].
        colour: [T,3], mean RGB of the inside.
        moment: order n to complex [T], the size-free moment c_n.
    """

    seen: np.ndarray
    x: np.ndarray
    y: np.ndarray
    area: np.ndarray
    colour: np.ndarray
    moment: dict[int, np.ndarray]


def read_clips(video: Tensor) -> list[Reading]:
    """Read clips [N,T,3,H,W] in [0,1]; T ≥ 2."""
    clips = video.detach().float().cpu().permute(0, 1, 3, 4, 2).numpy()
    return [interpret(track(clip)) for clip in clips]


def agreement(video: Tensor, asked: list[ShapeSpec]) -> dict[str, Tensor]:
    """Agreement of clips [N,T,3,H,W] with what was asked: attribute to float32 [N] of zeros and ones."""
    rows = [reading.agrees(spec) for reading, spec in zip(read_clips(video), asked, strict=True)]
    return {name: torch.tensor([float(row[name]) for row in rows]) for name in ("colour", "shape", "motion")}


def track(clip: np.ndarray) -> Tracks:
    """Measure every frame of a clip [T,H,W,3] in [0,1]."""
    frames, height, width, _ = clip.shape
    border = np.concatenate([clip[:, :2].reshape(-1, 3), clip[:, -2:].reshape(-1, 3), clip[:, :, :2].reshape(-1, 3)])
    distance = np.linalg.norm(clip - np.median(border, axis=0), axis=-1)
    rows = [_frame(clip[t], distance[t]) for t in range(frames)]
    return Tracks(
        seen=np.array([r is not None for r in rows]),
        x=np.array([r[0] / width if r else np.nan for r in rows]),
        y=np.array([r[1] / height if r else np.nan for r in rows]),
        area=np.array([r[2] / (width * height) if r else np.nan for r in rows]),
        colour=np.array([r[3] if r else np.full(3, np.nan) for r in rows]),
        moment={n: np.array([r[4][n] if r else np.nan + 0j for r in rows]) for n in SYMMETRY.values()},
    )


def _frame(
    image: np.ndarray, distance: np.ndarray
) -> tuple[float, float, float, np.ndarray, dict[int, complex]] | None:
    """Centre, area (pixels), colour and moments of the largest thing in one frame, or None where there is nothing."""
    smooth = cv2.GaussianBlur(distance, (3, 3), 0)
    peak = float(np.quantile(smooth, 0.99))
    if peak < CONTRAST:
        return None
    mask = (smooth > 0.5 * peak).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    biggest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    near = cv2.dilate((labels == biggest).astype(np.uint8), np.ones((3, 3), np.uint8))
    weight = np.clip(distance / peak, 0, 1) * near
    weight = np.where(weight > 0.25, weight, 0.0)
    area = float(weight.sum())
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    centre_x, centre_y = float((weight * x).sum() / area), float((weight * y).sum() / area)
    z = (x - centre_x) + 1j * (y - centre_y)
    moments = {n: complex((weight * z**n).sum() / area ** (n / 2 + 1)) for n in SYMMETRY.values()}
    inside = cv2.erode((labels == biggest).astype(np.uint8), np.ones((3, 3), np.uint8))
    colour = image[inside > 0].mean(0) if inside.any() else image[labels == biggest].mean(0)
    return centre_x, centre_y, area, colour, moments


# |c_3| of an equilateral triangle and |c_4| of a square, integrated by hand; the tests integrate them numerically.
IDEAL_MOMENT = {"triangle": 3 * math.sqrt(3) / 40 * (4 / (3 * math.sqrt(3))) ** 2.5, "square": 1 / 60}


def interpret(tracks: Tracks) -> Reading:
    """Turn measurements into words; a shape that is missing from more than a third of the frames is ``nothing``."""
    if tracks.seen.mean() < 2 / 3:
        return Reading(NOTHING, NOTHING, NOTHING)
    shape = _shape(tracks)
    motion = _motion(tracks, shape)
    colours = tracks.colour[tracks.seen]
    if motion == TURNING:
        return Reading(shape, nearest_colour(colours[:3].mean(0)), motion, nearest_colour(colours[-3:].mean(0)))
    return Reading(shape, nearest_colour(np.median(colours, axis=0)), motion)


def nearest_colour(rgb: np.ndarray) -> str:
    """The palette colour in whose direction ``rgb`` [3] points: a dim red is still red."""
    return max(COLOURS, key=lambda name: float(rgb @ DIRECTION[name]))


def _shape(tracks: Tracks) -> str:
    strength = {
        name: float(np.median(np.abs(tracks.moment[n][tracks.seen]))) / IDEAL_MOMENT[name]
        for name, n in SYMMETRY.items()
    }
    best = max(strength, key=lambda name: strength[name])
    return best if strength[best] > 0.5 else "circle"


def _motion(tracks: Tracks, shape: str) -> str:
    """The strongest geometric cue relative to its threshold; else a change of colour; else still."""
    seen = tracks.seen
    x, y, log_area = _smooth(tracks.x[seen]), _smooth(tracks.y[seen]), _smooth(np.log(tracks.area[seen]))
    across, down, growth = x[-1] - x[0], y[-1] - y[0], log_area[-1] - log_area[0]
    path = float(np.abs(np.diff(y)).sum())
    cues = {
        "moving right" if across > 0 else "moving left": abs(across) / 0.12,
        "moving down" if down > 0 else "moving up": abs(down) / 0.12,
        "growing" if growth > 0 else "shrinking": abs(growth) / 0.6,
    }
    if path > 0.25 and path > 1.7 * abs(down):
        cues["bouncing"] = path / 0.12
    if shape in SYMMETRY:
        turned = _turned(tracks.moment[SYMMETRY[shape]][seen], SYMMETRY[shape])
        cues["rotating clockwise" if turned > 0 else "rotating counterclockwise"] = abs(turned) / math.radians(50)
    best = max(cues, key=lambda name: cues[name])
    if cues[best] > 1:
        return best
    colours = tracks.colour[seen]
    first, last = colours[:3].mean(0), colours[-3:].mean(0)
    changed = nearest_colour(first) != nearest_colour(last) and float(np.linalg.norm(first - last)) > 0.2
    return TURNING if changed else STILL


def _turned(moment: np.ndarray, order: int) -> float:
    """Net angle in radians, clockwise on the screen, from the phases of c_n; steps are below half a symmetry turn."""
    steps = np.angle(moment[1:] * np.conj(moment[:-1])) / order
    return float(steps.sum())


def _smooth(values: np.ndarray) -> np.ndarray:
    """Median of three neighbours, ends kept: one bad frame does not become motion."""
    if len(values) < 3:
        return values
    middle = np.median(np.stack([values[:-2], values[1:-1], values[2:]]), axis=0)
    return np.concatenate([values[:1], middle, values[-1:]])


def shapes_measure(batch: VideoBatch) -> dict[str, Tensor]:
    """The instrument as a held-out measure: ``colour_accuracy``, ``shape_accuracy``, ``motion_accuracy``, each [B].

    Raises:
        DataError: a prompt is not of the moving-shapes grammar.
    """
    asked = [parse_caption(prompt) for prompt in batch.request.prompts]
    return {f"{name}_accuracy": value for name, value in agreement(batch.video, asked).items()}
