r"""Video action: does the clip show the action that the prompt names?

    r = p(class asked for | clip) = exp(log_softmax(f(x))_c)         (VADER, Prabhudesai et al. 2024, section 4.1)

f is any transformers ``VideoMAEForVideoClassification`` (Tong et al. 2022), c the class whose name, or a keyword the
user maps to it, stands in the prompt; the longest wins. Through log_softmax the loss −log r has the gradient of
cross-entropy even where r is tiny.

Left out: several views or crops of one clip, which recognition benchmarks average over.

Run: ``reelign score CLIPS --reward video_action``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import VideoMAEForVideoClassification

from reelign.contracts import RewardCard, VideoBatch
from reelign.errors import ModelError
from reelign.rewards.card import read_golden
from reelign.rewards.labels import Labels
from reelign.rewards.preprocess import Aspect, preprocess_for
from reelign.zoo.models import IMAGENET_MEAN, IMAGENET_STD, PREFIX, even_indices, load_whole, read_preprocessor


class VideoAction:
    """Probability that the clip shows the action named in the prompt, in [0, 1].

    Args:
        model: ``zoo:NAME``, a folder or a hub id with a transformers ``VideoMAEForVideoClassification``.
        classes: more ways to name a class: keyword to one of the model's labels. The labels themselves always work.
        aspect: ``squash`` or ``crop``; the model's own way where None.
    """

    card = RewardCard(
        name="video_action",
        summary="Probability of the action named in the prompt, by a video classifier.",
        range=(0.0, 1.0),
        needs_prompt=True,
        source="zoo:tiny-videomae or any VideoMAEForVideoClassification; Tong et al. 2022, arXiv 2203.12602",
    )

    def __init__(
        self, model: str = "zoo:tiny-videomae", classes: Mapping[str, str] | None = None, aspect: Aspect | None = None
    ) -> None:
        self.model = load_whole(VideoMAEForVideoClassification, model)
        config = self.model.config
        if config.num_labels < 2:
            raise ModelError(f"an action classifier has at least 2 classes; {model} has {config.num_labels}")
        self.labels = Labels({int(i): name for i, name in config.id2label.items()}, classes or {}, model)
        self.preprocess = preprocess_for(
            config.image_size, read_preprocessor(model), (IMAGENET_MEAN, IMAGENET_STD), aspect
        )
        self.card = replace(
            type(self).card,
            summary=f"Probability of the action named in the prompt, by {model}.",
            frames=config.num_frames,
            resolution=(self.preprocess.height, self.preprocess.width),
            licence="Apache-2.0" if model.startswith(PREFIX) else f"that of {model}",
            source=f"{model}; Tong et al. 2022, arXiv 2203.12602",
            golden=None if classes else read_golden(model),
        )

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B] in [0, 1]."""
        asked = [self.labels.class_of(prompt) for prompt in batch.request.prompts]
        log_p_BC = self.log_probabilities(batch.video)
        return log_p_BC.gather(1, torch.tensor(asked, device=log_p_BC.device)[:, None])[:, 0].exp()

    def log_probabilities(self, video: Tensor) -> Tensor:
        """Log-probability [B,C] of every class for clips [B,T,3,H,W] in [0,1]; frames are chosen evenly."""
        if self.model.device != video.device:
            self.model.to(video.device)
        frames = video[:, even_indices(video.shape[1], self.model.config.num_frames)]
        logits: Tensor = self.model(pixel_values=self.preprocess(frames)).logits
        return logits.log_softmax(-1)

    def golden_prompts(self, captions: Sequence[str]) -> tuple[str, ...]:
        """Prompts for the golden clip: its captions where this model knows their actions, else labels it knows."""
        return self.labels.golden_prompts(captions)
