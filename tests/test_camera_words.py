"""Sentences become targets and trajectories become sentences, with every sign; what is not understood is an error."""

from __future__ import annotations

import numpy as np
import pytest

from reelign.errors import DataError
from reelign.selection.camera_estimate import PRIMITIVES, CameraEstimate, poses_from_steps, visible
from reelign.selection.camera_words import Asked, camera_words, describe, parse_instruction, target_amounts


def asked(text: str) -> list[list[tuple]]:
    segments = parse_instruction(text).segments
    return [[(a.primitive, a.sign) + ((round(a.amount, 4),) if a.amount else ()) for a in s.asked] for s in segments]


def moving(**amounts: float) -> CameraEstimate:
    steps = np.tile([amounts.get(name, 0.0) / 5 for name in PRIMITIVES], (5, 1))
    return CameraEstimate("by hand", tuple(range(6)), steps, poses_from_steps(steps), 1.0, parallax=True)


@pytest.mark.parametrize(("text", "expected"), [
    ("pan left then dolly forward", [[("pan", -1)], [("dolly", 1)]]),
    ("the camera tilts up slowly", [[("tilt", 1)]]),
    ("zoom in 1.5x", [[("zoom", 1, 0.4055)]]),
    ("zooms out to 0.5x", [[("zoom", -1, 0.6931)]]),
    ("orbit right 30 degrees", [[("orbit", 1, 30.0)]]),
    ("static shot", [[]]), ("The camera stays still.", [[]]), ("no camera movement", [[]]), ("hold still", [[]]),
    ("the camera rolls clockwise", [[("roll", 1)]]), ("rotate counter-clockwise", [[("roll", -1)]]),
    ("the camera dollies in", [[("dolly", 1)]]), ("Camera pulls back", [[("dolly", -1)]]),
    ("push in", [[("dolly", 1)]]), ("camera moves backwards", [[("dolly", -1)]]),
    ("the camera trucks right", [[("truck", 1)]]), ("tracking left", [[("truck", -1)]]),
    ("the camera rises", [[("pedestal", 1)]]), ("descending", [[("pedestal", -1)]]), ("crane up", [[("pedestal", 1)]]),
    ("yaw left", [[("pan", -1)]]), ("The camera is panning to the right", [[("pan", 1)]]),
    ("looks down", [[("tilt", -1)]]), ("arc left 0.5°", [[("orbit", -1, 0.5)]]),
    ("pan right while tilting down", [[("pan", 1), ("tilt", -1)]]),
    ("pan left, tilt up and zoom in; then hold still", [[("pan", -1), ("tilt", 1), ("zoom", 1)], []]),
    ("truck left 20%, followed by a roll clockwise 5 deg", [[("truck", -1, 0.2)], [("roll", 1, 5.0)]]),
])  # fmt: skip
def test_sentences(text: str, expected: list) -> None:
    assert asked(text) == expected


def test_times() -> None:
    segments = parse_instruction("pan left for 2 seconds, then tilt up for 1.5 s, then static").segments
    assert [segment.seconds for segment in segments] == [2.0, 1.5, None]
    assert parse_instruction("hold still then stay static").static


@pytest.mark.parametrize(("text", "message"), [
    ("wobble", "'wobble'"), ("pan lleft", "'pan lleft'"), ("pan", "'pan'"), ("", "got ''"), ("...", "got '...'"),
    ("zoom toward the house", "understood: pan left/right"), ("pan left happily", "'happily' in"),
    ("pan left 2x", "2 x is no amount of a pan"), ("zoom in 1x", "1 x is no amount"),
    ("orbit left 0 degrees", "0 degrees is no amount"), ("pan left and pan right", "one way at a time"),
    ("no zoom in", "'no' in"), ("pan left for 0 seconds", "above 0"), ("pan left 20 degrees 30 degrees", "cannot read"),
])  # fmt: skip
def test_what_is_not_understood_is_one_error(text: str, message: str) -> None:
    with pytest.raises(DataError) as raised:
        parse_instruction(text)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("prompt", "expected"), [
    ("The camera remains still, a girl with braided hair approached the chair", []),
    ("A lake at dawn, no camera movement", []), ("A lake at dawn, shot with a locked camera", []),
    ("a city, the camera slowly zooms out, revealing the sea", [("zoom", -1)]),
    ("dolly in on a candle", [("dolly", 1)]),
    ("Drone footage moving forward over a forest", [("dolly", 1)]),
])  # fmt: skip
def test_camera_words_of_prompts(prompt: str, expected: list) -> None:
    found = camera_words(prompt)
    assert found is not None
    assert [(a.primitive, a.sign) for segment in found.segments for a in segment.asked] == expected


@pytest.mark.parametrize("prompt", [
    "", "A chef with a frying pan on a truck moves left", "a close-up shot of a still life", "still waters run deep",
    "A man tilts his head up as a truck moves right", "the low-angle shot showcasing the vast landscape",
    "a lake, the camera does not move left", "a camera on a table", "the dancers roll left and turn right",
])  # fmt: skip
def test_other_prompts_say_nothing_about_the_camera(prompt: str) -> None:
    assert camera_words(prompt) is None


@pytest.mark.parametrize("way", [1, -1])
@pytest.mark.parametrize(("primitive", "amount"), [
    ("pan", 12.0), ("tilt", 8.0), ("roll", 20.0), ("zoom", 0.4), ("truck", 0.2), ("pedestal", 0.2), ("dolly", 0.3),
])  # fmt: skip
def test_every_primitive_comes_back_from_its_sentence(primitive: str, amount: float, way: int) -> None:
    sentence = describe(moving(**{primitive: way * amount}))
    (segment,) = parse_instruction(sentence).segments
    (found,) = segment.asked
    assert (found.primitive, found.sign) == (primitive, way)
    assert found.amount == pytest.approx(amount, rel=0.03)


def test_sentences_name_orbits_mixtures_and_stillness() -> None:
    assert describe(moving(pan=-20, truck=np.radians(20))) == "the camera orbits right 20 degrees"
    assert (
        describe(moving(pan=20, truck=np.radians(20)))
        == "the camera pans right 20 degrees and trucks right 0.35 depths"
    )
    assert describe(moving(pan=0.3)) == "the camera stays still"
    assert describe(moving(pan=20, tilt=1)) == "the camera pans right 20 degrees"
    assert describe(CameraEstimate("none", reason="too dark")) == "unknown: too dark"


def test_targets() -> None:
    np.testing.assert_allclose(target_amounts(Asked("orbit", 1, 90)), [-90, 0, 0, 0, np.pi / 2, 0, 0])
    np.testing.assert_allclose(target_amounts(Asked("tilt", -1, 7)), [0, -7, 0, 0, 0, 0, 0])
    for primitive in PRIMITIVES:
        assert np.abs(visible(target_amounts(Asked(primitive, -1)))).sum() == pytest.approx(0.2)
