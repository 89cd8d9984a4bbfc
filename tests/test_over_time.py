"""Quality along a clip: parts and numbers by hand, and defects planted in one part are found in that part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reelign.datasets.moving_shapes import MovingShapes, all_specs
from reelign.errors import DataError
from reelign.metrics.over_time import (
    STEADY,
    block_parts,
    drift,
    pictures_over_time,
    second_parts,
    shapes_over_time,
    summarise,
)

BLOCKS = block_parts([1] * 5)


@pytest.fixture(scope="module")
def drawn():
    specs = all_specs(STEADY)[::4]
    return MovingShapes().render(specs, torch.Generator().manual_seed(0)), specs


def test_parts_by_hand():
    assert second_parts(17, 8.0) == [slice(0, 8), slice(8, 16)]
    assert second_parts(30, 7.5)[-1] == slice(22, 30)  # edges are rounded, and nothing is counted twice
    assert block_parts([1] * 5) == [slice(0, 1), slice(1, 5), slice(5, 9), slice(9, 13), slice(13, 17)]
    assert block_parts([3, 3]) == [slice(0, 9), slice(9, 21)]
    with pytest.raises(DataError, match="7 frames at 8"):
        second_parts(7, 8.0)


def test_pictures_by_hand():
    """A grey level that rises by 1 a frame, then by 3: energies are the steps, sharpness of flat pictures is 0."""
    levels = torch.tensor([10.0, 11, 12, 15, 18]) / 255
    video = levels.view(1, 5, 1, 1, 1).expand(2, 5, 3, 32, 32)
    found = pictures_over_time(video, [slice(0, 3), slice(3, 5)])
    assert found["motion_energy"].tolist() == [pytest.approx([1, 3], abs=1e-4)] * 2
    assert found["sharpness"].tolist() == [[0, 0]] * 2
    assert pictures_over_time(video, [slice(0, 1), slice(1, 3)])["motion_energy"][0].tolist() == pytest.approx([1, 1])


def test_drawn_clips_are_right_in_every_block(drawn):
    found = shapes_over_time(*drawn, BLOCKS)
    assert found["colour"].mean(0).min() == 1
    assert found["shape"].mean(0).min() > 0.97
    assert found["motion"].mean(0).min() > 0.97


def test_what_is_asked_is_what_is_read(drawn):
    """Clips that were asked to show something else are wrong in every block."""
    video, specs = drawn
    other = {"moving left": "moving right", "moving up": "moving down", "growing": "shrinking"}
    flipped = {**other, **{b: a for a, b in other.items()}}
    turned = [i for i, spec in enumerate(specs) if spec.motion in flipped]
    asked = [type(specs[i])(specs[i].shape, specs[i].colour, flipped[specs[i].motion]) for i in turned]
    found = shapes_over_time(video[turned], asked, BLOCKS)
    assert found["motion"].max() == 0
    assert found["colour"].min() == 1


def test_a_freeze_is_found_where_it_begins(drawn):
    video, specs = drawn
    frozen = video.clone()
    frozen[:, 9:] = video[:, 8:9]
    motion = shapes_over_time(frozen, specs, BLOCKS)["motion"].mean(0)
    energy = pictures_over_time(frozen, BLOCKS)["motion_energy"].mean(0)
    assert motion[:3].min() > 0.97
    assert motion[3:].max() == 0
    assert energy[:3].min() > 0.1
    assert energy[3:].max() == 0


def test_a_colour_that_drifts_and_a_picture_that_blurs_are_found(drawn):
    video, specs = drawn
    reds = [i for i, spec in enumerate(specs) if spec.colour == "red"]
    late = video[reds].clone()
    late[:, 9:] = late[:, 9:].flip(2)  # red shapes turn blue
    colour = shapes_over_time(late, [specs[i] for i in reds], BLOCKS)["colour"]
    assert colour[:, :3].min() == 1
    assert colour[:, 3:].max() == 0
    soft = video.clone()
    soft[:, 13:] = torch.nn.functional.avg_pool2d(soft[:, 13:].flatten(0, 1), 9, 1, 4).view_as(soft[:, 13:])
    sharp = pictures_over_time(soft, BLOCKS)["sharpness"]
    change = drift(sharp)
    assert change.ci95[1] < -1
    assert abs(drift(sharp, 0, -2).delta) < 0.3


def test_an_empty_part_is_wrong_and_not_missing(drawn):
    video, specs = drawn
    dark = video.clone()
    dark[:, 13:] = 0.1
    found = shapes_over_time(dark, specs, BLOCKS)
    assert all(found[name][:, -1].max() == 0 for name in ("colour", "shape", "motion"))


def test_intervals_are_of_clips():
    values = torch.from_numpy(np.random.default_rng(0).normal([0.0, 1.0], 0.5, (400, 2)))
    first, second = summarise(values)
    assert first.n == 400
    assert first.ci95[0] < 0 < first.ci95[1]
    width = second.ci95[1] - second.ci95[0]
    assert width == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.15)
    assert drift(values).delta == pytest.approx(second.mean - first.mean)
    with pytest.raises(DataError, match="at least 2 clips"):
        summarise(values[:1])


def test_what_cannot_be_read_in_parts_is_refused(drawn):
    video, _ = drawn
    with pytest.raises(DataError, match="'turning'"):
        shapes_over_time(video[:1], [all_specs(("turning",))[0]], BLOCKS)
    with pytest.raises(DataError, match="parts lie within the clip"):
        pictures_over_time(video, [slice(15, 19)])
    with pytest.raises(DataError, match="at least 2 frames"):
        pictures_over_time(video[:, :1], [slice(0, 1)])
