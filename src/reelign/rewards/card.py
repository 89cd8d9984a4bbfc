"""Checking that a reward keeps what its card promises, on a golden clip that is always the same.

``verify`` scores two drawn clips together and apart, and sends a gradient to noisy pixels: four small forward passes
and one backward pass. It catches a wrong shape or type, a score outside the card's range, clips of a batch that leak
into each other, a gradient that is cut on the way, and weights or preprocessing that changed since the golden score
was taken.

A checkpoint keeps its golden score beside its weights, in ``golden.json``; ``record_golden`` writes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from reelign.contracts import Request, Reward, VideoBatch
from reelign.datasets.moving_shapes import MovingShapes, ShapeSpec
from reelign.errors import ContractError, ModelError
from reelign.zoo.models import resolve_model

GOLDEN_SPECS = (ShapeSpec("circle", "red", "moving left"), ShapeSpec("triangle", "white", "rotating clockwise"))
GOLDEN_SEED = 20240708
GOLDEN_FILE = "golden.json"
GOLDEN_TOLERANCE = 1e-3  # absolute below a score of 1, else relative
BATCH_TOLERANCE = 1e-4  # relative; kernels add up in another order for another batch size
RANGE_SLACK = 1e-5  # round-off of a cosine or a probability


@runtime_checkable
class ReadsSomePrompts(Protocol):
    """A reward that understands some prompts only, and says which to check it with."""

    def golden_prompts(self, captions: Sequence[str]) -> tuple[str, ...]:
        """One prompt for each golden clip: the captions themselves where the reward reads them."""
        ...


@dataclass(frozen=True)
class Check:
    """One promise of a card.

    Args:
        name: what was checked.
        ok: whether the reward kept it.
        detail: what was seen, in one line.
    """

    name: str
    ok: bool
    detail: str


def golden_clip() -> VideoBatch:
    """Two clips of moving shapes, 17 frames of 64×64 at 8 fps, prompts their captions; the same on every call."""
    data = MovingShapes(frames=17, size=64, fps=8.0)
    video = data.render(list(GOLDEN_SPECS), torch.Generator().manual_seed(GOLDEN_SEED))
    return VideoBatch(video, data.fps, Request(tuple(spec.caption for spec in GOLDEN_SPECS)))


def golden_batch(reward: Reward) -> VideoBatch:
    """The golden clip with prompts that ``reward`` understands."""
    batch = golden_clip()
    if not isinstance(reward, ReadsSomePrompts):
        return batch
    return VideoBatch(batch.video, batch.fps, Request(reward.golden_prompts(batch.request.prompts)))


def verify(reward: Reward) -> list[Check]:
    """Every promise of the reward's card and whether it is kept; without well-formed scores, only that one."""
    batch = golden_batch(reward)
    with torch.no_grad():
        scores = reward(batch)
    checks = [_well_formed(scores, len(batch))]
    if not checks[0].ok:
        return checks
    checks.append(_in_range(scores, reward.card.range))
    checks.append(_batch_independent(reward, batch, scores))
    checks.append(_gradient(reward, batch))
    if reward.card.golden is not None:
        checks.append(_golden(float(scores.mean()), reward.card.golden))
    return checks


def sensitivity(reward: Reward) -> list[Check]:
    """How much the golden clip's score changes with what should matter little: frame rate, and every second frame.

    Nothing to pass or fail: scores of clips with other rates or lengths cannot be compared where these are large.
    """
    batch = golden_batch(reward)
    half = VideoBatch(batch.video[:, ::2], batch.fps / 2, batch.request)
    faster = VideoBatch(batch.video, batch.fps * 2, batch.request)
    with torch.no_grad():
        base, fewer, other = (float(reward(clips).mean()) for clips in (batch, half, faster))
    return [
        Check("every second frame", True, f"score {fewer:.4g} instead of {base:.4g}"),
        Check("twice the frame rate", True, f"score {other:.4g} instead of {base:.4g}"),
    ]


def require_verified(reward: Reward) -> None:
    """Do nothing where the reward keeps its card.

    Raises:
        ContractError: it does not; the message names each check that failed.
    """
    failed = [f"{check.name} ({check.detail})" for check in verify(reward) if not check.ok]
    if failed:
        raise ContractError(
            f"reward {reward.card.name!r} breaks its card: {'; '.join(failed)}: mend the reward or its card"
        )


def _well_formed(scores: Any, clips: int) -> Check:
    name = "scores are finite float32 [B]"
    if not isinstance(scores, Tensor):
        return Check(name, False, f"got {type(scores).__name__}")
    seen = f"got {str(scores.dtype).removeprefix('torch.')} {list(scores.shape)} for {clips} clips"
    if scores.shape != (clips,) or scores.dtype != torch.float32:
        return Check(name, False, seen)
    bad = int((~torch.isfinite(scores)).sum())
    return Check(name, bad == 0, f"{seen}, {bad} not finite")


def _in_range(scores: Tensor, bounds: tuple[float, float]) -> Check:
    low, high = float(scores.min()), float(scores.max())
    ok = bounds[0] - RANGE_SLACK <= low and high <= bounds[1] + RANGE_SLACK
    return Check(
        "scores lie in the card's range", ok, f"got [{low:.4g}, {high:.4g}], card [{bounds[0]:.4g}, {bounds[1]:.4g}]"
    )


@torch.no_grad()
def _batch_independent(reward: Reward, batch: VideoBatch, scores: Tensor) -> Check:
    rows = [slice(i, i + 1) for i in range(len(batch))]
    alone = torch.cat([reward(VideoBatch(batch.video[row], batch.fps, batch.request[row])) for row in rows])
    name = "a clip's score does not depend on its batch"
    if alone.shape != scores.shape:
        return Check(name, False, f"one clip alone gives {alone.numel()} scores for {len(batch)} clips")
    worst = float(((alone - scores).abs() / scores.abs().clamp_min(1e-2)).max())
    return Check(name, worst <= BATCH_TOLERANCE, f"largest relative difference {worst:.2g}")


def _gradient(reward: Reward, batch: VideoBatch) -> Check:
    """Whether the gradient of the score to noisy pixels is there and is a number, exactly where the card says so."""
    promised = reward.card.differentiable
    name = "gradient reaches the pixels" if promised else "no gradient reaches the pixels"
    noise = torch.rand(batch.video[:1].shape, generator=torch.Generator().manual_seed(GOLDEN_SEED))
    pixels = (batch.video[:1] + 2 * noise - 1).clamp(0, 1).requires_grad_()  # every brightness occurs
    with torch.enable_grad():
        score = reward(VideoBatch(pixels, batch.fps, batch.request[:1]))
    if not score.requires_grad:
        return Check(name, not promised, "the score carries no gradient")
    gradients: Sequence[Tensor | None] = torch.autograd.grad(score.sum(), pixels, allow_unused=True)
    gradient = gradients[0]
    if gradient is None:
        return Check(name, not promised, "the score does not depend on the pixels")
    norm = float(gradient.norm())
    if not math.isfinite(norm):
        return Check(name, False, f"the gradient's norm is {norm}")
    return Check(name, promised == (norm > 0), f"the gradient's norm is {norm:.3g}")


def _golden(score: float, golden: float) -> Check:
    ok = abs(score - golden) <= GOLDEN_TOLERANCE * max(1.0, abs(golden))
    return Check("the golden clip has its golden score", ok, f"got {score:.6g}, card {golden:.6g}")


def read_golden(model: str) -> float | None:
    """The golden score kept beside a checkpoint, or None where there is none or the checkpoint is on the hub.

    Raises:
        ModelError: the file is there and holds no score, or the model is not there at all.
    """
    file = Path(resolve_model(model)) / GOLDEN_FILE
    if not file.is_file():
        return None
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))["score"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f'{file} holds {{"score": number}}; reading it failed ({error}): record it anew') from error


def record_golden(folder: str | Path, reward: Reward) -> float:
    """Score the golden clip and keep the mean beside the checkpoint in ``folder``; returns it."""
    with torch.no_grad():
        score = round(float(reward(golden_batch(reward)).mean()), 6)
    (Path(folder) / GOLDEN_FILE).write_text(json.dumps({"score": score}) + "\n", encoding="utf-8")
    return score
