"""The process behind video translation: rewards, targets, soft updates, the replay, and which domain is which."""

from __future__ import annotations

import pytest
import torch

from reelign.algorithms.translation_mdp import (
    Replay,
    RewardWeights,
    Transitions,
    X,
    Y,
    choose,
    reward,
    soft_update,
    split_batch,
    states_before,
    targets,
)
from reelign.errors import ConfigError, DataError


def lived(*rewards: float, domain: int = X, size: int = 16) -> Transitions:
    """Transitions that their rewards tell apart."""
    count = len(rewards)
    return Transitions(
        state=torch.full((count, 3, 3, size, size), 0.2),
        action=torch.full((count, 3, size, size), 0.6),
        reward=torch.tensor(rewards),
        ended=torch.zeros(count, dtype=torch.bool),
        domain=torch.full((count,), domain),
        candidate=torch.zeros(count, dtype=torch.int64),
    )


def kept(replay: Replay) -> list[float]:
    return sorted(replay.state()["kept"]["reward"].tolist())


def test_states_are_the_frames_before_with_zeros_before_the_first() -> None:
    clip = torch.arange(1.0, 6.0).view(1, 5, 1, 1, 1).expand(2, 5, 3, 1, 1)
    found = states_before(clip, torch.tensor([1, 4]), 3)[:, :, 0, 0, 0]
    assert found.tolist() == [[0, 0, 1], [2, 3, 4]]  # the frames themselves, 2 and 5, are the actions


def test_the_next_state_ends_with_the_action() -> None:
    t = lived(0.0)
    t.state[:, 0] = 0.1
    after = t.next_state()
    assert after.shape == t.state.shape
    assert after[0, :, 0, 0, 0].tolist() == pytest.approx([0.2, 0.2, 0.6])


def test_the_batch_is_split_by_who_is_last() -> None:
    last, before = split_batch(torch.tensor([1, 3, 2, 3]), 4)
    assert last.tolist() == [False, True, False, True]
    assert before.tolist() == [True, False, True, False]


def test_reward_by_hand() -> None:
    found = reward(
        frame_loss=torch.tensor([0.5, 0.5]),
        errors=(torch.tensor([0.2, 0.2]), torch.tensor([0.4, 0.4])),
        video_loss=torch.tensor([3.0, 3.0]),
        last=torch.tensor([False, True]),
        w=RewardWeights(video=2.0, recurrent=0.1, recycle=10.0),
    )
    assert found.tolist() == pytest.approx([-(0.5 + 0.02 + 4.0), -6.0])


def test_targets_by_hand_and_without_a_future_at_the_end() -> None:
    values = torch.tensor([-2.0, -2.0], requires_grad=True)
    found = targets(torch.tensor([-1.0, -1.0]), torch.tensor([False, True]), values, 0.9)
    assert found.tolist() == pytest.approx([-2.8, -1.0])
    assert not found.requires_grad


def test_soft_update_by_hand() -> None:
    target, live = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([3.0, 4.0])}
    soft_update(target, live, 0.25)
    assert target["w"].tolist() == [1.5, 1.0]
    soft_update(target, live, 1.0)
    assert target["w"].tolist() == [3.0, 4.0]


def test_choice_is_greedy_but_for_exploration(random: torch.Generator) -> None:
    values = torch.tensor([[-1.0, -2.0], [-5.0, -3.0]])
    assert choose(values, 0.0, random).tolist() == [0, 1]
    drawn = choose(values[:1].expand(4000, 2), 0.5, random)
    assert drawn.float().mean().item() == pytest.approx(0.25, abs=0.03)  # half explore, half of those go wrong


def test_replay_below_at_and_above_its_capacity() -> None:
    replay = Replay(4)
    assert len(replay) == 0
    replay.add(lived(0.0, 1.0, 2.0))
    assert len(replay) == 3
    replay.add(lived(3.0))
    assert len(replay) == 4  # exactly full: the published buffer says 0 here
    assert kept(replay) == [0, 1, 2, 3]
    replay.add(lived(4.0))
    assert len(replay) == 4
    assert kept(replay) == [1, 2, 3, 4]  # the oldest made room
    replay.add(lived(5.0, 6.0, 7.0))
    assert kept(replay) == [4, 5, 6, 7]
    replay.add(lived(*[float(i) for i in range(8, 19)]))  # more than fits at once
    assert kept(replay) == [15, 16, 17, 18]
    replay.add(lived(19.0))
    assert kept(replay) == [16, 17, 18, 19]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 64])
def test_replay_keeps_the_newest_however_they_come(chunk: int) -> None:
    replay, every = Replay(5), [float(i) for i in range(64)]
    for start in range(0, 64, chunk):
        replay.add(lived(*every[start : start + chunk]))
        so_far = every[: start + chunk]
        assert kept(replay) == so_far[-5:]


def test_replay_filled_exactly_by_its_first_batch() -> None:
    replay = Replay(3)
    replay.add(lived(0.0, 1.0, 2.0))
    assert len(replay) == 3
    replay.add(lived(3.0))
    assert kept(replay) == [1, 2, 3]


def test_full_replay_draws_from_all_of_it(random: torch.Generator) -> None:
    replay = Replay(4)
    replay.add(lived(0.0, 1.0, 2.0, 3.0))
    drawn = replay.draw(4000, random).reward
    shares = [(drawn == value).float().mean().item() for value in range(4)]
    assert shares == pytest.approx([0.25] * 4, abs=0.03)


def test_replay_keeps_frames_to_a_grey_level_and_the_rest_exactly(random: torch.Generator) -> None:
    replay, fresh = Replay(2), lived(-0.123456, domain=Y)
    fresh.state.uniform_(generator=random)
    replay.add(fresh)
    back = replay.draw(1, random)
    torch.testing.assert_close(back.state, fresh.state, atol=0.5 / 255 + 1e-6, rtol=0)
    assert back.reward.item() == fresh.reward.item()
    assert back.domain.item() == Y


def test_domains_are_counted_and_forgotten_with_their_transitions() -> None:
    replay = Replay(4)
    replay.add(lived(0.0, 1.0, 2.0, domain=X))
    replay.add(lived(3.0, domain=Y))
    assert replay.counts() == (3, 1)
    replay.add(lived(4.0, 5.0, domain=Y))
    assert replay.counts() == (1, 3)


def test_mixing_replaces_the_asked_share(random: torch.Generator) -> None:
    replay = Replay(10)
    fresh = lived(*[1.0] * 1000)
    assert replay.mix(fresh, 1.0, random) is fresh  # nothing is kept yet
    replay.add(lived(*[-1.0] * 10))
    assert (replay.mix(fresh, 0.5, random).reward < 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (replay.mix(fresh, 0.0, random).reward > 0).all()
    mixed = replay.mix(fresh, 1.0, random)
    assert len(mixed) == 1000
    assert (mixed.reward < 0).all()


def test_replay_continues_bit_for_bit(random: torch.Generator) -> None:
    first = Replay(4)
    first.add(lived(0.0, 1.0, 2.0, 3.0, 4.0, 5.0))
    second = Replay(4)
    second.restore(first.state())
    for replay in (first, second):
        replay.add(lived(6.0, domain=Y))
    assert torch.equal(first.state()["kept"]["reward"], second.state()["kept"]["reward"])
    assert first.state()["next"] == second.state()["next"]


def test_what_a_replay_refuses(random: torch.Generator) -> None:
    with pytest.raises(ConfigError, match="at least 1 transition; got 0"):
        Replay(0)
    with pytest.raises(DataError, match="empty replay"):
        Replay(2).draw(1, random)
    replay = Replay(2)
    replay.add(lived(0.0))
    with pytest.raises(DataError, match=r"one shape, \(3, 3, 16, 16\)"):
        replay.add(lived(0.0, size=18))
