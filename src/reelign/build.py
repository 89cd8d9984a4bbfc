"""From names and options, as a user types them, to objects that are ready and checked."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reelign.catalogue import TABLE, resolve
from reelign.contracts import Reward, RewardCard
from reelign.errors import ConfigError, ContractError, ModelError, UnknownNameError
from reelign.metrics.clip import ClipMetric, MetricCard
from reelign.metrics.reward_metric import MAX_FRAMES, RewardMetric
from reelign.rewards.card import GOLDEN_FILE, Check, record_golden, require_verified, sensitivity, verify
from reelign.rewards.weighted import Term, WeightedReward
from reelign.selection.scoring import Scorer
from reelign.zoo.models import fingerprint

TERM_SETTINGS = ("weight", "loss", "target", "normalise", "keep_within", "multiplier_rate")


def build_reward(name: str, options: Mapping[str, Any] | None = None) -> Reward:
    """Load a reward and hold it to its card.

    Args:
        name: of the catalogue, or ``module:object``.
        options: keyword arguments of the reward's class.

    Raises:
        UnknownNameError: no such reward, or an option that it does not take.
        ConfigError: an option is missing.
        ContractError: what was built is no reward, or does not keep its card.
    """
    reward = _load_reward(name, options or {})
    require_verified(reward)
    return reward


def check_reward(name: str, options: Mapping[str, Any] | None = None) -> list[Check]:
    """Load a reward and say, promise by promise, whether it keeps its card, and how sensitive it is."""
    reward = _load_reward(name, options or {})
    return [*verify(reward), *sensitivity(reward)]


def _load_reward(name: str, options: Mapping[str, Any]) -> Reward:
    reward = _call("reward", name, options)
    if not isinstance(reward, Reward) or not isinstance(reward.card, RewardCard):
        raise ContractError(f"a reward is callable and has a RewardCard; {name!r} made a {type(reward).__name__}")
    return reward


def build_weighted_reward(terms: Sequence[Mapping[str, Any]], park: bool = False) -> WeightedReward:
    """Load the rewards of a run, hold them to their cards, and join them.

    Args:
        terms: as for ``build_terms``.
        park: see ``WeightedReward``.
    """
    return WeightedReward(build_terms(terms), park)


def build_terms(
    terms: Sequence[Mapping[str, Any]], stand_in: Callable[[str, ModelError], Reward] | None = None
) -> list[Term]:
    """Load the rewards of a run one by one.

    Args:
        stand_in: makes a reward in place of one that cannot be loaded; cards are then not checked.
        terms: mappings with ``name`` and, where not the default, ``weight``, ``loss``, ``target`` and ``options``.
            A reward that occurs twice is called ``name#2`` the second time.
    """
    built: list[Term] = []
    for term in terms:
        count = 1 + sum(other["name"] == term["name"] for other in terms[: len(built)])
        label = term["name"] if count == 1 else f"{term['name']}#{count}"
        settings = {key: term[key] for key in TERM_SETTINGS if key in term}
        reward = _reward_or(term, stand_in) if stand_in else build_reward(term["name"], term.get("options"))
        built.append(Term(label, reward, **settings))
    return built


def _reward_or(term: Mapping[str, Any], stand_in: Callable[[str, ModelError], Reward]) -> Reward:
    try:
        return _load_reward(term["name"], term.get("options") or {})
    except ModelError as error:
        return stand_in(term["name"], error)


def reward_cards() -> list[RewardCard]:
    """The card of every reward that ships with the package; no weights are loaded."""
    return [resolve("reward", name).card for name in TABLE["reward"]]


@dataclass(frozen=True)
class MetricSpec:
    """A metric or reward as a user asks for it; it pickles, so that every worker can build its own.

    Args:
        kind: ``metric`` or ``reward``.
        name: of the catalogue, or ``module:object``.
        options: keyword arguments.
        max_frames: of a reward; how many frames it sees at most.
    """

    kind: Literal["metric", "reward"]
    name: str
    options: tuple[tuple[str, Any], ...] = ()
    max_frames: int = MAX_FRAMES


def build_scorers(specs: Sequence[MetricSpec]) -> list[Scorer]:
    """Load metrics and rewards, each with the parameters that are part of its scores' key.

    Those are the options given, the model (its default where none was given) and a fingerprint of every file or folder
    that an option names, so that a score by other weights is another score.

    Raises:
        UnknownNameError, ConfigError, ContractError: as ``build_reward``.
    """
    return [_build_scorer(spec) for spec in specs]


def _build_scorer(spec: MetricSpec) -> Scorer:
    options = dict(spec.options)
    if spec.kind == "reward":
        name = spec.name.rpartition(":")[2].lower() if ":" in spec.name else spec.name
        metric: Any = RewardMetric(build_reward(spec.name, options), name, spec.max_frames)
    else:
        metric = _call("metric", spec.name, options)
        if not isinstance(metric, ClipMetric) or not isinstance(metric.card, MetricCard):
            raise ContractError(f"a metric has a MetricCard and 'start'; {spec.name!r} made a {type(metric).__name__}")
    default = inspect.signature(resolve(spec.kind, spec.name)).parameters.get("model")
    if default is not None and "model" not in options and isinstance(default.default, str):
        options["model"] = default.default
    if spec.kind == "reward" and spec.max_frames != MAX_FRAMES:
        options["max_frames"] = spec.max_frames
    files = {name: fingerprint(value) for name, value in options.items() if isinstance(value, str)}
    if marks := {name: mark for name, mark in sorted(files.items()) if mark}:
        options["fingerprint"] = marks
    return Scorer(metric, json.dumps(options, sort_keys=True, default=str))


def metric_cards() -> list[MetricCard]:
    """The card of every metric that needs no weights; nothing is loaded."""
    found = (resolve("metric", name) for name in TABLE["metric"])
    return [metric.card for metric in found if isinstance(getattr(metric, "card", None), MetricCard)]


def weight_free() -> tuple[str, ...]:
    """The names of the metrics that need neither weights nor a prompt: what is scored unless told otherwise."""
    return tuple(card.name for card in metric_cards() if not card.needs_prompt)


def build_measures(chosen: Sequence[str]) -> list[Any]:
    """Held-out measures by name: callables from a ``VideoBatch`` to named scores [B]."""
    return [resolve("measure", name) for name in chosen]


def build_generator(options: Mapping[str, Any]) -> Any:
    """Load a generator with its own options, for example ``model``; ``kind`` names the family (``wan``)."""
    return resolve("generator", options.get("kind", "wan"))(**options)


def record_zoo_golden(name: str, folder: Path) -> float | None:
    """Keep the golden score of a freshly trained zoo reward beside its weights; None where ``name`` is no reward.

    Args:
        name: of the zoo, without ``zoo:``.
        folder: where it was written.
    """
    rewards = {"tiny-clip": "clip", "tiny-videomae": "video_action"}
    if name not in rewards:
        return None
    (folder / GOLDEN_FILE).unlink(missing_ok=True)  # that of the weights before
    return record_golden(folder, build_reward(rewards[name], {"model": str(folder)}))


def _call(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """Call the factory behind a name with options that its signature takes."""
    factory = resolve(kind, name)
    if not callable(factory):
        raise ContractError(f"{kind} {name!r} must be a class or a function; it is a {type(factory).__name__}")
    parameters = inspect.signature(factory).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in options:
            if key not in parameters:
                raise UnknownNameError(f"option of {kind} {name!r}", key, parameters)
    required = [
        key for key, p in parameters.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    missing = [key for key in required if key not in options]
    if missing:
        raise ConfigError(f"{kind} {name!r} needs the option {', '.join(missing)}: give it under 'options'")
    return factory(**options)
