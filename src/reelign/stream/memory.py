"""Giving memory back.

Nothing that a stream holds grows, but the C library keeps what was freed for later, now more, now less: the size of
the process wanders by some 10 % without a trend. Giving back what is free after each part makes it what is in use, at
8 % of the time of the zoo's tiny model and next to nothing of that of a large one.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _trim() -> Any:
    """glibc's ``malloc_trim``, or None in another C library."""
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # not a Unix
        return None


def give_back_memory() -> None:
    """Return free memory to the system, where the C library can."""
    if (trim := _trim()) is not None:
        trim(0)
