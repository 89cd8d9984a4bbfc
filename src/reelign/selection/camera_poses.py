r"""Camera poses: one convention, and the errors between two trajectories that never fail on a pan or a straight line.

A trajectory is [T,4,4] float64, camera-to-world, OpenCV axes (x right, y down, z forward), relative to frame 0, so the
first pose is the identity. Other conventions are turned into this one at the door: ``from_quaternions``,
``from_world_to_camera``, ``relative``.

Errors (R, t true; R̂, t̂ estimated; frame i; He et al., CameraCtrl, 2024; Zheng et al., CamI2V, 2024):

    RotErr = arccos((tr(Rᵢᵀ·R̂ᵢ) − 1)/2),   TransErr = ‖tᵢ − t̂ᵢ‖,   CamMC = ‖[R|t]ᵢ − [R̂|t̂]ᵢ‖_F

Sums over frames, as CamI2V prints them, grow with the length of the clip, so means stand beside them. Translation of
one camera has no scale: each trajectory is divided by its own greatest ‖t‖ first (CamI2V's relative variant). ATE and
RPE (Sturm et al., 2012) come after an alignment by the rank of the path: rank 0 (a camera that only turns) compares
rotations only; rank 1 (a straight line) takes the first pose and a scale; rank 2 and 3 take Umeyama's similarity
(1991). ``auc`` is VGGT's, with the signed angle between directions, so that a dolly back is 180° from a dolly forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from reelign.errors import DataError

Array = NDArray[np.float64]

STILL = 1e-6  # a path shorter than this is no path, in its own unit
STRAIGHT = 0.02  # second singular value of a path over the first, below which it is a line


def check_poses(poses: ArrayLike) -> Array:
    """The poses as float64 [T,4,4], each a rotation and a translation.

    Raises:
        DataError: another shape, fewer than two frames, numbers that are not finite, or a 3×3 that is no rotation.
    """
    given = np.asarray(poses, float)
    if given.ndim != 3 or given.shape[1:] not in ((4, 4), (3, 4)) or len(given) < 2:
        raise DataError(f"a trajectory is [T,4,4] or [T,3,4] with at least two frames; got {given.shape}")
    if not np.isfinite(given).all():
        raise DataError(f"poses are finite numbers; {int((~np.isfinite(given)).sum())} are not")
    full = np.tile(np.eye(4), (len(given), 1, 1))
    full[:, :3] = given[:, :3]
    turn = full[:, :3, :3]
    off = np.abs(turn @ turn.transpose(0, 2, 1) - np.eye(3)).max()
    if off > 1e-3 or (np.linalg.det(turn) < 0).any():
        raise DataError(f"the 3×3 of a pose is a rotation; these are off by {off:.3g}: is the focal length in them?")
    return full


def relative(poses: ArrayLike) -> Array:
    """Camera-to-world poses seen from frame 0: P₀⁻¹·Pᵢ, [T,4,4]."""
    checked = check_poses(poses)
    return np.asarray(invert(checked[:1]) @ checked, float)


def invert(poses: Array) -> Array:
    """Inverse of rigid poses [T,4,4]: Rᵀ, −Rᵀ·t."""
    out = np.tile(np.eye(4), (len(poses), 1, 1))
    out[:, :3, :3] = poses[:, :3, :3].transpose(0, 2, 1)
    out[:, :3, 3] = -np.einsum("tji,tj->ti", poses[:, :3, :3], poses[:, :3, 3])
    return out


def from_world_to_camera(extrinsics: ArrayLike) -> Array:
    """Trajectory of world-to-camera matrices (COLMAP's, VGGT's), [T,3,4] or [T,4,4]; their t is no camera centre."""
    return relative(invert(check_poses(extrinsics)))


def from_quaternions(rotations: ArrayLike, translations: ArrayLike) -> Array:
    """Trajectory of COLMAP's rows qw qx qy qz tx ty tz, world-to-camera; q and −q are the same rotation.

    Raises:
        DataError: not [T,4] and [T,3], or a quaternion of length 0.
    """
    q, t = np.asarray(rotations, float), np.asarray(translations, float)
    if q.ndim != 2 or q.shape[1] != 4 or t.shape != (len(q), 3):
        raise DataError(f"quaternions are [T,4] and translations [T,3]; got {q.shape} and {t.shape}")
    length = np.linalg.norm(q, axis=1, keepdims=True)
    if not (length > 1e-9).all():
        raise DataError("a quaternion has a length above 0; got a row of zeros or of no numbers")
    w, x, y, z = (q / length).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrices = np.concatenate([np.moveaxis(np.array(rows), 2, 0), t[:, :, None]], 2)
    return from_world_to_camera(matrices)


def from_steps(rotations: Sequence[Array], translations: Sequence[Array]) -> Array:
    """Trajectory [T,4,4] of T − 1 steps, each in the axes of the frame it starts from."""
    poses = [np.eye(4)]
    for rotation, translation in zip(rotations, translations, strict=True):
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = rotation, translation
        poses.append(poses[-1] @ step)
    return np.stack(poses)


def same_frames(true: Array, estimated: Array, frames: Sequence[int] | None) -> tuple[Array, Array]:
    """Two trajectories over the same frames; ``frames`` says which of the true ones were estimated.

    Raises:
        DataError: the counts differ and nothing says which frames belong together.
    """
    if frames is not None:
        if len(frames) != len(estimated) or not all(0 <= frame < len(true) for frame in frames):
            raise DataError(
                f"{len(estimated)} estimated poses of frames {list(frames)} do not fit {len(true)} true ones"
            )
        true = true[list(frames)]
    if len(true) != len(estimated):
        raise DataError(
            f"trajectories have one pose a frame each; got {len(true)} and {len(estimated)}: name the frames"
        )
    return relative(true), relative(estimated)


def angle_deg(rotation: Array) -> Array:
    """Angle of rotations [...,3,3] in degrees, arccos((tr R − 1)/2) clamped, [...].

    By atan2 of the skew part too, because arccos loses all digits near 0.
    """
    cosine = (np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2
    skew = np.stack([rotation[..., i, j] - rotation[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0))], -1)
    return np.asarray(np.degrees(np.arctan2(np.linalg.norm(skew, axis=-1) / 2, np.clip(cosine, -1, 1))), float)


def between_deg(a: Array, b: Array) -> Array:
    """Angle between vectors [...,3] in degrees, 0 to 180; NaN where one has no length."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.where(lengths > STILL**2, (a * b).sum(-1) / lengths, np.nan)
    return np.asarray(np.degrees(np.arccos(np.clip(cosine, -1, 1))), float)


def rank(positions: Array) -> int:
    """0 for a path that stays, 1 for a straight line, else 2 or 3; positions [T,3]."""
    values = np.linalg.svd(positions - positions.mean(0), compute_uv=False)
    if values[0] < STILL:
        return 0
    return int((values > STRAIGHT * values[0]).sum())


def align(true: Array, estimated: Array) -> tuple[Array, int]:
    """``estimated`` brought onto ``true`` by the rank of both paths, and that rank.

    Rank 0: unchanged. Rank 1: both start at the origin already, so only a scale, never negative (a path walked
    backwards must not become right). Rank ≥ 2: the similarity of Umeyama (1991) over positions.
    """
    positions, guesses = true[:, :3, 3], estimated[:, :3, 3]
    lowest = min(rank(positions), rank(guesses))
    aligned = estimated.copy()
    if lowest == 0:
        return aligned, 0
    if lowest == 1:
        aligned[:, :3, 3] *= max(float((positions * guesses).sum() / (guesses**2).sum()), 0.0)
        return aligned, 1
    rotation, translation, scale = umeyama(guesses, positions)
    aligned[:, :3, :3] = rotation @ estimated[:, :3, :3]
    aligned[:, :3, 3] = scale * guesses @ rotation.T + translation
    return aligned, lowest


def umeyama(source: Array, target: Array) -> tuple[Array, Array, float]:
    """R, t, s that minimise Σ‖target − (s·R·source + t)‖² (Umeyama, 1991, eq. 40 to 43), positions [T,3]."""
    from_mean, to_mean = source.mean(0), target.mean(0)
    covariance = (target - to_mean).T @ (source - from_mean) / len(source)
    left, values, right = np.linalg.svd(covariance)
    sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(left) * np.linalg.det(right)) or 1.0])
    rotation = left @ sign @ right
    scale = float((values * np.diag(sign)).sum() / ((source - from_mean) ** 2).sum() * len(source))
    return rotation, to_mean - scale * rotation @ from_mean, scale


@dataclass(frozen=True)
class PoseErrors:
    """How far one trajectory is from another. Degrees; lengths in shares of the true path's greatest ‖t‖.

    Args:
        rotation_mean, rotation_sum, rotation_end: RotErr over frames 1 to T − 1, and that of the last frame.
        step_rotation_mean: RotErr of single steps.
        signed_deg: estimated minus true turn about x, y, z of the whole clip (tilt up, pan right, roll clockwise are
            positive), [3].
        translation_mean, translation_sum: TransErr; None where neither camera travels.
        cammc_mean, cammc_sum: CamMC.
        direction_deg: mean angle between the true and the estimated step, 0 to 180; None where nothing travels.
        ate, rpe: after alignment; None where the true camera does not travel, as a rotation has no scale.
        rank: of the alignment.
        auc30: share under the recall curve up to 30°, of all pairs of frames.
        frames: T.
    """

    rotation_mean: float
    rotation_sum: float
    rotation_end: float
    step_rotation_mean: float
    signed_deg: tuple[float, float, float]
    translation_mean: float | None
    translation_sum: float | None
    cammc_mean: float
    cammc_sum: float
    direction_deg: float | None
    ate: float | None
    rpe: float | None
    rank: int
    auc30: float
    frames: int


def pose_errors(true: ArrayLike, estimated: ArrayLike, frames: Sequence[int] | None = None) -> PoseErrors:
    """All errors of an estimated trajectory against the true one, both camera-to-world.

    Args:
        true: [T,4,4].
        estimated: [N,4,4].
        frames: which of the true frames were estimated, N indices; None where all were.

    Raises:
        DataError: what is no trajectory, or two of different length without ``frames``.
    """
    a, b = same_frames(check_poses(true), check_poses(estimated), frames)
    a, b = _unit(a), _unit(b)
    turn = angle_deg(a[1:, :3, :3].transpose(0, 2, 1) @ b[1:, :3, :3])
    steps_a, steps_b = (invert(p[:-1]) @ p[1:] for p in (a, b))
    step_turn = angle_deg(steps_a[:, :3, :3].transpose(0, 2, 1) @ steps_b[:, :3, :3])
    distance = np.linalg.norm(a[1:, :3, 3] - b[1:, :3, 3], axis=1)
    matrices = np.linalg.norm(a[1:, :3] - b[1:, :3], axis=(1, 2))
    travels = bool(distance.any())
    directions = between_deg(steps_a[:, :3, 3], steps_b[:, :3, 3])
    aligned, level = align(a, b)
    moved = rank(a[:, :3, 3]) > 0
    return PoseErrors(
        rotation_mean=float(turn.mean()),
        rotation_sum=float(turn.sum()),
        rotation_end=float(turn[-1]),
        step_rotation_mean=float(step_turn.mean()),
        signed_deg=_signed(a, b),
        translation_mean=float(distance.mean()) if travels or moved else None,
        translation_sum=float(distance.sum()) if travels or moved else None,
        cammc_mean=float(matrices.mean()),
        cammc_sum=float(matrices.sum()),
        direction_deg=float(np.nanmean(directions)) if np.isfinite(directions).any() else None,
        ate=float(np.sqrt(((a[:, :3, 3] - aligned[:, :3, 3]) ** 2).sum(1).mean())) if moved else None,
        rpe=_rpe(a, aligned) if moved else None,
        rank=level,
        auc30=auc(a, b),
        frames=len(a),
    )


def _unit(poses: Array) -> Array:
    """Positions divided by the greatest distance from frame 0; unchanged where the camera stays."""
    greatest = np.linalg.norm(poses[:, :3, 3], axis=1).max()
    out = poses.copy()
    if greatest > STILL:
        out[:, :3, 3] /= greatest
    return out


def _signed(a: Array, b: Array) -> tuple[float, float, float]:
    """Sum over steps of the turn about x, y, z, estimated minus true, in degrees."""
    difference = turns_deg(b).sum(0) - turns_deg(a).sum(0)
    return float(difference[0]), float(difference[1]), float(difference[2])


def turns_deg(poses: Array) -> Array:
    """Turn of each step about the camera's x, y, z, in degrees [T−1,3]: tilt up, pan right, roll clockwise."""
    steps = poses[:-1, :3, :3].transpose(0, 2, 1) @ poses[1:, :3, :3]
    return np.asarray(np.degrees([cv2.Rodrigues(step)[0].ravel() for step in steps]), float)


def _rpe(a: Array, b: Array) -> float:
    """Root mean square of the translation of (Aᵢ⁻¹·Aᵢ₊₁)⁻¹·(Bᵢ⁻¹·Bᵢ₊₁)."""
    true, guess = invert(a[:-1]) @ a[1:], invert(b[:-1]) @ b[1:]
    return float(np.sqrt(((invert(true) @ guess)[:, :3, 3] ** 2).sum(1).mean()))


def auc(true: Array, estimated: Array, up_to_deg: int = 30) -> float:
    """VGGT's AUC: mean over thresholds 1° … ``up_to_deg`` of the share of pairs whose worse angle is below.

    The worse of rotation and direction of translation, the latter signed. Pairs between which the true camera does not
    travel count by rotation only. Paths [T,4,4].
    """
    i, j = np.triu_indices(len(true), 1)
    a, b = invert(true[i]) @ true[j], invert(estimated[i]) @ estimated[j]
    worse = angle_deg(a[:, :3, :3].transpose(0, 2, 1) @ b[:, :3, :3])
    direction = between_deg(a[:, :3, 3], b[:, :3, 3])
    travels = np.linalg.norm(a[:, :3, 3], axis=1) > STILL
    # A true translation that was estimated as none is as wrong as the opposite one.
    direction = np.where(travels, np.where(np.isnan(direction), 180.0, direction), 0.0)
    worse = np.maximum(worse, direction)
    return float(np.mean([(worse < limit).mean() for limit in range(1, up_to_deg + 1)]))
