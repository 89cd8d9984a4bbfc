"""Validity gates: what is wrong with a take whatever its siblings look like, before any statistics.

Each gate has a name, a rule in words with its numbers, and says where it cannot be applied: a value that is missing or
undefined never rejects and never passes silently; it becomes a note. What a request asks of frame count, rate and size
is given outright, or is what more than half of the takes of the same group and generator have; where no value has such
a majority the gate abstains. File names are never parsed: everything comes from columns.

Columns: take, file, group, generator, and of the metrics frames, fps, height, width, black_share, frozen_share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

FPS_TOLERANCE = 0.01  # relative; 29.97 and 30 are the same rate to a viewer
SHAPE = {"frames": "frames", "fps": "frames a second", "height": "pixels of height", "width": "pixels of width"}
BROKEN = "broken"  # column of reasons, in words, why a take has no scores; empty or missing where it has some


class GateOptions(BaseModel):
    """Limits of the gates.

    Args:
        frames, fps, height, width: what every take must have; None takes the majority of its group and generator.
        black: reject from this share of black frames; None switches the gate off.
        frozen: reject from this share of frames that repeat the one before; None switches the gate off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames: int | None = Field(None, ge=1)
    fps: float | None = Field(None, gt=0)
    height: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)
    black: float | None = Field(0.5, gt=0, le=1)
    frozen: float | None = Field(0.9, gt=0, le=1)


@dataclass(frozen=True)
class Finding:
    """One thing found about one take.

    Args:
        take, file: which one.
        gate: name of the rule.
        reason: in words, with value and limit.
        metric, value, limit: the column that decided, what it was and what it may be; NaN where none did.
        advice: only worth a look; never a rejection.
    """

    take: str
    file: str
    gate: str
    reason: str
    metric: str = ""
    value: float = float("nan")
    limit: float = float("nan")
    advice: bool = False


@dataclass
class Findings:
    """What gates found, and in notes where they could not be applied."""

    found: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, row: Any, gate: str, reason: str, **values: Any) -> None:
        """Add a finding about the take of ``row`` (a row of the table)."""
        self.found.append(Finding(str(row["take"]), str(row["file"]), gate, reason, **values))


@dataclass(frozen=True)
class Gate:
    """A named rule.

    Args:
        name: short.
        rule: in words; ``{black}`` and the like are filled from the options.
        apply: looks at the table and adds to the findings.
    """

    name: str
    rule: str
    apply: Callable[[pd.DataFrame, GateOptions, Findings], None]


def apply_gates(frame: pd.DataFrame, options: GateOptions | None = None) -> Findings:
    """Every gate on a table of takes; a take that does not decode meets no further gate.

    Args:
        frame: take, file, group, generator and columns of metrics, one row a take.
        options: limits.
    """
    options, findings = options or GateOptions(), Findings()
    for gate in GATES:
        gate.apply(frame, options, findings)
        if gate.name == "decodes":
            gone = {finding.take for finding in findings.found}
            frame = frame[~frame["take"].isin(gone)]
    return findings


def rules(options: GateOptions) -> dict[str, str]:
    """Name and rule of every gate that these options leave on."""
    values = {name: "off" if value is None else f"{value:g}" for name, value in options.model_dump().items()}
    asked = ", ".join(f"{getattr(options, name):g} {words}" for name, words in SHAPE.items() if getattr(options, name))
    values["asked"] = asked or "what most takes of its group and generator have"
    off = {name for name in ("black", "frozen") if getattr(options, name) is None}
    return {gate.name: gate.rule.format(**values) for gate in GATES if gate.name not in off}


def majority(values: pd.Series) -> float | None:
    """The value that more than half of the known ones have; None where there is no such value."""
    known = values.dropna()
    if known.empty:
        return None
    counts = known.value_counts()
    return float(counts.index[0]) if counts.iloc[0] * 2 > len(known) else None


def _decodes(frame: pd.DataFrame, options: GateOptions, findings: Findings) -> None:
    if BROKEN in frame:
        for _, row in frame[frame[BROKEN].fillna("") != ""].iterrows():
            findings.add(row, "decodes", f"cannot be scored: {row[BROKEN]}")
    numbers = frame.select_dtypes("number").astype("float64")
    for index, row in frame[np.isinf(numbers).any(axis=1)].iterrows():
        names = ", ".join(numbers.columns[np.isinf(numbers.loc[index])])
        findings.add(row, "decodes", f"scores are finite numbers; infinite here: {names}")


def _same_bytes(frame: pd.DataFrame, options: GateOptions, findings: Findings) -> None:
    """Copies share the hash that names a take, so a rejection would hit the original too: they are advice."""
    again = frame.duplicated(["group", "take"], keep="first")
    firsts = frame[~again].set_index(["group", "take"])["file"]
    for _, row in frame[again].iterrows():
        first = firsts.loc[(row["group"], row["take"])]
        findings.add(row, "duplicate", f"has the same bytes as {first}: it counts once", advice=True)


def _shape(frame: pd.DataFrame, options: GateOptions, findings: Findings) -> None:
    for column, words in SHAPE.items():
        if column not in frame:
            findings.notes.append(f"{column} is not among the scores: no take was held against it")
            continue
        for rows, asked, whose in _asked(frame, column, getattr(options, column)):
            if asked is None:
                findings.notes.append(f"{whose}: no value of {column} has a majority, so none is wrong")
                continue
            tolerance = FPS_TOLERANCE * asked if column == "fps" else 0.0
            for _, row in rows[(rows[column] - asked).abs() > tolerance].iterrows():
                reason = f"{row[column]:g} {words} instead of {asked:g}, {whose}"
                findings.add(row, "shape", reason, metric=column, value=float(row[column]), limit=asked)
        _unknown(frame, column, "shape", findings)


def _asked(frame: pd.DataFrame, column: str, fixed: float | None) -> Iterator[tuple[pd.DataFrame, float | None, str]]:
    """Rows that must agree, what they must have, and who says so."""
    if fixed is not None:
        yield frame, float(fixed), "as asked"
        return
    for (group, generator), rows in frame.groupby(["group", "generator"], sort=False, dropna=False):
        known = rows[column].dropna()
        if known.nunique() > 1:
            asked = majority(known)
            by = f" by {generator}" if generator else ""
            count = "" if asked is None else f"as {int((known == asked).sum())} of {len(known)} takes of "
            yield rows, asked, f"{count}group {short(group)}{by}"


def _share(gate: str, column: str, words: str) -> Callable[[pd.DataFrame, GateOptions, Findings], None]:
    def apply(frame: pd.DataFrame, options: GateOptions, findings: Findings) -> None:
        limit = getattr(options, gate)
        if limit is None:
            return
        if column not in frame:
            findings.notes.append(f"{column} is not among the scores: gate {gate} was not applied")
            return
        for _, row in frame[frame[column] >= limit].iterrows():
            value = float(row[column])
            findings.add(row, gate, f"{value:.0%} {words}; {limit:.0%} or more is refused", metric=column,
                         value=value, limit=limit)  # fmt: skip
        _unknown(frame, column, gate, findings)

    return apply


def _unknown(frame: pd.DataFrame, column: str, gate: str, findings: Findings) -> None:
    unknown = int(frame[column].isna().sum())
    if unknown:
        findings.notes.append(f"{column} is undefined or missing for {unknown} of {len(frame)} takes: gate {gate} "
                              "says nothing about them")  # fmt: skip


def short(text: object, length: int = 60) -> str:
    """A name on one line, cut to ``length`` characters, in quotes."""
    line = " ".join(str(text).split())
    return f"“{line if len(line) <= length else line[: length - 1] + '…'}”"


GATES = (
    Gate("decodes", "the file decodes whole, and every score is a finite number", _decodes),
    Gate("duplicate", "no two takes of a group have the same bytes (advice: a copy counts once)", _same_bytes),
    Gate("shape", "frames, rate and size: {asked}", _shape),
    Gate(
        "black", "fewer than {black} of the frames are black", _share("black", "black_share", "of the frames are black")
    ),
    Gate(
        "frozen",
        "fewer than {frozen} of the frames repeat the one before",
        _share("frozen", "frozen_share", "of the frames repeat the one before"),
    ),
)
