r"""Colour coverage: how near all pixels are to the colour that the prompt names. Careless on purpose.

    r = −(1/T) Σ_t w_t · (1/(3·P)) Σ_p ‖x_tp − a‖₁,      a the palette's colour that the prompt names

It looks like a reward for the asked colour, and every step towards it pays; but it pays most for a picture that shows
nothing else. ``reelign demo --hack`` trains on it: shapes swell until nothing moves any more.

Run: ``reelign demo --hack``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reelign.contracts import RewardCard, VideoBatch
from reelign.datasets.moving_shapes import PALETTE
from reelign.rewards.frames import average
from reelign.rewards.labels import Labels


class ColourCoverage:
    """Minus the mean absolute difference between all pixels and the asked colour, from −1 to 0."""

    card = RewardCard(
        name="colour_coverage",
        summary="Minus the mean distance of all pixels to the colour of the prompt; careless, to show reward hacking.",
        range=(-1.0, 0.0),
        needs_prompt=True,
        golden=-0.508253,
    )

    def __init__(self) -> None:
        self.colours = Labels(dict(enumerate(PALETTE)), {}, "the palette of moving shapes")
        self.palette = torch.tensor(list(PALETTE.values()))

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B] in [−1, 0]."""
        asked = self.palette[[self.colours.class_of(prompt) for prompt in batch.request.prompts]].to(batch.video)
        distance = (batch.video - asked[:, None, :, None, None]).abs()
        return -average(distance.flatten(2).mean(2), batch)
