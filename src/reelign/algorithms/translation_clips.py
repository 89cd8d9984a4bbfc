"""Clips that a step of unpaired translation takes: by domain, cut to the same place, and how they move."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reelign.contracts import Request
from reelign.errors import DataError
from reelign.generators.translation import DOMAINS, Domain
from reelign.metrics.translation import source_motion
from reelign.video_io import to_pictures

Clips = dict[Domain, Tensor]  # of each domain, [B,T,3,H,W]


def unpaired(request: Request) -> Clips:
    """Clips of each domain out of a request whose prompts are ``x`` and ``y``.

    Raises:
        DataError: no clips, a prompt that is no domain, or a domain without clips.
    """
    if request.source_videos is None:
        raise DataError("video_translation learns from clips; this request has none: set 'domains'")
    clips: Clips = {}
    for domain in DOMAINS:
        rows = [row for row, prompt in enumerate(request.prompts) if prompt == domain]
        if not rows:
            raise DataError(f"a step takes clips of both domains, x and y; there is none of {domain}")
        clips[domain] = request.source_videos[rows]
    if strange := set(request.prompts) - set(DOMAINS):
        raise DataError(f"the domain of a clip is x or y; got {strange.pop()!r}")
    if request.source_videos.shape[1] < 2:
        raise DataError("clips to learn translation from have at least 2 frames; these have 1")
    return clips


def cut(clips: Tensor, frames: int | None, side: int | None, random: torch.Generator) -> Tensor:
    """The same frames and square of all clips [B,T,3,H,W], at any place; what is not larger stays whole."""
    count, _, height, width = clips.shape[1:]
    sizes = (min(frames or count, count), min(side or height, height), min(side or width, width))
    spans = []
    for whole, part in zip((count, height, width), sizes, strict=True):
        start = int(torch.randint(whole - part + 1, (1,), generator=random))
        spans.append(slice(start, start + part))
    return clips[:, spans[0], :, spans[1], spans[2]]


def motion_of(clips: Tensor) -> tuple[Tensor, Tensor]:
    """The flow of clips [B,T,3,H,W] and where to trust it, as ``steadiness_loss`` takes them."""
    motions = [source_motion(to_pictures(clip)) for clip in clips]
    flow = np.stack([[step.flow for step in motion] for motion in motions])
    trusted = np.stack([[step.trusted for step in motion] for motion in motions])
    return torch.from_numpy(flow).movedim(-1, 2).to(clips.device), torch.from_numpy(trusted).to(clips.device)
