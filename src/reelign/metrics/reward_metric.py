"""Any reward as a metric of clips: the frames it was made for, as float32 in [0,1], and its score.

A reward whose card names a number n of frames gets those at round(linspace(0, T − 1, n)), halves to even: a longer clip
is thinned evenly, a shorter one repeats frames evenly, and its rate is that of the frames chosen. Any other reward gets
all. T counts at most ``max_frames`` frames, from the start: that bounds the memory, and what lies behind is not seen.

T is known only at the end, so every frame up to there is kept, as bytes and without a copy: 256 frames of 1280×720 are
0.7 GB, shared by all rewards. Only the chosen frames become float32, and they go when the score is there.

Run: ``measure(frames, 8.0, [RewardMetric(ClipScore())], prompt="a red circle")``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reelign.contracts import Request, Reward, RewardCard, VideoBatch
from reelign.errors import ConfigError, ContractError, DataError, NonFiniteError
from reelign.metrics.clip import ClipInfo, Frame, MetricCard, Picture, Undefined
from reelign.video_io import to_video

MAX_FRAMES = 256
NO_PROMPT = "(no prompt)"  # a request must have one; only rewards that never look at it get this
# What a clip can do to a reward: too small for its kernel, too large for the memory. Anything else is a bug in the
# reward, which would repeat on every clip, and keeps its traceback.
CLIP_FAULTS = (RuntimeError, ValueError, MemoryError)


def even_choice(total: int, frames: int) -> list[int]:
    """round(linspace(0, T − 1, frames)), halves to even; indices repeat where T is below ``frames``.

    Args:
        total: T, at least 1.
        frames: how many, at least 1.
    """
    if min(total, frames) < 1:
        raise DataError(f"choosing frames needs at least one of each; got {frames} of {total}")
    return [int(i) for i in torch.linspace(0, total - 1, frames, dtype=torch.float64).round()]


def chosen_fps(total: int, frames: int, fps: float) -> float:
    """The rate at which ``frames`` frames chosen evenly from ``total`` are shown.

    First and last frame stay, so it is the gaps that stretch, not the frames: fps·(frames − 1)/(T − 1), and
    fps·frames/T where there is only one frame on either side.
    """
    return fps * ((frames - 1) / (total - 1) if min(frames, total) > 1 else frames / total)


def score_once(reward: Reward, video: Tensor, fps: float, prompt: str) -> float:
    """The reward's score of one clip, a finite number; no gradient.

    Args:
        reward: what to score with.
        video: float32 [T,3,H,W] in [0,1], on the device to score on.
        fps: of ``video``.
        prompt: may be empty where the reward does not look at it.

    Raises:
        DataError: this clip is beyond the reward, for example too small or too large.
        ContractError: the reward gives something other than one score.
        NonFiniteError: the score is NaN or infinite.
    """
    batch = VideoBatch(video[None], fps, Request((prompt or NO_PROMPT,)))
    try:
        with torch.no_grad():
            score = reward(batch)
    except CLIP_FAULTS as error:
        raise DataError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(score, Tensor) or score.shape != (1,):
        shape = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
        raise ContractError(f"a reward gives one score a clip, shape (1,); got {shape}")
    value = score.item()
    if not math.isfinite(value):
        raise NonFiniteError(f"a score is a finite number; got {value}")
    return value


class RewardMetric:
    """A reward as a metric of one value.

    Args:
        reward: any reward.
        name: of the column; the name on the reward's card where None.
        max_frames: at most this many frames of a clip, from its start; at least 1.
        device: where frames are scored; rewards move there by themselves.
    """

    def __init__(
        self, reward: Reward, name: str | None = None, max_frames: int = MAX_FRAMES, device: str = "cpu"
    ) -> None:
        if max_frames < 1:
            raise ConfigError(f"a reward sees at least one frame; got max_frames={max_frames}")
        self.reward = reward
        self.max_frames = max_frames
        self.device = torch.device(device)
        self.card = metric_card(reward.card, name or reward.card.name, max_frames)

    def start(self, info: ClipInfo) -> RewardScore:
        """A fresh score for a clip."""
        return RewardScore(self, info)


@dataclass
class RewardScore:
    """The frames of one clip so far, at most ``max_frames``; none where a prompt is needed and missing."""

    metric: RewardMetric
    info: ClipInfo
    pictures: list[Picture] = field(default_factory=list)

    def add(self, frame: Frame) -> None:
        """Keep the next frame, not a copy of it."""
        if len(self.pictures) < self.metric.max_frames and not self._lacks_prompt():
            self.pictures.append(frame.rgb)

    def finish(self) -> dict[str, float]:
        """The score, by the card's name.

        Raises:
            Undefined: the reward needs a prompt and the clip has none.
            ReelignError: see ``score_once``.
        """
        if self._lacks_prompt():
            raise Undefined("needs a prompt, and this clip has none; add it to metadata.csv")
        if not self.pictures:
            raise DataError("a reward scores at least one frame; got none")
        reward, fps, pictures = self.metric.reward, self.info.fps, self.pictures
        total, wanted = len(pictures), reward.card.frames
        if wanted != "any" and wanted != total:
            pictures = [pictures[i] for i in even_choice(total, wanted)]
            fps = chosen_fps(total, wanted, fps)
        self.pictures = []
        try:
            video = to_video(pictures).to(self.metric.device)
        except (RuntimeError, MemoryError) as error:
            raise DataError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
        return {self.metric.card.name: score_once(reward, video, fps, self.info.prompt)}

    def _lacks_prompt(self) -> bool:
        return self.metric.reward.card.needs_prompt and not self.info.prompt


def metric_card(card: RewardCard, name: str, max_frames: int = MAX_FRAMES) -> MetricCard:
    """What the reward's card promises, as a metric's card."""
    chosen = "all frames" if card.frames == "any" else f"{card.frames} frames at round(linspace(0, T − 1, n))"
    size = f", resized to {card.resolution[0]}×{card.resolution[1]}" if card.resolution else ""
    return MetricCard(
        name=name,
        version=1,
        values=(name,),
        unit="score",
        range=card.range,
        better="higher",
        protocol=f"reward {card.name} on {chosen} of the first {max_frames}{size}: {card.summary}",
        source=card.source,
        needs_prompt=card.needs_prompt,
    )
