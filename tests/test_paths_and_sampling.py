"""Paths, steps and chains against exact solutions and against numbers of the original programs."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from linear_generator import LinearGenerator

from reelign.contracts import Condition, Schedule
from reelign.errors import ConfigError
from reelign.paths import (
    DiscretePath,
    FlowPath,
    KarrasPath,
    ancestral_noise,
    endpoints,
    scaled_linear_alphas,
    shift_sigma,
)
from reelign.sampling import ChainOptions, chain, guided, seeded_noise, step


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow", "x0"])
def test_endpoints_recover_data_and_noise(kind, random):
    x0, eps = torch.randn(2, 3, generator=random), torch.randn(2, 3, generator=random)
    alpha = torch.tensor(0.3) if kind == "flow" else torch.tensor(0.6)
    sigma = torch.tensor(0.7) if kind == "flow" else torch.tensor(0.8)
    output = {"epsilon": eps, "v": alpha * eps - sigma * x0, "flow": eps - x0, "x0": x0}[kind]
    got = endpoints(kind, output, alpha * x0 + sigma * eps, alpha, sigma)
    torch.testing.assert_close(got, (x0, eps))


def test_shift_known_values():
    torch.testing.assert_close(
        shift_sigma(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), 5.0), torch.tensor([0.0, 0.625, 0.8333333, 0.9375, 1.0])
    )


@pytest.mark.parametrize(("shift", "steps"), [(1.0, 4), (3.0, 10), (5.0, 50)])
def test_flow_schedule_is_that_of_wans_scheduler(shift, steps):
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(steps)
    ours = FlowPath(shift).schedule(steps)
    torch.testing.assert_close(ours.sigma.float(), scheduler.sigmas, rtol=0, atol=2e-6)
    torch.testing.assert_close(ours.t.float(), scheduler.timesteps.float(), rtol=0, atol=1.01)  # it drops fractions
    assert ours.sigma[-2] > 0.5 * shift / (steps + shift)  # the last step has something to do


def test_a_step_without_fresh_noise_is_the_euler_step_on_a_flow_path(random):
    schedule = FlowPath(3.0).schedule(7)
    x, v = (
        torch.randn(4, 5, generator=random, dtype=torch.float64),
        torch.randn(4, 5, generator=random, dtype=torch.float64),
    )
    for i in range(7):
        x0, eps = endpoints("flow", v, x, schedule.alpha[i], schedule.sigma[i])
        torch.testing.assert_close(step(x0, eps, schedule, i), x + (schedule.sigma[i + 1] - schedule.sigma[i]) * v)


def test_ancestral_noise_by_hand():
    alpha = torch.tensor([0.6, 0.8])
    sigma = torch.tensor([0.8, 0.6])
    torch.testing.assert_close(ancestral_noise(alpha, sigma), torch.tensor([0.75 * (1 - 0.5625) ** 0.5]))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_chain_samples_a_gaussian_exactly(eta, random):
    """Data N(2, 0.5²) has an exact ε-predictor; a long chain must reproduce its mean and spread."""

    class Exact:
        path = DiscretePath(scaled_linear_alphas())
        merged = staticmethod(nullcontext)

        def predict(self, x, t, condition):
            alpha, sigma = self.path.alphas_cumprod[int(t)].sqrt(), (1 - self.path.alphas_cumprod[int(t)]).sqrt()
            return sigma * (x - alpha * 2.0) / (alpha.square() * 0.25 + sigma.square())

    schedule = Exact.path.schedule(500)
    spread = (schedule.alpha[0].square() * 0.25 + schedule.sigma[0].square()).sqrt()
    x = schedule.alpha[0] * 2.0 + spread * torch.randn(20_000, 1, generator=random, dtype=torch.float64)
    out = chain(Exact(), x, Condition({}), schedule, ChainOptions(1.0, eta), random)
    assert out.mean().item() == pytest.approx(2.0, abs=0.02)
    assert out.std().item() == pytest.approx(0.5, abs=0.02)


def test_guidance_is_one_pass_of_both_branches(random):
    generator = LinearGenerator(FlowPath(), *_weights(random), shape=(4, 2, 1, 1))
    x = torch.randn(2, 4, 2, 1, 1, generator=random)
    condition = Condition({"y": torch.ones(2, 5)}, {"y": torch.zeros(2, 5)})
    got = guided(generator, x, torch.tensor(300.0), condition, 4.0)
    assert generator.calls == 1
    negative = generator.predict(x, torch.tensor(300.0), Condition({"y": torch.zeros(2, 5)}))
    positive = generator.predict(x, torch.tensor(300.0), Condition({"y": torch.ones(2, 5)}))
    torch.testing.assert_close(got, negative + 4 * (positive - negative))


def test_guidance_may_vary_over_the_latent(random):
    """w is 1 + guidance·(scale − 1): here 1, 2.5 and 4 for three frames."""
    generator = LinearGenerator(FlowPath(), *_weights(random), shape=(4, 3, 1, 1))
    x, t = torch.randn(2, 4, 3, 1, 1, generator=random), torch.tensor(300.0)
    ramp = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1)
    condition = Condition({"y": torch.ones(2, 5)}, {"y": torch.zeros(2, 5)}, ramp)
    whole = Condition(condition.positive, condition.negative)
    for frame, scale in enumerate((1.0, 2.5, 4.0)):
        got = guided(generator, x, t, condition[:2], 4.0)[:, :, frame]
        torch.testing.assert_close(got, guided(generator, x, t, whole, scale)[:, :, frame])


def test_karras_levels_by_hand():
    """Three levels between 16 and 1 with rho 2 are 4, 2.5 and 1, squared; α and σ lie on the unit circle."""
    schedule = KarrasPath(low=1.0, high=16.0, rho=2.0).schedule(3)
    s = torch.tensor([16.0, 6.25, 1.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.sigma[:-1] / schedule.alpha[:-1], s)
    torch.testing.assert_close(schedule.alpha.square() + schedule.sigma.square(), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(schedule.t, s.log() / 4)
    assert (schedule.alpha[-1], schedule.sigma[-1]) == (1, 0)
    with pytest.raises(ConfigError, match="at least 1 step; got 0"):
        KarrasPath().schedule(0)


def test_ddim_on_a_karras_path_is_edms_euler_step(random):
    """y = x/α has y' = y + (s' − s)·(y − x̂_0)/s (Karras et al. 2022, algorithm 1 without churn)."""
    schedule = KarrasPath().schedule(5)
    x, v = (torch.randn(2, 3, generator=random, dtype=torch.float64) for _ in range(2))
    for i in range(5):
        x0, eps = endpoints("v", v, x, schedule.alpha[i], schedule.sigma[i])
        s, lower = (schedule.sigma[j] / schedule.alpha[j] for j in (i, i + 1))
        y = x / schedule.alpha[i]
        euler = y + (lower - s) * (y - x0) / s
        torch.testing.assert_close(step(x0, eps, schedule, i) / schedule.alpha[i + 1], euler, rtol=1e-9, atol=1e-9)


def test_flow_levels_that_end_above_data_by_hand():
    """1, 3/4, 1/2, 1/4 stretched so that the last is 0.1: 1 − (1 − σ)·0.9/0.75."""
    schedule = FlowPath(grid_end=0.0, terminal=0.1).schedule(4)
    torch.testing.assert_close(schedule.sigma, torch.tensor([1.0, 0.7, 0.4, 0.1, 0.0], dtype=torch.float64))
    assert FlowPath(grid_end=0.0, terminal=0.1).schedule(1).sigma.tolist() == [1.0, 0.0]


def test_the_trailing_grid_begins_without_signal_and_ends_in_data():
    alphas = torch.linspace(0.9, 0.0, 1000, dtype=torch.float64)
    schedule = DiscretePath(alphas, "v", grid="trailing").schedule(4)
    assert schedule.t.tolist() == [999, 749, 499, 249]
    assert (schedule.alpha[0], schedule.sigma[0], schedule.alpha[-1], schedule.sigma[-1]) == (0, 1, 1, 0)
    assert DiscretePath(alphas, "v", grid="trailing").schedule(999).t.min() >= 0


def _weights(random):
    return tuple(0.1 * torch.randn(*s, generator=random) for s in ((4, 4), (4,), (4, 5)))


@pytest.mark.parametrize(
    ("name", "steps", "tau", "tails"), [("D20_tau0.6", 20, 0.6, (1, 3)), ("D10_tau0.5", 10, 0.5, (1, 2, 5))]
)
def test_instructvideo_chain_and_tail_gradients(golden, name, steps, tau, tails):
    """The published partial DDIM chain: schedule, every latent, and the gradient of each tail length K."""
    tensors, _ = golden("instructvideo_chain")
    path = DiscretePath(scaled_linear_alphas())
    torch.testing.assert_close(path.alphas_cumprod, tensors["outputs/alphas_cumprod"], rtol=1e-8, atol=1e-10)
    t = tensors[f"outputs/{name}/timesteps"]
    assert path.schedule(steps).t[-int(steps * tau) :].long().tolist() == t.tolist()
    condition = Condition({"y": tensors["inputs/y_cond"]}, {"y": tensors["inputs/y_uncond"]})
    for k in tails:
        weights = [tensors[f"weights/{n}"].clone() for n in ("W", "u", "V")]
        generator = LinearGenerator(path, *weights, shape=tensors["inputs/x0"].shape[1:])
        live = range(len(t) - k, len(t))
        final = chain(
            generator,
            tensors[f"outputs/{name}/start_latent"],
            condition,
            path.chain(t),
            ChainOptions(3.0, gradient_steps=live),
        )
        torch.testing.assert_close(final.detach(), tensors[f"outputs/{name}/final"], rtol=1e-8, atol=1e-10)
        loss = (tensors["inputs/loss_weight"] * final).sum()
        torch.testing.assert_close(loss.detach(), tensors[f"outputs/{name}/K{k}/loss"], rtol=1e-8, atol=1e-10)
        loss.backward()
        for parameter, label in ((generator.w, "W"), (generator.u, "u"), (generator.v, "V")):
            torch.testing.assert_close(
                parameter.grad, tensors[f"outputs/{name}/K{k}/grad_{label}"], rtol=1e-8, atol=1e-10
            )


@pytest.mark.parametrize("eta", [0, 1])
def test_videocrafter2_steps(golden, eta):
    """Every step of VADER's VideoCrafter2 sampler, from its own network outputs: α scaled to 0.7, noise at the end."""
    tensors, _ = golden("videocrafter2_ddim")
    path = DiscretePath(scaled_linear_alphas().float().double(), scale=tensors["outputs/scale_arr"])
    schedule = path.schedule(5)
    assert schedule.t.long().tolist() == tensors["outputs/timesteps"].tolist()
    x = tensors["inputs/x_T"].double()
    for i in range(5):
        e_c, e_u = (tensors[f"outputs/eta{eta}/{n}"][i].double() for n in ("eps_cond", "eps_uncond"))
        x0, eps = endpoints("epsilon", e_u + 12 * (e_c - e_u), x, schedule.alpha[i], schedule.sigma[i])
        _close(x0, tensors[f"outputs/eta{eta}/pred_x0"][i], 5e-5)
        _close(
            step(x0, eps, schedule, i, eta, tensors["inputs/noise"][i].double()),
            tensors[f"outputs/eta{eta}/latents"][i],
            5e-5,
        )
        x = tensors[f"outputs/eta{eta}/latents"][i].double()


def test_opensora_steps(golden):
    """Every rectified-flow step of VADER's Open-Sora sampler, whose velocity points the other way."""
    tensors, _ = golden("opensora_rflow")
    sigma = torch.cat([tensors["outputs/timesteps"] / 1000, torch.zeros(1, 2)]).double()
    x = tensors["inputs/z"].double()
    for i in range(5):
        cond, uncond = (tensors[f"outputs/pred_{n}"][i].double().chunk(2, 1)[0] for n in ("cond", "uncond"))
        velocity = -(uncond + 7 * (cond - uncond))
        for row in range(2):
            s = sigma[:, row]
            schedule = Schedule(s[:-1] * 1000, 1 - s, s, torch.zeros(5))
            x0, eps = endpoints("flow", velocity[row], x[row], 1 - s[i], s[i])
            _close(step(x0, eps, schedule, i), tensors["outputs/latents"][i, row], 1e-4)
        x = tensors["outputs/latents"][i].double()


def _close(ours, theirs, tolerance):
    assert (ours - theirs).abs().max() / theirs.abs().max() <= tolerance


def test_noise_of_a_clip_does_not_depend_on_its_batch():
    alone, together = seeded_noise((2, 3), [7]), seeded_noise((2, 3), [5, 7, 9])
    assert torch.equal(alone[0], together[1])
    assert not torch.equal(together[0], together[1])


def test_a_chain_needs_steps():
    with pytest.raises(ConfigError, match="at least 1 step; got 0"):
        FlowPath().schedule(0)
    with pytest.raises(ConfigError, match="1 to 1000 steps; got 1001"):
        DiscretePath(scaled_linear_alphas()).schedule(1001)
