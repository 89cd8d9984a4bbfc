"""VADER: which steps carry gradient, whether the gradient is right, and whether it learns."""

from __future__ import annotations

import pytest
import torch
from linear_generator import LinearGenerator

from reelign.algorithms.reward_gradient import Config, RewardGradient, gradient_steps
from reelign.contracts import Request, RewardCard
from reelign.errors import ConfigError, NonFiniteError
from reelign.paths import FlowPath
from reelign.rewards.weighted import Term, WeightedReward
from reelign.sampling import SeededNoise

PROMPTS = Request(("aa", "bbb", "cccc", "ddddd"))


class Redness:
    """Mean of red minus mean of the others."""

    card = RewardCard("redness", "test", (-1.0, 1.0))

    def __call__(self, batch):
        return batch.video[:, :, 0].mean((1, 2, 3)) - batch.video[:, :, 1:].mean((1, 2, 3, 4))


def make(config: Config, dtype=torch.float32, reward=None, weights=(), seed=0) -> RewardGradient:
    random = torch.Generator().manual_seed(1)
    w, u, v = (0.2 * torch.randn(*s, generator=random, dtype=dtype) for s in ((4, 4), (4,), (4, 5)))
    generator = LinearGenerator(FlowPath(3.0), w, u, v, shape=(4, 6, 3, 3))
    terms = [Term("redness", reward or Redness(), *weights)]
    return RewardGradient(generator, WeightedReward(terms), config, seed)


def rollout_objective(algorithm: RewardGradient, noise, live):
    frames = algorithm.config.frames.indices(6, torch.Generator())
    batch, divergence = algorithm.rollout(PROMPTS, noise, frozenset(live), frames, SeededNoise(range(4)))
    return algorithm.reward(batch).mean(), divergence


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"k": 1}, {9}),
        ({"k": 3}, {7, 8, 9}),
        ({"k": 10}, set(range(10))),
        ({"mode": "uniform", "k": 2}, {4, 9}),
        ({"mode": "uniform", "k": 5}, {1, 3, 5, 7, 9}),
        ({"mode": "specific", "gradient_steps": (2, 6)}, {2, 6}),
    ],
)
def test_modes_mean_what_they_say(options, expected, random):
    assert gradient_steps(Config(steps=10, **options), random) == expected


def test_random_mode_draws_k_different_steps_each_time(random):
    config = Config(steps=10, mode="random", k=3)
    draws = {gradient_steps(config, random) for _ in range(30)}
    assert all(len(d) == 3 for d in draws)
    assert len(draws) > 10
    assert set().union(*draws) == set(range(10))


@pytest.mark.parametrize("k", [1, 3])
def test_gradient_equals_finite_differences(k):
    """Central differences of the tail with a frozen prefix, in float64: relative error at most 1e-6 (K = 1)."""
    algorithm = make(Config(steps=5, guidance_scale=4.0, k=k), torch.float64)
    generator = algorithm.generator
    generator.bent = True  # the gradient must hold for a network that is not linear
    noise = torch.randn(4, *generator.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    schedule = generator.path.schedule(5)
    from reelign.contracts import Condition
    from reelign.sampling import ChainOptions, chain

    condition = generator.encode(PROMPTS)
    condition = Condition({n: t.double() for n, t in condition.positive.items()}, {"y": torch.zeros(4, 5).double()})
    probe = torch.randn(noise.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def tail(x):
        part = type(schedule)(
            schedule.t[5 - k :], schedule.alpha[5 - k :], schedule.sigma[5 - k :], schedule.ancestral[5 - k :]
        )
        return (probe * chain(generator, x, condition, part, ChainOptions(4.0, gradient_steps=range(k)))).sum()

    whole = chain(generator, noise, condition, schedule, ChainOptions(4.0, gradient_steps=range(5 - k, 5)))
    (probe * whole).sum().backward()
    with torch.no_grad():
        head = type(schedule)(
            schedule.t[: 5 - k], schedule.alpha[: 6 - k], schedule.sigma[: 6 - k], schedule.ancestral[: 5 - k]
        )
        prefix = chain(generator, noise, condition, head, ChainOptions(4.0))
        for name, parameter in generator.trainable().items():
            flat = parameter.view(-1)
            for index in range(0, flat.numel(), 3):
                step, kept = 1e-5, flat[index].item()
                flat[index] = kept + step
                up = tail(prefix)
                flat[index] = kept - step
                down = tail(prefix)
                flat[index] = kept
                measured = ((up - down) / (2 * step)).item()
                assert parameter.grad.view(-1)[index].item() == pytest.approx(measured, rel=1e-6, abs=1e-8), name


def test_the_prefix_keeps_no_graph_and_costs_no_memory():
    """Saved tensors do not grow with the number of steps."""

    def saved_bytes(steps: int) -> int:
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        algorithm = make(Config(steps=steps))
        noise = torch.randn(4, *algorithm.generator.shape)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            rollout_objective(algorithm, noise, {steps - 1})
        return total

    assert saved_bytes(5) == saved_bytes(50)


def test_passes_are_one_per_step_with_guidance():
    algorithm = make(Config(steps=7, guidance_scale=5.0))
    algorithm.step(PROMPTS)
    assert algorithm.generator.calls == 7


def test_micro_batches_make_the_same_update():
    whole, parts = make(Config(steps=4)), make(Config(steps=4, micro_batch=1))
    logged = [a.step(PROMPTS) for a in (whole, parts)]
    assert logged[0]["reward"] == pytest.approx(logged[1]["reward"], abs=1e-6)
    for a, b in zip(whole.parameters.values(), parts.parameters.values(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "options", [{}, {"k": 3}, {"mode": "random", "k": 2}, {"eta": 1.0}, {"detach_input": True, "k": 3}]
)
def test_it_learns(options):
    """Reddening clips: thirty updates raise the reward a lot, whatever the mode."""
    algorithm = make(Config(steps=5, lr=0.05, guidance_scale=2.0, **options))
    rewards = [algorithm.step(PROMPTS)["reward"] for _ in range(30)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.15


def test_detached_input_changes_the_gradient_only_for_longer_tails():
    noise = torch.randn(4, 4, 6, 3, 3, generator=torch.Generator().manual_seed(2))
    grads = {}
    for k in (1, 3):
        for detach in (False, True):
            algorithm = make(Config(steps=5, k=k, detach_input=detach))
            rollout_objective(algorithm, noise, range(5 - k, 5))[0].backward()
            grads[k, detach] = algorithm.parameters["w"].grad
    torch.testing.assert_close(grads[1, False], grads[1, True])
    assert (grads[3, False] - grads[3, True]).abs().max() > 1e-4


def test_divergence_pulls_towards_the_reference():
    """The penalty measures the distance to the prediction without the adapter, and holds the weights back."""
    free, held = make(Config(steps=4, lr=0.05)), make(Config(steps=4, lr=0.05, kl_weight=50.0))
    divergences = []
    for _ in range(60):
        free.step(PROMPTS)
        divergences.append(held.step(PROMPTS)["divergence"])
    assert divergences[-1] < 0.5 * divergences[0]
    assert held.parameters["w"].abs().max() < free.parameters["w"].abs().max()


def test_average_of_weights_is_exported_and_taken_back():
    algorithm = make(Config(steps=3, lr=0.1, average=0.5))
    start = algorithm.parameters["w"].detach().clone()
    algorithm.step(PROMPTS)
    trained = algorithm.parameters["w"].detach().clone()
    with algorithm.exported():
        torch.testing.assert_close(algorithm.parameters["w"].detach(), 0.5 * start + 0.5 * trained)
    assert torch.equal(algorithm.parameters["w"], trained)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_restored_equals_uninterrupted_bit_for_bit(average):
    config = Config(steps=4, mode="random", k=2, eta=0.5, frames="random", average=average)
    straight, first, second = make(config), make(config), make(config, seed=99)
    for _ in range(6):
        straight.step(PROMPTS)
    for _ in range(3):
        first.step(PROMPTS)
    second.restore({k: torch.load(_through_disk(v), weights_only=True) for k, v in first.state().items()})
    for _ in range(3):
        second.step(PROMPTS)
    for name in straight.parameters:
        assert torch.equal(straight.parameters[name], second.parameters[name])
    if average:
        assert torch.equal(straight.optimisation.average["w"], second.optimisation.average["w"])


def _through_disk(value):
    import io

    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return buffer


class Broken(Redness):
    def __call__(self, batch):
        return super().__call__(batch) * float("nan")


class Exploding(Redness):
    """Finite, with an infinite gradient."""

    def __call__(self, batch):
        score = super().__call__(batch)
        return (score - score.detach()).sqrt()


def test_non_finite_rewards_and_gradients_are_named():
    with pytest.raises(NonFiniteError, match="redness"):
        make(Config(steps=2), reward=Broken()).step(PROMPTS)
    algorithm = make(Config(steps=2), reward=Exploding())
    before = algorithm.parameters["w"].detach().clone()
    with pytest.raises(NonFiniteError, match="gradient of w"):
        algorithm.step(PROMPTS)
    assert torch.equal(algorithm.parameters["w"], before)


class LooksAtSixteen(Redness):
    card = RewardCard("long", "test", (-1.0, 1.0), frames=16)


def test_bad_settings_are_one_clear_line():
    with pytest.raises(ConfigError, match=r"k must be at most steps \(3\); got 4"):
        Config(steps=3, k=4)
    with pytest.raises(ConfigError, match="run from 0 to 4; got"):
        Config(steps=5, mode="specific", gradient_steps=(5,))
    with pytest.raises(ConfigError, match="goes with mode 'specific'"):
        Config(mode="specific")
    with pytest.raises(ConfigError, match="looks at 16 frames"):
        make(Config(frames="random"), reward=LooksAtSixteen())
