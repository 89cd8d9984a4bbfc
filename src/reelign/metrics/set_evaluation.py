"""One folder of clips against another: set metrics, and what their takes tables say; the whole of ``reelign evaluate``.

Features of a family are extracted once and serve all of its metrics. What cannot be computed (too few clips, no model
named) is a row with its reason, next to what can. Clips that cannot be read are counted, with their reasons. What is
written, and how an earlier result is read, is in ``set_results``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from reelign.errors import ConfigError, DataError, UnknownNameError
from reelign.metrics.feature_sets import Extractor, FeatureCache, FeatureSet, extract
from reelign.metrics.paired_files import FileMean, compare_files, file_means
from reelign.metrics.score_comparison import ScoreChange, compare_scores
from reelign.metrics.set_comparison import METRICS, Options, SetDistance, compare_sets
from reelign.metrics.set_extractors import build_extractor
from reelign.selection.takes import TAKE_COLUMNS, TAKES, TakesFolder
from reelign.video_io import CLIP_SUFFIXES, find_clips

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
        paired: whether clips also pair up by file name, for PSNR and SSIM.
    """

    metrics: tuple[str, ...] = DEFAULT
    models: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: Options = field(default_factory=Options)
    device: str = "cpu"
    cache: Path | None = None
    paired: bool = False

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise UnknownNameError("set metric", name, METRICS)
        families = {METRICS[name].family for name in self.metrics}
        if unused := sorted((set(self.models) | set(self.settings)) - families):
            used = ", ".join(sorted(families)) or "none"
            raise ConfigError(f"models and options belong to families that the metrics use ({used}); got {unused[0]!r}")


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Args:
        reference, clips: the folders.
        distances: set metrics that could be computed.
        undefined: set metrics that could not, with the reason.
        scores: changes of score columns, where both folders have takes tables.
        tables: the two takes tables, for plots.
        files: PSNR and SSIM of every pair of files, where these were asked for.
        means: of them.
        left_out: columns side, file, family, reason.
        computed: features computed in this run; the rest came from the cache.
    """

    reference: str
    clips: str
    distances: tuple[SetDistance, ...]
    undefined: Mapping[str, str]
    scores: tuple[ScoreChange, ...]
    tables: tuple[pd.DataFrame, pd.DataFrame] | None
    files: pd.DataFrame | None
    means: tuple[FileMean, ...]
    left_out: pd.DataFrame
    computed: int


def evaluate(reference: Path, clips: Path, plan: Plan = Plan(), progress: Progress | None = None) -> Evaluation:
    """Compare ``clips`` with ``reference``.

    Raises:
        DataError: a folder has no clip, or nothing at all can be computed; the message has the first reason.
        ConfigError: a family needs a model and none is named, or it has no such option.
        ModelError: a model cannot be loaded; before any clip is read.
    """
    sides = {"reference": clips_of(reference), "clips": clips_of(clips)}
    report = progress or (lambda what, done, total: None)
    distances: list[SetDistance] = []
    undefined: dict[str, str] = {}
    features: dict[str, tuple[FeatureSet, FeatureSet]] = {}
    for family, extractor in _extractors(plan).items():
        try:
            features[family] = _features(extractor, sides, FeatureCache(plan.cache), report)
        except DataError as error:
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
    files = compare_files(sides["reference"], sides["clips"], partial(report, "pairs")) if plan.paired else None
    if not distances and not changes and files is None:
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
        files,
        () if files is None else tuple(file_means(files, plan.options.seed)),
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


def _extractors(plan: Plan) -> dict[str, Extractor]:
    families = dict.fromkeys(METRICS[name].family for name in plan.metrics)
    return {
        family: build_extractor(family, plan.models.get(family), plan.device, **plan.settings.get(family, {}))
        for family in families
    }


def _features(
    extractor: Extractor, sides: Mapping[str, Mapping[str, Path]], cache: FeatureCache, report: Progress
) -> tuple[FeatureSet, FeatureSet]:
    def side(name: str) -> FeatureSet:
        return extract(sides[name], extractor, cache, partial(report, f"{extractor.protocol.family}, {name}"))

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
