"""Teacher and diffusion forcing: the authors' weights, losses block by block, that it learns, and what is refused."""

import pytest
import torch
from causal_networks import generator
from linear_generator import LinearGenerator

from reelign.algorithms.causal_finetuning import LEVELS, CausalFinetuning, Config, bell_weights
from reelign.contracts import Request
from reelign.errors import ConfigError, DataError, NonFiniteError
from reelign.objectives import per_frame
from reelign.paths import FlowPath

PROMPTS = ("a red circle moving left", "a blue square bouncing")
MODES = ("teacher_forcing", "diffusion_forcing")
KEPT = torch.zeros(2, dtype=torch.bool)  # no caption is dropped


def request(frames: int = 17) -> Request:
    return Request(PROMPTS, source_videos=torch.rand(2, frames, 3, 64, 64, generator=torch.Generator().manual_seed(5)))


def make(folder, seed=0, model=None, **options) -> CausalFinetuning:
    torch.manual_seed(0)  # of the adapter's own beginning
    model = {"frames_per_block": 1, "train_all": True, "lora": None, **(model or {})}
    return CausalFinetuning(generator(folder, **model), Config(**{"lr": 1e-3, **options}), seed)


@pytest.mark.parametrize("shift", [5, 8])
def test_weights_are_the_authors(golden, shift):
    tensors, _ = golden("selfforcing_schedule")
    schedule = FlowPath(shift, grid_end=0.0).schedule(LEVELS)
    expected = tensors[f"outputs/shift{shift}/training_weights"]
    assert torch.allclose(schedule.sigma[:-1].float(), tensors[f"outputs/shift{shift}/sigmas"], atol=1e-6)
    assert torch.allclose(bell_weights(schedule.t).float(), expected, atol=1e-5)


def test_weights_by_hand():
    edge, middle = torch.exp(torch.tensor(-0.5)).item(), 1.0  # exp(−2·0.25) and exp(0)
    assert bell_weights(torch.tensor([1000.0, 500.0, 0.0])).tolist() == pytest.approx([0, 3, 0], abs=1e-5)
    inner = torch.exp(torch.tensor(-2 * 0.0625)).item()
    total = (middle - edge) + (inner - edge)
    found = bell_weights(torch.tensor([1000.0, 750.0, 500.0]))
    assert found.tolist() == pytest.approx([0, 3 * (inner - edge) / total, 3 * (middle - edge) / total], rel=1e-4)


def test_frames_of_a_block_share_their_level(random_wan_folder):
    algorithm = make(random_wan_folder, model={"frames_per_block": 2, "independent_first": True})
    index = algorithm._draw(0, 400)
    assert index.shape == (400, 5)
    assert torch.equal(index[:, 1], index[:, 2])
    assert torch.equal(index[:, 3], index[:, 4])
    apart = torch.corrcoef(index[:, [0, 1, 3]].T.float()).fill_diagonal_(0)
    assert apart.abs().max() < 0.15  # three deviations of independent draws
    assert index.min() < 10
    assert index.max() > LEVELS - 10
    assert per_frame(torch.tensor([[7, 8, 9]]), [1, 2, 2]).tolist() == [[7, 8, 8, 9, 9]]


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_the_loss_is_the_sum_over_blocks_each_after_its_past(random_wan_folder, mode, size):
    """Against one block at a time on a memory: of clean blocks, or of the noisy ones."""
    algorithm = make(random_wan_folder, mode=mode, caption_dropout=0.0, model={"frames_per_block": size})
    made, asked = algorithm.generator, request()
    clean = algorithm.latents.encode(asked.source_videos)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    index = algorithm._draw(0, 2)
    loss = algorithm.loss(asked, (clean, noise), index, (clean, torch.zeros(2, 5)), KEPT)
    schedule, condition = made.path.schedule(LEVELS), made.encode(asked)
    weights, terms = bell_weights(schedule.t), []
    memory = made.begin(condition)
    for start in range(0, 5, size):
        block = slice(start, start + size)
        sigma = schedule.sigma[index[:, block]].float()[:, None, :, None, None]
        z, e = clean[:, :, block], noise[:, :, block]
        output, noisy = made.advance(
            (1 - sigma) * z + sigma * e, schedule.t[index[:, block]].float(), condition, memory
        )
        weight = weights[index[:, block]].float()[:, None, :, None, None]
        terms.append((weight * (output - (e - z)).square()).mean())
        memory = made.advance(z, torch.tensor(0.0), condition, memory)[1] if mode == "teacher_forcing" else noisy
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-4)


@torch.no_grad()
def test_without_the_bell_all_times_count_alike(random_wan_folder):
    algorithm = make(random_wan_folder, weighting="none", caption_dropout=0.0)
    clean = algorithm.latents.encode(request().source_videos)
    noise, index = torch.zeros_like(clean), torch.zeros(2, 5, dtype=torch.long)  # σ = 1: the input is all zero
    loss = algorithm.loss(request(), (clean, noise), index, (clean, torch.zeros(2, 5)), KEPT)
    assert loss > 0
    algorithm.weights = bell_weights(algorithm.levels.t)
    assert algorithm.loss(request(), (clean, noise), index, (clean, torch.zeros(2, 5)), KEPT) == 0


def test_an_augmented_past_has_the_noise_that_its_times_say(random_wan_folder):
    algorithm = make(random_wan_folder, augment=200.0)
    clean = torch.full((64, 8, 5, 8, 8), 2.0)
    past, times = algorithm._past(clean)
    assert 150 < times.max() <= 200
    assert times.unique().numel() > 40
    sigma = (times / 1000)[:, None, :, None, None]
    noise = (past - (1 - sigma) * clean) / sigma
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    plain, zero = make(random_wan_folder)._past(clean)
    assert plain is clean
    assert not zero.any()


@pytest.mark.parametrize("mode", MODES)
def test_micro_batches_make_the_same_update(random_wan_folder, mode):
    whole, parts = (make(random_wan_folder, mode=mode, caption_dropout=0.0, micro_batch=m) for m in (0, 1))
    first, second = whole.step(request()), parts.step(request())
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)
    assert first["gradient_norm"] == pytest.approx(second["gradient_norm"], rel=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_it_learns_its_clips(random_wan_folder, mode):
    algorithm = make(random_wan_folder, mode=mode, lr=3e-3)
    losses = [algorithm.step(request())["loss"] for _ in range(60)]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


@pytest.mark.parametrize("options", [{"augment": 100.0}, {"mode": "diffusion_forcing"}], ids=["augmented", "diffusion"])
def test_resumed_equals_uninterrupted(random_wan_folder, options):
    straight, first, second = (make(random_wan_folder, seed, average=0.9, **options) for seed in (0, 0, 9))
    for _ in range(3):
        straight.step(request())
    first.step(request())
    state = first.state()
    second.restore({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()})
    for _ in range(2):
        second.step(request())
    for name, parameter in straight.parameters.items():
        assert torch.equal(parameter, second.parameters[name])
        assert torch.equal(straight.optimisation.average[name], second.optimisation.average[name])


def test_bad_input_is_named(random_wan_folder):
    with pytest.raises(ConfigError, match=r"got LinearGenerator: set generator\.kind to causal_wan"):
        CausalFinetuning(
            LinearGenerator(FlowPath(), *(torch.zeros(n, n) for n in (4, 4, 4)), shape=(4, 5, 2, 2)), Config()
        )
    with pytest.raises(ConfigError, match="got 100 with diffusion_forcing"):
        make(random_wan_folder, mode="diffusion_forcing", augment=100.0)
    with pytest.raises(ConfigError, match="least time of the path"):
        make(random_wan_folder, augment=0.1)
    algorithm = make(random_wan_folder)
    with pytest.raises(DataError, match="name a folder of clips"):
        algorithm.step(Request(PROMPTS))
    with torch.no_grad():
        next(iter(algorithm.parameters.values())).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="the loss"):
        algorithm.step(request())
