"""Losses of video translation: every one against an answer worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from reelign.algorithms.translation_losses import (
    cycle_loss,
    discriminator_loss,
    generator_loss,
    identity_loss,
    next_frame_error,
    r1_penalty,
    recurrent_loss,
    recycle_loss,
    steadiness_loss,
)
from reelign.errors import DataError


def clips(*levels: float) -> Tensor:
    """One clip [1,T,3,2,2] of plain frames."""
    return torch.tensor(levels).view(1, -1, 1, 1, 1).expand(1, -1, 3, 2, 2)


def test_adversarial_losses_by_hand() -> None:
    real, fake = torch.tensor([0.0, math.log(3)]), torch.tensor([0.0])
    # σ(0) = 1/2 and σ(log 3) = 3/4
    assert discriminator_loss(real, fake, "bce") == pytest.approx((math.log(2) + math.log(4 / 3)) / 2 + math.log(2))
    torch.testing.assert_close(generator_loss(fake, "bce"), torch.tensor([math.log(2)]))
    real, fake = torch.tensor([0.5, 2.0]), torch.tensor([-2.0, 0.5])
    assert discriminator_loss(real, fake, "hinge") == pytest.approx(0.25 + 0.75)
    torch.testing.assert_close(generator_loss(fake, "hinge"), torch.tensor([2.0, -0.5]))


def test_adversarial_losses_pull_in_opposite_directions() -> None:
    for kind in ("bce", "hinge"):
        logit = torch.zeros(1, requires_grad=True)
        (judge,) = torch.autograd.grad(discriminator_loss(torch.ones(1), logit, kind), logit)
        (maker,) = torch.autograd.grad(generator_loss(logit, kind).mean(), logit)
        assert judge > 0 > maker, kind


def test_r1_of_a_linear_and_a_quadratic_discriminator() -> None:
    slope = torch.tensor([3.0, -4.0])
    assert r1_penalty(lambda x: x @ slope, torch.rand(5, 2)).item() == pytest.approx(25.0)
    # D = ‖x‖²/2 has slope x: the mean of 1 + 4 and 9 + 16
    points = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert r1_penalty(lambda x: x.square().sum(1) / 2, points).item() == pytest.approx(15.0)


def test_r1_reaches_the_weights() -> None:
    weight = torch.tensor([2.0], requires_grad=True)
    r1_penalty(lambda x: (weight * x).sum(1), torch.ones(4, 1)).backward()
    assert weight.grad.item() == pytest.approx(4.0)  # d w²/dw


def test_next_frame_error_compares_each_guess_with_the_frame_after() -> None:
    found = next_frame_error(clips(0.5, 0.5, 0.9), clips(0.0, 0.3, 0.9))
    torch.testing.assert_close(found, torch.tensor([[0.04, 0.16]]))
    with pytest.raises(DataError, match="at least 2; got 1"):
        next_frame_error(clips(0.5), clips(0.5))


def test_recurrent_loss_of_guessing_no_change_and_the_truth() -> None:
    moving = clips(0.1, 0.2, 0.4)
    assert recurrent_loss(lambda c: c, moving) == pytest.approx((0.01 + 0.04) / 2)
    truth = torch.cat([moving[:, 1:], moving[:, -1:]], 1)
    assert recurrent_loss(lambda _: truth, moving) == 0


def test_recycle_loss_goes_there_on_and_back() -> None:
    seen: list[str] = []

    def named(name: str, value: float):
        def run(c: Tensor) -> Tensor:
            seen.append(name)
            return c + value

        return run

    # 0.1 → +0.3 → +0.1 → −0.2 gives 0.3, and the frame after is 0.2; then 0.2 → 0.4 against 0.5
    found = recycle_loss(named("there", 0.3), named("next", 0.1), named("back", -0.2), clips(0.1, 0.2, 0.5))
    assert seen == ["there", "next", "back"]
    assert found == pytest.approx((0.01 + 0.01) / 2)


def test_recycle_loss_is_zero_for_inverse_maps_and_a_perfect_prediction() -> None:
    def further(c: Tensor) -> Tensor:
        return torch.cat([c[:, 1:], c[:, -1:]], 1)

    found = recycle_loss(lambda c: 1 - c, further, lambda c: 1 - c, torch.rand(2, 4, 3, 2, 2))
    assert found == pytest.approx(0, abs=1e-12)


def test_cycle_and_identity_losses_by_hand() -> None:
    assert cycle_loss(lambda c: c / 2, lambda c: c + 0.1, clips(0.4, 0.8)) == pytest.approx((0.1 + 0.3) / 2)
    assert identity_loss(lambda c: c - 0.25, clips(0.4, 0.8)) == pytest.approx(0.25)


def test_steadiness_loss_by_hand() -> None:
    # A ramp of 0.1 a pixel, that moves 1 to the right and brightens by 0.03: what is at u was at u − 1.
    ramp = (0.1 * torch.arange(5.0)).expand(1, 1, 3, 4, 5)
    made = torch.cat([ramp, ramp - 0.1 + 0.03], 1)
    left = torch.tensor([-1.0, 0.0]).view(1, 1, 2, 1, 1).expand(1, 1, 2, 4, 5)
    inside = torch.ones(1, 1, 4, 5, dtype=torch.bool)
    inside[..., 0] = False  # came from beyond the border
    assert steadiness_loss(made, left, inside) == pytest.approx(0.03, abs=1e-6)
    assert steadiness_loss(made, torch.zeros_like(left), inside) == pytest.approx(0.07, abs=1e-6)  # |−0.1 + 0.03|
    one = torch.zeros_like(inside)
    assert steadiness_loss(made, left, one) == 0
    one[0, 0, 2, 0] = True  # the border's edge pixel repeats: −0.07 against 0
    assert steadiness_loss(made, left, one) == pytest.approx(0.07, abs=1e-6)
