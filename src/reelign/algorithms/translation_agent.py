r"""The agent of video translation: Q-networks and target networks of both domains, and the two phases that learn.

Explore: one transition a clip is made, at a position drawn at random, with the translators as they are, and kept. The
critic phase moves Q_d towards its targets on a batch in which kept transitions stand in for some of the new ones. The
actor's loss is −E Q_d(s, μ_d(s)), whose gradient goes through the chosen candidate into predictors and translators.
The equations are those of ``translation_mdp``.

Left out: noise added to actions; priorities in the replay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reelign.algorithms.translation_losses import Adversarial, generator_loss
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
from reelign.generators.translation import DOMAINS, Domain, other
from reelign.generators.translation_layers import QNetwork
from reelign.objectives import require_finite
from reelign.optimisation import Optimisation

Judge = Callable[[Tensor], Tensor]  # pictures [N,3,H,W] or clips [N,T,3,H,W] to logits [N]
INDEX: dict[Domain, int] = {"x": X, "y": Y}


@dataclass(frozen=True)
class AgentOptions:
    """How the agent acts and learns.

    Args:
        frames: p, of a state.
        channels: of the Q-networks.
        capacity: of the replay.
        gamma: discount γ.
        tau: τ of the target networks.
        replayed: σ_1, how likely a kept transition stands in for a new one.
        exploration: σ_2, how likely an action is drawn at random.
        lr, max_grad_norm: of the critic.
        weights: of the reward.
        adversarial: which loss L_g and L_v are.
        seed: of the Q-networks.
    """

    frames: int
    channels: int
    capacity: int
    gamma: float
    tau: float
    replayed: float
    exploration: float
    lr: float
    max_grad_norm: float
    weights: RewardWeights
    adversarial: Adversarial
    seed: int


def candidates(networks: Mapping[str, nn.Module] | nn.ModuleDict, state: Tensor, domain: Domain) -> Tensor:
    """a_1 = P_d(s) and a_2 = G_d(P_e(G_e(s))): [N,2,3,H,W].

    Args:
        networks: ``to_x``, ``to_y``, ``next_x``, ``next_y``.
        state: s [N,p,3,H,W] of ``domain``.
        domain: d.
    """
    away = other(domain)
    direct, _ = networks[f"next_{domain}"](state)
    detour = state
    for name in (f"to_{away}", f"next_{away}", f"to_{domain}"):
        detour, _ = networks[name](detour)
    return torch.stack([direct[:, -1], detour[:, -1]], 1)


def values_of(q: nn.Module, state: Tensor, actions: Tensor) -> Tensor:
    """Q(s, a) of every candidate: s [N,p,3,H,W] and [N,K,3,H,W] to [N,K]."""
    count = actions.shape[1]
    values: Tensor = q(state.repeat_interleave(count, 0), actions.flatten(0, 1))
    return values.view(len(state), count)


class Agent:
    """Q-networks, their targets, and what was lived through.

    Args:
        networks: of the translator.
        options: settings.
        random: of exploration, positions and the replay.
    """

    def __init__(self, networks: nn.ModuleDict, options: AgentOptions, random: torch.Generator) -> None:
        self.networks = networks
        self.options = options
        self.random = random
        device = next(networks.parameters()).device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.q = nn.ModuleDict({d: QNetwork(options.frames, options.channels) for d in DOMAINS}).to(device)
        self.q_targets = copy.deepcopy(self.q).requires_grad_(False)  # τ = 1 at the start
        self.target_networks = copy.deepcopy(networks).requires_grad_(False)
        self.replay = Replay(options.capacity)
        self.optimisation = Optimisation(
            dict(self.q.named_parameters()), options.lr, max_grad_norm=options.max_grad_norm
        )

    @torch.no_grad()
    def explore(self, clips: Tensor, domain: Domain, judge: Judge, video_judge: Judge | None) -> Transitions:
        """One transition a clip, at any of its frames but the first.

        Args:
            clips: [B,T,3,H,W] of the domain, T ≥ 2.
            domain: d.
            judge: of pictures of the domain, for L_g.
            video_judge: of clips, for L_v; without one the last frame is rewarded as any.
        """
        options, (count, frames) = self.options, clips.shape[:2]
        rows = torch.arange(count, device=clips.device)
        t = torch.randint(1, frames, (count,), generator=self.random).to(clips.device)
        state = states_before(clips, t, options.frames)
        both = candidates(self.networks, state, domain)
        taken = choose(values_of(self.q[domain], state, both), options.exploration, self.random)
        action = both[rows, taken]
        error = (action - clips[rows, t]).square().mean((1, 2, 3))
        last, _ = split_batch(t, frames)
        frame_loss = generator_loss(judge(action), options.adversarial)
        video_loss = torch.zeros_like(frame_loss)
        if video_judge is not None and last.any():
            ends = torch.cat([clips[last, :-1], action[last, None]], 1)
            video_loss[last] = generator_loss(video_judge(ends), options.adversarial)
        errors = error * (taken == 0), error * (taken == 1)
        judged = last if video_judge is not None else torch.zeros_like(last)
        gained = reward(frame_loss, errors, video_loss, judged, options.weights)
        return Transitions(state, action, gained, last, torch.full_like(t, INDEX[domain]), taken)

    def learn(self, fresh: Transitions) -> tuple[Transitions, dict[str, float]]:
        """The critic phase: one update on new transitions and kept ones; returns that batch, and what to log."""
        batch = self.replay.mix(fresh, self.options.replayed, self.random)
        self.replay.add(fresh)
        loss = self.critic_loss(batch)
        require_finite("the critic's loss", loss)
        self.optimisation.clear()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self.optimisation.step()
        logged = {
            "critic_loss": loss.item(),
            "critic_gradient_norm": norm,
            "rl_reward": fresh.reward.mean().item(),
            "detours": fresh.candidate.float().mean().item(),
            "replay": float(len(self.replay)),
        }
        return batch, logged

    def critic_loss(self, batch: Transitions) -> Tensor:
        """E(Q_d(s, a) − r − γ·Q′_d(s′, μ′_d(s′)))², each transition with the networks of its own domain."""
        squares = []
        for domain, part in self._by_domain(batch):
            with torch.no_grad():
                after = part.next_state()
                both = candidates(self.target_networks, after, domain)
                best = values_of(self.q_targets[domain], after, both).amax(1)
            wanted = targets(part.reward, part.ended, best, self.options.gamma)
            squares.append((self.q[domain](part.state, part.action) - wanted).square())
        return torch.cat(squares).mean()

    def actor_loss(self, batch: Transitions) -> Tensor:
        """−E Q_d(s, μ_d(s)): gradient goes to translators and predictors, and none to Q where that is frozen."""
        values = [
            values_of(self.q[domain], part.state, candidates(self.networks, part.state, domain)).amax(1)
            for domain, part in self._by_domain(batch)
        ]
        return -torch.cat(values).mean()

    @staticmethod
    def _by_domain(batch: Transitions) -> list[tuple[Domain, Transitions]]:
        parts = [(d, batch[(batch.domain == INDEX[d]).nonzero()[:, 0]]) for d in DOMAINS]
        return [(d, part) for d, part in parts if len(part)]

    def follow(self) -> None:
        """Move the target networks a share τ of the way."""
        for target, live in ((self.q_targets, self.q), (self.target_networks, self.networks)):
            soft_update(dict(target.named_parameters()), dict(live.named_parameters()), self.options.tau)

    def state(self) -> dict[str, Any]:
        """Everything but the translator."""
        return {
            "critic": self.optimisation.state(),
            "q_targets": self.q_targets.state_dict(),
            "target_networks": self.target_networks.state_dict(),
            "replay": self.replay.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue, bit for bit, from what ``state`` gave."""
        self.optimisation.restore(state["critic"])
        self.q_targets.load_state_dict(state["q_targets"])
        self.target_networks.load_state_dict(state["target_networks"])
        self.replay.restore(state["replay"])
