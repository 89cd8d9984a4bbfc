r"""How good a translation of clips is: close to the known answer, steady, reversible, and like the target domain.

- **PSNR, SSIM** to the known translation, where there is one (``full_reference``; PSNR over all frames of a clip).
- **Warping error**: does what is drawn move as the source moves? With B_t the flow of the *source* from frame t to
  t − 1, and V the translated clip,

      E = mean_t mean_{x ∈ M_t} |V_t(x) − V_{t−1}(x + B_t(x))|        in grey levels of 255, over RGB

  M_t holds the pixels at which forward and backward flow of the source agree (``flow``: DIS at short side 256,
  Sundaram et al. 2010), so what appears or disappears does not count; pairs of frames with under 10 % such pixels are
  left out. After Lai et al. 2018 (Learning Blind Video Temporal Consistency, section 4), who square, use FlowNet2 and
  mask motion boundaries too. A blank clip has no error and a frozen one little: read it beside PSNR. The source's own
  is what the flow gets wrong.
- **Cycle error**: mean |G_X(G_Y(x)) − x|, in grey levels.
- **Sets**: distance of translated clips from real ones of the target, on the features of small networks that ship with
  the package: Fréchet and CMMD on CLIP's of single frames, MMD on VideoMAE's of clips, with half-sample intervals and
  the distance of real clips from real ones (``set_comparison``).

Left out: what a viewer thinks (``reelign review``); larger networks (``reelign evaluate --model``).

Run: ``examine_translation(generator, domains)``; a training run does so at each evaluation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from reelign.datasets.translation import SIDES, Domains, Side
from reelign.errors import DataError
from reelign.metrics.clip import SMALL, Picture, Undefined
from reelign.metrics.feature_sets import Extractor
from reelign.metrics.flicker import absolute_difference
from reelign.metrics.flow import SHORTEST, TRUSTED, Field, Mask, consistent, dis_flow, warp
from reelign.metrics.frechet import Features
from reelign.metrics.full_reference import compare
from reelign.metrics.set_comparison import (
    LEAST,
    METRICS,
    Options,
    SetMetric,
    distance_of,
    half_sample_interval,
    reference_floor,
)
from reelign.metrics.set_extractors import build_extractor
from reelign.video_io import to_pictures

SET_METRICS = (
    SetMetric("frechet_clip", "clip", None, "nobody's; FID's distance on the features of CMMD"),
    METRICS["cmmd"],
    METRICS["mmd_videomae"],
)
CLIP_MEASURES = ("psnr", "ssim", "warping_error", "cycle_error")
HIGHER_IS_BETTER = ("psnr", "ssim")
WHOLLY = 0.99  # of a pixel that must be trusted where flow was found at another size


class Translates(Protocol):
    """What is examined: anything that takes clips of one domain to the other."""

    def translate(self, video: Tensor, to: Side) -> tuple[Tensor, Any]:
        """Clips [B,T,3,H,W] in [0,1] of the other domain to ``to``, of the same shape; the second part is not used."""
        ...


@dataclass(frozen=True)
class ExamPlan:
    """What is looked at.

    Args:
        clips: in each direction, at least 4.
        batch: clips at a time.
        to: directions, by the domain they end in.
        seed: of the clips; the same clips come at every examination.
        models: feature family to model, where not the package's own.
    """

    clips: int = 32
    batch: int = 8
    to: tuple[Side, ...] = ("y", "x")
    seed: int = 1_000
    models: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.clips < LEAST or self.batch < 1 or not self.to or set(self.to) - set(SIDES):
            raise DataError(f"at least {LEAST} clips, a batch of 1 and directions among x and y are needed; got {self}")


@dataclass(frozen=True)
class Examined:
    """One translated clip; all clips float32 [T,3,H,W] in [0,1].

    Args:
        to: the domain it was translated to.
        index: of the clip in its direction.
        source, translated, cycled: the clip, its translation, and that brought back.
        truth: the known translation, or None.
        scores: its measures; one that does not apply is not among them.
    """

    to: Side
    index: int
    source: Tensor
    translated: Tensor
    cycled: Tensor
    truth: Tensor | None
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Distance:
    """How far translated clips are from real ones of the target.

    Args:
        to: the target.
        metric: of ``SET_METRICS``.
        value, low, high: the distance and its 95 % interval.
        floor: distance of real clips from as many other real ones, mean over splits.
        clips: on each side.
    """

    to: Side
    metric: str
    value: float
    low: float
    high: float
    floor: float
    clips: int


@dataclass(frozen=True)
class TranslationScores:
    """All that an examination found.

    Args:
        rows: one a clip: ``to``, ``index`` and its measures.
        distances: one a direction and set metric that applies.
        skipped: set metrics that do not apply, with the reason.
    """

    rows: list[dict[str, Any]]
    distances: list[Distance]
    skipped: Mapping[str, str]

    def mean(self, measure: str, to: Side = "y") -> float:
        """Mean of a measure over the clips of one direction; NaN where none has it."""
        values = [row[measure] for row in self.rows if row["to"] == to and measure in row]
        return float(np.mean(values)) if values else math.nan


@dataclass(frozen=True)
class Motion:
    """How a source moves between two frames, in its own pixels.

    Args:
        flow: float32 [H,W,2], from the later frame to the earlier.
        trusted: bool [H,W], where it can be believed.
    """

    flow: Field
    trusted: Mask


def source_motion(source: Sequence[Picture]) -> list[Motion]:
    """The motion of a clip from each frame but the first to the one before; uint8 [H,W,3] each.

    Raises:
        Undefined: the pictures are under 32 pixels on their short side.
    """
    height, width = source[0].shape[:2]
    if min(height, width) < SHORTEST:
        raise Undefined(f"a warping error needs at least {SHORTEST} pixels a side; got {width}×{height}")
    scale = SMALL / min(height, width)
    size = (round(width * scale), round(height * scale))
    how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    grey = [cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), size, interpolation=how) for picture in source]
    return [_motion(earlier, later, (width, height)) for earlier, later in itertools.pairwise(grey)]


def _motion(earlier: Picture, later: Picture, size: tuple[int, int]) -> Motion:
    backward, forward = dis_flow(later, earlier), dis_flow(earlier, later)
    ratio = np.array([size[0] / later.shape[1], size[1] / later.shape[0]], np.float32)
    how = cv2.INTER_AREA if ratio[0] < 1 else cv2.INTER_LINEAR
    trusted = cv2.resize(consistent(backward, forward).astype(np.float32), size, interpolation=how) > WHOLLY
    return Motion(cv2.resize(backward, size, interpolation=how) * ratio, trusted)


def warping_error(motion: Sequence[Motion], clip: Sequence[Picture]) -> float:
    """E of the module, in grey levels of 255: 0 where ``clip`` moves exactly as its source.

    Args:
        motion: of the source, from ``source_motion``.
        clip: uint8 [H,W,3] each, of the source's size and one more than ``motion``.

    Raises:
        DataError: the clip is of another length or size than the source.
        Undefined: nowhere can the flow be trusted, or there is one frame only.
    """
    if len(clip) != len(motion) + 1 or any(m.trusted.shape != clip[0].shape[:2] for m in motion):
        raise DataError(
            f"a warping error is of a clip as long and large as its source, {len(motion) + 1} frames; got "
            f"{len(clip)} of {clip[0].shape[1]}×{clip[0].shape[0]}"
        )
    errors = []
    for step, (earlier, later) in zip(motion, itertools.pairwise(clip), strict=True):
        if step.trusted.mean() >= TRUSTED:
            moved = warp(earlier.astype(np.float32), step.flow)
            errors.append(float(np.abs(later - moved)[step.trusted].mean(dtype=np.float64)))
    if not errors:
        raise Undefined("a warping error needs two frames whose flow can be trusted; this clip has none")
    return float(np.mean(errors))


def cycle_error(source: Sequence[Picture], cycled: Sequence[Picture]) -> float:
    """Mean |cycled − source| over pixels, channels and frames, in grey levels of 255."""
    return float(np.mean([absolute_difference(a, b) for a, b in zip(source, cycled, strict=True)]))


def fidelity(truth: Sequence[Picture], clip: Sequence[Picture]) -> dict[str, float]:
    """``psnr`` in dB over all frames and ``ssim``, mean over frames, to the known answer.

    A clip that equals it has no PSNR; it gets that of one value which is one grey level off, the highest there is.
    """
    found = compare(truth, clip)
    psnr, ssim = found["psnr_pooled"], found["ssim"]
    assert not isinstance(ssim, Undefined)
    best = 10 * math.log10(255**2 * sum(picture.size for picture in truth))
    return {"psnr": best if isinstance(psnr, Undefined) else psnr, "ssim": ssim}


def clip_scores(source: Tensor, translated: Tensor, cycled: Tensor, truth: Tensor | None = None) -> dict[str, float]:
    """Every measure of one clip that applies; clips [T,3,H,W] in [0,1].

    ``warping_error_source`` and ``warping_error_truth`` are of the source and of the known translation: what the flow
    gets wrong, however good the translation.
    """
    before, after, back = (to_pictures(clip) for clip in (source, translated, cycled))
    scores = {"cycle_error": cycle_error(before, back)}
    moving = {"warping_error": after, "warping_error_source": before}
    if truth is not None:
        answer = to_pictures(truth)
        scores |= fidelity(answer, after)
        moving["warping_error_truth"] = answer
    with suppress(Undefined):  # clips that are small or of one frame have none, and the row says so by its absence
        motion = source_motion(before)
        scores |= {name: warping_error(motion, clip) for name, clip in moving.items()}
    return scores


@torch.no_grad()
def examine_clips(generator: Translates, domains: Domains, plan: ExamPlan = ExamPlan()) -> Iterator[Examined]:
    """Translate the same clips each time, there and back, and measure each."""
    for to in plan.to:
        sources, truths = _sources(domains, to, plan)
        for start in range(0, len(sources), plan.batch):
            source = sources[start : start + plan.batch]
            translated, _ = generator.translate(source, to)
            cycled, _ = generator.translate(translated, "x" if to == "y" else "y")
            there, back = (clips.float().cpu() for clips in (translated, cycled))
            for row in range(len(source)):
                index = start + row
                truth = None if truths is None else truths[index]
                scores = clip_scores(source[row], there[row], back[row], truth)
                yield Examined(to, index, source[row], there[row], back[row], truth, scores)


def examine_translation(
    generator: Translates,
    domains: Domains,
    plan: ExamPlan = ExamPlan(),
    see: Callable[[Examined], None] | None = None,
) -> TranslationScores:
    """Every measure of every clip, and of the sets.

    Args:
        generator: what translates.
        domains: where clips, known translations and real clips of the target come from.
        plan: how many.
        see: called with each clip in turn, for example to write it.
    """
    extractors, skipped = _extractors(plan, domains.frames)
    features: dict[Side, dict[str, list[Features]]] = {to: {family: [] for family in extractors} for to in plan.to}
    rows: list[dict[str, Any]] = []
    for examined in examine_clips(generator, domains, plan):
        rows.append({"to": examined.to, "index": examined.index, **examined.scores})
        for family, extractor in extractors.items():
            features[examined.to][family].append(features_of(extractor, examined.translated))
        if see:
            see(examined)
    distances = []
    for to, found in features.items():
        count = len(next(iter(found.values()), []))
        if count:
            real = domains.batch(to, 2 * count, _random(plan, to, "real"), held_out=True)
        for family, values in found.items():
            reference = np.stack([features_of(extractors[family], clip) for clip in real])
            distances += set_distances(to, family, reference, np.stack(values), plan.seed, skipped)
    return TranslationScores(rows, distances, skipped)


def features_of(extractor: Extractor, clip: Tensor) -> Features:
    """Features [F,d] of a clip [T,3,H,W] in [0,1]."""
    pictures = to_pictures(clip)
    chosen = extractor.protocol.frames.indices(len(pictures), 0.0)
    return np.asarray(extractor.run([pictures[i] for i in chosen]), np.float64)


def set_distances(
    to: Side, family: str, reference: Features, clips: Features, seed: int, skipped: dict[str, str]
) -> list[Distance]:
    """The distances of a family between clips [C,F,d] and the first C of a reference [2C,F,d].

    What does not apply is put into ``skipped`` with its reason.
    """
    found, count = [], len(clips)
    pool = np.concatenate([reference, clips])
    first, drawn = np.arange(count), len(reference) + np.arange(count)
    for metric in SET_METRICS:
        if metric.family != family:
            continue
        if metric.kernel is None and count * clips.shape[1] < 2 * clips.shape[2]:
            skipped[metric.name] = f"needs {2 * clips.shape[2]} features a side; {count} clips give fewer"
            continue
        distance, random = distance_of(metric, pool), np.random.default_rng(seed)
        value = distance(first, drawn)
        low, high = half_sample_interval(distance, first, drawn, Options(), random)
        floor = reference_floor(distance, len(reference), drawn, 20, random).value
        found.append(Distance(to, metric.name, value, value + low, value + high, floor, count))
    return found


def _sources(domains: Domains, to: Side, plan: ExamPlan) -> tuple[Tensor, Tensor | None]:
    """Clips to translate to ``to``, and what they should become where that is known."""
    start: Side = "x" if to == "y" else "y"
    if not domains.has_pairs:
        return domains.batch(start, plan.clips, _random(plan, start, "sources"), held_out=True), None
    most = domains.pairs_at_most
    random = _random(plan, "x", "pairs")
    x, y = domains.pair(plan.clips if most is None else min(plan.clips, most), random)
    source, truth = (x, y) if to == "y" else (y, x)
    return domains.filmed(start, source, random), truth


def _extractors(plan: ExamPlan, frames: int) -> tuple[dict[str, Extractor], dict[str, str]]:
    """The networks of the set metrics, and the metrics whose networks need longer clips."""
    families = dict.fromkeys(metric.family for metric in SET_METRICS)
    built = {family: _extractor(family, plan.models.get(family)) for family in families}
    needed = {family: extractor.protocol.frames.frames for family, extractor in built.items()}
    skipped = {
        metric.name: f"its network sees {needed[metric.family]} frames; these clips have {frames}"
        for metric in SET_METRICS
        if needed[metric.family] > frames
    }
    extractors = {family: extractor for family, extractor in built.items() if needed[family] <= frames}
    return extractors, skipped


@lru_cache(maxsize=4)
def _extractor(family: str, model: str | None) -> Extractor:
    """Loaded once, for all evaluations of a run."""
    return build_extractor(family, model)


def _random(plan: ExamPlan, side: Side, use: str) -> torch.Generator:
    """Random numbers that no other use has: clips of one domain are not those of another."""
    offset = 3 * SIDES.index(side) + ("sources", "pairs", "real").index(use)
    return torch.Generator().manual_seed(plan.seed + 1_000_003 * (1 + offset))
