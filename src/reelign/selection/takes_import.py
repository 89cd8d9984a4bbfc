"""Clips into a takes folder: from the folder itself, from another folder, or from a CSV or JSON-lines table.

Tables beside the clips are in the ``videofolder`` convention (``file_name`` and ``text``), and may also have ``group``,
``generator`` and ``seed``. In a table of its own, numeric columns beside those become scores, so a selector's CSV
(``video_name,imaging_quality,…``) gets in whole, with or without its clips.

The speed that ``reelign generate`` measures becomes the score ``generation_speed``, in frames per second.

Takes of one group compete. Where no table names the group it is the prompt, and without a prompt the sub-folder.

Run: ``reelign takes import FOLDER``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from reelign.checkpoint import digest
from reelign.datasets.video_folder import CAPTION_COLUMNS, rows_beside, rows_of
from reelign.errors import DataError
from reelign.selection.takes import SCORE_COLUMNS, TAKE_COLUMNS, TakesFolder
from reelign.video_io import CLIP_SUFFIXES, find_clips

FILE_COLUMNS = ("file_name", "file", "video_name")
GROUP_COLUMNS = ("group", "group_id")
GENERATOR_COLUMNS = ("generator", "model")
KNOWN = {*FILE_COLUMNS, *GROUP_COLUMNS, *GENERATOR_COLUMNS, *CAPTION_COLUMNS, "seed"}
UNGROUPED = "all"
SPEED_COLUMN, SPEED = "frames_per_second", "generation_speed"  # what ``reelign generate`` measures


def import_takes(
    folder: str | Path, source: str | Path | None = None, progress: Callable[[int, int], None] | None = None
) -> TakesFolder:
    """Add what is new or changed in ``source`` to the takes table of ``folder``, which is made where it is not there.

    Args:
        folder: the takes folder.
        source: a folder of clips, or a ``.csv`` or ``.jsonl`` table; None is ``folder`` itself.
        progress: called with clips hashed and clips in all.

    Raises:
        DataError: nothing to import, or a table that cannot be read.
    """
    place, source = Path(folder), Path(folder if source is None else source)
    found, scores = _from_table(source) if source.is_file() else _from_folder(source)
    if not found:
        raise DataError(
            f"takes come from clips ({', '.join(CLIP_SUFFIXES)}) or a table that names some; {source} has none"
        )
    takes = TakesFolder(place, create=True)
    known = takes.takes()
    rows = []
    for done, (path, facts) in enumerate(sorted(found.items()), 1):
        rows.append({"take": _identity(path), "file": _name(path, place), **_describe(path, source, facts)})
        if progress is not None:
            progress(done, len(found))
    fresh = pd.DataFrame(rows, columns=list(TAKE_COLUMNS)).astype({"seed": "Int64"})
    takes.append_takes(_new(fresh, known))
    given = _score_rows(fresh, place, scores, source.name)
    takes.append_scores(_new(given, takes.scores()))
    return takes


def _new(rows: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """The rows that a table does not hold yet."""

    def keys(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
        plain = frame[list(rows.columns)].astype(object).where(frame[list(rows.columns)].notna(), None)
        return list(plain.itertuples(index=False, name=None))

    there = set(keys(known))
    return rows[pd.Series([key not in there for key in keys(rows)], rows.index, dtype=bool)]


def _from_folder(folder: Path) -> tuple[dict[Path, Mapping[str, Any]], dict[Path, dict[str, float]]]:
    rows = rows_beside(folder)
    found: dict[Path, Mapping[str, Any]] = {
        path: rows.get(path.relative_to(folder).as_posix(), {}) for path in find_clips(folder)
    }
    speeds = {path: _number(row.get(SPEED_COLUMN)) for path, row in found.items()}
    return found, {path: {SPEED: speed} for path, speed in speeds.items() if speed is not None}


def _from_table(table: Path) -> tuple[dict[Path, Mapping[str, Any]], dict[Path, dict[str, float]]]:
    if table.suffix not in (".csv", ".jsonl"):
        raise DataError(f"a table of takes is .csv or .jsonl; got {table.name}")
    found: dict[Path, Mapping[str, Any]] = {}
    scores: dict[Path, dict[str, float]] = {}
    for number, row in enumerate(rows_of(table), 1):
        name = _first(row, FILE_COLUMNS)
        if not name:
            raise DataError(f"a row of takes has one of {', '.join(FILE_COLUMNS)}; {table}, row {number} has none")
        path = table.parent / name
        if path in found:
            raise DataError(f"a clip has one row; {table} names {name} twice: keep one")
        found[path] = row
        numbers = {key: _number(value) for key, value in row.items() if key not in KNOWN}
        scores[path] = {key: value for key, value in numbers.items() if value is not None}
    return found, scores


def _describe(path: Path, source: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    prompt = _first(facts, CAPTION_COLUMNS)
    home = path.parent.relative_to(source).as_posix() if source.is_dir() else "."
    group = _first(facts, GROUP_COLUMNS) or prompt or (UNGROUPED if home == "." else home)
    seed = _number(facts.get("seed"))
    if seed is not None and seed != int(seed):
        raise DataError(f"a seed is a whole number; {path.name} has {facts['seed']!r}")
    return {
        "prompt": prompt,
        "group": group,
        "generator": _first(facts, GENERATOR_COLUMNS),
        "seed": None if seed is None else int(seed),
    }


def _score_rows(fresh: pd.DataFrame, place: Path, scores: Mapping[Path, dict[str, float]], table: str) -> pd.DataFrame:
    identity = dict(zip(fresh["file"], fresh["take"], strict=True))
    parameters = json.dumps({"imported": table})
    rows = [
        (identity[_name(path, place)], metric, 1, parameters, "", value, "ok", "")
        for path, values in sorted(scores.items())
        for metric, value in values.items()
    ]
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


def _identity(path: Path) -> str:
    """SHA-256 of the bytes; where there is no file, of its name, so that it keeps a row, which scoring explains."""
    return digest(path) if path.is_file() else hashlib.sha256(f"not there: {path.name}".encode()).hexdigest()


def _name(path: Path, place: Path) -> str:
    """Relative to the takes folder where the clip lies in it, absolute otherwise."""
    whole, home = Path(os.path.abspath(path)), Path(os.path.abspath(place))
    return whole.relative_to(home).as_posix() if whole.is_relative_to(home) else whole.as_posix()


def _first(row: Mapping[str, Any], columns: tuple[str, ...]) -> str:
    """The text in the first of these columns that has any."""
    texts = (str(row[column]).strip() for column in columns if row.get(column) is not None)
    return next((text for text in texts if text), "")


def _number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
