"""InstructVideo: the numbers of its program, flow paths, cached latents, and that it learns."""

from __future__ import annotations

import pytest
import torch
from linear_generator import LinearGenerator
from test_reward_gradient import Redness

from reelign.algorithms.partial_chain import Config, PartialChain, corrupt, tail
from reelign.algorithms.reward_gradient import gradient_steps
from reelign.contracts import Condition, Request
from reelign.errors import ConfigError, DataError
from reelign.latents import LatentCache
from reelign.paths import DiscretePath, FlowPath, scaled_linear_alphas
from reelign.rewards.weighted import Term, WeightedReward
from reelign.sampling import ChainOptions, SeededNoise, chain

PROMPTS = ("aa", "bbb", "cccc", "ddddd")


def request() -> Request:
    video = torch.rand(4, 6, 3, 3, 3, generator=torch.Generator().manual_seed(5))
    return Request(PROMPTS, source_videos=video)


def make(path=None, seed=0, **options) -> PartialChain:
    random = torch.Generator().manual_seed(1)
    w, u, v = (0.2 * torch.randn(*s, generator=random) for s in ((4, 4), (4,), (4, 5)))
    generator = LinearGenerator(path or FlowPath(3.0), w, u, v, shape=(4, 6, 3, 3))
    config = Config(**{"lr": 0.05, "frames": "all", **options})
    return PartialChain(generator, WeightedReward([Term("redness", Redness())]), config, seed)


@pytest.mark.parametrize(
    ("name", "steps", "tau", "tails"), [("D20_tau0.6", 20, 0.6, (1, 3)), ("D10_tau0.5", 10, 0.5, (1, 2, 5))]
)
def test_start_chain_and_gradients_are_the_originals(golden, name, steps, tau, tails):
    tensors, _ = golden("instructvideo_chain")
    close = {"rtol": 1e-8, "atol": 1e-10}
    path = DiscretePath(tensors["outputs/alphas_cumprod"])
    schedule = tail(path.schedule(steps), int(tau * steps + 1e-9))
    assert schedule.t.long().tolist() == tensors[f"outputs/{name}/timesteps"].tolist()
    noise = tensors["inputs/base_noise"] + 0.1 * tensors["inputs/offset_noise"]
    start = corrupt(tensors["inputs/x0"], noise, schedule)
    torch.testing.assert_close(start, tensors[f"outputs/{name}/start_latent"], **close)
    condition = Condition({"y": tensors["inputs/y_cond"]}, {"y": tensors["inputs/y_uncond"]})
    for k in tails:
        config = Config(steps=steps, tau=tau, k=k, guidance_scale=3.0)
        live = gradient_steps(config.model_copy(update={"steps": len(schedule)}), torch.Generator())
        visited = [int(schedule.t[i]) for i in sorted(live)]
        assert sorted(visited) == sorted(tensors[f"outputs/{name}/K{k}/grad_timesteps"].tolist())
        weights = [tensors[f"weights/{n}"].clone() for n in ("W", "u", "V")]
        generator = LinearGenerator(path, *weights, shape=tensors["inputs/x0"].shape[1:])
        final = chain(generator, start, condition, schedule, ChainOptions(3.0, gradient_steps=live))
        torch.testing.assert_close(final.detach(), tensors[f"outputs/{name}/final"], **close)
        (tensors["inputs/loss_weight"] * final).sum().backward()
        torch.testing.assert_close(generator.w.grad, tensors[f"outputs/{name}/K{k}/grad_W"], **close)
        torch.testing.assert_close(generator.v.grad, tensors[f"outputs/{name}/K{k}/grad_V"], **close)


@pytest.mark.parametrize("path", [FlowPath(3.0), DiscretePath(scaled_linear_alphas())])
def test_begins_at_the_noise_level_of_tau(path, random):
    algorithm = make(path, offset_noise=0.0, tau=0.5, steps=10)
    noise = torch.randn(4, 4, 6, 3, 3, generator=random)
    x, schedule = algorithm.begin(request(), noise, SeededNoise(range(4)))
    whole = path.schedule(10)
    assert len(schedule) == 5
    assert schedule.sigma[0] == whole.sigma[5]
    clean = algorithm.latents.encode(request().source_videos)
    expected = whole.alpha[5].float() * clean + whole.sigma[5].float() * noise
    torch.testing.assert_close(x, expected)


def test_runs_only_its_share_of_the_chain():
    algorithm = make(steps=20, tau=0.6)
    algorithm.step(request())
    assert algorithm.update.generator.calls == 12


def test_offset_noise_is_shared_by_pixels():
    algorithm = make(offset_noise=1.0)
    zero = torch.zeros(4, 4, 6, 3, 3)
    x, schedule = algorithm.begin(request(), zero, SeededNoise(range(4)))
    clean = algorithm.latents.encode(request().source_videos)
    shared = x - schedule.alpha[0].float() * clean
    assert shared.flatten(3).std(-1).max() < 1e-5
    assert shared[:, :, :, 0, 0].std() > 0.1


def test_learns():
    algorithm = make(steps=10)
    rewards = [algorithm.step(request())["reward"] for _ in range(40)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2


def test_resumed_equals_uninterrupted():
    straight, first, second = make(), make(), make(seed=9)
    for _ in range(4):
        straight.step(request())
    for _ in range(2):
        first.step(request())
    second.restore(first.state())
    for _ in range(2):
        second.step(request())
    for name, parameter in straight.parameters.items():
        assert torch.equal(parameter, second.parameters[name])


def test_latents_are_encoded_once_and_kept_on_disk(tmp_path):
    algorithm, calls = make(), []
    original = algorithm.update.generator.encode_video

    class Counting:
        def encode_video(self, video):
            calls.append(len(video))
            return original(video)

    cache = LatentCache(Counting(), tmp_path)
    once, again = cache.encode(request().source_videos), cache.encode(request().source_videos)
    assert torch.equal(once, again)
    fresh = LatentCache(Counting(), tmp_path).encode(request().source_videos)
    assert torch.equal(once, fresh)
    assert calls == [1, 1, 1, 1]


def test_what_cannot_be_is_refused():
    with pytest.raises(DataError, match="has none"):
        make().step(Request(PROMPTS))
    with pytest.raises(ConfigError, match=r"tau·steps is at least 1"):
        Config(steps=1, tau=0.5)
    with pytest.raises(ConfigError, match=r"k must be at most tau·steps \(6\)"):
        Config(steps=10, tau=0.6, k=7)
