r"""Takes on the bad side of a directed metric, against comparable takes, at a stated rate of false alarms.

    z = s·(x − median)/max(1.4826·MAD, step),    s = −1 where higher is better, +1 where lower is better

so that a large z is bad and an unusually good take is never an outlier. Median and MAD are those of the cohort: takes
of the same group, generator and size, or, where these are too few, of the same generator and size; ``step`` is the
smallest spread that counts, in the unit of the metric, so that equal takes are not told apart by rounding. Cohorts
below ``MIN_COHORT`` abstain (after Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993).

A take is an outlier where some z is above its limit. Nothing here is a quota: in a clean cohort nobody has to go. The
limits come from a level α, the chance that an untouched take is called an outlier on any of m metrics:

    by theory     P(z > limit) = α/m for normal values and the cohort's own size, by simulation: the median and MAD of
                  a few values are noisy, so small cohorts have far wider limits
    calibrated    on takes that people accepted: c_j is the (1 − α) quantile of z_j, T = max_j z_j/c_j, and the limits
                  are t·c_j with t the ⌈(n + 1)(1 − α)⌉-th smallest T. This is conformal calibration, and needs no
                  normal values; it needs n ≥ 1/α − 1 accepted takes, in cohorts like those to be judged.

Run: ``reelign reject TAKES``, with ``--calibrate ACCEPTED`` for calibrated limits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reelign.errors import ConfigError, DataError
from reelign.selection.gates import Finding, short
from reelign.video_io import replacing

MIN_COHORT = 5
CONSISTENT = 1.4826  # MAD to standard deviation, for normal values
LEAST_LIMIT = 3.0  # a calibrated limit is not below this: a metric that never varied must not reject at the first step
DRAWS = 400_000  # simulated takes behind a limit by theory
SAME_AS_INFINITE = 256  # cohorts above this size have the limit of this size


@dataclass(frozen=True)
class Directed:
    """A metric with a bad side.

    Args:
        bad: which side is bad.
        step: the smallest spread that counts, in the unit of the metric.
        words: what is wrong on the bad side.
    """

    bad: Literal["low", "high"]
    step: float
    words: str


@dataclass(frozen=True)
class Limits:
    """From which z a take is an outlier.

    Args:
        level: chance that an untouched take is called one, on any metric.
        by_metric: calibrated limits; empty where they follow from theory.
        takes, groups: how many accepted takes calibrated them.
    """

    level: float
    by_metric: Mapping[str, float]
    takes: int = 0
    groups: int = 0

    def of(self, metric: str, size: int, metrics: int) -> float:
        """Limit of a metric, in a cohort of ``size`` takes judged on ``metrics`` metrics."""
        if not self.takes:
            return null_limit(min(size, SAME_AS_INFINITE), self.level / metrics)
        return self.by_metric.get(metric, math.inf)

    def say(self) -> str:
        """Where the limits come from."""
        if not self.takes:
            return f"limits for normal values, at most {self.level:.1%} false alarms a take over all metrics"
        on = f"{self.takes} accepted takes of {self.groups} groups"
        return f"limits calibrated on {on}, at most {self.level:.1%} false alarms a take over all metrics"

    def save(self, path: Path) -> None:
        """Write as JSON."""
        with replacing(Path(path)) as part:
            part.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def load_limits(path: Path) -> Limits:
    """Limits that ``Limits.save`` wrote.

    Raises:
        DataError: the file is missing or not one of these.
    """
    try:
        return Limits(**json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"limits are a JSON file written by 'reelign reject --save-limits'; {path}: {error}") from error


@lru_cache(maxsize=512)
def null_limit(size: int, tail: float) -> float:
    """z with P(z > limit) = ``tail`` for a normal value among ``size``, itself counted; simulated, seeded.

    Raises:
        ConfigError: fewer than 3 values, or a tail outside (0, 0.5).
    """
    if size < 3 or not 0 < tail < 0.5:
        raise ConfigError(f"a limit needs 3 or more takes and a tail between 0 and 0.5; got {size} and {tail}")
    values = np.random.default_rng(0).standard_normal((-(-DRAWS // size), size))
    centred = values - np.median(values, axis=1, keepdims=True)
    spread = CONSISTENT * np.median(np.abs(centred), axis=1, keepdims=True)
    return float(np.quantile(centred / spread, 1 - tail))


def robust_z(values: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """(x − median)/max(1.4826·MAD, step) of values [n]; NaN stays NaN and counts for nothing.

    Raises:
        ConfigError: ``step`` is not above 0.
    """
    if not step > 0:
        raise ConfigError(f"the smallest spread that counts is above 0; got {step}")
    known = values[np.isfinite(values)]
    if not len(known):
        return np.full_like(values, np.nan)
    centre = np.median(known)
    return (values - centre) / max(CONSISTENT * float(np.median(np.abs(known - centre))), step)


def cohorts(frame: pd.DataFrame, least: int = MIN_COHORT) -> pd.Series:
    """The cohort of each row, as a name that says what its takes have in common; empty where too few are comparable.

    Size (``height``, ``width``) counts where those columns exist; a take of unknown size has no cohort.

    Args:
        frame: group, generator, and where known height and width.
        least: takes a cohort needs, at least 3.

    Raises:
        ConfigError: ``least`` is below 3, where there is no spread to speak of.
    """
    if least < 3:
        raise ConfigError(f"a cohort has 3 or more takes; got {least}")
    sized = [name for name in ("height", "width") if name in frame]
    known = frame[sized].notna().all(axis=1)
    whole = len(sized) == 2

    def names(row: Any) -> tuple[str, str]:
        size = f" at {row['width']:g}×{row['height']:g}" if whole else ""
        maker = f"by {short(row['generator'])}" if row["generator"] else ""
        return f"group {short(row['group'], 10_000)} {maker}".strip() + size, (maker or "of unknown generator") + size

    rows = [names(row) for row in frame.to_dict("records")]
    near, far = (pd.Series([row[i] for row in rows], index=frame.index, dtype=object).where(known, "") for i in (0, 1))
    chosen = near.where(near.map(near.value_counts()).fillna(0) >= least, far)
    return chosen.where(chosen.map(chosen.value_counts()).fillna(0) >= least, "")


def bad_z(
    frame: pd.DataFrame, columns: Mapping[str, Directed], cohort: pd.Series, least: int = MIN_COHORT
) -> pd.DataFrame:
    """z of every directed column, positive is bad; NaN where the value is missing or fewer than ``least`` have one.

    Args:
        frame: columns of metrics.
        columns: those to look at; others are left out.
        cohort: from ``cohorts``.
        least: values that a cohort needs for a spread.
    """
    out = pd.DataFrame(np.nan, index=frame.index, columns=[name for name in columns if name in frame])
    for name, rows in frame.groupby(cohort, sort=False):
        for column in out.columns if name else ():
            values = rows[column].to_numpy(dtype=np.float64, na_value=np.nan)
            if np.isfinite(values).sum() >= least:
                sign = 1 if columns[column].bad == "high" else -1
                out.loc[rows.index, column] = sign * robust_z(values, columns[column].step)
    return out


def calibrate(z: pd.DataFrame, groups: Sequence[object], level: float) -> Limits:
    """Limits from the z of takes that people accepted, so that at most a share ``level`` of such takes is refused.

    Args:
        z: from ``bad_z`` on accepted takes.
        groups: group of each, to be told.
        level: α.

    Raises:
        ConfigError: fewer than 1/α − 1 takes have a z, so that no limit can hold the level.
    """
    check_level(level)
    known = z[z.notna().any(axis=1)]
    least = math.ceil(1 / level) - 1
    if len(known) < least:
        raise ConfigError(
            f"a level of {level:.1%} needs {least} accepted takes in comparable groups; got {len(known)}: "
            "give more, or a higher level"
        )
    known = known.loc[:, known.notna().any()]
    scale = known.quantile(1 - level).clip(lower=LEAST_LIMIT)
    worst = np.sort((known / scale).max(axis=1).to_numpy())
    factor = max(float(worst[math.ceil((len(worst) + 1) * (1 - level)) - 1]), 0.0)
    limits = (scale * factor).clip(lower=LEAST_LIMIT)
    kept = pd.Series(list(groups), index=z.index)[known.index]
    return Limits(level, {str(name): float(limit) for name, limit in limits.items()}, len(known), int(kept.nunique()))


def check_level(level: float) -> None:
    """Raises ConfigError where a rate of false alarms is not between 0 and 0.5."""
    if not 0 < level < 0.5:
        raise ConfigError(f"the rate of false alarms lies between 0 and 0.5, for example 0.01; got {level}")


def outliers(
    frame: pd.DataFrame, columns: Mapping[str, Directed], limits: Limits, least: int = MIN_COHORT
) -> tuple[list[Finding], list[str]]:
    """Takes whose z is above the limit on some directed metric, a finding a metric, and notes on who was not seen.

    Args:
        frame: take, file, group, generator, height, width and columns of metrics; takes that passed the gates.
        columns: directed metrics.
        limits: from ``calibrate``, or ``Limits(level, {})``.
        least: takes a cohort needs.
    """
    check_level(limits.level)
    cohort = cohorts(frame, least)
    z = bad_z(frame, columns, cohort, least)
    judged = int(z.notna().any().sum())
    found: list[Finding] = []
    for name, rows in frame.groupby(cohort, sort=False):
        for column in z.columns if name else ():
            values = rows[column].dropna()
            limit = limits.of(column, len(values), judged) if len(values) >= least else math.inf
            for index in rows.index[z.loc[rows.index, column] > limit]:
                found.append(_finding(frame.loc[index], values, column, columns[column], (str(name), limit)))
    return found, _abstained(frame, cohort, least)


def _finding(row: pd.Series, values: pd.Series, column: str, directed: Directed, where: tuple[str, float]) -> Finding:
    """One outlier, in words."""
    cohort, limit = where
    low, centre, high = np.quantile(values, [0.25, 0.5, 0.75])
    spread = max(CONSISTENT * float(np.median(np.abs(values - centre))), directed.step)
    bound = centre + (limit if directed.bad == "high" else -limit) * spread
    side = "above" if directed.bad == "high" else "below"
    value = float(row[column])
    reason = (
        f"{directed.words}: {column} {value:.4g} is {side} {bound:.4g}, the limit among {len(values)} takes "
        f"of {cohort} (the middle half lies in {low:.4g} … {high:.4g})"
    )
    return Finding(str(row["take"]), str(row["file"]), "outlier", reason, column, value, float(bound))


def _abstained(frame: pd.DataFrame, cohort: pd.Series, least: int) -> list[str]:
    """Who could not be compared, group by group."""
    counts = frame[cohort == ""].groupby("group", sort=False).size()
    return [
        f"group {short(group)}: {count} {'take has' if count == 1 else 'takes have'} fewer than {least} comparable "
        "takes, so nothing is said about outliers"
        for group, count in counts.items()
    ]
