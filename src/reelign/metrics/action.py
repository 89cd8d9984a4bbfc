r"""Action: does a video classifier see the action that the clip was asked for?

    top-k = 1 where the asked class is among the k classes of highest logit, else 0;  k = 1 and 5

The mean over clips is the top-k accuracy that recognition benchmarks report. The asked class comes from, in this order:
``label``, one class for every clip; ``labels``, a table from prompt to class; the class named in the clip's prompt,
whole words, the longest first. Never from a file's name. Ties count against the asked class.

The classifier is any transformers ``VideoMAEForVideoClassification`` (Tong et al. 2022). It sees as many frames as it
was made for, at round(i·(T − 1)/(n − 1)) of the first 256. VBench's human action, with UMT and a threshold, is another
metric. Left out: several views of a clip; VideoMAE v2 checkpoints that bring their own program.

Run: ``measure(frames, 8.0, [Action()], prompt="a red circle moving left")``.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from reelign.errors import ConfigError, DataError, NonFiniteError, UnknownNameError
from reelign.metrics.clip import ClipInfo, Frame, MetricCard, Picture
from reelign.metrics.frame_features import NotApplicable, to_frames
from reelign.metrics.reward_metric import MAX_FRAMES
from reelign.rewards.video_action import VideoAction
from reelign.zoo.models import even_indices

TOP = 5


def in_top(scores_C: Tensor, asked: int, k: int) -> float:
    """1 where fewer than k other classes score as high as the asked one or higher, else 0; for scores [C]."""
    rivals = int((scores_C >= scores_C[asked]).sum()) - 1
    return float(rivals < k)


def read_labels(path: str | Path) -> dict[str, str]:
    """Prompt to label, from the columns ``prompt`` and ``label`` of a CSV file.

    Raises:
        DataError: it cannot be read, lacks a column, or gives one prompt two labels.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"a table of labels is a CSV file; {path} cannot be read ({error})") from error
    labels: dict[str, str] = {}
    for row in rows:
        prompt, label = row.get("prompt"), row.get("label")
        if not prompt or not label:
            raise DataError(f"a table of labels has the columns prompt and label, both filled; {path} has {row}")
        if labels.setdefault(prompt, label) != label:
            raise DataError(f"one prompt has one label; {path} gives {prompt!r} {labels[prompt]!r} and {label!r}")
    return labels


class Action:
    """Top-1 and, for a classifier of more than 5 classes, top-5 agreement with the asked class, 0 or 1 a clip.

    Args:
        model: ``zoo:NAME``, a folder or a hub id with a transformers ``VideoMAEForVideoClassification``.
        label: the class of every clip, in the model's words.
        labels: prompt to class, or a CSV file with the columns ``prompt`` and ``label``.
        classes: more ways to name a class in a prompt: keyword to one of the model's labels.
        device: where clips are scored.
        max_frames: at most this many frames of a clip, from its start, are chosen from.

    Raises:
        UnknownNameError: a label that the model has not.
    """

    def __init__(
        self,
        model: str = "zoo:tiny-videomae",
        label: str | None = None,
        labels: Mapping[str, str] | str | None = None,
        classes: Mapping[str, str] | None = None,
        device: str = "cpu",
        max_frames: int = MAX_FRAMES,
    ) -> None:
        if label is not None and labels is not None:
            raise ConfigError("an action has one source of labels; got label and labels: leave one out")
        if max_frames < 1:
            raise ConfigError(f"an action is seen in at least one frame; got max_frames={max_frames}")
        self.classifier = VideoAction(model, classes)
        self.device, self.max_frames = torch.device(device), max_frames
        config = self.classifier.model.config
        self.index = {str(name).lower(): int(i) for i, name in config.id2label.items()}
        self.frames: int = config.num_frames
        table = read_labels(labels) if isinstance(labels, str) else labels
        self.fixed = None if label is None else self._class(label)
        self.table = None if table is None else {prompt: self._class(name) for prompt, name in table.items()}
        top = ("action_top1", "action_top5") if len(self.index) > TOP else ("action_top1",)
        view = self.classifier.preprocess
        self.card = MetricCard(
            name="action",
            version=1,
            values=top,
            unit="0 or 1",
            range=(0.0, 1.0),
            better="higher",
            protocol=f"{model}, {self.frames} frames at round(i(T−1)/(n−1)) of the first {max_frames}, {view.height}×"
            f"{view.width} bicubic with antialiasing, {view.aspect}; asked class among the k highest logits, k = 1, 5",
            source="Tong et al. 2022, arXiv 2203.12602",
            needs_prompt=label is None,
        )

    def start(self, info: ClipInfo) -> ActionAgreement | NotApplicable:
        """A fresh accumulator for a clip."""
        asked = self._asked(info.prompt)
        return NotApplicable(asked) if isinstance(asked, str) else ActionAgreement(self, asked)

    def agreement(self, logits_C: Tensor, asked: int) -> dict[str, float]:
        """The card's values for the logits [C] of a clip."""
        if not bool(torch.isfinite(logits_C).all()):
            raise NonFiniteError("a classifier's logits are finite numbers; got NaN or infinity")
        return {name: in_top(logits_C, asked, k) for name, k in zip(self.card.values, (1, TOP), strict=False)}

    def _class(self, label: str) -> int:
        if label.lower() not in self.index:
            raise UnknownNameError("action", label, self.index)
        return self.index[label.lower()]

    def _asked(self, prompt: str) -> int | str:
        """The asked class, or why there is none."""
        if self.fixed is not None:
            return self.fixed
        if not prompt:
            return "needs an action, and this clip has no prompt; add it to metadata.csv or give the option label"
        if self.table is not None:
            return self.table.get(
                prompt, f"needs an action, and the table of labels has none for {prompt!r}; add a row"
            )
        try:
            return self.classifier.labels.class_of(prompt)
        except DataError as error:
            return str(error)


@dataclass
class ActionAgreement:
    """The frames of one clip so far, at most ``max_frames``, and the class it was asked for."""

    metric: Action
    asked: int
    pictures: list[Picture] = field(default_factory=list)

    def add(self, frame: Frame) -> None:
        """Keep the next frame, not a copy of it."""
        if len(self.pictures) < self.metric.max_frames:
            self.pictures.append(frame.rgb)

    def finish(self) -> dict[str, float]:
        """Agreement, by the card's values."""
        metric = self.metric
        chosen = [self.pictures[i] for i in even_indices(len(self.pictures), metric.frames)]
        self.pictures = []
        with torch.no_grad():
            logits = metric.classifier.log_probabilities(to_frames(chosen, metric.device)[None])[0]
        return metric.agreement(logits, self.asked)
