"""The line before the one place where streams are made: first come, first served, and all know their position."""

from __future__ import annotations

import asyncio

from reelign.errors import DataError

LONGEST = 16


class Ticket:
    """A place in the line; ``moved`` is set whenever the position changed."""

    def __init__(self) -> None:
        self.moved = asyncio.Event()


class Line:
    """Who waits; the first of them is served. For one event loop.

    Args:
        longest: how many may wait, besides the one who is served.
    """

    def __init__(self, longest: int = LONGEST) -> None:
        self.longest = longest
        self._tickets: list[Ticket] = []

    def join(self) -> Ticket:
        """Go to the end of the line.

        Raises:
            DataError: it is full.
        """
        if len(self._tickets) > self.longest:
            raise DataError(f"at most {self.longest} streams wait, and so many do: try again later")
        self._tickets.append(ticket := Ticket())
        return ticket

    def position(self, ticket: Ticket) -> int:
        """How many are before this one; 0 is being served."""
        return self._tickets.index(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Leave, served or not; those behind move up."""
        place = self.position(ticket)
        del self._tickets[place]
        for behind in self._tickets[place:]:
            behind.moved.set()
