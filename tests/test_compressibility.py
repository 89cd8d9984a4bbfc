"""The JPEG estimate against scipy's DCT, Pillow's files, and finite differences."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from reelign.contracts import Request, VideoBatch
from reelign.datasets.moving_shapes import MovingShapes
from reelign.errors import ConfigError
from reelign.rewards.compressibility import (
    CHROMA_STEPS,
    LUMA_STEPS,
    Compressibility,
    block_dct,
    coefficient_bits,
    dct_matrix,
    jpeg_kilobytes,
    quantisation_steps,
)

HEADER = 623  # bytes of a Pillow JPEG that are not image data


def varied_images() -> list[Tensor]:
    """48 images [3,H,W] from flat to noisy, smooth to blocky, and drawn ones."""
    random = torch.Generator().manual_seed(0)
    images = []
    for k in range(36):
        size, grid = (64, 128)[k % 2], 2 ** (1 + k % 5)
        base = torch.rand(1, 3, grid, grid, generator=random)
        image = F.interpolate(base, (size, size), mode=("bicubic", "nearest")[k // 2 % 2])[0]
        noise = (0.0, 0.02, 0.05, 0.15, 0.3, 0.0)[k % 6]
        images.append((image + noise * torch.randn(3, size, size, generator=random)).clamp(0, 1))
    return images + list(MovingShapes(frames=2).batch(12, random)[0][:, 0])


def file_bytes(image: Tensor, quality: int) -> int:
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=2)
    return len(buffer.getvalue())


def ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort().argsort().astype(float)


def test_dct_is_scipys() -> None:
    fft = pytest.importorskip("scipy.fft")
    plane = torch.rand(2, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = block_dct(plane).numpy()
    for row, column in ((0, 0), (1, 2)):
        block = plane[1, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].numpy()
        np.testing.assert_allclose(ours[1, row, column], fft.dctn(block, norm="ortho"), atol=1e-12)


def test_dct_keeps_lengths_and_a_flat_block_is_its_mean() -> None:
    matrix = dct_matrix(torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(8, dtype=torch.float64), atol=1e-12, rtol=0)
    flat = block_dct(torch.full((1, 8, 8), 3.0))[0, 0, 0]
    torch.testing.assert_close(flat[0, 0], torch.tensor(24.0))  # 8 × mean
    assert flat.flatten()[1:].abs().max() < 1e-5


@pytest.mark.parametrize("quality", [1, 30, 50, 75, 95, 100])
def test_steps_are_those_pillow_writes(quality: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG", quality=quality, subsampling=2)
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        tables = image.quantization  # type: ignore[attr-defined]
    assert quantisation_steps(LUMA_STEPS, quality).flatten().tolist() == list(tables[0])
    assert quantisation_steps(CHROMA_STEPS, quality).flatten().tolist() == list(tables[1])


def test_bits_by_hand() -> None:
    values = coefficient_bits(torch.tensor([0.0, 0.7, -0.7, 700.0, 1400.0]))
    torch.testing.assert_close(values[:3], torch.tensor([0.0, 1.65, 1.65]))  # ½·3.3·log2(2)
    torch.testing.assert_close(values[4] - values[3], torch.tensor(3.3), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("colour", "y", "cb", "cr"),
    [
        ((0.0, 0.0, 0.0), -128, 0, 0),
        ((1.0, 0.0, 0.0), 0.299 * 255 - 128, -43.0277, 127.5),
        ((0.0, 1.0, 0.0), 0.587 * 255 - 128, -84.4723, -106.7653),
    ],
)
def test_a_plain_frame_by_hand(colour: tuple[float, float, float], y: float, cb: float, cr: float) -> None:
    # 16×16: four luma and two chroma blocks of 4 bits each; first DC terms are 8 × the mean, against steps of 8 and 9
    steps_of_dc = np.array([8 * y / 8, 8 * cb / 9, 8 * cr / 9])
    expected = (6 * 4 + 0.5 * 3.3 * np.log2(1 + (steps_of_dc / 0.7) ** 2).sum()) / 8000
    frame = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    assert jpeg_kilobytes(frame).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("quality", [50, 75, 90])
def test_follows_real_files(quality: int) -> None:
    images = varied_images()
    real = np.array([file_bytes(image, quality) - HEADER for image in images]) / 1000
    estimate = np.array([jpeg_kilobytes(image[None], quality).item() for image in images])
    assert np.corrcoef(ranks(estimate), ranks(real))[0, 1] > 0.9
    ratio = np.quantile(estimate / real, [0.1, 0.5, 0.9])
    assert ratio[0] > 0.6
    assert 0.8 < ratio[1] < 1.25
    assert ratio[2] < 1.6


def test_gradient_is_the_finite_difference() -> None:
    frames = torch.rand(1, 3, 19, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    direction = torch.randn(frames.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    pixels = frames.clone().requires_grad_()
    jpeg_kilobytes(pixels).sum().backward()
    h = 1e-6
    slope = (jpeg_kilobytes(frames + h * direction) - jpeg_kilobytes(frames - h * direction)) / (2 * h)
    assert pixels.grad is not None
    torch.testing.assert_close((pixels.grad * direction).sum(), slope[0], rtol=1e-6, atol=1e-9)


def test_noise_scores_worse_and_frames_are_averaged() -> None:
    still = torch.full((1, 2, 3, 32, 32), 0.5)
    noisy = torch.rand(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mixed = torch.cat([still[:, :1], noisy[:, :1]], 1)
    scores = Compressibility()(VideoBatch(torch.cat([still, noisy, mixed]), 8.0, Request(("a", "b", "c"))))
    assert scores[1] < scores[2] < scores[0] < 0
    one = -jpeg_kilobytes(noisy[0, :1])[0]
    torch.testing.assert_close(scores[2], (scores[0] + one) / 2)


@pytest.mark.parametrize("quality", [0, 101])
def test_quality_has_bounds(quality: int) -> None:
    with pytest.raises(ConfigError, match=f"from 1 to 100; got {quality}"):
        Compressibility(quality)
