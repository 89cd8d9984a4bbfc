"""How much moves: a frozen clip scores 0. A held-out measure for any generator; no weights."""

from __future__ import annotations

from torch import Tensor

from reelign.contracts import VideoBatch


def motion_energy(batch: VideoBatch) -> dict[str, Tensor]:
    """``motion_energy`` [B]: mean absolute difference of successive frames, in grey levels of 255 a frame."""
    return {"motion_energy": 255 * batch.video.diff(dim=1).abs().mean(dim=(1, 2, 3, 4))}
