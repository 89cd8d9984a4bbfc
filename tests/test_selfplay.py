"""Self-play on a small random Wan: every stage leaves its files, a kill loses nothing, rounds build on rounds."""

import json
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from reelign.cli.main import app
from reelign.datasets.clips import CaptionedClip, ClipOrder, ClipReader, load_clips
from reelign.datasets.video_folder import write_metadata
from reelign.errors import ConfigError, DataError, ReelignError, RunFolderError
from reelign.metrics.statistics import paired_delta
from reelign.plots.selfplay import apart
from reelign.selfplay import SelfPlay, below, by_prompt, make_takes, within_noise
from reelign.selfplay_config import load_selfplay
from reelign.video_io import write_clip

PROMPTS = [f"a {c} {s}" for c in ("red", "green", "blue") for s in ("circle", "square")]


def write_run(folder: Path, model: Path, **changes) -> Path:
    data = {
        "output": str(folder / "out"),
        "rounds": 2,
        "patience": 5,
        "generator": {"model": str(model), "lora": {"rank": 2, "alpha": 2}, "device": "cpu"},
        "prompts": {"source": PROMPTS, "held_out": 3},
        "takes": {"prompts": 2, "per_prompt": 3, "batch": 4},
        "rewards": [{"name": "brightness_range"}],
        "best_of_n": {"steps": 2, "guidance_scale": 1.0, "lr": 0.01},
        "training": {"steps": 3, "batch": 2, "checkpoint_every": 1},
        "evaluation": {"measures": ["motion_energy"], "batch": 4, "save_clips": 2},
        "guard": {"action": "off"},
        **changes,
    }
    path = folder / "selfplay.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


class Silent:
    def __init__(self):
        self.stages, self.rounds = [], []

    def stage(self, number, name, done, total):
        self.stages.append((number, name))

    def finished_round(self, record):
        self.rounds.append(record["round"])

    def stepped(self, step, total, values): ...
    def evaluating(self, step, done, total): ...
    def warned(self, text): ...


@pytest.fixture(scope="module")
def played(tmp_path_factory, random_wan_folder):
    folder = tmp_path_factory.mktemp("selfplay")
    result = CliRunner().invoke(app, ["selfplay", str(write_run(folder, random_wan_folder))], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder / "out", result.output


def adapter(folder: Path, number: int) -> dict[str, torch.Tensor]:
    path = json.loads((folder / f"rounds/{number:02d}/round.json").read_text())["adapter"]
    return load_file(Path(path) / "pytorch_lora_weights.safetensors")


def test_every_stage_leaves_its_files(played):
    out, printed = played
    for number in (1, 2):
        place = out / "rounds" / f"{number:02d}"
        takes = pd.read_csv(place / "takes" / "metadata.csv")
        assert len(takes) == 6
        assert takes["seed"].between(number * 1_000_000, number * 1_000_000 + 5).all()
        assert set(takes["text"]) <= set(PROMPTS)
        winners = pd.read_csv(out / "winners" / f"{number:02d}" / "metadata.csv")
        assert len(winners) == 2
        assert winners["text"].nunique() == 2
        assert (place / "train" / "report.html").is_file()
        assert f"round {number}: 6 takes" in printed
    held_out = set(pd.read_csv(out / "rounds/01/train/samples/step_000000/scores.csv")["prompt"])
    used = {t for n in (1, 2) for t in pd.read_csv(out / f"rounds/{n:02d}/takes/metadata.csv")["text"]}
    assert not held_out & used
    result = json.loads((out / "selfplay.json").read_text())
    assert [r["round"] for r in result["rounds"]] == [1, 2]
    assert result["held_out_prompts"] == 3
    page = (out / "report.html").read_text()
    assert "Round 2" in page
    assert page.count("<video") >= 3


def test_a_prompt_counts_once_however_many_clips_it_has(tmp_path):
    rows = [("a", 1.0, 0.0), ("b", 0.0, 0.0), ("a", 0.0, 1.0)]
    table = pd.DataFrame(rows, columns=["prompt", "held_out/x", "held_out/y"]).assign(file="0.mp4")
    table.to_csv(tmp_path / "scores.csv", index=False)
    means = by_prompt(tmp_path / "scores.csv")
    assert means.index.tolist() == ["a", "b"]
    assert means["held_out/x"].tolist() == [0.5, 0.0]
    assert means["held_out/y"].tolist() == [0.5, 0.0]


def test_the_winner_is_what_the_judge_prefers(played):
    from reelign.selection.takes import TakesFolder

    out, _ = played
    place = out / "rounds" / "01"
    wide = TakesFolder(place / "takes").wide(["brightness_range"])
    best = wide.loc[wide.groupby("group")["brightness_range"].idxmax()]
    assert set(pd.read_parquet(out / "winners/01/winners.parquet")["take"]) == set(best["take"])


def test_rounds_build_on_rounds(played):
    """Each trains from the base on all winners so far, and generates with what the round before has learned."""
    out, _ = played
    first, second = adapter(out, 1), adapter(out, 2)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    tables = [pd.read_csv(out / f"rounds/{n}/train/samples/step_000000/scores.csv") for n in ("01", "02")]
    pd.testing.assert_frame_equal(*tables)
    config = yaml.safe_load((out / "rounds/02/train/config.yaml").read_text())
    assert config["generator"]["adapter"] is None
    assert len(load_clips(config["clips"]["source"])) == 4
    records = [json.loads((out / f"rounds/{n}/round.json").read_text()) for n in ("01", "02")]
    change = records[1]["held_out"]["goal"]
    assert change["of_round"]["before"] == records[0]["held_out"]["goal"]["in_all"]["after"]
    assert change["in_all"]["before"] == records[0]["held_out"]["goal"]["in_all"]["before"]
    assert set(pd.read_csv(out / "rounds/02/takes/metadata.csv")["generator"]) != set(
        pd.read_csv(out / "rounds/01/takes/metadata.csv")["generator"]
    )


def test_rounds_may_go_on_from_each_other(tmp_path, random_wan_folder):
    """The second then does not evaluate its beginning again; sampling from the saved adapter gives the same clips."""
    from reelign.contracts import Request
    from reelign.generators.wan import load_wan
    from reelign.metrics.motion_energy import motion_energy
    from reelign.sampling import generate

    SelfPlay(load_selfplay(write_run(tmp_path, random_wan_folder, train_from="last"))).run(Silent())
    out = tmp_path / "out"
    base = pd.read_csv(out / "rounds/01/train/samples/step_000000/scores.csv")
    after = pd.read_csv(out / "rounds/01/train/samples/step_000003/scores.csv")
    before = pd.read_csv(out / "rounds/02/train/samples/step_000000/scores.csv")
    pd.testing.assert_frame_equal(after, before)  # round 2 begins with what round 1 ended with
    assert not after["held_out/motion_energy"].equals(base["held_out/motion_energy"])
    config = yaml.safe_load((out / "rounds/02/train/config.yaml").read_text())
    folder = json.loads((out / "rounds/01/round.json").read_text())["adapter"]
    assert config["generator"]["adapter"] == folder
    assert len(load_clips(config["clips"]["source"])) == 2
    lora = {"rank": 2, "alpha": 2}
    generator = load_wan(model=str(random_wan_folder), lora=lora, adapter=folder, device="cpu")
    clips = generate(generator, Request(tuple(before["prompt"])), before["seed"].tolist(), 2, 1.0)
    found = motion_energy(clips)["motion_energy"].tolist()
    assert found == pytest.approx(before["held_out/motion_energy"].tolist(), rel=1e-3)


def test_takes_may_be_sampled_otherwise(tmp_path, random_wan_folder):
    config = load_selfplay(write_run(tmp_path, random_wan_folder))
    other = config.model_copy(update={"takes": config.takes.model_copy(update={"steps": 5, "guidance_scale": 2.0})})
    folders = [tmp_path / "as_evaluated", tmp_path / "otherwise"]
    for options, folder in zip((config, other), folders, strict=True):
        make_takes(options, (PROMPTS[0],), None, folder, 1, lambda done, total: None)
    first, second = (sorted(folder.glob("*.mp4")) for folder in folders)
    assert [p.name for p in first] == [p.name for p in second]
    assert all(a.read_bytes() != b.read_bytes() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "at", ["rounds/01/takes/00003.mp4", "winners/01/metadata.csv", "rounds/01/train/checkpoints/step_000002"]
)
def test_a_kill_anywhere_goes_on_to_the_same_end(tmp_path, random_wan_folder, played, at):
    run = write_run(tmp_path, random_wan_folder)
    command = [sys.executable, "-m", "reelign", "selfplay", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    waiting_for = tmp_path / "out" / at
    deadline = time.monotonic() + 120
    while not waiting_for.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert waiting_for.exists()
    result = CliRunner().invoke(app, ["selfplay", str(run), "--resume"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for number in (1, 2):
        expected = adapter(played[0], number)
        for name, value in adapter(tmp_path / "out", number).items():
            assert torch.equal(value, expected[name]), name
    again = CliRunner().invoke(app, ["selfplay", str(run), "--resume"])  # all is done: nothing is computed
    assert again.exit_code == 0


def test_softmax_weights_every_take(tmp_path, random_wan_folder):
    run = write_run(tmp_path, random_wan_folder, rounds=1, select={"weighting": "softmax", "beta": 0.5})
    watcher = Silent()
    SelfPlay(load_selfplay(run)).run(watcher)
    assert watcher.rounds == [1]
    table = pd.read_csv(tmp_path / "out/winners/01/metadata.csv")
    assert len(table) == 6
    assert table.groupby("group")["weight"].mean().tolist() == pytest.approx([1, 1])
    assert (table.groupby("group")["weight"].idxmax() == table.groupby("group")["score"].idxmax()).all()


def test_the_best_of_a_bad_lot_does_not_win(tmp_path, random_wan_folder):
    wide = pd.DataFrame({"take": ["a", "b", "c"], "clip": [0.7, 0.5, float("nan")], "action": [0.1, 0.9, 0.9]})
    out = below(wide, {"clip": 0.6, "action": 0.8})
    assert out["take"].tolist() == ["b", "c", "a"]
    assert out["reason"].tolist() == ["clip is 0.5, below 0.6", "clip is nan, below 0.6", "action is 0.1, below 0.8"]
    assert below(wide, {}).empty
    with pytest.raises(DataError, match="there is no 'clop'"):
        below(wide, {"clop": 1})
    run = write_run(tmp_path, random_wan_folder, select={"at_least": {"brightness_range": 2.0}})
    with pytest.raises(DataError, match="has a winner"):
        SelfPlay(load_selfplay(run)).run(Silent())


def test_clips_are_drawn_by_weight(tmp_path):
    rows = []
    for number, weight in enumerate((0.0, 1.0, 3.0)):
        write_clip(tmp_path / f"{number}.mp4", torch.full((5, 3, 16, 16), number / 4), 8)
        rows.append({"file_name": f"{number}.mp4", "text": str(number), "weight": weight})
    write_metadata(tmp_path, rows)
    clips = load_clips(tmp_path)
    assert [clip.weight for clip in clips] == [0, 1, 3]
    order = ClipOrder(clips, ClipReader(5, 16, 16, 8.0), 0)
    drawn = [prompt for _ in range(100) for prompt in order.request(4).prompts]
    assert drawn.count("0") == 0
    assert drawn.count("2") / 400 == pytest.approx(0.75, abs=0.08)
    state = order.state()
    ahead = order.request(8).prompts
    other = ClipOrder(clips, ClipReader(5, 16, 16, 8.0), 5)
    other.restore(state)
    assert other.request(8).prompts == ahead
    rows[0]["weight"] = -1
    write_metadata(tmp_path, rows)
    with pytest.raises(DataError, match="weight"):
        load_clips(tmp_path)
    assert CaptionedClip(Path("a"), "b").weight == 1


def test_it_stops_when_the_gain_is_within_noise(tmp_path, random_wan_folder):
    run = write_run(
        tmp_path, random_wan_folder, rounds=4, patience=1, best_of_n={"steps": 1, "guidance_scale": 1.0, "lr": 1e-9}
    )
    result = SelfPlay(load_selfplay(run)).run(Silent())
    assert len(result["rounds"]) == 1
    assert "within noise" in result["stopped"]
    assert within_noise(paired_delta([0, 0, 1], [0, 1, 0]))
    assert not within_noise(paired_delta([0, 0, 0], [1, 1.1, 1.2]))


def test_bad_input_is_one_line(tmp_path, random_wan_folder):
    run = write_run(tmp_path, random_wan_folder)
    with pytest.raises(ConfigError, match=r"did you mean .takes\.per_prompt."):
        load_selfplay(run, ["takes.per_promt=3"])
    with pytest.raises(DataError, match="not held out, 3"):
        SelfPlay(load_selfplay(run, ["takes.prompts=5"]))
    for wrong in ("scoring.metrics=[facst]", "select.at_least={brightness_rang: 1}", "judge=nowhere"):
        with pytest.raises(ReelignError):  # before anything is generated
            SelfPlay(load_selfplay(run, [wrong]))
    assert not (tmp_path / "out").exists()
    with pytest.raises(RunFolderError, match="no run to resume"):
        SelfPlay(load_selfplay(run), resume=True)
    with pytest.raises(DataError, match="has a winner"):
        SelfPlay(load_selfplay(run, ["reject.gates.frames=99"])).run(Silent())


def test_the_recipe_is_whole():
    config = load_selfplay(Path("selfplay"))
    assert config.scoring.where == "pool"
    assert config.takes.prompts + config.prompts.held_out <= 248


def test_labels_of_a_figure_do_not_lie_on_each_other():
    moved = apart({"a": 0.80, "b": 0.81, "c": 0.79, "d": 0.95}, 0.05)
    places = sorted(moved.values())
    assert min(b - a for a, b in pairwise(places)) >= 0.05 - 1e-6
    assert sorted(moved, key=lambda name: moved[name]) == ["c", "a", "b", "d"]
    assert moved["d"] == 0.95
