"""Peak memory and time of one step of a reward-gradient run, from shapes alone.

The run's own code, from loading to the optimiser, runs on fake tensors (``zoo/skeletons.py``) under a meter. So what is
predicted changes when the code does. Steps of the chain without gradient are all alike, and so are micro-batches: two
of each are run and the rest is multiplied.

    peak   = max over phases of (weights there + optimiser's state + everything alive)
    time   = Σ operations / (published operations a second × efficiency)

Left out: kernels' own workspaces, and anything but arithmetic in the time: a small model takes longer than predicted.

Run: ``reelign plan RUN.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from reelign.algorithms.partial_chain import Config as PartialChainConfig
from reelign.algorithms.partial_chain import PartialChain
from reelign.algorithms.reward_gradient import Config, RewardGradient
from reelign.build import build_generator, build_terms
from reelign.catalogue import resolve
from reelign.config import RunConfig
from reelign.contracts import Request
from reelign.datasets.prompts import load_prompts
from reelign.errors import ConfigError
from reelign.planning.devices import Device
from reelign.planning.meter import Meter
from reelign.planning.parts import networks, weights_of
from reelign.planning.stand_ins import AdamW8bit, Uncounted
from reelign.rewards.frames import FramePolicy, segment_bounds
from reelign.rewards.weighted import WeightedReward
from reelign.sampling import generate
from reelign.zoo.skeletons import fake_zeros, settle, without_weights

PLANNED = ("reward_gradient", "partial_chain")
SHORT = 2  # steps without gradient, and micro-batches, that are run for all that are alike


@dataclass(frozen=True)
class Prediction:
    """What a run needs.

    Args:
        device: where it is to fit.
        weights: bytes of weights on it all the time, by part.
        phases: peak of bytes alive in each phase, weights included.
        flops: operations of one step, by phase and precision.
        size: frames, height and width of clips.
        batch: prompts of an update.
        notes: what was not counted, and why.
    """

    device: Device
    weights: dict[str, int]
    phases: dict[str, int]
    flops: dict[str, dict[str, float]]
    size: tuple[int, int, int]
    batch: int
    notes: tuple[str, ...] = field(default=())

    @property
    def peak(self) -> int:
        """Largest number of bytes alive at once."""
        return max(self.phases.values())

    @property
    def fullest(self) -> str:
        """The phase of the peak."""
        return max(self.phases, key=lambda phase: self.phases[phase])

    @property
    def above(self) -> int:
        """The peak of training, without weights: what a meter sees that starts after loading."""
        return max(v for name, v in self.phases.items() if name != "evaluation") - sum(self.weights.values())

    @property
    def fits(self) -> bool:
        """Whether the device has that much."""
        return self.device.fits(self.peak)

    @property
    def seconds(self) -> float | None:
        """Of one step; None where the device's speed is not known."""
        if not self.device.tflops:
            return None
        needed = (n / self.device.tflops[kind] for kinds in self.flops.values() for kind, n in kinds.items())
        return sum(needed) / 1e12 / self.device.efficiency


def predict(config: RunConfig, device: Device) -> Prediction:
    """What a run will need on a device; no weights are read.

    Raises:
        ConfigError: the algorithm is not planned, or the run is not possible in itself.
        ModelError: the model's configs cannot be read.
    """
    if config.algorithm not in PLANNED:
        raise ConfigError(f"plan knows {' and '.join(PLANNED)}; this run is {config.algorithm}: try it with few steps")
    with without_weights() as fake:
        generator = _generator(config, device)
        for network in networks(generator):
            settle(network, fake)
        reward, notes = _rewards(config)
        weights = weights_of(generator, reward, device.gpu)
        meter = Meter(sum(weights.resting.values()), {"texts": weights.encoders})
        if reward.park:
            meter.label(reward, "score", lambda: "reward", lambda term, batch: weights.rewards.get(term.name, 0))
        try:
            with meter:
                training = _train(config, generator, reward, meter, device)
            with meter, meter.during("evaluation", hold=True):
                _evaluate(config, generator, reward)
        except (NotImplementedError, RuntimeError) as error:  # what an operator says that cannot go without values
            why = " ".join(str(error).split())[:200]
            raise ConfigError(f"this run cannot be planned from shapes alone: {why}: try it with few steps") from error
    size = (generator.frames(), *generator.picture_size())
    phases = {name: meter.peaks[name] for name in meter.peaks if name != "rest"}
    return Prediction(device, weights.resting, phases, training, size, config.training.batch, notes)


def _generator(config: RunConfig, device: Device) -> Any:
    here = {"device": "cpu", "adapter": None, "compile": False}
    options = config.generator.model_dump()
    if options.get("clips", 1) > 1:
        raise ConfigError(
            f"plan knows single clips; this run has generator.clips {options['clips']}, each of which begins with a "
            "picture of the one before: plan it with clips 1, which says what one of them needs"
        )
    if not device.gpu and "memory" in options:  # main memory is all there is
        options["memory"]["offload"] = False
    return build_generator(options | {key: value for key, value in here.items() if key in options})


def shortened(config: Config, batch: int) -> tuple[Config, int, dict[str, float]]:
    """Settings of a step that stands for another, its prompts, and how often what it does is done in the other.

    Returns:
        The settings, prompts, and factors of phases: ``prefix``, the chain without gradient; ``once``, the optimiser
        and texts; and ``all`` others.
    """
    live = len(config.gradient_steps) or config.k
    partial = isinstance(config, PartialChainConfig)
    total = int(config.tau * config.steps + 1e-9) if isinstance(config, PartialChainConfig) else config.steps
    steps = min(total, live + SHORT)
    size = min(config.micro_batch or batch, batch)
    prompts = min(batch, SHORT * size)
    changes: dict[str, Any] = {"steps": steps, "k": live, "mode": "last", "gradient_steps": ()}
    short = config.model_copy(update=changes | ({"tau": 1.0} if partial else {}))
    repeats = batch / prompts
    prefix = (total - live) / (steps - live) if steps > live else 1.0
    return short, prompts, {"prefix": repeats * prefix, "once": 1.0, "all": repeats}


def latest(policy: FramePolicy, total: int) -> FramePolicy:
    """The latest frames that a policy may draw: a causal decoder makes all frames before them too."""
    if policy.choose == "random":
        return policy.model_copy(update={"choose": (total - 1,)})
    if policy.choose == "segments" and policy.draw == "random":
        ends = tuple(end - 1 for _, end in segment_bounds(total, policy.segments))
        return policy.model_copy(update={"choose": ends})
    return policy


def _train(
    config: RunConfig, generator: Any, reward: WeightedReward, meter: Meter, device: Device
) -> dict[str, dict[str, float]]:
    """Run one update after the optimiser has its state; returns the operations of a whole step."""
    settings = config.settings
    assert isinstance(settings, Config)
    short, count, times = shortened(settings, config.training.batch)
    changes = {"frames": latest(short.frames, generator.frames()), "optimiser": "adamw"}
    short = short.model_copy(update=changes)
    kind: Any = PartialChain if isinstance(short, PartialChainConfig) else RewardGradient
    algorithm: Any = kind(generator, reward, short, config.seed)
    inner: RewardGradient = algorithm.update if isinstance(algorithm, PartialChain) else algorithm
    if settings.optimiser == "adamw8bit":
        inner.optimisation.optimiser = AdamW8bit(inner.parameters.values(), settings.lr)
    for group in inner.optimisation.optimiser.param_groups:
        group["foreach"] = device.gpu  # what AdamW does of itself on a GPU
    for parameter in inner.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    inner.optimisation.step()
    inner.optimisation.clear()
    meter.label(generator, "encode", lambda: "texts")
    meter.label(generator, "encode_video", lambda: "clips")
    meter.label(generator, "predict", lambda: "live steps" if torch.is_grad_enabled() else "prefix")
    meter.label(generator, "decode", lambda: "decoding")
    meter.label(reward, "scores", lambda: "reward")
    meter.label(inner.optimisation, "step", lambda: "optimiser")
    meter.forget()
    with meter.during("chain"):
        algorithm.step(_request(config, generator, count, algorithm))
    inner.optimisation.clear()
    factors = {"prefix": times["prefix"], "texts": 0.0, "optimiser": times["once"]}  # a text is encoded once in a run
    return {
        phase: {precision: n * factors.get(phase, times["all"]) for precision, n in kinds.items()}
        for phase, kinds in meter.flops.items()
    }


def _request(config: RunConfig, generator: Any, count: int, algorithm: Any) -> Request:
    """So many prompts of the run, with fake clips or pictures where they are asked for."""
    prompts = load_prompts(config.prompts.source)
    texts = tuple(prompts[i % len(prompts)] for i in range(count))
    if isinstance(algorithm, PartialChain):
        # Clips are encoded one by one, and their latents kept on the CPU by what is in them, which fakes do not have.
        vars(algorithm.latents)["encode"] = lambda video: torch.cat(
            [generator.encode_video(video[i : i + 1]).float() for i in range(len(video))]
        )
        return Request(texts, source_videos=fake_zeros(count, *_clip(generator)))
    if _takes_image(generator):
        return Request(texts, first_frames=torch.zeros(count, *_clip(generator)[1:]))
    return Request(texts)


def _evaluate(config: RunConfig, generator: Any, reward: WeightedReward) -> None:
    """Make and judge one batch of held-out clips, as the run does before and after."""
    prompts = load_prompts(config.prompts.source)
    asked = config.prompts.held_out * config.evaluation.per_prompt
    count = min(config.evaluation.batch, asked)
    texts = tuple(prompts[i % len(prompts)] for i in range(count))
    frames = torch.zeros(count, *_clip(generator)[1:]) if _takes_image(generator) else None
    settings = config.settings
    with torch.no_grad():
        request = Request(texts, first_frames=frames)
        clips = generate(generator, request, range(count), 1, settings.guidance_scale, settings.eta)
        reward.scores(clips)


def _clip(generator: Any) -> tuple[int, int, int, int]:
    return (generator.frames(), 3, *generator.picture_size())


def _takes_image(generator: Any) -> bool:
    return hasattr(generator, "family") and generator.family.takes_image


def _rewards(config: RunConfig) -> tuple[WeightedReward, tuple[str, ...]]:
    """The run's rewards, not held to their cards, which only weights can keep; and which are not counted."""
    notes: list[str] = []

    def stand_in(name: str, why: Exception) -> Any:
        notes.append(f"reward {name} is not counted: {why}")
        return Uncounted(resolve("reward", name).card)

    terms = build_terms([r.model_dump() for r in config.rewards], stand_in)
    return WeightedReward(terms, config.training.park_rewards), tuple(notes)
