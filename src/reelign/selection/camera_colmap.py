r"""Global structure from motion by pycolmap (GLOMAP; Pan et al., 2024), in a process of its own.

pycolmap brings its own zlib and can abort a process that writes PNG files later, so it is never imported here: frames
go to a temporary folder, ``camera_colmap_worker`` runs there, and a JSON file comes back. Install it with
``pip install "reelign[colmap]"``.

A reconstruction is believed only if all these hold, since a wrong one registers all frames too:

- every frame is registered, in one model, by enough points that are seen often enough;
- the mean reprojection error is at most 0.65 pixel: right ones have 0.17 to 0.65, wrong ones 0.76 to 0.90;
- step by step its rotation agrees with that of ``camera_odometry``, where that does not abstain.

A camera that only turns has no points to triangulate, so it abstains on pans. A zoom contradicts the fixed focal length
and comes out as a dolly, so the chain asks it only where tracks show parallax.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from reelign.errors import ModelError
from reelign.selection.camera_estimate import FOV_DEG, CameraEstimate, Picture, abstain, focal_px, steps_from_poses
from reelign.selection.camera_models import Array
from reelign.selection.camera_poses import angle_deg, from_quaternions

METHOD = "colmap"
REPROJECTION_PX = 0.65
FEWEST_POINTS = 60
AGREE_DEG = 3.0  # of rotation over the clip with two-view odometry, or a third of the turn where that is more
TIMEOUT_S = 300


def estimate_colmap(
    greys: Sequence[Picture],
    fov_deg: float = FOV_DEG,
    frames: Sequence[int] | None = None,
    check: CameraEstimate | None = None,
    timeout_s: float = TIMEOUT_S,
) -> CameraEstimate:
    """Camera poses of grey frames by pycolmap's global mapper, with the focal length held fixed.

    Args:
        greys: uint8 [H,W] each; 8 to 24 frames are a good number.
        fov_deg: horizontal field of view.
        frames: their indices in the clip, for the record.
        check: two-view odometry of the same clip, to cross-check rotation.
        timeout_s: after which the process is ended.

    Raises:
        ModelError: pycolmap is not installed.
    """
    frames = list(range(len(greys)) if frames is None else frames)
    if len(greys) < 3:
        return abstain(METHOD, frames, f"structure needs at least 3 frames; got {len(greys)}", fov_deg)
    answer = _reconstruct(greys, focal_px(greys[0].shape[1], fov_deg), timeout_s)
    if "missing" in answer:
        raise ModelError('pycolmap is not installed; install it with: pip install "reelign[colmap]"')
    reason = answer.get("error") or gate(answer, len(greys))
    if reason:
        return abstain(METHOD, frames, reason, fov_deg)
    poses = from_quaternions(answer["quaternions"], answer["translations"])
    poses[:, :3, 3] /= answer["depth"]
    if reason := disagreement(poses, frames, check):
        return abstain(METHOD, frames, reason, fov_deg)
    return CameraEstimate(
        METHOD,
        tuple(frames),
        steps_from_poses(poses),
        poses,
        confidence=min(1.0, answer["points"] / 200) * (1 - 0.5 * answer["reprojection_px"] / REPROJECTION_PX),
        inliers=tuple(answer["observations"][1:]),
        fov_deg=fov_deg,
        parallax=True,
    )


def gate(answer: dict[str, Any], count: int) -> str:
    """Why a reconstruction of ``count`` frames is not believed, or an empty string.

    Args:
        answer: ``registered``, ``points``, ``reprojection_px`` and ``depth`` as the worker writes them.
        count: frames given.
    """
    if answer["registered"] < count:
        return f"{answer['registered']} of {count} frames could be placed"
    if answer["points"] < FEWEST_POINTS:
        return (
            f"{answer['points']} points could be placed, {FEWEST_POINTS} are needed: little parallax, or little to see"
        )
    if answer["reprojection_px"] > REPROJECTION_PX:
        return f"mean reprojection error {answer['reprojection_px']:.2f} px, above {REPROJECTION_PX}: a wrong model"
    return "" if answer["depth"] > 0 else "half of the points lie behind the first camera"


def disagreement(poses: Array, frames: Sequence[int], check: CameraEstimate | None) -> str:
    """Why poses of ``frames`` and an odometry of some of them contradict each other in rotation, or an empty string."""
    if check is None or check.abstained:
        return ""
    common = [frame for frame in check.frames if frame in frames]
    ours = poses[[list(frames).index(frame) for frame in common], :3, :3]
    theirs = check.poses[[check.frames.index(frame) for frame in common], :3, :3]
    if len(common) < 2:
        return ""
    ours, theirs = ours[0].T @ ours, theirs[0].T @ theirs
    worst = float(angle_deg(ours.transpose(0, 2, 1) @ theirs).max())
    allowed = max(AGREE_DEG, float(angle_deg(theirs).max()) / 3)
    return f"its rotation is {worst:.1f}° from two-view odometry's, above {allowed:.1f}°" if worst > allowed else ""


def _reconstruct(greys: Sequence[Picture], focal: float, timeout_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="reelign-colmap-") as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for index, grey in enumerate(greys):
            cv2.imwrite(str(folder / "images" / f"{index:06d}.png"), grey)
        command = [sys.executable, "-m", "reelign.selection.camera_colmap_worker", name, repr(float(focal))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            return {"error": f"pycolmap took more than {timeout_s:.0f} s"}
        answer = folder / "answer.json"
        if not answer.exists():
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            return {"error": f"pycolmap ended with code {done.returncode}: {last[0][:200]}"}
        read: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return read
