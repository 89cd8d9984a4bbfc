"""Moving shapes and the instrument that reads them."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from reelign.contracts import Request, VideoBatch
from reelign.datasets.moving_shapes import (
    ALL_MOTIONS,
    COLOURS,
    MOTIONS,
    PALETTE,
    MovingShapes,
    ShapeSpec,
    all_specs,
    parse_caption,
    wrong_spec,
)
from reelign.datasets.shapes_folder import write_shapes
from reelign.errors import DataError, RunFolderError
from reelign.metrics.shapes_instrument import IDEAL_MOMENT, SYMMETRY, agreement, read_clips, shapes_measure


def test_the_grammar_is_complete_and_reads_back():
    specs = all_specs(ALL_MOTIONS)
    assert len(all_specs()) == 248
    assert len({s.caption for s in specs}) == len(specs)
    assert [parse_caption(s.caption) for s in specs] == specs
    assert ShapeSpec("circle", "orange", "turning", "blue").caption == "an orange circle turning blue"


def test_clips_are_reproducible_and_in_range(random):
    one = MovingShapes().batch(8, torch.Generator().manual_seed(3))
    two = MovingShapes().batch(8, torch.Generator().manual_seed(3))
    assert torch.equal(one[0], two[0])
    assert one[1:] == two[1:]
    assert one[0].shape == (8, 17, 3, 64, 64)
    assert one[0].dtype == torch.float32
    assert one[0].min() >= 0
    assert one[0].max() <= 1


@pytest.mark.parametrize("size", [32, 64, 96])
def test_shapes_stay_inside_and_have_equal_areas(size, random):
    """No shape touches the border, and a circle, square and triangle of the same radius cover the same area."""
    data = MovingShapes(size=size, motions=ALL_MOTIONS)
    video, _specs, _ = data.batch(48, random)
    border = torch.cat([video[..., 0, :], video[..., -1, :], video[..., :, 0], video[..., :, -1]], -1)
    assert (border.amax((1, 2, 3)) - border.amin((1, 2, 3))).max() < 0.01
    areas = []
    for shape in ("circle", "square", "triangle"):
        clip = data.render([ShapeSpec(shape, "white", "staying still")], torch.Generator().manual_seed(1))[0, 0, 0]
        areas.append(((clip - clip[0, 0]) / (clip.max() - clip[0, 0])).sum().item())
    assert max(areas) / min(areas) < (1.1 if size == 32 else 1.03)  # anti-aliasing of small shapes


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("moving left", 1, -1), ("moving right", 1, 1), ("moving up", 0, -1), ("moving down", 0, 1)],
)
def test_directions_are_those_of_the_caption(motion, axis, sign, random):
    """Right is right and down is down at 64 pixels, where the tutorial's shapes ran backwards."""
    clip = MovingShapes().render([ShapeSpec("square", "red", motion)], random)[0, :, 0]
    weight = (clip - clip[0, 0, 0]).clamp_min(0)
    grid = torch.arange(64.0)
    along = (weight.sum(2 - axis) * grid).sum(-1) / weight.sum((1, 2))
    assert (sign * along.diff() > 0).all()
    assert sign * (along[-1] - along[0]) > 15


def test_colour_and_growth_over_time(random):
    spec = [ShapeSpec("circle", "red", "turning", "blue"), ShapeSpec("circle", "white", "growing")]
    turning, growing = MovingShapes().render(spec, random)
    middle = turning.flatten(2)[:, :, (turning[0, 0] - turning[0, 0, 0, 0]).abs().argmax()]
    torch.testing.assert_close(middle[0], torch.tensor(PALETTE["red"]))
    torch.testing.assert_close(middle[-1], torch.tensor(PALETTE["blue"]))
    area = (growing[:, 0] - growing[0, 0, 0, 0]).sum((1, 2))
    assert (area.diff() > 0).all()
    assert area[-1] > 3 * area[0]


def test_caption_noise_has_the_asked_rate_and_lies_in_one_attribute(random):
    data = MovingShapes(frames=2, size=32, caption_noise=(0.4, 0.2, 0.1))
    _, specs, captions = data.batch(3000, random)
    wrong = Counter()
    for spec, caption in zip(specs, captions, strict=True):
        said = parse_caption(caption)
        changed = [name for name in ("colour", "shape", "motion") if getattr(said, name) != getattr(spec, name)]
        assert len(changed) <= 1
        wrong.update(changed)
    for name, rate in (("colour", 0.4), ("shape", 0.2), ("motion", 0.1)):
        assert wrong[name] / 3000 == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / 3000))


def test_a_colour_is_mistaken_for_any_other(random):
    still = ShapeSpec("circle", "red", "growing")
    assert {wrong_spec(still, "colour", random).colour for _ in range(200)} == set(COLOURS) - {"red"}
    turning = ShapeSpec("circle", "red", "turning", "orange")
    assert {wrong_spec(turning, "colour", random).colour for _ in range(200)} == set(COLOURS) - {"red", "orange"}


@pytest.mark.parametrize(
    "bad",
    [
        {"shape": "hexagon", "colour": "red", "motion": "growing"},
        {"shape": "circle", "colour": "red", "motion": "rotating clockwise"},
        {"shape": "circle", "colour": "red", "motion": "turning"},
        {"shape": "circle", "colour": "red", "motion": "turning", "colour_to": "red"},
        {"shape": "circle", "colour": "red", "motion": "growing", "colour_to": "blue"},
    ],
)
def test_impossible_clips_are_refused(bad):
    with pytest.raises(DataError):
        ShapeSpec(**bad)


def test_foreign_captions_are_refused():
    with pytest.raises(DataError, match="reads 'a COLOUR SHAPE MOTION'; got 'a cat washing the dishes'"):
        parse_caption("a cat washing the dishes")


def test_ideal_moments_by_integration():
    """|c_n| of unit-area shapes, integrated on a grid, independent of the formula."""
    from reelign.datasets.moving_shapes import signed_distance

    axis = torch.linspace(-2, 2, 2001, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    for shape, order in SYMMETRY.items():
        inside = (signed_distance(shape, x, y, torch.tensor(1 / math.sqrt(math.pi))) < 0).numpy()
        z = (x + 1j * y).numpy()[inside]
        area = inside.sum() * 0.002**2
        moment = abs((z**order).sum()) * 0.002**2 / area ** (order / 2 + 1)
        assert moment == pytest.approx(IDEAL_MOMENT[shape], rel=0.01)


@pytest.mark.parametrize("size", [64, 128])
def test_the_instrument_reads_clean_clips(size):
    """At most 1 % errors; a full measurement is in benchmarks/shapes_instrument.py."""
    video, specs, _ = MovingShapes(size=size, motions=ALL_MOTIONS).batch(200, torch.Generator().manual_seed(11))
    for name, right in agreement(video, specs).items():
        assert right.mean() >= 0.99, name


def test_the_instrument_can_say_no():
    """Frozen, reversed, recoloured, blank and noise clips do not get the marks of the real ones."""
    random = torch.Generator().manual_seed(2)
    moving = [s for s in all_specs() if s.motion in ("moving left", "growing", "rotating clockwise")]
    video = MovingShapes().render(moving, random)
    frozen = agreement(video[:, :1].expand_as(video), moving)
    assert frozen["motion"].mean() == 0
    assert frozen["shape"].mean() > 0.95
    assert agreement(video.flip(1), moving)["motion"].mean() == 0
    assert agreement(video[:, :, [1, 2, 0]], moving)["colour"].mean() < 0.2
    assert {r.motion for r in read_clips(torch.full((1, 17, 3, 64, 64), 0.1))} == {"nothing"}
    noise = torch.rand(8, 17, 3, 64, 64, generator=random)
    assert (
        np.mean(
            [r.agrees(s)["shape"] and r.agrees(s)["motion"] for r, s in zip(read_clips(noise), moving[:8], strict=True)]
        )
        == 0
    )


def test_the_measure_reads_the_prompt(random):
    specs = all_specs()[:4]
    video = MovingShapes().render(specs, random)
    right = shapes_measure(VideoBatch(video, 8.0, Request(tuple(s.caption for s in specs))))
    assert {k: v.tolist() for k, v in right.items()} == {
        f"{a}_accuracy": [1.0] * 4 for a in ("colour", "shape", "motion")
    }
    others = Request(tuple(wrong_spec(s, "motion", random).caption for s in specs))
    wrong = shapes_measure(VideoBatch(video, 8.0, others))
    assert wrong["motion_accuracy"].sum() == 0
    assert wrong["colour_accuracy"].sum() == 4


def test_the_folder_is_a_videofolder(tmp_path):
    import csv

    assert list(write_shapes(tmp_path / "out", MovingShapes(), 3, seed=1)) == [1, 2, 3]
    rows = list(csv.DictReader((tmp_path / "out" / "metadata.csv").open()))
    assert [row["file_name"] for row in rows] == ["00000.mp4", "00001.mp4", "00002.mp4"]
    for row in rows:
        spec = parse_caption(row["text"])
        assert (spec.shape, spec.colour, spec.motion) == (row["shape"], row["colour"], row["motion"])
        assert (tmp_path / "out" / row["file_name"]).stat().st_size > 500
    with pytest.raises(RunFolderError, match="new or empty folder"):
        next(write_shapes(tmp_path / "out", MovingShapes(), 1, seed=1))


def test_motions_are_ten_and_one_more():
    assert len(MOTIONS) == 10
    assert set(ALL_MOTIONS) - set(MOTIONS) == {"staying still"}
