r"""Who judges a generator's own clips while it trains on them: score networks, or a discriminator.

A critic does two things with clips that were just made. It says how they should change: ``gradient``, a loss and its
slope dL/dx. And it says how wrong it is about them itself: ``loss``, which its own optimiser minimises. Its networks
see whole clips, not blocks, and their passes never share a graph with the generator's.

    ScoreCritic   the real score is a frozen model, the fake score learns the made clips; with an adapter as the fake
                  score both are one network, the real score being that with the adapter off
    LogitCritic   a discriminator learns to tell made clips from real ones
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from reelign.algorithms.distribution_matching import (
    difference_penalty,
    dmd_gradient,
    dmd_loss,
    flow_loss,
    guide,
    relativistic_loss,
    sid_loss,
)
from reelign.contracts import Condition, Generator
from reelign.paths import endpoints
from reelign.sampling import Draw

TRAIN_STEPS = 1000  # a flow network's time at σ = 1


@dataclass(frozen=True)
class Made:
    """Clips to be judged.

    Args:
        x: [B,C,F,h,w] latents, without gradient.
        condition: of the prompts.
        sigma: [B], the noise level at which each is judged.
        draw: noise for them.
        mask: [F] bool, frames that the generator answers for; None is all.
        real: [B,C,F,h,w] latents of real clips with the same prompts, where there are some.
    """

    x: Tensor
    condition: Condition
    sigma: Tensor
    draw: Draw
    mask: Tensor | None = None
    real: Tensor | None = None

    def noised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x_t = (1 − σ)·x + σ·ε, and ε."""
        noise, sigma = self.draw(x.shape[1:]), self.level()
        return (1 - sigma) * x + sigma * noise, noise

    def level(self) -> Tensor:
        """σ as [B,1,1,1,1]."""
        return self.sigma.to(self.x).view(-1, 1, 1, 1, 1)

    def time(self) -> Tensor:
        """The networks' time, [B]."""
        return TRAIN_STEPS * self.sigma.to(self.x)

    def answered(self) -> Tensor | None:
        """The mask as [1,1,F,1,1]."""
        return None if self.mask is None else self.mask.to(self.x.device).view(1, 1, -1, 1, 1)


class Critic(Protocol):
    """Says how made clips should change, and learns from them."""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What it trains, by name."""
        ...

    def gradient(self, made: Made) -> tuple[Tensor, Tensor]:
        """The generator's loss, and its gradient [B,C,F,h,w] in the clips."""
        ...

    def loss(self, made: Made) -> Tensor:
        """The critic's own loss."""
        ...


class ScoreCritic:
    """Distribution matching and score identity distillation.

    Args:
        teacher: the real score, frozen.
        fake: the fake score; the teacher itself where its adapter is the difference.
        objective: ``dmd`` or ``sid``.
        guidance: w of the real and of the fake score.
        alpha: of ``sid``.
    """

    def __init__(
        self,
        teacher: Generator,
        fake: Generator,
        objective: Literal["dmd", "sid"] = "dmd",
        guidance: tuple[float, float] = (3.0, 0.0),
        alpha: float = 1.0,
    ) -> None:
        self.teacher = teacher
        self.fake = fake
        self.objective = objective
        self.guidance = guidance
        self.alpha = alpha
        self.parameters = fake.trainable()

    def gradient(self, made: Made) -> tuple[Tensor, Tensor]:
        """Of the matching loss in the clips; through both scores for ``sid``."""
        return self._matching(made) if self.objective == "dmd" else self._identity(made)

    def _matching(self, made: Made) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            noisy, _ = made.noised(made.x)
            with self._frozen():
                real = self._clean(self.teacher, noisy, made, self.guidance[0])
            with self.fake.merged():
                fake = self._clean(self.fake, noisy, made, self.guidance[1])
        x = made.x.detach().requires_grad_()
        loss = dmd_loss(x, dmd_gradient(made.x, real, fake), made.answered())
        return loss.detach(), _slopes(loss, x)[0]

    def _identity(self, made: Made) -> tuple[Tensor, Tensor]:
        """The chain rule by hand, so that what is recomputed in a backward pass has the adapter as in the forward."""
        x = made.x.detach().requires_grad_()
        noisy, _ = made.noised(x)
        with self._frozen():
            real = self._clean(self.teacher, noisy, made, self.guidance[0])
        fake = self._clean(self.fake, noisy, made, self.guidance[1])
        end, end_real, end_fake = (part.detach().requires_grad_() for part in (x, real, fake))
        loss = sid_loss(end, end_real, end_fake, self.alpha, made.answered())
        direct, to_real, to_fake = _slopes(loss, end, end_real, end_fake)
        with self._frozen():
            direct = direct + torch.autograd.grad(real, x, to_real, retain_graph=True)[0]
        return loss.detach(), direct + torch.autograd.grad(fake, x, to_fake)[0]

    def loss(self, made: Made) -> Tensor:
        """Flow matching of the fake score on the made clips."""
        noisy, noise = made.noised(made.x.detach())
        output = self.fake.predict(noisy, made.time(), made.condition)
        return flow_loss(output.to(noisy.dtype), made.x.detach(), noise)

    def _frozen(self) -> AbstractContextManager[None]:
        return self.teacher.reference() if self.teacher is self.fake else nullcontext()

    def _clean(self, network: Generator, noisy: Tensor, made: Made, scale: float) -> Tensor:
        """Guided x̂_0 of a score network."""
        sigma = made.level()

        def clean(x: Tensor, t: Tensor, condition: Condition, sigma: Tensor) -> Tensor:
            output = network.predict(x, t, condition).to(x.dtype)
            return endpoints(network.path.prediction, output, x, 1 - sigma, sigma)[0]

        if scale == 0:
            return clean(noisy, made.time(), made.condition, sigma)
        x, t, sigma = (torch.cat([part, part]) for part in (noisy, made.time(), sigma))
        negative, positive = clean(x, t, made.condition.both(), sigma).chunk(2)
        return guide(positive, negative, scale)


class Judge(Protocol):
    """Tells real from made: a discriminator."""

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Logits [B] of noised latents at times t [B]."""
        ...

    def trainable(self) -> dict[str, nn.Parameter]:
        """What it trains, by name."""
        ...


class LogitCritic:
    """A relativistic discriminator on noised latents, with R1 and R2.

    Args:
        judge: the discriminator.
        penalty: λ of R1 + R2; 0 is off.
        sigma: how far clips are moved for them.
    """

    def __init__(self, judge: Judge, penalty: float = 0.075, sigma: float = 0.05) -> None:
        self.judge = judge
        self.penalty = penalty
        self.sigma = sigma
        self.parameters = judge.trainable()

    def gradient(self, made: Made) -> tuple[Tensor, Tensor]:
        """Of the relativistic loss in the made clips."""
        x = made.x.detach().requires_grad_()
        fake, real = made.noised(x)[0], made.noised(_real(made))[0]
        with torch.no_grad():
            wanted = self.judge(real, made.time(), made.condition)
        loss = relativistic_loss(self.judge(fake, made.time(), made.condition), wanted)
        return loss.detach(), _slopes(loss, x)[0]

    def loss(self, made: Made) -> Tensor:
        """Relativistic, with λ·(R1 + R2)."""
        pair = [made.noised(x)[0] for x in (_real(made), made.x.detach())]
        real, fake = logits = self._both(made, pair)
        loss = relativistic_loss(real, fake)
        if not self.penalty:
            return loss
        moved = self._both(made, [x + self.sigma * made.draw(x.shape[1:]) for x in pair])
        penalties = [difference_penalty(a, b, self.sigma) for a, b in zip(logits, moved, strict=True)]
        return loss + self.penalty * sum(penalties, start=loss.new_zeros(()))

    def _both(self, made: Made, pair: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits of real and of made clips, in one batch."""
        positive = {name: torch.cat([value, value]) for name, value in made.condition.positive.items()}
        real, fake = self.judge(torch.cat(list(pair)), made.time().repeat(2), Condition(positive)).chunk(2)
        return real, fake


def _real(made: Made) -> Tensor:
    assert made.real is not None
    return made.real.to(made.x)


def _slopes(loss: Tensor, *ends: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, ends)
