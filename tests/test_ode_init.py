"""ODE initialisation: trajectories against exact ones, the loss by hand, what is kept, that it learns, bad input."""

import hashlib

import pytest
import torch
from causal_networks import generator
from linear_generator import LinearGenerator

from reelign.algorithms.ode_init import (
    Config,
    OdeInit,
    fine_schedule,
    mixed_states,
    section,
    trajectory,
)
from reelign.contracts import Condition, Request
from reelign.errors import ConfigError
from reelign.generators.wan import WanOptions, load_wan
from reelign.paths import FlowPath
from reelign.sampling import ChainOptions, chain, seeded_noise

PROMPTS = ("a red circle moving left", "a blue square bouncing", "a green triangle growing")
PATH = FlowPath(3.0, grid_end=0.0)


class Pointing:
    """A teacher whose data is one point for each prompt: its flow is exact, and every Euler step too."""

    path, calls = FlowPath(3.0), 0

    def latent_shape(self):
        return (8, 5, 8, 8)

    def encode(self, request: Request) -> Condition:
        point = torch.tensor([float(len(p)) / 10 for p in request.prompts])
        return Condition({"point": point}, {"point": torch.zeros_like(point)})

    def predict(self, x, t, condition):
        self.calls += 1
        return (x - condition.positive["point"].view(-1, 1, 1, 1, 1)) / (t / 1000)

    def merged(self):
        from contextlib import nullcontext

        return nullcontext()


def make(folder, seed=0, cache=None, teacher=None, **options) -> OdeInit:
    config = Config(**{"lr": 1e-3, "teacher_steps": 8, "seeds": 2, "teacher_guidance_scale": 1.0, **options})
    student = generator(folder, train_all=True)
    return OdeInit(student, config, seed, cache, teacher or Pointing())


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_teachers_chain_passes_through_the_students_levels(random_wan_folder, steps):
    student = generator(random_wan_folder)
    fine, coarse = fine_schedule(student, Config(steps=steps, teacher_steps=12)), student.path.schedule(steps)
    assert len(fine) == 12
    assert torch.equal(fine.sigma[:: 12 // steps], coarse.sigma)
    with pytest.raises(ConfigError, match="a multiple of steps, 4; got 50"):
        fine_schedule(student, Config(steps=4, teacher_steps=50))


def test_the_authors_indices_are_these(golden):
    """States 0, 12, 24 and 36 of 48 steps lie at the authors' warped timesteps."""
    tensors, _ = golden("selfforcing_schedule")
    for shift in (5, 8):
        t = FlowPath(shift, grid_end=0.0).schedule(48).t[[0, 12, 24, 36]].float()
        assert torch.allclose(t, tensors[f"outputs/shift{shift}/warped_list0"], atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_states_of_an_exact_flow_lie_on_the_line(scale):
    """x_σ = (1 − σ)·m + σ·x_1; guidance away from the origin moves m to w·m."""
    teacher = Pointing()
    noise = torch.randn(3, 8, 5, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fine, levels = PATH.schedule(12), PATH.schedule(4)
    states = trajectory(teacher, teacher.encode(Request(PROMPTS)), noise, fine, 4, scale)
    assert states.shape == (3, 5, 8, 5, 8, 8)
    ends = scale * teacher.encode(Request(PROMPTS)).positive["point"].double().view(-1, 1, 1, 1, 1)
    for k, sigma in enumerate(levels.sigma):
        assert torch.allclose(states[:, k], (1 - sigma) * ends + sigma * noise, atol=1e-6)
    assert teacher.calls == 12


def test_states_are_those_of_one_chain():
    random = torch.Generator().manual_seed(1)
    w, u, v = (0.3 * torch.randn(*s, generator=random) for s in ((8, 8), (8,), (8, 5)))
    teacher = LinearGenerator(FlowPath(3.0), w, u, v, shape=(8, 5, 8, 8))
    condition, noise = teacher.encode(Request(PROMPTS)), torch.randn(3, 8, 5, 8, 8, generator=random)
    fine = PATH.schedule(6)
    states = trajectory(teacher, condition, noise, fine, 3, 2.0)
    with torch.no_grad():
        assert torch.equal(states[:, -1], chain(teacher, noise, condition, fine, ChainOptions(2.0)))
        assert torch.equal(states[:, 1], chain(teacher, noise, condition, section(fine, 0, 2), ChainOptions(2.0)))
    assert not states.requires_grad


def test_each_frame_is_shown_at_its_own_state():
    states = torch.arange(3.0).view(1, 3, 1, 1, 1, 1) * 10 + torch.arange(4.0).view(1, 1, 1, 4, 1, 1)
    mixed = mixed_states(states.expand(2, 3, 2, 4, 1, 1), torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]]))
    assert mixed[0, 0, :, 0, 0].tolist() == [0, 11, 22, 3]
    assert mixed[1, 1, :, 0, 0].tolist() == [20, 21, 12, 13]


@pytest.mark.parametrize("past", ["mixed", "clean"])
def test_the_loss_by_hand(random_wan_folder, past, monkeypatch):
    """A network that says nothing leaves x̂_0 = x; one that knows the end has no loss; clean frames do not count."""
    algorithm = make(random_wan_folder, past=past)
    asked, weight = Request(PROMPTS[:1]), torch.tensor([[1.25, 1.25, 1.25, 1.25, 0.0]])
    index = torch.tensor([[0, 1, 2, 3, 4 if past == "mixed" else 0]])
    states = algorithm.trajectories.states(PROMPTS[0], 1)[None]
    x, end = mixed_states(states, index), states[:, -1]
    seen = []

    def says(flow):
        def predict(noisy, t, condition, clean=None, clean_t=None):
            seen.append((noisy, t, clean, clean_t))
            return flow(noisy, t)

        monkeypatch.setattr(algorithm.generator, "predict" if past == "mixed" else "predict_after", predict)
        return algorithm.loss(asked, states, index, weight).item()

    sigma = algorithm.levels.sigma[index].float().view(1, 1, 5, 1, 1)
    assert says(lambda noisy, t: (noisy - end) / sigma.clamp_min(1e-3)) == pytest.approx(0, abs=1e-5)
    error = (x - end).square().mean(dim=(0, 1, 3, 4))[:4].mean().item()  # of the four frames that count
    assert says(lambda noisy, t: torch.zeros_like(noisy)) == pytest.approx(error, rel=1e-5)
    noisy, t, clean, clean_t = seen[-1]
    assert torch.equal(noisy, x)
    assert t[0, :4].tolist() == pytest.approx(PATH.schedule(4).t.tolist())
    if past == "clean":
        assert torch.equal(clean, end)
        assert not clean_t.any()
    else:
        assert t[0, 4] == 0


def test_levels_are_uniform_and_never_all_clean(random_wan_folder):
    mixed, clean = make(random_wan_folder, steps=2), make(random_wan_folder, steps=2, past="clean")
    counts = torch.bincount(mixed._draw_levels(600).flatten(), minlength=3) / 3000
    assert counts.tolist() == pytest.approx([1 / 3] * 3, abs=0.04)
    assert clean._draw_levels(600).max() == 1
    single = make(random_wan_folder, steps=1)
    assert all((single._draw_levels(1) < 1).any() for _ in range(200))  # one of 32 draws is all clean


def test_the_mean_is_over_noisy_frames(random_wan_folder, monkeypatch):
    """Of the whole batch, also where it comes in parts: a step's loss is that of the noisy frames of all rows."""
    algorithm = make(random_wan_folder, micro_batch=1)
    seen = []
    plain = algorithm.loss

    def watched(request, states, index, weight):
        seen.append((index, weight))
        return plain(request, states, index, weight) * 0 + weight.mean()

    monkeypatch.setattr(algorithm, "loss", watched)
    assert algorithm.step(Request(PROMPTS))["loss"] == pytest.approx(1, rel=1e-6)
    index, weight = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert 0 < (index == 4).sum() < 15
    assert not weight[index == 4].any()
    assert weight[index < 4].tolist() == pytest.approx([15 / int((index < 4).sum())] * int((index < 4).sum()))


def test_trajectories_are_drawn_once_and_kept(random_wan_folder, tmp_path):
    first = make(random_wan_folder, cache=tmp_path)
    drawn = first.trajectories.states(PROMPTS[0], 1)
    assert first._teacher.calls == 8
    assert torch.equal(first.trajectories.states(PROMPTS[0], 1), drawn)
    assert not torch.equal(first.trajectories.states(PROMPTS[0], 0), drawn)
    assert first._teacher.calls == 8  # both seeds of a prompt are one batch
    second = make(random_wan_folder, seed=5, cache=tmp_path)
    assert torch.equal(second.trajectories.states(PROMPTS[0], 1), drawn)
    assert second._teacher.calls == 0
    other = make(random_wan_folder, cache=tmp_path, teacher_guidance_scale=2.0)
    assert not torch.equal(other.trajectories.states(PROMPTS[0], 1), drawn)
    in_memory = make(random_wan_folder)
    assert torch.equal(in_memory.trajectories.states(PROMPTS[0], 1), drawn)
    in_memory.trajectories.states(PROMPTS[0], 0)
    assert in_memory._teacher.calls == 8
    assert not torch.equal(first.trajectories.states(PROMPTS[1], 1)[0], drawn[0])  # its own noise
    shared = make(random_wan_folder, pairs=str(tmp_path))
    shared.trajectories.states(PROMPTS[0], 0)
    assert shared._teacher.calls == 0


def test_the_teacher_is_the_bidirectional_base_unless_told(random_wan_folder):
    student = generator(random_wan_folder, train_all=True)
    config = Config(teacher_steps=4, seeds=2, teacher_guidance_scale=2.0)
    algorithm = OdeInit(student, config)
    with torch.no_grad():
        for parameter in student.trainable().values():
            parameter.add_(0.1)  # what was trained since is not the teacher's
    found = algorithm.trajectories.states(PROMPTS[0], 1)
    teacher = load_wan(model=str(random_wan_folder), lora=None, device="cpu")
    first = int.from_bytes(hashlib.sha256(PROMPTS[0].encode()).digest()[:6], "big")
    noise = seeded_noise(teacher.latent_shape(), [first, first + 1])
    condition = teacher.encode(Request(PROMPTS[:1] * 2))
    expected = chain(teacher, noise, condition, PATH.schedule(4), ChainOptions(2.0))
    assert torch.allclose(found[0], noise[1], atol=2e-3)
    assert torch.allclose(found[-1], expected[1], atol=5e-3)
    named = OdeInit(student, config.model_copy(update={"teacher": WanOptions(model=str(random_wan_folder), lora=None)}))
    assert torch.equal(named.trajectories.states(PROMPTS[0], 1), found)


@pytest.mark.parametrize("past", ["mixed", "clean"])
def test_it_learns_where_trajectories_end(random_wan_folder, past):
    algorithm = make(random_wan_folder, past=past, lr=3e-3)
    losses = [algorithm.step(Request(PROMPTS))["loss"] for _ in range(40)]
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


def test_micro_batches_make_the_same_update(random_wan_folder):
    whole, parts = make(random_wan_folder), make(random_wan_folder, micro_batch=2)
    first, second = whole.step(Request(PROMPTS)), parts.step(Request(PROMPTS))
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)
    assert first["gradient_norm"] == pytest.approx(second["gradient_norm"], rel=1e-3)


def test_resumed_equals_uninterrupted(random_wan_folder, tmp_path):
    straight, first = make(random_wan_folder, average=0.9), make(random_wan_folder, average=0.9, cache=tmp_path)
    for _ in range(3):
        straight.step(Request(PROMPTS))
    first.step(Request(PROMPTS))
    second = make(random_wan_folder, seed=9, average=0.9, cache=tmp_path)
    state = first.state()
    second.restore({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()})
    for _ in range(2):
        second.step(Request(PROMPTS))
    for name, parameter in straight.parameters.items():
        assert torch.equal(parameter, second.parameters[name])
        assert torch.equal(straight.optimisation.average[name], second.optimisation.average[name])


def test_a_bidirectional_student_is_refused():
    student = LinearGenerator(PATH, *(torch.zeros(n, n) for n in (4, 4, 4)), shape=(4, 5, 2, 2))
    with pytest.raises(ConfigError, match=r"got LinearGenerator: set generator\.kind to causal_wan"):
        OdeInit(student, Config())
