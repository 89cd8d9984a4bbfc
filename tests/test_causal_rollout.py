"""Rollouts of causal generators: golden numbers, passes, gradients, guidance, and the noise they draw."""

from __future__ import annotations

import pytest
import torch
from causal_networks import generator, golden_network, golden_text, network, normal, text_condition
from torch import Tensor

from reelign.contracts import Request
from reelign.errors import ConfigError, ContractError, DataError
from reelign.generators.causal_layout import Layout
from reelign.paths import FlowPath, shift_sigma
from reelign.sampling import RolloutOptions, SeededNoise, begin, generate, remember, roll, rollout, sample

PROMPTS = ("a red circle moving left", "a blue square bouncing")
GOLDEN = {  # case: layout, extra options of the rollout
    "rollout": (Layout(3), {}),
    "rollout_frames1": (Layout(1), {}),
    "rollout_first": (Layout(3, True), {}),
    "rollout_extend": (Layout(3), {}),
    "rollout_ctxnoise": (Layout(3), {"context_t": 100.0}),
    "rollout_local6": (Layout(3, window=6), {}),
    "rollout_local6_sink3": (Layout(3, window=6, sink=3), {}),
    "rollout_local3": (Layout(3, window=3), {}),
}


class Passes:
    """A causal generator that notes each pass: frames, time, whether with gradient, what it gave.

    Two passes in one are noted as two, and held against two.
    """

    def __init__(self, inner) -> None:
        self.inner, self.notes = inner, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def advance(self, x, t, condition, memory):
        output, after = self.inner.advance(x, t, condition, memory)
        self.notes.append((x.shape[2], float(t), torch.is_grad_enabled(), output, memory))
        return output, after

    def advance_after(self, x, t, condition, memory, clean, clean_t):
        apart = self.advance(clean, clean_t, condition, memory)[1]
        expected = self.advance(x, t, condition, apart)[0]
        output, after = self.inner.advance_after(x, t, condition, memory, clean, clean_t)
        tolerance = {"atol": 1e-12, "rtol": 0} if x.dtype == torch.float64 else {"atol": 1e-5, "rtol": 1e-5}
        for ours, theirs in ((output, expected), (after.layers, apart.layers)):
            torch.testing.assert_close(ours, theirs, **tolerance)
        assert (after.frames, after.bytes()) == (apart.frames, apart.bytes())
        return output, after


class Dealt:
    """Noise from a list, in order, and refused once it is out."""

    def __init__(self, parts: list[Tensor]) -> None:
        self.parts = list(parts)

    def __call__(self, shape) -> Tensor:
        return self.parts.pop(0)


def exact_generator(folder, layout=None, layers=2, **options):
    """A causal generator of blocks of 3 with a random float64 network of 4 channels, for latents of 4x6."""
    made = generator(folder, network(layers), shift=5.0, **options)
    made.layout = layout or Layout(3)
    made.latent_shape = lambda: (4, 9, 4, 6)
    return made


def noise(batch=1, seed=0):
    random = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(batch, *shape, generator=random, dtype=torch.float64)


@pytest.fixture(scope="module")
def condition():
    return text_condition(normal(1, 5, 16, seed=3), normal(1, 5, 16, seed=4))


# --- the original's numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN)
@torch.no_grad()
def test_rollouts_are_the_originals(golden, random_wan_folder, case):
    """Latents, each pass's flow, and keys and values at the end, with the noise the original drew."""
    tensors, about = golden("selfforcing_causal_wan")
    layout, extra = GOLDEN[case]
    tolerance = {name: about["tolerance"][name] for name in ("atol", "rtol")}
    made = Passes(generator(random_wan_folder, golden_network(tensors), shift=5.0))
    made.inner.layout = layout
    first = tensors[f"inputs/{case}/noise"].transpose(1, 2)
    given = tensors.get(f"inputs/{case}/initial_latent")
    given = None if given is None else given.transpose(1, 2)
    known = 0 if given is None else given.shape[2]
    sizes, parts = layout.blocks(first.shape[2], known), []
    for index, block in enumerate(torch.split(first, sizes, dim=2)):
        parts += [block, *tensors[f"inputs/{case}/renoise/block{index}"].transpose(2, 3)]
    condition, options = text_condition(golden_text(tensors, len(first))), RolloutOptions(**extra)
    draw, schedule = Dealt(parts), made.path.schedule(4)
    made_clip = rollout(made, condition, known + first.shape[2], schedule, draw, options, given)
    expected = tensors[f"outputs/{case}/latents"].transpose(1, 2)
    torch.testing.assert_close(made_clip, expected, **tolerance)
    assert draw.parts == []
    theirs = [flow.transpose(1, 2) for i in range(len(sizes)) for flow in tensors[f"outputs/{case}/flow/block{i}"]]
    flows = [note[3] for note in made.notes[int(known > 0) :]]
    for ours, flow in zip(flows, theirs[:-1], strict=True):  # the last clean pass is not run
        torch.testing.assert_close(ours, flow, **tolerance)
    memory = begin(made, condition, options, given)
    for block in torch.split(made_clip[:, :, known:], sizes, dim=2):
        memory = remember(made, block, condition, memory, options)
    for layer in (0, 2):
        for name, ours in zip("kv", memory.layers[layer], strict=True):
            torch.testing.assert_close(ours, tensors[f"outputs/{case}/kv/layer{layer}/{name}"], **tolerance)
    assert memory.frames * 6 == tensors[f"outputs/{case}/cache_end"][layer, 0]
    assert ours.shape[1] == tensors[f"outputs/{case}/cache_end"][layer, 1]


@pytest.mark.parametrize("shift", [5, 8])
def test_schedules_are_the_originals(golden, shift):
    """Warped lists, the training grid and score times, as functions of one shift."""
    tensors, _ = golden("selfforcing_schedule")
    path = FlowPath(shift, grid_end=0.0)
    for case, steps in ((0, 4), (1, 2), (2, 4)):
        warped = tensors[f"outputs/shift{shift}/warped_list{case}"]
        torch.testing.assert_close(path.schedule(steps).t.float(), warped[:steps], atol=1e-3, rtol=1e-5)
    assert warped[-1] == 0 == path.schedule(4).sigma[-1]  # a list that ends with 0 does so too
    grid = path.schedule(1000)
    torch.testing.assert_close(grid.sigma[:-1].float(), tensors[f"outputs/shift{shift}/sigmas"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(grid.t.float(), tensors[f"outputs/shift{shift}/timesteps"], atol=1e-3, rtol=1e-5)
    drawn = 1000 * shift_sigma(torch.arange(1000) / 1000, shift)
    scores = tensors[f"outputs/shift{shift}/score_timestep"]
    torch.testing.assert_close(drawn.clamp(20, 980), scores, atol=1e-3, rtol=1e-5)


# --- passes and dependence --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exit_step", [0, 1, 2, 3])
def test_passes_for_each_exit(random_wan_folder, condition, exit_step):
    """3(s + 2) for three blocks as the original counts, less the last clean pass, whose memory nobody reads."""
    made = Passes(exact_generator(random_wan_folder))
    made.network.requires_grad_(True)
    options = RolloutOptions(exits=[exit_step] * 3)
    rollout(made, condition, 9, made.path.schedule(4), noise(), options)
    assert len(made.notes) == 3 * (exit_step + 2) - 1
    live = [note[1] for note in made.notes if note[2]]
    assert live == pytest.approx([float(made.path.schedule(4).t[exit_step])] * 3)
    clean = [note for note in made.notes if note[1] == 0]
    assert len(clean) == 2
    assert not any(note[3].requires_grad for note in clean)
    assert not any(k.requires_grad for note in made.notes for pair in note[4].layers for k in pair)


def test_each_block_may_have_its_own_exit_and_early_blocks_no_gradient(random_wan_folder, condition):
    made = Passes(exact_generator(random_wan_folder))
    made.network.requires_grad_(True)
    options = RolloutOptions(exits=[1, 0, 2], gradient_from=4)
    clip = rollout(made, condition, 9, made.path.schedule(3), noise(), options)
    assert [note[2] for note in made.notes] == [False] * 2 + [False] * 2 + [False] * 3 + [True]
    clip[:, :, :6].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in made.network.parameters())
    clip = rollout(made, condition, 9, made.path.schedule(3), noise(), options, given=clip[:, :, :3].detach())
    assert [note[2] for note in made.notes[-4:]] == [False, False, False, True]  # the second new block begins at 6
    assert clip.requires_grad


@torch.no_grad()
def test_block_two_depends_on_block_one_and_never_the_other_way(random_wan_folder, condition):
    made, schedule = exact_generator(random_wan_folder), FlowPath(5.0, grid_end=0.0).schedule(4)
    clips = []
    for changed in (None, 0, 2):
        parts = [normal(1, 4, 3, 4, 6, seed=i) for i in range(12)]
        if changed is not None:
            parts[4 * changed] += 1
        clips.append(rollout(made, condition, 9, schedule, Dealt(parts)))
    base, first, third = clips
    assert (base[:, :, 3:6] - first[:, :, 3:6]).abs().max() > 1e-3
    assert torch.equal(base[:, :, :6], third[:, :, :6])
    assert (base[:, :, 6:] - third[:, :, 6:]).abs().max() > 1e-3


@torch.no_grad()
def test_a_memory_rebuilt_for_each_block_gives_the_same_clip(random_wan_folder, condition):
    made, schedule = exact_generator(random_wan_folder, Layout(3, window=6, sink=3)), FlowPath(5.0).schedule(3)
    cached = rollout(made, condition, 15, schedule, noise())
    draw, clip = noise(), None
    for _ in range(5):
        memory = begin(made, condition, given=clip)
        block, _ = next(roll(made, condition, [3], schedule, draw, RolloutOptions(), memory))
        clip = block if clip is None else torch.cat([clip, block], dim=2)
    torch.testing.assert_close(cached, clip, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "layout", [Layout(3), Layout(3, True), Layout(3, window=5), Layout(3, window=7, sink=2, rebase_sink=True)]
)
@torch.no_grad()
def test_a_clean_block_and_the_next_ones_first_step_are_one_pass(random_wan_folder, condition, layout):
    """In each layout, at each place of the clip; three passes a block and one block that begins alone."""
    made = Passes(exact_generator(random_wan_folder, layout))
    looks = []
    handle = made.network.patch_embedding.register_forward_pre_hook(lambda _, inputs: looks.append(inputs[0].shape[2]))
    rollout(made.inner, condition, 13 if layout.independent_first else 12, made.path.schedule(3), noise())
    handle.remove()
    first = 1 if layout.independent_first else 3
    assert looks[:4] == [first] * 3 + [first + 3]
    assert looks[4:] == [3, 3, 6] * (len(looks) // 3 - 2) + [3, 3]
    rollout(made, condition, 13 if layout.independent_first else 12, made.path.schedule(3), noise())


@torch.no_grad()
def test_endless_rolls_keep_one_size_of_memory(random_wan_folder, condition):
    made = exact_generator(random_wan_folder, Layout(3, window=6, sink=3))
    endless = iter(lambda: 3, None)
    sizes = []
    for _, memory in roll(
        made, condition, endless, made.path.schedule(2), noise(), RolloutOptions(), begin(made, condition)
    ):
        sizes.append(memory.bytes())
        if len(sizes) == 8:
            break
    assert sizes[0] == 0
    assert sizes[2:] == [2 * sizes[1]] * 6
    assert memory.frames == 21


@torch.no_grad()
def test_given_frames_come_back_as_they_are(random_wan_folder, condition):
    """Image-to-video: the first frame is given, a block of its own, and the rest goes on from it."""
    made = exact_generator(random_wan_folder, Layout(3, independent_first=True))
    first = normal(1, 4, 1, 4, 6, seed=7)
    clips = [rollout(made, condition, 7, made.path.schedule(2), noise(), given=x) for x in (first, first + 1)]
    assert torch.equal(clips[0][:, :, :1], first)
    assert (clips[0] - clips[1])[:, :, 1:].abs().max() > 1e-3
    assert made.blocks(7) == [1, 3, 3]
    assert rollout(made, condition, 7, made.path.schedule(2), noise()).shape == (1, 4, 7, 4, 6)


@torch.no_grad()
def test_kept_noise_is_the_euler_chain(random_wan_folder, condition):
    """Without fresh noise, a first block is the plain chain of the flow, and each block draws once."""
    made = exact_generator(random_wan_folder, noise="kept")
    schedule, x = made.path.schedule(5), normal(1, 4, 3, 4, 6)
    clip = rollout(made, condition, 3, schedule, Dealt([x]))
    memory = made.begin(condition)
    for i in range(5):
        flow, _ = made.advance(x, schedule.t[i], condition, memory)
        x = x + (schedule.sigma[i + 1] - schedule.sigma[i]) * flow
    torch.testing.assert_close(clip, x, atol=1e-12, rtol=0)


# --- gradients --------------------------------------------------------------------------------------------------------


def live_rollout(made, condition, kv_grad, frames=6):
    """A rollout that leaves at the first step, with gradient to each block's noise."""
    parts = [normal(1, 4, 3, 4, 6, seed=i).requires_grad_() for i in range(frames // 3)]
    options = RolloutOptions(exits=[0] * len(parts), kv_grad=kv_grad)
    return rollout(made, condition, frames, made.path.schedule(4), Dealt(parts), options), parts


def test_memory_is_detached_or_official_with_the_same_values(random_wan_folder, condition):
    made = exact_generator(random_wan_folder)
    values = []
    for kv_grad in ("detached", "official"):
        clip, parts = live_rollout(made, condition, kv_grad)
        past, own = torch.autograd.grad(clip[:, :, 3:].sum(), parts, allow_unused=True)
        assert own.abs().sum() > 1
        if kv_grad == "detached":
            assert past is None or not past.any()
        else:
            assert past.abs().sum() > 1e-2 * own.abs().sum()
        values.append(clip.detach())
    assert torch.equal(*values)


def test_official_gradient_is_clean_values_through_the_noisy_steps_keys(random_wan_folder, condition):
    """Against the graph written out: block 2 read off keys whose derivative is that of block 1's exit step."""
    made = exact_generator(random_wan_folder)
    clip, parts = live_rollout(made, condition, "official")
    weight = normal(1, 4, 3, 4, 6, seed=9)
    ours = torch.autograd.grad((weight * clip[:, :, 3:]).sum(), parts[0])[0]
    x, t = parts[0].detach(), made.path.schedule(4).t[0]
    empty = made.begin(condition)
    with torch.no_grad():
        x0 = x - made.advance(x, t, condition, empty)[0]
        clean = made.advance(x0, torch.tensor(0.0), condition, empty)[1]

    def second(*keys_and_values):
        run = tuple(zip(keys_and_values[::2], keys_and_values[1::2], strict=True))
        flow, _ = made.advance(parts[1].detach(), t, condition, type(clean)((run,), 3, clean.text))
        return (weight * (parts[1].detach() - flow)).sum()

    flat = [tensor.clone().requires_grad_() for pair in clean.layers for tensor in pair]
    slopes = torch.autograd.grad(second(*flat), flat)
    x = x.requires_grad_()
    noisy = [tensor for pair in made.advance(x, t, condition, empty)[1].layers for tensor in pair]
    theirs = torch.autograd.grad(noisy, x, slopes)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("kv_grad", ["detached", "official"])
def test_checkpointing_changes_no_gradient_where_the_window_overflows(random_wan_folder, condition, kv_grad):
    grads = []
    for checkpointing in (False, True):
        made = exact_generator(
            random_wan_folder, Layout(3, window=6, sink=3), gradient_checkpointing=checkpointing, train_all=True
        )
        made.network.requires_grad_(True)
        options = RolloutOptions(exits=[1, 0, 2, 1, 0], kv_grad=kv_grad)
        rollout(made, condition, 15, made.path.schedule(3), noise(), options).square().mean().backward()
        grads.append({name: p.grad for name, p in made.network.named_parameters()})
    for name, value in grads[0].items():
        torch.testing.assert_close(value, grads[1][name], atol=1e-14, rtol=1e-10)
    text = [name for name in grads[0] if "attn2.to_k" in name or "attn2.to_v" in name or "text_embedder" in name]
    assert len(text) > 4
    assert all(grads[0][name].abs().max() > 0 for name in text)


def test_training_and_sampling_make_the_same_clip(random_wan_folder):
    """With an adapter: folded in without gradient, beside the weights with it; the step that counts is the last."""
    made = generator(random_wan_folder, lora={"rank": 4, "alpha": 4.0})
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.trainable().values():
            parameter += 0.2 * torch.randn(parameter.shape, generator=random)
    condition, schedule = made.encode(Request(PROMPTS)), made.path.schedule(3)
    live = rollout(made, condition, 5, schedule, SeededNoise([1, 2]))
    with torch.no_grad():
        still = rollout(made, condition, 5, schedule, SeededNoise([1, 2]))
    assert live.requires_grad
    assert not still.requires_grad
    torch.testing.assert_close(live.detach(), still, atol=1e-3, rtol=1e-3)
    live.square().mean().backward()
    idle = [name for name, p in made.trainable().items() if "lora_B" in name and not p.grad.abs().max() > 0]
    assert idle == []


# --- guidance, noise, sampling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [Layout(3), Layout(3, window=6, sink=3, rebase_sink=True)])
@torch.no_grad()
def test_guidance_is_two_rollouts_combined(random_wan_folder, condition, layout):
    """Both branches in one memory, against a memory for each and the combination by hand."""
    made, schedule, scale = exact_generator(random_wan_folder, layout), FlowPath(5.0, grid_end=0.0).schedule(3), 2.5
    clip = rollout(made, condition, 12, schedule, noise(), RolloutOptions(scale))
    branches = [text_condition(condition.positive["text"]), text_condition(condition.negative["text"])]
    memories, draw, blocks = [made.begin(branch) for branch in branches], noise(), []

    def both(x, t):
        passes = [made.advance(x, t, branch, memory) for branch, memory in zip(branches, memories, strict=True)]
        (positive, _), (negative, _) = passes
        return negative + scale * (positive - negative), [memory for _, memory in passes]

    for _ in range(4):
        x = draw((4, 3, 4, 6))
        for i in range(3):
            x0 = x - schedule.sigma[i] * both(x, schedule.t[i])[0]
            x = x0 if i == 2 else schedule.alpha[i + 1] * x0 + schedule.sigma[i + 1] * draw((4, 3, 4, 6))
        memories = both(x0, torch.tensor(0.0))[1]
        blocks.append(x0)
    torch.testing.assert_close(clip, torch.cat(blocks, 2), atol=1e-12, rtol=0)
    plain = rollout(made, condition, 12, schedule, noise())
    assert (clip - plain).abs().max() > 1e-3


def test_noise_of_a_row_is_its_seeds(random_wan_folder):
    alone, many = SeededNoise([7]), SeededNoise([3, 7])
    for shape in ((2, 3), (4,)):
        assert torch.equal(alone(shape)[0], many(shape)[1])
    again = SeededNoise([7])
    assert torch.equal(again((2, 3)), SeededNoise([7])((2, 3)))
    assert not torch.equal(again((2, 3)), SeededNoise([7])((2, 3)))  # the next numbers, not the same


def test_sampling_rolls_out_and_does_not_depend_on_the_batch(random_wan_folder):
    made = generator(random_wan_folder)
    both = sample(made, Request(PROMPTS), [1, 2], 3, 1.0)
    assert both.shape == (2, *made.latent_shape())
    torch.testing.assert_close(both[1:], sample(made, Request(PROMPTS[1:]), [2], 3, 1.0), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        expected = rollout(made, made.encode(Request(PROMPTS)), 5, made.path.schedule(3), SeededNoise([1, 2]))
    assert torch.equal(both, expected)
    assert not torch.allclose(both, sample(made, Request(PROMPTS), [1, 2], 3, 2.0), atol=1e-3)
    assert generate(made, Request(PROMPTS), [1, 2], 2, 1.0).video.shape == (2, 17, 3, 64, 64)


def test_bad_rollouts_are_one_clear_line(random_wan_folder, condition):
    made = exact_generator(random_wan_folder)
    schedule = made.path.schedule(4)
    for frames, got in ((0, "got 0"), (7, "got 7")):
        with pytest.raises(DataError, match=rf"whole blocks, n·3 latent frames; {got}"):
            rollout(made, condition, frames, schedule, noise())
    given = normal(1, 4, 4, 4, 6)
    with pytest.raises(DataError, match="got 4"):
        rollout(made, condition, 10, schedule, noise(), given=given)
    with pytest.raises(DataError, match="got 0"):
        rollout(made, condition, 3, schedule, noise(), given=given[:, :, :3])
    for exits, got in (([4, 0, 0], "block 0 got 4"), ([0, -1, 0], "block 1 got -1"), ([0, 1], "block 2 got 2 exits")):
        with pytest.raises(DataError, match=f"steps 0 to 3; {got}"):
            rollout(made, condition, 9, schedule, noise(), RolloutOptions(exits=exits))
    with pytest.raises(ContractError, match="needs a negative prompt"):
        rollout(made, text_condition(condition.positive["text"]), 9, schedule, noise(), RolloutOptions(3.0))
    with pytest.raises(ConfigError, match="eta has no part in a causal generator's chains"):
        sample(generator(random_wan_folder), Request(PROMPTS), [1, 2], 2, 1.0, eta=0.5)
