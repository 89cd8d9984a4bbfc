"""RL-V2V-GAN as an algorithm: it learns, resumes bit for bit, keeps domains apart, leaves out what it is told to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from reelign.algorithms.translation_agent import Agent, candidates, values_of
from reelign.algorithms.translation_clips import cut, motion_of, unpaired
from reelign.algorithms.translation_history import ClipHistory
from reelign.algorithms.translation_losses import steadiness_loss
from reelign.algorithms.translation_mdp import X, Y
from reelign.algorithms.video_translation import Config, VideoTranslation, frozen
from reelign.contracts import Algorithm, Request
from reelign.datasets.day_night import DayNight
from reelign.errors import ConfigError, DataError, NonFiniteError
from reelign.generators.translation import TranslationGenerator, load_translation
from reelign.generators.translation_layers import AROUND
from reelign.metrics.translation import source_motion, warping_error
from reelign.video_io import to_pictures

SIZE = 16
SMALL = {"discriminator_channels": 4, "critic_channels": 4, "replay": 8, "agent_crop": 16}


def scenes(count: int, frames: int, random: torch.Generator) -> Tensor:
    """A square of one of two colours that moves over a plain backdrop: [count,T,3,16,16]."""
    video = 0.5 + 0.1 * torch.rand(count, 1, 3, 1, 1, generator=random).expand(count, frames, 3, SIZE, SIZE).clone()
    colours = torch.tensor([[0.9, 0.3, 0.2], [0.2, 0.4, 0.9]])
    for n in range(count):
        left, top, step, colour = (int(torch.randint(high, (1,), generator=random)) for high in (6, 10, 3, 2))
        for t in range(frames):
            video[n, t, :, top : top + 6, left + step * t : left + step * t + 6] = colours[colour].view(3, 1, 1)
    return video


def dusk(video: Tensor) -> Tensor:
    """The known translation: darker, and bluer."""
    return video * torch.tensor([0.35, 0.45, 0.75]).view(3, 1, 1)


def batch(count: int, frames: int, random: torch.Generator) -> Request:
    clips = torch.cat([scenes(count, frames, random), dusk(scenes(count, frames, random))])
    return Request(("x",) * count + ("y",) * count, clips)


def small(**options: object) -> TranslationGenerator:
    return load_translation(channels=4, hidden=4, device="cpu", **options)


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10((a - b).square().mean().item())


def test_it_learns_a_change_of_light_without_pairs(random: torch.Generator) -> None:
    generator = load_translation(channels=8, hidden=8, device="cpu")
    rates = {"lr": 3e-3, "discriminator_lr": 3e-3, "critic_lr": 1e-3, "average": 0.9}
    config = Config(**{**SMALL, **rates, "discriminator_channels": 8, "replay": 200})
    algorithm = VideoTranslation(generator, config)
    held_out = scenes(16, 3, torch.Generator().manual_seed(99))
    for _ in range(60):
        logged = algorithm.step(batch(2, 3, random))
    with algorithm.exported(), torch.no_grad():
        there, back = generator.cycle(held_out, "x")
    assert psnr(held_out, dusk(held_out)) < 13
    assert psnr(there, dusk(held_out)) > 20
    assert psnr(back, held_out) > 20
    assert logged["replay"] == 200


def test_it_is_an_algorithm() -> None:
    assert isinstance(VideoTranslation(small(), Config(**SMALL)), Algorithm)


@pytest.mark.parametrize("seen", [0, 3])
def test_resumed_equals_uninterrupted_bit_for_bit(seen: int, tmp_path) -> None:
    def fresh() -> VideoTranslation:
        return VideoTranslation(small(), Config(**SMALL, r1_every=2, window=3), seed=5)

    def steps(algorithm: VideoTranslation, start: int, stop: int) -> list[dict[str, float]]:
        return [algorithm.step(batch(2, 4, torch.Generator().manual_seed(n))) for n in range(start, stop)]

    whole = fresh()
    steps(whole, 0, seen)
    torch.save(whole.state(), tmp_path / "state.pt")
    expected = steps(whole, seen, seen + 3)
    torch.manual_seed(1234)  # nothing may draw from the global source
    resumed = fresh()
    resumed.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert steps(resumed, seen, seen + 3) == expected
    assert all(torch.equal(p, whole.parameters[n]) for n, p in resumed.parameters.items())


@pytest.mark.parametrize(
    ("off", "gone", "stays"),
    [
        ({"rl": False}, {"actor", "critic_loss", "replay"}, {"recycle", "clips"}),
        ({"recurrent": False}, {"recurrent"}, {"recycle", "actor"}),
        ({"recycle": False}, {"recycle"}, {"recurrent", "actor"}),
        ({"video_discriminator": False}, {"clips"}, {"recycle", "actor"}),
        ({"lambda_cycle": 0}, {"cycle"}, {"identity"}),
        ({"per_frame": True}, {"clips", "recurrent", "recycle", "actor"}, {"frames", "cycle", "identity"}),
        ({"adversarial": "hinge", "r1": 0}, set(), {"frames", "actor"}),
    ],
)
def test_each_part_can_be_left_out(off: dict, gone: set[str], stays: set[str], random: torch.Generator) -> None:
    algorithm = VideoTranslation(small(), Config(**SMALL, **off))
    logged = algorithm.step(batch(1, 3, random))
    assert not gone & set(logged)
    assert stays | {"loss", "judge_loss"} <= set(logged)
    assert all(math.isfinite(value) for value in logged.values())
    assert algorithm.generator.per_frame == off.get("per_frame", False)


def plain(level: float, count: int = 1, frames: int = 4) -> Tensor:
    return torch.full((count, frames, 3, SIZE, SIZE), level)


def test_transitions_know_their_domain_and_are_judged_by_it() -> None:
    algorithm = VideoTranslation(small(), Config(**SMALL, sigma2=0.0, lambda_rr=0.0, lambda_rc=0.0))
    agent = algorithm.agent
    assert isinstance(agent, Agent)
    judged: list[float] = []

    def judge(pictures: Tensor) -> Tensor:
        judged.append(pictures.mean().item())
        return torch.zeros(len(pictures))

    x = agent.explore(plain(0.25, 6), "x", judge, None)
    y = agent.explore(plain(0.75, 6), "y", judge, None)
    assert x.domain.tolist() == [X] * 6
    assert y.domain.tolist() == [Y] * 6
    # a new predictor repeats the last frame, which is zero where the clip had not begun
    assert judged == pytest.approx([0.25, 0.75], abs=1e-3)
    assert x.reward.tolist() == pytest.approx([-math.log(2)] * 6)


def test_the_last_frame_is_rewarded_as_a_clip() -> None:
    agent = VideoTranslation(small(), Config(**SMALL, lambda_v=2.0, lambda_rr=0.0, lambda_rc=0.0)).agent

    def video_judge(video: Tensor) -> Tensor:
        assert video.shape[1:] == (2, 3, SIZE, SIZE)
        return torch.full((len(video),), -50.0)  # softplus(50) = 50

    found = agent.explore(plain(0.5, 3, frames=2), "x", lambda p: torch.zeros(len(p)), video_judge)
    assert found.ended.all()  # of two frames the second is the only action, and the last
    assert found.reward.tolist() == pytest.approx([-100.0] * 3)


def test_the_critic_learns_from_its_own_domains_networks(random: torch.Generator) -> None:
    agent = VideoTranslation(small(), Config(**SMALL, gamma=0.5)).agent
    with torch.no_grad():
        agent.q_targets["x"].last.bias.fill_(-8.0)
        agent.q_targets["y"].last.bias.fill_(-2.0)
        for q in (*agent.q_targets.values(), *agent.q.values()):
            q.last.weight.zero_()
        for q in agent.q.values():
            q.last.bias.zero_()
    for domain, bias in (("x", -8.0), ("y", -2.0)):
        t = agent.explore(plain(0.5, 4), domain, lambda p: torch.zeros(len(p)), None)
        t.ended.fill_(False)
        t.reward.fill_(-1.0)
        wanted = -1.0 + 0.5 * bias
        assert agent.critic_loss(t).item() == pytest.approx(wanted**2)
        t.ended.fill_(True)
        assert agent.critic_loss(t).item() == pytest.approx(1.0)


def test_candidates_are_the_prediction_and_the_detour() -> None:
    generator = small()
    with torch.no_grad():
        for name, change in {"to_x": 0.05, "to_y": 0.1, "next_x": 0.2, "next_y": -0.03}.items():
            generator.networks[name].out.bias.fill_(change / AROUND)
    both = candidates(generator.networks, plain(0.4, frames=3), "x").mean((0, 2, 3, 4))
    assert both.tolist() == pytest.approx([0.4 + 0.2, 0.4 + 0.1 - 0.03 + 0.05], abs=1e-5)
    both = candidates(generator.networks, plain(0.4, frames=3), "y").mean((0, 2, 3, 4))
    assert both.tolist() == pytest.approx([0.4 - 0.03, 0.4 + 0.05 + 0.2 + 0.1], abs=1e-5)


def test_the_actor_climbs_q_and_leaves_it_alone(random: torch.Generator) -> None:
    algorithm = VideoTranslation(small(), Config(**SMALL))
    agent, t = algorithm.agent, None

    class Brightness(torch.nn.Module):
        def forward(self, state: Tensor, action: Tensor) -> Tensor:
            return action.mean((1, 2, 3)) - 5

    t = agent.explore(plain(0.5, 4), "x", lambda p: torch.zeros(len(p)), None)
    agent.q["x"] = Brightness()
    before = agent.actor_loss(t)
    optimiser = torch.optim.SGD(algorithm.generator.networks.parameters(), 0.5)
    before.backward()
    optimiser.step()
    assert agent.actor_loss(t) < before
    assert values_of(agent.q["x"], t.state, t.action[:, None]).shape == (4, 1)


def test_target_networks_follow_slowly(random: torch.Generator) -> None:
    algorithm = VideoTranslation(small(), Config(**SMALL, tau=0.25, colours_first=0))
    name = "to_y.out.bias"
    before = dict(algorithm.agent.target_networks.named_parameters())[name].clone()
    algorithm.step(batch(1, 3, random))
    after = dict(algorithm.agent.target_networks.named_parameters())[name]
    live = algorithm.parameters[name].detach()
    assert not torch.equal(live, before)
    torch.testing.assert_close(after, 0.75 * before + 0.25 * live)


def test_history_shows_earlier_clips_again(random: torch.Generator) -> None:
    history = ClipHistory(3)
    assert history.behind(plain(0.4), plain(0.6), random)[0].shape == plain(0.4).shape  # there is nothing earlier
    history.add(plain(0.2), plain(0.8))
    real, made = history.behind(plain(0.4), plain(0.6), random)
    assert real.mean((1, 2, 3, 4)).tolist() == pytest.approx([0.4, 0.2], abs=1e-6)
    assert made.mean((1, 2, 3, 4)).tolist() == pytest.approx([0.6, 0.8], abs=1e-6)
    history.add(plain(0.4, 3), plain(0.6, 3))
    assert len(history) == 3
    assert history.state()["real"].unique().tolist() == [102]  # 0.4 of 255: the first is forgotten
    again = ClipHistory(3)
    again.restore(history.state())
    assert torch.equal(again.state()["made"], history.state()["made"])


def test_colours_come_first(random: torch.Generator) -> None:
    """For so many steps translators map colours alone; then, and in predictors always, the rest learns too."""
    algorithm = VideoTranslation(small(), Config(**SMALL, lr=1e-2, colours_first=2))
    picture = torch.rand(1, 1, 3, 16, 16, generator=random)
    shuffled = torch.randperm(256, generator=random)

    def of_colours_alone(name: str) -> bool:
        network = algorithm.generator.networks[name]
        moved, _ = network(picture.flatten(3)[..., shuffled].view_as(picture))
        changed, _ = network(picture)
        return torch.allclose(changed.flatten(3)[..., shuffled], moved.flatten(3), atol=1e-6)

    for step, expected in ((1, True), (2, True), (3, False)):
        algorithm.step(batch(1, 3, random))
        assert [of_colours_alone(f"to_{d}") for d in "xy"] == [expected] * 2, step
        assert not any(of_colours_alone(f"next_{d}") for d in "xy")
    assert (algorithm.generator.translate(picture, "y")[0] - picture).abs().max() > 1e-3


def test_the_rate_halves_in_its_half_life(random: torch.Generator) -> None:
    algorithm = VideoTranslation(small(), Config(**SMALL, lr=1e-3, half_life=2, rl=False))
    for _ in range(4):
        algorithm.step(batch(1, 3, random))
    assert algorithm.optimisation.optimiser.param_groups[0]["lr"] == pytest.approx(2.5e-4)
    assert algorithm.judging.optimiser.param_groups[0]["lr"] == 1e-4


def test_frozen_modules_get_no_gradient_and_recover() -> None:
    layer = torch.nn.Linear(2, 1)
    x = torch.ones(1, 2, requires_grad=True)
    with frozen(layer):
        layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None
    assert layer.weight.requires_grad


def test_steadiness_is_the_warping_error_of_training(random: torch.Generator) -> None:
    x, y = DayNight(frames=4, size=48).pair(2, random)
    loss = steadiness_loss(y, *motion_of(x))
    pictures = [[to_pictures(clip) for clip in clips] for clips in (x, y)]
    error = [warping_error(source_motion(day), night) for day, night in zip(*pictures, strict=True)]
    assert 255 * loss.item() == pytest.approx(sum(error) / 2, rel=0.03)  # pictures are rounded to 8 bits

    algorithm = VideoTranslation(small(), Config(**SMALL, lambda_steady=10, colours_first=0))
    logged = algorithm.step(Request(("x", "x", "y", "y"), torch.cat([x, y])))
    assert logged["steady"] > 0
    assert "steady" not in VideoTranslation(small(), Config(**SMALL, lambda_steady=10, per_frame=True)).step(
        Request(("x", "x", "y", "y"), torch.cat([x, y]))
    )


def test_cut_is_one_window_for_all(random: torch.Generator) -> None:
    video = torch.arange(5.0).view(1, 5, 1, 1, 1).expand(2, 5, 3, 20, 24)
    part = cut(video, 3, 16, random)
    assert part.shape == (2, 3, 3, 16, 16)
    times = part[0, :, 0, 0, 0]
    assert (times.diff() == 1).all()
    assert torch.equal(part[0], part[1])
    assert cut(video, None, None, random).shape == video.shape
    assert cut(video, 9, 99, random).shape == video.shape


def test_what_is_refused_in_one_line(random: torch.Generator) -> None:
    algorithm = VideoTranslation(small(), Config(**SMALL))
    with pytest.raises(DataError, match="this request has none: set 'domains'"):
        algorithm.step(Request(("x", "y")))
    with pytest.raises(DataError, match="there is none of y"):
        algorithm.step(Request(("x", "x"), plain(0.5, 2)))
    with pytest.raises(DataError, match="x or y; got 'night'"):
        unpaired(Request(("x", "y", "night"), plain(0.5, 3)))
    with pytest.raises(DataError, match="at least 2 frames; these have 1"):
        algorithm.step(Request(("x", "y"), plain(0.5, 2, frames=1)))
    with pytest.raises(ConfigError, match=r"set generator\.kind to translation"):
        VideoTranslation(object(), Config())
    with pytest.raises(ConfigError, match="at least 32 pixels a side; clips have 24×16: set it to 0"):
        VideoTranslation(small(height=16, width=24), Config(**SMALL, lambda_steady=1))
    with pytest.raises(ConfigError, match="set lambda_cycle above 0"):
        Config(per_frame=True, lambda_cycle=0)
    with torch.no_grad():
        algorithm.parameters["to_y.out.bias"].fill_(math.nan)
    with pytest.raises(NonFiniteError):
        algorithm.step(batch(1, 3, random))
