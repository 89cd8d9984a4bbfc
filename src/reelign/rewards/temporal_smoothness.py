r"""Temporal smoothness: how little the pixels accelerate.

    r = − mean over t, colour and pixels of |x_{t−1} − 2·x_t + x_{t+1}|

The second difference is zero for a picture that stays or fades evenly, and large where frames flicker or jump, which is
what the "motion smoothness" and "temporal flickering" dimensions of VBench (Huang et al. 2024, section 3.2) punish with
larger models. A frozen clip scores best: pair it with a reward that asks for motion.

Left out: optical flow, so fast motion of sharp edges costs too.

Run: ``reelign score CLIPS --reward temporal_smoothness``.
"""

from __future__ import annotations

from torch import Tensor

from reelign.contracts import RewardCard, VideoBatch
from reelign.errors import DataError


def mean_acceleration(video_BTCHW: Tensor) -> Tensor:
    """Mean absolute second difference in time of clips [B,T,C,H,W], T ≥ 3: [B], in units of the pixel range, ≥ 0.

    Raises:
        DataError: fewer than three frames.
    """
    if video_BTCHW.shape[1] < 3:
        raise DataError(f"temporal smoothness needs at least 3 frames; got {video_BTCHW.shape[1]}")
    return video_BTCHW.diff(n=2, dim=1).abs().flatten(1).mean(1)


class TemporalSmoothness:
    """Minus the mean absolute second difference in time, from −2 to 0: higher is smoother."""

    card = RewardCard(
        name="temporal_smoothness",
        summary="Minus the mean absolute second difference of the pixels in time.",
        range=(-2.0, 0.0),
        golden=-0.0149277,
    )

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B] in [−2, 0]."""
        return -mean_acceleration(batch.video)
