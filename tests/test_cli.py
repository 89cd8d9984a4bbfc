"""The command line as a user types it, in real processes for what must not leave traces, in this one for the rest."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import SHARED

REPOSITORY = Path(__file__).resolve().parents[1]

COMMANDS = (
    "demo", "train", "generate", "export", "translate", "takes", "score", "metrics", "evaluate", "camera", "reject",
    "review", "judge", "select", "selfplay", "report", "data", "zoo", "rewards", "doctor",
)  # fmt: skip


def reelign(*arguments, cwd):
    environment = {**os.environ, "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "reelign", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def refused(result, *words):
    """One line that says what is wrong, exit code 2, no traceback."""
    assert result.returncode == 2, result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[0]


def test_help_lists_every_verb(tmp_path):
    result = reelign("--help", cwd=tmp_path)
    assert result.returncode == 0
    for command in COMMANDS:
        assert command in result.stdout


def run_file(tmp_path, folder, **changes):
    data = {
        "output": "out",
        "generator": {"model": str(folder), "height": 32, "width": 32, "frames": 5},
        "prompts": {"source": ["a b", "c d", "e f", "g h"], "held_out": 2},
        "rewards": [{"name": "brightness_range"}],
        "reward_gradient": {"steps": 2},
        "training": {"steps": 1, "batch": 2},
        "guard": {"action": "off"},  # one step at a rate this high is rolled back, rightly
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**data, **changes}))
    return "run.yaml"


def test_train_ends_with_a_report(tmp_path, random_wan_folder):
    """The main path in one process: plan, training, summary, report; then resuming a finished run changes nothing."""
    result = reelign("train", run_file(tmp_path, random_wan_folder), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for word in ("generator", "LoRA", "brightness_range", "2 held out", "report.html"):
        assert word in result.stdout
    assert (tmp_path / "out" / "report.html").stat().st_size > 5_000
    before = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert reelign("train", "run.yaml", "--resume", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rewards": [{"name": "clipp"}]}, ("unknown reward 'clipp'", "did you mean 'clip'")),
        ({"reward_gradiant": {}}, ("unknown config key 'reward_gradiant'", "did you mean 'reward_gradient'")),
        ({"generator": {"modle": "x"}}, ("unknown config key 'generator.modle'", "did you mean 'generator.model'")),
        (
            {"generator": {"lora": {"rnk": 2}}},
            ("unknown config key 'generator.lora.rnk'", "did you mean 'generator.lora.rank'"),
        ),
        ({"generator": {"model": "./missing"}}, ("no model folder at ./missing",)),
        ({"prompts": {"source": "empty.txt"}}, ("at least one prompt is needed", "empty.txt")),
        ({"output": "/proc/nowhere/run"}, ("cannot be written", "/proc/nowhere/run")),
    ],
)
def test_mistakes_in_a_run_file(tmp_path, random_wan_folder, change, words):
    (tmp_path / "empty.txt").write_text("\n# only a comment\n")
    name = run_file(tmp_path, random_wan_folder, **change)
    refused(reelign("train", name, cwd=tmp_path), *words)
    assert {p.name for p in tmp_path.iterdir()} == {"run.yaml", "empty.txt"}


def test_generate_writes_clips_and_metadata(tmp_path, random_wan_folder):
    options = ("--generator", random_wan_folder, "--steps", 2, "--out", "clips")
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n\n")
    assert reelign("generate", "--prompts", "prompts.txt", *options, cwd=tmp_path).returncode == 0
    rows = list(csv.DictReader((tmp_path / "clips" / "metadata.csv").open()))
    assert [(r["file_name"], r["text"], r["seed"]) for r in rows] == [
        ("0000.mp4", "a red circle", "0"),
        ("0001.mp4", "a blue square", "1"),
    ]
    from reelign.video_io import read_clip

    assert read_clip(tmp_path / "clips" / "0001.mp4").video.shape == (17, 3, 64, 64)
    refused(reelign("generate", "--prompts", "a cat", *options, cwd=tmp_path), "new or empty folder")
    refused(reelign("generate", "--prompts", "nothing.txt", *options, cwd=tmp_path), "there is no file 'nothing.txt'")
    lost = ("--generator", random_wan_folder, "--adapter", "none", "--out", "other")
    refused(reelign("generate", "--prompts", "a cat", *lost, cwd=tmp_path), "pytorch_lora_weights.safetensors")
    assert not (tmp_path / "other").exists()


def test_fresh_noise_in_each_step(tmp_path, random_wan_folder):
    """The same seed gives another clip with it and the same one again; a causal generator refuses."""
    from typer.testing import CliRunner

    from reelign.cli.main import app
    from reelign.errors import ConfigError

    def generate(out, *more):
        command = ["generate", "--generator", str(random_wan_folder), "--prompts", "a red circle", "--steps", "2"]
        return CliRunner().invoke(app, [*command, "--out", str(tmp_path / out), *more], catch_exceptions=False)

    for out, eta in (("none", "0"), ("fresh", "1"), ("again", "1")):
        assert generate(out, "--eta", eta).exit_code == 0
    clips = {out: (tmp_path / out / "0000.mp4").read_bytes() for out in ("none", "fresh", "again")}
    assert clips["fresh"] == clips["again"] != clips["none"]
    assert [row["eta"] for row in csv.DictReader((tmp_path / "fresh" / "metadata.csv").open())] == ["1.0"]
    with pytest.raises(ConfigError, match="eta has no part in a causal generator's chains"):
        generate("causal", "--kind", "causal_wan", "--generator", "zoo:tiny-causal-wan", "--eta", "1")
    assert generate("more", "--eta", "1.5").exit_code == 2


def test_a_trained_adapter_generates(tmp_path, random_wan_folder):
    name = run_file(tmp_path, random_wan_folder, rewards=[{"name": "temporal_smoothness"}])
    assert reelign("train", name, "--set", "reward_gradient.lr=0.05", cwd=tmp_path).returncode == 0
    adapter = "out/checkpoints/step_000001/adapter"
    for extra, out in (((), "base"), (("--adapter", adapter), "tuned")):
        options = ("--generator", random_wan_folder, "--steps", 2, "--out", out, *extra)
        assert reelign("generate", "--prompts", "a red circle", *options, cwd=tmp_path).returncode == 0
    from reelign.video_io import read_clip

    clips = [read_clip(tmp_path / out / "0000.mp4").video for out in ("base", "tuned")]
    assert (clips[0] - clips[1]).abs().max() > 0.01


def test_a_metric_of_the_users_own_is_found_in_every_worker(tmp_path):
    """The console script, not ``python -m``, which puts the folder on the path by itself."""
    (tmp_path / "my_metrics.py").write_text(
        (REPOSITORY / "docs/takes.md").read_text().split("```python")[1].split("```")[0]
    )
    assert reelign("data", "shapes", "out", "--clips", 3, cwd=tmp_path).returncode == 0
    script = Path(sys.executable).with_name("reelign")
    command = [str(script), "score", "out", "--metrics", "my_metrics:Redness", "--workers", "2"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert "3 of 3 clips scored" in result.stdout


def test_data_shapes(tmp_path):
    assert reelign("data", "shapes", "out", "--clips", 2, cwd=tmp_path).returncode == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"00000.mp4", "00001.mp4", "metadata.csv"}
    refused(reelign("data", "shapes", "out", cwd=tmp_path), "new or empty folder")


def test_score_on_real_and_hostile_clips(tmp_path):
    """Every readable clip of the shared folder is scored, every hostile one is a row with its reason."""
    clips = SHARED / "data" / "clips"
    if not clips.is_dir():
        pytest.skip(f"the shared clips are not here: {clips}")
    rewards = "brightness_range,temporal_smoothness"
    result = reelign("score", clips, "--takes", "t", "--rewards", rewards, "--out", "scores.parquet", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    import pandas as pd

    table = pd.read_parquet(tmp_path / "scores.parquet")
    table = table.assign(file=[os.path.relpath(file, clips) for file in table["file"]]).set_index("file")
    assert list(table.columns) == ["prompt", "group", "status", "reason", "brightness_range", "temporal_smoothness"]
    broken = {f"hostile/{n}" for n in ("zero_byte.mp4", "text_named.mp4", "truncated_no_index.mp4")}
    assert set(table.index[table.status == "error"]) >= broken
    assert (table.reason[table.status == "error"].str.len() > 10).all()
    manifest = pd.read_csv(clips / "manifest.csv")
    ordinary = manifest.file[manifest.kind != "hostile"]
    assert (table.status[ordinary] == "ok").all()
    assert table.loc[ordinary, "brightness_range"].between(0, 1).all()


def test_rewards_lists_cards(tmp_path):
    result = reelign("rewards", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for name in ("clip", "video_action", "temporal_smoothness", "brightness_range", "compressibility"):
        assert name in result.stdout


def test_doctor_finds_the_installation_sound(tmp_path):
    result = reelign("doctor", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "FAILED" not in result.stdout
    assert "sampler equals diffusers' pipeline" in result.stdout


def test_zoo_lists_and_refuses(tmp_path):
    result = reelign("zoo", "list", cwd=tmp_path)
    for name in ("zoo:tiny-wan", "zoo:tiny-clip", "zoo:tiny-videomae"):
        assert name in result.stdout
    refused(reelign("zoo", "train", "tiny-van", "--out", tmp_path / "x", cwd=tmp_path), "tiny-wan")
    assert not (tmp_path / "x").exists()
