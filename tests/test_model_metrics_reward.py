"""Rewards as clip metrics: which frames they see, at which rate, and what a bad score becomes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reelign.contracts import RewardCard, VideoBatch
from reelign.errors import ConfigError, ContractError, DataError, NonFiniteError
from reelign.metrics.clip import ClipMetric, Undefined, measure
from reelign.metrics.reward_metric import RewardMetric, chosen_fps, even_choice, score_once
from reelign.video_io import to_video

CLIP = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "clips" / "finetrainers_hiker_tiny.mp4"


class Brightness:
    """Mean of all pixels; remembers what it saw."""

    def __init__(self, frames="any", needs_prompt=False):
        self.card = RewardCard("brightness", "mean of all pixels", (0, 1), frames=frames, needs_prompt=needs_prompt)
        self.seen: list[VideoBatch] = []

    def __call__(self, batch):
        self.seen.append(batch)
        return batch.video.mean((1, 2, 3, 4))


class Returns:
    """Whatever it is told to."""

    card = RewardCard("returns", "a constant", (0, 1))

    def __init__(self, result):
        self.result = result

    def __call__(self, batch):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def levels(*values):
    return [np.full((4, 6, 3), value, np.uint8) for value in values]


def test_the_value_and_what_the_reward_saw():
    bright = Brightness()
    values = measure(levels(0, 51, 102), 8.0, [RewardMetric(bright, "light")], prompt="a sunrise")
    assert values == {"light": pytest.approx(0.2)}
    batch = bright.seen[0]
    assert batch.video.shape == (1, 3, 3, 4, 6)
    assert batch.video.dtype == torch.float32
    assert batch.video[0, :, 0, 0, 0].tolist() == pytest.approx([0, 0.2, 0.4])
    assert (batch.fps, batch.request.prompts) == (8.0, ("a sunrise",))


def test_pixels_keep_their_places_and_colours():
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    video = to_video([picture])
    assert video.shape == (1, 3, 2, 4)
    assert video[0, 2, 1, 3].item() == pytest.approx(23 / 255)
    assert video[0, 0, 0, 1].item() == pytest.approx(3 / 255)


@pytest.mark.parametrize(
    ("total", "frames", "indices", "fps"),
    [
        (17, 16, [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16], 7.5),
        (10, 4, [0, 3, 6, 9], 8 / 3),
        (2, 3, [0, 0, 1], 16.0),  # 0.5 rounds to even
        (5, 1, [0], 1.6),
        (1, 3, [0, 0, 0], 24.0),
    ],
)
def test_frames_and_rate_by_hand(total, frames, indices, fps):
    assert even_choice(total, frames) == indices
    assert chosen_fps(total, frames, 8.0) == pytest.approx(fps)
    bright = Brightness(frames)
    measure(levels(*range(total)), 8.0, [RewardMetric(bright)])
    assert (bright.seen[0].video[0, :, 0, 0, 0] * 255).round().int().tolist() == indices
    assert bright.seen[0].fps == pytest.approx(fps)


@given(st.integers(1, 400), st.integers(1, 64))
def test_a_choice_is_in_order_with_both_ends(total, frames):
    indices = even_choice(total, frames)
    assert len(indices) == frames
    assert indices == sorted(indices)
    assert indices[0] == 0
    assert frames == 1 or indices[-1] == total - 1


def test_no_frame_is_chosen_from_nothing():
    for total, frames in ((0, 3), (3, 0)):
        with pytest.raises(DataError, match="at least one of each"):
            even_choice(total, frames)
    with pytest.raises(ConfigError, match="max_frames=0"):
        RewardMetric(Brightness(), max_frames=0)
    with pytest.raises(DataError, match="got none"):
        measure([], 8.0, [RewardMetric(Brightness())])


def test_frames_behind_the_cap_are_not_seen():
    capped, thinned = Brightness(), Brightness(2)
    metrics = [RewardMetric(capped, "all", max_frames=3), RewardMetric(thinned, "two", max_frames=3)]
    assert measure(levels(0, 10, 20, 250), 8.0, metrics) == {
        "all": pytest.approx(10 / 255),
        "two": pytest.approx(10 / 255),
    }
    assert thinned.seen[0].fps == 4.0


def test_frames_are_kept_without_a_copy():
    frames = levels(1, 2)
    metric = RewardMetric(Brightness())
    from reelign.metrics.clip import ClipInfo, Frame

    state = metric.start(ClipInfo(8.0, 4, 6))
    state.add(Frame(0, frames[0]))
    assert state.pictures[0] is frames[0]


@pytest.mark.parametrize("prompt", ["", "  "])
def test_a_needed_prompt_that_is_missing_is_undefined_and_keeps_no_frame(prompt):
    reads = Brightness(needs_prompt=True)
    (value,) = measure(levels(9), 8.0, [RewardMetric(reads)], prompt).values()
    assert isinstance(value, Undefined)
    assert "needs a prompt, and this clip has none" in str(value)
    assert reads.seen == []
    blind = Brightness()
    measure(levels(9), 8.0, [RewardMetric(blind)], prompt)
    assert blind.seen[0].request.prompts == ("(no prompt)",)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (torch.tensor([math.nan]), NonFiniteError, "finite number; got nan"),
        (torch.tensor([math.inf]), NonFiniteError, "got inf"),
        (torch.zeros(2), ContractError, r"shape \(1,\); got \(2,\)"),
        (0.5, ContractError, "got float"),
        (RuntimeError("kernel size\n  is too large"), DataError, "^RuntimeError: kernel size is too large$"),
        (MemoryError("no room"), DataError, "MemoryError: no room"),
        (DataError("names no class"), DataError, "^names no class$"),
    ],
)
def test_what_is_no_score_is_one_line(result, error, message):
    with pytest.raises(error, match=message):
        measure(levels(1), 8.0, [RewardMetric(Returns(result))])


def test_a_bug_in_a_reward_keeps_its_traceback():
    with pytest.raises(KeyError):
        measure(levels(1), 8.0, [RewardMetric(Returns(KeyError("weights")))])


def test_the_card_is_the_rewards():
    metric = RewardMetric(Brightness(16), "light")
    assert isinstance(metric, ClipMetric)
    assert (metric.card.name, metric.card.values, metric.card.range) == ("light", ("light",), (0, 1))
    assert metric.card.better == "higher"
    assert "16 frames" in metric.card.protocol
    assert "first 256" in metric.card.protocol


@pytest.mark.skipif(not CLIP.is_file(), reason=f"the shared test clips are not here: {CLIP}")
def test_a_real_clip_scores_as_it_does_from_floats():
    from reelign.rewards.temporal_smoothness import TemporalSmoothness
    from reelign.video_io import read_clip

    clip, reward = read_clip(CLIP), TemporalSmoothness()
    frames = [(frame.permute(1, 2, 0) * 255).round().byte().numpy() for frame in clip.video]
    assert torch.equal(to_video(frames), clip.video)
    (value,) = measure(frames, clip.fps, [RewardMetric(reward)]).values()
    assert value == score_once(reward, clip.video, clip.fps, "")
