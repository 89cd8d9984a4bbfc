"""Pose errors by hand and against SciPy; pans and straight lines score; forward is not backward."""

from __future__ import annotations

import math

import numpy as np
import pytest
from camera_scenes import line, pan, path, turn
from hypothesis import given, settings
from hypothesis import strategies as st

from reelign.errors import DataError
from reelign.selection.camera_poses import (
    align,
    angle_deg,
    auc,
    check_poses,
    from_quaternions,
    from_world_to_camera,
    invert,
    pose_errors,
    rank,
    relative,
    umeyama,
)

rotation = pytest.importorskip("scipy.spatial.transform", reason="SciPy is the reference here").Rotation


def wandering(frames: int = 8, seed: int = 0) -> np.ndarray:
    """A path through all three dimensions, relative to its first frame."""
    random = np.random.default_rng(seed)
    turns = rotation.from_rotvec(np.cumsum(random.normal(0, 0.1, (frames, 3)), 0)).as_matrix()
    return relative(path(turns, np.cumsum(random.normal(size=(frames, 3)), 0)))


def test_a_turn_of_thirty_degrees_by_hand() -> None:
    errors = pose_errors(pan(0, frames=2), pan(30, frames=2))
    assert (errors.rotation_mean, errors.rotation_sum, errors.rotation_end) == pytest.approx((30, 30, 30))
    assert errors.signed_deg == pytest.approx((0, 30, 0), abs=1e-9)
    assert (errors.translation_mean, errors.direction_deg, errors.ate, errors.rank) == (None, None, None, 0)
    # ‖R(30°) − I‖_F = 2·√2·sin(15°)
    assert errors.cammc_mean == pytest.approx(2 * math.sqrt(2) * math.sin(math.radians(15)))


def test_translation_by_hand() -> None:
    """True 0 → 3 along x, estimated 0 → 2 along y: both have length 1 once scaled, and are √2 apart."""
    errors = pose_errors(line(3, 0, 0, frames=2), line(0, 2, 0, frames=2))
    assert errors.translation_mean == pytest.approx(math.sqrt(2))
    assert errors.cammc_sum == pytest.approx(math.sqrt(2))
    assert errors.direction_deg == pytest.approx(90)
    assert errors.rotation_mean == 0
    assert (errors.rank, errors.ate, errors.rpe) == (1, pytest.approx(math.sqrt(0.5)), pytest.approx(1.0))


def test_sums_grow_with_length_and_means_do_not() -> None:
    short, long = (pose_errors(pan(0, frames=n), pan(12, frames=n)) for n in (7, 13))
    assert long.rotation_sum > 1.5 * short.rotation_sum
    assert long.rotation_mean == pytest.approx(6.5)  # 12·(1 + … + 12)/12/12
    assert short.rotation_mean == pytest.approx(7.0)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.floats(-3, 3)] * 3))
def test_angles_are_scipys(vector: tuple[float, float, float]) -> None:
    turned = rotation.from_rotvec(vector)
    assert angle_deg(turned.as_matrix()) == pytest.approx(np.degrees(turned.magnitude()), abs=1e-6)


def test_small_angles_keep_their_digits() -> None:
    assert angle_deg(turn(pan=1e-6)) == pytest.approx(1e-6, rel=1e-6)


@pytest.mark.parametrize("true", [pan(14), line(1, 0, 0), line(0, 0, -2), line(1, 1, 1), pan(0)], ids=str)
@pytest.mark.parametrize("estimated", [pan(14), line(1, 0, 0), line(1, 1, 1), pan(0), wandering(6)], ids=str)
def test_no_pair_of_paths_is_degenerate(true: np.ndarray, estimated: np.ndarray) -> None:
    """What raises 'degenerate covariance rank' elsewhere: pans, straight lines, and cameras that stay."""
    errors = pose_errors(true, estimated)
    numbers = [v for v in vars(errors).values() if isinstance(v, float)]
    assert np.isfinite(numbers).all()
    assert (errors.ate is None) == (rank(true[:, :3, 3]) == 0)


@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_a_straight_line_matches_itself_at_any_scale(noise: float) -> None:
    true = line(1, 2, 0.5)
    guess = line(3, 6, 1.5)
    guess[:, :3, 3] += noise * np.random.default_rng(0).normal(size=(6, 3))
    errors = pose_errors(true, guess)
    assert errors.ate == pytest.approx(0, abs=1e-6)
    assert (errors.rank, errors.direction_deg) == (1, pytest.approx(0, abs=1e-5))


def test_a_dolly_back_is_as_far_from_a_dolly_forward_as_can_be() -> None:
    forward, back = line(0, 0, 1), line(0, 0, -1)
    errors = pose_errors(forward, back)
    assert errors.direction_deg == pytest.approx(180)
    assert errors.auc30 == 0
    assert errors.ate == pytest.approx(np.sqrt((np.linspace(0, 1, 6) ** 2).mean()))  # a scale below 0 would make it 0
    assert pose_errors(forward, line(0, 0, 5)).auc30 == 1


def test_umeyama_finds_a_known_similarity() -> None:
    random = np.random.default_rng(3)
    source, turned = random.normal(size=(7, 3)), rotation.from_rotvec([0.3, -1, 2]).as_matrix()
    found, shift, scale = umeyama(source, 2.5 * source @ turned.T + [1, -2, 3])
    np.testing.assert_allclose(found, turned, atol=1e-12)
    np.testing.assert_allclose(shift, [1, -2, 3], atol=1e-12)
    assert scale == pytest.approx(2.5)


def test_umeyama_never_mirrors() -> None:
    source = np.random.default_rng(4).normal(size=(7, 3))
    found, _, _ = umeyama(source, source * [1, 1, -1])
    assert np.linalg.det(found) == pytest.approx(1)


def test_umeyama_is_scipys_rotation() -> None:
    random = np.random.default_rng(5)
    source, target = random.normal(size=(9, 3)), random.normal(size=(9, 3))
    theirs, _ = rotation.align_vectors(target - target.mean(0), source - source.mean(0))
    np.testing.assert_allclose(umeyama(source, target)[0], theirs.as_matrix(), atol=1e-9)


def test_alignment_takes_away_world_and_scale() -> None:
    true = wandering()
    world = path([turn(10, 20, 30)], [[4, 5, 6.0]])
    other = world @ true
    other[:, :3, 3] *= 3
    errors = pose_errors(true, other)
    assert errors.ate == pytest.approx(0, abs=1e-9)
    assert errors.rotation_mean == pytest.approx(0, abs=1e-6)
    assert errors.rank == 3


@pytest.mark.parametrize(("positions", "expected"), [
    (np.zeros((5, 3)), 0), (np.linspace(0, 1, 5)[:, None] * [1, 2, 3], 1),
    (np.c_[np.cos(range(5)), np.sin(range(5)), np.zeros(5)], 2), (np.random.default_rng(0).normal(size=(9, 3)), 3),
])  # fmt: skip
def test_rank_of_paths(positions: np.ndarray, expected: int) -> None:
    assert rank(positions) == expected
    poses = path([np.eye(3)] * len(positions), positions - positions[0])
    assert align(poses, poses)[1] == expected


def test_auc_by_hand() -> None:
    """One pair, 10.5° apart: below the thresholds 11 to 30, so 20 of 30."""
    assert auc(pan(0, frames=2), pan(10.5, frames=2)) == pytest.approx(20 / 30)
    assert auc(line(0, 0, 1, frames=2), pan(0, frames=2)) == 0  # a travel that was seen as none is wrong


def test_quaternions_are_scipys_and_world_to_camera() -> None:
    turned = rotation.from_rotvec(np.random.default_rng(1).normal(size=(4, 3)))
    centres = np.random.default_rng(2).normal(size=(4, 3))
    world_to_camera = turned.inv()
    translations = -world_to_camera.apply(centres)
    found = from_quaternions(world_to_camera.as_quat()[:, [3, 0, 1, 2]], translations)
    np.testing.assert_allclose(found, relative(path(turned.as_matrix(), centres)), atol=1e-12)


def test_world_to_camera_by_hand() -> None:
    """A camera that has moved to x = 2 sees the world shifted by −2."""
    shifted = path([np.eye(3)] * 2, [[0, 0, 0], [-2, 0, 0.0]])
    np.testing.assert_allclose(from_world_to_camera(shifted)[1, :3, 3], [2, 0, 0])
    np.testing.assert_allclose(invert(invert(wandering())), wandering(), atol=1e-12)


def test_named_frames_pick_the_true_ones() -> None:
    true = wandering()
    assert pose_errors(true, relative(true[[0, 3, 7]]), frames=[0, 3, 7]).ate == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("poses", "message"), [
    (np.eye(4), r"\[T,4,4\]"), (np.eye(4)[None], "at least two frames"),
    (np.full((2, 4, 4), np.nan), "finite"), (2 * line(1, 0, 0), "is a rotation"),
    (path([np.diag([1, 1, -1.0])] * 2, np.zeros((2, 3))), "is a rotation"), (np.zeros((3, 2)), r"\[T,4,4\]"),
])  # fmt: skip
def test_what_is_no_trajectory(poses: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_poses(poses)


def test_bad_pairs_and_quaternions() -> None:
    with pytest.raises(DataError, match="got 6 and 5: name the frames"):
        pose_errors(pan(1), pan(1, frames=5))
    with pytest.raises(DataError, match="do not fit"):
        pose_errors(pan(1), pan(1, frames=2), frames=[0, 6])
    with pytest.raises(DataError, match="length above 0"):
        from_quaternions(np.zeros((2, 4)), np.zeros((2, 3)))
    with pytest.raises(DataError, match=r"\[T,4\]"):
        from_quaternions(np.zeros((2, 3)), np.zeros((2, 3)))
