"""Self-play: rounds of generate → score → reject → judge → select → train on winners → evaluate on held-out prompts.

The loop that AirScape describes and leaves out (arXiv 2507.08885): the winners of one round are what the next round's
generator has learned from. Each round trains anew from the generator of the beginning, on the winners of all rounds so
far (expert iteration as in STaR, Zelikman et al. 2022, and ReST-EM, Singh et al. 2024): trained on and on, a generator
learns the faults of its own pictures, which its next takes then have twice.

Held-out prompts never choose anything: they are not generated from, not judged, not trained on. A round's gain is that
of the same held-out prompts and seeds, round against round; where it has been within noise for ``patience`` rounds, or
the guard stopped a round, self-play ends, and the best round is what it exports.

    OUTPUT/config.yaml, selfplay.json             what was asked; what every round came to
    OUTPUT/rounds/01/takes/                       a takes folder: clips, scores, rejections
    OUTPUT/winners/01/                            what was selected, a videofolder with weights
    OUTPUT/rounds/01/train/                       a run folder, with its own report
    OUTPUT/rounds/01/round.json                   written last: the round is done

Every stage finds out from its files what is left to do, so a run that was killed anywhere goes on there.

Run: ``reelign selfplay selfplay``, the recipe, or a file of one's own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch

from reelign import checkpoint
from reelign.algorithms.best_of_n import reward_weights
from reelign.build import MetricSpec, build_generator, build_scorers
from reelign.config import RunConfig
from reelign.contracts import Request
from reelign.datasets.prompts import load_prompts, split_prompts
from reelign.datasets.video_folder import write_metadata
from reelign.errors import DataError, RunFolderError, UnknownNameError
from reelign.loop import Listener, Run
from reelign.metrics.statistics import Paired, paired_delta
from reelign.run_folder import RunFolder, environment
from reelign.sampling import generate
from reelign.selection.choose import Jury, select_takes
from reelign.selection.executors import executor
from reelign.selection.reject import reject_takes, write_verdicts
from reelign.selection.scoring import Once, columns_of, score_takes
from reelign.selection.takes import TakesFolder
from reelign.selection.takes_import import import_takes
from reelign.selection.winners import Selection, WinnerOptions, write_winners
from reelign.selfplay_config import SelfPlayConfig, dump_selfplay
from reelign.video_io import write_clip

HELD_OUT = "held_out/"
ROUND_SEEDS = 1_000_000  # seeds of one round's takes; evaluation and guard use seeds below that


class Watcher(Listener, Protocol):
    """Hears how self-play goes; a ``loop.Listener`` for the training in it."""

    def stage(self, number: int, name: str, done: int, total: int) -> None:
        """So much of a stage of a round is done."""
        ...

    def finished_round(self, record: dict[str, Any]) -> None:
        """What a round came to."""
        ...


class SelfPlay:
    """Self-play, checked and ready.

    Args:
        config: all of it.
        resume: go on with what is in the output folder.

    Raises:
        RunFolderError: the folder is used and ``resume`` is off, or holds another self-play.
    """

    def __init__(self, config: SelfPlayConfig, resume: bool = False) -> None:
        self.config = config
        self.folder = RunFolder(Path(config.output).expanduser())
        self.folder.check(resume)
        prompts = load_prompts(config.prompts.source)
        self.prompts = split_prompts(prompts, config.prompts.held_out, config.prompts.seed)
        if config.takes.prompts > len(self.prompts.train):
            raise DataError(
                f"a round asks at most all prompts that are not held out, {len(self.prompts.train)}; "
                f"got takes.prompts={config.takes.prompts}"
            )
        specs = [MetricSpec("metric", name) for name in config.scoring.metrics]
        specs += [MetricSpec("reward", r.name, tuple(sorted(r.options.items()))) for r in config.rewards]
        self.build = Once(partial(build_scorers, specs))
        self._check_names()  # before a round's work, not after it
        self.folder.create()
        if resume and (self.folder.path / "config.yaml").read_text() != dump_selfplay(config):
            raise RunFolderError(f"resumed self-play keeps its config; that of {self.folder.path} is another")
        self.folder.write_text("config.yaml", dump_selfplay(config))
        self.folder.write_json("environment.json", environment("cpu" if not torch.cuda.is_available() else "cuda"))

    def _check_names(self) -> None:
        """Refuse a misspelt metric, reward or least score, and a judge that is not there or looks at other scores."""
        known = columns_of(self.build())
        for name in self.config.select.at_least:
            if name not in known:
                raise UnknownNameError("score in select.at_least", name, known)
        for name in self._jury().needs:
            if name not in known:
                raise UnknownNameError("score that the judge looks at", name, known)

    def run(self, watcher: Watcher) -> dict[str, Any]:
        """All rounds, to the end; returns what ``selfplay.json`` says.

        Raises:
            RunFolderError: the training of a round was stopped by a signal.
        """
        records: list[dict[str, Any]] = []
        for number in range(1, self.config.rounds + 1):
            path = self._round(number) / "round.json"
            record = json.loads(path.read_text()) if path.is_file() else self._play(number, records, watcher)
            records.append(record)
            watcher.finished_round(record)
            if reason := self._enough(records):
                break
        else:
            reason = f"all {self.config.rounds} rounds were played"
        return self._conclude(records, reason)

    def _round(self, number: int) -> Path:
        return self.folder.path / "rounds" / f"{number:02d}"

    def _winners(self, number: int) -> Path:
        return self.folder.path / "winners" / f"{number:02d}"

    def _play(self, number: int, before: list[dict[str, Any]], watcher: Watcher) -> dict[str, Any]:
        place = self._round(number)
        adapter = before[-1]["adapter"] if before else self.config.generator.adapter
        stage = partial(watcher.stage, number)
        make_takes(self.config, self._asked(number), adapter, place / "takes", number, partial(stage, "generating"))
        takes = import_takes(place / "takes")
        run_on = executor(self.config.scoring.where, self.config.scoring.workers)
        score_takes(takes, self.build, run_on, progress=partial(stage, "scoring"))
        verdicts = reject_takes(takes.wide(), takes.current_scores(), self.config.reject)
        write_verdicts(takes.path, verdicts)
        stage("selecting", 0, 1)
        selection = self._select(takes, verdicts.rejected)
        self._write_winners(selection, takes, self._winners(number))
        stage("selecting", 1, 1)
        run = self._train(number, before, watcher)
        record = {
            "round": number,
            "prompts": self.config.takes.prompts,
            "takes": len(takes.takes()),
            "rejected": verdicts.counts(),
            "rejected_takes": int(verdicts.rejected["take"].nunique()),
            "winners": len(selection.winners),
            "without_winner": len(selection.without_winner),
            "confidence": float(selection.winners["confidence"].mean()),
            "selected": selected_gain(takes, selection, [r.name for r in self.config.rewards]),
            "steps": run["steps"],
            "stopped": run["stopped"],
            "seconds": run["seconds"],
            "adapter": run["adapter"],
            "samples": str(run["scores"].parent),
            "held_out": self._compare(before, run["scores"]),
        }
        self.folder.write_json(f"rounds/{number:02d}/round.json", record)
        return record

    def _asked(self, number: int) -> tuple[str, ...]:
        """The prompts of a round: a new draw each time, from those that are not held out."""
        random = torch.Generator().manual_seed(self.config.seed + number)
        order = torch.randperm(len(self.prompts.train), generator=random)[: self.config.takes.prompts].tolist()
        return tuple(self.prompts.train[i] for i in order)

    def _select(self, takes: TakesFolder, rejected: pd.DataFrame) -> Selection:
        options = self.config.select
        every = self.config.takes.per_prompt if options.weighting == "softmax" else options.per_group
        winners = WinnerOptions(per_group=every, min_confidence=options.min_confidence)
        wide = takes.wide()
        out = pd.concat([rejected[["take", "gate", "reason"]], below(wide, options.at_least)])
        selection = select_takes(wide, self._jury(), out, options.play, winners)
        if not len(selection.winners):
            raise DataError(f"no group of {takes.path} has a winner: see {takes.path}/rejected.csv")
        return selection

    def _jury(self) -> Jury:
        if self.config.judge is None:
            return Jury(weights={r.name: r.weight for r in self.config.rewards})
        from reelign.selection.judge_storage import load_judge

        learned = load_judge(Path(self.config.judge).expanduser())
        return Jury(judge=learned, columns=learned.features.columns)

    def _write_winners(self, selection: Selection, takes: TakesFolder, out: Path) -> None:
        """The winners' folder; with softmax weighting, each clip with its weight, mean 1 within its group."""
        write_winners(selection, takes.locate, out)
        if self.config.select.weighting == "softmax":
            table = pd.read_csv(out / "metadata.csv")
            beta = self.config.select.beta
            table["weight"] = table.groupby("group")["score"].transform(lambda s: reward_weights(s.to_numpy(), beta))
            write_metadata(out, table.to_dict("records"))

    def _train(self, number: int, before: list[dict[str, Any]], watcher: Watcher) -> dict[str, Any]:
        place = self._round(number) / "train"
        started = (place / "config.yaml").is_file()
        if before and not started:  # the same prompts, seeds and weights as an evaluation that is there
            begins_with = before[-1]["samples"] if self.config.train_from == "last" else self._base_samples()
            first = RunFolder(place).samples(0)
            if not first.exists():
                part = first.with_name(f".{first.name}.part")
                shutil.rmtree(part, ignore_errors=True)
                shutil.copytree(begins_with, part)
                part.rename(first)
        run = Run(self.run_config(number, before), resume=started)
        if not run.train(watcher):
            raise RunFolderError(f"stopped in round {number}; go on with --resume")
        status = json.loads((place / "status.json").read_text())
        newest = checkpoint.latest(run.folder.checkpoints)
        if newest is None:
            raise RunFolderError(f"{place} has no whole checkpoint: remove the folder and resume")
        scores = run.folder.samples(run.step) / "scores.csv"
        return {**status, "adapter": str(newest / "adapter"), "scores": scores}

    def _base_samples(self) -> Path:
        return self._round(1) / "train/samples/step_000000"

    def run_config(self, number: int, before: list[dict[str, Any]]) -> RunConfig:
        """The run that trains in a round: from the base on all winners, or from the round before on its own."""
        on = self.config.train_from == "last"
        adapter = before[-1]["adapter"] if before and on else self.config.generator.adapter
        return RunConfig(
            output=str(self._round(number) / "train"),
            seed=self.config.seed + number,
            generator=self.config.generator.model_copy(update={"adapter": adapter}),
            prompts=self.config.prompts,
            clips={"source": str(self._winners(number) if on else self._winners(number).parent)},
            rewards=self.config.rewards,
            algorithm="best_of_n",
            best_of_n=self.config.best_of_n,
            training=self.config.training,
            evaluation=self.config.evaluation,
            guard=self.config.guard,
        )

    def _compare(self, before: list[dict[str, Any]], scores: Path) -> dict[str, Any]:
        """Held-out measures and their mean, the goal: this round against the one before and against the base."""
        first = self._base_samples()
        last = Path(before[-1]["samples"]) if before else first
        base, previous, now = (by_prompt(file) for file in (first / "scores.csv", last / "scores.csv", scores))
        names = self.config.goal or tuple(name for name in now.columns if name.startswith(HELD_OUT))
        if lost := [name for name in names if name not in now]:
            raise UnknownNameError("held-out column in goal", lost[0], [n for n in now if n.startswith(HELD_OUT)])
        tables = {name: [table[name].to_numpy() for table in (base, previous, now)] for name in names}
        tables["goal"] = [table[list(names)].mean(axis=1).to_numpy() for table in (base, previous, now)]
        return {
            name: {"of_round": asdict(paired_delta(last, new)), "in_all": asdict(paired_delta(first, new))}
            for name, (first, last, new) in tables.items()
        }

    def _enough(self, records: list[dict[str, Any]]) -> str:
        """Why to stop after these rounds, or an empty string."""
        if records[-1]["stopped"]:
            return f"the guard stopped round {records[-1]['round']}: {records[-1]['stopped']}"
        recent = records[-self.config.patience :]
        idle = [record for record in recent if within_noise(record["held_out"]["goal"]["of_round"])]
        if len(idle) == self.config.patience:
            return f"the held-out gain was within noise for {self.config.patience} rounds in a row"
        return ""

    def _conclude(self, records: list[dict[str, Any]], reason: str) -> dict[str, Any]:
        best = max(records, key=lambda record: record["held_out"]["goal"]["in_all"]["delta"])
        better = best["held_out"]["goal"]["in_all"]["delta"] > 0
        result = {
            "rounds": records,
            "stopped": reason,
            "best_round": best["round"] if better else 0,
            "adapter": best["adapter"] if better else None,
            "held_out_prompts": len(self.prompts.held_out),
        }
        self.folder.write_json("selfplay.json", result)
        return result


def by_prompt(scores: Path) -> pd.DataFrame:
    """The measures of an evaluation, a row a prompt: its clips are no evidence apart from each other."""
    return pd.read_csv(scores).groupby("prompt", sort=False).mean(numeric_only=True)


def within_noise(change: dict[str, Any] | Paired) -> bool:
    """Whether a change's interval reaches down to zero."""
    low = change.ci95[0] if isinstance(change, Paired) else change["ci95"][0]
    return bool(low <= 0)


def make_takes(
    config: SelfPlayConfig,
    prompts: tuple[str, ...],
    adapter: str | None,
    folder: Path,
    number: int,
    progress: Any,
) -> None:
    """Write what is missing of a round's takes, and then ``metadata.csv``.

    Each take has its own seed, so a take does not depend on which others are made with it.
    """
    if (folder / "metadata.csv").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    asked = [(prompt, k) for prompt in prompts for k in range(config.takes.per_prompt)]
    jobs: list[dict[str, Any]] = [
        {"file_name": f"{i:05d}.mp4", "text": prompt, "group": prompt, "seed": number * ROUND_SEEDS + i}
        for i, (prompt, _) in enumerate(asked)
    ]
    # Batches stay as they are on a resume: another batch would round other digits.
    batches = [jobs[start : start + config.takes.batch] for start in range(0, len(jobs), config.takes.batch)]
    left = [batch for batch in batches if not all((folder / job["file_name"]).is_file() for job in batch)]
    if left:
        options = config.generator.model_copy(update={"adapter": adapter}).model_dump()
        generator, sampling = build_generator(options), config.best_of_n
        steps = config.takes.steps or sampling.steps
        guidance_scale = config.takes.guidance_scale or sampling.guidance_scale
        for done, batch in enumerate(left, len(batches) - len(left)):
            progress(done * config.takes.batch, len(jobs))
            request, seeds = Request(tuple(job["text"] for job in batch)), [job["seed"] for job in batch]
            clips = generate(generator, request, seeds, steps, guidance_scale, config.best_of_n.eta)
            for job, video in zip(batch, clips.video, strict=True):
                write_clip(folder / job["file_name"], video, generator.fps)
    progress(len(jobs), len(jobs))
    model = config.generator.model if number == 1 else f"{config.generator.model} + round {number - 1}"
    write_metadata(folder, [{**job, "generator": model} for job in jobs])


def below(wide: pd.DataFrame, at_least: Mapping[str, float]) -> pd.DataFrame:
    """Takes that cannot win, with take, gate and reason: a score below its least value, or missing.

    Args:
        wide: take and a column a score.
        at_least: by score.

    Raises:
        DataError: a score that is not there.
    """
    parts = [pd.DataFrame(columns=["take", "gate", "reason"])]
    for name, least in at_least.items():
        if name not in wide:
            raise DataError(f"select.at_least names scores of this run; there is no {name!r}")
        poor = wide[~(wide[name] >= least)]
        reasons = [f"{name} is {value:.3g}, below {least:g}" for value in poor[name]]
        parts.append(pd.DataFrame({"take": poor["take"], "gate": "at least", "reason": reasons}))
    return pd.concat(parts, ignore_index=True)


def selected_gain(takes: TakesFolder, selection: Selection, columns: list[str]) -> dict[str, Any]:
    """Mean score of all takes and of the winners, by column: what selection bought, by the selector's own account."""
    wide = takes.wide(columns)
    won = wide[wide["take"].isin(selection.winners.loc[selection.winners["rank"] == 1, "take"])]
    return {name: {"all": float(wide[name].mean()), "winners": float(won[name].mean())} for name in columns}
