r"""Compressibility: how small a frame would be as a JPEG file, as a differentiable estimate.

The front half of a baseline JPEG encoder (ITU-T T.81): YCbCr (JFIF, BT.601 full range), 4:2:0 chroma, 8×8 orthonormal
DCT-II, division by the example tables of annex K scaled as the Independent JPEG Group's library does, difference of
neighbouring DC terms. The rounding and the Huffman coding are replaced by a smooth cost of each coefficient,

    bits(x) = ½·b·log2(1 + (x/r)²),   x = DCT coefficient / quantisation step,

and a constant for each block. It is 0 with slope 0 at x = 0 and grows by b each time a large x doubles, as the
magnitude categories of T.81, F.1.2 do. The three constants are fitted to Pillow's files: on varied images eight
estimates in ten are within 25 % of the file, header aside. Black et al. 2024 (DDPO, section 5.1) use the file size
itself, which has no gradient.

Left out: the file header (623 bytes in Pillow's files), zero runs, optimised Huffman tables.

Run: ``reelign score CLIPS --reward compressibility``.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from reelign.contracts import RewardCard, VideoBatch
from reelign.errors import ConfigError
from reelign.rewards.frames import average

LUMA_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)  # T.81, table K.1
CHROMA_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)  # T.81, table K.2
RGB_TO_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)  # JFIF 1.02, with all three centred on zero
BLOCK = 8
BITS_PER_DOUBLING = 3.3  # b, fitted
ROUND_OFF = 0.7  # r, fitted, in quantisation steps
BITS_PER_BLOCK = 4.0  # end-of-block and DC codes, fitted


def dct_matrix(like: Tensor) -> Tensor:
    r"""The orthonormal DCT-II matrix D [8,8], D_kn = c_k·cos(π(2n + 1)k/16), c_0 = √(1/8), c_k = ½ (T.81, A.3.3)."""
    k = torch.arange(BLOCK, dtype=like.dtype, device=like.device)
    matrix = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    matrix[0] /= math.sqrt(2)
    return matrix


def block_dct(plane_NHW: Tensor) -> Tensor:
    """Two-dimensional DCT-II of each 8×8 block: [N,H,W] to [N, H/8, W/8, 8, 8]; H and W are multiples of 8."""
    blocks = plane_NHW.unfold(1, BLOCK, BLOCK).unfold(2, BLOCK, BLOCK)
    matrix = dct_matrix(plane_NHW)
    return matrix @ blocks @ matrix.T


def quantisation_steps(table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Quantisation steps [8,8] at a quality from 1 to 100, scaled as the Independent JPEG Group's library does.

    s = 5000/Q below Q = 50, else 200 − 2Q; step = (table·s + 50)/100, whole, from 1 to 255.

    Raises:
        ConfigError: a quality outside 1 to 100.
    """
    if not 1 <= quality <= 100:
        raise ConfigError(f"a JPEG quality is a whole number from 1 to 100; got {quality}")
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table) * scale + 50) // 100).clamp(1, 255)


def coefficient_bits(x: Tensor) -> Tensor:
    """Smooth cost in bits of coding a coefficient of x quantisation steps; same shape. See the module's formula."""
    return 0.5 * BITS_PER_DOUBLING * torch.log2(1 + (x / ROUND_OFF).square())


def _plane_bits(plane_NHW: Tensor, steps: Tensor) -> Tensor:
    """Bits [N] of one colour plane in units of 1/255, centred on zero."""
    x = (block_dct(plane_NHW) / steps.to(plane_NHW)).flatten(1, 2).flatten(2)  # [N, blocks, 64]
    dc = x[:, :, 0]
    dc_change = torch.diff(dc, dim=1, prepend=torch.zeros_like(dc[:, :1]))  # T.81, F.1.1.5.1
    coefficients = coefficient_bits(x[:, :, 1:]).sum((1, 2)) + coefficient_bits(dc_change).sum(1)
    return coefficients + BITS_PER_BLOCK * x.shape[1]


def jpeg_kilobytes(frames: Tensor, quality: int = 75) -> Tensor:
    """Estimated JPEG size of each frame, without header.

    Args:
        frames: [N,3,H,W] in [0,1], float32 or float64; edges are repeated up to multiples of 16.
        quality: 1 (smallest file) to 100.

    Returns:
        [N], in units of 1000 bytes.
    """
    height, width = frames.shape[-2:]
    padded = F.pad(frames, (0, -width % (2 * BLOCK), 0, -height % (2 * BLOCK)), mode="replicate")
    matrix = torch.tensor(RGB_TO_YCBCR, dtype=frames.dtype, device=frames.device)
    planes = torch.einsum("cr,nrhw->nchw", matrix, padded * 255)
    centre = torch.tensor([128.0, 0.0, 0.0], dtype=frames.dtype, device=frames.device)
    planes = planes - centre[:, None, None]
    chroma = F.avg_pool2d(planes[:, 1:], 2)
    luma_steps = quantisation_steps(LUMA_STEPS, quality)
    chroma_steps = quantisation_steps(CHROMA_STEPS, quality)
    bits = _plane_bits(planes[:, 0], luma_steps)
    bits = bits + _plane_bits(chroma[:, 0], chroma_steps) + _plane_bits(chroma[:, 1], chroma_steps)
    return bits / 8000


class Compressibility:
    """Minus the estimated kilobytes a frame takes as JPEG, mean over frames: higher is easier to compress.

    Args:
        quality: JPEG quality, 1 to 100.
    """

    card = RewardCard(
        name="compressibility",
        summary="Minus the estimated kilobytes of a frame as JPEG, by default of quality 75.",
        range=(-math.inf, 0.0),
        source="ITU-T T.81; Black et al. 2024, arXiv 2305.13301, section 5.1",
        golden=-0.317430,
    )

    def __init__(self, quality: int = 75) -> None:
        quantisation_steps(LUMA_STEPS, quality)
        self.quality = quality
        if quality != 75:
            self.card = replace(type(self).card, golden=None)

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B] in kilobytes, 0 or below."""
        video = batch.video
        return average(-jpeg_kilobytes(video.flatten(0, 1), self.quality).view(video.shape[:2]), batch)
