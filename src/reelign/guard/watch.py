r"""The guard: looks at fixed samples now and then, and tells reward hacking from progress.

Every statistic is held against the base generator's own sampling spread, measured once, before training, on n prompts
with m seeds each. Let s be the pooled deviation within prompts: what another seed does to a clip.

    canary c:  shift = mean(c_now − c_base)/s                     a warning beyond 2: the average clip has changed more
                                                                  than 19 in 20 other seeds would change it
    judge j:   z = mean(j_base − j_now)/(s·sqrt(2/(n·m)))         safe below 1, an alarm beyond 3: the mean fell more
                                                                  than another set of seeds would let it fall; the
                                                                  divisor is at least 2 % of the base's mean

A judge is a held-out measure that nothing trains on. A look with an alarm of a judge, or two looks in a row with the
same warning, is hacking: the run goes back to its best safe look (the highest trained reward among looks where every
judge is below 1 and no canary sounds), with a lower learning rate, and the second time it stops there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from reelign.guard.canaries import ALARM

CANARY_LIMIT = 2.0
JUDGE_SAFE, JUDGE_WARN, JUDGE_LIMIT = 1.0, 2.0, 3.0
JUDGE_UNIT = 0.02  # of the base's mean; seeds may not change a judge at all, and one clip of many is no alarm


class GuardOptions(BaseModel):
    """The guard of a run.

    Args:
        action: ``slow`` (roll back and lower the rate, the second time stop), ``stop`` (roll back and stop), ``warn``
            (only write it down), or ``off``.
        every: steps between looks.
        prompts: n, of the prompts trained on.
        seeds: m, clips of each.
        judges: held-out measures by name; None takes those of the evaluation.
        lower: what the learning rate is multiplied with after a rollback.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Literal["slow", "stop", "warn", "off"] = "slow"
    every: int = Field(20, ge=1)
    prompts: int = Field(24, ge=2)
    seeds: int = Field(2, ge=2)
    judges: tuple[str, ...] | None = None
    lower: float = Field(0.3, gt=0, lt=1)


@dataclass(frozen=True)
class Change:
    """How one statistic stands against the base.

    Args:
        name: of the canary or judge.
        base, now: means.
        size: the shift of a canary, the z of a judge; positive is in the direction that is watched.
        level: ``safe``, ``watch`` (a judge between 1 and 2), ``warning`` or ``alarm``.
    """

    name: str
    base: float
    now: float
    size: float
    level: Literal["safe", "watch", "warning", "alarm"]


@dataclass(frozen=True)
class Look:
    """One look at the fixed samples: the trained reward, and every change."""

    step: int
    reward: float
    changes: tuple[Change, ...]

    @property
    def safe(self) -> bool:
        """Whether this generator may be exported."""
        return all(change.level == "safe" for change in self.changes)

    def named(self, *levels: str) -> list[Change]:
        """Changes of these levels."""
        return [change for change in self.changes if change.level in levels]


@dataclass(frozen=True)
class Decision:
    """What to do after a look.

    Args:
        action: ``go on``, ``roll back`` (and lower the rate), ``stop`` (after rolling back), or at the end of a run
            ``keep best`` (of the safe looks, where the last one is only to be watched).
        why: in words; empty when nothing is wrong.
    """

    action: Literal["go on", "roll back", "stop", "keep best"]
    why: str = ""


def spread_within(values: Tensor, group: int) -> float:
    """Pooled standard deviation within prompts of values [n·m], each prompt's m one after the other."""
    return float(values.view(-1, group).var(1, correction=1).mean().sqrt())


def canary_change(name: str, base: Tensor, now: Tensor, group: int) -> Change:
    """The shift of a canary between the same prompts and seeds, [n·m] each, and whether it is a warning.

    A distance between seeds (``diversity``) is the same for both clips of a pair: its spread is that between prompts.
    """
    spread = float(base.std()) if name == "diversity" else spread_within(base, group)
    scale = max(spread, 0.01 * abs(float(base.mean())), 1e-4)
    shift = float((now - base).mean()) / scale
    watched = {"falls": -shift, "rises": shift, "moves": abs(shift)}[ALARM[name]]
    return Change(name, float(base.mean()), float(now.mean()), watched, "warning" if watched > CANARY_LIMIT else "safe")


def judge_change(name: str, base: Tensor, now: Tensor, group: int) -> Change:
    """How many deviations of the base's own mean a held-out judge has fallen, from [n·m] each."""
    scale = max(spread_within(base, group) * math.sqrt(2 / len(base)), JUDGE_UNIT * abs(float(base.mean())), 1e-6)
    z = float((base - now).mean()) / scale
    level: Literal["safe", "watch", "warning", "alarm"] = "safe"
    if z > JUDGE_SAFE:
        level = "alarm" if z > JUDGE_LIMIT else "warning" if z > JUDGE_WARN else "watch"
    return Change(name, float(base.mean()), float(now.mean()), z, level)


@dataclass
class Guard:
    """Holds the base's samples, the looks so far, and decides; what it knows goes into checkpoints.

    Args:
        options: settings.
    """

    options: GuardOptions
    canaries: dict[str, Tensor] = field(default_factory=dict)
    judges: dict[str, Tensor] = field(default_factory=dict)
    looks: list[Look] = field(default_factory=list)
    best: int | None = None
    rollbacks: int = 0

    def look(self, step: int, reward: float, canaries: Mapping[str, Tensor], judges: Mapping[str, Tensor]) -> Look:
        """Compare fresh samples with the base's; the first look is the base's."""
        if not self.looks:
            self.canaries, self.judges = dict(canaries), dict(judges)
        group = self.options.seeds
        changes = [canary_change(name, self.canaries[name], values, group) for name, values in canaries.items()]
        changes += [judge_change(name, self.judges[name], values, group) for name, values in judges.items()]
        look = Look(step, reward, tuple(changes))
        self.looks.append(look)
        return look

    def is_best(self, look: Look) -> bool:
        """Whether this look is safe and has the highest reward of all safe ones; remembers it."""
        best = next((other for other in self.looks if other.step == self.best), None)
        if not look.safe or (best is not None and look.reward < best.reward):
            return False
        self.best = look.step
        return True

    def decide(self) -> Decision:
        """What the latest look asks for."""
        look = self.looks[-1]
        alarms = look.named("alarm")
        warnings = look.named("alarm", "warning")
        before = self.looks[-2].named("alarm", "warning") if len(self.looks) > 1 else []
        again = [change for change in warnings if change.name in {other.name for other in before}]
        if not alarms and not again:
            return Decision("go on", self._say(look, warnings) if warnings else "")
        why = self._say(look, alarms or again)
        if self.options.action == "warn":
            return Decision("go on", why)
        self.rollbacks += 1
        last = self.options.action == "stop" or self.rollbacks > 1
        return Decision("stop" if last else "roll back", why)

    def forget_after_rollback(self) -> None:
        """After a rollback the generator is the best safe one again: the next look is held against that."""
        kept = next(look for look in self.looks if look.step == self.best)
        self.looks.append(replace(kept, step=self.looks[-1].step))

    def _say(self, look: Look, changes: Sequence[Change]) -> str:
        first = self.looks[0]
        parts = [f"{c.name} {c.base:.3g} → {c.now:.3g} ({c.size:.1f} of the base's own spread)" for c in changes]
        return f"step {look.step}: reward {first.reward:.3g} → {look.reward:.3g} while {', '.join(parts)}"

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs to go on."""
        return {
            "canaries": self.canaries,
            "judges": self.judges,
            "looks": [asdict(look) for look in self.looks],
            "best": self.best,
            "rollbacks": self.rollbacks,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        self.canaries, self.judges = dict(state["canaries"]), dict(state["judges"])
        self.looks = [
            Look(look["step"], look["reward"], tuple(Change(**change) for change in look["changes"]))
            for look in state["looks"]
        ]
        self.best, self.rollbacks = state["best"], state["rollbacks"]
