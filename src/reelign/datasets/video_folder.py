"""Captions beside clips, in the ``videofolder`` convention of Hugging Face ``datasets``, read and written.

A folder of clips has a ``metadata.csv`` or ``metadata.jsonl`` with ``file_name`` (relative to the table) and a caption
column ``text``, ``prompt`` or ``caption``; sub-folders may have their own. A ``manifest.csv`` with ``file`` and such a
column counts too. Other columns are free.

Left out: ``metadata.parquet``, zipped folders, class labels from folder names.

Run: ``captions("takes/")["0000.mp4"]``, or ``datasets.load_dataset("videofolder", data_dir="takes/")`` on what
``write_metadata`` wrote.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reelign.errors import DataError
from reelign.video_io import replacing

TABLES = ("metadata.csv", "metadata.jsonl", "manifest.csv")
NAME_COLUMNS = ("file_name", "file")
CAPTION_COLUMNS = ("text", "prompt", "caption")


def captions(folder: str | Path) -> dict[str, str]:
    """The caption of every clip that has one, from all tables in ``folder`` and below, hidden folders left out.

    A table without a name or caption column is somebody else's, and passed over.

    Returns:
        Path relative to ``folder``, with forward slashes, to caption.

    Raises:
        DataError: a table cannot be read, or two tables disagree about one clip.
    """
    found: dict[str, str] = {}
    for table, place in _tables(Path(folder)):
        for name, caption in _captions_in(table).items():
            clip = _clip_name(place, name)
            if found.setdefault(clip, caption) != caption:
                raise DataError(f"a clip has one caption; {table} gives {clip} another than an earlier table: keep one")
    return found


def rows_beside(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The whole row of every clip that a table in ``folder`` or below names, under the same rules as ``captions``.

    Raises:
        DataError: a table cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    for table, place in _tables(Path(folder)):
        for row in rows_of(table):
            if name := _first(row, NAME_COLUMNS):
                found.setdefault(_clip_name(place, name), {}).update(row)
    return found


def _tables(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Every table in ``folder`` and below that is not hidden, and where it lies."""
    for table in sorted(table for name in TABLES for table in folder.rglob(name)):
        place = table.parent.relative_to(folder)
        if not any(part.startswith(".") for part in place.parts):
            yield table, place


def _clip_name(place: Path, name: str) -> str:
    return Path(os.path.normpath(place / name)).as_posix()


def read_captions(table: str | Path) -> dict[str, str]:
    """The captions of one ``.csv`` or ``.jsonl`` table, by file name as written there; rows without one are left out.

    Raises:
        DataError: no such table, it cannot be read, or it has no name or caption column.
    """
    table = Path(table)
    if not table.is_file():
        raise DataError(f"captions are read from a .csv or .jsonl file; {table} is none")
    found = _captions_in(table)
    if not found:
        names, texts = " or ".join(NAME_COLUMNS), ", ".join(CAPTION_COLUMNS)
        raise DataError(f"a caption table has a column {names}, and one of {texts}; {table} has no such row")
    return found


def write_metadata(folder: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``metadata.csv`` into ``folder``, whole or not at all.

    Args:
        folder: where the clips are; made where it is not there.
        rows: one a clip; ``file_name`` relative to ``folder``, a caption column, and whatever else; all alike.

    Returns:
        The path of the table.

    Raises:
        DataError: no rows, rows with different columns, or without name or caption.
        RunFolderError: the folder cannot be written.
    """
    if not rows:
        raise DataError(f"metadata has one row a clip; got no rows for {folder}")
    columns = list(rows[0])
    if "file_name" not in columns or not set(columns) & set(CAPTION_COLUMNS):
        raise DataError(f"a row has file_name and one of {', '.join(CAPTION_COLUMNS)}; got {', '.join(columns)}")
    for row in rows:
        if set(row) != set(columns):
            raise DataError(
                f"all rows have the columns {', '.join(columns)}; {row.get('file_name')} has {', '.join(row)}"
            )
    path = Path(folder) / "metadata.csv"
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def _captions_in(table: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for row in rows_of(table):
        name = _first(row, NAME_COLUMNS)
        caption = _first(row, CAPTION_COLUMNS)
        if name and caption and found.setdefault(name, caption) != caption:
            raise DataError(f"a clip has one caption; {table} gives {name} two: keep one")
    return found


def _first(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """The text in the first of these columns that has any."""
    texts = (row.get(column) for column in columns)
    return next((text.strip() for text in texts if isinstance(text, str) and text.strip()), "")


def rows_of(table: Path) -> Iterator[dict[str, Any]]:
    """The rows of one ``.csv`` or ``.jsonl`` table, as written.

    Raises:
        DataError: it cannot be read.
    """
    # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            yield from csv.DictReader(file) if table.suffix == ".csv" else map(_parse, file)
    except (OSError, csv.Error, ValueError) as error:
        raise DataError(f"the caption table {table} cannot be read: {error}") from error


def _parse(line: str) -> dict[str, Any]:
    row = json.loads(line) if line.strip() else {}
    if not isinstance(row, dict):
        raise ValueError(f"each line is a JSON object; got {line.strip()[:40]}")
    return row
