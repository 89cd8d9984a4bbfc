"""Frame policies: which frames, how much each counts, and the numbers of InstructVideo's program."""

from __future__ import annotations

import pytest
import torch

from reelign.contracts import Request, VideoBatch
from reelign.errors import ConfigError, ContractError
from reelign.rewards.frames import FramePolicy, attenuation, average, segment_bounds


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"choose": "all"}, [0, 1, 2, 3, 4, 5]),
        ({"choose": "first"}, [0]),
        ({"choose": "alternate"}, [0, 2, 4]),
        ({"choose": [5, 1]}, [5, 1]),
        ({"choose": "segments", "segments": 3, "draw": "first"}, [0, 2, 4]),
    ],
)
def test_choices_mean_what_they_say(policy, expected, random):
    assert FramePolicy(**policy).indices(6, random) == expected


def test_drawn_frames_lie_in_their_segments_and_vary(random):
    policy = FramePolicy(choose="segments", segments=4)
    draws = [policy.indices(16, random) for _ in range(200)]
    for segment in range(4):
        assert {draw[segment] for draw in draws} == set(range(4 * segment, 4 * segment + 4))
    assert {FramePolicy(choose="random").indices(6, random)[0] for _ in range(100)} == set(range(6))


@pytest.mark.parametrize(("total", "segments"), [(16, 4), (12, 4), (15, 4), (16, 8), (8, 4)])
def test_segments_are_instructvideos(golden, total, segments):
    tensors, _ = golden("instructvideo_chain")
    name = f"outputs/segments/F{total}_S{segments}"
    bounds = segment_bounds(total, segments)
    assert [[start, end - 1] for start, end in bounds] == tensors[f"{name}/range"].tolist()
    assert [start for start, _ in bounds] == tensors[f"{name}/fixed_first"].tolist()[:segments]


@pytest.mark.parametrize(("total", "rate"), [(16, 1), (16, 0.5), (12, 1), (12, 0.5), (15, 1), (24, 2)])
def test_attenuation_is_instructvideos(golden, total, rate):
    tensors, _ = golden("instructvideo_chain")
    computed = attenuation(torch.arange(total, dtype=torch.float32), total, rate)
    torch.testing.assert_close(computed, tensors[f"outputs/tar/F{total}_lambda{rate}"], rtol=1e-6, atol=0)


def test_reward_of_scored_frames_is_instructvideos(golden):
    tensors, _ = golden("instructvideo_chain")
    policy = FramePolicy(choose="segments", attenuation=1.0)
    for index, scores, expected in zip(
        tensors["inputs/reward/global_index"],
        tensors["inputs/reward/frame_scores"],
        tensors["outputs/reward/reward"],
        strict=True,
    ):
        weights = policy.weights(index.tolist(), 16)
        batch = VideoBatch(torch.zeros(1, 4, 3, 8, 8), 8.0, Request(("a",)), weights)
        torch.testing.assert_close(average(scores[None], batch)[0], expected, rtol=1e-6, atol=0)


def test_normalised_weights_have_mean_one():
    weights = FramePolicy(attenuation=1.0, normalised=True).weights([0, 5, 8, 13], 16)
    assert weights.mean().item() == pytest.approx(1)
    assert weights.argmax() == 2
    assert FramePolicy().weights([0, 1], 16) is None


def test_what_cannot_be_is_refused(random):
    with pytest.raises(ConfigError, match="at most 3 segments"):
        FramePolicy(choose="segments", segments=4).indices(3, random)
    with pytest.raises(ConfigError, match="from 0 to 5"):
        FramePolicy(choose=[6]).indices(6, random)
    with pytest.raises(ContractError, match="one weight a frame"):
        VideoBatch(torch.zeros(1, 4, 3, 8, 8), 8.0, Request(("a",)), torch.ones(3))
