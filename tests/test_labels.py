"""The label table: what is refused, the three forms it is read from, and majorities."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from reelign.errors import DataError
from reelign.selection.labels import (
    COLUMNS,
    aggregate,
    check_labels,
    pairs_from_best,
    pairs_from_videoalign,
    read_labels,
)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def takes(*rows: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame([(t, f"clips/{t}.mp4", g) for t, g in rows], columns=["take", "file", "group"])


TWO_GROUPS = takes(("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("b2", "b"))


def labels(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["group", "left", "right", "choice"])


def test_defaults_and_order() -> None:
    table = check_labels(labels(("a", "a1", "a2", "left")).assign(seconds=3.0), TWO_GROUPS)
    assert tuple(table.columns) == COLUMNS
    assert table.iloc[0].tolist() == ["a", "a1", "a2", "left", "overall", ""]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a", "a1", "a2", "first"), "choice"),
        (("a", "a1", "a1", "left"), "itself"),
        (("a", "a1", "zz", "left"), "'zz'"),
        (("a", "a1", "b1", "left"), "one group"),
        (("b", "a1", "a2", "left"), "one group"),
        (("a", "a1", None, "left"), "empty"),
    ],
)
def test_wrong_labels_are_refused(row: tuple[str, str, str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_labels(labels(row), TWO_GROUPS)


def test_missing_column() -> None:
    with pytest.raises(DataError, match="missing: choice"):
        check_labels(labels().drop(columns="choice"))


def test_winner_against_each_other_take_of_its_group() -> None:
    best = pd.DataFrame({"original_video_name": ["a2.mp4", "b1"], "best_video_name": ["a2.mp4", "b1"]})
    table = pairs_from_best(best, TWO_GROUPS)
    assert table[["group", "left", "right", "choice"]].to_numpy().tolist() == [
        ["a", "a2", "a1", "left"],
        ["a", "a2", "a3", "left"],
        ["b", "b1", "b2", "left"],
    ]


def published_good(best: pd.DataFrame, group_of: dict[str, str]) -> dict[str, set[str]]:
    """Restatement of the published label logic: both columns are good, in the group of best_video_name."""
    good: dict[str, set[str]] = {}
    for original, winner in zip(best["original_video_name"], best["best_video_name"], strict=True):
        good.setdefault(group_of[winner], set()).update({original, winner})
    return good


def test_the_original_is_not_good_in_another_group() -> None:
    """Defect of AirScape's labels: with original b2 and best a1, b2 counts as a good take of group a."""
    best = pd.DataFrame({"original_video_name": ["b2"], "best_video_name": ["a1"]})
    group_of = dict(zip(TWO_GROUPS["take"], TWO_GROUPS["group"], strict=True))
    assert published_good(best, group_of) == {"a": {"b2", "a1"}}
    table = pairs_from_best(best, TWO_GROUPS)
    assert set(table["left"]) == {"a1"}
    assert set(table["right"]) == {"a2", "a3"}


def test_the_original_is_not_good_in_its_own_group_either() -> None:
    best = pd.DataFrame({"original_video_name": ["a3"], "best_video_name": ["a1"]})
    table = pairs_from_best(best, TWO_GROUPS)
    assert set(zip(table["left"], table["right"], strict=True)) == {("a1", "a2"), ("a1", "a3")}


def test_two_winners_of_one_group() -> None:
    with pytest.raises(DataError, match="one best take"):
        pairs_from_best(pd.DataFrame({"best_video_name": ["a1", "a2"]}), TWO_GROUPS)


def test_unknown_and_ambiguous_names() -> None:
    with pytest.raises(DataError, match="none of them"):
        pairs_from_best(pd.DataFrame({"best_video_name": ["a9.mp4"]}), TWO_GROUPS)
    twice = pd.DataFrame({"take": ["x", "y"], "file": ["one/c.mp4", "two/c.mp4"], "group": ["g", "g"]})
    with pytest.raises(DataError, match="could be 2"):
        pairs_from_best(pd.DataFrame({"best_video_name": ["c.mp4"]}), twice)
    assert pairs_from_best(pd.DataFrame({"best_video_name": ["two/c.mp4"]}), twice)["left"].tolist() == ["y"]


def test_a_dot_in_a_name_is_no_suffix() -> None:
    table = takes(("wan2.1_seed1", "g"), ("wan2.1_seed2", "g"))
    assert pairs_from_best(pd.DataFrame({"best_video_name": ["wan2.1_seed2"]}), table)["left"].tolist() == [
        "wan2.1_seed2"
    ]


def test_airscape_tables() -> None:
    folder = DATA / "selfplay_takes"
    if not folder.is_dir():
        pytest.skip(f"the test data is not here: {folder}")
    scores = pd.read_csv(folder / "takes_scores.csv")
    table = scores.assign(take=scores["video_name"], file=scores["video_name"] + ".mp4", group=scores["group_id"])
    pairs = read_labels(folder / "takes_labels.csv", table)
    assert len(pairs) == 24 * 7
    assert pairs.groupby("group")["left"].nunique().eq(1).all()


def test_videoalign_table() -> None:
    file = DATA / "clips" / "human_labels.csv"
    if not file.is_file():
        pytest.skip(f"the test data is not here: {file}")
    names = [f"videoalign_{i}_{side}.mp4" for i in (1, 3) for side in "AB"]
    table = pd.DataFrame({"take": list("wxyz"), "file": names, "group": ["1", "1", "3", "3"]})
    pairs = read_labels(file, table)
    assert pairs[["left", "right", "choice", "axis"]].to_numpy().tolist() == [
        ["w", "x", "right", "VQ"],
        ["w", "x", "right", "MQ"],
        ["w", "x", "left", "TA"],
        ["y", "z", "left", "VQ"],
        ["y", "z", "tie", "MQ"],
        ["y", "z", "tie", "TA"],
    ]


def test_videoalign_refuses_other_words() -> None:
    table = pd.DataFrame({"path_A": ["a1.mp4"], "path_B": ["a2.mp4"], "VQ": ["left"]})
    with pytest.raises(DataError, match="A, B or same"):
        pairs_from_videoalign(table, TWO_GROUPS)
    with pytest.raises(DataError, match="at least one of"):
        pairs_from_videoalign(table.drop(columns="VQ"), TWO_GROUPS)
    empty = pairs_from_videoalign(table.assign(VQ="", Overall="B"), TWO_GROUPS)
    assert empty[["choice", "axis"]].to_numpy().tolist() == [["right", "overall"]]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_written_and_read(tmp_path: Path, suffix: str) -> None:
    table = check_labels(labels(("a", "a1", "a2", "tie"), ("b", "b2", "b1", "both_bad")))
    path = tmp_path / f"labels{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    pd.testing.assert_frame_equal(read_labels(path, TWO_GROUPS), table)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.csv or \.parquet"):
        read_labels(tmp_path / "labels.pkl", TWO_GROUPS)
    with pytest.raises(DataError, match="could not be read"):
        read_labels(tmp_path / "labels.csv", TWO_GROUPS)


def test_majority_by_hand() -> None:
    """Three annotators: two prefer a1, one of them shown the pair mirrored; the third prefers a2."""
    rows = [
        ("a", "a1", "a2", "left", "overall", "ann"),
        ("a", "a2", "a1", "right", "overall", "bob"),
        ("a", "a1", "a2", "right", "overall", "cai"),
        ("a", "a1", "a3", "left", "overall", "ann"),
        ("a", "a3", "a1", "left", "overall", "bob"),
        ("b", "b2", "b1", "left", "overall", "ann"),
        ("b", "b2", "b1", "both_bad", "overall", "ann"),
        ("b", "b2", "b1", "left", "motion", "ann"),
    ]
    table = aggregate(pd.DataFrame(rows, columns=list(COLUMNS)))
    assert table.to_numpy().tolist() == [
        ["a", "a1", "a2", "left", "overall", 3, 2 / 3],
        ["a", "a1", "a3", "tie", "overall", 2, 0.5],
        ["b", "b1", "b2", "both_bad", "overall", 1, 1.0],
        ["b", "b1", "b2", "right", "motion", 1, 1.0],
    ]


def test_rows_without_annotator_all_count() -> None:
    table = aggregate(labels(("a", "a1", "a2", "left"), ("a", "a1", "a2", "left"), ("a", "a1", "a2", "right")))
    assert table.iloc[0].tolist() == ["a", "a1", "a2", "left", "overall", 3, 2 / 3]
