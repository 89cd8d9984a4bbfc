"""The guard at work in a run: samples its fixed prompts, keeps the best safe weights, writes down what it saw and did.

``guard.json`` in the run folder has every look and every decision; ``guard/step_000040/`` the best safe weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reelign import checkpoint
from reelign.contracts import Generator, Request, VideoBatch
from reelign.distributed import count, from_first, spread
from reelign.guard.canaries import sing
from reelign.guard.watch import Decision, Guard, GuardOptions, Look
from reelign.rewards.weighted import WeightedReward
from reelign.run_folder import RunFolder
from reelign.sampling import generate

SEED = 7_000  # of the fixed samples; far from those of the evaluation


@dataclass
class RunGuard:
    """A guard with everything it needs to look.

    Args:
        options: settings.
        prompts: fixed; of those trained on, so that held-out prompts choose nothing.
        reward: the trained reward.
        judges: held-out measures.
        sampling: steps, guidance and eta.
        batch: prompts at a time.
        folder: of the run.
    """

    options: GuardOptions
    prompts: tuple[str, ...]
    reward: WeightedReward
    judges: Sequence[Callable[[VideoBatch], Mapping[str, Tensor]]]
    sampling: tuple[int, float, float]
    batch: int
    folder: RunFolder
    decisions: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.guard = Guard(self.options)

    def due(self, step: int, total: int) -> bool:
        """Whether to look now."""
        return self.options.action != "off" and (step % self.options.every == 0 or step == total)

    @torch.no_grad()
    def look(self, generator: Generator, step: int) -> Look:
        """Sample the fixed prompts and seeds, and compare them with the base's."""
        size = min(max(1, self.batch // self.options.seeds), -(-len(self.prompts) // count()))

        def part(start: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
            request = Request(self.prompts[start : start + size]).repeat(self.options.seeds)
            seeds = [SEED + start * self.options.seeds + i for i in range(len(request))]
            clips = generate(generator, request, seeds, *self.sampling)
            judged = {name: value for judge in self.judges for name, value in judge(clips).items()}
            return self.reward(clips).cpu(), _plain(sing(clips, self.options.seeds)), _plain(judged)

        rewards, canaries, judges = zip(*spread(part, range(0, len(self.prompts), size)), strict=True)
        return self.guard.look(step, float(torch.cat(rewards).mean()), _joined(canaries), _joined(judges))

    def decide(self, step: int, last: bool) -> Decision:
        """What the latest look asks for; at the end of a run, only a safe generator is exported."""
        decision = self.guard.decide()
        look = self.guard.looks[-1]
        if last and decision.action == "go on" and self.options.action != "warn" and not look.safe:
            names = ", ".join(change.name for change in look.named("watch", "warning", "alarm"))
            best = f"exporting step {self.guard.best}, the best safe look"
            decision = Decision("keep best", f"step {step}: {best}; the last one is to be watched ({names})")
        if decision.why:
            to = self.guard.best if decision.action != "go on" else None
            self.decisions.append({"step": step, "action": decision.action, "why": decision.why, "to": to})
        self._write()
        return decision

    def keep(self, step: int, parts: dict[str, Any], extra: Callable[[Path], None]) -> None:
        """Save the weights of the best safe look."""
        self.folder.save(self._safe(step), parts, extra)

    def best(self) -> dict[str, Any]:
        """The parts saved at the best safe look."""
        assert self.guard.best is not None
        place = self._safe(self.guard.best)
        return from_first(lambda: checkpoint.load(place))

    def tidy(self) -> None:
        """Remove safe weights that are no longer the best."""
        for old in self._safe(0).parent.glob("step_*"):
            if self.guard.best is not None and old != self._safe(self.guard.best):
                shutil.rmtree(old)

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs to go on."""
        return {"guard": self.guard.state(), "decisions": self.decisions}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        self.guard.restore(state["guard"])
        self.decisions = list(state["decisions"])

    def _safe(self, step: int) -> Path:
        return self.folder.path / "guard" / f"step_{step:06d}"

    def _write(self) -> None:
        looks = [asdict(look) for look in self.guard.looks]
        self.folder.write_json("guard.json", {"looks": looks, "decisions": self.decisions, "best": self.guard.best})


def _plain(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().float().cpu() for name, value in values.items()}


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
