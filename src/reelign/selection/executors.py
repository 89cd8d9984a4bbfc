"""Where scoring runs: in this process, in a pool of processes, or on Ray Data. The rows are the same, byte for byte.

Each worker builds the metrics once and then scores whole clips, so that paths travel and pixels do not. Results come
back in the order of the jobs, a few of which are under way at a time. A clip that kills its process (a broken decoder,
no memory) is tried once more alone, and then is a row with that reason.

Ray Data (``pip install reelign[ray]``) joins the cluster of ``RAY_ADDRESS`` or starts one on this machine. Clips must
lie where every node sees them under the same path.

Run: ``reelign score takes/ --on ray``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import cv2

from reelign.errors import ConfigError
from reelign.selection.scoring import Build, ClipScorer, Executor, Job, Rows, failed_rows

AHEAD = 4  # jobs under way a worker
BLOCK = 16  # jobs a block of Ray Data
KILLED = "the process that scored this clip died, twice: it crashes its decoder or needs more memory than there is"
PLACES = ("here", "pool", "ray")


def executor(place: str, workers: int | None = None, gpus: float = 0.0) -> Executor:
    """An executor by name.

    Args:
        place: ``here``, ``pool`` or ``ray``.
        workers: processes; None is one a core (on Ray, one a core of the cluster).
        gpus: share of a GPU that a worker on Ray reserves.

    Raises:
        ConfigError: another name, less than one worker, or Ray is not installed.
    """
    if place not in PLACES:
        raise ConfigError(f"scoring runs on one of {', '.join(PLACES)}; got {place!r}")
    if workers is not None and workers < 1:
        raise ConfigError(f"scoring needs at least 1 worker; got {workers}")
    if place == "here":
        return score_here
    if place == "pool":
        return partial(score_in_pool, workers=workers or os.cpu_count() or 1)
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ConfigError("scoring on Ray needs Ray: pip install 'reelign[ray]', or use --on pool") from error
    return partial(score_on_ray, workers=workers, gpus=gpus)


def score_here(jobs: Sequence[Job], build: Build, strict: bool) -> Iterator[Rows]:
    """Score in this process."""
    score = ClipScorer(build(), strict)
    for job in jobs:
        yield score(job)


_scorer: ClipScorer | None = None  # of a worker process


def _start_worker(build: Build, strict: bool) -> None:
    global _scorer
    _one_thread()
    _scorer = ClipScorer(build(), strict)


def _score(job: Job) -> Rows:
    assert _scorer is not None
    return _scorer(job)


def _one_thread() -> None:
    """Workers are the parallelism; threads inside them would only wait for each other."""
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def score_in_pool(jobs: Sequence[Job], build: Build, strict: bool, workers: int) -> Iterator[Rows]:
    """Score in a pool of processes, in order.

    Args:
        workers: processes.
    """
    done = 0
    while done < len(jobs):
        for rows in _until_broken(jobs[done:], build, strict, workers):
            yield rows
            done += 1
        suspects = jobs[done : done + AHEAD * workers]  # those under way when a process died; none at the end
        for job in suspects:
            yield _alone(job, build, strict)
        done += len(suspects)


def _until_broken(jobs: Sequence[Job], build: Build, strict: bool, workers: int) -> Iterator[Rows]:
    """Rows in order, up to the first that a process died over."""
    under_way: deque[Future[Rows]] = deque()
    with _pool(build, strict, min(workers, len(jobs))) as pool, suppress(BrokenProcessPool):
        for job in jobs:
            under_way.append(pool.submit(_score, job))
            if len(under_way) == AHEAD * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _pool(build: Build, strict: bool, workers: int) -> ProcessPoolExecutor:
    # Forking a process that has used torch or OpenCV threads may deadlock.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(build, strict))


def _alone(job: Job, build: Build, strict: bool) -> Rows:
    with _pool(build, strict, 1) as pool:
        try:
            return pool.submit(_score, job).result()
        except BrokenProcessPool:
            return failed_rows(job, build(), KILLED)


class RayWorker:
    """What an actor of Ray Data holds: metrics, built once.

    Args:
        build: makes the scorers.
        strict: as in ``score_takes``.
    """

    def __init__(self, build: Build, strict: bool) -> None:
        _one_thread()
        self.score = ClipScorer(build(), strict)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A job in, its rows out, both as JSON, which keeps every bit of a float."""
        job = json.loads(row["job"])
        return {"rows": json.dumps(self.score(Job(**{**job, "missing": tuple(job["missing"])})))}


def score_on_ray(
    jobs: Sequence[Job], build: Build, strict: bool, workers: int | None = None, gpus: float = 0.0
) -> Iterator[Rows]:
    """Score on Ray Data, in order.

    Args:
        workers: actors; None is one a core of the cluster.
        gpus: share of a GPU each reserves.
    """
    import ray

    if not jobs:
        return
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    actors = min(workers or int(ray.cluster_resources().get("CPU", 1)), len(jobs))
    items = [{"job": json.dumps(asdict(job))} for job in jobs]
    scored = ray.data.from_items(items, override_num_blocks=max(actors, -(-len(items) // BLOCK))).map(
        RayWorker,
        fn_constructor_args=(build, strict),
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=gpus,
    )
    for row in scored.iter_rows():
        yield [tuple(values) for values in json.loads(row["rows"])]
