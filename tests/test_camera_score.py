"""Obedience by hand, segments, abstention, smoothness, and pose scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from camera_scenes import line, pan

from reelign.errors import DataError
from reelign.selection.camera_estimate import PRIMITIVES, CameraEstimate, poses_from_steps, visible
from reelign.selection.camera_poses import pose_errors
from reelign.selection.camera_score import jerk, obey, pose_score
from reelign.selection.camera_words import parse_instruction

FOV = 55.0


def camera(*parts: dict[str, float], steps: int = 8, parallax: bool = True) -> CameraEstimate:
    """Each part's amounts over ``steps`` steps of constant speed."""
    rows = [np.tile([part.get(name, 0.0) / steps for name in PRIMITIVES], (steps, 1)) for part in parts]
    table = np.concatenate(rows)
    return CameraEstimate(
        "by hand", tuple(range(len(table) + 1)), table, poses_from_steps(table), 1.0, parallax=parallax
    )


def score(estimate: CameraEstimate, text: str, seconds: float | None = None) -> float:
    return obey(estimate, parse_instruction(text), seconds).score


def test_visible_by_hand() -> None:
    """A pan of half the field of view moves things by half a width; a log zoom of 1 by the mean radius, 0.38."""
    shown = visible(np.array([27.5, -55, 0, 1, 0.1, 0, 0]), FOV)
    assert shown.tolist() == pytest.approx([0.5, -1, 0, 0.38, 0.1 * 0.5 / math.tan(math.radians(27.5)), 0, 0])


def test_obedience_by_hand() -> None:
    assert score(camera({"pan": -10}), "pan left") == pytest.approx(1)
    assert score(camera({"pan": 10}), "pan left") == 0
    assert score(camera({}), "pan left") == 0
    # 1.1° of 55° is 0.02 of the width, of the 0.05 that count as plain
    assert score(camera({"pan": -1.1}), "pan left") == pytest.approx(0.4)
    # half as far as asked is a factor of two: nothing left; 30 of 40 degrees keeps 1 − log₂(4/3)
    assert score(camera({"pan": -10}), "pan left 20 degrees") == 0
    assert score(camera({"pan": -30}), "pan left 40 degrees") == pytest.approx(1 - math.log2(4 / 3))
    # 0.2 of the width along, 0.1 off: two thirds
    assert score(camera({"pan": -11, "tilt": 5.5}), "pan left") == pytest.approx(2 / 3)
    assert score(camera({"pan": -11, "tilt": 5.5}), "pan left and tilt up") == pytest.approx(1)
    assert score(camera({"pan": -11, "tilt": 5.5}), "pan left and tilt down") == pytest.approx(0.5)


def test_raw_values_are_kept() -> None:
    (part,) = obey(camera({"pan": 11, "tilt": 5.5}), parse_instruction("pan left")).parts
    assert (part.sign, part.size) == ((-1,), (0.0,))
    assert part.on_axis == pytest.approx(2 / 3)
    assert part.measured[:2] == pytest.approx((11, 5.5))


def test_still_cameras_and_those_that_come_back() -> None:
    assert score(camera({}), "static shot") == 1
    assert score(camera({"pan": 1.375}), "static shot") == pytest.approx(0.5)  # 0.025 of the width of 0.05
    assert score(camera({"pan": 20}, {"pan": -20}), "static shot") == 0  # the sum is 0, the way there is not


def test_dolly_forward_and_backward_are_opposite() -> None:
    assert score(camera({"dolly": 0.3}), "dolly forward") == pytest.approx(1)
    assert score(camera({"dolly": -0.3}), "dolly forward") == 0
    assert score(camera({"dolly": -0.3}), "dolly out") == pytest.approx(1)


def test_zoom_is_no_dolly() -> None:
    assert score(camera({"dolly": 0.3}), "zoom in") == 0
    assert score(camera({"zoom": 0.3}), "dolly in") == 0  # parallax was seen elsewhere, and this was none


@pytest.mark.parametrize(("seen", "text"), [
    ({"zoom": 0.3}, "dolly in"), ({"zoom": -0.3}, "pull back"), ({"pan": 9}, "truck right"),
    ({"tilt": -9}, "pedestal down"),
])  # fmt: skip
def test_look_alikes_without_parallax_abstain(seen: dict[str, float], text: str) -> None:
    answer = obey(camera(seen, parallax=False), parse_instruction(text))
    assert math.isnan(answer.score)
    assert "no parallax" in answer.reason
    assert answer.parts  # the raw values stay


def test_the_wrong_way_without_parallax_is_a_failure_not_an_abstention() -> None:
    assert score(camera({"zoom": -0.3}, parallax=False), "dolly in") == 0


def test_orbits() -> None:
    right = camera({"pan": -30, "truck": math.radians(30)})
    assert score(right, "orbit right 30 degrees") == pytest.approx(1)
    assert score(right, "orbit left") == 0
    assert score(camera({"truck": 0.5}), "orbit right") == 0


def test_segments_find_their_boundary() -> None:
    estimate = camera({"pan": -10}, {"dolly": 0.3})
    answer = obey(estimate, parse_instruction("pan left then dolly forward"))
    assert answer.score == pytest.approx(1)
    assert [(part.start, part.end) for part in answer.parts] == [(0, 8), (8, 16)]
    assert score(estimate, "dolly forward then pan left") < 0.25  # the wrong order; the boundary helps a little
    assert score(camera({"pan": -10}, {"pan": -10}, {"dolly": 0.3}), "pan left then dolly forward") == pytest.approx(1)


def test_timed_segments() -> None:
    estimate = camera({"pan": -10}, {"tilt": 10})
    assert score(estimate, "pan left for 2 s then tilt up", 4.0) == pytest.approx(1)
    # the first quarter only pans; the rest pans as much as half the tilt takes away
    assert score(estimate, "pan left for 1 s then tilt up", 4.0) == pytest.approx((1 + 10 / 15) / 2)
    with pytest.raises(DataError, match="a time for one segment"):
        score(estimate, "pan left then tilt up for 1 s then static", 4.0)
    with pytest.raises(DataError, match="do not fit a clip of 4 s"):
        score(estimate, "pan left for 5 s then tilt up", 4.0)


def test_abstention_is_no_zero() -> None:
    answer = obey(CameraEstimate("none", reason="too dark"), parse_instruction("pan left"))
    assert (math.isnan(answer.score), answer.reason, answer.parts) == (True, "too dark", ())
    short = obey(camera({"pan": 5}, steps=1), parse_instruction("pan left then pan right"))
    assert "2 segments need" in short.reason


def test_smoothness() -> None:
    assert jerk(camera({"pan": 10}).steps, FOV) == pytest.approx(0, abs=1e-12)
    shaky = camera({"pan": 8}).steps
    shaky[::2] *= 3
    shaky[1::2] *= 0
    # steps 3, 0, 3, 0 …: the second difference is 6 everywhere, the mean 1.5
    assert jerk(shaky, FOV) == pytest.approx(4)
    assert obey(camera({"pan": 10}), parse_instruction("pan right")).smoothness == pytest.approx(1)
    assert jerk(camera({}).steps, FOV) is None
    noise = np.zeros((4000, 7))
    noise[:, :2] = np.random.default_rng(0).normal(size=(4000, 2))
    assert jerk(noise, FOV) == pytest.approx(math.sqrt(6), rel=0.03)


def test_pose_score_by_hand() -> None:
    assert pose_score(pose_errors(pan(0, frames=2), pan(15, frames=2))) == pytest.approx(0.5)
    assert pose_score(pose_errors(line(0, 0, 1), line(0, 0, 3))) == pytest.approx(1)
    assert pose_score(pose_errors(line(0, 0, 1), line(0, 0, -1))) == 0
    assert pose_score(pose_errors(line(1, 0, 0), line(1, 0, 1))) == pytest.approx(math.sqrt(0.5))
