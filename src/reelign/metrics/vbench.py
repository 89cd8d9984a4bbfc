r"""VBench's totals from the scores of its dimensions (Huang et al. 2024, arXiv 2311.17982).

    n_d = (s_d − min_d)/(max_d − min_d), unclipped;      quality = Σ w_d·n_d / Σ w_d over 7 dimensions
    semantic = mean of n_d over 9;      total = (4·quality + semantic)/5

A total exists only where every dimension does: VBench's own script counts a missing one as a raw 0, which for temporal
flickering is n = −1.70. Minima, maxima and weights are those of its ``scripts/constant.py``. They belong to VBench's
models and its prompts: scores of other models, of stand-ins or of other prompts give a number that cannot be compared
with a published one.

Run: ``vbench_quality({"subject_consistency": 0.95, ...})``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from reelign.errors import DataError
from reelign.metrics.clip import Undefined


@dataclass(frozen=True)
class Dimension:
    """How a dimension enters its total.

    Args:
        low, high: raw scores that become 0 and 1.
        weight: in the weighted mean.
    """

    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


QUALITY = {
    "subject_consistency": Dimension(0.1462),
    "background_consistency": Dimension(0.2615),
    "temporal_flickering": Dimension(0.6293),
    "motion_smoothness": Dimension(0.706, 0.9975),
    "dynamic_degree": Dimension(weight=0.5),
    "aesthetic_quality": Dimension(),
    "imaging_quality": Dimension(),
}
SEMANTIC = {
    "object_class": Dimension(),
    "multiple_objects": Dimension(),
    "human_action": Dimension(),
    "color": Dimension(),
    "spatial_relationship": Dimension(),
    "scene": Dimension(high=0.8222),
    "appearance_style": Dimension(0.0009, 0.2855),
    "temporal_style": Dimension(high=0.364),
    "overall_consistency": Dimension(high=0.364),
}
QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4.0, 1.0


def vbench_quality(scores: Mapping[str, float]) -> float:
    """The weighted mean of the normalised 7 dimensions of quality; other scores are ignored.

    Raises:
        Undefined: a dimension is missing or NaN.
        DataError: a score is infinite.
    """
    return _mean(scores, QUALITY, "quality")


def vbench_semantic(scores: Mapping[str, float]) -> float:
    """The mean of the normalised 9 dimensions of meaning; raises as ``vbench_quality`` does."""
    return _mean(scores, SEMANTIC, "semantic")


def vbench_total(scores: Mapping[str, float]) -> float:
    """(4·quality + semantic)/5 of all 16 dimensions; raises as ``vbench_quality`` does."""
    weighted = QUALITY_WEIGHT * vbench_quality(scores) + SEMANTIC_WEIGHT * vbench_semantic(scores)
    return weighted / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)


def _mean(scores: Mapping[str, float], dimensions: Mapping[str, Dimension], total: str) -> float:
    missing = [name for name in dimensions if math.isnan(scores.get(name, math.nan))]
    if missing:
        raise Undefined(f"VBench's {total} total needs all {len(dimensions)} dimensions; missing: {', '.join(missing)}")
    if odd := [name for name in dimensions if math.isinf(scores[name])]:
        raise DataError(f"VBench's scores are finite numbers; {', '.join(odd)} is infinite: find the broken clip")
    weighted = sum(d.weight * (scores[name] - d.low) / (d.high - d.low) for name, d in dimensions.items())
    return weighted / sum(d.weight for d in dimensions.values())
