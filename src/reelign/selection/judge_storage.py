"""A judge on disk: ``judge.json``, which people can read, and ``model.skops``, which nobody has to trust.

No pickle is ever loaded. A skops file names the class of everything in it; each must be in a list that is written out
here for the kind of model, so a foreign class is refused before anything is built. Then the trees are checked to stay
inside themselves (scikit-learn does not: an index beyond the tree would read foreign memory), and the judge must give
the probabilities that are written in its card.

Left out: judges of another major version of scikit-learn may not load; the card says which one wrote them.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from reelign.errors import ModelError
from reelign.selection.judge import JudgeConfig, LearnedJudge
from reelign.selection.judge_calibration import Calibration
from reelign.selection.judge_features import Features
from reelign.selection.judge_models import Inputs, PairModel, recipe

CARD, MODEL = "judge.json", "model.skops"
FORMAT = 1
LARGEST = 1 << 30  # bytes, unpacked
PROBE_TOLERANCE = 1e-6

# Everything that a file may hold: module, class, and the skops loader that builds it.
PLAIN = frozenset(
    {
        ("builtins", "dict", "DictNode"),
        ("builtins", "list", "ListNode"),
        ("builtins", "str", "JsonNode"),
        ("builtins", "str", "TypeNode"),
        ("builtins", "tuple", "TupleNode"),
        ("numpy", "ndarray", "NdArrayNode"),
        ("numpy", "int64", "NdArrayNode"),
        ("numpy", "uint64", "NdArrayNode"),
        ("numpy", "float64", "NdArrayNode"),
    }
)
_BOOSTING = "sklearn.ensemble._hist_gradient_boosting"
ALLOWED = {
    "bradley_terry": PLAIN | {("sklearn.linear_model._logistic", "LogisticRegression", "ObjectNode")},
    "forest": PLAIN
    | {
        ("sklearn.ensemble._forest", "RandomForestClassifier", "ObjectNode"),
        ("sklearn.tree._classes", "DecisionTreeClassifier", "ObjectNode"),
        ("sklearn.tree._tree", "Tree", "TreeNode"),
    },
    "boosting": PLAIN
    | {
        (f"{_BOOSTING}.gradient_boosting", "HistGradientBoostingClassifier", "ObjectNode"),
        (f"{_BOOSTING}.binning", "_BinMapper", "ObjectNode"),
        (f"{_BOOSTING}.predictor", "TreePredictor", "ObjectNode"),
        ("sklearn._loss._loss", "CyHalfBinomialLoss", "LossNode"),
        ("sklearn._loss.loss", "HalfBinomialLoss", "ObjectNode"),
        ("sklearn._loss.link", "Interval", "ObjectNode"),
        ("sklearn._loss.link", "LogitLink", "ObjectNode"),
        ("sklearn.preprocessing._label", "LabelEncoder", "ObjectNode"),
    },
}
ROOT = {
    "bradley_terry": "LogisticRegression",
    "forest": "RandomForestClassifier",
    "boosting": "HistGradientBoostingClassifier",
}


class _Saved(BaseModel):
    """What ``judge.json`` holds; anything else is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    kind: str
    inputs: Inputs
    features: Features
    calibration: Calibration
    tie_width: float
    bound: float | None
    model_sha256: str
    card: dict[str, Any]


def save_judge(judge: LearnedJudge, folder: Path) -> Path:
    """Write a judge; the folder may exist and its older judge is replaced.

    Raises:
        ModelError: the folder cannot be written.
    """
    import skops.io

    if not isinstance(judge.model, PairModel) or not isinstance(judge.features, Features):
        raise ModelError(f"a judge that reads scores is saved here; a {judge.kind} has a format of its own")
    folder, estimator = Path(folder), judge.model.estimator
    if hasattr(estimator, "_feature_subsample_rng"):
        estimator._feature_subsample_rng = None  # used while fitting only; a generator's state need not be trusted then
    model: bytes = skops.io.dumps(estimator)
    saved = _Saved(
        format=FORMAT,
        kind=judge.kind,
        inputs=judge.model.inputs,
        features=judge.features,
        calibration=judge.calibration,
        tie_width=judge.tie_width,
        bound=judge.bound if math.isfinite(judge.bound) else None,
        model_sha256=hashlib.sha256(model).hexdigest(),
        card=dict(judge.card),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CARD).unlink(missing_ok=True)  # an interrupted save leaves no judge instead of a mixed one
        (folder / MODEL).write_bytes(model)
        (folder / CARD).write_text(json.dumps(saved.model_dump(mode="json"), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise ModelError(f"the judge could not be written to {folder}: {error.strerror or error}") from error
    return folder


def load_judge(folder: Path) -> LearnedJudge:
    """Read a judge that anybody may have made.

    Raises:
        ModelError: there is none, a file is broken or was changed, it holds a class that no judge needs, or the judge
            does not give the probabilities of its card.
    """
    folder = Path(folder)
    saved = _read_card(folder / CARD)
    try:
        content = (folder / MODEL).read_bytes()
    except OSError as error:
        raise ModelError(f"a judge is {CARD} and {MODEL}; {folder / MODEL} cannot be read") from error
    if hashlib.sha256(content).hexdigest() != saved.model_sha256:
        raise ModelError(f"{folder / MODEL} is not the file that {CARD} was written with: fit the judge anew")
    estimator = load_estimator(content, saved.kind, f"{folder / MODEL}")
    judge = LearnedJudge(
        saved.features,
        PairModel(estimator, saved.inputs, recipe(saved.kind).reads_missing),
        saved.kind,
        saved.calibration,
        saved.tie_width,
        math.inf if saved.bound is None else saved.bound,
        saved.card,
    )
    _check_probes(judge, folder)
    return judge


def _read_card(file: Path) -> _Saved:
    try:
        saved = _Saved.model_validate_json(file.read_text(encoding="utf-8"))
        JudgeConfig.model_validate(saved.card["config"])
    except OSError as error:
        raise ModelError(f"a judge is a folder with {CARD}; there is none in {file.parent}") from error
    except (ValidationError, UnicodeDecodeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{file} is not a judge's card of this version of reelign: {reason}") from error
    if saved.format != FORMAT or saved.kind not in ALLOWED:
        raise ModelError(f"{file} is of format {saved.format}, model {saved.kind!r}; this version reads {FORMAT}")
    return saved


def load_estimator(content: bytes, kind: str, name: str) -> Any:
    """A scikit-learn model from the bytes of a skops file, if all that is in it belongs into this kind of judge.

    Args:
        content: the file; nothing in it runs.
        kind: ``bradley_terry``, ``forest`` or ``boosting``.
        name: how messages call the file.

    Raises:
        ModelError: the file is no skops file (a pickle, for one), too large, or holds anything else.
    """
    import skops.io

    foreign = sorted(_classes(content, name) - ALLOWED[kind], key=str)
    if foreign:
        module, what, loader = foreign[0]
        raise ModelError(f"{name} holds {module}.{what} ({loader}), which no {kind} judge needs: it is not loaded")
    trusted = skops.io.get_untrusted_types(data=content)  # a subset of the list above
    try:
        estimator = skops.io.loads(content, trusted=trusted)
        _check_estimator(estimator, kind)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OSError) as error:
        raise ModelError(f"{name} is no whole {kind} model: {' '.join(str(error).split())[:200]}") from error
    return estimator


def _classes(content: bytes, name: str) -> set[tuple[str, str, str]]:
    """Module, class and loader of everything that a skops file would build; nothing is built."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > LARGEST:
                raise ModelError(f"a judge unpacks to at most {LARGEST} bytes; {name} to {size}")
            schema = json.loads(archive.read("schema.json"))
    except (zipfile.BadZipFile, KeyError, ValueError, RecursionError) as error:
        raise ModelError(f"{name} is no skops file, and a judge is never loaded from a pickle: fit it anew") from error
    found: set[tuple[str, str, str]] = set()
    left = [schema]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            if "__loader__" in node:
                found.add((str(node.get("__module__")), str(node.get("__class__")), str(node["__loader__"])))
            left.extend(node.values())
        elif isinstance(node, list):
            left.extend(node)
    return found


def _check_estimator(estimator: Any, kind: str) -> None:
    """Refuse a model whose parts do not fit together; ValueError says why."""
    if type(estimator).__name__ != ROOT[kind] or list(estimator.classes_) != [0, 1]:
        raise ValueError(f"it is a {type(estimator).__name__} where a {ROOT[kind]} of classes 0 and 1 belongs")
    features = int(estimator.n_features_in_)
    if kind == "forest":
        for tree in estimator.estimators_:
            if type(tree).__name__ != "DecisionTreeClassifier" or tree.tree_.n_features != features:
                raise ValueError("one of its trees is for other inputs")
            left, right = tree.tree_.children_left, tree.tree_.children_right
            _check_tree(left, right, tree.tree_.feature, left == -1, features)
    elif kind == "boosting":
        for (predictor,) in estimator._predictors:
            nodes = predictor.nodes
            if nodes["is_categorical"].any():
                raise ValueError("one of its trees has categories")
            leaf = nodes["is_leaf"].astype(bool)
            _check_tree(nodes["left"], nodes["right"], nodes["feature_idx"], leaf, features)
    elif np.shape(estimator.coef_) != (1, features):
        raise ValueError(f"its coefficients have shape {np.shape(estimator.coef_)}")


def _check_tree(left: np.ndarray, right: np.ndarray, feature: np.ndarray, leaf: np.ndarray, features: int) -> None:
    """Every inner node leads on to later nodes of the same tree, and looks at a feature that there is."""
    place = np.arange(len(leaf))[~leaf]
    for child in (left[~leaf].astype(np.int64), right[~leaf].astype(np.int64)):
        if (child <= place).any() or (child >= len(leaf)).any():
            raise ValueError("one of its trees leads out of itself")
    if not len(leaf) or (feature[~leaf] < 0).any() or (feature[~leaf] >= features).any():
        raise ValueError("one of its trees looks at a feature that does not exist")


def _check_probes(judge: LearnedJudge, folder: Path) -> None:
    """The card's example pairs must have the probabilities written there."""
    try:
        values = np.array(judge.card["probes"]["values"], dtype=np.float64)  # None becomes NaN
        expected = np.array(judge.card["probes"]["probability"], dtype=np.float64)
        rows = pd.DataFrame(values, columns=list(judge.features.columns))
        found = judge.probability(rows.iloc[:-1], rows.iloc[1:])
        worst = float(np.abs(found - expected).max())
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the judge in {folder} does not fit its card: {' '.join(str(error).split())[:200]}"
        ) from error
    if not worst <= PROBE_TOLERANCE:
        raise ModelError(
            f"the judge in {folder} gives other probabilities than its card, by up to {worst:.2g}, perhaps under "
            f"another scikit-learn than {judge.card.get('scikit-learn')}: fit it anew"
        )
