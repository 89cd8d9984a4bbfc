"""What is checked at birth."""

from __future__ import annotations

import pytest
import torch

from reelign.contracts import Condition, Request, VideoBatch
from reelign.errors import ContractError, DataError, UnknownNameError


def test_requests_repeat_in_contiguous_groups_and_split():
    request = Request(("a", "b", "c"), first_frames=torch.arange(3.0).view(3, 1, 1, 1))
    doubled = request.repeat(2)
    assert doubled.prompts == ("a", "a", "b", "b", "c", "c")
    assert doubled.first_frames.flatten().tolist() == [0, 0, 1, 1, 2, 2]
    assert [part.prompts for part in doubled.split(4)] == [("a", "a", "b", "b"), ("c", "c")]
    with pytest.raises(DataError, match="at least one prompt"):
        Request(())
    with pytest.raises(DataError, match="3 prompts, 2 sources"):
        Request(("a", "b", "c"), source_videos=torch.zeros(2, 1, 3, 4, 4))


@pytest.mark.parametrize(
    ("video", "fps", "words"),
    [
        (torch.zeros(1, 2, 4, 8, 8), 8, r"\[B,T,3,H,W\]; got shape \(1, 2, 4, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8), 8, "got shape"),
        (torch.zeros(1, 2, 3, 8, 8, dtype=torch.float16), 8, "float16"),
        (torch.zeros(2, 2, 3, 8, 8), 8, "2 clips answer 1 prompts"),
        (torch.zeros(1, 2, 3, 8, 8), 0, "above 0; got 0"),
        (torch.full((1, 2, 3, 8, 8), 1.1), 8, r"lie in \[0,1\]; got \[1.1, 1.1\]"),
        (torch.full((1, 2, 3, 8, 8), -1.0), 8, r"lie in \[0,1\]"),
        (torch.full((1, 2, 3, 8, 8), float("nan")), 8, "NaN counts as outside"),
    ],
)
def test_video_batches_are_checked_once_at_birth(video, fps, words):
    with pytest.raises(ContractError, match=words):
        VideoBatch(video, fps, Request(("a",)))


def test_one_bad_value_among_many_is_seen():
    video = torch.zeros(1, 2, 3, 8, 8)
    video[0, 1, 2, 3, 4] = float("nan")
    with pytest.raises(ContractError, match="NaN counts as outside"):
        VideoBatch(video, 8.0, Request(("a",)))


def test_conditions_join_negative_first():
    condition = Condition({"t": torch.ones(2, 1)}, {"t": torch.zeros(2, 1)})
    assert condition.both().positive["t"].flatten().tolist() == [0, 0, 1, 1]
    assert condition[1:].both().positive["t"].flatten().tolist() == [0, 1]
    with pytest.raises(ContractError, match="needs a negative prompt"):
        Condition({"t": torch.ones(1)}).both()


def test_unknown_names_suggest_the_nearest():
    assert str(UnknownNameError("reward", "clpi", ["clip", "action"])) == "unknown reward 'clpi': did you mean 'clip'?"
    assert str(UnknownNameError("reward", "zzz", ["b", "a"])) == "unknown reward 'zzz': known: a, b"
