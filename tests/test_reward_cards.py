"""``verify`` finds each way in which a reward can break its card, and only that one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reelign.contracts import Request, RewardCard, VideoBatch
from reelign.errors import ContractError, ModelError
from reelign.metrics.shapes_instrument import read_clips
from reelign.rewards.brightness_range import BrightnessRange
from reelign.rewards.card import golden_batch, golden_clip, read_golden, record_golden, require_verified, verify
from reelign.rewards.compressibility import Compressibility
from reelign.rewards.temporal_smoothness import TemporalSmoothness

CARD = RewardCard("mean", "Mean of the pixels.", (0.0, 1.0))


class Scorer:
    """A reward from a function and a card."""

    def __init__(self, score: Callable[[VideoBatch], Tensor], card: RewardCard = CARD) -> None:
        self.score, self.card = score, card

    def __call__(self, batch: VideoBatch) -> Tensor:
        return self.score(batch)


def mean(batch: VideoBatch) -> Tensor:
    return batch.video.flatten(1).mean(1)


def failures(reward: Scorer) -> list[str]:
    return [check.name for check in verify(reward) if not check.ok]


def test_golden_clip_is_what_it_says() -> None:
    batch, again = golden_clip(), golden_clip()
    assert batch.video.shape == (2, 17, 3, 64, 64)
    assert batch.fps == 8
    assert torch.equal(batch.video, again.video)
    readings = [(r.colour, r.shape, r.motion) for r in read_clips(batch.video)]
    assert [f"a {' '.join(reading)}" for reading in readings] == list(batch.request.prompts)


@pytest.mark.parametrize("reward", [TemporalSmoothness(), BrightnessRange(), Compressibility(), Compressibility(30)])
def test_weight_free_rewards_keep_their_cards(reward: Scorer) -> None:
    assert failures(reward) == []
    require_verified(reward)


@pytest.mark.parametrize("reward", [TemporalSmoothness(), BrightnessRange(), Compressibility()])
def test_weight_free_rewards_have_a_golden_score(reward: Scorer) -> None:
    assert reward.card.golden == pytest.approx(float(reward(golden_clip()).mean()), rel=1e-4)


def test_a_good_reward_passes() -> None:
    assert failures(Scorer(mean)) == []


@pytest.mark.parametrize(
    ("score", "card", "broken"),
    [
        (lambda b: mean(b).mean()[None], CARD, "scores are finite float32 [B]"),
        (lambda b: mean(b).double(), CARD, "scores are finite float32 [B]"),
        (lambda b: mean(b) * math.nan, CARD, "scores are finite float32 [B]"),
        (lambda b: mean(b).tolist(), CARD, "scores are finite float32 [B]"),
        (lambda b: mean(b) + 1, CARD, "scores lie in the card's range"),
        (lambda b: mean(b) - mean(b).mean().detach() * 0.1, CARD, "a clip's score does not depend on its batch"),
        (lambda b: mean(b).detach(), CARD, "gradient reaches the pixels"),
        (lambda b: (mean(b) * 255).round() / 255, CARD, "gradient reaches the pixels"),
        (lambda b: mean(b) + 0 * b.video.sum((1, 2, 3, 4)).sqrt().log().clamp_min(9), CARD, None),
        (mean, replace(CARD, differentiable=False), "no gradient reaches the pixels"),
        (lambda b: mean(b).detach(), replace(CARD, differentiable=False), None),
        (mean, replace(CARD, golden=0.5), "the golden clip has its golden score"),
        (mean, replace(CARD, golden=float(mean(golden_clip()).mean())), None),
    ],
)
def test_each_broken_promise_is_found(
    score: Callable[[VideoBatch], Tensor], card: RewardCard, broken: str | None
) -> None:
    reward = Scorer(score, card)
    assert failures(reward) == ([] if broken is None else [broken])
    if broken is not None:
        with pytest.raises(ContractError) as caught:
            require_verified(reward)
        assert broken in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("root", [lambda x: x.sqrt(), lambda x: x.abs().sqrt()], ids=["infinite", "nan"])
def test_a_gradient_that_is_not_a_number_is_found(root: Callable[[Tensor], Tensor]) -> None:
    def score(batch: VideoBatch) -> Tensor:
        return mean(batch) + root(batch.video - batch.video.detach()).flatten(1).sum(1)

    assert failures(Scorer(score)) == ["gradient reaches the pixels"]


def test_a_choosy_reward_gets_prompts_it_reads() -> None:
    class Choosy(Scorer):
        def golden_prompts(self, captions: tuple[str, ...]) -> tuple[str, ...]:
            return tuple("surfing" for _ in captions)

    def score(batch: VideoBatch) -> Tensor:
        assert set(batch.request.prompts) == {"surfing"}
        return mean(batch)

    reward = Choosy(score)
    assert golden_batch(reward).request == Request(("surfing", "surfing"))
    assert failures(reward) == []


def test_golden_score_is_kept_beside_the_weights(tmp_path: Path) -> None:
    assert read_golden(str(tmp_path)) is None
    assert read_golden("openai/clip-vit-base-patch32") is None
    score = record_golden(tmp_path, Scorer(mean))
    assert score == pytest.approx(float(mean(golden_clip()).mean()), abs=1e-6)
    assert read_golden(str(tmp_path)) == score
    (tmp_path / "golden.json").write_text("{}")
    with pytest.raises(ModelError, match="record it anew"):
        read_golden(str(tmp_path))
