r"""How far apart are two sets of clips? One distance, and everything needed to know what it is worth.

Every result has the number of clips on each side (always equal), the protocol, an interval, the floor and warnings:

- **Interval.** The statistic is computed again on random halves of both sets, drawn without replacement; the spread
  of these values around their own mean is laid around the value (half-sampling; Shao and Wu 1989). A half has half the
  clips, but also half of the clips are common to all halves, and the two cancel, for degenerate statistics too. The
  ordinary bootstrap fails here: a clip drawn twice is a near copy of itself, which shifts a distance between sets
  upwards by more than the interval's width (``benchmarks/set_metrics.py`` measures both).
- **Floor.** The reference against itself, from random disjoint parts of equal size. A reference of 2N clips gives the
  floor at N; a smaller one gives it at half its size, with the distance of the two sets at that size beside it.
- **Refusals.** A Fréchet distance of fewer rows than dimensions, and comparisons of results that differ in protocol,
  reference or number of clips (``comparable``).

Run: ``compare_sets("cmmd", reference, clips)``, or ``reelign evaluate REFERENCE CLIPS``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reelign.errors import DataError, UnknownNameError
from reelign.metrics.feature_sets import FeatureProtocol, FeatureSet, FrameChoice
from reelign.metrics.frechet import Features, frechet_distance
from reelign.metrics.mmd import CUBIC, QUADRATIC, WIDE_GAUSSIAN, Kernel, clip_gram, discrepancy

VERSION = 1  # rises whenever the same clips may get another number
ENOUGH = 2048  # rows a side, below which published numbers are not comparable
LEAST = 4  # clips a side: two in a half
Rows = NDArray[np.intp]
Distance = Callable[[Rows, Rows], float]


@dataclass(frozen=True)
class SetMetric:
    """A statistic of the features of a family.

    Args:
        name: what users type.
        family: of the features.
        kernel: of the discrepancy; None for the Fréchet distance.
        published: what its published numbers were made with, for people.
        standard: a part of the protocol that published numbers have; a result without it says so.
        instead: the metric to take where there are too few clips for this one.
    """

    name: str
    family: str
    kernel: Kernel | None
    published: str
    standard: str = ""
    instead: str = ""

    @property
    def statistic(self) -> str:
        """In words."""
        if self.kernel is None:
            return "Fréchet distance, covariance over N − 1"
        estimate = "unbiased" if self.kernel.unbiased else "biased"
        return f"{estimate} MMD², {self.kernel.name}, × {self.kernel.scale:g}"


METRICS = {
    metric.name: metric
    for metric in (
        SetMetric("fvd", "i3d", None, "I3D logits, 2048 clips of 16 frames", instead="kvd"),
        SetMetric("kvd", "i3d", CUBIC, "I3D logits"),
        SetMetric("fid", "inception", None, "Inception pool3, 50,000 images", instead="kid"),
        SetMetric("kid", "inception", CUBIC, "Inception pool3, 100 subsets of 1000"),
        SetMetric("cmmd", "clip", WIDE_GAUSSIAN, "CLIP ViT-L/14 at 336 pixels", "clip-vit-large-patch14-336"),
        SetMetric("jedi", "vjepa", QUADRATIC, "V-JEPA ViT-H/16 (version 1), SSv2 probe's pooler", "vith16"),
        SetMetric("frechet_videomae", "videomae", None, "cd-fvd: VideoMAE v2, SSv2", instead="mmd_videomae"),
        SetMetric("mmd_videomae", "videomae", CUBIC, "nobody's; the unbiased companion of frechet_videomae"),
    )
}


@dataclass(frozen=True)
class Floor:
    """The reference against itself.

    Args:
        clips: on each side.
        value: mean over the splits.
        low, high: between which 95 % of the splits lie.
        distance: of the two sets with so many clips, mean over as many draws.
    """

    clips: int
    value: float
    low: float
    high: float
    distance: float


@dataclass(frozen=True)
class SetDistance:
    """One result.

    Args:
        metric: name.
        statistic: in words.
        value: the distance; an unbiased one may be below 0.
        low, high: its interval.
        clips: on each side, after making both equal.
        rows: features on each side: clips, or frames of all clips.
        length: d.
        protocol: of the features.
        reference: SHA-256 over the contents of all reference clips, drawn or not.
        floor: the reference against itself.
        options: with which it was computed.
        warnings: what a reader must know, one sentence each.
        version: of the computation.
    """

    metric: str
    statistic: str
    value: float
    low: float
    high: float
    clips: int
    rows: int
    length: int
    protocol: FeatureProtocol
    reference: str
    floor: Floor
    options: Options
    warnings: tuple[str, ...] = ()
    version: int = VERSION


@dataclass(frozen=True)
class Options:
    """How results are computed.

    Args:
        clips: at most so many on each side; as many as the smaller side has where None.
        halves: half-samples of the interval.
        splits: of the reference, for the floor.
        confidence: of the interval.
        seed: of every draw.
    """

    clips: int | None = None
    halves: int = 100
    splits: int = 20
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.halves < 2 or self.splits < 1 or not 0 < self.confidence < 1:
            raise DataError(f"at least 2 halves, 1 split, a confidence between 0 and 1 are needed; got {self}")
        if self.clips is not None and self.clips < LEAST:
            raise DataError(f"at least {LEAST} clips a side are compared; got clips={self.clips}")


def compare_sets(
    name: str,
    reference: FeatureSet,
    clips: FeatureSet,
    options: Options = Options(),
) -> SetDistance:
    """The distance of ``clips`` from ``reference``, features of one protocol.

    Raises:
        UnknownNameError: no such metric.
        DataError: two protocols, features of another family, fewer than 4 clips, or fewer rows than dimensions for a
            Fréchet distance; the message says what to take instead.
    """
    if name not in METRICS:
        raise UnknownNameError("set metric", name, METRICS)
    metric, protocol = METRICS[name], reference.protocol
    if protocol.id != clips.protocol.id or protocol.family != metric.family:
        found = f"{protocol.family} {protocol.id} and {clips.protocol.family} {clips.protocol.id}"
        raise DataError(f"{name} compares {metric.family} features of one protocol; got {found}: extract them alike")
    count = min(len(reference.values), len(clips.values), options.clips or len(clips.values))
    _refuse_too_few(metric, reference.values, count)
    random = np.random.default_rng(options.seed)
    base = random.permutation(len(reference.values))[:count]
    drawn = len(reference.values) + random.permutation(len(clips.values))[:count]
    distance = distance_of(metric, np.concatenate([reference.values, clips.values]))
    value = distance(base, drawn)
    low, high = half_sample_interval(distance, base, drawn, options, random)
    floor = reference_floor(distance, len(reference.values), drawn, options.splits, random)
    rows, length = count * reference.values.shape[1], reference.values.shape[2]
    identity = hashlib.sha256("".join(sorted(reference.hashes)).encode()).hexdigest()
    return SetDistance(
        name,
        metric.statistic,
        value,
        value + low,
        value + high,
        count,
        rows,
        length,
        protocol,
        identity,
        floor,
        options,
        tuple(_warnings(metric, reference, clips, rows, floor)),
    )


def distance_of(metric: SetMetric, pool: Features) -> Distance:
    """The metric between two lists of indices into a pool of clips [C,F,d]; kernels are computed once."""
    if metric.kernel is None:
        length = pool.shape[2]
        return lambda a, b: frechet_distance(pool[a].reshape(-1, length), pool[b].reshape(-1, length))
    kernel, gram = metric.kernel, clip_gram(pool, pool, metric.kernel)
    return lambda a, b: discrepancy(gram[np.ix_(a, a)], gram[np.ix_(b, b)], gram[np.ix_(a, b)], kernel)


def half_sample_interval(
    distance: Distance, a: Rows, b: Rows, options: Options, random: np.random.Generator
) -> tuple[float, float]:
    """Lower and upper end of the interval relative to the value, from random halves of ``a`` and of ``b``.

    Samples of m from N without replacement vary like the statistic itself at m = N/2; √(m/(N − m)) mends an odd N.
    """
    count, size = len(a), len(a) // 2
    values = np.array(
        [distance(random.permutation(a)[:size], random.permutation(b)[:size]) for _ in range(options.halves)]
    )
    around = (values - values.mean()) * np.sqrt(size / (count - size))
    tail = (1 - options.confidence) / 2
    low, high = np.quantile(around, [tail, 1 - tail])
    return float(low), float(high)


def reference_floor(distance: Distance, total: int, clips: Rows, splits: int, random: np.random.Generator) -> Floor:
    """The reference (indices below ``total``) against itself, and against ``clips``, at equal size."""
    size = min(len(clips), total // 2)
    floors, distances = [], []
    for _ in range(splits):
        order = random.permutation(total)
        floors.append(distance(order[:size], order[size : 2 * size]))
        distances.append(distance(order[:size], random.permutation(clips)[:size]))
    low, high = np.quantile(floors, [0.025, 0.975])
    return Floor(size, float(np.mean(floors)), float(low), float(high), float(np.mean(distances)))


def comparable(a: SetDistance, b: SetDistance) -> None:
    """Check that two results may be put in one table.

    Raises:
        DataError: they differ in metric, protocol, reference, or, for an estimate whose bias depends on it, clips.
    """
    kernel = METRICS[a.metric].kernel
    facts: list[tuple[str, Any, Any]] = [
        ("metric", a.metric, b.metric),
        ("statistic", (a.statistic, a.version), (b.statistic, b.version)),
        ("feature protocol", a.protocol.id, b.protocol.id),
        ("reference", a.reference[:12], b.reference[:12]),
    ]
    if kernel is None or not kernel.unbiased:
        facts.append(("number of clips", a.clips, b.clips))
    for what, left, right in facts:
        if left != right:
            raise DataError(f"results of another {what} are not comparable; got {left} and {right}: compute both alike")


def _refuse_too_few(metric: SetMetric, values: Features, count: int) -> None:
    if count < LEAST:
        raise DataError(f"{metric.name} needs at least {LEAST} clips a side; got {count}: add clips")
    rows, length = count * values.shape[1], values.shape[2]
    if metric.kernel is None and rows < length:
        raise DataError(
            f"{metric.name} needs at least as many features a side as they are long, {length}; got {rows}: "
            f"take {metric.instead}, which is unbiased at any number, or add clips"
        )


def _warnings(metric: SetMetric, reference: FeatureSet, clips: FeatureSet, rows: int, floor: Floor) -> list[str]:
    found = []
    model = reference.protocol.model
    if rows < ENOUGH:
        found.append(f"{rows} rows a side; published numbers have at least {ENOUGH}")
    if floor.distance <= floor.high:
        found.append("not told apart from the reference against itself")
    if len(clips.values) != len(reference.values):
        found.append(f"sides of {len(reference.values)} and {len(clips.values)} clips were made equal by a seeded draw")
    if shared := len(set(reference.hashes) & set(clips.hashes)):
        found.append(f"{shared} clips are on both sides")
    for side, which in ((reference, "reference"), (clips, "clips")):
        if twice := len(side.hashes) - len(set(side.hashes)):
            found.append(f"{twice} of the {which} are copies of others")
        if side.failed:
            found.append(f"{len(side.failed)} of the {which} gave no features")
    if model.startswith("zoo:"):
        found.append(f"{model} has only seen moving shapes; on other clips it ranks little")
    if metric.standard and metric.standard not in model:
        found.append(f"not the published {metric.name}, which takes {metric.published}")
    return found


def from_json(found: Mapping[str, Any]) -> SetDistance:
    """A result as ``dataclasses.asdict`` and JSON left it.

    Raises:
        DataError: it is not one, or of another version of this computation.
    """
    facts = {key: value for key, value in found.items() if key in SetDistance.__dataclass_fields__}
    try:
        protocol = {**facts["protocol"], "frames": FrameChoice(**facts["protocol"]["frames"])}
        facts["protocol"] = FeatureProtocol(**{**protocol, "resolution": tuple(protocol["resolution"])})
        facts["floor"], facts["options"] = Floor(**facts["floor"]), Options(**facts["options"])
        return SetDistance(**{**facts, "warnings": tuple(facts["warnings"])})
    except (KeyError, TypeError) as error:
        raise DataError(f"an earlier result has the fields of this version, not {error}: compute it again") from error
