"""``reelign judge``: from a takes folder and labels to a saved judge, a table and a picture."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from reelign.cli import judge as command
from reelign.errors import ConfigError, DataError, ModelError
from reelign.plots.judge import judge_figure
from reelign.selection.judge_storage import load_judge
from reelign.selection.takes import TakesFolder
from reelign.selection.takes_import import import_takes
from reelign.video_io import write_clip

runner = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six groups of four takes with two scores from a table; the take with most sharpness is labelled best."""
    place = tmp_path_factory.mktemp("takes")
    random = torch.Generator().manual_seed(0)
    rows = [
        (f"g{g}_t{t}", f"g{g}", float(torch.rand(1, generator=random)), float(torch.rand(1, generator=random)))
        for g in range(6)
        for t in range(4)
    ]
    table = pd.DataFrame(rows, columns=["video_name", "group_id", "sharpness", "loudness"])
    table.to_csv(place / "scores.csv", index=False)
    best = table.loc[table.groupby("group_id")["sharpness"].idxmax(), "video_name"] + ".mp4"
    pd.DataFrame({"original_video_name": best, "best_video_name": best}).to_csv(place / "best.csv", index=False)
    import_takes(place / "takes", place / "scores.csv")
    return place


def fit(*words: object) -> str:
    result = runner.invoke(command.app, ["fit", *map(str, words)], catch_exceptions=False, env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    return result.output


def test_fit_and_show(folder: Path, tmp_path: Path) -> None:
    words = (folder / "takes", "--labels", folder / "best.csv", "--features", "sharpness,loudness")
    printed = fit(*words, "--out", tmp_path / "judge", "--folds", "2")
    assert re.search(r"accuracy .* [01]\.\d{3} .*…", printed)
    assert "best take first" in printed
    assert "by chance" in printed
    assert "0.250" in printed
    assert "6 groups, 24 takes, 18 pairs, 0 ties; split by group" in printed
    assert {p.name for p in (tmp_path / "judge").iterdir()} == {"judge.json", "model.skops", "judge.png", "judge.svg"}
    judge = load_judge(tmp_path / "judge")
    wide = TakesFolder(folder / "takes").wide(["sharpness", "loudness"])
    assert judge.probability(wide[:4], wide[4:8]).shape == (4,)
    shown = runner.invoke(
        command.app, ["show", str(tmp_path / "judge")], catch_exceptions=False, env={"COLUMNS": "100"}
    )
    assert shown.exit_code == 0
    assert shown.output.strip() in printed


def test_labels_of_the_review_page(folder: Path, tmp_path: Path) -> None:
    database = pytest.importorskip("reelign.review.database")
    store = database.LabelStore.open(tmp_path / "labels.sqlite")
    labels = store.labels()
    store.close()
    assert {"group", "left", "right", "choice", "axis", "annotator"} <= set(labels.columns)
    with pytest.raises(DataError, match="no label at all"):
        fit(
            *(folder / "takes", "--labels", tmp_path / "labels.sqlite", "--out", tmp_path),
            *("--features", "sharpness"),
        )


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("--model", "svm"), ConfigError, "--model: .*'svm'"),
        (("--inputs", "sums"), ConfigError, "--inputs: .*'sums'"),
        (("--calibration", "magic"), ConfigError, "--calibration: .*'magic'"),
        (("--features", "beauty"), DataError, "beauty"),
        (("--labels", "nowhere.sqlite"), ConfigError, "there is no 'nowhere.sqlite'"),
        (("--labels", "nowhere.csv"), DataError, "could not be read"),
        (("--axis", "sound"), DataError, "'sound'"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, tmp_path: Path, words: tuple[str, ...], error: type[Exception], message: str
) -> None:
    options = {"--labels": str(folder / "best.csv"), "--features": "sharpness", "--out": str(tmp_path)}
    options |= dict(zip(words[::2], words[1::2], strict=True))
    with pytest.raises(error, match=message) as caught:
        fit(folder / "takes", *(word for pair in options.items() for word in pair))
    assert "\n" not in str(caught.value)


def test_show_without_a_judge(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is none in"):
        runner.invoke(command.app, ["show", str(tmp_path)], catch_exceptions=False)


def test_network(tmp_path: Path) -> None:
    """Bright clips are preferred to dark ones; the judge is a reward by its folder afterwards."""
    rows = []
    for group in range(4):
        for name, brightness in (("dark", 0.1), ("bright", 0.9)):
            file = tmp_path / "takes" / f"{group}_{name}.mp4"
            file.parent.mkdir(exist_ok=True)
            write_clip(file, torch.full((16, 3, 32, 32), brightness + 0.01 * group), 8.0)
            rows.append((file.name, "a white circle moving left", f"g{group}"))
    pd.DataFrame(rows, columns=["file_name", "text", "group"]).to_csv(tmp_path / "takes" / "metadata.csv", index=False)
    import_takes(tmp_path / "takes")
    best = [f"{group}_bright.mp4" for group in range(4)]
    pd.DataFrame({"best_video_name": best}).to_csv(tmp_path / "best.csv", index=False)
    words = ("--labels", tmp_path / "best.csv", "--out", tmp_path / "judge", "--model", "network", "--steps", 10)
    printed = fit(tmp_path / "takes", *words, "--folds", 2)
    assert "judge_network" in printed
    facts = json.loads((tmp_path / "judge" / "network.json").read_text())["facts"]
    assert facts["data"]["pairs"] == 4
    shown = runner.invoke(command.app, ["show", str(tmp_path / "judge")], catch_exceptions=False)
    assert "network" in shown.output


def test_figure_of_a_card() -> None:
    bins = [{"share": 0.5, "said": 0.2, "won": 0.1}, {"share": 0.5, "said": 0.8, "won": 0.9}]
    rows = [{"feature": "sharpness", "drop": 0.2, "low": 0.1, "high": 0.3}]
    figure = judge_figure({"held-out": {"reliability": bins}, "importance": rows})
    left, right = figure.axes
    assert left.get_lines()[1].get_xdata().tolist() == [0.2, 0.8]
    assert [label.get_text() for label in right.get_yticklabels()] == ["sharpness"]
    assert len(judge_figure({"held-out": {"reliability": bins}, "importance": []}).axes) == 1
