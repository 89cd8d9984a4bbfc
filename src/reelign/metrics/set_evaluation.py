"""One folder of clips against another: set metrics, and what their takes tables say; the whole of ``reelign evaluate``.

Features of a family are extracted once and serve all of its metrics. What cannot be computed (too few clips, no model
named) is a row with its reason, next to what can. Clips that cannot be read are counted, with their reasons.

Files: ``evaluation.json`` (everything), ``evaluation.csv`` (a row a number), ``left_out.csv`` (clips without features).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from reelign import __version__
from reelign.errors import ConfigError, DataError, UnknownNameError
from reelign.metrics.feature_sets import FeatureCache, FeatureSet, extract
from reelign.metrics.score_comparison import ScoreChange, compare_scores
from reelign.metrics.set_comparison import METRICS, Options, SetDistance, comparable, compare_sets, from_json
from reelign.metrics.set_extractors import build_extractor
from reelign.selection.takes import TAKE_COLUMNS, TAKES, TakesFolder
from reelign.video_io import CLIP_SUFFIXES, find_clips, replacing

DEFAULT = ("frechet_videomae", "mmd_videomae", "cmmd")  # those whose models ship with the package
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What to compute.

    Args:
        metrics: of ``METRICS``; may be empty where takes tables are compared.
        models: feature family to model, where not its own.
        settings: feature family to further options of its extractor: ``frames``, ``way``.
        options: of the comparison.
        device: where networks run.
        cache: of features; None keeps none.
    """

    metrics: tuple[str, ...] = DEFAULT
    models: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: Options = field(default_factory=Options)
    device: str = "cpu"
    cache: Path | None = None

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise UnknownNameError("set metric", name, METRICS)
        families = {METRICS[name].family for name in self.metrics}
        if unused := sorted(set(self.models) - families):
            used = ", ".join(sorted(families)) or "no family"
            raise ConfigError(f"a model is named for a family that the metrics use ({used}); got {', '.join(unused)}")


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Args:
        reference, clips: the folders.
        distances: set metrics that could be computed.
        undefined: set metrics that could not, with the reason.
        scores: changes of score columns, where both folders have takes tables.
        tables: the two takes tables, for plots.
        left_out: columns side, file, family, reason.
        computed: features computed in this run; the rest came from the cache.
    """

    reference: str
    clips: str
    distances: tuple[SetDistance, ...]
    undefined: Mapping[str, str]
    scores: tuple[ScoreChange, ...]
    tables: tuple[pd.DataFrame, pd.DataFrame] | None
    left_out: pd.DataFrame
    computed: int


def evaluate(reference: Path, clips: Path, plan: Plan = Plan(), progress: Progress | None = None) -> Evaluation:
    """Compare ``clips`` with ``reference``.

    Raises:
        DataError: a folder has no clip, or nothing at all can be computed; the message has the first reason.
    """
    sides = {"reference": clips_of(reference), "clips": clips_of(clips)}
    report = progress or (lambda what, done, total: None)
    distances: list[SetDistance] = []
    undefined: dict[str, str] = {}
    features: dict[str, tuple[FeatureSet, FeatureSet]] = {}
    for family in dict.fromkeys(METRICS[name].family for name in plan.metrics):
        try:
            features[family] = _features(family, sides, plan, report)
        except (DataError, ConfigError) as error:
            undefined |= {name: str(error) for name in plan.metrics if METRICS[name].family == family}
    for name in plan.metrics:
        if (family := METRICS[name].family) not in features:
            continue
        try:
            distances.append(compare_sets(name, *features[family], plan.options))
        except DataError as error:
            undefined[name] = str(error)
    tables = takes_tables(reference, clips)
    changes = () if tables is None else tuple(_score_changes(reference, clips, *tables))
    if not distances and not changes:
        reason = next(iter(undefined.values()), "no metric was asked for, and not both folders have a takes table")
        raise DataError(f"nothing to compare: {reason}")
    left_out = [
        (side, file, family, reason)
        for family, pair in features.items()
        for side, found in zip(sides, pair, strict=True)
        for file, reason in found.failed.items()
    ]
    return Evaluation(
        str(reference),
        str(clips),
        tuple(distances),
        undefined,
        changes,
        tables,
        pd.DataFrame(left_out, columns=["side", "file", "family", "reason"]),
        sum(found.computed for pair in features.values() for found in pair),
    )


def clips_of(folder: Path) -> dict[str, Path]:
    """Name to file of every clip: those of its takes table where there is one, else all that lie in the folder.

    Raises:
        DataError: there is none.
    """
    if (folder / TAKES).is_dir():
        takes = TakesFolder(folder)
        found = {file: takes.locate(file) for file in takes.takes()["file"]}
    else:
        found = {path.relative_to(folder).as_posix(): path for path in find_clips(folder)}
    if not found:
        raise DataError(f"a folder to evaluate holds clips ({', '.join(CLIP_SUFFIXES)}); {folder} has none")
    return found


def takes_tables(reference: Path, clips: Path) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Both takes tables with their scores, or None where a folder has none."""
    if not all((folder / TAKES).is_dir() for folder in (reference, clips)):
        return None
    return TakesFolder(reference).wide(), TakesFolder(clips).wide()


def save(evaluation: Evaluation, out: Path) -> list[Path]:
    """Write ``evaluation.json``, ``evaluation.csv`` and ``left_out.csv``, each whole or not at all.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    paths = [out / name for name in ("evaluation.json", "evaluation.csv", "left_out.csv")]
    with replacing(paths[0]) as part:
        part.write_text(json.dumps(as_json(evaluation), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    with replacing(paths[1]) as part:
        as_table(evaluation).to_csv(part, index=False)
    with replacing(paths[2]) as part:
        evaluation.left_out.to_csv(part, index=False)
    return paths


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Everything but the takes tables, in plain types; what is undefined is null."""
    distances = [{**asdict(d), "protocol_id": d.protocol.id} for d in evaluation.distances]
    scores = [{key: _plain(value) for key, value in asdict(change).items()} for change in evaluation.scores]
    return {
        "reelign": __version__,
        "reference": evaluation.reference,
        "clips": evaluation.clips,
        "distances": distances,
        "undefined": dict(evaluation.undefined),
        "scores": scores,
        "left_out": evaluation.left_out.to_dict("records"),
    }


def as_table(evaluation: Evaluation) -> pd.DataFrame:
    """One row a number: kind, name, value, low, high, clips, floor, protocol, and what to know."""
    rows: list[dict[str, Any]] = [
        {
            "kind": "set",
            "name": d.metric,
            "value": d.value,
            "low": d.low,
            "high": d.high,
            "clips": d.clips,
            "floor": d.floor.value,
            "floor_clips": d.floor.clips,
            "protocol": d.protocol.id,
            "note": "; ".join(d.warnings),
        }
        for d in evaluation.distances
    ]
    rows += [{"kind": "undefined", "name": name, "note": reason} for name, reason in evaluation.undefined.items()]
    rows += [
        {
            "kind": change.kind,
            "name": change.metric,
            "value": change.delta,
            "low": change.low,
            "high": change.high,
            "clips": min(change.n_before, change.n_after),
            "note": change.reason,
        }
        for change in evaluation.scores
    ]
    columns = ("kind", "name", "value", "low", "high", "clips", "floor", "floor_clips", "protocol", "note")
    return pd.DataFrame(rows, columns=columns)


def against(evaluation: Evaluation, earlier: Path) -> list[tuple[SetDistance, SetDistance | None, str]]:
    """Each set metric beside its value in an earlier ``evaluation.json``.

    Returns:
        The distance, the earlier one where the two are comparable, and the reason where they are not.

    Raises:
        DataError: the file is not one that ``save`` wrote.
    """
    try:
        found = json.loads(earlier.read_text(encoding="utf-8"))["distances"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"an earlier evaluation is a file evaluation.json; cannot read {earlier}: {error}") from error
    known = {distance.metric: distance for distance in map(from_json, found)}
    rows: list[tuple[SetDistance, SetDistance | None, str]] = []
    for distance in evaluation.distances:
        if distance.metric not in known:
            rows.append((distance, None, "the earlier evaluation has no such metric"))
            continue
        try:
            comparable(distance, known[distance.metric])
            rows.append((distance, known[distance.metric], ""))
        except DataError as error:
            rows.append((distance, None, str(error)))
    return rows


def _features(
    family: str, sides: Mapping[str, Mapping[str, Path]], plan: Plan, report: Progress
) -> tuple[FeatureSet, FeatureSet]:
    extractor = build_extractor(family, plan.models.get(family), plan.device, **plan.settings.get(family, {}))
    cache = FeatureCache(plan.cache)

    def side(name: str) -> FeatureSet:
        return extract(sides[name], extractor, cache, partial(report, f"{family}, {name}"))

    return side("reference"), side("clips")


def _score_changes(reference: Path, clips: Path, before: pd.DataFrame, after: pd.DataFrame) -> Sequence[ScoreChange]:
    names = [name for name in dict.fromkeys((*before.columns, *after.columns)) if name not in TAKE_COLUMNS]
    settings = [_settings(TakesFolder(folder)) for folder in (reference, clips)]
    refused = {
        name: f"computed as {settings[0][name]} and as {settings[1][name]}: score both folders alike"
        for name in names
        if name in settings[0] and name in settings[1] and settings[0][name] != settings[1][name]
    }
    return compare_scores(before, after, names, refused)


def _settings(folder: TakesFolder) -> dict[str, str]:
    """Metric to the version and parameters its scores were computed with."""
    scores = folder.current_scores().drop_duplicates("metric")
    return {row.metric: f"version {row.version} {row.parameters}".strip() for row in scores.itertuples()}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
