"""From a row of scores to what a judge's model reads: the same for training, validation, test and use.

A value that could not be measured is NaN, never a number that stands for a bad one. AirScape's tables (arXiv
2507.08885) write similarity exactly 0 for "could not be computed"; its program replaces such zeros by noise around 0.1
in training, validation and test, but leaves them 0 when the ranker is used. Here ``zero_is_missing`` turns them into
NaN everywhere, and a model that cannot read NaN sees the training median and a column that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reelign.errors import DataError

PUBLISHED = ("imaging_quality", "motion_smoothness", "dynamic_degree", "aesthetic_quality", "similarity")
ZERO_IS_MISSING = ("similarity",)


@dataclass(frozen=True)
class Features:
    """How rows become numbers; learned from the training takes, then frozen.

    Args:
        columns: F scores that are read.
        zero_is_missing: those of them in which exactly 0 means "could not be computed".
        fill: median of each column over the training takes, used where a value is missing.
        centre, scale: mean and deviation of each column over the training takes; scale is 1 where nothing varied.
        gaps: columns with a missing value among the training takes; each gets an indicator.
    """

    columns: tuple[str, ...]
    zero_is_missing: tuple[str, ...]
    fill: tuple[float, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    gaps: tuple[str, ...]

    def values(self, rows: pd.DataFrame) -> np.ndarray:
        """The scores as they are, float64 [n,F], NaN where missing.

        Raises:
            DataError: a column is absent or holds text or infinity.
        """
        return read_values(rows, self.columns, self.zero_is_missing)

    def filled(self, rows: pd.DataFrame) -> np.ndarray:
        """(x − centre)/scale, [n,F+G] without NaN: missing values are ``fill``, then one indicator a gap column."""
        values = self.values(rows)
        missing = np.isnan(values)
        standard = (np.where(missing, self.fill, values) - self.centre) / self.scale
        indicators = missing[:, [self.columns.index(name) for name in self.gaps]]
        return np.hstack([standard, indicators])


def read_values(rows: pd.DataFrame, columns: Sequence[str], zero_is_missing: Sequence[str] = ()) -> np.ndarray:
    """Columns of a table as float64 [n,F], with NaN where missing or, in ``zero_is_missing``, exactly 0.

    Raises:
        DataError: a column is absent or holds text or infinity.
    """
    absent = [name for name in columns if name not in rows]
    if absent:
        have = ", ".join(str(name) for name in rows.select_dtypes("number").columns) or "none"
        raise DataError(f"the judge reads the column {absent[0]!r}; the takes have {have}: score them first")
    try:
        values = rows[list(columns)].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(f"the judge reads numbers; {', '.join(columns)} hold text: {error}") from error
    if np.isinf(values).any():
        name = columns[int(np.argmax(np.isinf(values).any(axis=0)))]
        raise DataError(f"a score is a finite number or missing; the column {name!r} holds infinity")
    zero = np.isin(np.array(columns), list(zero_is_missing))
    return np.where(zero & (values == 0), np.nan, values)


def learn_features(
    takes: pd.DataFrame, columns: Sequence[str] = PUBLISHED, zero_is_missing: Sequence[str] = ZERO_IS_MISSING
) -> Features:
    """Medians, means and deviations of the training takes.

    Args:
        takes: rows of the training groups, no others.
        columns: scores to read; by default the five of AirScape.
        zero_is_missing: columns in which exactly 0 means "could not be computed"; names not read are ignored.

    Raises:
        DataError: no column is asked for, one is asked for twice, or one has no value at all.
    """
    if not columns or len(set(columns)) < len(columns):
        raise DataError(f"a judge reads different columns, at least one; got {list(columns)}")
    zeros = tuple(name for name in zero_is_missing if name in columns)
    values = read_values(takes, columns, zeros)
    missing = np.isnan(values)
    if missing.all(axis=0).any():
        name = columns[int(np.argmax(missing.all(axis=0)))]
        raise DataError(f"a column has at least one value among the training takes; {name!r} has none: leave it out")
    spread = np.nanstd(values, axis=0)
    return Features(
        columns=tuple(columns),
        zero_is_missing=zeros,
        fill=tuple(np.nanmedian(values, axis=0).tolist()),
        centre=tuple(np.nanmean(values, axis=0).tolist()),
        scale=tuple(np.where(spread > 0, spread, 1.0).tolist()),
        gaps=tuple(name for name, has in zip(columns, missing.any(axis=0), strict=True) if has),
    )
