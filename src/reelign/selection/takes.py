"""A takes folder: one row a clip, one row a score, both append-only Parquet that anything reads.

    TAKES/takes.parquet/part-000000.parquet   take, file, prompt, group, generator, seed
    TAKES/scores.parquet/part-000000.parquet  take, metric, version, parameters, prompt, value, status, reason

``take`` is the SHA-256 of the file's bytes, so a score belongs to a picture and not to a name: it is never computed
twice, and a file that changed is a new take. A score is keyed by (take, metric, version, parameters, prompt), where the
prompt is empty unless the metric looks at it; ``status`` is ``ok``, ``undefined`` (the metric does not apply) or
``error``, and only ``ok`` has a value.

Nothing is rewritten: an append is a new part, written under a hidden name and renamed; of several rows with one key,
the last counts. Several programs may append at once.

Run: ``TakesFolder(Path("takes")).wide()``. Clips get in through ``takes_import``; scores through ``scoring``.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from reelign.errors import DataError, RunFolderError

TAKES, SCORES = "takes.parquet", "scores.parquet"
TAKE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("take", "file", "prompt", "group", "generator")] + [("seed", pa.int64())]
)
SCORE_SCHEMA = pa.schema(
    [
        ("take", pa.string()),
        ("metric", pa.string()),
        ("version", pa.int64()),
        ("parameters", pa.string()),
        ("prompt", pa.string()),
        ("value", pa.float64()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)
TAKE_COLUMNS = tuple(TAKE_SCHEMA.names)
SCORE_COLUMNS = tuple(SCORE_SCHEMA.names)
SCORE_KEY = ["take", "metric", "version", "parameters", "prompt"]
STATUSES = ("ok", "undefined", "error")


class TakesFolder:
    """A folder with a takes table.

    Args:
        path: the folder.
        create: make the folder and an empty table where there is none.

    Raises:
        DataError: there is no takes table and ``create`` is false.
        RunFolderError: the folder cannot be written.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = Path(path)
        if (self.path / TAKES).is_dir():
            return
        if not create:
            raise DataError(
                f"a takes folder holds {TAKES}; {self.path} does not: make it with 'reelign takes import {self.path}'"
            )
        try:
            (self.path / TAKES).mkdir(parents=True)
        except OSError as error:
            raise RunFolderError(f"the takes folder {self.path} cannot be made: {error.strerror}") from error

    def takes(self) -> pd.DataFrame:
        """One row a clip, in the order of import: ``TAKE_COLUMNS``; ``seed`` is missing where unknown."""
        found = _read(self.path / TAKES, TAKE_SCHEMA)
        found["seed"] = found["seed"].astype("Int64")
        return found.drop_duplicates("file", keep="last").reset_index(drop=True)

    def scores(self) -> pd.DataFrame:
        """The latest row of every score, in the order of computation: ``SCORE_COLUMNS``."""
        found = _read(self.path / SCORES, SCORE_SCHEMA)
        return found.drop_duplicates(SCORE_KEY, keep="last").reset_index(drop=True)

    def current_scores(self) -> pd.DataFrame:
        """The scores that count, for each take and the prompt it has now: ``SCORE_COLUMNS``.

        Of a metric the highest version counts, of its parameters those computed last, and of a score without and one
        with the prompt the one with it.
        """
        scores = self.scores()
        scores = scores[scores.groupby("metric")["version"].transform("max") == scores["version"]]
        scores = scores[scores.groupby("metric")["parameters"].transform("last") == scores["parameters"]]
        rows = self.takes()[["take", "prompt"]].drop_duplicates()
        rows = rows.merge(scores.rename(columns={"prompt": "seen"}), on="take")
        rows = rows[(rows["seen"] == "") | (rows["seen"] == rows["prompt"])]
        rows = rows.sort_values("seen", kind="stable").drop_duplicates(["take", "prompt", "metric"], keep="last")
        return rows[list(SCORE_COLUMNS)].sort_index().reset_index(drop=True)

    def wide(self, columns: Iterable[str] | None = None) -> pd.DataFrame:
        """One row a clip: ``TAKE_COLUMNS`` and a float column a metric; NaN where there is no value.

        Args:
            columns: which metrics; None is all. Of one computed with several parameters those of the last run count.

        Raises:
            DataError: a column that nobody computed.
        """
        scores = self.current_scores()
        known = list(dict.fromkeys(scores["metric"]))
        wanted = sorted(known) if columns is None else list(columns)
        if missing := [name for name in wanted if name not in known]:
            has = ", ".join(known) or "none yet"
            raise DataError(f"scores to use must be computed; {self.path} has no {', '.join(missing)} (it has {has})")
        if not wanted:
            return self.takes()
        values = scores.pivot(index=["take", "prompt"], columns="metric", values="value").reindex(columns=wanted)
        return self.takes().join(values.rename_axis(columns=None).astype("float64"), on=["take", "prompt"])

    def locate(self, file: str) -> Path:
        """Where a clip of the table is."""
        return self.path / file

    def append_takes(self, rows: pd.DataFrame) -> None:
        """Add clips.

        Args:
            rows: ``TAKE_COLUMNS``; ``seed`` may be missing.

        Raises:
            DataError: other columns. RunFolderError: the folder cannot be written.
        """
        self._append(TAKES, rows, TAKE_SCHEMA)

    def append_scores(self, rows: pd.DataFrame) -> None:
        """Add scores.

        Args:
            rows: ``SCORE_COLUMNS``; only ``ok`` has a value, and only ``ok`` may be without a reason.

        Raises:
            DataError: other columns, or a row that breaks this rule. RunFolderError: the folder cannot be written.
        """
        if set(SCORE_COLUMNS) <= set(rows):
            _check_scores(rows)
        self._append(SCORES, rows, SCORE_SCHEMA)

    def _append(self, table: str, rows: pd.DataFrame, schema: pa.Schema) -> None:
        if set(rows.columns) != set(schema.names):
            raise DataError(f"rows of {table} have the columns {', '.join(schema.names)}; got {', '.join(rows)}")
        if not len(rows):
            return
        folder = self.path / table
        part = folder / f".{uuid.uuid4().hex}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            data = pa.Table.from_pandas(rows[schema.names], schema, preserve_index=False).replace_schema_metadata()
            pq.write_table(data, part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(_claim(folder))
        except OSError as error:
            raise RunFolderError(f"{folder} cannot be written: {error.strerror or error}") from error
        finally:
            with suppress(OSError):  # gone already where all went well
                part.unlink()


def _claim(folder: Path) -> Path:
    """The next free part, taken as an empty file, which readers pass over; no two programs get the same."""
    number = 1 + max((int(path.stem.removeprefix("part-")) for path in folder.glob("part-*.parquet")), default=-1)
    while True:
        path = folder / f"part-{number:06d}.parquet"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return path


def _read(folder: Path, schema: pa.Schema) -> pd.DataFrame:
    parts = [part for part in sorted(folder.glob("part-*.parquet")) if part.stat().st_size]
    try:
        tables = [pq.read_table(part, schema=schema) for part in parts]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"a part of {folder} cannot be read: {' '.join(str(error).split())}") from error
    frame: pd.DataFrame = pa.concat_tables([schema.empty_table(), *tables]).to_pandas()
    return frame


def _check_scores(rows: pd.DataFrame) -> None:
    def refuse(bad: Any, rule: str) -> None:
        if bad.any():
            row = rows[bad].iloc[0]
            raise DataError(f"{rule}; {row['metric']} of {row['take'][:12]} has {row['status']} with {row['value']}")

    refuse(~rows["status"].isin(STATUSES), f"a score's status is one of {', '.join(STATUSES)}")
    ok = rows["status"] == "ok"
    finite = pd.to_numeric(rows["value"]).abs() < float("inf")
    refuse(ok & ~finite, "an ok score is a finite number")
    refuse(~ok & rows["value"].notna(), "only an ok score has a value")
    refuse(~ok & (rows["reason"].str.len() == 0), "a score that is not ok has a reason")
