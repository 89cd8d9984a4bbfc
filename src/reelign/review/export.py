"""Labels out: a table for every reader of labels, or a preference data set for training.

``labels``: one row a choice: group, left, right, choice, axis, annotator, seconds, created_at, files and prompt.
``ratings``: one row a rated take. ``preferences``: one row a pair and axis that a majority decided: prompt, chosen,
rejected (paths), votes for and against; ties and ``both bad`` decide nothing, and even votes are left out.

Answers that were undone, hidden repeats and attention checks are in none of them.

Run: ``reelign review TAKES --export labels.csv``.
"""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd

from reelign.errors import DataError, RunFolderError
from reelign.review.database import LABEL_COLUMNS
from reelign.review.library import Shelf

KINDS = ("labels", "ratings", "preferences")
TYPES = {
    ".csv": "text/csv; charset=utf-8",
    ".parquet": "application/vnd.apache.parquet",
    ".jsonl": "application/jsonl; charset=utf-8",
}
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export_table(kind: str, answers: pd.DataFrame, shelf: Shelf) -> pd.DataFrame:
    """One of ``KINDS`` from ``LabelStore.answers``.

    Raises:
        DataError: an unknown kind.
    """
    answers = answers[answers["purpose"] == "label"]
    if kind == "labels":
        pairs = _with_files(answers[answers["task"] == "pair"], shelf, ("left", "right"))
        files = ["left_file", "right_file", "prompt"]
        return pairs[[*LABEL_COLUMNS, "seconds", "created_at", *files]].reset_index(drop=True)
    if kind == "ratings":
        rated = _with_files(answers[answers["task"] == "rate"], shelf, ("left",))
        rated = rated.rename(columns={"left": "take", "left_file": "file", "choice": "rating"})
        columns = ["group", "take", "rating", "axis", "annotator", "seconds", "created_at", "file", "prompt"]
        return rated[columns].reset_index(drop=True)
    if kind == "preferences":
        return _preferences(answers[answers["task"] == "pair"], shelf)
    raise DataError(f"exports are {', '.join(KINDS)}; got {kind!r}")


def as_bytes(table: pd.DataFrame, suffix: str) -> bytes:
    """A table as a file.

    Raises:
        DataError: a format other than .csv, .parquet and .jsonl.
    """
    if suffix == ".csv":
        return str(table.map(_no_formula).to_csv(index=False)).encode()
    if suffix == ".jsonl":
        return str(table.to_json(orient="records", lines=True, force_ascii=False)).encode()
    if suffix == ".parquet":
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        return buffer.getvalue()
    raise DataError(f"labels are exported as {', '.join(TYPES)}; got {suffix!r}")


def export_file(path: Path, kind: str, answers: pd.DataFrame, shelf: Shelf) -> int:
    """Write one export, whole or not at all; returns its rows.

    Raises:
        DataError: an unknown kind or format. RunFolderError: the file cannot be written.
    """
    from reelign.video_io import replacing  # loads torch, which the server does without

    table = export_table(kind, answers, shelf)
    data = as_bytes(table, path.suffix.lower())
    with replacing(path) as part:
        try:
            part.write_bytes(data)
        except OSError as error:
            raise RunFolderError(f"cannot write {path}: {error.strerror}") from error
    return len(table)


def _with_files(answers: pd.DataFrame, shelf: Shelf, sides: tuple[str, ...]) -> pd.DataFrame:
    table = answers[answers[list(sides)].isin(list(shelf.rows)).all(axis=1)].copy()
    for side in sides:
        table[f"{side}_file"] = [shelf.fact(take, "file") for take in table[side]]
    table["prompt"] = [shelf.fact(take, "prompt") for take in table["left"]]
    return table


def _preferences(answers: pd.DataFrame, shelf: Shelf) -> pd.DataFrame:
    columns = ["prompt", "chosen", "rejected", "axis", "votes_for", "votes_against", "votes", "group"]
    pairs = _with_files(answers, shelf, ("left", "right"))
    if pairs.empty:
        return pd.DataFrame(columns=columns)
    rows = []
    for (group, axis, one, other), votes in _by_pair(pairs).items():
        ahead, behind = votes.count(one), votes.count(other)
        if ahead == behind:
            continue
        chosen, rejected = (one, other) if ahead > behind else (other, one)
        files = [shelf.fact(take, "file") for take in (chosen, rejected)]
        most, least = max(ahead, behind), min(ahead, behind)
        rows.append((shelf.fact(chosen, "prompt"), *files, axis, most, least, len(votes), group))
    return pd.DataFrame(rows, columns=columns)


def _by_pair(pairs: pd.DataFrame) -> dict[tuple[str, str, str, str], list[str]]:
    """(group, axis, take, take) in order of hash to the take each annotator chose; empty for a tie or both bad."""
    found: dict[tuple[str, str, str, str], dict[str, str]] = {}
    columns = ["group", "axis", "left", "right", "choice", "annotator"]
    for group, axis, left, right, choice, who in pairs[columns].itertuples(index=False):
        one, other = sorted((left, right))
        chosen = {"left": left, "right": right}.get(choice, "")
        found.setdefault((group, axis, one, other), {})[who] = chosen
    return {pair: list(votes.values()) for pair, votes in found.items()}


def _no_formula(cell: object) -> object:
    """A cell that a spreadsheet would run as a formula gets an apostrophe before it; prompts are untrusted."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell
