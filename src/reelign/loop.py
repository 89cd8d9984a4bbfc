"""The one outer loop: draw prompts, step, log, save, evaluate; stop cleanly and resume bit for bit.

Ctrl-C or SIGTERM lets the running step end, saves, and says how to go on. A run killed in any other way goes on from
its last whole checkpoint and makes the same numbers again.

In several processes each runs this loop on its own rows of every batch; the first one alone writes, and what it finds
on disk is what all go by.
"""

from __future__ import annotations

import logging
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from reelign import checkpoint
from reelign.algorithms.reward_gradient import Config as RewardGradientConfig
from reelign.build import build_generator, build_measures, build_weighted_reward
from reelign.config import TRAINED_ON, PromptSetOptions, RunConfig, dump_config
from reelign.datasets.clips import ClipOrder
from reelign.datasets.domain_order import DomainOrder
from reelign.datasets.prompts import PromptOrder, PromptSplit, load_prompts, split_prompts
from reelign.datasets.translation import DomainOptions, Domains
from reelign.distributed import Tracker, count, from_first, largest, leads, mean, passes_together
from reelign.errors import DataError, NonFiniteError, ProcessError
from reelign.evaluation import Examiner, TranslationExaminer
from reelign.generators.translation import TranslationOptions
from reelign.guarding import RunGuard
from reelign.metrics.translation import ExamPlan
from reelign.planning.comparison import compare
from reelign.rewards.weighted import WeightedReward
from reelign.run_folder import RunFolder, environment
from reelign.run_parts import build_algorithm, build_order, my_rows, require_same_run

log = logging.getLogger(__name__)


class Listener(Protocol):
    """Hears how a run goes; the command line shows it."""

    def stepped(self, step: int, total: int, values: dict[str, float]) -> None:
        """One update is done."""
        ...

    def evaluating(self, step: int, done: int, total: int) -> None:
        """So many held-out clips of this step are judged."""
        ...

    def warned(self, text: str) -> None:
        """The guard has something to say."""
        ...


class Run:
    """A run, built from its config and ready to train.

    Args:
        config: the whole run.
        resume: continue what is in the output folder.
    """

    def __init__(self, config: RunConfig, resume: bool = False) -> None:
        torch.manual_seed(config.seed)  # for rewards that draw from torch's own source; nothing in reelign does
        self.config = config
        self.rows = my_rows(config)
        self.folder = RunFolder(Path(config.output).expanduser(), writes=leads())
        self.folder.check(resume)
        self.step = 0
        self._seconds = 0.0
        self._stop_signal = 0  # number of the signal that ends the run
        self._hacked: str | None = None  # why the guard ended the run
        self.guard: RunGuard | None = None
        self.sets: dict[str, Examiner] = {}
        if config.domains is None:
            self._build_for_prompts()
        else:
            self._build_for_domains(config.domains)
        trackers = config.trackers if leads() else ()
        self.tracker = Tracker(trackers, self.folder.path, config.model_dump(mode="json"))
        self.folder.create()
        if resume:
            self._restore()
        else:
            self.folder.write_text("config.yaml", dump_config(config))
            self.folder.write_json("environment.json", environment(str(self.generator.device)))

    def _build_for_prompts(self) -> None:
        """A generator that answers prompts, what it learns from, and who judges and guards it."""
        config = self.config
        prompts = load_prompts(config.prompts.source)
        self.prompts: PromptSplit = split_prompts(prompts, config.prompts.held_out, config.prompts.seed)
        measures = build_measures(config.evaluation.measures)
        reward = build_weighted_reward([r.model_dump() for r in config.rewards], config.training.park_rewards)
        self.generator = build_generator(config.generator.model_dump())
        self.reward = reward
        self.algorithm = build_algorithm(config, self.generator, reward, self.folder.path / "latents")
        self.order: PromptOrder | ClipOrder | DomainOrder = build_order(config, self.generator, self.prompts)
        sampling = config.settings
        self.guard = self._build_guard(reward, measures)
        asked = self.prompts.held_out * config.evaluation.per_prompt
        self.examiner: Examiner | TranslationExaminer = Examiner(
            prompts=asked,
            seeds=tuple(config.evaluation.seed + i for i in range(len(asked))),
            reward=reward,
            measures=measures,
            steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            eta=sampling.eta,
            batch=config.evaluation.batch,
            save_clips=config.evaluation.save_clips,
        )
        self.sets = {name: self._build_set(options) for name, options in config.evaluation.sets.items()}

    def _build_for_domains(self, options: DomainOptions) -> None:
        """A translator of clips, the domains it learns from, and who judges it."""
        config, domains = self.config, Domains(options)
        chosen = config.generator.model_dump(exclude_unset=True)
        sizes = {"frames": domains.frames, "height": domains.size, "width": domains.size, "fps": domains.fps}
        self.generator = build_generator(chosen | sizes)
        self.algorithm = build_algorithm(config, self.generator, None, self.folder.path / "latents")
        self.order = DomainOrder(domains, config.seed + 1)
        judged = config.evaluation
        plan = ExamPlan(clips=judged.clips, batch=min(judged.batch, judged.clips), seed=judged.seed)
        self.examiner = TranslationExaminer(domains, plan, judged.save_clips)

    def _build_guard(self, reward: WeightedReward, measures: list[Any]) -> RunGuard:
        config, sampling = self.config, self.config.settings
        judges = measures if config.guard.judges is None else build_measures(config.guard.judges)
        return RunGuard(
            options=config.guard,
            prompts=self.prompts.train[: config.guard.prompts],
            reward=reward,
            judges=judges,
            sampling=(sampling.steps, sampling.guidance_scale, sampling.eta),
            batch=config.evaluation.batch,
            folder=self.folder,
        )

    def _build_set(self, options: PromptSetOptions) -> Examiner:
        """An examiner of a further prompt set, otherwise that of the held-out prompts."""
        assert isinstance(self.examiner, Examiner)
        trained = options.source == TRAINED_ON
        prompts = list(dict.fromkeys(self.order.texts())) if trained else load_prompts(options.source)
        if options.count > len(prompts):
            raise DataError(f"a prompt set takes at most all prompts of its source: {options.count} of {len(prompts)}")
        random = torch.Generator().manual_seed(self.config.evaluation.seed)
        chosen = torch.randperm(len(prompts), generator=random)[: options.count].tolist()
        seeds = self.config.evaluation.seed + torch.arange(options.count)
        return replace(self.examiner, prompts=tuple(prompts[i] for i in chosen), seeds=tuple(seeds.tolist()))

    def plan(self) -> dict[str, str]:
        """What will happen, for people to read before it does."""
        config, options, parameters = self.config, self.config.generator, self.generator.trainable()
        if isinstance(options, TranslationOptions) or isinstance(self.order, DomainOrder):
            return self._translation_plan()
        trained, total = sum(p.numel() for p in parameters.values()), self.generator.parameter_count()
        terms = [f"{t.weight:g} × {t.name} ({t.loss})" for t in self.reward.terms]
        sampling = config.settings
        how = f"judged in {sampling.steps} steps, guidance {sampling.guidance_scale:g}"
        if isinstance(sampling, RewardGradientConfig):
            how = f"gradient in {sampling.k} of {sampling.steps} steps ({sampling.mode})"
        return {
            "generator": f"{config.generator.model}, {total / 1e6:,.1f} M parameters, on {self.generator.device}",
            "trained": f"{trained / 1e6:,.2f} M parameters ({'LoRA' if options.lora else 'all weights'})",
            "reward": " + ".join(terms),
            "algorithm": f"{config.algorithm}, {how}",
            "prompts": f"{len(self.order)} to train on, {len(self.prompts.held_out)} held out",
            "steps": f"{self.step} done, {config.training.steps} in all, {config.training.batch} prompts each",
            **({"processes": f"{count()}, {config.training.batch // count()} prompts each"} if count() > 1 else {}),
            "output": str(self.folder.path),
        }

    def _translation_plan(self) -> dict[str, str]:
        assert isinstance(self.order, DomainOrder)
        config, domains = self.config, self.order.domains
        size = f"{domains.frames}×{domains.size}×{domains.size}"
        return {
            "generator": f"{config.generator.model or 'new'}, on {self.generator.device}",
            "trained": f"{self.generator.parameter_count() / 1e6:,.2f} M parameters",
            "algorithm": config.algorithm,
            "domains": f"{domains.describe()}, clips of {size}",
            "steps": f"{self.step} done, {config.training.steps} in all, {config.training.batch} clips of each domain",
            "output": str(self.folder.path),
        }

    def train(self, listener: Listener) -> bool:
        """Train to the end, or to a signal; returns whether it finished."""
        began = time.monotonic() - self._seconds
        with self._signals():
            if self.step == 0 and self._unjudged():
                self._evaluate(listener)
            if self.step == 0 and self._guard_due():
                self._look(listener)
            while self.step < self.config.training.steps and not self._stopping() and self._hacked is None:
                values = mean(self._one_step())
                self._seconds = time.monotonic() - began
                self._record(values)
                listener.stepped(self.step, self.config.training.steps, values)
                self._after_step(listener)
        finished = self.step >= self.config.training.steps or self._hacked is not None
        if finished and self._unjudged():
            self._evaluate(listener)
        if not finished and from_first(lambda: checkpoint.torn(self.folder.checkpoint(self.step))):
            self._save()
        self._seconds = time.monotonic() - began
        stopped = signal.Signals(self._stop_signal).name if self._stop_signal else self._hacked
        self._write_status(finished, stopped)
        if count() == 1:  # what is predicted is one process
            compare(self.config, self.generator.device, self.folder)
        self.tracker.close()
        return finished

    def _stopping(self) -> bool:
        """Whether a signal reached any process; they all stop after the same step."""
        self._stop_signal = largest(self._stop_signal)
        return self._stop_signal > 0

    def _unjudged(self) -> bool:
        """Whether the samples of this step are still to be made."""
        scores = self.folder.samples(self.step) / "scores.csv"
        return from_first(lambda: not scores.exists())

    def _one_step(self) -> dict[str, float]:
        try:
            with passes_together():
                return self.algorithm.step(self.order.request(self.config.training.batch, self.rows))
        except ProcessError as error:
            self._write_status(False, str(error))
            raise
        except NonFiniteError as error:
            last = checkpoint.latest(self.folder.checkpoints)
            where = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
            self._write_status(False, str(error))
            raise NonFiniteError(
                f"stopped at step {self.step + 1}: {error}; {where}; lower the learning rate"
            ) from error

    def _record(self, values: dict[str, float]) -> None:
        self.step += 1
        self.folder.log({"step": self.step, "seconds": round(self._seconds, 3), **values})
        self.tracker.log(values, self.step)

    def _after_step(self, listener: Listener) -> None:
        if self._guard_due():
            self._look(listener)
        if (
            self._hacked is not None
            or self.step == self.config.training.steps
            or self.step % self.config.training.checkpoint_every == 0
        ):
            self._save()
        every = self.config.evaluation.every
        if every and self.step % every == 0:
            self._evaluate(listener)

    def _guard_due(self) -> bool:
        return self.guard is not None and self.guard.due(self.step, self.config.training.steps)

    def _look(self, listener: Listener) -> None:
        """Let the guard look; keep the best safe weights, or go back to them."""
        assert self.guard is not None
        with self.algorithm.exported():
            look = self.guard.look(self.generator, self.step)
        if self.guard.guard.is_best(look):
            self.guard.keep(self.step, {"algorithm": self.algorithm.state()}, self._save_adapter)
        decision = self.guard.decide(self.step, last=self.step == self.config.training.steps)
        if decision.why:
            listener.warned(decision.why)
        if decision.action == "go on":
            return
        self.algorithm.restore(self.guard.best()["algorithm"])
        if decision.action == "stop":
            self._hacked = decision.why
        elif decision.action == "roll back":
            self.algorithm.lower_rate(self.config.guard.lower)
            self.guard.guard.forget_after_rollback()

    def _evaluate(self, listener: Listener) -> None:
        def progress(done: int, total: int) -> None:
            listener.evaluating(self.step, done, total)

        with self.algorithm.exported():
            # The held-out prompts come last: where their scores are, all is done.
            for name, examiner in self.sets.items():
                examiner.examine(self.generator, self.folder.samples(self.step, name), progress)
            self.examiner.examine(self.generator, self.folder.samples(self.step), progress)

    def _save_adapter(self, folder: Path) -> None:
        with self.algorithm.exported():
            self.generator.save(str(folder / "adapter"))

    def _save(self) -> None:
        parts = {
            "step": self.step,
            "seconds": self._seconds,
            "algorithm": self.algorithm.state(),
            "order": self.order.state(),
            "torch": torch.get_rng_state(),
            "guard": self.guard and self.guard.state(),
            "hacked": self._hacked,
        }
        self.folder.save(self.folder.checkpoint(self.step), parts, self._save_adapter)
        if not self.folder.writes:
            return
        if self.guard:
            self.guard.tidy()
        keep = self.config.training.keep
        for old in sorted(self.folder.checkpoints.glob("step_*"))[: -keep or None] if keep else []:
            shutil.rmtree(old)

    def _take_up(self) -> dict[str, Any] | None:
        """The parts of the newest whole checkpoint, where there is one; the config may ask for more steps than then."""
        before = (self.folder.path / "config.yaml").read_text()
        if before != dump_config(self.config):
            require_same_run(before, self.config)
            self.folder.write_text("config.yaml", dump_config(self.config))
        newest = checkpoint.latest(self.folder.checkpoints)
        return None if newest is None else checkpoint.load(newest)

    def _restore(self) -> None:
        """Go on from the newest whole checkpoint; from the beginning where there is none."""
        parts = from_first(self._take_up)
        if parts is not None:
            self.step, self._seconds = int(parts["step"]), float(parts["seconds"])
            self.algorithm.restore(parts["algorithm"])
            self.order.restore(parts["order"])
            if self.guard:
                self.guard.restore(parts["guard"])
            self._hacked = parts["hacked"]
            torch.set_rng_state(parts["torch"])
        self.folder.forget_after(self.step)

    def _write_status(self, finished: bool, stopped: str | None) -> None:
        self.folder.write_json(
            "status.json",
            {
                "finished": finished,
                "steps": self.step,
                "seconds": round(self._seconds, 1),
                "peak_memory_mb": round(peak_memory_mb(self.generator.device), 1),
                "stopped": stopped,
            },
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn the first Ctrl-C or SIGTERM into a stop after the running step; a second one is not caught."""
        previous: dict[signal.Signals, Any] = {}

        def stop(number: int, frame: object) -> None:
            self._stop_signal = number
            for name, handler in previous.items():
                signal.signal(name, handler)

        for name in (signal.SIGINT, signal.SIGTERM):
            previous[name] = signal.signal(name, stop)
        try:
            yield
        finally:
            for name, handler in previous.items():
                signal.signal(name, handler)


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory so far: of the device where it is a GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
