"""A judge on disk: what is written comes back, and nothing that a stranger put there runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from reelign.errors import ModelError
from reelign.selection.judge import JudgeConfig, LearnedJudge
from reelign.selection.judge_fit import fit_judge
from reelign.selection.judge_models import MODELS
from reelign.selection.judge_storage import CARD, MODEL, load_estimator, load_judge, save_judge
from reelign.selection.labels import pairs_from_best


def takes() -> pd.DataFrame:
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(40, 2)), columns=["a", "b"])
    table.loc[3, "a"] = np.nan
    return table.assign(take=[f"t{i}" for i in range(40)], group=[f"g{i // 4}" for i in range(40)])


@pytest.fixture(scope="module")
def judges() -> dict[str, LearnedJudge]:
    table = takes()
    best = table.loc[table.groupby("group")["b"].idxmax(), "take"]
    labels = pairs_from_best(pd.DataFrame({"best_video_name": best}), table)
    config = {"features": ("a", "b"), "folds": 2, "repeats": 1}
    return {kind: fit_judge(table, labels, JudgeConfig(model=kind, **config)) for kind in MODELS}


@pytest.mark.parametrize("kind", MODELS)
def test_there_and_back(judges: dict[str, LearnedJudge], kind: str, tmp_path: Path) -> None:
    judge, table = judges[kind], takes()
    save_judge(judge, tmp_path / "judge")
    back = load_judge(tmp_path / "judge")
    np.testing.assert_array_equal(back.probability(table[:20], table[20:]), judge.probability(table[:20], table[20:]))
    assert back.plausible(table[:4]) == judge.plausible(table[:4])
    assert json.loads(json.dumps(back.card)) == json.loads(json.dumps(judge.card))
    assert sorted(p.name for p in (tmp_path / "judge").iterdir()) == [CARD, MODEL]


def test_saving_again_replaces(judges: dict[str, LearnedJudge], tmp_path: Path) -> None:
    for kind in ("forest", "bradley_terry"):
        save_judge(judges[kind], tmp_path)
    assert load_judge(tmp_path).kind == "bradley_terry"


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.target),))


def plant(judge: LearnedJudge, folder: Path, content: bytes) -> Path:
    """A judge whose model file was exchanged by somebody who also mended the checksum."""
    import hashlib

    save_judge(judge, folder)
    (folder / MODEL).write_bytes(content)
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {"model_sha256": hashlib.sha256(content).hexdigest()}))
    return folder


def test_a_pickle_is_refused_and_does_not_run(judges: dict[str, LearnedJudge], tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    folder = plant(judges["forest"], tmp_path / "judge", pickle.dumps(Payload(mark)))
    with pytest.raises(ModelError, match="never loaded from a pickle"):
        load_judge(folder)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()  # so the payload does run where pickles are loaded


def function_node(target: Path) -> bytes:
    """A skops file whose root is a partial call of ``os.mkdir``, in the form that skops itself writes."""
    from functools import partial

    return skops.io.dumps(partial(os.mkdir, str(target)))


def test_foreign_classes_are_refused_and_do_not_run(judges: dict[str, LearnedJudge], tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    foreign = {
        "partial": function_node(mark),
        "function": skops.io.dumps(make_pipeline(FunctionTransformer(os.mkdir), RandomForestClassifier())),
        "estimator": skops.io.dumps(make_pipeline(RandomForestClassifier())),
        "generator": skops.io.dumps(np.random.RandomState(0)),
    }
    for name, content in foreign.items():
        folder = plant(judges["forest"], tmp_path / name, content)
        with pytest.raises(ModelError, match="no forest judge needs: it is not loaded"):
            load_judge(folder)
    assert not mark.exists()


def rewritten(content: bytes, change: object) -> bytes:
    """The skops file with its schema changed by hand."""
    source, target = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            data = source.read(name)
            if name == "schema.json":
                schema = json.loads(data)
                change(schema)
                data = json.dumps(schema).encode()
            archive.writestr(name, data)
    return target.getvalue()


@pytest.mark.parametrize("loader", ["OperatorFuncNode", "MethodNode", "PartialNode", "FunctionNode", "ReduceNode"])
def test_a_trusted_class_with_another_loader_is_refused(judges: dict[str, LearnedJudge], loader: str) -> None:
    """As in CVE-2025-54412, where a node names a class that is trusted and calls another."""

    def disguise(schema: dict[str, object]) -> None:
        schema["__loader__"] = loader

    content = rewritten(skops.io.dumps(judges["forest"].model.estimator), disguise)
    with pytest.raises(ModelError, match=loader):
        load_estimator(content, "forest", "model.skops")


@pytest.mark.parametrize("kind", ["forest", "boosting"])
def test_a_tree_that_leads_out_of_itself_is_refused(judges: dict[str, LearnedJudge], kind: str) -> None:
    """scikit-learn would follow the index into foreign memory."""
    content = skops.io.dumps(judges[kind].model.estimator)
    source, target, changed = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO(), 0
    child = "left_child" if kind == "forest" else "left"
    with zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith(".npy"):
                array = np.load(io.BytesIO(data))
                if array.dtype.names and child in array.dtype.names and len(array) > 1:
                    array = array.copy()
                    array[child][0] = 2_000_000
                    changed += 1
                    buffer = io.BytesIO()
                    np.save(buffer, array)
                    data = buffer.getvalue()
            archive.writestr(name, data)
    assert changed
    load_estimator(content, kind, "model.skops")
    with pytest.raises(ModelError, match="leads out of itself"):
        load_estimator(target.getvalue(), kind, "model.skops")


def test_another_kind_of_model_is_refused(judges: dict[str, LearnedJudge], tmp_path: Path) -> None:
    content = skops.io.dumps(judges["boosting"].model.estimator)
    with pytest.raises(ModelError, match="no bradley_terry judge needs"):
        load_judge(plant(judges["bradley_terry"], tmp_path, content))


def test_a_broken_zip_bomb_and_deep_schema(judges: dict[str, LearnedJudge], monkeypatch: pytest.MonkeyPatch) -> None:
    content = skops.io.dumps(judges["forest"].model.estimator)
    with pytest.raises(ModelError, match="no skops file"):
        load_estimator(content[: len(content) // 2], "forest", "model.skops")
    deep = io.BytesIO()
    with zipfile.ZipFile(deep, "w") as archive:
        archive.writestr("schema.json", "[" * 100_000 + "]" * 100_000)
    with pytest.raises(ModelError, match="no skops file"):
        load_estimator(deep.getvalue(), "forest", "model.skops")
    monkeypatch.setattr("reelign.selection.judge_storage.LARGEST", 1000)
    with pytest.raises(ModelError, match="unpacks to at most 1000"):
        load_estimator(content, "forest", "model.skops")


def test_changed_and_missing_files(judges: dict[str, LearnedJudge], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is none in"):
        load_judge(tmp_path)
    save_judge(judges["forest"], tmp_path)
    (tmp_path / MODEL).write_bytes((tmp_path / MODEL).read_bytes() + b"x")
    with pytest.raises(ModelError, match="not the file"):
        load_judge(tmp_path)
    (tmp_path / MODEL).unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        load_judge(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "svm"}, "model 'svm'"),
        ({"format": 2}, "format 2"),
        ({"colour": "red"}, "colour"),
        ({"tie_width": "wide"}, "tie_width"),
        ({"card": {}}, "config"),
        ({"calibration": {"slope": 5.0}}, "other probabilities"),
        ({"features": {"columns": ["a"]}}, "features"),
    ],
)
def test_a_card_that_was_changed(
    judges: dict[str, LearnedJudge], tmp_path: Path, change: dict[str, object], message: str
) -> None:
    save_judge(judges["bradley_terry"], tmp_path)
    card = json.loads((tmp_path / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps(card | change))
    with pytest.raises(ModelError, match=message):
        load_judge(tmp_path)
