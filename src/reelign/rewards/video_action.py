r"""Video action: does the clip show the action that the prompt names?

    r = p(class asked for | clip) = exp(log_softmax(f(x))_c)         (VADER, Prabhudesai et al. 2024, section 4.1)

f is any transformers ``VideoMAEForVideoClassification`` (Tong et al. 2022), c the class whose name, or a keyword the
user maps to it, stands in the prompt; the longest wins. Through log_softmax the loss −log r has the gradient of
cross-entropy even where r is tiny.

Left out: several views or crops of one clip, which recognition benchmarks average over.

Run: ``reelign score CLIPS --reward video_action``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import VideoMAEForVideoClassification

from reelign.contracts import RewardCard, VideoBatch
from reelign.errors import DataError, ModelError, UnknownNameError
from reelign.rewards.card import read_golden
from reelign.rewards.preprocess import Aspect, preprocess_for
from reelign.zoo.models import IMAGENET_MEAN, IMAGENET_STD, PREFIX, even_indices, load_whole, read_preprocessor


class VideoAction:
    """Probability that the clip shows the action named in the prompt, in [0, 1].

    Args:
        model: ``zoo:NAME``, a folder or a hub id with a transformers ``VideoMAEForVideoClassification``.
        classes: more ways to name a class: keyword to one of the model's labels. The labels themselves always work.
        aspect: ``squash`` or ``crop``; the model's own way where None.
    """

    def __init__(
        self, model: str = "zoo:tiny-videomae", classes: Mapping[str, str] | None = None, aspect: Aspect | None = None
    ) -> None:
        self.model = load_whole(VideoMAEForVideoClassification, model)
        config = self.model.config
        if config.num_labels < 2:
            raise ModelError(f"an action classifier has at least 2 classes; {model} has {config.num_labels}")
        self.keywords = keyword_classes({int(i): name for i, name in config.id2label.items()}, classes or {}, model)
        self.preprocess = preprocess_for(
            config.image_size, read_preprocessor(model), (IMAGENET_MEAN, IMAGENET_STD), aspect
        )
        self.card = RewardCard(
            name="video_action",
            summary=f"Probability of the action named in the prompt, by {model}.",
            range=(0.0, 1.0),
            frames=config.num_frames,
            resolution=(self.preprocess.height, self.preprocess.width),
            needs_prompt=True,
            licence="Apache-2.0" if model.startswith(PREFIX) else f"that of {model}",
            source=f"{model}; Tong et al. 2022, arXiv 2203.12602",
            golden=None if classes else read_golden(model),
        )

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B] in [0, 1]."""
        asked = [self.class_of(prompt) for prompt in batch.request.prompts]
        log_p_BC = self.log_probabilities(batch.video)
        return log_p_BC.gather(1, torch.tensor(asked, device=log_p_BC.device)[:, None])[:, 0].exp()

    def log_probabilities(self, video: Tensor) -> Tensor:
        """Log-probability [B,C] of every class for clips [B,T,3,H,W] in [0,1]; frames are chosen evenly."""
        if self.model.device != video.device:
            self.model.to(video.device)
        frames = video[:, even_indices(video.shape[1], self.model.config.num_frames)]
        logits: Tensor = self.model(pixel_values=self.preprocess(frames)).logits
        return logits.log_softmax(-1)

    def class_of(self, prompt: str) -> int:
        """Index of the class whose keyword, the longest found, stands in ``prompt`` as whole words in any case.

        Raises:
            DataError: the prompt names no class.
        """
        words = prompt.lower()
        found = [key for key in self.keywords if re.search(rf"(?<!\w){re.escape(key)}(?!\w)", words)]
        if not found:
            known = ", ".join(list(self.keywords)[:12]) + (", …" if len(self.keywords) > 12 else "")
            raise DataError(
                f"a prompt for video_action names one of its actions ({known}); {prompt!r} names none: "
                "change the prompt or map a keyword with the option 'classes'"
            )
        return self.keywords[max(found, key=len)]

    def golden_prompts(self, captions: Sequence[str]) -> tuple[str, ...]:
        """Prompts for the golden clip: its captions where this model knows their actions, else labels it knows."""
        known = list(self.keywords)
        try:
            for caption in captions:
                self.class_of(caption)
        except DataError:
            return tuple(known[i % len(known)] for i in range(len(captions)))
        return tuple(captions)


def keyword_classes(labels: Mapping[int, str], classes: Mapping[str, str], model: str) -> dict[str, int]:
    """Every keyword, in lower case, to its class index: the labels, then the user's own, which win.

    Raises:
        UnknownNameError: a keyword is mapped to a label that ``model`` has not.
    """
    index = {name.lower(): i for i, name in labels.items()}
    for label in classes.values():
        if label.lower() not in index:
            raise UnknownNameError(f"action of {model}", label, labels.values())
    return index | {keyword.lower(): index[label.lower()] for keyword, label in classes.items()}
