"""Winners of a takes folder: who competes, the folder they go into, the pictures, and the command."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from reelign.cli.select import select
from reelign.datasets.video_folder import captions
from reelign.errors import ConfigError, DataError, RunFolderError
from reelign.plots.select import winners_sheet
from reelign.selection.choose import Jury, Play, best_of_takes, parse_weights, read_rejected, select_takes
from reelign.selection.takes import TakesFolder
from reelign.selection.winners import (
    CLOSE,
    COLUMNS,
    LEFT_OUT,
    ONLY,
    WinnerOptions,
    candidates,
    safe_name,
    write_winners,
)
from reelign.video_io import write_clip

app = typer.Typer()
app.command()(select)


def table() -> pd.DataFrame:
    """Group a: clear; b: close; c: one take; d: nobody has a value; e: all rejected."""
    rows = [
        *(("a", name, clip, gold) for name, clip, gold in (("a0", 0.1, 1), ("a1", 0.2, 2), ("a2", 0.9, 3))),
        *(("b", name, clip, gold) for name, clip, gold in (("b0", 0.50, 1), ("b1", 0.51, 2), ("b2", 0.1, 0))),
        ("c", "c0", 0.3, 1),
        *(("d", name, np.nan, 1) for name in ("d0", "d1")),
        *(("e", name, 0.4, 1) for name in ("e0", "e1")),
        ("a", "a3", np.nan, 5),
    ]
    frame = pd.DataFrame(rows, columns=["group", "take", "clip", "gold"])
    frame["gold"] = frame["gold"].astype(float)
    return frame.assign(file=frame["take"] + ".mp4", prompt="prompt " + frame["group"], generator="", seed=0)


REJECTED = pd.DataFrame(
    [("e0", "frozen", "95 % frozen, 90 % allowed"), ("e1", "black", "all black"), ("e1", "frozen", "all frozen")],
    columns=["take", "gate", "reason"],
)
CLIP = Jury(weights={"clip": 3.0})


def test_winners_by_hand() -> None:
    selection = select_takes(table(), CLIP, REJECTED)
    winners = selection.winners.set_index("group")
    assert list(selection.winners.columns) == list(COLUMNS)
    assert dict(winners["take"]) == {"a": "a2", "b": "b1", "c": "c0"}
    assert dict(winners["runner_up"]) == {"a": "a1", "b": "b0", "c": ""}
    assert dict(winners["runner_up_file"]) == {"a": "a1.mp4", "b": "b0.mp4", "c": ""}
    assert dict(winners["note"]) == {"a": "", "b": CLOSE, "c": ONLY}
    assert winners.loc["a", "confidence"] > 0.9 > 0.6 > winners.loc["b", "confidence"] > 0.4
    assert winners.loc["c", ["confidence", "comparisons"]].tolist() == [1.0, 0]
    assert winners.loc["a", "beats_runner_up"] > 0.9
    assert selection.without_winner == ["d", "e"]


def test_nothing_is_dropped_silently() -> None:
    out = select_takes(table(), CLIP, REJECTED).left_out
    assert list(out.columns) == list(LEFT_OUT)
    reasons = {(row.group, row.take): row.reason for row in out.itertuples()}
    assert reasons == {
        ("a", "a3"): "not judged: no value of clip",
        ("d", ""): "no winner: none of its 2 takes could compete",
        ("d", "d0"): "not judged: no value of clip",
        ("d", "d1"): "not judged: no value of clip",
        ("e", ""): "no winner: none of its 2 takes could compete",
        ("e", "e0"): "rejected: frozen: 95 % frozen, 90 % allowed",
        ("e", "e1"): "rejected: black: all black; frozen: all frozen",
    }
    everybody = set(table()["take"])
    competed, left_out = candidates(table(), REJECTED, ("clip",))
    assert set(competed["take"]) | set(left_out["take"]) == everybody
    assert not set(competed["take"]) & set(left_out["take"])


def test_unsure_groups_have_no_winner_and_say_so() -> None:
    selection = select_takes(table(), CLIP, REJECTED, options=WinnerOptions(min_confidence=0.8))
    assert list(selection.winners["group"]) == ["a", "c"]
    reason = selection.left_out.set_index(["group", "take"]).loc[("b", ""), "reason"]
    assert "sure, below 0.80" in reason
    assert "review" in reason


def test_several_winners_and_different_ones() -> None:
    frame = table()
    frame["look"] = frame["take"].map({"a2": 1.0, "a1": 1.0, "a0": 0.0}).fillna(0.5)
    best = select_takes(frame, CLIP, None, options=WinnerOptions(per_group=2)).winners
    assert list(best[best["group"] == "a"]["take"]) == ["a2", "a1"]
    assert list(best[best["group"] == "a"]["rank"]) == [1, 2]
    assert set(best[best["group"] == "a"]["runner_up"]) == {"a0"}
    varied = select_takes(frame, CLIP, None, options=WinnerOptions(per_group=2, diverse=("look",), alpha=0.1)).winners
    assert list(varied[varied["group"] == "a"]["take"]) == ["a2", "a0"]
    assert len(best[best["group"] == "c"]) == 1
    assert best[best["group"] == "a"]["confidence"].between(0.5, 1).all()


def test_order_of_the_table_changes_nothing() -> None:
    first = select_takes(table(), CLIP, REJECTED)
    again = select_takes(table().sample(frac=1, random_state=4), CLIP, REJECTED.iloc[::-1])
    assert first.winners.equals(again.winners)
    assert set(first.left_out["take"]) == set(again.left_out["take"])


def test_people_alone_can_choose() -> None:
    labels = pd.DataFrame(
        [("a", "a0", "a2", "left")] * 6 + [("a", "a0", "a1", "left")] * 6,
        columns=["group", "left", "right", "choice"],
    )
    winners = select_takes(table(), Jury(labels=labels), REJECTED).winners.set_index("group")
    assert winners.loc["a", "take"] == "a0"
    assert winners.loc["a", "comparisons"] == 12
    assert winners.loc["a", "confidence"] > 0.8
    assert winners.loc["b", "note"] == CLOSE


def test_gold_must_be_unseen_and_there() -> None:
    curve = best_of_takes(table(), CLIP, "gold", REJECTED)
    assert curve.prompts == 2
    assert curve.table["gold"].is_monotonic_increasing
    for gold, message in (("clip", "cannot tell"), ("moon", "'moon' is none of")):
        with pytest.raises(DataError, match=message):
            best_of_takes(table(), CLIP, gold)


def test_what_a_jury_is() -> None:
    for arguments in ({}, {"weights": {"clip": 1.0}, "labels": table()}):
        with pytest.raises(ConfigError, match="exactly one"):
            Jury(**arguments)
    with pytest.raises(DataError, match="'aesthetic' was not computed"):
        select_takes(table(), Jury(weights={"aesthetic": 1.0}))
    with pytest.raises(DataError, match="there is none"):
        select_takes(table().head(0), CLIP)
    with pytest.raises(DataError, match="take and reason; reason is missing"):
        select_takes(table(), CLIP, REJECTED[["take"]])


def test_weights_are_parsed() -> None:
    assert parse_weights("clip=1, flicker=-0.5,sharp") == {"clip": 1.0, "flicker": -0.5, "sharp": 1.0}
    for text in ("", "clip=", "clip=x", "clip=1,clip=2", "=1", "clip=nan", "clip=1,,b"):
        with pytest.raises(ConfigError, match="different names with weights"):
            parse_weights(text)


@pytest.mark.parametrize(
    ("group", "name"),
    [("../../etc/passwd", "etc_passwd"), ("a b/c", "a_b_c"), ("", "group"), ("…", "group"), ("x" * 99, "x" * 60)],
)
def test_groups_make_safe_names(group: str, name: str) -> None:
    assert safe_name(group) == name


# --- folders -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> TakesFolder:
    """Three groups of three clips, one group named like a path, one clip that is no video, one that is gone."""
    takes, rows, scores = TakesFolder(tmp_path / "takes", create=True), [], []
    for number, group in enumerate(["../up", "b", "c"]):
        for k in range(3):
            file = takes.path / f"{number}" / f"{k}.mp4"
            video = torch.zeros(5, 3, 32, 48)
            video[:, number], video[:, :, 8 * k : 8 * k + 8] = 0.6, 1.0
            write_clip(file, video * torch.linspace(0.6, 1, 5)[:, None, None, None], 8)
            take = hashlib.sha256(file.read_bytes()).hexdigest()
            rows.append((take, f"{number}/{k}.mp4", f"<b>prompt</b> [red]{number}", group, "", k))
            scores += [(take, "clip", k), (take, "gold", 2 * k + number)]
    takes.append_takes(pd.DataFrame(rows, columns=["take", "file", "prompt", "group", "generator", "seed"]))
    told = pd.DataFrame(scores, columns=["take", "metric", "value"]).astype({"value": float})
    takes.append_scores(told.assign(version=1, parameters="", prompt="", status="ok", reason=""))
    (takes.path / "1" / "1.mp4").write_bytes(b"no video")
    (takes.path / "2" / "2.mp4").unlink()
    return takes


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})
    if code == 0:
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output
    assert result.exit_code == code
    return str(result.exception)


def test_the_command_from_folder_to_folder(folder: TakesFolder, tmp_path: Path) -> None:
    out = tmp_path / "winners"
    said = run(folder.path, "--columns", "clip=2", "--best-of", "gold", "--out", out)
    assert "3 of 3 groups have a winner" in said
    winners = pd.read_parquet(out / "winners.parquet")
    assert list(winners["file"]) == ["0/2.mp4", "1/2.mp4", "2/2.mp4"]
    clips = [name for name in winners["clip"] if name]
    assert [name.split("-")[:2] for name in clips] == [["0000", "up"], ["0001", "b"]]
    assert winners["clip"].iloc[2] == ""  # the clip is gone, and its row says so
    assert {path.name for path in out.glob("*.mp4")} == set(clips)
    assert os.path.samefile(out / clips[0], folder.locate("0/2.mp4"))
    assert captions(out) == {clips[0]: "<b>prompt</b> [red]0", clips[1]: "<b>prompt</b> [red]1"}
    assert pd.read_csv(out / "winners.csv")["take"].tolist() == winners["take"].tolist()
    assert pd.read_csv(out / "best_of.csv")["gold"].iloc[-1] == 5
    for name in ("winners.png", "best_of.png"):
        assert Image.open(out / name).width > 300
    assert (out / "best_of.svg").is_file()
    # Once more, copied and with another judge: the folder is replaced whole.
    run(folder.path, "--columns", "clip=-2", "--copy", "--out", out)
    assert list(pd.read_parquet(out / "winners.parquet")["file"]) == ["0/0.mp4", "1/0.mp4", "2/0.mp4"]
    assert not (out / "best_of.csv").exists()
    assert not os.path.samefile(next(out.glob("0000*.mp4")), folder.locate("0/0.mp4"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_file_that_changed_is_not_the_take_that_won(folder: TakesFolder, tmp_path: Path) -> None:
    folder.locate("0/2.mp4").write_bytes(folder.locate("0/1.mp4").read_bytes())
    said = run(folder.path, "--columns", "clip", "--out", tmp_path / "w")
    assert "2 winners have no clip in the folder" in said
    winners = pd.read_csv(tmp_path / "w" / "winners.csv", keep_default_na=False).set_index("file")
    assert winners.loc["0/2.mp4", ["clip", "note"]].tolist() == ["", "no clip: the file changed since it was scored"]
    assert winners.loc["2/2.mp4", ["clip", "note"]].tolist() == ["", "no clip: the file is not there"]
    assert [path.name[:6] for path in sorted((tmp_path / "w").glob("*.mp4"))] == ["0001-b"]


def test_rejections_are_obeyed_unless_told_otherwise(folder: TakesFolder, tmp_path: Path) -> None:
    takes = folder.takes()
    refused = takes[takes["file"].isin(["0/2.mp4", "1/0.mp4", "1/1.mp4", "1/2.mp4"])]["take"]
    pd.DataFrame({"take": refused, "gate": "black", "reason": "dark"}).to_parquet(folder.path / "rejected.parquet")
    assert len(read_rejected(folder.path)) == 4
    said = run(folder.path, "--columns", "clip", "--out", tmp_path / "one")
    assert "2 of 3 groups have a winner" in said
    assert "b: no winner: none of its 3 takes could compete" in said
    assert "4 takes did not compete" in said
    assert "rejected: black: dark" in (tmp_path / "one" / "left_out.csv").read_text()
    assert "3 of 3" in run(folder.path, "--columns", "clip", "--no-rejected", "--out", tmp_path / "two")
    (folder.path / "rejected.parquet").write_bytes(b"PAR1?")
    assert "cannot be read" in run(folder.path, "--columns", "clip", "--out", tmp_path / "three", code=1)


def test_labels_and_schemes_from_the_command(folder: TakesFolder, tmp_path: Path) -> None:
    rows = folder.takes().set_index("file")["take"]
    labels = pd.DataFrame(
        [("b", rows["1/0.mp4"], rows["1/2.mp4"], "left", "overall")] * 5,
        columns=["group", "left", "right", "choice", "axis"],
    )
    labels.to_csv(tmp_path / "labels.csv", index=False)
    run(folder.path, "--labels", tmp_path / "labels.csv", "--out", tmp_path / "w", "--per-group", 2)
    winners = pd.read_parquet(tmp_path / "w" / "winners.parquet")
    assert winners[(winners["group"] == "b") & (winners["rank"] == 1)]["file"].tolist() == ["1/0.mp4"]
    for scheme in ("elimination", "swiss", "round_robin"):
        run(folder.path, "--columns", "clip", "--scheme", scheme, "--out", tmp_path / scheme)


def test_labels_of_the_review_database(folder: TakesFolder, tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy", reason="the review database needs SQLAlchemy")
    from reelign.review.database import LabelStore, Question

    rows = folder.takes().set_index("file")["take"]
    store = LabelStore.open(folder.path / "labels.sqlite")
    for number in range(4):
        question = Question("anna", "pair", "b", rows["1/1.mp4"], rows["1/2.mp4"], number=number)
        store.ask([question])
        store.answer(f"{number:036d}", question.id, "anna", {"overall": "left", "motion": "right"})
    store.close()
    for axis, winner in (("overall", "1/1.mp4"), ("motion", "1/2.mp4")):
        run(folder.path, "--labels", folder.path / "labels.sqlite", "--axis", axis, "--out", tmp_path / axis)
        winners = pd.read_parquet(tmp_path / axis / "winners.parquet").set_index("group")
        assert winners.loc["b", ["file", "comparisons"]].tolist() == [winner, 4]
    said = run(
        folder.path, "--labels", folder.path / "labels.sqlite", "--axis", "colour", "--out", tmp_path / "w", code=1
    )
    assert "has none of 'colour'" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give exactly one"),
        (("--columns", "clip", "--judge", "j"), "give exactly one"),
        (("--columns", "moon"), "moon"),
        (("--columns", "clip", "--scheme", "knockout"), "unknown scheme"),
        (("--columns", "clip", "--comparisons", 1), "at least 3 comparisons"),
        (("--columns", "clip", "--diverse", "all"), "--per-group 1"),
        (("--columns", "clip", "--best-of", "clip"), "cannot tell"),
        (("--judge", "nowhere"), "nowhere"),
        (("--labels", "nowhere.csv"), "there is no 'nowhere.csv'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(folder: TakesFolder, tmp_path: Path, arguments, message) -> None:
    said = run(folder.path, *arguments, "--out", tmp_path / "winners", code=1)
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "winners").exists()


def test_a_folder_of_something_else_is_left_alone(folder: TakesFolder, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "draft.txt").write_text("years of work")
    assert "holds something else" in run(folder.path, "--columns", "clip", "--out", tmp_path / "thesis", code=1)
    assert (tmp_path / "thesis" / "draft.txt").read_text() == "years of work"
    selection = select_takes(folder.wide(), CLIP)
    with pytest.raises(RunFolderError, match="holds something else"):
        write_winners(selection, folder.locate, tmp_path / "thesis" / "draft.txt")


def test_the_sheet_shows_frames_and_says_why_there_are_none(folder: TakesFolder, tmp_path: Path) -> None:
    """The winner of the first row is red with a bar at the bottom; broken and missing clips are grey with words."""
    winners = select_takes(folder.wide(), CLIP, play=Play(scheme="round_robin")).winners
    page = np.asarray(Image.open(winners_sheet(winners, folder.locate, tmp_path / "w.png"))).astype(int)
    frame = page[14 + 17 + 34 :][:96, 14 : 14 + 144]
    top, bar = frame[10, 70], frame[60, 70]
    assert top[0] > top[1] + 40
    assert bar.min() > 100
    assert Image.open(winners_sheet(winners, folder.locate, tmp_path / "x.png", groups=1)).height < len(page)
    assert Image.open(winners_sheet(winners.head(0), folder.locate, tmp_path / "y.png")).width > 100


def test_a_learned_judge_selects(folder: TakesFolder, tmp_path: Path) -> None:
    """Fitted to labels by ``selection.judge``, saved, and asked by the command."""
    pytest.importorskip("sklearn", reason="learned judges need scikit-learn")
    fit = pytest.importorskip("reelign.selection.judge_fit")
    storage = pytest.importorskip("reelign.selection.judge_storage")
    from reelign.selection.judge import JudgeConfig

    random, frames, labels = np.random.default_rng(0), [], []
    for g in range(12):
        clip = random.normal(size=4)
        frames.append(
            pd.DataFrame({"group": f"g{g}", "take": [f"{g}-{k}" for k in range(4)], "clip": clip, "gold": 0.0})
        )
        labels += [(f"g{g}", f"{g}-{clip.argmax()}", f"{g}-{k}", "left") for k in range(4) if k != clip.argmax()]
    told = pd.DataFrame(labels, columns=["group", "left", "right", "choice"])
    judge = fit.fit_judge(
        pd.concat(frames), told, JudgeConfig(features=("clip",), zero_is_missing=(), folds=1, repeats=1)
    )
    storage.save_judge(judge, tmp_path / "judge")
    run(folder.path, "--judge", tmp_path / "judge", "--out", tmp_path / "w")
    assert list(pd.read_parquet(tmp_path / "w" / "winners.parquet")["file"]) == ["0/2.mp4", "1/2.mp4", "2/2.mp4"]
    assert "cannot tell" in run(
        folder.path, "--judge", tmp_path / "judge", "--best-of", "clip", "--out", tmp_path / "v", code=1
    )
