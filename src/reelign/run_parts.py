"""What a run trains and what each of its steps is asked, built from its config."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from reelign.algorithms.reward_gradient import Config as RewardGradientConfig
from reelign.catalogue import resolve
from reelign.config import RunConfig, dump_config, read_yaml
from reelign.contracts import Algorithm
from reelign.datasets.clips import ClipOrder
from reelign.datasets.drawn_clips import open_clips
from reelign.datasets.prompts import PromptOrder, PromptSplit
from reelign.distributed import count, shards, share
from reelign.errors import ConfigError, DataError, RunFolderError
from reelign.rewards.weighted import WeightedReward

ALONE = ("video_translation",)  # its discriminators and agent remember clips, which processes would not share

RESUMED_WITH = {
    "training.steps", "training.checkpoint_every", "training.keep", "evaluation.every", "guard.every", "trackers",
}  # fmt: skip


class Trainer(Algorithm, Protocol):
    """What the loop needs of an algorithm besides its steps."""

    def exported(self) -> AbstractContextManager[None]:
        """A context in which the generator holds the weights that are judged and saved."""
        ...

    def lower_rate(self, factor: float) -> None:
        """Multiply the learning rate, for good."""
        ...


def my_rows(config: RunConfig) -> slice:
    """Which rows of every update are this process's; all of them in a single process.

    Raises:
        ConfigError: the algorithm runs in one process alone, or the batch cannot be shared alike; or networks are kept
            in parts, and processes would make passes of their own.
    """
    if count() > 1 and config.algorithm in ALONE:
        raise ConfigError(
            f"{config.algorithm} runs in one process, because it is shown past clips again, which processes would not "
            f"share; this run has {count()}: start it without a launcher"
        )
    rows = share(config.training.batch)
    if shards() and isinstance(config.settings, RewardGradientConfig):
        _require_equal_passes(config.settings, rows.stop - rows.start)
    return rows


def _require_equal_passes(config: RewardGradientConfig, each: int) -> None:
    """With networks in parts all processes make as many passes, or they would wait for one another for ever."""
    size = config.micro_batch
    if size and size % each and each % size:
        raise ConfigError(
            f"with FSDP micro_batch divides the {each} prompts that a process has of a batch, or is a multiple of it; "
            f"got {size}"
        )
    if config.conflict_every:
        raise ConfigError(
            f"with FSDP rewards' gradients are not compared: conflict_every is 0; got {config.conflict_every}"
        )


def build_algorithm(config: RunConfig, generator: Any, reward: WeightedReward | None, cache: Path) -> Trainer:
    """The algorithm by name, given what its class asks for: some learn from the reward, some from clips."""
    kind = resolve("algorithm", config.algorithm)
    offered = {
        "generator": generator,
        "reward": reward,
        "config": getattr(config, config.algorithm),
        "seed": config.seed,
        "cache": cache,
    }
    wanted = inspect.signature(kind).parameters
    built: Trainer = kind(**{name: value for name, value in offered.items() if name in wanted})
    return built


def build_order(config: RunConfig, generator: Any, prompts: PromptSplit) -> PromptOrder | ClipOrder:
    """What each step is asked: prompts, or captioned clips whose captions are not held out."""
    if config.clips is None:
        return PromptOrder(prompts.train, config.seed + 1)
    source, held_out = config.clips.source, set(prompts.held_out)
    found, reader = open_clips(source, generator.frames(), generator.picture_size(), generator.fps)
    clips = [clip for clip in found if clip.caption not in held_out]
    if not clips:
        raise DataError(f"the captions of all clips in {source} are held out: hold out fewer")
    return ClipOrder(clips, reader, config.seed + 1)


def require_same_run(before: str, config: RunConfig) -> None:
    """Refuse to go on with another run than the one that was begun, apart from ``RESUMED_WITH``.

    Args:
        before: the run's config as YAML.

    Raises:
        RunFolderError: something else has changed.
    """
    changed = _changed(read_yaml(before), read_yaml(dump_config(config)))
    if set(changed) - RESUMED_WITH:
        raise RunFolderError(f"a resumed run keeps its config; changed: {', '.join(changed)}")


def _changed(before: Any, after: Any, place: str = "") -> list[str]:
    """``section.key`` of all values that two configs do not share; a list is one value."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [place]
    parts = (_changed(before.get(k), after.get(k), f"{place}.{k}".strip(".")) for k in {**before, **after})
    return sorted(key for part in parts for key in part)
