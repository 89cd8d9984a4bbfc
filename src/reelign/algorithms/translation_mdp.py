r"""Video translation as a Markov decision process (RL-V2V-GAN): states, actions, rewards, targets and the replay.

A state s of domain d is the last p frames of a clip, zero before its beginning; an action is its next frame. Two are at
hand, the prediction and its detour through the other domain e:

    a_1 = P_d(s)        a_2 = G_d(P_e(G_e(s)))        μ_d(s) = the one with the larger Q_d(s, a)
    s′  = (s without its first frame, a)
    r   = −λ_v·L_v                              where a is the last frame of its clip (B1 of the batch),
          −(L_g + λ_rr·L_rr + λ_rc·L_rc)        elsewhere (B2)
    y   = r + γ·Q′_d(s′, μ′_d(s′)),  r alone where the clip ends
    critic: min E(Q_d(s, a) − y)²,  actor: max E Q_d(s, μ_d(s))
    θ′ ← τ·θ + (1 − τ)·θ′

(Lillicrap et al. 2016, DDPG, for the last two lines.) In r, L_rr is the error of a_1 where a_1 was taken, L_rc that of
a_2 where a_2 was, and the other one is 0: a reward must be one of the action taken, or Q cannot tell actions apart.

Every transition keeps its domain d from when it was made, so nothing has to guess it later from pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from reelign.errors import ConfigError, DataError

X, Y = 0, 1  # domains, in ``Transitions.domain``


@dataclass(frozen=True)
class Transitions:
    """N steps of the process.

    Args:
        state: s [N,p,3,H,W] in [0,1].
        action: a [N,3,H,W] in [0,1].
        reward: r [N].
        ended: bool [N], whether the clip ends with a.
        domain: int64 [N], ``X`` or ``Y``, of s and a.
        candidate: int64 [N], 0 where a_1 was taken, 1 where a_2 was.
    """

    state: Tensor
    action: Tensor
    reward: Tensor
    ended: Tensor
    domain: Tensor
    candidate: Tensor

    def __len__(self) -> int:
        return len(self.reward)

    def next_state(self) -> Tensor:
        """s′ [N,p,3,H,W]."""
        return torch.cat([self.state[:, 1:], self.action[:, None]], 1)

    def __getitem__(self, rows: Tensor) -> Transitions:
        return Transitions(*(getattr(self, part.name)[rows] for part in fields(self)))

    @staticmethod
    def join(parts: Iterable[Transitions]) -> Transitions:
        """One after the other."""
        whole = list(parts)
        return Transitions(*(torch.cat([getattr(p, part.name) for p in whole]) for part in fields(Transitions)))


def states_before(clips: Tensor, t: Tensor, p: int) -> Tensor:
    """The p frames before frame t of each clip, zero where the clip had not begun: [B,p,3,H,W].

    Args:
        clips: [B,T,3,H,W].
        t: int64 [B], counted from 0; frame t itself is not in the state.
    """
    padded = torch.cat([clips.new_zeros((len(clips), p, *clips.shape[2:])), clips], 1)
    index = t[:, None] + torch.arange(p, device=t.device)
    return padded[torch.arange(len(clips), device=t.device)[:, None], index]


def split_batch(t: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """B1 and B2: which of the frames t [B], counted from 0, are the last of ``frames``, and which are not."""
    last = t == frames - 1
    return last, ~last


@dataclass(frozen=True)
class RewardWeights:
    """λ_v, λ_rr and λ_rc of the reward."""

    video: float
    recurrent: float
    recycle: float


def reward(
    frame_loss: Tensor, errors: tuple[Tensor, Tensor], video_loss: Tensor, last: Tensor, w: RewardWeights
) -> Tensor:
    """r [N]: −λ_v·L_v where ``last``, else −(L_g + λ_rr·L_rr + λ_rc·L_rc).

    Args:
        frame_loss: L_g [N], of the action as a picture.
        errors: L_rr and L_rc [N].
        video_loss: L_v [N], of the clip that ends with the action.
        last: bool [N].
        w: weights.
    """
    recurrent, recycle = errors
    return -torch.where(last, w.video * video_loss, frame_loss + w.recurrent * recurrent + w.recycle * recycle)


def choose(values: Tensor, exploration: float, random: torch.Generator) -> Tensor:
    """The candidate with the larger value, or with probability ``exploration`` any: int64 [N].

    Args:
        values: Q of both, [N,2].
        exploration: ε, σ_2 in the seed.
        random: on the CPU.
    """
    explores = torch.rand(len(values), generator=random) < exploration
    drawn = torch.randint(values.shape[1], (len(values),), generator=random)
    return torch.where(explores.to(values.device), drawn.to(values.device), values.argmax(1))


def targets(rewards: Tensor, ended: Tensor, next_values: Tensor, gamma: float) -> Tensor:
    """y = r + γ·Q′(s′, μ′(s′)), r alone where the clip ended; all [N], without gradient."""
    return (rewards + gamma * next_values * ~ended).detach()


@torch.no_grad()
def soft_update(targets_: Mapping[str, Tensor], weights: Mapping[str, Tensor], tau: float) -> None:
    """θ′ ← τ·θ + (1 − τ)·θ′, in place, by name; τ = 1 copies."""
    for name, weight in weights.items():
        targets_[name].copy_(weight) if tau == 1 else targets_[name].lerp_(weight, tau)


class Replay:
    """The last ``capacity`` transitions, the oldest overwritten first; frames are kept in 8 bits.

    Args:
        capacity: N, at least 1. Memory grows as it fills: 16 KB a transition of 32×32 pixels and p = 3.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        if capacity < 1:
            raise ConfigError(f"a replay holds at least 1 transition; got {capacity}")
        self.capacity = capacity
        self._rows: Transitions | None = None  # room for some, of which the first ``_count`` are kept
        self._count = 0
        self._next = 0  # where the next one goes

    def __len__(self) -> int:
        return self._count

    def counts(self) -> tuple[int, int]:
        """How many are of x and how many of y."""
        ys = 0 if self._rows is None else int((self._rows.domain[: self._count] == Y).sum())
        return self._count - ys, ys

    def add(self, new: Transitions) -> None:
        """Keep these, in order.

        Raises:
            DataError: their frames have another size than those kept.
        """
        new = _packed(new[torch.arange(max(0, len(new) - self.capacity), len(new))])
        rows = new[torch.arange(0)] if self._rows is None else self._rows
        if new.state.shape[1:] != rows.state.shape[1:]:
            wanted, got = tuple(rows.state.shape[1:]), tuple(new.state.shape[1:])
            raise DataError(f"a replay keeps states of one shape, {wanted}; got {got}")
        count = min(self.capacity, self._count + len(new))
        if count > len(rows):  # room for twice as many, so that adding stays cheap
            room = min(self.capacity, max(count, 2 * len(rows))) - len(rows)
            rows = Transitions.join([rows, new[torch.zeros(room, dtype=torch.int64)]])
        places = (self._next + torch.arange(len(new))) % self.capacity
        for part in fields(Transitions):
            getattr(rows, part.name)[places] = getattr(new, part.name)
        self._rows, self._count = rows, count
        self._next = (self._next + len(new)) % self.capacity

    def draw(self, count: int, random: torch.Generator, device: torch.device | str = "cpu") -> Transitions:
        """Some of them, each equally likely every time.

        Raises:
            DataError: it is empty.
        """
        if self._rows is None:
            raise DataError("nothing can be drawn from an empty replay: add transitions first")
        found = self._rows[torch.randint(len(self), (count,), generator=random)]
        return _unpacked(found, device)

    def mix(self, fresh: Transitions, share: float, random: torch.Generator) -> Transitions:
        """``fresh``, each replaced with probability ``share`` (σ_1) by a kept one; unchanged while nothing is kept."""
        replaced = torch.rand(len(fresh), generator=random) < share
        count = int(replaced.sum())
        if not len(self) or not count:
            return fresh
        old = self.draw(count, random, fresh.reward.device)
        return Transitions.join([fresh[(~replaced).to(fresh.reward.device)], old])

    def state(self) -> dict[str, Any]:
        """What is kept, and where the next one goes."""
        rows = None if self._rows is None else self._rows[torch.arange(self._count)]
        kept = {} if rows is None else {part.name: getattr(rows, part.name) for part in fields(Transitions)}
        return {"kept": kept, "next": self._next}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue, bit for bit, from what ``state`` gave."""
        kept = state["kept"]
        self._rows = Transitions(**{name: value.clone() for name, value in kept.items()}) if kept else None
        self._count = 0 if self._rows is None else len(self._rows)
        self._next = int(state["next"])


def _packed(t: Transitions) -> Transitions:
    state, action = ((255 * part.detach()).round().to("cpu", torch.uint8) for part in (t.state, t.action))
    return Transitions(state, action, *(p.detach().cpu() for p in (t.reward, t.ended, t.domain, t.candidate)))


def _unpacked(t: Transitions, device: torch.device | str) -> Transitions:
    state, action = (part.to(device, torch.float32) / 255 for part in (t.state, t.action))
    return Transitions(state, action, *(p.to(device) for p in (t.reward, t.ended, t.domain, t.candidate)))
