"""Clip metrics by hand: formulas on tiny arrays, against plain NumPy, SciPy or scikit-image, and awkward clips."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelign.metrics import consistency, drift, dynamics, flicker, flow, integrity, picture_quality, smoothness
from reelign.metrics.clip import ClipMetric, Frame, Undefined, measure
from reelign.metrics.traces import Trace, means

METRICS: list[ClipMetric] = [
    flicker.TemporalFlickering(),
    flicker.MotionCompensatedFlicker(),
    smoothness.MotionSmoothness(),
    dynamics.DynamicDegree(),
    consistency.HistogramConsistency(),
    picture_quality.Sharpness(),
    picture_quality.Blur(),
    picture_quality.Blockiness(),
    picture_quality.Exposure(),
    picture_quality.Clipping(),
    picture_quality.Colourfulness(),
    integrity.Freezes(),
    integrity.Cuts(),
    integrity.Facts(),
    drift.ColourSteadiness(),
]
CURVES = st.lists(st.floats(-5, 5, allow_nan=False), min_size=1, max_size=30)


def textured(height=160, width=240, seed=0):
    """A smooth random picture in colour: something that flow can hold on to."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    scales = [cv2.GaussianBlur(noise, (0, 0), sigma) for sigma in (2, 5, 12, 30)]
    return np.clip(128 + sum(22 * scale / scale.std() for scale in scales), 0, 255).round().astype(np.uint8)


def panning(step, frames=9, height=160, width=240, seed=0):
    """A window that moves ``step`` pixels a frame over a larger picture: an exact pan to the right."""
    scene = textured(height, width + step * frames, seed)
    return [np.ascontiguousarray(scene[:, step * t : step * t + width]) for t in range(frames)]


def values(frames, *metrics, fps=8.0):
    return measure(frames, fps, metrics or METRICS)


def grey(level, height=64, width=64):
    return np.full((height, width, 3), level, np.uint8)


# The whole set


def test_names_of_columns_are_unique_and_as_the_cards_say():
    columns = [name for metric in METRICS for name in metric.card.values]
    assert len(columns) == len(set(columns))
    assert list(values(panning(2))) == columns


def test_values_lie_in_the_range_of_their_card():
    for frames in (
        panning(3),
        [grey(0)] * 4,
        list(np.random.default_rng(1).integers(0, 256, (6, 64, 64, 3), np.uint8)),
    ):
        found = values(frames)
        for metric in METRICS:
            low, high = metric.card.range
            numbers = [found[name] for name in metric.card.values if not isinstance(found[name], Undefined)]
            assert all(low <= number <= high and math.isfinite(number) for number in numbers), metric.card.name


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (2, 2), (7, 5), (11, 40), (31, 33), (33, 31), (40, 1200)])
@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_no_size_or_length_crashes_or_gives_a_wrong_number(size, frames):
    random = np.random.default_rng(2)
    for value in values([random.integers(0, 256, (*size, 3), np.uint8) for _ in range(frames)]).values():
        assert isinstance(value, Undefined) or math.isfinite(value)


def test_one_frame_has_no_motion_rather_than_none_of_it():
    found = values([textured()])
    undefined = {name for name, value in found.items() if isinstance(value, Undefined)}
    moving = [metric for metric in METRICS if type(metric).__module__.split(".")[-1] not in ("picture_quality",)]
    assert undefined == {n for m in moving for n in m.card.values if m.card.name != "facts"}
    assert "at least 2 frames; this clip has 1" in str(found["temporal_flickering"])


@pytest.mark.parametrize("fps", [0.0, math.nan, math.inf, -1.0])
def test_an_unknown_rate_is_said_and_stops_only_what_needs_it(fps):
    found = values(panning(3), fps=fps)
    undefined = {name for name, value in found.items() if isinstance(value, Undefined)}
    assert undefined == {*dynamics.DynamicDegree.card.values, *integrity.Facts.card.values}


def test_memory_does_not_grow_with_the_clip():
    scene = [textured(96, 128, seed) for seed in range(6)]

    def peak(frames):
        tracemalloc.start()
        values(itertools.islice(itertools.cycle(scene), frames))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(20)
    assert peak(200) - peak(20) < 180 * 4000  # bytes: rows of numbers, not pictures of 36 864


def test_a_frame_is_decoded_into_views_once_for_all_metrics(monkeypatch):
    calls = []
    monkeypatch.setattr(flow, "dis_flow", lambda a, b: calls.append(1) or np.zeros((*a.shape, 2), np.float32))
    values(panning(2, frames=9), fps=8.0)
    # 8 pairs of neighbours, shared by flicker, cuts and dynamic degree, and 4 pairs of even frames; two directions.
    assert len(calls) == 2 * (8 + 4)


def test_trace_windows_hops_and_strides():
    seen = []

    def look(frames):
        seen.append([frame.index for frame in frames])
        return {"index": float(frames[-1].index)}

    trace = Trace(look, means, window=3, hop=2, every=2)
    for index in range(16):
        trace.add(Frame(index, grey(0, 2, 2)))
    assert seen == [[0, 2, 4], [4, 6, 8], [8, 10, 12]]
    assert trace.finish() == {"index": 8.0}


def test_trace_that_never_says_anything_is_undefined():
    trace = Trace(lambda frames: {}, means)
    trace.add(Frame(0, grey(0)))
    with pytest.raises(Undefined, match="no frame of this clip can be measured"):
        trace.finish()


# Flicker and smoothness


def test_temporal_flickering_by_hand():
    """Pairs differ by 10 and by 20 levels: (255 − 15)/255."""
    found = values([grey(100), grey(110), grey(90)], flicker.TemporalFlickering())
    assert found == {"temporal_flickering": 240 / 255}


def test_temporal_flickering_is_the_plain_formula():
    frames = list(np.random.default_rng(3).integers(0, 256, (5, 17, 23, 3), np.uint8))
    pairs = [np.abs(a.astype(float) - b.astype(float)).mean() for a, b in itertools.pairwise(frames)]
    found = values(frames, flicker.TemporalFlickering())["temporal_flickering"]
    assert found == pytest.approx((255 - np.mean(pairs)) / 255, abs=1e-12)


def test_residual_counts_only_trusted_pixels_and_is_taken_after_warping():
    """The later picture is the earlier one moved 1 px right, 3 levels brighter; the untrusted half is nonsense."""
    earlier = np.tile(np.arange(10, 90, 10, np.uint8), (4, 1))
    later = np.roll(earlier, 1, axis=1) + np.uint8(3)
    motion = np.zeros((4, 8, 2), np.float32)
    motion[..., 0] = 1
    both = flow.Flow(motion, -motion)
    trusted = np.ones((4, 8), bool)
    trusted[:, 7] = False  # leaves the picture
    assert np.array_equal(both.trusted, trusted)
    assert flicker.residual(earlier, later, both) == pytest.approx(3.0)


def test_residual_says_nothing_where_little_is_trusted():
    away = np.full((8, 8, 2), 100, np.float32)
    assert flicker.residual(grey(1, 8, 8)[..., 0], grey(2, 8, 8)[..., 0], flow.Flow(away, away)) is None


def test_motion_compensated_flicker_sees_brightness_and_not_motion():
    pan = panning(5)
    metric = flicker.MotionCompensatedFlicker()
    blinking = [np.clip(f.astype(int) + 6 * (t % 2), 0, 255).astype(np.uint8) for t, f in enumerate(pan)]
    plain = values(pan, flicker.TemporalFlickering())["temporal_flickering"]
    assert 255 * (1 - plain) > 15
    assert values(pan, metric)["motion_compensated_flicker"] < 0.6
    assert values(blinking, metric)["motion_compensated_flicker"] == pytest.approx(6, abs=0.5)


def test_midpoint_is_super_slomos_formula():
    """Against scipy's interpolation, with flows of our own making."""
    ndimage = pytest.importorskip("scipy.ndimage")
    random = np.random.default_rng(4)
    first, last = textured(40, 50, 1)[..., 0], textured(40, 50, 2)[..., 0]
    forward, backward = (random.uniform(-3, 3, (40, 50, 2)).astype(np.float32) for _ in range(2))
    y, x = np.mgrid[:40, :50]

    def sampled(picture, shift):
        where = np.stack([y + shift[..., 1], x + shift[..., 0]])
        return ndimage.map_coordinates(picture.astype(float), where, order=1, mode="nearest")

    expected = (sampled(first, (backward - forward) / 4) + sampled(last, (forward - backward) / 4)) / 2
    ours = smoothness.midpoint(first, last, flow.Flow(forward, backward))
    assert np.abs(ours - expected).max() <= 2.5  # OpenCV interpolates at 1/32 pixel and rounds to a level twice
    assert np.abs(ours - expected).mean() < 0.5


def test_motion_smoothness_of_a_pan_and_of_a_shuffled_pan():
    pan = panning(6, frames=9)
    metric = smoothness.MotionSmoothness()
    smooth = values(pan, metric)["motion_smoothness"]
    shaken = values([pan[t] for t in (0, 5, 2, 7, 4, 1, 6, 3, 8)], metric)["motion_smoothness"]
    assert smooth > 0.99
    assert shaken < 0.9


def test_motion_smoothness_holds_out_odd_frames_only():
    """Frames of one level: midpoints of 0-2 and 2-4 are 100; the odd frames are 10 and 30 away; 5 has no right."""
    clip = [grey(100), grey(110), grey(100), grey(130), grey(100), grey(0)]
    assert values(clip, smoothness.MotionSmoothness()) == {"motion_smoothness": pytest.approx(235 / 255)}


# Flow and dynamics


@pytest.mark.parametrize(("dx", "dy"), [(7, 0), (-5, 3), (0, -9)])
def test_flow_reads_a_known_shift(dx, dy):
    scene = textured(200, 280)
    first, second = (Frame(i, np.ascontiguousarray(scene[20 - s * dy :, 20 - s * dx :][:160, :240])) for i, s in
                     enumerate((0, 1)))  # fmt: skip
    found = flow.flow_between(first, second)
    inside = found.forward[20:-20, 20:-20]
    assert np.median(inside.reshape(-1, 2), axis=0) == pytest.approx((dx, dy), abs=0.15)
    assert found.trusted[20:-20, 20:-20].mean() > 0.98


def test_a_pan_of_7_pixels_reads_7_pixels():
    pan = panning(7, height=256, width=320)
    assert values(pan, dynamics.DynamicDegree())["motion_px"] == pytest.approx(7, abs=0.3)
    assert values(pan, dynamics.DynamicDegree())["dynamic_degree"] == 1


def test_motion_is_scaled_to_short_side_256():
    """A clip half the size that moves 4 px a pair moves as much as one of short side 256 that moves 8."""
    assert values(panning(4, height=128, width=200), dynamics.DynamicDegree())["motion_px"] == pytest.approx(8, abs=0.3)
    assert values(panning(14, height=512, width=700, frames=5), dynamics.DynamicDegree())["motion_px"] == pytest.approx(
        7, abs=0.3
    )


def test_noise_is_not_motion():
    random = np.random.default_rng(5)
    scene = textured(256, 320).astype(float)
    noisy = [np.clip(scene + random.normal(0, 3, scene.shape), 0, 255).round().astype(np.uint8) for _ in range(6)]
    found = values(noisy, dynamics.DynamicDegree())
    assert found["dynamic_degree"] == 0
    assert found["motion_px"] < 2.5


def test_consistent_is_sundarams_test():
    """0.5 px of disagreement at no motion passes, 0.8 does not; at 10 px of motion 1.4 passes; out of frame never."""

    def agree(forward, backward, at=(0, 0)):
        f, b = (np.zeros((40, 40, 2), np.float32) for _ in range(2))
        f[..., 0], b[..., 0] = forward, backward
        return bool(flow.consistent(f, b)[at])

    assert agree(0, 0.5)
    assert not agree(0, 0.8)
    assert agree(10, -8.6)
    assert not agree(10, -8.4)
    assert not agree(10, -10, at=(5, 30))


def test_top_motion_is_the_mean_of_the_longest_twentieth():
    forward = np.zeros((40, 40, 2), np.float32)
    forward[0, :20, 0] = 0.1  # 80 of 1600 pixels are 5 %: 20 short ones are pushed out by 80 long ones
    forward[10:12, :, 1] = 3
    found = flow.Flow(forward, -forward)
    everything = flow.Flow(forward, np.zeros_like(forward))
    object.__setattr__(everything, "trusted", np.ones((40, 40), bool))
    assert flow.top_motion(everything) == pytest.approx(3)
    assert flow.top_motion(found) is not None
    object.__setattr__(found, "trusted", np.zeros((40, 40), bool))
    assert flow.top_motion(found) is None


@pytest.mark.parametrize(
    ("fps", "every"), [(8, 1), (11.9, 1), (12.1, 2), (16, 2), (24, 3), (29.97, 4), (60, 8), (1, 1)]
)
def test_stride_is_vbenchs(fps, every):
    assert dynamics.stride(fps) == every


@pytest.mark.parametrize(
    ("moving", "pairs", "dynamic"),
    [
        (0, 1, False),
        (1, 1, True),
        (1, 2, True),
        (1, 5, False),
        (2, 5, True),
        (1, 7, False),
        (2, 7, True),
        (3, 15, False),
    ],
)
def test_decision_is_vbenchs_but_for_two_frames(moving, pairs, dynamic):
    """round(4n/16) of n sampled frames: 1 of 3, 2 of 6 and 8 (round(1.5) = 2), 4 of 16; and never 0 of 2."""
    motion = np.array([6.1] * moving + [6.0] * (pairs - moving))
    assert dynamics.is_dynamic(motion, pairs + 1) is dynamic


def test_a_still_clip_of_two_sampled_frames_is_not_dynamic():
    """VBench calls every such clip dynamic."""
    assert values([textured()] * 2, dynamics.DynamicDegree())["dynamic_degree"] == 0


# Consistency


def test_colour_histogram_is_numpys():
    picture = np.random.default_rng(6).integers(0, 256, (30, 41, 3), np.uint8)
    theirs, _ = np.histogramdd(picture.reshape(-1, 3), bins=(8, 8, 8), range=[(0, 256)] * 3)
    assert np.abs(consistency.colour_histogram(picture) - theirs / theirs.sum()).max() < 1e-7


def test_histogram_consistency_by_hand():
    """Black, half black half white, white: ½(½ + ½) and ½(½ + 0)."""
    half = grey(0, 4, 4)
    half[:2] = 255
    found = values([grey(0, 4, 4), half, grey(255, 4, 4)], consistency.HistogramConsistency())
    assert found == {"histogram_consistency": pytest.approx((0.5 + 0.25) / 2)}


# Picture quality


def test_sharpness_is_the_variance_of_the_laplacian():
    ndimage = pytest.importorskip("scipy.ndimage")
    picture = textured()[..., 0]
    laplacian = ndimage.laplace(picture.astype(float), mode="mirror")
    assert picture_quality.sharpness(picture) == pytest.approx(math.log1p(laplacian.var()), abs=1e-9)
    assert picture_quality.sharpness(grey(77)[..., 0]) == 0


def test_blur_is_scikit_images():
    skimage = pytest.importorskip("skimage.measure", reason="scikit-image is the reference here")
    for seed, sigma in ((0, 0.1), (1, 1.5), (2, 4.0)):
        picture = cv2.GaussianBlur(textured(seed=seed)[..., 0], (0, 0), sigma)
        assert picture_quality.blur(picture) == pytest.approx(float(skimage.blur_effect(picture)), abs=1e-5)


def test_blurring_lowers_sharpness_and_raises_blur():
    pan = panning(3)
    soft = [cv2.GaussianBlur(frame, (0, 0), 2) for frame in pan]
    metrics = picture_quality.Sharpness(), picture_quality.Blur()
    sharp, blurred = values(pan, *metrics), values(soft, *metrics)
    assert sharp["sharpness"] - blurred["sharpness"] > 1
    assert blurred["blur"] - sharp["blur"] > 0.05


def test_blockiness_by_hand():
    """Steps of 12 on the grid and of 3 elsewhere, both ways: 12/3 − 1."""
    position = np.arange(1, 32)
    ramp = np.concatenate([[0], np.cumsum(np.where(position % 8 == 0, 12, 3) * (-1) ** (position // 2))])
    both = (ramp[:, None] + ramp[None, :] + 100).astype(np.uint8)
    found = values([np.dstack([both] * 3)], picture_quality.Blockiness())
    assert found == {"blockiness": pytest.approx(3.0)}


def test_grid_steps_are_numpys():
    picture = np.random.default_rng(7).integers(0, 256, (37, 50), np.uint8).astype(int)
    sums = {True: [], False: []}
    for axis in (0, 1):
        steps = np.moveaxis(np.abs(np.diff(picture, axis=axis)), axis, 0)
        for index, line in enumerate(steps, 1):
            sums[index % 8 == 0].extend(line.ravel())
    expected = {
        "on": sum(sums[True]),
        "on_count": len(sums[True]),
        "off": sum(sums[False]),
        "off_count": len(sums[False]),
    }
    assert picture_quality.grid_steps(picture.astype(np.uint8)) == expected


def test_blockiness_rises_with_jpeg():
    pan = panning(3, frames=3)
    coded = [cv2.imdecode(cv2.imencode(".jpg", f, [cv2.IMWRITE_JPEG_QUALITY, 8])[1], cv2.IMREAD_COLOR) for f in pan]
    assert abs(values(pan, picture_quality.Blockiness())["blockiness"]) < 0.05
    assert values(coded, picture_quality.Blockiness())["blockiness"] > 0.5


def test_exposure_and_clipping_by_hand():
    """Grey 0, 2, 3, 252, 253, 255 and two of 100."""
    row = np.array([[0, 2, 3, 252, 253, 255, 100, 100]], np.uint8)
    levels = picture_quality.grey_levels(row)
    assert picture_quality.exposure(levels) == {
        "brightness": pytest.approx(row.mean()),
        "contrast": pytest.approx(row.astype(float).std()),
    }
    assert picture_quality.clipping(levels) == {"clipped_share": pytest.approx(0.5), "black_share": 0.0}


def test_a_frame_is_black_from_98_percent_of_dark_pixels_on():
    for bright, black in ((2, 1.0), (3, 0.0)):
        frame = np.full((10, 10), 25, np.uint8)
        frame.ravel()[:bright] = 26
        assert picture_quality.clipping(picture_quality.grey_levels(frame))["black_share"] == black
    half = values([grey(3), grey(200)], picture_quality.Clipping())
    assert half["black_share"] == 0.5


def test_colourfulness_by_hand():
    """One red and one grey pixel: rg = 200, 0 and yb = 100, 0; σ = 100, 50 and μ = 100, 50."""
    picture = np.array([[[200, 0, 0], [90, 90, 90]]], np.uint8)
    expected = math.hypot(100, 50) + 0.3 * math.hypot(100, 50)
    assert picture_quality.colourfulness(picture) == pytest.approx(expected, rel=1e-6)
    assert picture_quality.colourfulness(grey(90)) == 0


# Freezes and cuts


def test_cell_changes_are_means_of_16_by_16():
    random = np.random.default_rng(8)
    first, second = (random.integers(0, 256, (40, 53), np.uint8) for _ in range(2))
    difference = np.abs(first.astype(float) - second)[:32, :48]
    expected = difference.reshape(2, 16, 3, 16).mean(axis=(1, 3))
    assert integrity.cell_changes(first, second) == pytest.approx(expected, abs=1e-3)


def test_frozen_and_repeated_by_hand():
    """Changes of 4, 0.05, 0.05, 4, 4 levels: two pairs are frozen, and less than a tenth of the quartile, 4."""
    largest, mean = np.array([9, 1, 2.5, 9, 9.0]), np.array([4, 0.05, 0.05, 4, 4.0])
    assert integrity.frozen_pairs(largest, mean).tolist() == [False, True, False, False, False]
    assert integrity.frozen_pairs(np.array([1.0, 1.0]), np.array([0.1, 0.11])).tolist() == [True, False]
    largest[2] = 2.0
    assert integrity.repeated_pairs(largest, mean).tolist() == [False, True, True, False, False]
    still = np.array([0.05, 0.04, 0.06])
    assert integrity.frozen_pairs(still, still).all()
    assert not integrity.repeated_pairs(still, still).any()


@given(st.lists(st.booleans(), max_size=40))
def test_longest_run_is_itertools(flags):
    runs = [len(list(group)) for flag, group in itertools.groupby(flags) if flag]
    assert integrity.longest_run(np.array(flags, bool)) == max(runs, default=0)


def test_a_freeze_in_a_pan_is_found_with_its_length():
    pan = panning(3, frames=16)
    frozen = [*pan[:6], *[pan[6]] * 4, *pan[10:]]
    found = values(frozen, integrity.Freezes())
    assert found == {"frozen_share": 0.2, "longest_freeze": 3, "repeated_share": 0.2, "longest_repeat": 3}
    assert not any(values(pan, integrity.Freezes()).values())


def test_something_small_that_moves_is_no_freeze():
    clip = []
    for t in range(5):
        frame = textured(256, 320)
        frame[100:116, 20 * t : 20 * t + 16] = 255
        clip.append(frame)
    assert values(clip, integrity.Freezes())["frozen_share"] == 0


@given(CURVES)
def test_prominence_is_the_height_over_the_median_around(curve):
    expected = []
    for t, value in enumerate(curve):
        around = [curve[i] for i in range(max(0, t - 3), min(len(curve), t + 4)) if i != t]
        expected.append(value - (np.median(around) if around else 0))
    assert integrity.prominence(np.array(curve)).tolist() == expected


def test_cuts_are_counted_and_fast_motion_is_not_one():
    first, second = panning(4, frames=8, seed=1), panning(4, frames=8, seed=2)
    one, two = values(first + second, integrity.Cuts()), values(first[:5] + second[:5] + first[5:], integrity.Cuts())
    assert (one["cuts"], two["cuts"]) == (1, 2)
    assert one["cut_score"] > 0.8
    assert values(panning(25, frames=8), integrity.Cuts())["cuts"] == 0
    blink = [np.clip(f.astype(int) + 40 * (t == 4), 0, 255).astype(np.uint8) for t, f in enumerate(first)]
    assert values(blink, integrity.Cuts())["cuts"] == 0


def test_facts_are_the_clips():
    found = values([grey(1, 48, 64)] * 6, integrity.Facts(), fps=12.0)
    assert found == {"frames": 6, "seconds": 0.5, "fps": 12, "height": 48, "width": 64}


# Brightness and colour


def test_colour_cells_are_scikit_images():
    colour = pytest.importorskip("skimage.color", reason="scikit-image is the reference here")
    picture = textured(20, 37)[:, :, :]
    cells = picture[:16, :32].reshape(2, 8, 4, 8, 3).mean(axis=(1, 3)) / 255
    assert drift.colour_cells(picture) == pytest.approx(colour.rgb2lab(cells), abs=1e-4)


def test_a_step_is_the_median_so_that_motion_does_not_count():
    before = np.zeros((3, 3, 3), np.float32)
    after = before + np.array([1, 2, -3], np.float32)
    after[0, 0] = 90
    assert drift.step(before, after).tolist() == [1, 2, -3]


@given(CURVES)
def test_flicker_peak_is_the_deepest_return(curve):
    best = 0.0
    for sign, t in itertools.product((1, -1), range(1, len(curve) - 1)):
        left = max(sign * (curve[t] - curve[i]) for i in range(max(0, t - 4), t))
        right = max(sign * (curve[t] - curve[i]) for i in range(t + 1, min(len(curve), t + 5)))
        best = max(best, min(left, right))
    assert drift.flicker_peak(np.array(curve)) == pytest.approx(best, abs=1e-12)


def test_flicker_by_hand():
    """A flash of 3 and a step of 5 that stays; then a clip that alternates by 2."""
    assert drift.flicker_peak(np.array([0, 0, 3, 0, 0, 5, 5, 5, 5, 5.0])) == 3
    assert drift.brightness_flicker(np.array([1, 3, 1, 3, 1.0])) == 2
    assert drift.brightness_flicker(np.array([0, 1, 2, 3.0])) == 0


def test_colour_drift_by_hand():
    """Quarters of 12 frames are 3: from (10, 0, 0) to (13, 4, 0) is 5."""
    means_T3 = np.array([[10, 0, 0]] * 3 + [[99, 99, 99]] * 6 + [[13, 4, 0]] * 3, float)
    assert drift.colour_drift(means_T3) == 5


def test_each_planted_change_of_light_raises_its_own_column():
    pan = [frame.astype(float) for frame in panning(1, frames=12)]

    def levels(gains):
        return [np.clip(f * np.array(g), 0, 255).round().astype(np.uint8) for f, g in zip(pan, gains, strict=True)]

    none = values(levels([1.0] * 12), drift.ColourSteadiness())
    flash = values(levels([1 + 0.05 * (t == 5) for t in range(12)]), drift.ColourSteadiness())
    alternate = values(levels([1 + 0.03 * (t % 2) for t in range(12)]), drift.ColourSteadiness())
    cast = values(levels([(1.05, 1, 0.95) if t >= 6 else (1, 1, 1) for t in range(12)]), drift.ColourSteadiness())
    assert flash["flicker_peak"] > 1 > 5 * none["flicker_peak"]
    assert flash["brightness_flicker"] == pytest.approx(none["brightness_flicker"], abs=0.05)
    assert alternate["brightness_flicker"] > 1 > 5 * none["brightness_flicker"]
    assert cast["colour_jump"] > 3 > 5 * none["colour_jump"]
    assert cast["colour_drift"] > none["colour_drift"] + 1
