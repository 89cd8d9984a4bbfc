r"""VBench's aesthetic quality: LAION's first linear predictor on CLIP ViT-L/14, averaged over frames.

    s = (1/T) Σ_t (w·e_t + b)/10,      e_t = f_image(x_t)/‖f_image(x_t)‖₂       (LAION-AI/aesthetic-predictor, 2022)

The head is ``sa_0_4_vit_l_14_linear.pth``: one linear layer, keys ``weight`` [1,768] and ``bias`` [1]. It is not the
five layers of ``reelign.rewards.laion_aesthetic``, a later version with other numbers. Nominally 0 to 1; the card's
range, b ∓ ‖w‖, is what a unit feature can give.

Run: ``measure(frames, 8.0, [AestheticQuality("sa_0_4_vit_l_14_linear.pth", "openai/clip-vit-large-patch14")])``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reelign.errors import ModelError
from reelign.metrics.clip import ClipInfo, MetricCard
from reelign.metrics.consistency_models import clip_image_features, load_clip_image
from reelign.metrics.frame_features import CHUNK, FrameMean
from reelign.zoo.published import fill, read_weights

SCALE = 10.0


def aesthetic_quality(features_ND: Tensor, head: nn.Linear) -> Tensor:
    """(w·e + b)/10 [N] of CLIP features [N,D] of any length."""
    scores: Tensor = head(F.normalize(features_ND, dim=-1))
    return scores[:, 0] / SCALE


def load_linear_head(name: str) -> nn.Linear:
    """The head in a weight file.

    Raises:
        ModelError: it is not one linear layer to one number.
    """
    weights = read_weights(name)
    if "weight" not in weights or weights["weight"].ndim != 2 or len(weights["weight"]) != 1:
        raise ModelError(f"LAION's linear head holds weight [1,D] and bias [1]; {name} holds {', '.join(weights)}")
    head = nn.Linear(weights["weight"].shape[1], 1)
    fill(head, weights, name)
    return head


class AestheticQuality:
    """VBench's aesthetic quality, the mean over all frames, nominally in [0, 1].

    Args:
        head: a weight file, or ``owner/name:file`` on the hub.
        model: a folder or hub id with the ``CLIPModel`` the head was made for: ``openai/clip-vit-large-patch14``.
        device: where frames are scored.
        chunk: frames scored at once.

    Raises:
        ModelError: a file is missing, or head and model do not fit.
    """

    def __init__(self, head: str, model: str, device: str = "cpu", chunk: int = CHUNK) -> None:
        self.device, self.chunk = torch.device(device), chunk
        self.head = load_linear_head(head).to(self.device)
        self.model, self.preprocess = load_clip_image(model, self.device)
        width = self.model.config.projection_dim
        if width != self.head.in_features:
            raise ModelError(
                f"{head} reads features of {self.head.in_features} numbers; {model} gives {width}: use CLIP ViT-L/14"
            )
        middle, reach = float(self.head.bias), float(self.head.weight.norm())
        self.card = MetricCard(
            name="aesthetic_quality",
            version=1,
            values=("aesthetic_quality",),
            unit="points of 10, divided by 10",
            range=((middle - reach) / SCALE, (middle + reach) / SCALE),
            better="higher",
            protocol=f"VBench: {head} on unit features of {model}, all frames at the clip's own rate, shorter side "
            f"{self.preprocess.height} bicubic without antialiasing, centre crop; frame mean of the score / 10",
            source="Huang et al. 2024, arXiv 2311.17982; LAION-AI/aesthetic-predictor",
        )

    def start(self, info: ClipInfo) -> FrameMean:
        """A fresh accumulator for a clip."""
        return FrameMean(self.card.name, self.score, self.device, self.chunk)

    def score(self, frames: Tensor) -> Tensor:
        """Scores [N] of frames [N,3,H,W] in [0,1]."""
        return aesthetic_quality(clip_image_features(self.model, self.preprocess, frames), self.head)
