"""Several rewards at once: running scales, constraints with multipliers, conflicting gradients."""

from __future__ import annotations

import statistics
from contextlib import contextmanager

import pytest
import torch
from linear_generator import LinearGenerator
from test_reward_gradient import PROMPTS, Redness

from reelign.algorithms.reward_gradient import Config, RewardGradient
from reelign.contracts import RewardCard
from reelign.errors import ConfigError
from reelign.paths import FlowPath
from reelign.rewards.balance import LARGEST, Balance, RunningDeviation, conflicts
from reelign.rewards.weighted import Term, WeightedReward
from reelign.sampling import SeededNoise


class Greenness:
    """Mean of green, which redness pushes down."""

    card = RewardCard("greenness", "test", (0.0, 1.0))

    def __call__(self, batch):
        return batch.video[:, :, 1].mean((1, 2, 3))


class Anchored(LinearGenerator):
    """Its reference is what it was at first, as with an adapter."""

    @contextmanager
    def reference(self):
        now = {name: p.detach().clone() for name, p in self.trainable().items()}
        for name, parameter in self.trainable().items():
            parameter.data.copy_(self.first[name])
        yield
        for name, parameter in self.trainable().items():
            parameter.data.copy_(now[name])


def algorithm(terms, config=None, seed=0) -> RewardGradient:
    random = torch.Generator().manual_seed(1)
    weights = (0.2 * torch.randn(*s, generator=random) for s in ((4, 4), (4,), (4, 5)))
    generator = Anchored(FlowPath(3.0), *weights, shape=(4, 6, 3, 3))
    generator.first = {name: p.detach().clone() for name, p in generator.trainable().items()}
    options = config or Config(steps=4, guidance_scale=1.0, lr=0.05)
    return RewardGradient(generator, WeightedReward(terms), options, seed)


def test_running_deviation_is_that_of_all_numbers():
    numbers, running = [1.0, 4.0, 4.0, -2.0, 7.5], RunningDeviation()
    running.see(torch.tensor(numbers[:2]))
    running.see(torch.tensor(numbers[2:]).view(3, 1))
    assert running.deviation() == pytest.approx(statistics.stdev(numbers))
    assert RunningDeviation().deviation() == 1
    constant = RunningDeviation()
    constant.see(torch.ones(3))
    assert constant.deviation() == 1


def test_normalised_terms_pull_alike_whatever_their_unit():
    scores = torch.tensor([1.0, 2.0, 3.0])
    reward = WeightedReward([Term("a", Redness(), normalise=True), Term("b", Redness(), normalise=True)])
    objective = Balance(reward).objective({"a": scores, "b": 1000 * scores})
    torch.testing.assert_close(objective, 2 * scores)


def test_a_multiplier_rises_while_broken_and_falls_when_kept():
    reward = WeightedReward([Term("a", Redness()), Term("b", Greenness(), keep_within=0.1, multiplier_rate=0.5)])
    balance = Balance(reward)
    scores = {"a": torch.tensor([0.3]), "b": torch.tensor([0.4])}
    assert balance.objective(scores).item() == pytest.approx(0.3)
    logged = balance.update(scores, {"b": torch.tensor([0.7])})  # 0.3 below the base, 0.2 too much
    assert logged["below_base/b"] == pytest.approx(0.3)
    assert logged["multiplier/b"] == pytest.approx(1.0)
    assert balance.objective(scores).item() == pytest.approx(0.3 + 0.4)
    balance.update(scores, {"b": torch.tensor([0.4])})
    assert balance.multipliers["b"] == pytest.approx(0.5)
    for _ in range(3):
        balance.update(scores, {"b": torch.tensor([0.0])})
    assert balance.multipliers["b"] == 0
    for _ in range(200):
        balance.update(scores, {"b": torch.tensor([1.0])})
    assert balance.multipliers["b"] == LARGEST


def test_a_constraint_holds_what_the_reward_alone_would_give_up():
    """Asked for less green, green goes; with the constraint it goes as far as allowed."""
    free = algorithm([Term("less green", Greenness(), -1.0)])
    held = algorithm([Term("less green", Greenness(), -1.0), Term("greenness", Greenness(), 5.0, keep_within=0.02)])
    seen = Greenness()
    ends, multipliers = [], []
    for one in (free, held):
        for _ in range(60):
            logged = one.step(PROMPTS)
            multipliers.append(logged.get("multiplier/greenness", 0.0))
        noise = torch.randn(4, *one.generator.latent_shape(), generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            batch, _ = one.rollout(PROMPTS, noise, frozenset(), list(range(6)), SeededNoise(range(4)))
            with one.generator.reference():
                base, _ = one.rollout(PROMPTS, noise, frozenset(), list(range(6)), SeededNoise(range(4)))
        ends.append((logged["reward"], float((seen(base) - seen(batch)).mean())))
    assert ends[0][1] > 0.05
    assert ends[1][1] < 0.03
    assert max(multipliers) > 0


def test_without_constraints_no_second_chain_is_run():
    plain = algorithm([Term("redness", Redness())])
    plain.step(PROMPTS)
    calls = plain.generator.calls
    held = algorithm([Term("redness", Redness()), Term("greenness", Greenness(), keep_within=0.1)])
    held.step(PROMPTS)
    assert (calls, held.generator.calls) == (4, 8)


def test_resumed_equals_uninterrupted():
    terms = [Term("redness", Redness(), normalise=True), Term("greenness", Greenness(), keep_within=0.01)]
    config = Config(steps=4, guidance_scale=1.0, lr=0.05, micro_batch=2, eta=0.5)
    straight, first, second = (algorithm(terms, config, seed) for seed in (0, 0, 5))
    logs = [straight.step(PROMPTS) for _ in range(6)]
    for _ in range(3):
        first.step(PROMPTS)
    second.restore(first.state())
    assert [second.step(PROMPTS) for _ in range(3)] == logs[3:]


def test_conflicts_are_cosines_of_gradients():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    found = conflicts({"up": x.sum(), "down": -2 * x.sum(), "side": x[0] - x[1]}, [x])
    assert found == pytest.approx({"conflict/up|down": -1, "conflict/up|side": 0, "conflict/down|side": 0}, abs=1e-6)
    config = Config(steps=4, guidance_scale=1.0, conflict_every=2)
    one = algorithm([Term("redness", Redness()), Term("greenness", Greenness(), -1.0)], config)
    logs = [one.step(PROMPTS) for _ in range(3)]
    assert ["conflict/redness|greenness" in log for log in logs] == [True, False, True]
    assert -1 <= logs[0]["conflict/redness|greenness"] <= 1


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="keep_within above 0"):
        Term("a", Redness(), keep_within=0.0)
    with pytest.raises(ConfigError, match="no constraint"):
        WeightedReward([Term("a", Redness(), keep_within=0.1)])
