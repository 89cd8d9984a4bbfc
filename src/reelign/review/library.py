"""The takes under review, held in memory and read again when the folder grew.

Left out: takes without a group of two; they can be rated and browsed, but there is nobody to compare them with.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from reelign.selection.takes import SCORES, TAKE_COLUMNS, TAKES, TakesFolder

LOOK_S = 2.0  # how often the folder is looked at


@dataclass(frozen=True)
class Shelf:
    """The takes at one moment.

    Args:
        wide: one row a clip, as ``TakesFolder.wide`` has it.
        rows: take to the place of its first row in ``wide``.
        groups: group to its different takes.
        scores: the long table of scores.
        metrics: columns of ``wide`` that are scores.
        spoiled: identity of a spoiled copy to the take it is of; see ``spoiled_name``.
    """

    wide: pd.DataFrame
    scores: pd.DataFrame
    rows: dict[str, int]
    groups: dict[str, tuple[str, ...]]
    metrics: tuple[str, ...]
    spoiled: dict[str, str]

    def fact(self, take: str, column: str) -> str:
        """One column of a take, as a string."""
        return str(self.wide[column].iat[self.rows[take]])

    def holds(self, name: str) -> bool:
        """Whether this is a take or the spoiled copy of one."""
        return name in self.rows or name in self.spoiled

    @property
    def compared(self) -> dict[str, tuple[str, ...]]:
        """Groups with something to compare."""
        return {group: takes for group, takes in self.groups.items() if len(takes) > 1}


class Library:
    """Reads the takes folder; ``shelf()`` is cheap to call for every request.

    Args:
        folder: the takes folder.
    """

    def __init__(self, folder: TakesFolder) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._parts: tuple[tuple[str, int], ...] | None = None
        self._looked = 0.0
        self._shelf = self._read()

    def shelf(self) -> Shelf:
        """The takes as they are, at most ``LOOK_S`` old.

        Raises:
            DataError: the folder became unreadable.
        """
        with self._lock:
            if time.monotonic() - self._looked > LOOK_S:
                self._shelf = self._read()
            return self._shelf

    def _read(self) -> Shelf:
        self._looked = time.monotonic()
        parts = tuple(
            (str(part), part.stat().st_size)
            for table in (TAKES, SCORES)
            for part in sorted((self.folder.path / table).glob("part-*.parquet"))
        )
        if parts == self._parts:
            return self._shelf
        self._parts = parts
        return read_shelf(self.folder.wide(), self.folder.scores())


def read_shelf(wide: pd.DataFrame, scores: pd.DataFrame) -> Shelf:
    """The takes of a wide and a long table."""
    wide = wide.reset_index(drop=True)
    takes, groups = wide["take"].astype(str).tolist(), wide["group"].astype(str).tolist()
    rows: dict[str, int] = {}
    members: dict[str, dict[str, None]] = {}
    for place, (take, group) in enumerate(zip(takes, groups, strict=True)):
        rows.setdefault(take, place)
        members.setdefault(group, {})[take] = None
    metrics = tuple(column for column in wide.columns if column not in TAKE_COLUMNS)
    spoiled = {spoiled_name(take): take for take in rows}
    return Shelf(wide, scores, rows, {group: tuple(found) for group, found in members.items()}, metrics, spoiled)


def spoiled_name(take: str) -> str:
    """Identity of the spoiled copy of a take: looks like any other, so that an attention check cannot be told."""
    return hashlib.sha256(f"spoiled copy of {take}".encode()).hexdigest()


def file_of(folder: TakesFolder, shelf: Shelf, take: str) -> Path:
    """Where a take is."""
    return folder.locate(shelf.fact(take, "file"))
