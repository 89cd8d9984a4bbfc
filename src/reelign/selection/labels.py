"""Which of two takes people prefer: one table, whatever form the labels come in.

A label is a row ``group, left, right, choice, axis, annotator``: within a group, somebody saw two takes and chose
``left``, ``right``, ``tie`` or ``both_bad`` on one axis (``overall`` unless a question was narrower). Every reader of
labels (judge, tournaments, agreement) takes this table and no other.

``pairs_from_best`` makes it from the best take of each group (AirScape, arXiv 2507.08885): the winner against each
other take of its own group. The published program also marks ``original_video_name`` as good in the group of
``best_video_name``; here only the winner is good. ``pairs_from_videoalign`` reads VideoAlign's A/B table.

Left out: ratings of single takes, which are no comparisons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from reelign.errors import DataError

COLUMNS = ("group", "left", "right", "choice", "axis", "annotator")
CHOICES = ("left", "right", "tie", "both_bad")
MIRRORED = {"left": "right", "right": "left", "tie": "tie", "both_bad": "both_bad"}
OVERALL = "overall"
BEST_COLUMNS = ("original_video_name", "best_video_name")
VIDEOALIGN_AXES = {"VQ": "VQ", "MQ": "MQ", "TA": "TA", "Overall": OVERALL}
VIDEOALIGN_CHOICES = {"A": "left", "B": "right", "same": "tie"}


def check_labels(labels: pd.DataFrame, takes: pd.DataFrame | None = None) -> pd.DataFrame:
    """The label table, complete and in order: the six columns as strings, index from 0; other columns are dropped.

    Args:
        labels: at least group, left, right and choice; ``axis`` is ``overall`` and ``annotator`` empty where absent.
        takes: where given, both takes of every label must be in it, in the label's group.

    Raises:
        DataError: a column is missing, a choice is unknown, a take meets itself, or a take is not of that group.
    """
    missing = [name for name in COLUMNS[:4] if name not in labels]
    if missing:
        raise DataError(f"labels have the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}")
    table = labels.copy()
    for name, default in (("axis", OVERALL), ("annotator", "")):
        table[name] = table[name].fillna(default) if name in table else default
    table = table[list(COLUMNS)].reset_index(drop=True)
    if table.isna().any().any():
        row, column = next((r, c) for c in COLUMNS for r in table.index[table[c].isna()])
        raise DataError(f"a label has no empty cell; row {row}, column {column!r}, has one")
    table = table.astype(str)
    unknown = sorted(set(table["choice"]) - set(CHOICES))
    if unknown:
        raise DataError(f"a choice is one of {', '.join(CHOICES)}; got {unknown[0]!r}")
    same = table.loc[table["left"] == table["right"], "left"]
    if len(same):
        raise DataError(f"a label compares two different takes; {same.iloc[0]!r} meets itself: drop that row")
    if takes is not None:
        _check_members(table, takes)
    return table


def _check_members(labels: pd.DataFrame, takes: pd.DataFrame) -> None:
    groups: dict[str, set[str]] = {}
    for take, group in zip(takes["take"], takes["group"], strict=True):
        groups.setdefault(str(take), set()).add(str(group))
    for side in ("left", "right"):
        for take, group in zip(labels[side], labels["group"], strict=True):
            if take not in groups:
                raise DataError(f"a label names takes of the folder; {take!r} is not one: import its clip first")
            if group not in groups[take]:
                raise DataError(
                    f"a label compares takes of one group; {take!r} is of {sorted(groups[take])[0]!r}, "
                    f"the label says {group!r}"
                )


def pairs_from_best(best: pd.DataFrame, takes: pd.DataFrame, annotator: str = "") -> pd.DataFrame:
    """The winner of each group against every other take of its group, as labels with the winner on the left.

    Args:
        best: the column ``best_video_name`` (names with or without ``.mp4``, or takes); ``original_video_name`` says
            which clip the group was made for and is never a winner by itself.
        takes: columns take and group, and ``file`` where names are file names.
        annotator: written into every label.

    Raises:
        DataError: a name is unknown or means several takes, or a group has two different winners.
    """
    if BEST_COLUMNS[1] not in best:
        raise DataError(f"best takes come in a column {BEST_COLUMNS[1]!r}; got {', '.join(map(str, best.columns))}")
    group_of = dict(zip(takes["take"].astype(str), takes["group"].astype(str), strict=True))
    members = takes.astype({"take": str, "group": str}).groupby("group", sort=False)["take"].unique()
    winners: dict[str, str] = {}
    for take in _find_all(best[BEST_COLUMNS[1]], takes):
        group = group_of[take]
        if winners.setdefault(group, take) != take:
            raise DataError(f"a group has one best take; {group!r} has {winners[group]!r} and {take!r}")
    rows = [
        (group, winner, other, "left", OVERALL, annotator)
        for group, winner in winners.items()
        for other in members[group]
        if other != winner
    ]
    return check_labels(pd.DataFrame(rows, columns=list(COLUMNS)), takes)


def pairs_from_videoalign(table: pd.DataFrame, takes: pd.DataFrame, annotator: str = "") -> pd.DataFrame:
    """Labels of VideoAlign's form: path_A, path_B and A, B or same for each of VQ, MQ, TA (and Overall).

    Args:
        table: one row a pair; A becomes left. An empty cell is an axis that nobody judged.
        takes: columns take, group and file.
        annotator: written into every label.

    Raises:
        DataError: a column or clip is missing, a choice is unknown, or the two clips are not of one group.
    """
    axes = [name for name in VIDEOALIGN_AXES if name in table]
    if not axes or not {"path_A", "path_B"} <= set(table.columns):
        raise DataError("VideoAlign's labels have path_A, path_B and at least one of VQ, MQ, TA, Overall")
    group_of = dict(zip(takes["take"].astype(str), takes["group"].astype(str), strict=True))
    left, right = _find_all(table["path_A"], takes), _find_all(table["path_B"], takes)
    rows = []
    for number, cells in enumerate(table[axes].fillna("").astype(str).to_dict("records")):
        for axis, said in cells.items():
            if said not in ("", *VIDEOALIGN_CHOICES):
                raise DataError(f"VideoAlign's choices are A, B or same; got {said!r} for {axis} in row {number}")
            if said:
                choice, name = VIDEOALIGN_CHOICES[said], VIDEOALIGN_AXES[str(axis)]
                rows.append((group_of[left[number]], left[number], right[number], choice, name, annotator))
    return check_labels(pd.DataFrame(rows, columns=list(COLUMNS)), takes)


def read_labels(path: Path, takes: pd.DataFrame) -> pd.DataFrame:
    """Labels from a .csv or .parquet file in any of the three forms; which one is seen from its columns.

    Raises:
        DataError: the file cannot be read, or its columns are of no known form.
    """
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        elif path.suffix == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        else:
            raise DataError(f"labels are read from .csv or .parquet; got {path.name!r}")
    except (OSError, ValueError) as error:
        raise DataError(f"labels could not be read from {path}: {' '.join(str(error).split())[:200]}") from error
    if BEST_COLUMNS[1] in table:
        return pairs_from_best(table, takes)
    if "path_A" in table:
        return pairs_from_videoalign(table, takes)
    return check_labels(table, takes)


def aggregate(labels: pd.DataFrame) -> pd.DataFrame:
    """One row for each pair and axis: the majority of its annotators.

    A pair shown the other way round is the same pair. Of a named annotator's answers to one question the last counts;
    rows without annotator all count. Where two choices share the lead the pair is a tie.

    Returns:
        columns group, left, right (in alphabetical order), choice, axis, ``votes`` (how many annotators) and
        ``agreement`` (share of the votes for the most frequent choice), in order of first appearance.
    """
    votes: dict[tuple[str, str, str, str], dict[Hashable, str]] = {}
    for number, row in enumerate(check_labels(labels).itertuples(index=False)):
        swap = row.left > row.right
        pair = (row.right, row.left) if swap else (row.left, row.right)
        ballot = votes.setdefault((row.group, *pair, row.axis), {})
        ballot[row.annotator or number] = MIRRORED[row.choice] if swap else row.choice
    rows = []
    for (group, left, right, axis), ballot in votes.items():
        first, *rest = Counter(ballot.values()).most_common()
        choice = "tie" if rest and rest[0][1] == first[1] else first[0]
        rows.append((group, left, right, choice, axis, len(ballot), first[1] / len(ballot)))
    return pd.DataFrame(rows, columns=["group", "left", "right", "choice", "axis", "votes", "agreement"])


def _find_all(names: Sequence[object], takes: pd.DataFrame) -> list[str]:
    """The takes meant by names: a take itself, its file, its file's name, or that without the suffix."""
    known: dict[str, set[str]] = {}
    files = takes["file"] if "file" in takes else takes["take"]
    for take, file in zip(takes["take"].astype(str), files.astype(str), strict=True):
        place = PurePosixPath(file)
        for alias in {take, file, place.name, place.stem}:
            known.setdefault(alias, set()).add(take)
    found: list[str] = []
    for name in map(str, names):
        meant = known.get(name) or known.get(PurePosixPath(name).name) or known.get(_stem(name)) or set()
        if len(meant) != 1:
            what = "is none of them" if not meant else f"could be {len(meant)} of them: write it with its folder"
            raise DataError(f"a label names a take of the folder; {name!r} {what}")
        found.extend(meant)
    return found


def _stem(name: str) -> str:
    """File name without a video suffix; a dot inside a bare name is kept."""
    place = PurePosixPath(name)
    return place.stem if place.suffix.lower() in (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif") else place.name
