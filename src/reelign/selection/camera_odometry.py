r"""Two-view odometry: the camera between key frames by matched features and an essential matrix, chained.

SIFT (Lowe, 2004) with mutual nearest neighbours and a ratio of 0.8; MAGSAC++ (Baráth et al., 2020) for the essential
matrix, and from it R and the direction of v. An essential matrix is arbitrary where nothing has
parallax, so a turn and a zoom are fitted to the same matches, and where they explain as many, they are the answer, with
no travel. The length of a step is what makes the median depth 1, so steps are comparable as far as the scene is.

It shares no point and no fit of travel with ``camera_motion``, so the two check each other; it bears larger steps, and
is noisier over small ones.

Left out: bundle adjustment, scale carried from step to step by common points, an unknown focal length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from reelign.selection.camera_estimate import (
    DOLLY,
    FOV_DEG,
    PAN,
    PEDESTAL,
    ROLL,
    TILT,
    TRUCK,
    ZOOM,
    CameraEstimate,
    Picture,
    abstain,
    focal_px,
    in_first_depths,
    poses_from_steps,
)
from reelign.selection.camera_models import Array, Turn, depths, fit_turn, is_flat, vector_of

METHOD = "two-view odometry"
FEATURES, RATIO = 1500, 0.8
ERROR_PX = 1.0
FEWEST = 24  # matches, below which a step is lost
EXPLAINED = 0.5  # of the matches, by the model that is taken
AS_GOOD = 0.9  # share of the essential matrix's inliers from which a turn is believed instead
PARALLAX_SHARE = 0.6  # of those inliers that must move beyond the turn and lie in front, for travel moves everything
LEAST = 0.5  # confidence below which the whole abstains
KEY_SHARE = 0.06  # of the picture's width that matches move from key frame to key frame


def estimate_odometry(
    greys: Sequence[Picture], fov_deg: float = FOV_DEG, frames: Sequence[int] | None = None
) -> CameraEstimate:
    """Camera motion of grey frames by two-view geometry.

    Args:
        greys: uint8 [H,W] each, in order of time.
        fov_deg: horizontal field of view of the first frame.
        frames: their indices in the clip, for the record.

    Returns:
        The estimate; it abstains where one step has too few matches that agree, for a chain has no gaps.
    """
    frames = list(range(len(greys)) if frames is None else frames)
    if len(greys) < 2:
        return abstain(METHOD, frames, f"motion needs at least 2 frames; got {len(greys)}", fov_deg)
    height, width = greys[0].shape
    centre, focal = np.array([(width - 1) / 2, (height - 1) / 2]), focal_px(width, fov_deg)
    steps: list[Array] = []
    shares, inliers, keys, zoom = [], [], [0], 0.0
    for end, first, second in _keyframes(greys, KEY_SHARE * width):
        now = focal * np.exp(zoom)
        row, share = _step((first - centre) / now, (second - centre) / now, ERROR_PX / now)
        steps.append(row)
        shares.append(share)
        inliers.append(round(share * len(first)))
        keys.append(end)
        zoom += float(row[ZOOM])
    # A step that is not known would have to be taken as still: a chain with a gap gives no amounts.
    for start, end, share in zip(keys, keys[1:], shares, strict=False):
        if share < EXPLAINED:
            reason = f"the matches from frame {frames[start]} to {frames[end]} are too few or agree on no camera"
            return abstain(METHOD, frames, reason, fov_deg)
    confidence = float(np.mean(shares)) * min(1.0, float(np.mean(inliers)) / 50)
    if confidence < LEAST:
        reason = f"{np.mean(shares):.0%} of the matches agree, {np.mean(inliers):.0f} a step: too few to trust"
        return abstain(METHOD, frames, reason, fov_deg)
    return CameraEstimate(
        METHOD,
        tuple(frames[key] for key in keys),
        np.stack(steps),
        poses_from_steps(in_first_depths(np.stack(steps))),
        confidence=confidence,
        inliers=tuple(inliers),
        fov_deg=fov_deg,
        parallax=any(row[[TRUCK, PEDESTAL, DOLLY]].any() for row in steps),
    )


def _keyframes(greys: Sequence[Picture], far_px: float) -> Iterator[tuple[int, Array, Array]]:
    """Each key frame after the first, and its matches with the one before: they moved by ``far_px`` in the median."""
    sift = cv2.SIFT.create(FEATURES)
    features = [sift.detectAndCompute(grey, None) for grey in greys]
    start = 0
    while start < len(greys) - 1:
        end = start + 1
        first, second = match(features[start], features[end])
        while end < len(greys) - 1 and len(first) and np.median(np.linalg.norm(second - first, axis=1)) < far_px:
            further = match(features[start], features[end + 1])
            if len(further[0]) < max(FEWEST, len(first) / 2):
                break
            end, (first, second) = end + 1, further
        yield end, first, second
        start = end


def match(
    before: tuple[Sequence[cv2.KeyPoint], Array | None], after: tuple[Sequence[cv2.KeyPoint], Array | None]
) -> tuple[Array, Array]:
    """Mutual nearest neighbours that pass Lowe's ratio; positions in both pictures, [N,2] and [N,2]."""
    if before[1] is None or after[1] is None or min(len(before[0]), len(after[0])) < 2:
        return np.zeros((0, 2)), np.zeros((0, 2))
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    there = {
        m.queryIdx: m.trainIdx for m, n in matcher.knnMatch(before[1], after[1], k=2) if m.distance < RATIO * n.distance
    }
    back = {m.queryIdx: m.trainIdx for (m,) in matcher.knnMatch(after[1], before[1], k=1)}
    pairs = [(i, j) for i, j in there.items() if back[j] == i]
    first = np.array([before[0][i].pt for i, _ in pairs], float).reshape(-1, 2)
    return first, np.array([after[0][j].pt for _, j in pairs], float).reshape(-1, 2)


def _step(x: Array, y: Array, limit: float) -> tuple[Array, float]:
    """The seven primitives of one step from matches in focal lengths, and the share of the matches they explain."""
    row = np.zeros(7)
    if len(x) < FEWEST:
        return row, 0.0
    turn = fit_turn(x, y, limit / 2)
    turn_share = float((turn.residual < limit).mean())
    rotation, direction, inside = _essential(x, y, limit)
    share = float(inside.mean())
    if not share:
        return _turned(row, turn), turn_share
    a, b = (np.column_stack([points, np.ones(len(points))])[inside] for points in (x, y))
    inverse_depth, disparity = depths(a, b, rotation, direction)
    near = (inverse_depth > 0) & (disparity > limit)
    if turn_share >= AS_GOOD * share or near.mean() < PARALLAX_SHARE or is_flat(inverse_depth[near]):
        return _turned(row, turn), turn_share
    row[[TILT, PAN, ROLL]] = np.degrees(vector_of(rotation))
    row[[TRUCK, PEDESTAL, DOLLY]] = float(np.median(inverse_depth[near])) * direction * [1, -1, 1]
    return row, share


def _turned(row: Array, turn: Turn) -> Array:
    row[[TILT, PAN, ROLL]] = np.degrees(vector_of(turn.rotation))
    row[ZOOM] = turn.log_zoom
    return row


def _essential(x: Array, y: Array, limit: float) -> tuple[Array, Array, NDArray[np.bool_]]:
    """R and v, camera-to-world, by MAGSAC++; and which matches fit. None fit where it fails.

    Of the two rotations that an essential matrix allows, half a turn apart, the smaller one: no camera turns so far
    between two frames that still match. Of the two directions, the one with more disparity in front.
    """
    cv2.setRNGSeed(0)
    found, mask = cv2.findEssentialMat(x, y, np.eye(3), method=cv2.USAC_MAGSAC, prob=0.999, threshold=limit)
    if found is None or found.shape != (3, 3):
        return np.eye(3), np.zeros(3), np.zeros(len(x), bool)
    inside = mask.ravel() > 0
    # OpenCV gives world-to-camera: y ~ R·x + t, so the camera turned by Rᵀ and moved by −Rᵀ·t.
    *turns, translation = cv2.decomposeEssentialMat(found)
    turn = min(turns, key=lambda rotation: float(np.linalg.norm(vector_of(rotation))))
    rotation, direction = turn.T, -turn.T @ translation.ravel()
    a, b = (np.column_stack([points, np.ones(len(points))])[inside] for points in (x, y))
    inverse_depth, disparity = depths(a, b, rotation, direction)
    front = float((np.sign(inverse_depth) * disparity).sum())
    return rotation, direction if front >= 0 else -direction, inside
