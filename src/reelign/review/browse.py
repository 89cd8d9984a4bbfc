"""Which takes a browse page shows: filtered and sorted by any column, one page at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pandas as pd

from reelign.errors import DataError
from reelign.review.library import Shelf

PER_PAGE = 24
PLAIN = ("group", "file", "prompt", "generator", "seed")  # columns besides scores that may be sorted by


@dataclass(frozen=True)
class Filters:
    """What the address of a browse page says.

    Args:
        group: only this group; empty is all.
        text: only takes whose prompt or file holds it, whatever the case.
        metric, low, high: only takes whose score lies in [low, high]; a take without that score is left out.
        sort, descending: a column and the direction; takes without a value come last.
        page: from 1.
    """

    group: str = ""
    text: str = ""
    metric: str = ""
    low: float | None = None
    high: float | None = None
    sort: str = ""
    descending: bool = False
    page: int = 1

    def address(self, **changes: Any) -> str:
        """The address of this page with some values changed."""
        values = {**vars(self), **changes}
        values["descending"] = "1" if values["descending"] else ""
        return "/browse?" + urlencode({k: v for k, v in values.items() if v not in (None, "", 1)} or {"page": 1})


@dataclass(frozen=True)
class BrowsePage:
    """One page of takes: its rows, how many there are in all, and of how many pages."""

    rows: list[dict[str, Any]]
    total: int
    pages: int


def read_filters(query: Mapping[str, str]) -> Filters:
    """Filters from an address.

    Raises:
        DataError: a number is none.
    """
    return Filters(
        query.get("group", ""),
        query.get("text", ""),
        query.get("metric", ""),
        _number(query.get("low", "")),
        _number(query.get("high", "")),
        query.get("sort", ""),
        query.get("descending", "") == "1",
        max(1, int(_number(query.get("page", "")) or 1)),
    )


def browse(shelf: Shelf, filters: Filters) -> BrowsePage:
    """The takes that a page shows.

    Raises:
        DataError: a metric or column to sort by that the table does not have.
    """
    table = shelf.wide
    keep = pd.Series(True, index=table.index)
    if filters.group:
        keep &= table["group"] == filters.group
    if filters.text:
        keep &= _holds(table["prompt"], filters.text) | _holds(table["file"], filters.text)
    if filters.metric:
        values = table[_known(filters.metric, shelf.metrics)]
        keep &= values.notna()
        keep &= values.ge(filters.low) if filters.low is not None else True
        keep &= values.le(filters.high) if filters.high is not None else True
    table = table[keep]
    if filters.sort:
        column = _known(filters.sort, (*shelf.metrics, *PLAIN))
        table = table.sort_values(column, ascending=not filters.descending, na_position="last", kind="stable")
    start = (filters.page - 1) * PER_PAGE
    rows = table.iloc[start : start + PER_PAGE].to_dict("records")
    return BrowsePage(rows, len(table), max(1, math.ceil(len(table) / PER_PAGE)))


def _holds(column: Any, text: str) -> Any:
    return column.str.contains(text, case=False, regex=False)


def _known(name: str, columns: tuple[str, ...]) -> str:
    if name in columns:
        return name
    raise DataError(f"takes have the scores {', '.join(columns)}; got {name[:80]!r}")


def _number(text: str) -> float | None:
    if not text.strip():
        return None
    try:
        number = float(text)
    except ValueError as error:
        raise DataError(f"a number is needed here; got {text[:80]!r}") from error
    if not math.isfinite(number) or abs(number) > 1e15:
        raise DataError(f"an ordinary number is needed here; got {text[:80]!r}")
    return number
