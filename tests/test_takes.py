"""The takes folder: content hashes, append-only tables, imports; and the executors, which must agree byte for byte."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from reelign.build import MetricSpec, build_scorers
from reelign.datasets.video_folder import write_metadata
from reelign.errors import ConfigError, DataError
from reelign.metrics.clip import ClipInfo, Frame, MetricCard, Undefined, measure
from reelign.selection.executors import KILLED, executor, score_here, score_in_pool
from reelign.selection.scoring import Scorer, plan, score_takes
from reelign.selection.takes import SCORE_COLUMNS, TAKE_COLUMNS, TakesFolder
from reelign.selection.takes_import import import_takes
from reelign.video_io import write_clip


class MeanLevel:
    """Mean grey level, and the frames seen; a metric written as a user would."""

    card = MetricCard("mean_level", 1, ("mean_level", "seen"), "grey levels", (0, 255), "neither", "mean of all pixels")
    decodes = 0

    def start(self, info: ClipInfo):
        type(self).decodes += 1
        return _MeanLevelState()


class _MeanLevelState:
    def __init__(self):
        self.levels = []

    def add(self, frame: Frame):
        self.levels.append(float(frame.grey.mean()))

    def finish(self):
        if len(self.levels) < 2:
            raise Undefined("needs 2 frames; this clip has 1")
        return {"mean_level": float(np.mean(self.levels)), "seen": float(len(self.levels))}


class Killer(MeanLevel):
    """Kills its process at clips that are nearly white."""

    def start(self, info: ClipInfo):
        return _KillerState()


class _KillerState(_MeanLevelState):
    def add(self, frame: Frame):
        super().add(frame)
        if frame.grey.mean() > 240:
            os.kill(os.getpid(), signal.SIGKILL)


def mean_level():
    return [Scorer(MeanLevel())]


def killer():
    return [Scorer(Killer())]


@pytest.fixture
def folder(tmp_path):
    """Five clips, the last two alike; one broken file; prompts, a group and seeds for some."""
    takes = tmp_path / "takes"
    for name, level, frames in (("a", 0.2, 4), ("b", 0.4, 5), ("c/d", 0.6, 1), ("c/e", 0.8, 3), ("c/f", 0.8, 3)):
        write_clip(takes / f"{name}.mp4", torch.full((frames, 3, 16, 16), level), 8)
    (takes / "broken.mp4").write_text("no video " * 50)
    rows = [
        {"file_name": "a.mp4", "text": "a red square", "seed": 3, "model": "tiny"},
        {"file_name": "b.mp4", "text": "a red square", "seed": 4, "model": "tiny"},
    ]
    write_metadata(takes, rows)
    return takes


def test_import_describes_every_clip(folder):
    takes = import_takes(folder).takes()
    assert tuple(takes.columns) == TAKE_COLUMNS
    assert list(takes["file"]) == ["a.mp4", "b.mp4", "broken.mp4", "c/d.mp4", "c/e.mp4", "c/f.mp4"]
    assert list(takes["group"]) == ["a red square", "a red square", "all", "c", "c", "c"]
    assert list(takes["generator"][:3]) == ["tiny", "tiny", ""]
    assert takes["seed"][0] == 3
    assert takes["seed"][2:].isna().all()
    assert takes["take"].str.fullmatch("[0-9a-f]{64}").all()
    assert takes["take"][4] == takes["take"][5]
    assert takes["take"].nunique() == 5


def test_import_again_adds_only_what_is_new_or_changed(folder):
    import_takes(folder)
    assert len(list((folder / "takes.parquet").iterdir())) == 1
    import_takes(folder)
    assert len(list((folder / "takes.parquet").iterdir())) == 1
    before = import_takes(folder).takes().set_index("file")["take"]
    write_clip(folder / "b.mp4", torch.full((5, 3, 16, 16), 0.5), 8)
    write_clip(folder / "g.mp4", torch.full((5, 3, 16, 16), 0.1), 8)
    after = import_takes(folder).takes().set_index("file")["take"]
    assert len(after) == 7
    assert after["b.mp4"] != before["b.mp4"]
    assert (after.drop(["b.mp4", "g.mp4"]) == before.drop("b.mp4")).all()


def test_a_selectors_table_gets_in_whole(tmp_path):
    (tmp_path / "table.csv").write_text(
        "group_id,video_name,imaging_quality,similarity,remark\ng1,x.mp4,0.5,0.25,good\ng1,y.mp4,0.75,,bad\n"
    )
    takes = import_takes(tmp_path / "takes", tmp_path / "table.csv")
    import_takes(tmp_path / "takes", tmp_path / "table.csv")
    wide = takes.wide()
    assert list(wide["group"]) == ["g1", "g1"]
    assert list(wide["imaging_quality"]) == [0.5, 0.75]
    assert wide["similarity"][0] == 0.25
    assert np.isnan(wide["similarity"][1])  # missing is not zero
    assert "remark" not in wide
    assert len(takes.scores()) == 3
    score_takes(takes, mean_level, score_here)
    reasons = takes.scores().query("metric == 'seen'")
    assert list(reasons["status"]) == ["error", "error"]  # the clips are not there, and that is what it says
    assert reasons["reason"].str.contains("No such file").all()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a,b\n1,2\n", "a row of takes has one of"),
        ("file\nx.mp4\nx.mp4\n", "names x.mp4 twice"),
        ("file,seed\nx.mp4,1.5\n", "a seed is a whole number"),
        ("file\n", "has none"),
    ],
)
def test_tables_that_cannot_be_imported(tmp_path, text, rule):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=rule):
        import_takes(tmp_path / "takes", tmp_path / "t.csv")


def test_no_table_is_one_clear_line(tmp_path):
    with pytest.raises(DataError, match="reelign takes import"):
        TakesFolder(tmp_path)
    empty = TakesFolder(tmp_path, create=True)
    assert len(empty.wide()) == len(empty.scores()) == len(empty.current_scores()) == 0
    with pytest.raises(DataError, match="it has none yet"):
        empty.wide(["sharpness"])


def test_a_clip_is_decoded_once_and_never_again(folder):
    takes = import_takes(folder)
    MeanLevel.decodes = 0
    assert score_takes(takes, mean_level, score_here) == 5  # c/e and c/f are one content
    assert MeanLevel.decodes == 4  # the broken one does not start
    assert score_takes(takes, mean_level, score_here) == 0
    wide = takes.wide().set_index("file")
    assert wide.loc["a.mp4", "mean_level"] == pytest.approx(51, abs=2)
    assert list(wide.loc[["c/e.mp4", "c/f.mp4"], "seen"]) == [3, 3]
    scores = takes.scores().set_index(["take", "metric"])
    one_frame, broken = wide.loc["c/d.mp4", "take"], wide.loc["broken.mp4", "take"]
    assert scores.loc[(one_frame, "seen"), "status"] == "undefined"
    assert scores.loc[(one_frame, "seen"), "reason"] == "needs 2 frames; this clip has 1"
    assert scores.loc[(broken, "seen"), "status"] == "error"
    assert "cannot be opened as a video" in scores.loc[(broken, "seen"), "reason"]
    assert wide.loc[["c/d.mp4", "broken.mp4"], "seen"].isna().all()
    assert score_takes(takes, mean_level, score_here, retry=True) == 1  # only what failed


def test_another_version_or_parameter_is_another_score(folder):
    takes = import_takes(folder)
    score_takes(takes, mean_level, score_here)
    other = [Scorer(MeanLevel(), '{"size": 64}')]
    assert len(plan(takes, other)) == 5
    score_takes(takes, lambda: other, score_here)
    assert len(takes.scores()) == 20
    assert set(takes.current_scores()["parameters"]) == {'{"size": 64}'}  # those computed last
    assert len(takes.wide()) == 6


def test_scores_are_checked_before_they_are_kept(folder):
    takes = import_takes(folder)
    row = dict(zip(SCORE_COLUMNS, ("t", "m", 1, "{}", "", 0.5, "ok", ""), strict=True))
    for wrong, rule in (
        ({"value": float("nan")}, "a finite number"),
        ({"status": "fine"}, "a score's status is one of"),
        ({"status": "error", "value": None}, "has a reason"),
        ({"status": "undefined", "reason": "short"}, "only an ok score has a value"),
    ):
        with pytest.raises(DataError, match=rule):
            takes.append_scores(pd.DataFrame([row | wrong]))
    with pytest.raises(DataError, match="have the columns"):
        takes.append_scores(pd.DataFrame([{"take": "t"}]))
    takes.append_scores(pd.DataFrame([row]))
    assert len(takes.scores()) == 1


def test_programs_that_append_at_once_lose_nothing(tmp_path):
    code = """
    import sys, pandas as pd
    from reelign.selection.takes import TakesFolder, SCORE_COLUMNS
    takes = TakesFolder(sys.argv[1])
    for i in range(20):
        row = (sys.argv[2] + str(i), "m", 1, "{}", "", 1.0, "ok", "")
        takes.append_scores(pd.DataFrame([row], columns=SCORE_COLUMNS))
    """
    takes = TakesFolder(tmp_path, create=True)
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    writers = [subprocess.Popen([*command, name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(takes.scores()) == 60


def parts(takes: TakesFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (takes.path / "scores.parquet").glob("part-*")}


@pytest.fixture
def specs():
    names = ("temporal_flickering", "sharpness", "motion_smoothness", "dynamic_degree")
    return [MetricSpec("metric", name) for name in names] + [MetricSpec("reward", "brightness_range")]


def test_pool_and_ray_write_the_same_bytes(folder, tmp_path, specs):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'reelign[ray]'")
    found = {}
    for place in ("here", "pool", "ray"):
        takes = import_takes(tmp_path / place, folder)
        score_takes(takes, partial(build_scorers, specs), executor(place, 2))
        found[place] = parts(takes)
    assert len(found["here"]) == 1
    assert found["here"] == found["pool"] == found["ray"]


def test_a_clip_that_kills_its_process_is_a_row(tmp_path):
    for number in range(12):
        level = 0.99 if number in (3, 4, 9) else 0.05 * number
        write_clip(tmp_path / f"{number:02d}.mp4", torch.full((2, 3, 16, 16), level), 8)
    takes = import_takes(tmp_path)
    score_takes(takes, killer, partial(score_in_pool, workers=1))
    scores = takes.wide(["seen"]).merge(takes.scores().query("metric == 'seen'"), on="take").sort_values("file")
    assert list(scores["status"] == "error") == [n in (3, 4, 9) for n in range(12)]
    assert set(scores["reason"]) == {"", KILLED}


def test_a_killed_run_goes_on_without_rescoring(tmp_path):
    for number in range(140):
        video = torch.full((2, 3, 16, 16), (number % 12) / 12)
        video[..., :8] = (number // 12) / 12
        write_clip(tmp_path / f"{number:03d}.mp4", video, 8)
    code = f"""
    from functools import partial
    from reelign.build import MetricSpec, build_scorers
    from reelign.selection.executors import score_here
    from reelign.selection.scoring import score_takes
    from reelign.selection.takes_import import import_takes
    build = partial(build_scorers, [MetricSpec("metric", "sharpness")])
    def slow(*arguments):
        import time
        for rows in score_here(*arguments):
            time.sleep(0.02)
            yield rows
    print("scored", score_takes(import_takes({str(tmp_path)!r}), build, slow), flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    first = tmp_path / "scores.parquet" / "part-000000.parquet"
    deadline = time.monotonic() + 120
    while not (first.exists() and first.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    kept = len(TakesFolder(tmp_path).scores())
    assert kept % 64 == 0
    assert 64 <= kept < 140
    before = first.read_bytes()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"scored {140 - kept}" in again.stdout
    assert first.read_bytes() == before
    scores = TakesFolder(tmp_path).scores()
    assert len(scores) == 140
    assert not scores.duplicated(["take", "metric"]).any()


def test_memory_does_not_grow_with_length(specs):
    """A thousand frames pass through every weight-free metric, and only a few are alive at any time."""
    import weakref

    alive: list[weakref.ref] = []
    most = 0

    def frames():
        nonlocal most
        random = np.random.default_rng(0)
        base = random.integers(0, 255, (40, 48, 3), np.uint8)
        for i in range(1000):
            rgb = np.roll(base, i % 40, 1)
            alive.append(weakref.ref(rgb))
            yield rgb
            del rgb
            alive[:] = [ref for ref in alive if ref() is not None]
            most = max(most, len(alive))

    from reelign.build import weight_free

    metrics = [scorer.metric for scorer in build_scorers([MetricSpec("metric", name) for name in weight_free()])]
    values = measure(frames(), 8.0, metrics)
    assert len(values) >= 8
    assert most < 60


def test_executors_by_name():
    with pytest.raises(ConfigError, match="here, pool, ray"):
        executor("cloud")
    with pytest.raises(ConfigError, match="at least 1 worker"):
        executor("pool", 0)


def test_the_speed_of_generating_is_a_score(tmp_path):
    write_clip(tmp_path / "a.mp4", torch.rand(4, 3, 16, 16), 8)
    write_metadata(tmp_path, [{"file_name": "a.mp4", "text": "a red square", "frames_per_second": 12.5}])
    assert import_takes(tmp_path).wide(["generation_speed"])["generation_speed"].tolist() == [12.5]


def test_the_commands_import_show_and_export(folder, tmp_path):
    from typer.testing import CliRunner

    from reelign.cli.main import app

    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)

    assert "6 takes in 3 groups, 2 with a prompt" in run("takes", "import", folder).output
    score_takes(TakesFolder(folder), mean_level, score_here)
    shown = run("takes", "show", folder).output
    assert "mean_level" in shown
    assert [line.split()[2:5] for line in shown.splitlines() if line.strip().startswith("seen")] == [["3", "1", "1"]]
    assert run("takes", "export", folder, "--out", tmp_path / "out").exit_code == 0
    table = pd.read_csv(tmp_path / "out.csv")
    assert list(table["file"]) == ["a.mp4", "b.mp4", "broken.mp4", "c/d.mp4", "c/e.mp4", "c/f.mp4"]
    assert table["seen"].isna().sum() == 2
    assert "px at short side 256" in " ".join(run("metrics", "dynamic_degree").output.replace("│", " ").split())
    assert CliRunner().invoke(app, ["metrics", "sharpnes"]).exception is not None
