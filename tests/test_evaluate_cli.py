"""``reelign evaluate`` as a user types it, in this process: two folders in, tables, files and a figure out."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from conftest import SHARED
from PIL import Image
from test_set_metrics_features import TinyI3D
from typer.testing import CliRunner, Result

from reelign.cli.evaluate import evaluate
from reelign.datasets.moving_shapes import MovingShapes, ShapeSpec
from reelign.errors import ConfigError, DataError, ModelError, ReelignError, RunFolderError, UnknownNameError
from reelign.metrics.feature_sets import content_hash
from reelign.metrics.paired_files import compare_files
from reelign.plots.sets import evaluation_figure
from reelign.selection.takes import TakesFolder
from reelign.video_io import find_clips, write_clip

app = typer.Typer()
app.command()(evaluate)


@app.callback()
def callback() -> None:
    pass


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["evaluate", *map(str, arguments)])


def fine(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Eight clips of red squares, eight of green circles; a broken file with the latter."""
    folder = tmp_path_factory.mktemp("sides")
    data = MovingShapes(frames=17, size=64, fps=8.0)
    for name, specs in (
        ("real", [ShapeSpec("square", "red", "moving left")] * 8),
        ("made", [ShapeSpec("circle", "green", m) for m in ("growing", "moving right")] * 4),
    ):
        video = data.render(specs, torch.Generator().manual_seed(len(name)))
        for index, clip in enumerate(video):
            write_clip(folder / name / f"{index}.mp4", clip, 8.0)
    (folder / "made" / "broken.mp4").write_bytes(b"")
    return folder / "real", folder / "made"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_sets_of_clips(sides: tuple[Path, Path], cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    text = fine(*sides, "--out", out, "--cache", cache, "--halves", 20)
    for words in (
        "mmd_videomae",
        "cmmd",
        "at least as many features a side as they are long, 128; got 8",
        "1 clips gave no",
    ):
        assert words in text
    found = json.loads((out / "evaluation.json").read_text())
    assert set(found["undefined"]) == {"frechet_videomae"}
    by_name = {distance["metric"]: distance for distance in found["distances"]}
    floor = by_name["cmmd"]["floor"]
    assert floor["distance"] > floor["high"], "green circles are not red squares"
    assert by_name["cmmd"]["clips"] == 8
    assert by_name["cmmd"]["protocol"]["frames"] == {"frames": 8, "choice": "even", "fps": None}
    assert len(by_name["cmmd"]["protocol_id"]) == 12
    assert [row["reason"] for row in rows(out / "left_out.csv")] == [
        "empty file (0 bytes); render or copy it again"
    ] * 2
    table = rows(out / "evaluation.csv")
    assert [(row["kind"], row["name"]) for row in table] == [
        ("set", "mmd_videomae"), ("set", "cmmd"), ("undefined", "frechet_videomae")
    ]  # fmt: skip
    assert table[2]["value"] == ""
    assert np.asarray(Image.open(out / "evaluation.png").convert("L")).std() > 5
    assert "<svg" in (out / "evaluation.svg").read_text()


def test_a_second_run_computes_nothing_and_says_the_same(sides: tuple[Path, Path], cache: Path, tmp_path: Path) -> None:
    options = ("--cache", cache, "--metrics", "cmmd", "--halves", 20)
    fine(*sides, "--out", tmp_path / "a", *options)
    text = fine(*sides, "--out", tmp_path / "b", *options, "--against", tmp_path / "a" / "evaluation.json")
    assert "0 features computed" in text
    assert (tmp_path / "a" / "evaluation.json").read_bytes() == (tmp_path / "b" / "evaluation.json").read_bytes()
    assert "cmmd: was" in text
    other = fine(
        *sides,
        "--out",
        tmp_path / "c",
        *options,
        "--set",
        "clip.frames=4",
        "--against",
        tmp_path / "a" / "evaluation.json",
    )
    assert "another feature protocol are not comparable" in other
    assert "16 features computed" in other


def test_fvd_from_the_users_file(sides: tuple[Path, Path], cache: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.jit.script(TinyI3D()).save(str(tmp_path / "i3d.pt"))
    few = [tmp_path / side.name for side in sides]
    for side, folder in zip(sides, few, strict=True):
        shutil.copytree(side, folder, ignore=lambda _, names: [n for n in names if n >= "4"])
    options = ("--metrics", "fvd,kvd", "--model", f"i3d={tmp_path / 'i3d.pt'}", "--cache", cache, "--halves", 10)
    text = fine(*few, "--out", tmp_path / "google", *options)
    assert "at least as many features a side as they are long, 400; got 4: take kvd" in text
    fine(*few, "--out", tmp_path / "stylegan", *options, "--set", "i3d.way=stylegan")
    ids = set()
    for way in ("google", "stylegan"):
        (kvd,) = json.loads((tmp_path / way / "evaluation.json").read_text())["distances"]
        assert kvd["protocol"]["weights"] == content_hash(tmp_path / "i3d.pt")
        ids.add(kvd["protocol_id"])
    assert len(ids) == 2


def test_pairs_of_files(sides: tuple[Path, Path], tmp_path: Path) -> None:
    """Four other clips; one without partner, one of another size, one equal."""
    real, made = sides[0], tmp_path / "made"
    data = MovingShapes(frames=17, size=64, fps=8.0)
    (video,) = data.render([ShapeSpec("circle", "red", "moving left")], torch.Generator().manual_seed(1))
    made.mkdir()
    for index in range(4):
        shutil.copy(sides[1] / f"{index}.mp4", made)
    shutil.copy(real / "4.mp4", made)
    write_clip(made / "5.mp4", video[:, :, :32], 8.0)
    write_clip(made / "alone.mp4", video, 8.0)
    text = fine(real, made, "--out", tmp_path / "out", "--metrics", "", "--paired")
    assert "ssim" in text
    found = {row["file"]: row for row in rows(tmp_path / "out" / "pairs.csv")}
    assert found["alone"]["reason"] == "not among the reference"
    assert found["7"]["reason"] == "not among the clips"
    assert "one size" in found["5"]["reason"]
    assert found["4"]["psnr_pooled"] == ""
    assert "identical" in found["4"]["reason"]
    assert float(found["4"]["ssim"]) == pytest.approx(1)
    assert 5 < float(found["0"]["psnr_pooled"]) < 40
    means = {mean["name"]: mean for mean in json.loads((tmp_path / "out" / "evaluation.json").read_text())["pairs"]}
    assert (means["ssim"]["clips"], means["psnr_pooled"]["clips"]) == (5, 4)
    assert means["psnr_pooled"]["value"] == pytest.approx(
        np.mean([float(found[str(i)]["psnr_pooled"]) for i in range(4)])
    )


def make_takes(folder: Path, clips: Path, shift: float, version: int = 1) -> None:
    """A takes table over links to clips: a score that shifts, one undefined everywhere, one of some version."""
    shutil.copytree(clips, folder)
    takes = TakesFolder(folder, create=True)
    found = [path for path in find_clips(folder) if path.stat().st_size]
    frame = pd.DataFrame({"take": [content_hash(path) for path in found], "file": [path.name for path in found]})
    frame = frame.assign(prompt=[f"p{i}" for i in range(len(found))], group="g", generator="", seed=0)
    takes.append_takes(frame)
    values = np.linspace(0, 1, len(found))
    for metric, value, status in (
        ("quality", values + shift, "ok"),
        ("nothing", np.nan, "undefined"),
        ("moved", values, "ok"),
    ):
        takes.append_scores(
            pd.DataFrame(
                {"take": frame["take"], "metric": metric, "version": version if metric == "moved" else 1}
            ).assign(
                parameters="{}", prompt="", value=value, status=status, reason="" if status == "ok" else "one frame"
            )
        )


def test_scores_of_takes(sides: tuple[Path, Path], tmp_path: Path) -> None:
    make_takes(tmp_path / "a", sides[0], 0.0)
    make_takes(tmp_path / "b", sides[1], 0.25, version=2)
    text = fine(tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out", "--metrics", "")
    assert "undefined" in text
    found = {row["metric"]: row for row in json.loads((tmp_path / "out" / "evaluation.json").read_text())["scores"]}
    assert found["quality"]["kind"] == "paired"
    assert found["quality"]["delta"] == pytest.approx(0.25)
    assert found["nothing"]["delta"] is None
    assert "fewer than 2 takes" in found["nothing"]["reason"]
    assert found["moved"]["kind"] == "undefined"
    assert "version 1" in found["moved"]["reason"]
    assert "version 2" in found["moved"]["reason"]
    assert (tmp_path / "out" / "evaluation.png").is_file()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (("--metrics", "fdv"), UnknownNameError, "did you mean 'fvd'"),
        (("--metrics", "fvd"), ConfigError, "name it with --model i3d=PATH (i3d_torchscript.pt of StyleGAN-V)"),
        (("--metrics", "fvd", "--model", "i3d=none.pt"), ModelError, "there is no TorchScript file none.pt"),
        (("--metrics", "cmmd", "--model", "i3d=x.pt"), ConfigError, "metrics use (clip); got 'i3d'"),
        (("--metrics", "cmmd", "--model", "x.pt"), ConfigError, "named as FAMILY=PATH"),
        (("--metrics", "cmmd", "--set", "clip.frame=2"), UnknownNameError, "did you mean 'frames'"),
        (("--metrics", "cmmd", "--set", "frames=2"), ConfigError, "set as FAMILY.KEY=VALUE"),
        (("--metrics", ""), DataError, "no metric was asked for"),
        (("--clips", "2"), DataError, "at least 4 clips a side"),
        (("--against", "none.json", "--metrics", "cmmd"), DataError, "cannot read none.json"),
    ],
)
def test_mistakes(
    sides: tuple[Path, Path],
    cache: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    error: type[ReelignError],
    words: str,
) -> None:
    result = run(*sides, "--out", tmp_path, "--cache", cache, *options)
    assert isinstance(result.exception, error), result.exception
    assert words in str(result.exception)
    assert "\n" not in str(result.exception)


def test_wrong_folders(sides: tuple[Path, Path], tmp_path: Path) -> None:
    for folder, words in ((tmp_path / "none", "not there"), (tmp_path, "has none")):
        result = run(sides[0], folder, "--out", tmp_path / "out")
        assert isinstance(result.exception, DataError)
        assert words in str(result.exception)
    (tmp_path / "file").write_text("")
    result = run(*sides, "--out", tmp_path / "file")
    assert isinstance(result.exception, RunFolderError), "before anything is computed"


def test_real_clips(cache: Path, tmp_path: Path) -> None:
    """Generated against natural, hostile files among them: everything readable counts, the rest says why."""
    clips, moves = SHARED / "data" / "clips" / "hostile", SHARED / "data" / "camera_moves"
    if not clips.is_dir():
        pytest.skip(f"the shared clips are not here: {clips}")
    fine(moves, clips, "--out", tmp_path, "--cache", cache, "--metrics", "cmmd", "--halves", 10)
    (cmmd,) = json.loads((tmp_path / "evaluation.json").read_text())["distances"]
    left_out = rows(tmp_path / "left_out.csv")
    assert cmmd["clips"] + len(left_out) == len(find_clips(clips))
    assert {row["side"] for row in left_out} == {"clips"}


def test_a_figure_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="at least one number"):
        evaluation_figure(())


def test_pairs_need_one_name_each(sides: tuple[Path, Path]) -> None:
    clip = sides[0] / "0.mp4"
    with pytest.raises(DataError, match="reference have two 'x/a': rename one"):
        compare_files({"x/a.mp4": clip, "x/a.webm": clip}, {"x/a.mp4": clip})
    with pytest.raises(DataError, match="'a' and its like are on one side only"):
        compare_files({"a.mp4": clip}, {"b.mp4": clip})
    (row,) = compare_files({"a.mp4": clip}, {"a.mov": sides[1] / "broken.mp4"}).to_dict("records")
    assert "empty file" in row["reason"]
    assert np.isnan(row["ssim"])
