r"""Does the camera do what was asked? From amounts and an instruction to one number, with everything that made it.

    obedience = mean over segments of  mean over what is asked of (sign·size) × on-axis share

- ``sign`` 1 where the primitive moved the asked way by more than 1 % of the picture's width, else 0 (the raw agreement,
  −1, 0 or 1, is kept);
- ``size`` where an amount was asked, 1 − |log₂(measured/asked)|, so 0 from half or double on; where none was asked,
  visible/0.05: a movement that shifts the picture by 5 % of its width is one;
- ``on-axis share`` visible movement along what was asked over all visible movement: a pan that also dollies is less of
  a pan;
- a still camera scores 1 − excursion/0.05, where excursion is the farthest it gets from where the segment starts.

Segments come one after the other; where the sentence says no seconds, the boundaries that score best are taken, each
segment at least half of an equal share. Errors become scores in [0,1] by these caps, as WorldScore (Duan et al., 2025)
does with its own. Smoothness is no part of obedience and stands beside it: with d the visible motion of each step,
jerk = mean ‖Δ²d‖/mean ‖d‖, and smoothness = 1 − jerk/2; steps of pure noise have a jerk of 2.4.

A dolly past a flat or far scene looks like a zoom, and a truck like a pan. Where travel is asked, no parallax is seen
and the look-alike moves the asked way, the score abstains: neither a pass nor a failure. A zoom that was asked and
answered by a dolly with parallax is a failure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reelign.errors import DataError
from reelign.selection.camera_estimate import (
    DOLLY,
    PAN,
    PEDESTAL,
    PRIMITIVES,
    TILT,
    TRUCK,
    ZOOM,
    Array,
    CameraEstimate,
    visible,
)
from reelign.selection.camera_poses import PoseErrors
from reelign.selection.camera_words import Asked, Instruction, Segment, target_amounts

MOVES = 0.01  # share of the picture's width from which a primitive has a sign
PLAIN = 0.05  # share from which an unmeasured amount is one, and a still camera is none
JERK_CAP = 2.0
ROTATION_CAP_DEG, DIRECTION_CAP_DEG = 30.0, 90.0
LOOK_ALIKE = {DOLLY: ZOOM, TRUCK: PAN, PEDESTAL: TILT}


@dataclass(frozen=True)
class Part:
    """One segment as it was answered.

    Args:
        asked: what was asked; empty for a still camera.
        start, end: first and last frame, positions among those used.
        measured: the seven amounts.
        sign: raw agreement of each, −1, 0 or 1.
        size: of each, 0 to 1.
        on_axis: share of the visible movement that was asked for.
        score: of the segment.
    """

    asked: tuple[Asked, ...]
    start: int
    end: int
    measured: tuple[float, ...]
    sign: tuple[int, ...]
    size: tuple[float, ...]
    on_axis: float
    score: float


@dataclass(frozen=True)
class Obedience:
    """How well a camera followed an instruction.

    Args:
        score: obedience, 0 to 1; NaN where it abstains.
        smoothness: 0 to 1; None for a camera that hardly moves or fewer than 4 frames.
        jerk: the raw number; None with ``smoothness``.
        parts: each segment.
        reason: why it abstains; empty where it does not.
    """

    score: float
    smoothness: float | None
    jerk: float | None
    parts: tuple[Part, ...]
    reason: str = ""


def obey(estimate: CameraEstimate, instruction: Instruction, seconds: float | None = None) -> Obedience:
    """Score an estimate against an instruction.

    Args:
        estimate: of the whole clip.
        instruction: its segments.
        seconds: duration of the clip, for segments with a time.

    Raises:
        DataError: segments with and without a time, or a time without ``seconds``.
    """
    if estimate.abstained:
        return Obedience(math.nan, None, None, (), estimate.reason)
    segments, steps = instruction.segments, estimate.steps
    if len(steps) < len(segments):
        reason = f"{len(segments)} segments need as many steps between frames; got {len(steps)}"
        return Obedience(math.nan, None, None, (), reason)
    bounds = _timed_bounds(segments, len(steps), seconds) or _best_bounds(segments, steps, estimate.fov_deg)
    parts = tuple(
        score_part(steps, segment, bounds[i], bounds[i + 1], estimate.fov_deg) for i, segment in enumerate(segments)
    )
    rough = jerk(steps, estimate.fov_deg)
    smooth = None if rough is None else _mapped(rough, JERK_CAP)
    if reason := _ambiguous(parts, estimate):
        return Obedience(math.nan, smooth, rough, parts, reason)
    return Obedience(float(np.mean([part.score for part in parts])), smooth, rough, parts)


def _mapped(error: float, cap: float) -> float:
    """1 for no error, 0 from the cap on."""
    return float(np.clip(1 - error / cap, 0, 1))


def _timed_bounds(segments: Sequence[Segment], count: int, seconds: float | None) -> list[int] | None:
    """Step boundaries of segments that say how long they last; the last may leave it open."""
    times = [segment.seconds for segment in segments]
    if not any(times):
        return None
    known = [time for time in times[:-1] if time is not None]
    if seconds is None or len(known) < len(times) - 1:
        raise DataError(f"a time for one segment needs one for each before the last, and the clip's length: {times}")
    ends = np.rint(np.cumsum(known) / seconds * count)
    bounds = [0, *(int(end) for end in ends), count]
    if any(b <= a for a, b in itertools.pairwise(bounds)):
        raise DataError(f"segments of {known} s do not fit a clip of {seconds:g} s")
    return bounds


def _best_bounds(segments: Sequence[Segment], steps: Array, fov_deg: float) -> list[int]:
    """Boundaries with the best sum of scores, by dynamic programming; each at least half of an equal share."""
    count, parts = len(steps), len(segments)
    least = max(1, count // (2 * parts))
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [0])}
    for i, segment in enumerate(segments):
        reached: dict[int, tuple[float, list[int]]] = {}
        ends = [count] if i == parts - 1 else range(least * (i + 1), count - least * (parts - 1 - i) + 1)
        for end in ends:
            options = [
                (total + score_part(steps, segment, trail[-1], end, fov_deg).score, [*trail, end])
                for start, (total, trail) in best.items()
                if end - start >= least
            ]
            # Ties, as between segments that are all wrong, go to the most even boundaries.
            reached[end] = max(options, key=lambda option: (round(option[0], 9), -_uneven(option[1], count, parts)))
        best = reached
    return best[count][1]


def _uneven(trail: Sequence[int], count: int, parts: int) -> float:
    return sum(abs(bound - i * count / parts) for i, bound in enumerate(trail))


def score_part(steps: Array, segment: Segment, start: int, end: int, fov_deg: float) -> Part:
    """The score of one segment over steps ``start`` to ``end`` (excluded) of [T−1,7]."""
    some = steps[start:end]
    measured = some.sum(0)
    shown = visible(measured, fov_deg)
    if not segment.asked:
        excursion = float(np.linalg.norm(visible(some.cumsum(0), fov_deg), axis=1).max())
        return Part((), start, end, tuple(measured), (), (), 1.0, _mapped(excursion, PLAIN))
    answers = [_answer(asked, measured, shown, fov_deg) for asked in segment.asked]
    signs, sizes = tuple(sign for sign, _ in answers), tuple(size for _, size in answers)
    wanted = np.sum([target_amounts(asked, fov_deg) != 0 for asked in segment.asked], axis=0) > 0
    whole = float(np.abs(shown).sum())
    on_axis = float(np.abs(shown[wanted]).sum() / whole) if whole > MOVES else 0.0
    score = float(np.mean([max(sign, 0) * size for sign, size in answers])) * on_axis
    return Part(segment.asked, start, end, tuple(measured), signs, sizes, on_axis, score)


def _answer(asked: Asked, measured: Array, shown: Array, fov_deg: float) -> tuple[int, float]:
    """Sign agreement and size of one primitive; an orbit has the lesser of its truck's and its pan's."""
    target = target_amounts(asked, fov_deg)
    axes = [int(i) for i in np.flatnonzero(target)]
    along = min(float(shown[i] * np.sign(target[i])) for i in axes)
    sign = int(np.sign(along)) if abs(along) > MOVES else 0
    if asked.amount is None:
        return sign, float(np.clip(along / PLAIN, 0, 1))
    main = PAN if asked.primitive == "orbit" else axes[0]
    ratio = float(measured[main] / target[main])
    return sign, _mapped(abs(math.log2(ratio)), 1.0) if ratio > 0 else 0.0


def jerk(steps: Array, fov_deg: float) -> float | None:
    """mean ‖Δ²d‖/mean ‖d‖ of visible motion a step [T−1,7]; None for a camera that hardly moves, or under 3 steps."""
    shown = visible(steps, fov_deg)
    speed = float(np.linalg.norm(shown, axis=1).mean())
    if len(shown) < 3 or speed * len(shown) < MOVES:
        return None
    return float(np.linalg.norm(np.diff(shown, n=2, axis=0), axis=1).mean() / speed)


def _ambiguous(parts: Sequence[Part], estimate: CameraEstimate) -> str:
    """Why the score abstains although the camera was measured, or an empty string."""
    if estimate.parallax:
        return ""
    for part, asked in [(one, asked) for one in parts for asked in one.asked]:
        axis = PRIMITIVES.index(asked.primitive) if asked.primitive in PRIMITIVES else -1
        if (other := LOOK_ALIKE.get(axis)) is None:
            continue
        # To the right, a truck and a pan both move the picture to the left; up and forward are alike too.
        if asked.sign * visible(np.array(part.measured), estimate.fov_deg)[other] > MOVES:
            name = PRIMITIVES[other]
            return f"no parallax: a {asked.primitive} past a flat or far scene looks like the {name} that is seen"
    return ""


def pose_score(errors: PoseErrors) -> float:
    """Pose errors in [0,1]: the geometric mean of 1 − RotErr/30° and 1 − direction/90°; the first alone for a pan."""
    turn = _mapped(errors.rotation_mean, ROTATION_CAP_DEG)
    if errors.direction_deg is None:
        return turn
    return math.sqrt(turn * _mapped(errors.direction_deg, DIRECTION_CAP_DEG))
