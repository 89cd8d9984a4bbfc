r"""CLIPScore of a clip: how well does each frame fit the prompt?

    s = (1/T) Σ_t 100·max(0, cos(f_image(x_t), f_text(prompt)))      (Hessel et al. 2021, eq. 1, with w = 100)

The paper's own weight is w = 2.5; 100 is what torchmetrics and the field report. The same numbers as the reward
``clip_score``, over all frames of a clip of any length. Without a prompt there is no value.

Run: ``measure(frames, 8.0, [ClipScoreMetric("openai/clip-vit-base-patch16")], prompt="a red circle")``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reelign.metrics.clip import ClipInfo, MetricCard
from reelign.metrics.frame_features import CHUNK, NO_PROMPT, FrameMean, NotApplicable
from reelign.rewards.clip_similarity import CLIP_SCORE
from reelign.rewards.clip_tower import load_tower


def clip_scores(image_ND: Tensor, text_D: Tensor) -> Tensor:
    """100·max(0, cos) [N] of unit features [N,D] of frames and the unit feature [D] of the prompt."""
    return CLIP_SCORE * (image_ND @ text_D).clamp_min(0)


class ClipScoreMetric:
    """CLIPScore, the mean over all frames, in [0, 100].

    Args:
        model: ``zoo:NAME``, a folder or a hub id with a transformers ``CLIPModel`` and its tokenizer.
        device: where frames are scored.
        chunk: frames scored at once.
    """

    def __init__(self, model: str = "zoo:tiny-clip", device: str = "cpu", chunk: int = CHUNK) -> None:
        self.device, self.chunk = torch.device(device), chunk
        self.tower = load_tower(model)
        view = self.tower.preprocess
        self.card = MetricCard(
            name="clip_score",
            version=1,
            values=("clip_score",),
            unit="100·cosine",
            range=(0.0, 100.0),
            better="higher",
            protocol=f"{model}, all frames at the clip's own rate, {view.height}×{view.width} bicubic with "
            f"antialiasing, {view.aspect}; mean of 100·max(0, cosine to the prompt)",
            source="Hessel et al. 2021, arXiv 2104.08718",
            needs_prompt=True,
        )

    def start(self, info: ClipInfo) -> FrameMean | NotApplicable:
        """A fresh accumulator for a clip."""
        if not info.prompt:
            return NotApplicable(NO_PROMPT)
        with torch.no_grad():
            text = self.tower.text_features([info.prompt], self.device)[0]

        def score(frames: Tensor) -> Tensor:
            return clip_scores(self.tower.image_features(frames[None])[0], text)

        return FrameMean(self.card.name, score, self.device, self.chunk)
