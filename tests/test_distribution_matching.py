"""Losses on made clips: the official program's numbers, tiny cases by hand, and what holds for any numbers."""

import math

import pytest
import torch
from gaussian_generators import SPREAD, GaussianJudge, GaussianScore

from reelign.algorithms.critics import LogitCritic, Made, ScoreCritic
from reelign.algorithms.distribution_matching import (
    difference_penalty,
    dmd_gradient,
    dmd_loss,
    flow_loss,
    guide,
    relativistic_loss,
    score_sigma,
    sid_loss,
)
from reelign.contracts import Condition
from reelign.errors import NonFiniteError
from reelign.paths import FlowPath
from reelign.sampling import SeededNoise

CASES = {"dmd": (0.0, False), "dmd_masked": (0.0, True), "dmd_fake_cfg": (0.5, False)}


@pytest.mark.parametrize("case", CASES)
def test_dmd_of_the_official_program(golden, case):
    tensors, _ = golden("selfforcing_dmd")
    t = {name.removeprefix("inputs/"): value for name, value in tensors.items()}
    scale, masked = CASES[case]
    real = guide(t["real_cond"], t["real_uncond"], 3.0)
    fake = guide(t["fake_cond"], t["fake_uncond"], scale)
    x = t["x"].clone().requires_grad_()
    gradient = dmd_gradient(x, real, fake)
    mask = t["gradient_mask"] if masked else None
    loss = dmd_loss(x, gradient, mask)
    loss.backward()
    wanted = tensors[f"outputs/{case}/dloss_dx"]
    assert torch.allclose(gradient, tensors[f"outputs/{case}/grad"], rtol=1e-5, atol=1e-6)
    assert loss.item() == pytest.approx(tensors[f"outputs/{case}/loss"].item(), rel=1e-5)
    assert (x.grad - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_the_critics_loss_of_the_official_program(golden):
    """With flow = (x_t − x̂_0)/σ; the release takes σ from the nearest grid point, which the stub's x̂_0 goes through."""
    tensors, _ = golden("selfforcing_dmd")
    output = tensors["outputs/critic_shift5/flow_pred"]
    loss = flow_loss(output, tensors["inputs/x"], tensors["inputs/noise"])
    assert loss.item() == pytest.approx(tensors["outputs/critic_shift5/loss"].item(), rel=1e-4)
    effective = tensors["outputs/critic_official/flow_pred"].clone().requires_grad_()
    loss = flow_loss(effective, tensors["inputs/x"], tensors["inputs/noise"])
    assert loss.item() == pytest.approx(tensors["outputs/critic_official/loss"].item(), rel=1e-4)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_sid_of_the_official_program(golden, alpha):
    tensors, _ = golden("selfforcing_dmd")
    ends = {name: tensors[f"inputs/{name}"].clone().requires_grad_() for name in ("x", "real_cond", "real_uncond")}
    ends["fake_cond"] = tensors["inputs/fake_cond"].clone().requires_grad_()
    real = guide(ends["real_cond"], ends["real_uncond"], 3.0)
    loss = sid_loss(ends["x"], real, ends["fake_cond"], alpha)
    loss.backward()
    assert loss.item() == pytest.approx(tensors[f"outputs/sid_alpha{alpha}/loss"].item(), rel=1e-5)
    for name, end in ends.items():
        wanted = tensors[f"outputs/sid_alpha{alpha}/d_{name}"]
        assert (end.grad - wanted).abs().max() < 1e-5 * wanted.abs().max(), name


@pytest.mark.parametrize(("shift", "off"), [(5.0, 0.0024), (8.0, 0.0038)])
def test_score_levels_of_the_official_program(golden, shift, off):
    """Its times are ours; the level that it then looks up on a grid is off, by no more than is documented."""
    tensors, _ = golden("selfforcing_schedule")
    sigma = score_sigma(torch.arange(1000) / 1000, shift, (0.02, 0.98))
    assert torch.allclose(1000 * sigma, tensors[f"outputs/shift{shift:g}/score_timestep"], rtol=1e-5, atol=1e-3)
    looked_up = tensors[f"outputs/shift{shift:g}/score_sigma"]
    assert 0 < (sigma - looked_up).abs().max() < off


def test_score_levels_by_hand():
    u = torch.tensor([0.0, 0.5, 1.0])
    assert score_sigma(u, 3.0, (0.02, 0.98)).tolist() == pytest.approx([0.02, 0.75, 0.98])
    # Between the warped levels of 1/4 and 1/2: the middle is that of 3/8.
    assert score_sigma(u, 3.0, (0.02, 0.98), (0.25, 0.5)).tolist() == pytest.approx([0.5, 9 / 14, 0.75])


def test_dmd_by_hand():
    x, real, fake = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, -2.0]])
    gradient = dmd_gradient(x, real, fake)
    assert gradient.tolist() == [[0.5, -1.0]]  # divided by (1 + 3)/2
    x.requires_grad_()
    dmd_loss(x, gradient).backward()
    assert x.grad.tolist() == [[0.25, -0.5]]
    x.grad = None
    loss = dmd_loss(x, gradient, torch.tensor([[True, False]]))
    loss.backward()
    assert loss.item() == pytest.approx(0.125)
    assert x.grad.tolist() == [[0.5, 0.0]]


def test_each_clip_has_its_own_divisor():
    x = torch.tensor([[1.0], [10.0]])
    assert dmd_gradient(x, torch.zeros(2, 1), torch.ones(2, 1)).tolist() == [[1.0], [pytest.approx(0.1)]]


def test_nothing_to_divide_by_is_an_error():
    x = torch.ones(2, 3)
    with pytest.raises(NonFiniteError, match="must be above 0"):
        dmd_gradient(x, x, torch.zeros(2, 3))
    with pytest.raises(NonFiniteError, match="mean"):
        sid_loss(x, torch.full((2, 3), float("nan")), x, 1.0)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 1.2])
def test_sid_is_what_the_paper_writes(random, alpha):
    x, real, fake = (torch.randn(3, 4, generator=random).double() for _ in range(3))
    written = (real - fake) * (fake - x) + (1 - alpha) * (real - fake) ** 2
    divisor = (x - real).abs().mean(1, keepdim=True)
    assert sid_loss(x, real, fake, alpha).item() == pytest.approx((written / divisor).mean().item())


def test_relativistic_loss_knows_only_differences(random):
    zero = torch.zeros(4)
    assert relativistic_loss(zero, zero).item() == pytest.approx(math.log(2))
    better, worse = torch.randn(5, generator=random), torch.randn(5, generator=random)
    assert relativistic_loss(better + 7, worse + 7).item() == pytest.approx(relativistic_loss(better, worse).item())
    assert relativistic_loss(torch.tensor([2.0]), torch.tensor([-1.0])).item() == pytest.approx(
        math.log1p(math.exp(-3))
    )


@pytest.mark.parametrize("sigma", [1e-3, 0.05, 1.0])
def test_the_penalty_of_a_linear_judge_is_its_squared_slope(random, sigma):
    """For any distance, which only the divided form gives."""
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    x, n = (torch.randn(200_000, 3, generator=random).double() for _ in range(2))
    penalty = difference_penalty(x @ slope, (x + sigma * n) @ slope, sigma)
    assert penalty.item() == pytest.approx(slope.square().sum().item(), rel=0.02)


def gaussians(*means):
    return [GaussianScore(list(mean), FlowPath(3.0, grid_end=0.0)).requires_grad_(True) for mean in means]


def made(random, mask=None, real=None, count=3) -> Made:
    x = torch.randn(count, 2, 4, 1, 1, generator=random).double()
    y = torch.ones(count, 1, dtype=torch.float64)
    sigma = 0.1 + 0.8 * torch.rand(count, generator=random).double()
    draw = SeededNoise(range(count))
    return Made(x, Condition({"y": y}, {"y": 0 * y}), sigma, draw, mask, real)


@pytest.mark.parametrize("guidance", [(0.0, 0.0), (3.0, 0.0), (2.0, 0.5)])
def test_dmd_with_exact_scores_is_the_exact_gradient(random, guidance):
    teacher, fake = gaussians((1.0, -1.0), (0.2, 0.4))
    clips = made(random)
    _, slope = ScoreCritic(teacher, fake, "dmd", guidance).gradient(clips)
    sigma = clips.sigma.view(-1, 1, 1, 1, 1)
    alpha, noise = 1 - sigma, SeededNoise(range(3))((2, 4, 1, 1)).double()
    noisy = alpha * clips.x + sigma * noise
    gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)

    def clean(mean, w):
        mean = mean.detach().view(1, 2, 4, 1, 1)
        positive, negative = mean + gain * (noisy - alpha * mean), gain * noisy
        return positive + w * (positive - negative)

    real, false = clean(teacher.mean, guidance[0]), clean(fake.mean, guidance[1])
    divisor = (clips.x - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    exact = (false - real) / divisor / clips.x.numel()
    assert (slope - exact).abs().max() < 1e-8 * exact.abs().max() + 1e-12  # noise is single precision


@pytest.mark.parametrize("objective", ["dmd", "sid"])
def test_equal_scores_ask_for_nothing(random, objective):
    teacher, fake = gaussians((1.0, -1.0), (1.0, -1.0))
    loss, slope = ScoreCritic(teacher, fake, objective, (0.0, 0.0)).gradient(made(random))
    assert loss.item() == 0
    assert slope.abs().max() < 1e-15 if objective == "dmd" else slope.isfinite().all()


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_sids_chain_rule_by_hand_is_autograds(random, alpha):
    teacher, fake = gaussians((1.0, -1.0), (0.2, 0.4))
    mask = torch.tensor([False, True, True, True])
    clips = made(random, mask)
    loss, slope = ScoreCritic(teacher, fake, "sid", (3.0, 0.5), alpha).gradient(clips)
    x = clips.x.clone().requires_grad_()
    sigma = clips.sigma.view(-1, 1, 1, 1, 1)
    noisy = (1 - sigma) * x + sigma * SeededNoise(range(3))((2, 4, 1, 1))

    def clean(network, w):
        parts = [noisy - sigma * network.predict(noisy, 1000 * clips.sigma, c) for c in (clips.condition, no)]
        return guide(*parts, w)

    no = Condition(clips.condition.negative)
    whole = sid_loss(x, clean(teacher, 3.0), clean(fake, 0.5), alpha, mask.view(1, 1, -1, 1, 1))
    whole.backward()
    assert loss.item() == pytest.approx(whole.item())
    assert torch.allclose(slope, x.grad, rtol=1e-6, atol=1e-12)


def test_frames_that_do_not_count_are_not_moved(random):
    teacher, fake = gaussians((1.0, -1.0), (0.2, 0.4))
    _, slope = ScoreCritic(teacher, fake).gradient(made(random, torch.tensor([False, False, True, True])))
    assert slope[:, :, :2].abs().max() == 0
    assert slope[:, :, 2:].abs().min() > 0


def test_the_fake_score_of_the_clips_has_the_least_loss(random):
    """Clips of N(0, SPREAD²): any other mean is worse."""
    clips = made(random, count=2000)
    clips = Made(SPREAD * clips.x, clips.condition, clips.sigma, clips.draw)
    losses = [ScoreCritic(*gaussians((1.0, 1.0), mean)).loss(clips).item() for mean in ((0, 0), (0.3, 0), (0, -0.3))]
    assert losses[0] == min(losses)


def test_a_judge_learns_what_is_real_and_says_where_to_go(random):
    clips = made(random, real=2 + torch.randn(300, 2, 4, 1, 1, generator=random).double(), count=300)
    critic = LogitCritic(GaussianJudge())
    assert critic.loss(clips).item() == pytest.approx(math.log(2))  # knows nothing, has no slope
    critic.loss(clips).backward()
    weight = critic.judge.look.weight
    assert (weight.grad < 0).all()
    with torch.no_grad():
        weight -= weight.grad
    loss, slope = critic.gradient(clips)
    assert (slope < 0).all()  # up, to the real clips
    assert loss.item() > 0


def test_the_penalty_counts_both_kinds(random):
    clips = made(random, real=torch.randn(3, 2, 4, 1, 1, generator=random).double())
    judge = GaussianJudge()
    torch.nn.init.constant_(judge.look.weight, 2.0)
    plain, with_penalty = (LogitCritic(judge, penalty, 0.05) for penalty in (0.0, 0.5))
    moved = SeededNoise(range(3))
    noise = [moved((2, 4, 1, 1)).double() for _ in range(4)]  # of real and made clips, then of moving them
    bare = plain.loss(Made(clips.x, clips.condition, clips.sigma, SeededNoise(range(3)), None, clips.real))
    whole = with_penalty.loss(Made(clips.x, clips.condition, clips.sigma, SeededNoise(range(3)), None, clips.real))
    slopes = [(2 * n.flatten(1).sum(1)).square().mean() for n in noise[2:]]
    assert (whole - bare).item() == pytest.approx(0.5 * sum(slopes).item(), rel=1e-6)
