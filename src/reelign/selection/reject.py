"""Which takes are out, and why: validity gates, then outliers among comparable takes, then advice.

    gates      what is wrong whatever the others look like            rejects
    outliers   the bad tail of a directed metric within a cohort      rejects
    advice     an isolation forest, copies, metrics that failed       says "look at this"

Every rejection has a reason in words, with the value, the limit and what is usual. Takes that a gate refused are not in
the cohorts of the second stage. People have the last word: a take that is kept is never rejected, whatever is found.

    TAKES/rejected.parquet, .csv     take, file, gate, reason, metric, value, limit: one row a reason
    TAKES/advice.parquet, .csv       the same columns; nothing here is a rejection
    TAKES/unusual.parquet, .csv      take, score, p: what the forest says of every take, where it was asked
    TAKES/keep.txt                   hashes or files that people keep, one a line

Run: ``reelign reject TAKES``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from reelign.errors import DataError
from reelign.selection.advice import advise, compared
from reelign.selection.directed import DIRECTED, STANDARD
from reelign.selection.gates import BROKEN, Finding, GateOptions, apply_gates
from reelign.selection.outliers import MIN_COHORT, Directed, Limits, bad_z, calibrate, cohorts, outliers
from reelign.video_io import replacing

REJECTED, ADVICE, UNUSUAL, KEEP = "rejected.parquet", "advice.parquet", "unusual.parquet", "keep.txt"
FINDING_COLUMNS = tuple(field.name for field in fields(Finding) if field.name != "advice")
LEAST_HASH = 8  # characters of a hash that name a take


class RejectOptions(BaseModel):
    """How to reject.

    Args:
        gates: limits of the gates.
        level: chance that an untouched take is called an outlier; of advice, that an ordinary one is flagged.
        cohort: takes that a cohort needs before anybody in it can be an outlier.
        columns: directed metrics to look at; None is the standard ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gates: GateOptions = GateOptions()
    level: float = Field(0.01, gt=0, lt=0.5)
    cohort: int = Field(MIN_COHORT, ge=3)
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Verdicts:
    """What was found.

    Args:
        rejected, advice: one row a reason: ``FINDING_COLUMNS``.
        kept: reasons that were found about takes people keep.
        unusual: score and p-value of the forest for every take, low is odd; empty where it was not asked.
        notes: what could not be judged, in words.
        limits: behind the outliers.
        takes: how many were looked at.
    """

    rejected: pd.DataFrame
    advice: pd.DataFrame
    kept: pd.DataFrame
    unusual: pd.DataFrame
    notes: tuple[str, ...]
    limits: Limits
    takes: int

    def counts(self) -> dict[str, int]:
        """Takes rejected by each gate; a take with several reasons counts in each."""
        counted = self.rejected.groupby("gate", sort=False)["take"].nunique()
        return {str(gate): int(count) for gate, count in counted.items()}


def with_broken(wide: pd.DataFrame, scores: pd.DataFrame) -> tuple[pd.DataFrame, list[Finding], list[str]]:
    """The table with a column of why a take has no scores at all; advice where single metrics failed; notes.

    Args:
        wide: one row a take.
        scores: long table with take, metric, status and reason.
    """
    errors = scores[scores["status"] == "error"]
    scored = set(scores.loc[scores["status"] != "error", "take"])
    first = errors.drop_duplicates("take").set_index("take")["reason"]
    lost = first[~first.index.isin(scored)]
    table = wide.assign(**{BROKEN: wide["take"].map(lost)})
    files = wide.drop_duplicates("take").set_index("take")["file"]
    partly = errors[errors["take"].isin(scored) & errors["take"].isin(files.index)]
    found = [
        Finding(row.take, files[row.take], "metric failed", f"{row.metric}: {row.reason}", row.metric, advice=True)
        for row in partly.itertuples()
    ]
    unseen = int((~wide["take"].isin(scores["take"])).sum())
    notes = [f"{unseen} of {len(wide)} takes have no scores yet: run 'reelign score' first"] if unseen else []
    return table, found, notes


def reject_takes(
    wide: pd.DataFrame,
    scores: pd.DataFrame,
    options: RejectOptions | None = None,
    accepted: pd.DataFrame | None = None,
    limits: Limits | None = None,
    keep: Iterable[str] = (),
) -> Verdicts:
    """Every take that is out, with its reasons.

    Args:
        wide: take, file, group, generator and a column a metric (``TakesFolder.wide``).
        scores: the long table behind it (``TakesFolder.scores``).
        options: settings.
        accepted: the same table as ``wide``, of takes people accepted: calibrates the limits and the advice.
        limits: calibrated before; None calibrates on ``accepted``, or takes limits for normal values.
        keep: hashes, their first characters, or files of takes that people keep.

    Raises:
        ConfigError: ``accepted`` is too small for the level.
        DataError: a column is missing, or ``keep`` names no take or several.
    """
    options = options or RejectOptions()
    check_table(wide)
    columns = directed(options.columns)
    table, found, notes = with_broken(wide, scores)
    gates = apply_gates(table, options.gates)
    out = {finding.take for finding in gates.found if not finding.advice}
    valid = table[~table["take"].isin(out) & table["take"].isin(scores["take"])].drop_duplicates(["group", "take"])
    limits = limits or limits_of(accepted, options)
    odd, silent = outliers(valid, columns, limits, options.cohort)
    advice, unusual = _advice(valid, accepted, options)
    every = [*gates.found, *found, *odd, *advice]
    kept = set(resolve(wide, keep))
    return Verdicts(
        rejected=_table(finding for finding in every if not finding.advice and finding.take not in kept),
        advice=_table(finding for finding in every if finding.advice),
        kept=_table(finding for finding in every if not finding.advice and finding.take in kept),
        unusual=unusual,
        notes=(*notes, *gates.notes, *silent),
        limits=limits,
        takes=len(wide),
    )


def limits_of(accepted: pd.DataFrame | None, options: RejectOptions) -> Limits:
    """Limits calibrated on accepted takes, or those for normal values where there are none."""
    if accepted is None:
        return Limits(options.level, {})
    check_table(accepted)
    z = bad_z(accepted, directed(options.columns), cohorts(accepted, options.cohort), options.cohort)
    return calibrate(z, list(accepted["group"]), options.level)


def directed(names: Sequence[str] | None) -> Mapping[str, Directed]:
    """Directed metrics by name.

    Raises:
        DataError: a name without a known bad side.
    """
    names = STANDARD if names is None else names
    if unknown := [name for name in names if name not in DIRECTED]:
        raise DataError(f"a take is rejected on metrics with a known bad side, {', '.join(DIRECTED)}; got {unknown}")
    return {name: DIRECTED[name] for name in names}


def check_table(wide: pd.DataFrame) -> None:
    """Raises DataError where a table of takes lacks what rejecting needs."""
    if missing := [name for name in ("take", "file", "group", "generator") if name not in wide]:
        raise DataError(f"a table of takes has take, file, group and generator; {', '.join(missing)} is missing")


def resolve(wide: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """Hashes of takes named by hash, by at least 8 of its first characters, or by file.

    Raises:
        DataError: a name that fits no take, or takes of different hashes.
    """
    hashes = []
    for name in names:
        by_hash = wide["take"].str.startswith(name) if len(name) >= LEAST_HASH else False
        fits = wide.loc[(wide["file"] == name) | by_hash, "take"].unique()
        if len(fits) != 1:
            raise DataError(f"a take to keep is named by its file or its hash ({LEAST_HASH} characters or more); "
                            f"{name!r} fits {len(fits)} takes")  # fmt: skip
        hashes.append(str(fits[0]))
    return hashes


def accepted_takes(wide: pd.DataFrame, rejected: pd.DataFrame) -> pd.DataFrame:
    """Rows of takes that nothing rejects, each take once a group: what a tournament may choose from."""
    return wide[~wide["take"].isin(rejected["take"])].drop_duplicates(["group", "take"])


def write_verdicts(folder: Path, verdicts: Verdicts) -> Path:
    """Write the tables as Parquet and CSV to a takes folder; returns the path of the rejections."""
    folder = Path(folder)
    for name, table in ((REJECTED, verdicts.rejected), (ADVICE, verdicts.advice), (UNUSUAL, verdicts.unusual)):
        with replacing(folder / name) as part:
            table.to_parquet(part, index=False)
        with replacing((folder / name).with_suffix(".csv")) as part:
            table.to_csv(part, index=False)
    return folder / REJECTED


def read_keep(folder: Path) -> list[str]:
    """Names in ``keep.txt`` of a takes folder; blank lines and lines that begin with # say nothing."""
    path = Path(folder) / KEEP
    if not path.is_file():
        return []
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def add_keep(folder: Path, hashes: Sequence[str]) -> None:
    """Remember that people keep these takes, so that the next run does too."""
    names = read_keep(folder)
    names += [name for name in hashes if name not in names]
    with replacing(Path(folder) / KEEP) as part:
        part.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _advice(
    valid: pd.DataFrame, accepted: pd.DataFrame | None, options: RejectOptions
) -> tuple[list[Finding], pd.DataFrame]:
    if accepted is None or valid.empty:
        return [], pd.DataFrame(columns=["take", "score", "p"])
    columns = [name for name in directed(options.columns) if name in valid and name in accepted]
    seen, known = (
        compared(frame, columns, cohorts(frame, options.cohort), options.cohort) for frame in (valid, accepted)
    )
    return advise(valid, seen, known, options.level)


def _table(findings: Iterable[Finding]) -> pd.DataFrame:
    rows = [asdict(finding) for finding in findings]
    return pd.DataFrame(rows, columns=[*FINDING_COLUMNS, "advice"]).drop(columns="advice")
