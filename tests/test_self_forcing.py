"""Self-Forcing: it learns with each objective, resumes, accumulates exactly, and changes only what it should."""

import pytest
import torch
from gaussian_generators import GaussianJudge, GaussianScore, GaussianStudent

from reelign.algorithms.critics import LogitCritic, ScoreCritic
from reelign.algorithms.self_forcing import Config, SelfForcing, frame_choices, judged_window
from reelign.contracts import Request
from reelign.errors import ConfigError, DataError, NonFiniteError
from reelign.paths import FlowPath
from reelign.sampling import RolloutOptions, SeededNoise, rollout

PROMPTS = ("aa", "bbb", "cccc", "ddddd")
PATH = FlowPath(3.0, grid_end=0.0)
WANTED = [1.0, -0.5]


def request(count: int = 4, real: bool = False) -> Request:
    prompts = (PROMPTS * (count // 4 + 1))[:count]
    if not real:
        return Request(prompts)
    mean = torch.tensor([*WANTED, 0.0]).view(1, 1, 3, 1, 1)
    noise = torch.randn(count, 4, 3, 1, 1, generator=torch.Generator().manual_seed(5))
    return Request(prompts, source_videos=mean + 0.5 * noise)


def make(objective="dmd", seed=0, student=None, **options) -> SelfForcing:
    student = student or GaussianStudent([0.0, 0.0], PATH)
    if objective == "gan":
        critic = LogitCritic(GaussianJudge(), penalty=0.075)
    else:
        teacher, fake = GaussianScore(WANTED, PATH).requires_grad_(False), GaussianScore([0.0, 0.0], PATH)
        critic = ScoreCritic(teacher, fake, objective, (0.0, 0.0))
    given = {"steps": 2, "critic_ratio": 1, "lr": 0.03, "critic_lr": 0.1, "weight_decay": 0.0, "average": 0.9}
    config = Config(**{**given, "average_from": 0, "objective": objective, **options})
    return SelfForcing(student, config, seed, critic=critic)


def made_mean(algorithm: SelfForcing) -> torch.Tensor:
    """Mean of each channel and frame of 400 rollouts, [2,4]."""
    student, count = algorithm.generator, 400
    condition = student.encode(Request(("a",) * count))
    with torch.no_grad(), algorithm.exported():
        x = rollout(student, condition, 4, algorithm.schedule, SeededNoise(range(count)))
    return x.mean(dim=(0, 3, 4))


@pytest.mark.parametrize("objective", ["dmd", "sid", "gan"])
def test_it_learns_the_teachers_mean_in_every_block(objective):
    algorithm = make(objective)
    wanted = torch.tensor(WANTED, dtype=torch.float64).view(2, 1).expand(2, 4)
    before = (made_mean(algorithm) - wanted).abs().max()
    for _ in range(120):
        algorithm.step(request(16, real=objective == "gan"))
    after = (made_mean(algorithm) - wanted).abs().max()
    assert before > 0.9
    assert after < 0.2


def test_without_the_critic_it_runs_away():
    """The fake score is what stops the generator at the teacher's mean: frozen at zero, it never does."""
    algorithm = make(critic_lr=1e-12)
    for _ in range(120):
        algorithm.step(request(16))
    assert made_mean(algorithm)[0].mean() > 1.5


def test_the_critic_learns_on_every_update_the_generator_on_some():
    algorithm = make(critic_ratio=3)
    critic = algorithm.critic_optimisation.parameters["mean"]
    trained = []
    for _ in range(7):
        before, critic_before = algorithm.generator.mean.clone(), critic.detach().clone()
        average_before = algorithm.optimisation.average["mean"].clone()
        values = algorithm.step(request())
        trained.append(not torch.equal(before, algorithm.generator.mean))
        assert not torch.equal(critic_before, critic)
        assert ("loss" in values) == ("gradient_norm" in values) == trained[-1]
        assert torch.equal(average_before, algorithm.optimisation.average["mean"]) != trained[-1]
    assert trained == [False, False, True, False, False, True, False]


@pytest.mark.parametrize("objective", ["dmd", "sid", "gan"])
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_make_the_same_update(objective, size):
    whole, parts = make(objective), make(objective, micro_batch=size)
    for _ in range(3):
        first, second = whole.step(request(4, objective == "gan")), parts.step(request(4, objective == "gan"))
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-6)
        assert first["gradient_norm"] == pytest.approx(second["gradient_norm"], rel=1e-6)
        assert first["critic_gradient_norm"] == pytest.approx(second["critic_gradient_norm"], rel=1e-6)
    for name, parameter in whole.parameters.items():
        assert torch.allclose(parameter, parts.parameters[name], rtol=1e-6)


@pytest.mark.parametrize("objective", ["dmd", "sid", "gan"])
def test_resumed_equals_uninterrupted(objective, tmp_path):
    options = {"critic_ratio": 2, "frames": (2, 4), "gradient_frames": 4, "average_from": 1}
    options |= {"frames": 4} if objective == "gan" else {}
    straight, first, second = (make(objective, seed, **options) for seed in (0, 0, 9))
    asked = request(4, objective == "gan")
    for _ in range(6):
        straight.step(asked)
    for _ in range(3):
        first.step(asked)
    torch.save(first.state(), tmp_path / "state.pt")
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(3):
        second.step(asked)
    for one, other in (
        (straight.parameters, second.parameters),
        (straight.critic.parameters, second.critic.parameters),
        (straight.optimisation.average, second.optimisation.average),
    ):
        for name, value in one.items():
            assert torch.equal(value, other[name]), name


def test_passes_and_exits():
    """A block takes exit + 1 passes and one to be remembered, but for the last, which nothing follows."""
    algorithm = make(steps=4, critic_ratio=100)
    seen = set()
    for _ in range(30):
        algorithm.generator.passes = 0
        values = algorithm.step(request())
        seen.add(values["exit"])
        assert algorithm.generator.passes == values["passes"] == 2 * (values["exit"] + 2) - 1
    assert seen == {0.0, 1.0, 2.0, 3.0}
    always = make(steps=4, last_step_only=True)
    assert {always.step(request())["exit"] for _ in range(6)} == {3.0}
    apart = make(steps=4, same_step_across_blocks=False)
    assert len({apart._draw(4, slice(4)).exits for _ in range(80)}) == 16


def test_only_the_exit_step_of_the_judged_frames_is_differentiated():
    """By the number of passes that record a graph."""
    algorithm = make(steps=3, frames=8, gradient_frames=4)
    live = []
    advance = algorithm.generator.advance
    algorithm.generator.advance = lambda *a: live.append(torch.is_grad_enabled()) or advance(*a)
    values = algorithm.step(request())
    assert len(live) == values["passes"]
    assert sum(live) == 2  # blocks 3 and 4 of four
    live.clear()
    make_critic_only = algorithm.config.model_copy(update={"critic_ratio": 50})
    algorithm.config = make_critic_only
    algorithm.step(request())
    assert sum(live) == 0


def test_an_adversary_judges_between_the_exit_step_and_the_next():
    algorithm = make("gan", steps=4)
    levels = [*PATH.schedule(4).sigma.tolist()]
    for exit_step in range(4):
        sigma = algorithm._sigma([exit_step], 500)
        low, high = max(0.02, levels[exit_step + 1]), min(0.98, levels[exit_step])
        assert low - 1e-6 <= sigma.min() < low + 0.05
        assert high - 0.05 < sigma.max() <= high + 1e-6
    anywhere = make("dmd", steps=4)._sigma([0], 2000)
    assert anywhere.min() < 0.03
    assert anywhere.max() == pytest.approx(0.98)


def test_a_long_clip_is_judged_by_its_end():
    student = GaussianStudent([0.0, 0.0], PATH)
    x = torch.randn(1, 2, 8, 1, 1, dtype=torch.float64, requires_grad=True)
    window, mask = judged_window(student, x, 5, student.blocks(8))
    assert torch.equal(window, x[:, :, 3:].float().double()) or torch.allclose(window, x[:, :, 3:])
    assert mask.tolist() == [False, True, True, True, True]  # frame 3 ends the second block
    window.sum().backward()
    assert x.grad[0, 0, :, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    _, mask = judged_window(student, x, 4, student.blocks(8))
    assert mask.tolist() == [False, False, True, True]
    assert judged_window(student, x, 8, student.blocks(8)) == (x, None)


def test_lengths_are_whole_blocks():
    student = GaussianStudent([0.0, 0.0], PATH)
    assert frame_choices(student, None) == [4]
    assert frame_choices(student, (3, 9)) == [4, 6, 8]
    with pytest.raises(DataError, match="blocks"):
        frame_choices(student, 5)
    with pytest.raises(ConfigError, match="between 5 and 5"):
        frame_choices(student, (5, 5))
    algorithm = make(frames=(2, 8), critic_ratio=100)
    assert {algorithm.step(request())["frames"] for _ in range(30)} == {2, 4, 6, 8}


def test_the_average_begins_late():
    algorithm = make(average=0.5, average_from=2)
    weights = []
    for _ in range(3):
        algorithm.step(request())
        weights.append(algorithm.generator.mean.detach().clone())
        if len(weights) < 3:
            assert torch.equal(algorithm.optimisation.average["mean"], weights[-1])
    expected = 0.5 * weights[1] + 0.5 * weights[2]
    assert torch.allclose(algorithm.optimisation.average["mean"], expected)
    with algorithm.exported():
        assert torch.allclose(algorithm.generator.mean, expected)
    assert torch.equal(algorithm.generator.mean, weights[2])


def test_both_rates_are_lowered():
    algorithm = make()
    algorithm.lower_rate(0.5)
    assert algorithm.optimisation.optimiser.param_groups[0]["lr"] == pytest.approx(0.015)
    assert algorithm.critic_optimisation.optimiser.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"score_range": (0.5, 0.2)}, "least < largest"),
        ({"critic": "frozen"}, "has to learn"),
        ({"frames": (5, 2)}, "least, most"),
    ],
)
def test_settings_that_make_no_sense(options, words):
    with pytest.raises(ConfigError, match=words):
        Config(**options)


def test_windows_that_hold_too_little_and_other_bad_input():
    with pytest.raises(ConfigError, match="at least two blocks; got 2"):
        make(frames=8, gradient_frames=2)
    with pytest.raises(ConfigError, match="real clips of 4"):
        make("gan", frames=(2, 4))
    with pytest.raises(DataError, match="has none"):
        make("gan").step(request())
    with pytest.raises(ConfigError, match="causal generators"):
        make(student=GaussianScore([0.0, 0.0], PATH))
    with pytest.raises(ConfigError, match="causal Wan"):
        SelfForcing(GaussianStudent([0.0, 0.0], PATH), Config())
    broken = make()
    with torch.no_grad():
        broken.generator.mean.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="a rollout"):
        broken.step(request())


def test_the_memory_of_rollouts_is_cut_from_the_graph_as_the_paper_says():
    """pull multiplies the block before: detached, its gradient has no part through that block's own mean."""
    slopes = {}
    for frames in (2, 4):
        student = GaussianStudent([0.7, 0.0], PATH, pull=0.5)
        condition = student.encode(Request(("a",)))
        x = rollout(student, condition, frames, PATH.schedule(1), SeededNoise([0]), RolloutOptions())
        x[:, 0, -1].sum().backward()
        slopes[frames] = student.mean.grad[0].item()
    assert slopes[2] == slopes[4] == pytest.approx(1.0)
