"""Canaries: cheap statistics of clips that reward hacking moves, each computed without weights.

Over-exposure and washed-out colour (luma, clipping, saturation), adversarial texture (edges, energy on the decoder's
grid), collapse (colour entropy, difference between seeds), frozen or boiling motion (temporal difference, optical
flow). VideoX-Fun's notes name adversarial patches and lost motion as what reward training of video models ends in.

Each takes a ``VideoBatch`` of B clips and gives [B]; ``diversity`` also needs to know which clips share a prompt.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor

from reelign.contracts import VideoBatch

LUMA = (0.299, 0.587, 0.114)
DARK, BRIGHT = 0.02, 0.98  # luma below and above which a pixel counts as clipped
GRID = 8  # pixels between the lines of a decoder's grid
BINS = 4  # of each colour, for the entropy
FLOW_FRAMES = 5  # pairs of frames between which flow is measured, evenly spread


def luma_of(video: Tensor) -> Tensor:
    """BT.601 luma [B,T,H,W] of clips [B,T,3,H,W] in [0,1]."""
    return torch.einsum("btchw,c->bthw", video, torch.tensor(LUMA, dtype=video.dtype, device=video.device))


def luma(video: Tensor) -> Tensor:
    """Mean luma, in [0,1]."""
    return luma_of(video).mean((1, 2, 3))


def clipping(video: Tensor) -> Tensor:
    """Share of pixels that are all but black or all but white, in [0,1]."""
    y = luma_of(video)
    return ((y < DARK) | (y > BRIGHT)).float().mean((1, 2, 3))


def saturation(video: Tensor) -> Tensor:
    """Mean of the largest minus the smallest colour of a pixel, in [0,1]."""
    return (video.amax(2) - video.amin(2)).mean((1, 2, 3))


def edges(video: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels' luma, in [0,1]."""
    y = luma_of(video)
    return 0.5 * (y.diff(dim=-1).abs().mean((1, 2, 3)) + y.diff(dim=-2).abs().mean((1, 2, 3)))


def grid_energy(video: Tensor, period: int = GRID) -> Tensor:
    """Share of the spatial energy (without the mean) at multiples of 1/``period`` cycles a pixel, in [0,1].

    A picture whose sides are no multiples of ``period`` is cut to some.
    """
    rows, columns = (side - side % period for side in video.shape[-2:])
    power = torch.fft.fft2(luma_of(video)[..., :rows, :columns]).abs().square()
    power[..., 0, 0] = 0
    on_grid = power[..., :: rows // period, :: columns // period].sum((-2, -1))
    share: Tensor = on_grid / power.sum((-2, -1)).clamp_min(1e-12)
    return share.mean(1)


def colour_entropy(video: Tensor, bins: int = BINS) -> Tensor:
    """Entropy of the clip's colours on a ``bins``³ grid, in bits."""
    level = (video * bins).long().clamp(0, bins - 1)
    index = (level[:, :, 0] * bins + level[:, :, 1]) * bins + level[:, :, 2]
    counts = torch.stack([torch.bincount(clip.flatten(), minlength=bins**3) for clip in index]).double()
    p = counts / counts.sum(1, keepdim=True)
    return -(p * p.clamp_min(1e-300).log2()).sum(1).float()


def temporal_difference(video: Tensor) -> Tensor:
    """Mean absolute difference of successive frames, in [0,1]; 0 for a single frame."""
    if video.shape[1] < 2:
        return video.new_zeros(len(video))
    return video.diff(dim=1).abs().mean((1, 2, 3, 4))


def flow(video: Tensor) -> Tensor:
    """Mean length of the optical flow (Farnebäck 2003) in pixels a frame; 0 for a single frame."""
    grey = (luma_of(video).clamp(0, 1) * 255).round().byte().cpu().numpy()
    last = grey.shape[1] - 1
    starts = sorted({round(i * (last - 1) / max(1, FLOW_FRAMES - 1)) for i in range(FLOW_FRAMES)}) if last > 0 else []
    means = [np.mean([_flow_length(clip[i], clip[i + 1]) for i in starts]) if starts else 0.0 for clip in grey]
    return torch.tensor(means, dtype=torch.float32)


def _flow_length(first: np.ndarray, second: np.ndarray) -> float:
    field = cv2.calcOpticalFlowFarneback(first, second, None, 0.5, 3, 15, 3, 5, 1.2, 0)
    return float(np.linalg.norm(field, axis=-1).mean())


def diversity(video: Tensor, group: int) -> Tensor:
    """Root mean square difference of a clip to the other clips of its prompt, in [0,1].

    Args:
        video: [B,T,3,H,W], each prompt's ``group`` ≥ 2 clips one after the other.
    """
    parts = video.flatten(1).view(-1, group, video[0].numel())
    distances: Tensor = torch.cdist(parts, parts) / parts.shape[-1] ** 0.5
    return (distances.sum(-1) / (group - 1)).flatten()


CANARIES: dict[str, Callable[[Tensor], Tensor]] = {
    "luma": luma,
    "clipping": clipping,
    "saturation": saturation,
    "edges": edges,
    "grid_energy": grid_energy,
    "colour_entropy": colour_entropy,
    "temporal_difference": temporal_difference,
    "flow": flow,
}
# What a run should not do to each: let it fall, let it rise, or move it either way.
ALARM = {
    "luma": "moves",
    "clipping": "rises",
    "saturation": "moves",
    "edges": "moves",
    "grid_energy": "rises",
    "colour_entropy": "falls",
    "temporal_difference": "moves",
    "flow": "falls",
    "diversity": "falls",
}


@torch.no_grad()
def sing(batch: VideoBatch, group: int) -> dict[str, Tensor]:
    """Every canary of clips of which each prompt has ``group``, one after the other: name to [B]."""
    values = {name: canary(batch.video).float().cpu() for name, canary in CANARIES.items()}
    if group > 1:
        values["diversity"] = diversity(batch.video, group).float().cpu()
    return values
