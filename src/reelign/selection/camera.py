r"""The camera of a clip: a chain of estimators that check each other, and a table over a folder.

    1. ``camera_motion``     tracks over the whole clip; always
    2. ``camera_odometry``   where the first saw travel, or could not follow; agrees, or lowers the confidence
    3. ``camera_colmap``     on request and where there is parallax; its poses replace the others' if they pass
    4. ``camera_vggt``       on request, with the user's weights; the same

The answer is the last of these that did not abstain, 3 and 4 only if they agree with 2 in rotation. Where all abstain,
so does the chain, and says why. An abstention is counted, never dropped: ``failure_rates``.

A clip of more frames than ``MOST_FRAMES`` is sampled evenly, the first and the last frame among them.

Run: ``estimate_camera(frames)``, ``reelign camera CLIP --instruction "pan left"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from reelign.errors import ClipError, DataError, ReelignError
from reelign.selection.camera_colmap import estimate_colmap
from reelign.selection.camera_estimate import (
    FOV_DEG,
    PRIMITIVES,
    CameraEstimate,
    Picture,
    Thinned,
    small_greys,
    spread_indices,
)
from reelign.selection.camera_motion import estimate_motion
from reelign.selection.camera_odometry import estimate_odometry
from reelign.selection.camera_poses import PoseErrors, between_deg, pose_errors
from reelign.selection.camera_score import Obedience, obey, pose_score
from reelign.selection.camera_words import Instruction, camera_words, describe, parse_instruction
from reelign.video_decode import FrameStream

if TYPE_CHECKING:
    from pandas import DataFrame

    from reelign.selection.camera_vggt import PoseNetwork

MOST_FRAMES = 48  # of the tracks
MOST_KEYS = 20  # of the methods that match features
SAME_WAY_DEG = 45.0  # between the travels of two methods
HALVED = 0.5


class CameraOptions(BaseModel):
    """How cameras are estimated.

    Args:
        fov_deg: horizontal field of view of the first frame; angles and depths scale with it.
        frames: at most so many, evenly spread.
        check: run two-view odometry where there is travel, or where points cannot be followed.
        colmap: run pycolmap where there is parallax (extra ``reelign[colmap]``); seconds a clip.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fov_deg: float = Field(FOV_DEG, ge=1, le=170)
    frames: int = Field(MOST_FRAMES, ge=2)
    check: bool = True
    colmap: bool = False


@dataclass(frozen=True)
class CameraReport:
    """The camera of one clip.

    Args:
        best: the estimate that counts; it may abstain.
        all: what each method said, by name.
    """

    best: CameraEstimate
    all: dict[str, CameraEstimate]

    @property
    def sentence(self) -> str:
        """The camera in words."""
        return describe(self.best)


def estimate_camera(
    frames: Sequence[Picture],
    options: CameraOptions | None = None,
    network: PoseNetwork | None = None,
    indices: Sequence[int] | None = None,
) -> CameraReport:
    """The camera of one clip.

    Args:
        frames: uint8 RGB [H,W,3] or grey [H,W] each, in order of time, all of one size.
        options: settings.
        network: a pose network such as ``camera_vggt.VGGTPoses``; it needs RGB.
        indices: of these frames in the clip, where not all are here.

    Raises:
        DataError: no frames, or frames of other types or of different sizes.
    """
    options = options or CameraOptions()
    if not len(frames):
        raise DataError("a clip has at least one frame; got none")
    chosen = spread_indices(len(frames), options.frames)
    named = [i if indices is None else indices[i] for i in chosen]
    greys = small_greys(frames[i] for i in chosen)
    found = [estimate_motion(greys, options.fov_deg, named)]
    best = found[0]
    few = spread_indices(len(chosen), MOST_KEYS)
    keys, keyed = [named[i] for i in few], [greys[i] for i in few]
    check = None
    if network is not None or options.colmap or (options.check and (best.abstained or best.parallax)):
        check = estimate_odometry(keyed, options.fov_deg, keys)
        found.append(check)
        best = _checked(best, check)
    if options.colmap and best.parallax:
        found.append(estimate_colmap(keyed, options.fov_deg, keys, check))
    if network is not None:
        from reelign.selection.camera_vggt import estimate_network

        found.append(estimate_network(network, [frames[chosen[i]] for i in few], keys, check))
    best = next((estimate for estimate in reversed(found[2:]) if not estimate.abstained), best)
    return CameraReport(best, {estimate.method: estimate for estimate in found})


def _checked(motion: CameraEstimate, check: CameraEstimate) -> CameraEstimate:
    """The motion estimate with half its confidence where odometry contradicts it; the check where it abstains."""
    if motion.abstained:
        return check if not check.abstained else motion
    if check.abstained or not motion.parallax:
        return motion
    ours, theirs = (np.array([a[4], -a[5], a[6]]) for a in (motion.amounts, check.amounts))
    apart = float(between_deg(ours, theirs))
    if math.isnan(apart):
        note = "two-view odometry sees no travel here"
    elif apart > SAME_WAY_DEG:
        note = f"two-view odometry travels {apart:.0f}° from this"
    else:
        return motion
    return replace(motion, confidence=HALVED * motion.confidence, notes=(*motion.notes, note))


def read_instruction(instruction: str | None, prompt: str) -> Instruction | None:
    """The instruction: the one given, read strictly, or the camera words of a prompt; None where there are none."""
    return parse_instruction(instruction) if instruction else camera_words(prompt) if prompt.strip() else None


@dataclass(frozen=True)
class Footage:
    """Frames of a clip, evenly thinned.

    Args:
        frames: uint8 RGB [H,W,3] each.
        indices: theirs in the clip.
        count: frames of the whole clip.
        fps: frames a second.
    """

    frames: list[Picture]
    indices: list[int]
    count: int
    fps: float


def read_footage(path: Path, most: int = MOST_FRAMES) -> Footage:
    """A clip of any length in the memory of about 2·``most`` frames.

    Raises:
        ClipError: it cannot be read whole.
    """
    stream, kept = FrameStream(path, eight_bits=True), Thinned(most)
    for picture in stream:
        kept.add(np.asarray(picture, np.uint8))
    stream.check()
    return Footage(kept.frames, kept.indices, kept.count, stream.fps())


@dataclass(frozen=True)
class Judged:
    """One clip against what was asked of it.

    Args:
        report: the camera.
        obedience: against the instruction; None where there was none.
        errors: against poses; None where there were none, or the camera abstains.
        score: of these; NaN where it abstains or nothing was asked.
    """

    report: CameraReport
    obedience: Obedience | None = None
    errors: PoseErrors | None = None
    score: float = math.nan


def judge_camera(
    report: CameraReport,
    instruction: Instruction | None = None,
    poses: np.ndarray[Any, np.dtype[np.float64]] | None = None,
    seconds: float | None = None,
) -> Judged:
    """Hold a camera against an instruction, or true poses of all frames of the clip, or both (poses give the score)."""
    answer = None if instruction is None else obey(report.best, instruction, seconds)
    errors = None
    if poses is not None and not report.best.abstained:
        errors = pose_errors(poses, report.best.poses, report.best.frames)
    score = pose_score(errors) if errors else answer.score if answer and poses is None else math.nan
    return Judged(report, answer, errors, score)


def camera_table(
    clips: Sequence[Path],
    instructions: Callable[[Path], Instruction | None],
    options: CameraOptions | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DataFrame:
    """One row a clip, also for those that abstain or cannot be read.

    Columns: file, status (``ok``, ``abstained``, ``error``), reason, sentence, the seven amounts, confidence, method,
    fov_deg, obedience, smoothness, obeys (``ok``, ``abstained``, ``not asked``). What is unknown is NaN.
    """
    from pandas import DataFrame

    rows = []
    for done, clip in enumerate(clips):
        try:
            footage = read_footage(clip)
            report = estimate_camera(footage.frames, options, indices=footage.indices)
            judged = judge_camera(report, instructions(clip), seconds=footage.count / footage.fps)
            rows.append({"file": str(clip), **_row(judged)})
        except ClipError as error:
            rows.append({"file": str(clip), **_failed(error)})
        progress(done + 1, len(clips))
    return DataFrame(rows)


def _row(judged: Judged) -> dict[str, Any]:
    best, answer = judged.report.best, judged.obedience
    obeys: Literal["ok", "abstained", "not asked"] = "not asked"
    if answer is not None:
        obeys = "abstained" if answer.reason else "ok"
    return {
        "status": "abstained" if best.abstained else "ok",
        "reason": best.reason or (answer.reason if answer else ""),
        "sentence": judged.report.sentence,
        **best.named(),
        "confidence": best.confidence,
        "method": best.method,
        "fov_deg": best.fov_deg,
        "obedience": answer.score if answer else math.nan,
        "smoothness": math.nan if answer is None or answer.smoothness is None else answer.smoothness,
        "obeys": obeys,
    }


def _failed(error: ReelignError) -> dict[str, Any]:
    numbers = dict.fromkeys((*PRIMITIVES, "confidence", "fov_deg", "obedience", "smoothness"), math.nan)
    return {"status": "error", "reason": str(error), "sentence": "", "method": "", "obeys": "not asked", **numbers}


def failure_rates(table: DataFrame) -> dict[str, float]:
    """Share of clips that abstain, that cannot be read, and of those asked, whose score abstains. NaN for none."""
    asked = table[table["obeys"] != "not asked"]
    return {
        "abstained": float((table["status"] == "abstained").mean()),
        "error": float((table["status"] == "error").mean()),
        "obedience_abstained": float((asked["obeys"] == "abstained").mean()),
    }
