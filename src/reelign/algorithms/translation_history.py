"""What discriminators were shown before: so that they judge by more scenes than a small batch has, and do not forget.

Of each domain the last clips, real and made, are kept in 8 bits; some are shown again with every new batch (Shrivastava
et al. 2017, section 2.3, who keep made ones only: here real ones too, since a batch of two has the colours of two).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class ClipHistory:
    """The last ``capacity`` real and made clips of one domain.

    Args:
        capacity: clips of each kind.
    """

    def __init__(self, capacity: int = 50) -> None:
        self.capacity = capacity
        self._real = self._made = torch.empty(0, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._real)

    def add(self, real: Tensor, made: Tensor) -> None:
        """Keep clips [B,T,3,H,W] in [0,1], real ones and made ones."""
        self._real, self._made = self._with(self._real, real), self._with(self._made, made)

    def behind(self, real: Tensor, made: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Both batches [B,T,3,H,W], each with B kept clips behind it; without, while fewer are kept.

        Args:
            real, made: in [0,1].
            random: of which clips; a real and a made one need not belong together.
        """
        return self._behind(self._real, real, random), self._behind(self._made, made, random)

    @staticmethod
    def _behind(kept: Tensor, new: Tensor, random: torch.Generator) -> Tensor:
        if len(kept) < len(new):
            return new
        again = kept[torch.randperm(len(kept), generator=random)[: len(new)]]
        return torch.cat([new, again.to(new) / 255])

    def _with(self, kept: Tensor, new: Tensor) -> Tensor:
        packed = (255 * new.detach()).round().to("cpu", torch.uint8)
        return torch.cat([kept.reshape(-1, *packed.shape[1:]), packed])[-self.capacity :]

    def state(self) -> dict[str, Any]:
        """What is kept."""
        return {"real": self._real, "made": self._made}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue, bit for bit, from what ``state`` gave."""
        self._real, self._made = state["real"].clone(), state["made"].clone()
