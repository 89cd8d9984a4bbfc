"""The causal network: golden numbers, diffusers' own forward pass, masks, memories, and what is refused."""

from __future__ import annotations

import pytest
import torch
from causal_networks import LAYOUTS, generator, golden_network, golden_text, network, normal, passes
from diffusers import WanTransformer3DModel
from torch.nn import functional

from reelign.contracts import CausalGenerator, Request
from reelign.errors import ConfigError, DataError, ModelError
from reelign.generators import causal_network
from reelign.generators.causal_layers import run_layers, text_memory
from reelign.generators.causal_layout import Layout, visible
from reelign.generators.causal_network import advance, empty_memory, recall, teacher_forced, whole
from reelign.generators.causal_wan import CausalWanGenerator, CausalWanOptions, load_causal_wan
from reelign.generators.wan import WanGenerator, load_wan

PROMPTS = ("a red circle moving left", "a blue square bouncing")
ZERO = torch.tensor(0.0)
every_layout = pytest.mark.parametrize("case", LAYOUTS, ids=lambda name: name.replace(" ", "_"))


@pytest.fixture(scope="module")
def exact():
    """A small float64 network."""
    return network()


@pytest.fixture(scope="module")
def text(exact):
    return text_memory(exact, normal(2, 5, 16, seed=3))


# --- the original's numbers -------------------------------------------------------------------------------------------

GOLDEN = {
    "block_causal": Layout(3),
    "block_causal_local": Layout(3, window=6),
    "block_causal_first": Layout(3, True),
    "frame_causal": Layout(1),
    "teacher_forcing": Layout(3),
    "teacher_forcing_aug": Layout(3),
}


@pytest.mark.parametrize("case", GOLDEN)
@torch.no_grad()
def test_whole_clips_are_the_originals(golden, case):
    tensors, about = golden("selfforcing_causal_wan")
    made, tolerance = golden_network(tensors), about["tolerance"]
    x, t = tensors[f"inputs/{case}/latents"].transpose(1, 2), tensors[f"inputs/{case}/timestep"]
    text = text_memory(made, golden_text(tensors, len(x)))
    if "teacher" in case:
        clean = tensors[f"inputs/{case}/clean_x"].transpose(1, 2)
        clean_t = tensors.get(f"inputs/{case}/aug_t", ZERO)
        flow = teacher_forced(made, GOLDEN[case], x, t, text, clean, clean_t)
    else:
        flow = whole(made, GOLDEN[case], x, t, text)
    expected = tensors[f"outputs/{case}/flow"].transpose(1, 2)
    torch.testing.assert_close(flow, expected, atol=tolerance["atol"], rtol=tolerance["rtol"])


@torch.no_grad()
def test_one_block_of_the_whole_clip_is_diffusers_forward(random_wan_folder):
    made = generator(random_wan_folder, frames_per_block=5)
    condition = made.encode(Request(PROMPTS))
    x = torch.randn(2, *made.latent_shape(), generator=torch.Generator().manual_seed(0))
    for t in (torch.tensor(700.0), torch.tensor([900.0, 40.0])):
        theirs = made.network(x, t.expand(2), condition.positive["text"], return_dict=False)[0]
        torch.testing.assert_close(made.predict(x, t, condition), theirs, atol=1e-5, rtol=0)
        alone, _ = made.advance(x, t, condition, made.begin(condition))
        torch.testing.assert_close(alone, theirs, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_zoos_network_is_diffusers_forward(tiny_wan):
    made = CausalWanGenerator(tiny_wan, CausalWanOptions(model="zoo:tiny-wan", frames_per_block=5, device="cpu"))
    condition = made.encode(Request(PROMPTS))
    x, t = torch.randn(2, *made.latent_shape(), generator=torch.Generator().manual_seed(0)), torch.tensor(700.0)
    theirs = tiny_wan.predict(x, t, condition)
    torch.testing.assert_close(made.predict(x, t, condition), theirs, atol=1e-5, rtol=0)
    assert theirs.abs().max() > 1


# --- memory, windows and masks ----------------------------------------------------------------------------------------


@every_layout
@torch.no_grad()
def test_cached_equals_masked(exact, text, case):
    """Noisy blocks after a memory are the teacher-forced pass; clean ones are the block-causal pass at t = 0."""
    layout, frames = LAYOUTS[case]
    x, clean, t = normal(2, 4, frames, 4, 6), normal(2, 4, frames, 4, 6, seed=1), torch.tensor(500.0)
    noisy, known, memory = passes(exact, layout, x, t, clean, text, ZERO)
    forced = teacher_forced(exact, layout, x, t, text, clean, ZERO)
    torch.testing.assert_close(noisy, forced, atol=1e-12, rtol=0)
    torch.testing.assert_close(known, whole(exact, layout, clean, ZERO, text), atol=1e-12, rtol=0)
    assert memory.layers[0][0].shape[1] == 6 * (frames if layout.window is None else min(frames, layout.window))
    assert forced.abs().max() > 0.1


@torch.no_grad()
def test_cached_equals_masked_in_single_precision(text):
    made = network().float()
    single = tuple((k.float(), v.float()) for k, v in text)
    x, clean, t = normal(2, 4, 15, 4, 6).float(), normal(2, 4, 15, 4, 6, seed=1).float(), torch.tensor(500.0)
    for layout in (Layout(3), Layout(3, window=6, sink=3)):
        noisy, known, _ = passes(made, layout, x, t, clean, single, ZERO)
        torch.testing.assert_close(noisy, teacher_forced(made, layout, x, t, single, clean, ZERO), atol=1e-5, rtol=0)
        torch.testing.assert_close(known, whole(made, layout, clean, ZERO, single), atol=1e-5, rtol=0)


def masked(layout, frames, tokens, other=None):
    """Attention under an explicit mask; ``other`` is what noisy blocks see of the clean half."""
    own = visible(layout, frames)
    if other is not None:
        own = torch.cat([torch.cat([own, torch.zeros_like(own)], 1), torch.cat(other, 1)], 0)
    mask = own.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)

    def attend(layer, q, k, v):
        weights = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
        weights = weights.masked_fill(~mask, float("-inf")).softmax(-1)
        return torch.einsum("bhnm,bmhd->bnhd", weights, v)

    return attend


@pytest.mark.parametrize("case", [name for name in LAYOUTS if not LAYOUTS[name][0].rebase_sink])
@torch.no_grad()
def test_slices_are_the_mask(exact, text, case):
    """Against softmax attention written out, under the mask of ``visible``; clean and noisy halves too."""
    layout, frames = LAYOUTS[case]
    x, clean = normal(2, 4, frames, 4, 6), normal(2, 4, frames, 4, 6, seed=1)
    t = 1000 * torch.rand(2, frames, generator=torch.Generator().manual_seed(2))
    expected, kept = run_layers(exact, x, t, text, range(frames), masked(layout, frames, 6))
    assert kept == []  # what nobody asked for is not held
    torch.testing.assert_close(whole(exact, layout, x, t, text), expected, atol=1e-12, rtol=0)
    block = torch.repeat_interleave(torch.tensor(layout.blocks(frames)))
    same = block[:, None] == block
    attend = masked(layout, frames, 6, [visible(layout, frames) & ~same, same])
    both, times = torch.cat([clean, x], 2), torch.cat([torch.zeros_like(t), t], 1)
    expected = run_layers(exact, both, times, text, [*range(frames)] * 2, attend)[0][:, :, frames:]
    forced = teacher_forced(exact, layout, x, t, text, clean, ZERO)
    torch.testing.assert_close(forced, expected, atol=1e-12, rtol=0)


def test_the_mask_by_hand():
    rows = ["".join(".#"[int(seen)] for seen in row) for row in visible(Layout(2, window=5, sink=1), 8)]
    assert rows == ["##......"] * 2 + ["####...."] * 2 + ["#.####.."] * 2 + ["#...####"] * 2
    first = ["".join(".#"[int(seen)] for seen in row) for row in visible(Layout(2, True), 5)]
    assert first == ["#....", "###..", "###..", "#####", "#####"]


@torch.no_grad()
def test_a_moved_sink_is_a_clip_whose_gap_was_never_there(exact, text):
    """Frames 0 to 2, then 12 to 17 at their places with the sink moved, are nine frames in a row at 9 to 17."""
    layout = Layout(3, window=9, sink=3, rebase_sink=True)
    runs = [tuple((normal(2, 18, 2, 24, seed=9 * i + n), normal(2, 18, 2, 24, seed=50 + 9 * i + n)) for n in range(2))
            for i in range(3)]  # fmt: skip
    x, t = normal(2, 4, 3, 4, 6), torch.tensor(400.0)
    after_gap = causal_network.Memory(tuple(runs[:2]), 15, text)  # frames 0..2 and 12..14
    moved, _ = advance(exact, layout, x, t, after_gap, text)
    still, _ = advance(exact, Layout(3, window=9, sink=3), x, t, after_gap, text)
    turned = run_turned(runs[0], 9, exact)
    beside = causal_network.Memory((turned, runs[1]), 15, text)
    expected, _ = advance(exact, Layout(3), x, t, beside, text)
    torch.testing.assert_close(moved, expected, atol=1e-12, rtol=0)
    assert (moved - still).abs().max() > 1e-3


def run_turned(run, frames, made):
    """Keys as if they were ``frames`` frames later, by cosines and sines of the temporal pairs alone."""
    pairs = made.config.attention_head_dim // 2
    time = pairs - 2 * (pairs // 3)
    angle = torch.zeros(pairs, dtype=torch.float64)
    angle[:time] = frames * 10000.0 ** (-torch.arange(time, dtype=torch.float64) / time)

    def turn(k):
        a, b = k[..., 0::2], k[..., 1::2]
        return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)

    return tuple((turn(k), v) for k, v in run)


@torch.no_grad()
def test_a_clip_may_begin_anywhere_and_nothing_was_forgotten_before_it(exact, text):
    """Attention knows distances alone, so a clip that starts at frame 2000 is the clip that starts at 0."""
    layout = Layout(3, window=9, sink=3, rebase_sink=True)
    x, t = normal(2, 4, 12, 4, 6), torch.tensor(300.0)
    outputs = []
    for start in (0, 2000):
        memory = empty_memory(exact, text, start)
        for block in torch.split(x, 3, dim=2):
            output, memory = advance(exact, layout, block, t, memory, text)
        outputs.append(output)
        assert (memory.frames, memory.start) == (start + 12, start)
    torch.testing.assert_close(*outputs, atol=1e-10, rtol=0)


@torch.no_grad()
def test_memory_is_a_value_and_stops_growing(exact, text):
    layout, t = Layout(3, window=6, sink=3), torch.tensor(100.0)
    memory, sizes, kept = empty_memory(exact, text), [], []
    for i in range(6):
        kept.append((memory, [tuple(x.clone() for x in pair) for pair in memory.layers]))
        memory = advance(exact, layout, normal(2, 4, 3, 4, 6, seed=i), t, memory, text)[1]
        sizes.append(memory.bytes())
    assert sizes[1:] == [2 * sizes[0]] * 5
    assert sizes[0] == 2 * 2 * (2 * 18 * 48) * 8  # layers, keys and values, [2,18,48] doubles
    for before, copies in kept:
        for pair, copy in zip(before.layers, copies, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(pair, copy, strict=True))
    again = advance(exact, layout, normal(2, 4, 3, 4, 6, seed=5), t, kept[-1][0], text)[1]
    for pair, copy in zip(again.layers, memory.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(pair, copy, strict=True))


@pytest.mark.parametrize("case", ["three", "first alone", "window", "uneven window", "sink", "small sink"])
@torch.no_grad()
def test_recall_is_pushing_the_same_frames_under_the_new_text(exact, text, case):
    layout, frames = LAYOUTS[case]
    other = text_memory(exact, normal(2, 5, 16, seed=8))
    clean, x, t = normal(2, 4, frames, 4, 6, seed=1), normal(2, 4, 3, 4, 6), torch.tensor(800.0)
    ranges = layout.seen(frames)
    held = torch.cat([clean[:, :, low:high] for low, high in ranges], 2)
    recalled = recall(exact, layout, held, ZERO, frames, other)
    assert recalled.frames == frames
    output, _ = advance(exact, layout, x, t, recalled, other)
    if layout.window is None:
        _, _, pushed = passes(exact, layout, clean, t, clean, other, ZERO)
        torch.testing.assert_close(output, advance(exact, layout, x, t, pushed, other)[0], atol=1e-12, rtol=0)
        return
    # By a mask over the frames that are held, at their places in the clip.
    places = [f for low, high in ranges for f in range(low, high)]
    offset = int(layout.independent_first)
    block = torch.tensor([(f - offset) // layout.frames_per_block for f in places])
    mask = (block[:, None] >= block).repeat_interleave(6, 0).repeat_interleave(6, 1)

    def attend(layer, q, k, v):
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    _, own = run_layers(exact, held, ZERO, other, places, attend, held.shape[2])
    memory = causal_network.Memory(tuple(split_runs(own, layout.sink)), frames, other)
    torch.testing.assert_close(output, advance(exact, layout, x, t, memory, other)[0], atol=1e-12, rtol=0)


@torch.no_grad()
def test_recall_moves_the_sink_too(exact, text):
    held, layout = normal(2, 4, 6, 4, 6), Layout(3, window=6, sink=3, rebase_sink=True)
    recalled = recall(exact, layout, held, ZERO, 15, text)
    sink = advance(exact, Layout(3), held[:, :, :3], ZERO, empty_memory(exact, text), text)[1].runs[0]
    beside = causal_network.Memory((run_turned(sink, 9, exact),), 12, text)
    latest = advance(exact, Layout(3), held[:, :, 3:], ZERO, beside, text)[1].runs[-1]
    for expected, run in ((sink, recalled.runs[0]), (latest, recalled.runs[1])):
        for pair, other in zip(expected, run, strict=True):
            torch.testing.assert_close(pair, other, atol=1e-12, rtol=0)


def split_runs(own, sink):
    first = tuple((k[:, : 6 * sink], v[:, : 6 * sink]) for k, v in own)
    return [run for run in (first, tuple((k[:, 6 * sink :], v[:, 6 * sink :]) for k, v in own)) if run[0][0].shape[1]]


@torch.no_grad()
def test_earlier_blocks_never_depend_on_later_ones_and_later_ones_do(exact, text):
    x, t = normal(1, 4, 9, 4, 6), 1000 * torch.rand(1, 9, generator=torch.Generator().manual_seed(0))
    one = tuple((k[:1], v[:1]) for k, v in text)
    base = whole(exact, Layout(3), x, t, one)
    changed = x.clone()
    changed[:, :, 3:6] += 1
    after = whole(exact, Layout(3), changed, t, one)
    assert torch.equal(base[:, :, :3], after[:, :, :3])
    assert (base[:, :, 6:] - after[:, :, 6:]).abs().max() > 1e-3
    late = t.clone()
    late[:, 3:6] = 0
    assert torch.equal(base[:, :, :3], whole(exact, Layout(3), x, late, one)[:, :, :3])


def test_checkpointed_passes_over_a_window_that_overflows_have_the_same_gradient(exact, text):
    """Where the release stops with an error: five blocks, a window of two, gradient through the memory."""
    grads = []
    for checkpointing in (False, True):
        exact.gradient_checkpointing = checkpointing
        x = normal(2, 4, 15, 4, 6).requires_grad_()
        memory, total = empty_memory(exact, text), 0
        for block in torch.split(x, 3, dim=2):
            output, memory = advance(exact, Layout(3, window=6, sink=3), block, torch.tensor(500.0), memory, text)
            total = total + output.square().mean()
        total.backward()
        grads.append(x.grad)
    exact.gradient_checkpointing = False
    torch.testing.assert_close(grads[0], grads[1], atol=1e-14, rtol=0)
    assert grads[0][:, :, :3].abs().max() > 1e-6


# --- the generator ----------------------------------------------------------------------------------------------------


def test_it_is_a_causal_generator(random_wan_folder):
    made = generator(random_wan_folder)
    assert isinstance(made, CausalGenerator)
    assert not isinstance(made.wan, CausalGenerator)
    assert made.blocks(5) == [1] * 5
    assert made.path.shift == made.wan.path.shift == 3
    assert made.path.schedule(4).t.tolist() == pytest.approx([1000, 900, 750, 500])  # the same shift, ending at 0
    assert generator(random_wan_folder, shift=5).path.schedule(4).t.tolist() == pytest.approx(
        [1000, 937.5, 2500 / 3, 625]
    )


@torch.no_grad()
def test_predict_and_predict_after_are_the_networks(random_wan_folder):
    made = generator(random_wan_folder, window=2)
    condition = made.encode(Request(PROMPTS))
    x, clean = torch.randn(2, 2, *made.latent_shape(), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([[900.0, 700.0, 500.0, 300.0, 100.0]] * 2)
    text = text_memory(made.network, condition.positive["text"])
    assert torch.equal(made.predict(x, t, condition), whole(made.network, Layout(1, window=2), x, t, text))
    forced = teacher_forced(made.network, Layout(1, window=2), x, t, text, clean, ZERO)
    assert torch.equal(made.predict_after(x, t, condition, clean, ZERO), forced)


@torch.no_grad()
def test_bfloat16_runs_stays_close_and_is_what_memory_holds(random_wan_folder):
    full, half = (generator(random_wan_folder, dtype=d) for d in ("float32", "bfloat16"))
    condition = full.encode(Request(PROMPTS))
    x, t = torch.randn(2, 8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(500.0)
    (exact, singles), (output, halves) = (
        made.advance(x, t, condition, made.advance(x, t, condition, made.begin(condition))[1]) for made in (full, half)
    )
    assert halves.layers[0][0].dtype == halves.layers[0][1].dtype == torch.bfloat16
    assert singles.bytes() == 2 * halves.bytes()
    cosine = functional.cosine_similarity(exact.flatten(), output.float().flatten(), dim=0)
    assert 0.99 < cosine < 1 - 1e-7


def test_half_precision_still_tells_times_apart(random_wan_folder):
    """bfloat16 cannot hold 937.5; the embedding of a time is made in single precision."""
    made = generator(random_wan_folder, dtype="bfloat16")
    condition = made.encode(Request(PROMPTS[:1]))
    x, memory = torch.ones(1, 8, 1, 8, 8), made.begin(condition)
    seen = []
    made.network.condition_embedder.time_embedder.register_forward_hook(lambda m, i, o: seen.append(o.detach()))
    with torch.no_grad():
        for t in (937.5, 938.0):
            made.advance(x, torch.tensor(t), condition, memory)
    assert seen[0].dtype == torch.float32
    assert not torch.equal(*seen)


def shaken(made):
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.trainable().values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=random)
    return made


@torch.no_grad()
def test_adapters_switch_off_fold_in_and_come_back(random_wan_folder, tmp_path):
    made = generator(random_wan_folder, lora={"rank": 4, "alpha": 10.0})
    condition = made.encode(Request(PROMPTS))
    x, t = torch.randn(2, *made.latent_shape(), generator=torch.Generator().manual_seed(0)), torch.tensor(600.0)
    base = made.predict(x, t, condition)
    adapted = shaken(made).predict(x, t, condition)
    assert (adapted - base).abs().max() > 1e-2
    with made.reference():
        assert torch.equal(made.predict(x, t, condition), base)
    with made.merged():
        torch.testing.assert_close(made.predict(x, t, condition), adapted, rtol=1e-4, atol=1e-5)
    made.save(str(tmp_path))
    for again in (
        generator(random_wan_folder, lora={"rank": 4, "alpha": 10.0}, adapter=str(tmp_path)),
        generator(random_wan_folder, lora={"rank": 4, "alpha": 10.0}),
    ):
        again.load(str(tmp_path))
        assert torch.equal(again.predict(x, t, condition), adapted)


def test_every_weight_trains_saves_and_loads(random_wan_folder, tmp_path):
    made = generator(random_wan_folder, train_all=True)
    condition = made.encode(Request(PROMPTS))
    x, t = torch.randn(2, 8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(600.0)
    made.advance(x, t, condition, made.begin(condition))[0].square().mean().backward()
    idle = [name for name, p in made.trainable().items() if p.grad is None or not p.grad.abs().max() > 0]
    assert idle == []  # the text's keys and values among them
    with torch.no_grad():
        expected = shaken(made).advance(x, t, condition, made.begin(condition))[0]
        made.save(str(tmp_path))
        again = generator(random_wan_folder, train_all=True)
        again.load(str(tmp_path))
        assert torch.equal(again.advance(x, t, condition, again.begin(condition))[0], expected)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_layouts_that_cannot_be_are_one_clear_line(random_wan_folder):
    with pytest.raises(ConfigError, match=r"at least the sink and one block, 0 \+ 3 latent frames; got 2"):
        Layout(3, window=2)
    with pytest.raises(ConfigError, match=r"at least the sink and one block, 4 \+ 1 latent frames; got 4"):
        Layout(1, window=4, sink=4)
    with pytest.raises(ConfigError, match="a sink of 2 frames goes with a window"):
        Layout(3, sink=2)
    for bad in ({"frames_per_block": 0}, {"window": -1}, {"sink": -1, "window": 4}):
        with pytest.raises(ConfigError, match="at least"):
            Layout(**bad)
    for frames, rule in ((0, r"n·3 latent frames; got 0"), (7, r"n·3 latent frames; got 7"), (-3, "got -3")):
        with pytest.raises(DataError, match=rule):
            Layout(3).blocks(frames)
    with pytest.raises(DataError, match=r"1 \+ n·3 latent frames; got 6"):
        Layout(3, True).blocks(6)
    assert Layout(3, True).blocks(6, start=1) == [3, 3]
    with pytest.raises(DataError, match=r"whole blocks, n·3 latent frames; got 5"):
        generator(random_wan_folder, frames_per_block=3)
    with pytest.raises(ConfigError, match="window holds at least"):
        generator(random_wan_folder, window=1, sink=1)


def test_latents_that_do_not_fit_are_one_clear_line(exact, text):
    memory, t = empty_memory(exact, text), torch.tensor(500.0)
    for shape in ((2, 4, 0, 4, 6), (2, 3, 3, 4, 6), (2, 4, 4, 6)):
        with pytest.raises(DataError, match=r"latents are \[B,4,f,h,w\] with a frame at least; got shape"):
            advance(exact, Layout(3), torch.zeros(shape).double(), t, memory, text)
    with pytest.raises(DataError, match=r"height and width \(4, 5\) do not divide into patches of \(2, 2\)"):
        whole(exact, Layout(3), normal(2, 4, 3, 4, 5), t, text)
    with pytest.raises(DataError, match="it has 2 rows, the block 3"):
        advance(exact, Layout(3), normal(3, 4, 3, 4, 6), t, memory, text)
    with pytest.raises(DataError, match="a block of 4 frames does not fit a window of 6 beside its sink"):
        advance(exact, Layout(3, window=6, sink=3), normal(2, 4, 4, 4, 6), t, memory, text)
    for times in (torch.zeros(3), torch.zeros(2, 2)):
        with pytest.raises(DataError, match="times are one for all"):
            whole(exact, Layout(3), normal(2, 4, 3, 4, 6), times, text)
    with pytest.raises(DataError, match="clean and noisy clips have one shape"):
        teacher_forced(exact, Layout(3), normal(2, 4, 3, 4, 6), t, text, normal(2, 4, 6, 4, 6), ZERO)
    with pytest.raises(DataError, match=r"before frame 9 is made of 6 frames, \[\(0, 3\), \(6, 9\)\]; got 9"):
        recall(exact, Layout(3, window=6, sink=3), normal(2, 4, 9, 4, 6), ZERO, 9, text)


def test_prompts_longer_than_the_model_reads_are_refused(random_wan_folder):
    long = "a red circle moving left " * 4
    for made in (generator(random_wan_folder), load_wan(model=str(random_wan_folder), lora=None, device="cpu")):
        with pytest.raises(DataError, match=r"at most 12 tokens for this model; shorten this one of 21: 'a red circle"):
            made.encode(Request((long,)))
        longest = " ".join(["red"] * 11)  # and the end mark
        assert made.encode(Request((longest,))).positive["text"].shape == (1, 12, 64)
    with pytest.raises(DataError, match="at most 12 tokens"):
        generator(random_wan_folder, negative_prompt=long).encode(Request(PROMPTS))


def test_other_networks_are_refused(random_wan_folder, tmp_path):
    plain = load_wan(model=str(random_wan_folder), lora=None, device="cpu")
    network_, options = plain.pipeline.transformer, CausalWanOptions(model="here", frames_per_block=1)
    two = WanGenerator(plain.pipeline, plain.options, {"height": 64, "width": 64, "frames": 17, "fps": 8})
    two.pipeline.register_modules(transformer_2=network_)
    two.denoisers.networks["transformer_2"] = network_
    with pytest.raises(ModelError, match="a causal Wan has one transformer, with a time a frame; 'here' has another"):
        CausalWanGenerator(two, options)
    two.pipeline.register_modules(transformer_2=None)
    del two.denoisers.networks["transformer_2"]
    two.denoisers.networks["transformer"] = WanTransformer3DModel.from_config({**network_.config, "in_channels": 20})
    with pytest.raises(ModelError, match=r"text-to-video transformer .* 20 channels for 8"):
        CausalWanGenerator(two, options)
    with pytest.raises(ConfigError, match="compile is not for causal generators"):
        load_causal_wan(model=str(random_wan_folder), frames_per_block=1, device="cpu", compile=True)


def test_a_folder_may_be_a_transformer_alone(random_wan_folder, tmp_path):
    """``reelign.json`` names the model that everything else comes from, and how this one was trained."""
    made = shaken(generator(random_wan_folder, train_all=True))
    made.save(str(tmp_path))
    (tmp_path / "reelign.json").write_text(
        f'{{"base": "{random_wan_folder}", "frames_per_block": 1, "noise": "kept", "steps": 2, "guidance_scale": 3}}'
    )
    again = load_causal_wan(model=str(tmp_path), lora=None, device="cpu")
    for name, value in made.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name])
    assert (again.default_steps, again.default_guidance_scale, again.fresh_noise) == (2, 3.0, False)
    assert again.layout == Layout(1)
    assert load_causal_wan(model=str(tmp_path), lora=None, device="cpu", noise="fresh").fresh_noise
