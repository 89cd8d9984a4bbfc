"""Streams equal what is made in one go, new prompts equal a memory recalled, and nothing grows."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch
from stream_model import BLUE, RED, STEPS, layout_of, not_streamed, session_of, small_generator, streamed

from reelign.contracts import Request
from reelign.errors import ConfigError, DataError, NonFiniteError
from reelign.sampling import RolloutOptions, SeededNoise, begin, roll, rollout
from reelign.stream.session import StreamOptions, StreamSession, keep_window


@pytest.fixture(scope="module")
def generator(random_wan_folder):
    return small_generator(random_wan_folder)


@pytest.fixture(autouse=True)
def own_layout(generator):
    before = generator.layout
    yield
    generator.layout = before


LAYOUTS = {
    "frame by frame": ({"window": 5}, 7),
    "blocks of three": ({"frames_per_block": 3, "window": 6}, 12),
    "first frame alone": ({"frames_per_block": 2, "independent_first": True, "window": 5, "sink": 1}, 9),
    "window and sink": ({"window": 3, "sink": 1}, 8),
    "neither window nor sink ends with a block": ({"frames_per_block": 3, "window": 8, "sink": 2}, 12),
    "sink moved along": ({"window": 4, "sink": 2, "rebase_sink": True}, 8),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stream_is_the_rollout_decoded(generator, layout):
    changes, frames = LAYOUTS[layout]
    layout_of(generator, **changes)
    with session_of(generator) as session:
        found = streamed(session, frames)
        assert (session.latent_frames, session.frames, len(found)) == (frames, 4 * frames - 3, 4 * frames - 3)
    wanted = not_streamed(generator, frames)
    assert (found - wanted).abs().max() <= 1e-6
    assert wanted.std() > 0.01


def test_parts_say_where_they_belong(generator):
    layout_of(generator, frames_per_block=2, window=4)
    with session_of(generator) as session:
        parts = [next(session) for _ in range(5)]
    assert [len(part.video) for part in parts] == [1, 4, 4, 4, 4]
    assert [part.first for part in parts] == [0, 1, 5, 9, 13]
    assert [part.block for part in parts] == [0, 0, 1, 1, 2]
    seconds = [part.seconds for part in parts]
    assert session.first_frame_s == seconds[0] > 0
    assert seconds == sorted(seconds)
    assert session.frames_per_s > 0


def test_with_guidance(generator):
    with session_of(generator, scale=3.0) as session:
        found = streamed(session, 6)
        session.change(BLUE)
        streamed(session, 2)
    assert (found - not_streamed(generator, 6, scale=3.0)).abs().max() <= 1e-6


def test_the_seed_decides(generator):
    with session_of(generator) as one, StreamSession(generator, RED, StreamOptions(steps=STEPS, seed=8)) as other:
        assert not torch.equal(streamed(one, 2), streamed(other, 2))


# ---- a new prompt


@torch.no_grad()
def switched(generator: Any, before: int, after: int) -> torch.Tensor:
    """Latents of a clip whose prompt changes, with what the window holds recalled."""
    red, blue = (generator.encode(Request((prompt,))) for prompt in (RED, BLUE))
    schedule, draw, options = generator.path.schedule(STEPS), SeededNoise([7]), RolloutOptions()
    memory = begin(generator, red, options)
    x = torch.cat([x for x, _ in roll(generator, red, generator.blocks(before), schedule, draw, options, memory)], 2)
    seen = torch.cat([x[:, :, low:high] for low, high in generator.layout.seen(before)], dim=2)
    memory = generator.recall(seen, before, blue)
    sizes = generator.blocks(after, before)
    return torch.cat([x, *(x for x, _ in roll(generator, blue, sizes, schedule, draw, options, memory))], dim=2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("early", [True, False], ids=["before the window is full", "after"])
def test_a_new_prompt_is_a_memory_recalled(generator, layout, early):
    changes, frames = LAYOUTS[layout]
    layout_of(generator, **changes)
    size = generator.layout.frames_per_block
    first = int(generator.layout.independent_first)
    before = first + size if early else frames
    with session_of(generator) as session:
        video = [streamed(session, before)]
        assert session.change(BLUE) == session.frames == 4 * before - 3
        video.append(streamed(session, 2 * size))
    wanted = generator.decode(switched(generator, before, 2 * size))[0]
    assert (torch.cat(video) - wanted).abs().max() <= 1e-6
    with session_of(generator) as session:
        kept = streamed(session, before + 2 * size)
    assert torch.equal(kept[: len(video[0])], video[0])
    assert (kept[len(video[0]) :] - video[1]).abs().max() > 1e-3, "the new prompt changes nothing"


@torch.no_grad()
def test_a_new_prompt_is_a_clip_that_had_it_from_the_start(generator):
    """One step a block: the masked pass over the clean past, all of it under the new prompt, makes the next block."""
    layout_of(generator, frames_per_block=2, window=6)
    with StreamSession(generator, RED, StreamOptions(steps=1, guidance_scale=1, seed=7)) as session:
        streamed(session, 4)
        session.change(BLUE)
        found = streamed(session, 2)
    draw, schedule = SeededNoise([7]), generator.path.schedule(1)
    red, blue = (generator.encode(Request((prompt,))) for prompt in (RED, BLUE))
    clean = rollout(generator, red, 4, schedule, draw)
    noise = draw((clean.shape[1], 2, *clean.shape[3:]))
    both = torch.cat([clean, noise], dim=2)
    flow = generator.predict_after(both, schedule.t[0], blue, both, torch.tensor(0.0))
    wanted = generator.decode(torch.cat([clean, (noise - schedule.sigma[0] * flow[:, :, 4:]).float()], dim=2))[0]
    assert (found - wanted[13:]).abs().max() <= 1e-5


def test_a_prompt_within_a_block_waits_for_the_next(generator):
    layout_of(generator, frames_per_block=3, window=6)
    with session_of(generator) as session:
        streamed(session, 4)
        assert session.frames == 13
        assert session.change(BLUE) == 21
        streamed(session, 2)
        assert session.frames == 21
        found = streamed(session, 3)
    wanted = generator.decode(switched(generator, 6, 3))[0]
    assert (found - wanted[21:]).abs().max() <= 1e-6


def test_of_several_prompts_in_a_block_the_last_counts(generator):
    with session_of(generator) as session:
        streamed(session, 3)
        for prompt in ("a green triangle", RED, BLUE):
            session.change(prompt)
        found = streamed(session, 2)
    assert (found - generator.decode(switched(generator, 3, 2))[0, 9:]).abs().max() <= 1e-6


@pytest.mark.parametrize("prompt", ["", "  \n "])
def test_an_empty_prompt_is_refused_and_the_stream_goes_on(generator, prompt):
    with pytest.raises(DataError, match="needs a prompt"):
        session_of(generator, prompt)
    with session_of(generator) as session:
        found = [streamed(session, 2)]
        with pytest.raises(DataError, match="needs a prompt"):
            session.change(prompt)
        found.append(streamed(session, 2))
    assert torch.equal(torch.cat(found), not_streamed(generator, 4))


# ---- stopping


@pytest.mark.parametrize("passes", [0, 1, 4])
def test_stopping_leaves_a_block_in_its_middle(generator, monkeypatch, passes):
    made = []

    def counting(call: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            made.append(1)
            if len(made) == passes:
                session.stop()
            return call(*arguments)

        return counted

    for name in ("advance", "advance_after"):
        monkeypatch.setattr(generator, name, counting(getattr(generator, name)))
    session = StreamSession(generator, RED, StreamOptions(steps=3, guidance_scale=1))
    if passes == 0:
        session.stop()
    with session:
        assert len(list(session)) == passes // 3
        assert next(session, None) is None
    assert len(made) == passes


def test_stopping_from_another_thread(generator):
    session = session_of(generator)
    with session:
        next(session)
        threading.Timer(0.05, session.stop).start()
        for _part in session:  # ends, or the test runs out of time
            pass


def test_the_adapter_is_folded_in_once_and_comes_out(random_wan_folder):
    generator = small_generator(random_wan_folder, lora={"rank": 2, "alpha": 2})
    layer = generator.network.blocks[0].attn1.to_q
    with torch.no_grad():
        for name, parameter in generator.trainable().items():
            parameter.fill_(0.05 if "lora_B" in name else 0.1)
    before = layer.get_base_layer().weight.detach().clone()
    with session_of(generator) as session:
        streamed(session, 1)
        folded = layer.get_base_layer().weight
        found = streamed(session, 2)
        assert layer.get_base_layer().weight is folded or torch.equal(layer.get_base_layer().weight, folded)
        assert not torch.equal(folded, before)
    assert torch.equal(layer.get_base_layer().weight, before)
    assert (found - not_streamed(generator, 3)[1:]).abs().max() <= 1e-5
    generator.decode_next = None  # fails in the middle of a block
    with pytest.raises(TypeError), session_of(generator) as session:
        next(session)
    assert torch.equal(layer.get_base_layer().weight, before)


def test_pixels_that_are_no_numbers_are_told(generator, monkeypatch):
    advance = generator.advance
    monkeypatch.setattr(generator, "advance", lambda x, *rest: advance(x * float("nan"), *rest))
    with session_of(generator) as session, pytest.raises(NonFiniteError, match="block 0"):
        next(session)


# ---- windows and memory


def test_the_window_is_the_models_own_length(generator):
    layout_of(generator, window=None)
    keep_window(generator)
    assert (generator.layout.window, generator.layout.sink) == (5, 0)
    keep_window(generator, sink=2)
    assert (generator.layout.window, generator.layout.sink) == (5, 2)
    keep_window(generator, 3, 1)
    assert (generator.layout.window, generator.layout.sink) == (3, 1)
    layout_of(generator, frames_per_block=2)
    for window, sink in ((None, 4), (1, 0), (3, 2)):
        with pytest.raises(ConfigError, match="at least the sink and one block"):
            keep_window(generator, window, sink)


def tensor_bytes() -> int:
    """Bytes of all tensors that are alive."""
    gc.collect()
    stores = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if _is_tensor(t)}
    return sum(stores.values())


def _is_tensor(thing: Any) -> bool:
    return issubclass(type(thing), torch.Tensor)


def test_sixty_seconds_cost_no_memory(generator):
    """484 frames at 8 a second under two new prompts: memory of the network, and all tensors, stay as they are."""
    keep_window(generator, 4, 1)
    network, everything = [], []
    with StreamSession(generator, RED, StreamOptions(steps=1, guidance_scale=1)) as session:
        for part in session:
            network.append(session.memory_bytes)
            if part.block in (20, 60, 121):
                everything.append(tensor_bytes())
            if part.block in (40, 80):
                session.change((RED, BLUE)[part.block // 80])
            if session.frames >= 481:
                break
            del part
    assert len(set(network[4:])) == 1
    assert max(everything) <= 1.001 * min(everything), everything


@pytest.mark.slow
def test_sixty_seconds_of_the_zoo_cost_no_memory():
    """The process itself grows by at most 2 % after warming up, over 60 s of video under three prompts."""
    import psutil

    from reelign.stream.loading import load_streamer

    process, sizes = psutil.Process(), []
    with StreamSession(load_streamer("zoo:tiny-causal-wan"), RED) as session:
        for part in session:
            if part.block in (20, 60, 100, 140):
                sizes.append(process.memory_info().rss)
            if part.block in (40, 80):
                session.change((BLUE, "a green triangle growing")[part.block // 80])
            if session.frames >= 81 + 481:
                break
    assert max(sizes) <= 1.02 * sizes[0], sizes
