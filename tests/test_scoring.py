"""Scoring a folder: captions, values, frame choice, rows for what fails, tables on disk, and the command."""

import csv
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

from reelign.cli.score import score
from reelign.contracts import RewardCard, VideoBatch
from reelign.datasets.video_folder import captions, read_captions, write_metadata
from reelign.errors import ConfigError, ContractError, DataError, RunFolderError
from reelign.metrics.reward_metric import MAX_FRAMES, RewardMetric
from reelign.selection.executors import score_here
from reelign.selection.scoring import Scorer, check_writable, score_takes, scored_table, write_scores
from reelign.selection.takes_import import import_takes
from reelign.video_io import write_clip

CLIPS = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "clips"


class Brightness:
    """Mean of all pixels."""

    def __init__(self, frames="any"):
        self.card = RewardCard("brightness", "mean of all pixels", (0, 1), frames=frames)
        self.seen: list[VideoBatch] = []

    def __call__(self, batch):
        self.seen.append(batch)
        return batch.video.mean((1, 2, 3, 4))


class PromptLength:
    """Letters in the prompt."""

    card = RewardCard("length", "letters in the prompt", (0, 1000), needs_prompt=True, differentiable=False)

    def __call__(self, batch):
        return torch.tensor([float(len(prompt)) for prompt in batch.request.prompts])


class Returns:
    """Whatever it is told to."""

    card = RewardCard("returns", "a constant", (0, 1))

    def __init__(self, result):
        self.result = result

    def __call__(self, batch):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def score_folder(folder, rewards, max_frames=MAX_FRAMES, strict=True, progress=None, into=None):
    """Import, score what is missing, and give one row a clip."""
    takes = import_takes(into or folder, folder)
    scorers = [Scorer(RewardMetric(reward, name, max_frames)) for name, reward in rewards.items()]
    score_takes(takes, lambda: scorers, score_here, strict=strict, retry=not strict, progress=progress)
    return scored_table(takes, list(rewards)).drop(columns=["prompt", "group"])


def plain(level: float, frames: int = 4) -> torch.Tensor:
    return torch.full((frames, 3, 16, 16), level)


@pytest.fixture
def folder(tmp_path):
    """Two good clips, one in a sub-folder and only the first with a prompt, and two bad ones."""
    takes = tmp_path / "takes"
    write_clip(takes / "a.mp4", plain(0.25), 8)
    write_clip(takes / "deep" / "b.mp4", plain(0.75, 6), 8)
    (takes / "empty.mp4").touch()
    (takes / "text.mp4").write_text("no video " * 50)
    write_metadata(takes, [{"file_name": "a.mp4", "text": "a red square"}])
    return takes


def test_every_clip_is_one_row(folder):
    scores = score_folder(folder, {"bright": Brightness()})
    assert list(scores.columns) == ["file", "status", "reason", "bright"]
    assert list(scores["file"]) == ["a.mp4", "deep/b.mp4", "empty.mp4", "text.mp4"]
    assert list(scores["status"]) == ["ok", "ok", "error", "error"]
    assert scores["bright"][0] == pytest.approx(0.25, abs=0.01)
    assert scores["bright"][1] == pytest.approx(0.75, abs=0.01)
    assert scores["bright"][2:].isna().all()
    assert list(scores["reason"][:2]) == ["", ""]
    assert scores["reason"][2] == "empty file (0 bytes); render or copy it again"
    assert scores["reason"][3].startswith("cannot be opened as a video")


def test_a_missing_prompt_costs_only_the_rewards_that_need_one(folder):
    scores = score_folder(folder, {"length": PromptLength(), "bright": Brightness()}).set_index("file")
    assert scores.loc["a.mp4", ["status", "reason", "length"]].tolist() == ["ok", "", len("a red square")]
    row = scores.loc["deep/b.mp4"]
    assert row["status"] == "undefined"
    assert row["reason"].startswith("length: needs a prompt, and this clip has none")
    assert math.isnan(row["length"])
    assert row["bright"] == pytest.approx(0.75, abs=0.01)
    write_metadata(folder / "deep", [{"file_name": "b.mp4", "text": "four"}])  # a prompt that comes later is seen
    given = score_folder(folder, {"length": PromptLength()}).set_index("file")
    assert given.loc["deep/b.mp4", "length"] == 4
    assert given.loc["deep/b.mp4", "status"] == "ok"


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (torch.tensor([float("nan")]), "returns: a score is a finite number; got nan"),
        (torch.tensor([float("inf")]), "returns: a score is a finite number; got inf"),
        (torch.tensor([[0.5]]), "returns: a reward gives one score a clip, shape (1,); got (1, 1)"),
        (torch.tensor([0.5, 0.5]), "returns: a reward gives one score a clip, shape (1,); got (2,)"),
        (0.5, "returns: a reward gives one score a clip, shape (1,); got float"),
        (ContractError("too dark"), "returns: too dark"),
        (
            RuntimeError("kernel size (3)\n  can't be greater"),
            "returns: RuntimeError: kernel size (3) can't be greater",
        ),
    ],
)
def test_a_bad_score_is_an_error_row_that_names_the_reward(folder, result, reason):
    scores = score_folder(folder, {"returns": Returns(result), "bright": Brightness()})
    assert scores["status"][0] == "error"
    assert scores["reason"][0] == reason
    assert math.isnan(scores["returns"][0])
    assert scores["bright"][0] == pytest.approx(0.25, abs=0.01)


def test_a_bug_in_a_reward_keeps_its_traceback(folder):
    with pytest.raises(AttributeError):
        score_folder(folder, {"returns": Returns(AttributeError("no such field"))})


def test_a_reward_gets_the_frames_and_rate_it_was_made_for(folder):
    three, sixteen, any_number = Brightness(3), Brightness(16), Brightness()
    score_folder(folder, {"three": three, "sixteen": sixteen, "any": any_number})
    assert [b.video.shape[1] for b in three.seen] == [3, 3]
    assert [b.video.shape[1] for b in sixteen.seen] == [16, 16]
    assert [b.video.shape[1] for b in any_number.seen] == [4, 6]
    assert [b.fps for b in three.seen] == pytest.approx([8 * 2 / 3, 8 * 2 / 5])
    assert any_number.seen[0].request.prompts == ("a red square",)


def test_the_cap_is_never_silent(folder):
    bright = Brightness()
    scores = score_folder(folder, {"bright": bright}, max_frames=5)
    assert list(scores["status"][:2]) == ["ok", "ok"]
    assert list(scores["reason"][:2]) == ["", "only the first 5 of 6 frames were scored"]
    assert [b.video.shape[1] for b in bright.seen] == [4, 5]


def test_progress_counts_every_clip(folder):
    calls = []
    score_folder(folder, {"bright": Brightness()}, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_folders_and_rewards_that_cannot_be_scored(folder, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none has none"):
        score_folder(tmp_path / "none", {"bright": Brightness()})
    with pytest.raises(DataError, match="not there"):
        score_folder(tmp_path / "nowhere", {"bright": Brightness()})
    with pytest.raises(ConfigError, match="at least one metric"):
        score_folder(folder, {})
    twice = [Scorer(RewardMetric(Brightness(), "bright"))] * 2
    with pytest.raises(ConfigError, match="each column has one metric"):
        score_takes(import_takes(folder), lambda: twice, score_here)


@pytest.mark.parametrize("name", ["scores.parquet", "scores.csv", "scores"])
def test_scores_are_written_twice_and_whole(folder, tmp_path, name):
    scores = score_folder(folder, {"bright": Brightness()})
    out = tmp_path / "new" / "out"
    assert write_scores(scores, out / name) == (out / "scores.parquet", out / "scores.csv")
    pd.testing.assert_frame_equal(pd.read_parquet(out / "scores.parquet"), scores)
    pd.testing.assert_frame_equal(pd.read_csv(out / "scores.csv").fillna({"reason": ""}), scores)
    assert sorted(p.name for p in out.iterdir()) == ["scores.csv", "scores.parquet"]


def test_a_failed_write_changes_neither_table(folder, tmp_path, monkeypatch):
    scores = score_folder(folder, {"bright": Brightness()})
    write_scores(scores, tmp_path / "out" / "scores")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(RunFolderError, match="No space left on device"):
        write_scores(scores.iloc[:1], tmp_path / "out" / "scores")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_unwritable_outputs_are_known_before_scoring(tmp_path):
    check_writable(tmp_path / "new" / "scores.parquet")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="cannot write"):
        check_writable(tmp_path / "file" / "scores.parquet")
    (tmp_path / "scores.csv").mkdir()
    with pytest.raises(RunFolderError, match="is a folder"):
        check_writable(tmp_path / "scores.parquet")


@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"the shared test clips are not here: {CLIPS}")
def test_the_hostile_folder_is_scored_to_its_end(tmp_path):
    with (CLIPS / "manifest.csv").open(newline="") as file:
        expected = {Path(row["file"]).name: row for row in csv.DictReader(file) if row["kind"] == "hostile"}
    scores = score_folder(CLIPS / "hostile", {"bright": Brightness()}, into=tmp_path)
    scores = scores.assign(file=[Path(file).name for file in scores["file"]]).set_index("file")
    assert set(scores.index) == set(expected)
    for name, row in expected.items():
        assert scores.loc[name, "status"] == ("ok" if row["decode_result"] == "ok" else "error"), name
        assert math.isfinite(scores.loc[name, "bright"]) == (row["decode_result"] == "ok"), name
    assert scores.loc["decord_unordered.mov", "bright"] > 0.98
    lenient = score_folder(CLIPS / "hostile", {"bright": Brightness()}, strict=False, into=tmp_path)
    lenient = lenient.assign(file=[Path(file).name for file in lenient["file"]]).set_index("file")
    damaged = lenient.loc["truncated_with_index.mp4"]
    assert damaged["status"] == "ok"
    assert damaged["reason"].startswith("damaged: 6 of 24 announced frames decode")
    assert lenient.loc["zero_byte.mp4", "status"] == "error"


@pytest.fixture
def command():
    """``reelign score`` alone."""
    app = typer.Typer()
    app.command()(score)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


MINE = "test_scoring:Brightness,test_scoring:PromptLength"


def test_the_command_scores_shows_and_saves(command, folder, tmp_path):
    out = tmp_path / "out" / "scores.parquet"
    result = command(folder, "--rewards", MINE, "--on", "here", "--out", out)
    assert result.exit_code == 0, result.output
    assert "2 of 4 clips scored; 2 with an error" in result.output
    assert "4 computed now" in result.output
    scores = pd.read_parquet(out)
    assert scores["brightness"][0] == pytest.approx(0.25, abs=0.01)
    assert list(scores.columns) == ["file", "prompt", "group", "status", "reason", "brightness", "promptlength"]
    assert "0 computed now" in command(folder, "--rewards", MINE, "--on", "here").output


def test_the_command_takes_a_table(command, folder, tmp_path):
    (folder / "prompts.jsonl").write_text('{"file_name": "deep/b.mp4", "text": "seventeen letters"}\n')
    words = (
        "--rewards",
        "test_scoring:PromptLength",
        "--out",
        tmp_path / "s",
        "--on",
        "here",
        "--takes",
        tmp_path / "t",
    )
    result = command(folder / "prompts.jsonl", *words)
    assert result.exit_code == 0, result.output
    assert pd.read_csv(tmp_path / "s.csv")["promptlength"].tolist() == [17]


def test_the_command_refuses_before_it_scores(command, folder, tmp_path):
    out = tmp_path / "s.parquet"

    def refused(*words):
        return command(*words, "--on", "here", "--out", out).exception

    assert isinstance(refused(tmp_path / "no"), DataError)
    assert isinstance(refused(folder, "--rewards", "clip,"), ConfigError)
    assert isinstance(refused(folder, "--metrics", "sharpness,sharpness"), ConfigError)
    assert isinstance(refused(folder, "--metrics", "sharpnes"), ConfigError)
    assert isinstance(refused(folder, "--metrics", "sharpness", "--set", "blockiness.model=x"), ConfigError)
    assert isinstance(command(folder, "--on", "mars").exception, ConfigError)
    (tmp_path / "file").touch()
    result = command(folder, "--rewards", "unknown", "--out", tmp_path / "file" / "s.parquet")
    assert isinstance(result.exception, RunFolderError)  # known before any reward is loaded
    assert not out.exists()


def test_captions_from_every_kind_of_table(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "metadata.csv").write_text('\ufefffile_name,text\none.mp4,"red, round"\nbare.mp4,\n', "utf-8")
    (tmp_path / "a" / "metadata.jsonl").write_text('{"file_name": "two.mp4", "caption": "zwei"}\n\n', "utf-8")
    (tmp_path / "b" / "manifest.csv").write_text("file,prompt\n./three.mp4,drei\n", "utf-8")
    assert captions(tmp_path) == {"one.mp4": "red, round", "a/two.mp4": "zwei", "b/three.mp4": "drei"}
    assert read_captions(tmp_path / "a" / "metadata.jsonl") == {"two.mp4": "zwei"}
    (tmp_path / "manifest.csv").write_text("file,prompt\none.mp4,blue\n")
    with pytest.raises(DataError, match=r"one\.mp4"):
        captions(tmp_path)


def test_tables_that_cannot_be_used(tmp_path):
    (tmp_path / "metadata.jsonl").write_text("[1, 2]\n")
    with pytest.raises(DataError, match="JSON object"):
        captions(tmp_path)
    (tmp_path / "metadata.jsonl").write_bytes(b"\xff\xfe{")
    with pytest.raises(DataError, match="cannot be read"):
        captions(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4", "label": 3}\n')
    assert captions(tmp_path) == {}
    with pytest.raises(DataError, match="text, prompt, caption"):
        read_captions(tmp_path / "metadata.jsonl")


def test_metadata_round_trip(tmp_path):
    rows = [
        {"file_name": "a.mp4", "text": 'says "hi",\nloudly', "seed": 3},
        {"file_name": "b.mp4", "text": "ü", "seed": 4},
    ]
    path = write_metadata(tmp_path / "new", rows)
    assert captions(path.parent) == {"a.mp4": 'says "hi",\nloudly', "b.mp4": "ü"}
    assert path.read_text("utf-8").splitlines()[0] == "file_name,text,seed"
    for wrong in ([], [{"text": "x"}], [{"file_name": "a.mp4"}], [rows[0], {"file_name": "b.mp4", "text": "x"}]):
        with pytest.raises(DataError):
            write_metadata(tmp_path / "new", wrong)


@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"the shared test clips are not here: {CLIPS}")
def test_captions_of_the_shared_clips():
    found = captions(CLIPS)
    assert len(found) == 11
    assert found["finetrainers_hiker_tiny.mp4"].startswith("A hiker standing at the top of a mountain")
