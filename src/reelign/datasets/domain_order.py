"""Endless unpaired clips of two domains, as requests: what each step of ``video_translation`` is asked.

The prompt of a clip is the name of its domain, x or y. Left out: the same number of clips from domains of other sizes.
"""

from __future__ import annotations

import torch

from reelign.contracts import Request
from reelign.datasets.prompts import ALL
from reelign.datasets.translation import SIDES, Domains


class DomainOrder:
    """Clips of both domains at random; its state goes into checkpoints.

    Args:
        domains: what is drawn from.
        seed: of the draws.
    """

    def __init__(self, domains: Domains, seed: int) -> None:
        self.domains = domains
        self._random = torch.Generator().manual_seed(seed)

    def texts(self) -> tuple[str, ...]:
        """The names of the domains."""
        return SIDES

    def request(self, count: int, rows: slice = ALL) -> Request:
        """``count`` clips of x, then ``count`` of y; all of them, since no run of several processes translates."""
        assert rows in (ALL, slice(0, count))
        clips = [self.domains.batch(side, count, self._random) for side in SIDES]
        return Request(tuple(side for side in SIDES for _ in range(count)), torch.cat(clips))

    def state(self) -> dict[str, object]:
        """What ``restore`` needs to continue."""
        return {"random": self._random.get_state()}

    def restore(self, state: dict[str, object]) -> None:
        """Continue from what ``state`` gave."""
        random = state["random"]
        assert isinstance(random, torch.Tensor)
        self._random.set_state(random)
