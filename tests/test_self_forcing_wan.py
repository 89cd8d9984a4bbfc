"""Self-Forcing on real networks: what each objective changes, windows that overflow, scores, the discriminator."""

from contextlib import contextmanager

import pytest
import torch

from reelign.algorithms.critics import Made, ScoreCritic
from reelign.algorithms.self_forcing import Config, SelfForcing
from reelign.build import build_generator
from reelign.contracts import Condition, Request
from reelign.errors import ConfigError
from reelign.generators.causal_layout import Layout
from reelign.generators.discriminator import Discriminator
from reelign.generators.lora import LoraOptions
from reelign.generators.scores import load_score
from reelign.generators.wan import WanOptions
from reelign.sampling import SeededNoise

PROMPTS = ("a red circle moving left", "a blue square moving up")


@pytest.fixture(scope="module")
def student():
    """The zoo's generator run causally, with an adapter whose up matrix is not zero."""
    generator = build_generator(
        {"kind": "causal_wan", "model": "zoo:tiny-wan", "frames_per_block": 1, "lora": {"rank": 2, "alpha": 2}}
    )
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.trainable().values():
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=random))
    return generator


@contextmanager
def put_back(generator, layout=None):
    """Inside, the generator may be trained and laid out anew."""
    kept, before = {n: p.detach().clone() for n, p in generator.trainable().items()}, generator.layout
    generator.layout = layout or before
    try:
        yield
    finally:
        generator.layout = before
        with torch.no_grad():
            for name, parameter in generator.trainable().items():
                parameter.copy_(kept[name])


def request(real=False):
    video = torch.rand(2, 17, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return Request(PROMPTS, source_videos=video if real else None)


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(before, network):
    return {name for name, value in network.state_dict().items() if not torch.equal(before[name], value)}


WAYS = [("dmd", "lora"), ("dmd", "all"), ("sid", "lora"), ("gan", "lora"), ("gan", "all"), ("gan", "frozen")]


@pytest.mark.parametrize(("objective", "critic"), WAYS)
def test_an_update_changes_only_what_it_should(student, objective, critic):
    config = Config(
        objective=objective, critic=critic, critic_ratio=2, lr=1e-3, critic_lr=1e-3, last_step_only=True, steps=2
    )
    with put_back(student):
        algorithm = SelfForcing(student, config)
        judge = algorithm.critic
        fake = judge.judge.network if objective == "gan" else judge.fake.experts()[0]
        before, fake_before = weights(student.network), weights(fake)
        first = algorithm.step(request(objective == "gan"))
        assert changed(before, student.network) == set()
        expected = {"lora": {n for n in fake_before if "lora_" in n}, "all": set(fake_before), "frozen": set()}[critic]
        # The down matrix of an adapter has no slope at first, nor has a text layer whose keys all score the same.
        found = changed(fake_before, fake)
        assert found <= expected
        assert bool(found) == bool(expected)
        if objective == "gan":
            assert judge.judge.head.tokens.grad is not None
        elif critic == "all":
            assert not any(p.requires_grad for p in judge.teacher.experts()[0].parameters())
        second = algorithm.step(request(objective == "gan"))
        assert changed(before, student.network) == {n for n in before if "lora_" in n}
        assert "loss" not in first
        assert all(torch.isfinite(torch.tensor(list(second.values()))))
        assert second["gradient_norm"] > 0


@pytest.mark.parametrize("kv_grad", ["detached", "official"])
@pytest.mark.parametrize("layout", [Layout(1, window=2), Layout(1, window=3, sink=1), Layout(2)])
def test_windows_overflow_while_training(student, layout, kv_grad):
    """Rollouts longer than a clip, on windows shorter than one."""
    config = Config(
        frames=8, gradient_frames=4, kv_grad=kv_grad, critic_ratio=1, lr=1e-3, critic_lr=1e-3, steps=2, micro_batch=1
    )
    with put_back(student, layout):
        algorithm = SelfForcing(student, config)
        values = algorithm.step(request())
        assert values["frames"] == 8
        assert values["gradient_norm"] > 0
        assert values["critic_loss"] > 0


def test_micro_batches_make_the_same_gradient(student):
    slopes = []
    for size in (0, 1):
        with put_back(student):
            algorithm = SelfForcing(student, Config(critic_ratio=1, micro_batch=size, lr=1e-9, critic_lr=1e-9, steps=2))
            algorithm.step(request())
            slopes.append(
                [p.grad.clone() for o in (algorithm.optimisation, algorithm.critic_optimisation)
                 for p in o.parameters.values()]
            )  # fmt: skip
    for whole, parts in zip(*slopes, strict=True):
        assert (whole - parts).abs().max() <= 1e-4 * whole.abs().max() + 1e-9


def made(teacher, count=2) -> Made:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(count, *teacher.latent_shape(), generator=random)
    condition = teacher.encode(Request(PROMPTS))
    return Made(x, condition, torch.tensor([0.3, 0.8]), SeededNoise(range(count)))


def test_real_score_is_the_base_model_whatever_the_adapter(student):
    """One network for both scores, and one that recomputes its layers in the backward pass: as two networks."""
    lora = LoraOptions(rank=2, alpha=2)
    own = student.wan.options
    teacher = load_score(student, None)
    checkpointed = own.model_copy(update={"gradient_checkpointing": True})
    fakes = [load_score(student, options, lora) for options in (None, checkpointed)]
    random = torch.Generator().manual_seed(3)
    values = [0.05 * torch.randn(p.shape, generator=random) for p in fakes[0].trainable().values()]
    with torch.no_grad():
        for fake in fakes:
            for parameter, value in zip(fake.trainable().values(), values, strict=True):
                parameter.copy_(value)
    for objective in ("dmd", "sid"):
        wanted, slope = ScoreCritic(teacher, fakes[0], objective).gradient(made(teacher))
        for fake in fakes:
            loss, found = ScoreCritic(fake, fake, objective).gradient(made(teacher))
            assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
            assert (found - slope).abs().max() < 1e-3 * slope.abs().max()


def test_a_discriminator_looks_into_three_layers_and_leaves_no_hooks(student):
    backbone = load_score(student, None)
    judge = Discriminator(backbone)
    assert judge.layers == [2, 3, 5]  # of six; of Wan's thirty: 13, 21 and 29
    assert [max(0, round(30 * place) - 1) for place in (14 / 30, 22 / 30, 1.0)] == [13, 21, 29]
    clips = made(backbone)
    x = clips.x.requires_grad_()
    positive = Condition(clips.condition.positive)
    logits = judge(x, clips.time(), positive)
    assert logits.shape == (2,)
    logits.sum().backward()
    assert x.grad.abs().amax(dim=(1, 2, 3, 4)).min() > 0
    assert all(not block._forward_hooks for block in judge.network.blocks)
    assert torch.equal(judge(x, clips.time(), positive), Discriminator(backbone)(x, clips.time(), positive))  # seeded
    assert not torch.equal(logits, Discriminator(backbone, seed=1)(x, clips.time(), positive))
    assert not torch.equal(logits[:1], judge(x[:1], torch.tensor([900.0]), positive[:1]))  # it knows the time
    swapped = judge(x, clips.time(), Condition({n: v.flip(0) for n, v in positive.positive.items()}))
    assert not torch.allclose(logits, swapped)  # and the text


def test_teachers_that_do_not_fit(student):
    with pytest.raises(ConfigError, match="fold its adapter"):
        load_score(student, WanOptions(adapter="somewhere"))
    with pytest.raises(ConfigError, match="causal Wan"):
        load_score(student.wan, None)
