"""What can be done about a run that does not fit: a table of levers, and the order in which ``fit`` pulls them.

The order is that of the table, from what costs least: first what leaves the update as it is and costs time, then what
rounds, then what changes what is learnt. ``fit`` predicts; where the run does not fit, it pulls the first lever that
helps the fullest phase; where that does not lower the peak, the lever is put back and never tried again; one that
excludes another waits until something else has changed; and so on until the run fits or no lever is left. To add a
lever, add a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from reelign.config import RunConfig, parse_config
from reelign.errors import ReelignError
from reelign.planning.devices import Device
from reelign.planning.predict import Prediction, predict

GRAPH = frozenset({"live steps", "chain", "decoding", "reward", "backward"})  # while activations are kept
AFTER = frozenset({"decoding", "reward", "backward"})
CODED = AFTER | {"clips"}
SAMPLED = frozenset({"prefix", "evaluation"})
ALL = GRAPH | SAMPLED | {"texts", "clips", "optimiser"}
LEAST_GAIN = 0.01  # of the peak; a lever that helps less is put back
LEAST_RANK, LEAST_FRAMES, LEAST_SIDE, LEAST_TILE = 4, 9, 256, 128

Next = Callable[[Any, Prediction], Any]  # from a key's value and what it needs: the next value, or None at the end


@dataclass(frozen=True)
class Lever:
    """One setting that saves memory.

    Args:
        key: of the run file; ``algorithm`` stands for the name of the run's algorithm.
        next: its next value.
        helps: phases whose peak it may lower.
        price: what it costs, for people to read.
    """

    key: str
    next: Next
    helps: frozenset[str]
    price: str

    def pulled(self, config: RunConfig, prediction: Prediction) -> dict[str, Any] | None:
        """The settings to change, as written after ``--set``; None where it is pulled, or not in this run's options."""
        *sections, last = key_path(self.key, config)
        place: Any = config.model_dump(mode="json")
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            return None
        value = self.next(place[last], prediction)
        return None if value is None else {".".join((*sections, last)): value}


def _on(value: bool, now: Prediction) -> bool | None:
    return None if value else True


def _off(value: bool, now: Prediction) -> bool | None:
    return False if value else None


def _sliced(value: bool, now: Prediction) -> bool | None:
    return None if value or now.batch == 1 else True


def _halved(least: int, unset: Callable[[Prediction], int | None] = lambda now: None) -> Next:
    """Half of it, not below ``least``; ``unset`` tells what 0 or nothing stands for."""

    def following(value: int | None, now: Prediction) -> int | None:
        given = value or unset(now)
        return None if given is None or given <= least else max(least, given // 2)

    return following


def _fewer_bits(value: str, now: Prediction) -> str | None:
    return {"none": "int8", "int8": "nf4"}.get(value)


def _fewer_frames(value: Any, now: Prediction) -> Any:
    """All, then four segments, then the first frame of the chosen."""
    if value["choose"] in ("all", "alternate") and now.size[0] > 4:
        return {**value, "choose": "segments", "segments": 4, "draw": "random"}
    if value["choose"] == "segments" and value["segments"] > 1:
        return {**value, "segments": 1}
    if isinstance(value["choose"], list) and len(value["choose"]) > 1:
        return {**value, "choose": value["choose"][:1]}
    return None


def _shorter(value: int | None, now: Prediction) -> int | None:
    """About three quarters of the frames, 8·n + 1 of them, which every family but those of plain frames takes."""
    frames = (now.size[0] * 3 // 4 - 1) // 8 * 8 + 1
    return frames if frames >= LEAST_FRAMES else None


def _smaller(side: int) -> Next:
    """About three quarters of a side, a multiple of 32."""

    def following(value: int | None, now: Prediction) -> int | None:
        pixels = now.size[side] * 3 // 4 // 32 * 32
        return pixels if pixels >= LEAST_SIDE else None

    return following


LEVERS = (
    Lever("generator.gradient_checkpointing", _on, GRAPH, "same update; live steps run their network twice"),
    Lever("generator.decode_checkpointing", _on, AFTER, "same update; the decoder runs twice"),
    Lever("generator.decode_chunk", lambda v, now: None if v == 1 else 1, AFTER | {"evaluation"}, "slower decoding"),
    Lever("generator.memory.decode_slicing", _sliced, CODED | {"evaluation"}, "same update; clips are decoded in turn"),
    Lever("evaluation.batch", _halved(1), frozenset({"evaluation"}), "same proof; slower where batches were small"),
    Lever("algorithm.micro_batch", _halved(1, lambda now: now.batch), GRAPH | {"prefix"}, "same update; more passes"),
    Lever("generator.merge_adapter", _off, SAMPLED, "same values up to round-off; slower steps without gradient"),
    Lever("training.park_rewards", _on, ALL, "same update; rewards move to the device and back at each score"),
    Lever("generator.memory.offload", _on, ALL, "same update; weights are copied to the device in each pass"),
    Lever(
        "algorithm.optimiser",
        lambda v, now: None if v == "adamw8bit" else "adamw8bit",
        ALL,
        "rounds moments to 8 bits; needs reelign[bitsandbytes]",
    ),
    Lever("generator.dtype", lambda v, now: None if v != "float32" else "bfloat16", ALL, "rounds to bfloat16"),
    Lever(
        "generator.memory.decode_tiling",
        _halved(LEAST_TILE, lambda now: max(now.size[1:])),
        CODED | {"evaluation"},
        "decodes overlapping tiles, which see less around them",
    ),
    Lever("generator.train_all", _off, ALL, "trains an adapter in place of every weight"),
    Lever("generator.memory.quantise", _fewer_bits, ALL, "rounds frozen weights; needs reelign[bitsandbytes]"),
    Lever("algorithm.k", _halved(1), GRAPH, "gradient through fewer steps"),
    Lever("algorithm.frames", _fewer_frames, AFTER, "fewer frames are rewarded in an update"),
    Lever("generator.lora.rank", _halved(LEAST_RANK), ALL, "a smaller adapter"),
    Lever("generator.frames", _shorter, ALL, "shorter clips"),
    Lever("generator.height", _smaller(1), ALL, "lower clips"),
    Lever("generator.width", _smaller(2), ALL, "narrower clips"),
)


@dataclass(frozen=True)
class Pull:
    """One lever that was pulled.

    Args:
        settings: as written after ``--set``.
        price: what it costs.
        before, after: peak bytes.
    """

    settings: dict[str, Any]
    price: str
    before: int
    after: int


def key_path(key: str, config: RunConfig) -> list[str]:
    """The parts of a lever's key for one run."""
    return [config.algorithm if part == "algorithm" else part for part in key.split(".")]


def fit(config: RunConfig, device: Device) -> tuple[RunConfig, Prediction, list[Pull]]:
    """Pull levers until the run fits or none is left; returns the run, what it needs, and what was pulled.

    Raises:
        ConfigError: as ``predict``, of the run as it was given.
    """
    now, pulls = predict(config, device), list[Pull]()
    ahead = helpful(config, now)
    while not now.fits and (step := next(ahead, None)) is not None:
        config, now, pull = step
        pulls.append(pull)
    return config, now, pulls


def helpful(config: RunConfig, now: Prediction) -> Iterator[tuple[RunConfig, Prediction, Pull]]:
    """Levers that help, one after another, with the run and the prediction that each leads to."""
    spent, barred = frozenset[str](), frozenset[str]()
    while (found := _first(config, now, spent | barred)) is not None:
        lever, settings = found
        tried = _tried(config, settings, now.device)
        if tried is None:
            barred |= {lever.key}
        elif tried[1].peak > now.peak * (1 - LEAST_GAIN):
            spent |= {lever.key}
        else:
            pull = Pull(settings, lever.price, now.peak, tried[1].peak)
            barred, (config, now) = frozenset(), tried
            yield config, now, pull


def _first(config: RunConfig, now: Prediction, spent: frozenset[str]) -> tuple[Lever, dict[str, Any]] | None:
    for lever in LEVERS:
        if now.fullest in lever.helps and lever.key not in spent:
            settings = lever.pulled(config, now)
            if settings is not None:
                return lever, settings
    return None


def changed(config: RunConfig, settings: dict[str, Any]) -> RunConfig:
    """The run with other settings, as written after ``--set``; raises ConfigError where one is not possible."""
    data = config.model_dump(mode="json")
    for key, value in settings.items():
        *sections, last = key.split(".")
        place = data
        for section in sections:
            place = place[section]
        place[last] = value
    return parse_config(data)


def _tried(config: RunConfig, settings: dict[str, Any], device: Device) -> tuple[RunConfig, Prediction] | None:
    """The run with other settings; None where it is not possible, such as one frame for a reward of clips."""
    try:
        other = changed(config, settings)
        return other, predict(other, device)
    except ReelignError:
        return None
