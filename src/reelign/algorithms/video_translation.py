r"""RL-V2V-GAN made real: clips of one domain into another, unpaired, by a GAN, next-frame prediction and an agent.

    G_X, G_Y, P_X, P_Y   minimise   L_g(frames) + λ_v·L_v(clips) + λ_rr·L_rr + λ_rc·L_rc − λ_q·E Q(s, μ(s))
                                    (+ λ_cycle·L_cycle + λ_identity·L_identity + λ_steady·L_steady)
    D_X, D_Y, V_X, V_Y   minimise   the adversarial loss, with R1
    Q_X, Q_Y             minimise   E(Q(s, a) − y)²

The losses are those of ``translation_losses``, the process that Q is of those of ``translation_mdp``, and its phases
those of ``translation_agent``. Where the published defaults do not work they are others here, each said at its setting.
Differences from the published code, which cannot run: recurrent and recycle losses as Recycle-GAN defines them; Q is
linear at its end, so that it can be negative, as all returns are; every transition knows its domain; an L_v for the
whole clip on every clip, since each holds its last frame, with the split B1 and B2 in the agent's rewards.

``per_frame`` is the ablation that memory is measured against: a CycleGAN of pictures.

Left out: the fourth stream of the published code (still pictures); several machines.

Run: ``reelign train translation_shapes``, or ``translation_folders`` on clips of your own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from reelign.algorithms.translation_agent import Agent, AgentOptions
from reelign.algorithms.translation_clips import Clips, cut, motion_of, unpaired
from reelign.algorithms.translation_history import ClipHistory
from reelign.algorithms.translation_losses import (
    Adversarial,
    Map,
    cycle_loss,
    discriminator_loss,
    generator_loss,
    identity_loss,
    pictures,
    r1_penalty,
    recurrent_loss,
    recycle_loss,
    steadiness_loss,
)
from reelign.algorithms.translation_mdp import RewardWeights, Transitions
from reelign.contracts import Request
from reelign.errors import ConfigError
from reelign.generators.translation import DOMAINS, Domain, TranslationGenerator, other
from reelign.generators.translation_layers import FrameDiscriminator, VideoDiscriminator
from reelign.metrics.flow import SHORTEST
from reelign.objectives import require_finite
from reelign.optimisation import Optimisation


class Config(BaseModel):
    """Settings of RL-V2V-GAN. Defaults are the published ones where nothing else is said.

    Args:
        gamma, tau: γ, and τ of the target networks.
        lambda_v, lambda_rr, lambda_rc: weights λ_v, λ_rr and λ_rc, of the losses and of the reward. The published
            0.1 weighs absolute errors of values in [−1,1]; squared errors of values in [0,1] are a hundredth of these,
            so here λ_rr and λ_rc are 10, as in Recycle-GAN.
        lambda_q: λ_q, of the actor; published: 1, by a routine that is never called.
        lambda_cycle, lambda_identity, lambda_steady: of the three losses that are not of RL-V2V-GAN; 0 is off.
        sigma1: σ_1, how likely a kept transition stands in for a new one.
        sigma2: σ_2, how likely an action is drawn at random; published: 0.5, unused, and 0.1 in the code.
        state_frames: p.
        replay: transitions kept.
        rl, recurrent, recycle, video_discriminator: false leaves the part out.
        per_frame: a translator of pictures without memory, with none of the four parts above and no steadiness loss.
        adversarial: ``bce`` or ``hinge``.
        r1: γ of R1, computed at every ``r1_every``-th step, with so much more weight; 0 is off.
        judge_updates: of discriminators in a step; they see what is wrong more slowly than translators change it.
        history: clips of each domain, real and made, that discriminators are shown again; 0 is none.
        lr, discriminator_lr, critic_lr: of AdamW.
        colours_first: steps in which translators learn their map of colours alone; what is around and before a pixel
            comes after. Learning both at once, they exaggerate every contrast with the sign that it has, and keep it.
        half_life: steps in which ``lr`` halves, so that discriminators catch up with what is still wrong; 0 keeps it.
        betas: of AdamW, for translators and discriminators.
        max_grad_norm: gradients are scaled down to this joint norm.
        average: decay of the moving average of weights that is evaluated and exported; 0 is off.
        discriminator_channels, critic_channels: of the first layers.
        window: frames of a clip that a step trains on, at any place of it; None is all.
        agent_crop: the agent sees squares of so many pixels, at any place; None is whole pictures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gamma: float = Field(0.99, ge=0, le=1)
    tau: float = Field(0.001, gt=0, le=1)
    lambda_v: float = Field(1.0, ge=0)
    lambda_rr: float = Field(10.0, ge=0)
    lambda_rc: float = Field(10.0, ge=0)
    lambda_q: float = Field(0.1, ge=0)
    lambda_cycle: float = Field(1.0, ge=0)
    lambda_identity: float = Field(5.0, ge=0)
    lambda_steady: float = Field(0.0, ge=0)
    sigma1: float = Field(0.5, ge=0, le=1)
    sigma2: float = Field(0.1, ge=0, le=1)
    state_frames: int = Field(3, ge=1)
    replay: int = Field(10_000, ge=1)
    rl: bool = True
    recurrent: bool = True
    recycle: bool = True
    video_discriminator: bool = True
    per_frame: bool = False
    adversarial: Adversarial = "bce"
    r1: float = Field(0.5, ge=0)
    r1_every: int = Field(4, ge=1)
    judge_updates: int = Field(2, ge=1)
    history: int = Field(50, ge=0)
    lr: float = Field(1e-4, gt=0)
    discriminator_lr: float = Field(1e-4, gt=0)
    critic_lr: float = Field(1e-4, gt=0)
    colours_first: int = Field(150, ge=0)
    half_life: int = Field(0, ge=0)
    betas: tuple[float, float] = (0.5, 0.99)
    max_grad_norm: float = Field(10.0, gt=0)
    average: float = Field(0.99, ge=0, lt=1)
    discriminator_channels: int = Field(12, ge=1)
    critic_channels: int = Field(16, ge=1)
    window: int | None = Field(None, ge=2)
    agent_crop: int | None = Field(32, ge=16)

    @model_validator(mode="after")
    def _pictures_alone(self) -> Config:
        if self.per_frame and self.lambda_cycle == 0:
            raise ConfigError("per_frame keeps content by its cycle alone: set lambda_cycle above 0")
        return self

    def uses(self, part: str) -> bool:
        """Whether a part, ``rl``, ``recurrent``, ``recycle`` or ``video_discriminator``, takes part."""
        return bool(getattr(self, part)) and not self.per_frame


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Inside, gradient passes through these modules and leaves none in them."""
    parameters = [p for module in modules for p in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class VideoTranslation:
    """RL-V2V-GAN as an ``Algorithm``. A request's prompts are the domains, x or y, of its source clips.

    Args:
        generator: what is trained.
        config: settings.
        seed: of discriminators, Q-networks and every draw.
    """

    def __init__(self, generator: TranslationGenerator, config: Config, seed: int = 0) -> None:
        if not isinstance(generator, TranslationGenerator):
            raise ConfigError("video_translation trains translators: set generator.kind to translation")
        if config.lambda_steady and min(generator.picture_size()) < SHORTEST:
            height, width = generator.picture_size()
            raise ConfigError(
                f"lambda_steady follows optical flow, which needs at least {SHORTEST} pixels a side; clips have "
                f"{width}×{height}: set it to 0, or domains.size higher"
            )
        self.generator = generator
        self.config = config
        self.random = torch.Generator().manual_seed(seed)
        self.updates = 0
        generator.per_frame = config.per_frame
        channels = config.discriminator_channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.frame_judges = {d: FrameDiscriminator(channels) for d in DOMAINS}
            self.video_judges = {d: VideoDiscriminator(-(-channels // 2)) for d in DOMAINS}
        judges: dict[str, nn.Module] = {f"frame_{d}": judge for d, judge in self.frame_judges.items()}
        if config.uses("video_discriminator"):
            judges |= {f"video_{d}": judge for d, judge in self.video_judges.items()}
        self.judges = nn.ModuleDict(judges).to(generator.device)
        optimisation = partial(Optimisation, betas=config.betas, max_grad_norm=config.max_grad_norm)
        self.optimisation = optimisation(generator.trainable(), config.lr, average=config.average)
        self.judging = optimisation(dict(self.judges.named_parameters()), config.discriminator_lr)
        self.history = {d: ClipHistory(config.history) for d in DOMAINS}
        self.parameters = self.optimisation.parameters
        self.agent = self._build_agent(seed) if config.uses("rl") else None

    def _build_agent(self, seed: int) -> Agent:
        config = self.config
        options = AgentOptions(
            frames=config.state_frames,
            channels=config.critic_channels,
            capacity=config.replay,
            gamma=config.gamma,
            tau=config.tau,
            replayed=config.sigma1,
            exploration=config.sigma2,
            lr=config.critic_lr,
            max_grad_norm=config.max_grad_norm,
            weights=RewardWeights(config.lambda_v, config.lambda_rr, config.lambda_rc),
            adversarial=config.adversarial,
            seed=seed,
        )
        return Agent(self.generator.networks, options, self.random)

    def step(self, request: Request) -> dict[str, float]:
        """One update of discriminators, critic and translators, in this order.

        Logs ``loss``, ``gradient_norm`` and each of its terms; ``judge_loss`` and ``judge_gradient_norm``; with the
        agent ``critic_loss``, ``critic_gradient_norm``, ``rl_reward``, ``detours`` (share of a_2) and ``replay``.
        """
        device = self.generator.device
        clips = {d: cut(c.to(device), self.config.window, None, self.random) for d, c in unpaired(request).items()}
        made = {d: self.generator.translate(clips[other(d)], d)[0] for d in DOMAINS}
        logged = self._judge(clips, made)
        lived: Transitions | None = None
        if self.agent is not None:
            lived, values = self.agent.learn(self._explore(self.agent, clips))
            logged |= values
        watched = [self.judges] if self.agent is None else [self.judges, self.agent.q]
        with frozen(*watched):
            terms = self._terms(clips, made)
            if self.agent is not None and lived is not None:
                terms["actor"] = self.config.lambda_q * self.agent.actor_loss(lived)
            loss = torch.stack(list(terms.values())).sum()
            require_finite("the loss", loss)
            self.optimisation.clear()
            loss.backward()  # type: ignore[no-untyped-call]
        if self.updates < self.config.colours_first:
            self.generator.keep_to_colours()
        logged["gradient_norm"] = self.optimisation.step()
        if self.config.half_life:
            self.optimisation.lower_rate(0.5 ** (1 / self.config.half_life))
        if self.agent is not None:
            self.agent.follow()
        self.updates += 1
        return {"loss": loss.item()} | {name: term.item() for name, term in terms.items()} | logged

    def _judge(self, clips: Clips, made: Clips) -> dict[str, float]:
        """The discriminators' updates of one step; returns what the last one was like."""
        logged = [self._judge_once(clips, made, first=n == 0) for n in range(self.config.judge_updates)]
        if self.config.history:
            for domain, history in self.history.items():
                history.add(clips[domain], made[domain])
        return logged[-1]

    def _judge_once(self, clips: Clips, made: Clips, first: bool) -> dict[str, float]:
        """One update of the discriminators, on clips as they are and clips as they were made."""
        config, losses = self.config, []
        due = first and config.r1 and self.updates % config.r1_every == 0
        for judge, real, fake in self._cases(clips, made):
            loss = discriminator_loss(judge.patches(real), judge.patches(fake), config.adversarial)
            if due:
                loss = loss + config.r1_every * config.r1 / 2 * r1_penalty(judge, real)
            losses.append(loss)
        total = torch.stack(losses).sum()
        require_finite("the discriminators' loss", total)
        self.judging.clear()
        total.backward()  # type: ignore[no-untyped-call]
        return {"judge_loss": total.item(), "judge_gradient_norm": self.judging.step()}

    def _cases(
        self, clips: Clips, made: Clips
    ) -> Iterator[tuple[FrameDiscriminator | VideoDiscriminator, Tensor, Tensor]]:
        """Each discriminator with what is of its domain and what was made to be."""
        for domain in DOMAINS:
            real, fake = clips[domain], made[domain].detach()
            real, fake = self.history[domain].behind(real, fake, self.random)
            yield self.frame_judges[domain], pictures(real), pictures(fake)
            if self.config.uses("video_discriminator"):
                yield self.video_judges[domain], real, fake

    def _terms(self, clips: Clips, made: Clips) -> dict[str, Tensor]:
        """Every weighted term of the translators' loss but the actor's, of both domains together."""
        terms: dict[str, Tensor] = {}
        for domain in DOMAINS:
            for name, term in self._terms_of(domain, clips[domain], made[other(domain)], made[domain]).items():
                terms[name] = terms[name] + term if name in terms else term
        return terms

    def _terms_of(self, domain: Domain, clips: Tensor, there: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Those of one domain.

        Args:
            domain: d.
            clips: of d.
            there: ``clips`` in the other domain.
            fake: clips of the other domain in d.
        """
        config, generator, away = self.config, self.generator, other(domain)

        def to(side: Domain) -> Map:
            return lambda video: generator.translate(video, side)[0]

        def predict(side: Domain) -> Map:
            return lambda video: generator.predict_next(video, side)[0]

        def known(_clips: Tensor) -> Tensor:
            return there

        kind = config.adversarial
        terms = {"frames": generator_loss(self.frame_judges[domain].patches(pictures(fake)), kind).mean()}
        if config.uses("video_discriminator"):
            terms["clips"] = config.lambda_v * generator_loss(self.video_judges[domain].patches(fake), kind).mean()
        if config.uses("recurrent"):
            terms["recurrent"] = config.lambda_rr * recurrent_loss(predict(domain), clips)
        if config.uses("recycle"):
            terms["recycle"] = config.lambda_rc * recycle_loss(known, predict(away), to(domain), clips)
        if config.lambda_cycle:
            terms["cycle"] = config.lambda_cycle * cycle_loss(known, to(domain), clips)
        if config.lambda_identity:
            terms["identity"] = config.lambda_identity * identity_loss(to(domain), clips)
        if config.lambda_steady and not config.per_frame:
            terms["steady"] = config.lambda_steady * steadiness_loss(there, *motion_of(clips))
        return terms

    def _explore(self, agent: Agent, clips: Clips) -> Transitions:
        side, parts = self.config.agent_crop, []
        for domain in DOMAINS:
            seen = cut(clips[domain], None, side, self.random)
            video = self.video_judges[domain] if self.config.uses("video_discriminator") else None
            parts.append(agent.explore(seen, domain, self.frame_judges[domain], video))
        return Transitions.join(parts)

    def exported(self) -> AbstractContextManager[None]:
        """A context in which the translator holds the averaged weights, where there are any."""
        return self.optimisation.exported()

    def lower_rate(self, factor: float) -> None:
        """Multiply every learning rate, for good."""
        for optimisation in (self.optimisation, self.judging, *([self.agent.optimisation] if self.agent else [])):
            optimisation.lower_rate(factor)

    def state(self) -> dict[str, Any]:
        """Weights, averages, optimisers, discriminators with their singular vectors, the agent and random state."""
        return {
            "translators": self.optimisation.state(),
            "judging": self.judging.state(),
            "judges": self.judges.state_dict(),
            "history": {d: history.state() for d, history in self.history.items()},
            "agent": None if self.agent is None else self.agent.state(),
            "updates": self.updates,
            "random": self.random.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue, bit for bit, from what ``state`` gave."""
        self.optimisation.restore(state["translators"])
        self.judging.restore(state["judging"])
        self.judges.load_state_dict(state["judges"])
        for domain, history in self.history.items():
            history.restore(state["history"][domain])
        if self.agent is not None:
            self.agent.restore(state["agent"])
        self.updates = int(state["updates"])
        self.random.set_state(state["random"])
