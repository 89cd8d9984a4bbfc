"""Fine-tuning on winners: targets and weights by hand, the gradient by finite differences, and that it learns."""

import numpy as np
import pytest
import torch
from linear_generator import LinearGenerator

from reelign.algorithms import flow_matching
from reelign.algorithms.best_of_n import BestOfN, Config, reward_weights
from reelign.contracts import Condition, Request
from reelign.errors import DataError, NonFiniteError
from reelign.objectives import drop_captions
from reelign.paths import DiscretePath, FlowPath, endpoints, scaled_linear_alphas, training_target

PROMPTS = ("aa", "bbb", "cccc", "ddddd")


def request(level: float | None = None) -> Request:
    video = torch.rand(4, 6, 3, 3, 3, generator=torch.Generator().manual_seed(5))
    return Request(PROMPTS, source_videos=video if level is None else torch.full_like(video, level))


def make(path=None, seed=0, **options) -> BestOfN:
    random = torch.Generator().manual_seed(1)
    w, u, v = (0.2 * torch.randn(*s, generator=random) for s in ((4, 4), (4,), (4, 5)))
    generator = LinearGenerator(path or FlowPath(3.0), w, u, v, shape=(4, 6, 3, 3))
    return BestOfN(generator, Config(**{"lr": 0.05, **options}), seed)


def test_targets_by_hand():
    clean, noise, alpha, sigma = (torch.tensor(x) for x in (2.0, -1.0, 0.6, 0.8))
    expected = {"epsilon": -1.0, "v": 0.6 * -1 - 0.8 * 2, "flow": -3.0, "x0": 2.0}
    for kind, value in expected.items():
        assert training_target(kind, clean, noise, alpha, sigma).item() == pytest.approx(value)


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow", "x0"])
def test_a_network_that_says_the_target_is_understood(kind):
    clean, noise = torch.randn(2, 3), torch.randn(2, 3)
    sigma = torch.tensor(0.3, dtype=torch.float32)
    alpha = 1 - sigma if kind == "flow" else (1 - sigma**2).sqrt()
    x = alpha * clean + sigma * noise
    x0, eps = endpoints(kind, training_target(kind, clean, noise, alpha, sigma), x, alpha, sigma)
    assert torch.allclose(x0, clean, atol=1e-5)
    assert torch.allclose(eps, noise, atol=1e-5)


def test_weights_by_hand():
    weights = reward_weights(np.array([0.0, np.log(3.0)]), 1.0)
    assert weights == pytest.approx([0.5, 1.5])  # 2·(1/4, 3/4)
    assert reward_weights(np.array([1.0, 2.0, 5.0]), 1e-3) == pytest.approx([0, 0, 3])
    assert reward_weights(np.array([1.0, 2.0, 5.0]), 1e6) == pytest.approx([1, 1, 1], abs=1e-4)
    assert reward_weights(np.array([1e9, 1e9]), 1.0) == pytest.approx([1, 1])  # no overflow
    for bad in (np.array([1.0, np.nan]), np.array([])):
        with pytest.raises(DataError):
            reward_weights(bad, 1.0)
    with pytest.raises(DataError):
        reward_weights(np.array([1.0]), 0.0)


def test_dropped_captions_are_the_negative_prompts():
    condition = Condition({"y": torch.ones(4000, 2)}, {"y": torch.zeros(4000, 2)})
    dropped = torch.rand(4000, generator=torch.Generator().manual_seed(0)) < 0.25
    mixed = drop_captions(condition, dropped).positive["y"]
    assert torch.equal(mixed, (~dropped).float()[:, None].expand(-1, 2))  # whole rows
    assert drop_captions(condition, torch.zeros(4000, dtype=torch.bool)) is condition
    assert drop_captions(Condition({"y": torch.ones(3, 2)}), torch.ones(3) > 0).positive["y"].sum() == 6


def test_training_drops_captions_at_their_share(monkeypatch):
    seen = []
    monkeypatch.setattr(flow_matching, "drop_captions", lambda condition, rows: seen.append(rows) or condition)
    algorithm = make(caption_dropout=0.25)
    for _ in range(100):
        algorithm.step(request())
    assert torch.cat(seen).float().mean().item() == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize("path", [FlowPath(3.0), DiscretePath(scaled_linear_alphas())], ids=["flow", "epsilon"])
def test_the_loss_is_the_papers(path):
    """Against the sum written out row by row, at each row's own noise level."""
    algorithm = make(path, caption_dropout=0.0)
    asked = request()
    clean = algorithm.latents.encode(asked.source_videos)
    noise = torch.randn(clean.shape)
    level = torch.tensor([0, 100, 500, 998])
    loss = algorithm.loss(asked, clean, noise, level, torch.zeros(4, dtype=torch.bool))
    rows = []
    schedule = path.schedule(999)
    for i in range(4):
        a, s, t = (part[level[i]].float() for part in (schedule.alpha, schedule.sigma, schedule.t))
        condition = algorithm.generator.encode(asked[i : i + 1])
        out = algorithm.generator.predict(a * clean[i : i + 1] + s * noise[i : i + 1], t, condition)
        target = noise[i : i + 1] - clean[i : i + 1] if path.prediction == "flow" else noise[i : i + 1]
        rows.append((out - target).square().mean())
    assert loss.item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-5)


def test_micro_batches_make_the_same_update():
    whole, parts = make(caption_dropout=0.0), make(caption_dropout=0.0, micro_batch=1)
    first, second = whole.step(request()), parts.step(request())
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
    for name, parameter in whole.parameters.items():
        assert torch.allclose(parameter, parts.parameters[name], atol=1e-6)


def test_it_learns_the_winners():
    """Clips that are all bright: sampling after fine-tuning is brighter than before."""
    from reelign.sampling import generate

    algorithm = make(lr=0.02, caption_dropout=0.1)
    before = generate(algorithm.generator, Request(PROMPTS), [1, 2, 3, 4], 8, 1.0).video.mean()
    losses = [algorithm.step(request(0.95))["loss"] for _ in range(150)]
    after = generate(algorithm.generator, Request(PROMPTS), [1, 2, 3, 4], 8, 1.0).video.mean()
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])
    assert after > before + 0.15


def test_resumed_equals_uninterrupted():
    straight, first, second = make(average=0.9), make(average=0.9), make(average=0.9, seed=9)
    for _ in range(4):
        straight.step(request())
    for _ in range(2):
        first.step(request())
    second.restore({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in first.state().items()})
    for _ in range(2):
        second.step(request())
    for name, parameter in straight.parameters.items():
        assert torch.equal(parameter, second.parameters[name])
        assert torch.equal(straight.optimisation.average[name], second.optimisation.average[name])


def test_requests_without_clips_and_broken_networks_are_named():
    with pytest.raises(DataError, match="name a folder of clips"):
        make().step(Request(PROMPTS))
    algorithm = make()
    with torch.no_grad():
        algorithm.parameters["w"].fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="the loss"):
        algorithm.step(request())


def test_each_row_may_have_its_own_time(tiny_wan):
    condition = tiny_wan.encode(Request(("a red circle moving left", "a blue square")))
    x = torch.randn(2, *tiny_wan.latent_shape(), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both = tiny_wan.predict(x, torch.tensor([900.0, 100.0]), condition)
        for i, t in enumerate((900.0, 100.0)):
            alone = tiny_wan.predict(x[i : i + 1], torch.tensor(t), condition[i : i + 1])
            assert torch.allclose(both[i : i + 1], alone, atol=1e-4)
