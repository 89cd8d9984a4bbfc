"""Self-play is one YAML file too: the sections of a run, and those of selecting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from reelign.algorithms.best_of_n import Config as BestOfNConfig
from reelign.config import (
    EvaluationOptions,
    PromptedOptions,
    PromptOptions,
    RewardOptions,
    TrainingOptions,
    read_run_file,
    validated,
)
from reelign.generators.wan import WanOptions
from reelign.guard.watch import GuardOptions
from reelign.selection.choose import Play
from reelign.selection.reject import RejectOptions


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TakesOptions(_Section):
    """What a round generates.

    Args:
        prompts: how many, drawn anew each round from those not held out.
        per_prompt: takes of each.
        batch: clips at a time.
        steps, guidance_scale: of their sampling; None takes those of ``best_of_n``, which evaluation uses.
    """

    prompts: int = Field(64, ge=1)
    per_prompt: int = Field(8, ge=2)
    batch: int = Field(16, ge=1)
    steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=1)


class ScoringOptions(_Section):
    """What is scored besides the rewards, and where.

    Args:
        metrics: names; the gates and outliers of rejecting look at them. As given, what the gates need and two more.
        where: ``here``, ``pool`` or ``ray``; not "on", which YAML reads as true.
        workers: processes.
    """

    metrics: tuple[str, ...] = ("facts", "clipping", "freezes", "temporal_flickering", "sharpness")
    where: Literal["here", "pool", "ray"] = "here"
    workers: int | None = Field(None, ge=1)


class SelectOptions(_Section):
    """Who is trained on.

    Args:
        play: the tournament.
        per_group: winners of a prompt.
        min_confidence: below this a prompt has no winner.
        at_least: scores below which a take cannot win, by name: where all takes of a prompt are wrong, the best of them
            teaches what is wrong.
        weighting: ``winners`` alike, or ``softmax``: every take that was not rejected, in proportion to
            exp(strength/β), reward-weighted regression.
        beta: β, in logits of the judge.
    """

    play: Play = Play()
    per_group: int = Field(1, ge=1)
    min_confidence: float = Field(0.0, ge=0, le=1)
    at_least: dict[str, float] = Field(default_factory=dict)
    weighting: Literal["winners", "softmax"] = "winners"
    beta: float = Field(1.0, gt=0)


class SelfPlayConfig(_Section):
    """Everything self-play is made of.

    Args:
        output: the folder.
        rounds: at most.
        patience: stop after so many rounds in a row whose held-out gain is within noise.
        goal: held-out columns whose mean is the goal; empty takes every held-out measure.
        seed: of prompts, takes and training.
        train_from: ``base``, each round anew on the winners of all rounds; or ``last``, the round before, on its own.
        rewards: what scores and, without a judge, selects by weight; the guard of each round watches them.
        judge: folder of a learned judge, which then selects instead.
        generator, prompts, best_of_n, training, evaluation, guard: as in a run.
        takes, scoring, reject, select: the stages before training.
    """

    output: str
    rounds: int = Field(3, ge=1)
    patience: int = Field(1, ge=1)
    goal: tuple[str, ...] = ()
    seed: int = 0
    train_from: Literal["base", "last"] = "base"
    generator: PromptedOptions = Field(WanOptions(), discriminator="kind")
    prompts: PromptOptions = PromptOptions()
    takes: TakesOptions = TakesOptions()
    rewards: tuple[RewardOptions, ...] = Field(min_length=1)
    scoring: ScoringOptions = ScoringOptions()
    reject: RejectOptions = RejectOptions()
    judge: str | None = None
    select: SelectOptions = SelectOptions()
    best_of_n: BestOfNConfig = BestOfNConfig()
    training: TrainingOptions = TrainingOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    guard: GuardOptions = GuardOptions()

    @field_validator("generator", mode="before")
    @classmethod
    def _wan_unless_told(cls, value: Any) -> Any:
        return {"kind": "wan", **value} if isinstance(value, dict) else value


def load_selfplay(path: Path, overrides: Sequence[str] = ()) -> SelfPlayConfig:
    """Read a file of self-play and apply ``section.key=value`` overrides.

    Args:
        path: a YAML file, or the bare name of a recipe that ships with the package.

    Raises:
        ConfigError: as ``config.load_config``.
    """
    return validated(SelfPlayConfig, read_run_file(path, overrides))


def dump_selfplay(config: SelfPlayConfig) -> str:
    """The whole config as YAML, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
