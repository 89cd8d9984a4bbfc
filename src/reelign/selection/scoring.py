"""Score the clips of a takes folder: whatever is missing is computed, once, and appended as it comes.

A clip is decoded once and every frame goes to all metrics (``metrics/clip.py``); rewards are metrics too
(``metrics/reward_metric.py``). Each value is a row of the scores table. A clip that cannot be read gives rows with
status ``error`` and the reason, a metric that does not apply one with ``undefined``: never a zero, and never the end of
the run. What is there already is not computed again, so a run that was killed goes on where it stopped, at most
``SHARD`` clips back.

The executors (``executors.py``) do the same work in this process, in a pool of processes or on Ray, and append the same
rows in the same parts, byte for byte.

Run: ``reelign score takes/``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import pandas as pd

from reelign.errors import ConfigError, NonFiniteError, ReelignError, RunFolderError
from reelign.metrics.clip import Accumulator, ClipInfo, ClipMetric, Frame, MetricCard, Undefined
from reelign.selection.takes import SCORE_COLUMNS, TakesFolder
from reelign.video_decode import FrameStream
from reelign.video_io import replacing

SHARD = 64  # clips a part of the scores table
# What a clip can do to a metric: too small for its kernel, too large for the memory. Anything else is a bug in the
# metric, which would repeat on every clip, and keeps its traceback.
CLIP_FAULTS = (ReelignError, RuntimeError, ValueError, MemoryError, cv2.error)
Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Scorer:
    """A metric as it was asked for.

    Args:
        metric: ready to use.
        parameters: its options as JSON with sorted keys; part of the key of a score.
    """

    metric: ClipMetric
    parameters: str = "{}"

    def prompt(self, prompt: str) -> str:
        """The prompt as part of a score's key: empty where the metric does not look at it."""
        return prompt if self.metric.card.needs_prompt else ""


@dataclass(frozen=True)
class Job:
    """One clip to score.

    Args:
        take: its content hash.
        path: where it is.
        prompt: what it answers.
        missing: which scorers, by position.
    """

    take: str
    path: str
    prompt: str
    missing: tuple[int, ...]


Build = Callable[[], Sequence[Scorer]]
Executor = Callable[[Sequence[Job], Build, bool], Iterator[Rows]]


class Once:
    """A builder that builds once in each process: models are large, and a score needs them once.

    Args:
        build: makes the scorers. What it made does not travel to other processes.
    """

    def __init__(self, build: Build) -> None:
        self.build = build
        self._made: Sequence[Scorer] | None = None

    def __call__(self) -> Sequence[Scorer]:
        """The scorers, made at the first call."""
        if self._made is None:
            self._made = self.build()
        return self._made

    def __reduce__(self) -> tuple[type[Once], tuple[Build]]:
        return Once, (self.build,)


def columns_of(scorers: Iterable[Scorer]) -> list[str]:
    """The names of all values that these give."""
    return [column for scorer in scorers for column in scorer.metric.card.values]


def score_takes(
    takes: TakesFolder,
    build: Build,
    execute: Executor,
    *,
    strict: bool = True,
    retry: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Compute what is missing.

    Args:
        takes: the folder.
        build: makes the scorers; called once here and once in every worker, so it must pickle.
        execute: from ``executors``: jobs to their rows, in order.
        strict: whether a damaged clip is an error; if not, what decodes is scored, with the damage as reason.
        retry: compute scores again that ended in an error.
        progress: called with clips done and clips to do, first with 0.

    Returns:
        How many clips were scored.

    Raises:
        ConfigError: two metrics give a column of the same name.
    """
    scorers = list(build())
    check_columns([scorer.metric.card for scorer in scorers])
    jobs = plan(takes, scorers, retry=retry)
    report = progress or (lambda done, total: None)
    report(0, len(jobs))
    waiting: Rows = []
    for done, rows in enumerate(execute(jobs, build, strict), 1):
        waiting += rows
        if done % SHARD == 0 or done == len(jobs):
            takes.append_scores(pd.DataFrame(waiting, columns=list(SCORE_COLUMNS)))
            waiting = []
        report(done, len(jobs))
    return len(jobs)


def plan(takes: TakesFolder, scorers: Sequence[Scorer], *, retry: bool = False) -> list[Job]:
    """The clips that lack a score, in the order of the table; of equal files with equal prompts, one."""
    scores = takes.scores()
    if retry:
        scores = scores[scores["status"] != "error"]
    known = set(zip(*(scores[name] for name in KEY), strict=True))
    jobs: dict[tuple[str, str], Job] = {}
    for take, file, prompt in takes.takes()[["take", "file", "prompt"]].itertuples(index=False):
        missing = tuple(i for i, scorer in enumerate(scorers) if not _keys(take, prompt, scorer) <= known)
        if missing:
            jobs.setdefault((take, prompt), Job(take, str(takes.locate(file)), prompt, missing))
    return list(jobs.values())


KEY = ["take", "metric", "version", "parameters", "prompt"]


def _keys(take: str, prompt: str, scorer: Scorer) -> set[tuple[Any, ...]]:
    card = scorer.metric.card
    return {(take, name, card.version, scorer.parameters, scorer.prompt(prompt)) for name in card.values}


def check_columns(cards: Iterable[MetricCard]) -> None:
    """Refuse two metrics that give one column.

    Raises:
        ConfigError: naming both.
    """
    owner: dict[str, str] = {}
    for card in cards:
        for column in card.values:
            if column in owner:
                raise ConfigError(f"each column has one metric; {owner[column]} and {card.name} both give {column!r}")
            owner[column] = card.name
    if not owner:
        raise ConfigError("scoring needs at least one metric or reward; got none")


@runtime_checkable
class _Capped(Protocol):
    """A metric that sees only the first frames of a long clip."""

    max_frames: int


@dataclass
class _Running:
    """One metric on one clip: its accumulator, or why it stopped."""

    scorer: Scorer
    state: Accumulator
    failed: str = ""

    def add(self, frame: Frame) -> None:
        if not self.failed:
            try:
                self.state.add(frame)
            except CLIP_FAULTS as error:
                self.failed = one_line(error)

    def finish(self) -> Mapping[str, float | str | Undefined]:
        """Value, reason of failure, or Undefined, by column."""
        columns = self.scorer.metric.card.values
        if self.failed:
            return dict.fromkeys(columns, self.failed)
        try:
            found = self.state.finish()
            return {column: _finite(found[column]) for column in columns}
        except Undefined as reason:
            return dict.fromkeys(columns, reason)
        except CLIP_FAULTS as error:
            return dict.fromkeys(columns, one_line(error))

    def note(self, frames: int) -> str:
        metric = self.scorer.metric
        if isinstance(metric, _Capped) and frames > metric.max_frames:
            return f"only the first {metric.max_frames} of {frames} frames were scored"
        return ""


@dataclass
class ClipScorer:
    """Scores clips, one after the other, with metrics that are built once.

    Args:
        scorers: metrics with their parameters.
        strict: as in ``score_takes``.
    """

    scorers: Sequence[Scorer]
    strict: bool = True
    _running: list[_Running] = field(default_factory=list, repr=False)

    def __call__(self, job: Job) -> Rows:
        """A row a value, as in ``SCORE_COLUMNS``."""
        chosen = [self.scorers[i] for i in job.missing]
        stream = FrameStream(job.path, eight_bits=True)
        try:
            running = self._look(stream, chosen, job.prompt)
            stream.check(strict=self.strict)
        except CLIP_FAULTS as error:
            return failed_rows(job, self.scorers, one_line(error).removeprefix(f"{job.path}: "))
        rows: Rows = []
        for one in running:
            notes = [*stream.notes(), *filter(None, [one.note(stream.count)])]
            for column, value in one.finish().items():
                rows.append(_row(job, one.scorer, column, value, "; ".join(notes)))
        return rows

    def _look(self, stream: FrameStream, chosen: Sequence[Scorer], prompt: str) -> list[_Running]:
        running: list[_Running] = []
        for index, rgb in enumerate(stream):
            if not running:
                info = ClipInfo(stream.stated_fps, rgb.shape[0], rgb.shape[1], prompt)
                running = [_Running(scorer, scorer.metric.start(info)) for scorer in chosen]
            frame = Frame(index, rgb.astype("uint8", copy=False))
            for one in running:
                one.add(frame)
        return running


def failed_rows(job: Job, scorers: Sequence[Scorer], reason: str) -> Rows:
    """An error row for every value that the job was to give."""
    chosen = [scorers[i] for i in job.missing]
    return [_row(job, scorer, column, reason) for scorer in chosen for column in scorer.metric.card.values]


def _row(job: Job, scorer: Scorer, column: str, value: float | str | Undefined, notes: str = "") -> tuple[Any, ...]:
    key = (job.take, column, scorer.metric.card.version, scorer.parameters, scorer.prompt(job.prompt))
    if isinstance(value, Undefined):
        return (*key, None, "undefined", str(value))
    if isinstance(value, str):
        return (*key, None, "error", value)
    return (*key, value, "ok", notes)


def _finite(value: float) -> float:
    number = float(value)
    if not abs(number) < float("inf"):
        raise NonFiniteError(f"a score is a finite number; got {number}")
    return number


def one_line(error: BaseException) -> str:
    """An error of a clip as one line, with its type where it is not one of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ReelignError) else f"{type(error).__name__}: {text}"


def scored_table(takes: TakesFolder, columns: Sequence[str]) -> pd.DataFrame:
    """One row a clip: ``file``, ``prompt``, ``group``, ``status``, ``reason`` and the values.

    ``status`` is ``error`` where any value failed, else ``undefined`` where any does not apply, else ``ok``.

    Args:
        columns: names of values; NaN where there is none.
    """
    wide, scores = takes.wide(columns), takes.current_scores()
    scores = scores[scores["metric"].isin(columns)]
    told = {key: _in_one(rows, len(columns)) for key, rows in scores.groupby(["take", "prompt"])}
    summary = [told[key] for key in zip(wide["take"], wide["prompt"], strict=True)]
    facts = wide[["file", "prompt", "group"]].assign(status=[s for s, _ in summary], reason=[r for _, r in summary])
    return pd.concat([facts, wide[list(columns)]], axis=1).sort_values("file", ignore_index=True)


def _in_one(rows: pd.DataFrame, columns: int) -> tuple[str, str]:
    """Status and reason of one clip; what is said of every column is said once, the rest with the columns' names."""
    names: dict[str, list[str]] = {}
    for metric, reason in zip(rows["metric"], rows["reason"], strict=True):
        names.setdefault(reason, []).append(metric)
    names.pop("", None)
    lines = [reason if len(of) == columns else f"{', '.join(of)}: {reason}" for reason, of in names.items()]
    status = next((one for one in ("error", "undefined") if (rows["status"] == one).any()), "ok")
    return status, "; ".join(lines)


def check_writable(path: str | Path) -> None:
    """Make the folder of ``path`` and make sure that a table can be written there, before hours of work.

    Raises:
        RunFolderError: it cannot.
    """
    for table in _tables(path):
        if table.is_dir():
            raise RunFolderError(f"a table of scores is a file; {table} is a folder: choose another name")
        probe = table.with_name(f".{table.name}.probe")
        with replacing(probe) as part:
            part.touch()
        probe.unlink()


def write_scores(frame: pd.DataFrame, path: str | Path) -> tuple[Path, Path]:
    """Write a table as Parquet, and as CSV next to it; both appear only when both are complete.

    Args:
        frame: any table.
        path: with or without ``.parquet`` or ``.csv``; a table that is there is replaced.

    Returns:
        The two paths, Parquet first.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    parquet, table = _tables(path)
    with replacing(parquet) as parquet_part, replacing(table) as table_part:
        frame.to_parquet(parquet_part, index=False)
        frame.to_csv(table_part, index=False)
    return parquet, table


def _tables(path: str | Path) -> tuple[Path, Path]:
    path = Path(path)
    stem = path.stem if path.suffix in (".parquet", ".csv") else path.name
    return path.with_name(f"{stem}.parquet"), path.with_name(f"{stem}.csv")
