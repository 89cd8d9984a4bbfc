r"""VBench's imaging quality: technical quality of the frames by MUSIQ-SPAQ, averaged over them.

    s = (1/T) Σ_t MUSIQ(x_t)/100,      longer side of x_t at most 512

Larger frames are shrunk bilinearly without antialiasing to floored sizes, VBench's mode ``longer``; smaller ones stay
as they are. VBench's results give this number for a model and 100 times it for a video; here it is always this one.

Run: ``measure(frames, 8.0, [ImagingQuality("musiq_spaq_ckpt-358bb6af.pth")])``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reelign.metrics.clip import ClipInfo, MetricCard
from reelign.metrics.frame_features import FrameMean, cap_longer
from reelign.metrics.musiq import load_musiq

LONGEST = 512
SCALE = 100.0
CHUNK = 4  # frames of 512×288 are 256 patches, each 64 channels of 16×16: 0.1 GB for 4


class ImagingQuality:
    """MUSIQ / 100, the mean over all frames, nominally in [0, 1].

    Args:
        model: a MUSIQ weight file, or ``owner/name:file`` on the hub; VBench's: ``musiq_spaq_ckpt-358bb6af.pth``.
        device: where frames are scored.
        chunk: frames scored at once.
    """

    def __init__(self, model: str, device: str = "cpu", chunk: int = CHUNK) -> None:
        self.device, self.chunk = torch.device(device), chunk
        self.model = load_musiq(model).to(self.device)
        self.card = MetricCard(
            name="imaging_quality",
            version=1,
            values=("imaging_quality",),
            unit="MUSIQ points of 100, divided by 100",
            range=(float("-inf"), float("inf")),
            better="higher",
            protocol=f"VBench: MUSIQ {model}, all frames at the clip's own rate, longer side at most {LONGEST} "
            "bilinear without antialiasing; frame mean of the score / 100",
            source="Ke et al. 2021, arXiv 2108.05997; Huang et al. 2024, arXiv 2311.17982",
        )

    def start(self, info: ClipInfo) -> FrameMean:
        """A fresh accumulator for a clip."""
        return FrameMean(self.card.name, self.score, self.device, self.chunk)

    def score(self, frames: Tensor) -> Tensor:
        """Scores [N] of frames [N,3,H,W] in [0,1]."""
        scores: Tensor = self.model(cap_longer(frames, LONGEST))
        return scores / SCALE
