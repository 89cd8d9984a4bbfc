"""Day to night: RL-V2V-GAN against its ablations, histogram matching and no change, over seeds, with intervals.

    python benchmarks/translation.py                  # every variant, seeds 0 1 2: hours on a processor
    python benchmarks/translation.py --minutes 25     # each training stops after so many minutes of wall time
    python benchmarks/translation.py --steps 600 --variants full rl_off --seeds 0
    python benchmarks/translation.py --quick          # a few steps and clips, to see that it runs; writes elsewhere

Variants: ``full`` is the recipe ``translation_shapes``; ``rl_off`` leaves the agent out; ``steady_off`` leaves the
steadiness loss out, which is not of the paper; ``per_frame`` is a translator of single pictures without memory, in the
manner of CycleGAN. All see the same clips in the same order at a seed, and
are judged on the same held-out clips with known answers.

Written to ``benchmarks/results/translation.json`` after every training; one that is there already, of the same
settings, is not repeated. Intervals: of a variant's mean, Student's t over seeds; of a difference, over seeds too,
paired by seed; and over clips, a bootstrap of each clip's mean over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from translation_baselines import HistogramMatching, NoChange

from reelign.algorithms.video_translation import VideoTranslation
from reelign.build import build_generator
from reelign.config import RunConfig, load_config
from reelign.datasets.domain_order import DomainOrder
from reelign.datasets.translation import Domains
from reelign.metrics.statistics import bootstrap_interval
from reelign.metrics.translation import ExamPlan, Translates, TranslationScores, examine_translation
from reelign.video_io import replacing

RESULTS = Path(__file__).parent / "results" / "translation.json"
RECIPE = Path("translation_shapes")
VARIANTS: dict[str, tuple[str, ...]] = {
    "full": (),
    "rl_off": ("video_translation.rl=false",),
    "steady_off": ("video_translation.lambda_steady=0",),
    "per_frame": ("video_translation.per_frame=true",),
}
BASELINES = ("no_change", "histogram_domain", "histogram_clip")
MEASURES = ("psnr", "ssim", "warping_error", "cycle_error")
HIGHER = ("psnr", "ssim")
DISTANCES = ("frechet_clip", "cmmd", "mmd_videomae")
# What is compared: variant, baseline, measure.
QUESTIONS = (
    ("full", "per_frame", "warping_error"),
    ("full", "per_frame", "psnr"),
    ("full", "histogram_domain", "psnr"),
    ("full", "histogram_clip", "psnr"),
    ("full", "histogram_domain", "frechet_clip"),
    ("full", "histogram_clip", "frechet_clip"),
    ("full", "histogram_domain", "cmmd"),
    ("full", "histogram_clip", "cmmd"),
    ("full", "steady_off", "warping_error"),
    ("full", "steady_off", "psnr"),
    ("steady_off", "per_frame", "warping_error"),
    ("full", "rl_off", "psnr"),
    ("full", "rl_off", "ssim"),
    ("full", "rl_off", "warping_error"),
    ("full", "rl_off", "frechet_clip"),
)


def train(config: RunConfig, seed: int, minutes: float | None) -> tuple[VideoTranslation, dict[str, Any]]:
    """Train a variant; returns it with its steps, seconds, and the last values it logged."""
    assert config.domains is not None
    domains = Domains(config.domains)
    sizes = {"frames": domains.frames, "height": domains.size, "width": domains.size, "fps": domains.fps}
    chosen = config.generator.model_dump(exclude_unset=True)
    generator = build_generator(chosen | sizes | {"seed": seed, "device": "cpu"})
    algorithm = VideoTranslation(generator, config.video_translation, seed)
    order = DomainOrder(domains, seed + 1)
    began, worked, done, logged = time.perf_counter(), time.process_time(), 0, {}
    while done < config.training.steps:
        logged = algorithm.step(order.request(config.training.batch))
        done += 1
        seconds = time.perf_counter() - began
        if done % 50 == 0:
            print(
                f"  step {done} of {config.training.steps}, {seconds / 60:.1f} min, loss {logged['loss']:.3f}",
                flush=True,
            )
        if minutes is not None and seconds > 60 * minutes:
            break
    facts = {
        "steps": done,
        "seconds": round(time.perf_counter() - began, 1),
        "processor_seconds": round(time.process_time() - worked, 1),
        "last": logged,
    }
    return algorithm, facts


def judge(model: Translates, domains: Domains, plan: ExamPlan) -> dict[str, Any]:
    """Measures of every clip and distances of sets, by the domain translated to."""
    return as_json(examine_translation(model, domains, plan))


def as_json(scores: TranslationScores) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for to in dict.fromkeys(row["to"] for row in scores.rows):
        rows = [row for row in scores.rows if row["to"] == to]
        names = [name for name in rows[0] if name not in ("to", "index")]
        found[to] = {
            "clips": {name: [round(row[name], 5) for row in rows] for name in names if all(name in r for r in rows)},
            "sets": {
                d.metric: {"value": d.value, "low": d.low, "high": d.high, "floor": d.floor}
                for d in scores.distances
                if d.to == to
            },
        }
    return found


def value_of(run: dict[str, Any], measure: str, to: str) -> float:
    """The mean of a measure over clips, or the distance of a set."""
    found = run["scores"][to]
    return found["sets"][measure]["value"] if measure in DISTANCES else float(np.mean(found["clips"][measure]))


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean and Student's 95 % interval; no interval of a single seed."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return {"mean": mean, "low": None, "high": None, "seeds": count}
    reach = float(scipy.stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "seeds": count}


def summarise(runs: dict[str, Any]) -> dict[str, Any]:
    """Means with intervals, differences, and what was promised."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for run in runs.values():
        by_name.setdefault(run["variant"], []).append(run)
    table: dict[str, Any] = {}
    for name, found in by_name.items():
        for to in found[0]["scores"]:
            known = [*found[0]["scores"][to]["clips"], *found[0]["scores"][to]["sets"]]
            values = {m: [value_of(run, m, to) for run in found] for m in known}
            table.setdefault(name, {})[to] = {m: over_seeds(v) for m, v in values.items()}
    differences = []
    for first, second, measure in QUESTIONS:
        seeds = [{run["seed"] for run in by_name.get(name, [])} for name in (first, second)]
        if seeds[0] & seeds[1]:
            differences += [compare(by_name[first], by_name[second], measure, to) for to in ("y", "x")]
    return {"table": table, "differences": differences, "promises": promises(table, differences)}


def compare(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], measure: str, to: str) -> dict[str, Any]:
    """Ours minus theirs: over the seeds both have, and, where each clip has a value, over clips."""
    seeds = sorted({run["seed"] for run in ours} & {run["seed"] for run in theirs})
    pick = [{run["seed"]: run for run in runs} for runs in (ours, theirs)]
    found: dict[str, Any] = {
        "ours": ours[0]["variant"],
        "theirs": theirs[0]["variant"],
        "measure": measure,
        "to": to,
        "better": "higher" if measure in HIGHER else "lower",
        "over_seeds": over_seeds(
            [value_of(pick[0][s], measure, to) - value_of(pick[1][s], measure, to) for s in seeds]
        ),
    }
    if measure in MEASURES:
        clips = [np.mean([runs[s]["scores"][to]["clips"][measure] for s in seeds], axis=0) for runs in pick]
        found["over_clips"] = bootstrap_interval(clips[0] - clips[1], 10_000, 0.95, 0)
    return found


def promises(table: dict[str, Any], differences: list[dict[str, Any]]) -> dict[str, Any]:
    """What was to be reached from day to night, and whether the mean and the interval over seeds do."""
    found: dict[str, Any] = {}
    if "full" in table:
        for measure, least in (("psnr", 20.0), ("ssim", 0.8)):
            value = table["full"]["y"][measure]
            found[f"{measure} ≥ {least:g}"] = {**value, "mean_does": value["mean"] >= least}
    for difference in differences:
        if difference["to"] == "y" and difference["ours"] == "full" and not difference["theirs"].endswith("_off"):
            value, sign = difference["over_seeds"], 1 if difference["better"] == "higher" else -1
            clear = value["low"] is not None and min(sign * value["low"], sign * value["high"]) > 0
            name = f"{difference['measure']} better than {difference['theirs']}"
            found[name] = {**value, "mean_does": sign * value["mean"] > 0, "interval_does": clear}
    return found


def show(summary: dict[str, Any]) -> None:
    for to in ("y", "x"):
        print(f"\ntranslated to {to}: mean over seeds [95 % interval]")
        for name, found in summary["table"].items():
            cells = [f"{m} {cell(found[to][m])}" for m in (*MEASURES, *DISTANCES) if m in found.get(to, {})]
            print(f"  {name:<17} {'  '.join(cells)}")
    print("\ndifferences over seeds, and over clips")
    for d in summary["differences"]:
        clips = "" if "over_clips" not in d else "  clips [{:+.3f}, {:+.3f}]".format(*d["over_clips"])
        print(f"  to {d['to']}: {d['ours']} − {d['theirs']}, {d['measure']} ({d['better']} is better): "
              f"{cell(d['over_seeds'], '+')}{clips}")  # fmt: skip
    print()
    for name, found in summary["promises"].items():
        print(f"  {name}: {'yes' if found['mean_does'] else 'no'} ({cell(found)})")


def cell(value: dict[str, Any], sign: str = "") -> str:
    interval = "" if value["low"] is None else f" [{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"
    return f"{value['mean']:{sign}.3f}{interval}"


def environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "processors": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def baseline(name: str, domains: Domains, seed: int) -> Translates:
    if name == "no_change":
        return NoChange()
    return HistogramMatching(domains, seed=seed, per_clip=name == "histogram_clip")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS], choices=[*VARIANTS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of each training; the recipe's unless told otherwise")
    parser.add_argument("--minutes", type=float, help="after which a training stops")
    parser.add_argument("--clips", type=int, default=64, help="held-out clips of each direction")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", help="section.key=value, of every variant"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.quick:
        given.steps, given.clips, given.seeds = given.steps or 2, 16, given.seeds[:2]
        given.out = Path("translation_quick.json") if given.out == RESULTS else given.out
    overrides = [*given.overrides, *([f"training.steps={given.steps}"] if given.steps else [])]
    settings = {"overrides": overrides, "minutes": given.minutes, "clips": given.clips}
    runs: dict[str, Any] = json.loads(given.out.read_text())["runs"] if given.out.is_file() else {}
    domains_of = load_config(RECIPE, overrides).domains
    assert domains_of is not None
    domains, plan = Domains(domains_of), ExamPlan(clips=given.clips)
    for seed in given.seeds:
        for name in (*BASELINES, *given.variants):
            key = f"{name}, seed {seed}"
            if runs.get(key, {}).get("settings") == settings:
                continue
            print(key, flush=True)
            runs[key] = {"variant": name, "seed": seed, "settings": settings}
            if name in BASELINES:
                runs[key]["scores"] = judge(baseline(name, domains, seed), domains, plan)
            else:
                config = load_config(RECIPE, [*overrides, *VARIANTS[name]])
                algorithm, runs[key]["training"] = train(config, seed, given.minutes)
                with algorithm.exported():
                    runs[key]["scores"] = judge(algorithm.generator, domains, plan)
            current = {k: run for k, run in runs.items() if run["settings"] == settings and "scores" in run}
            result = {"environment": environment(), **summarise(current), "runs": current}
            with replacing(given.out) as part:
                part.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    show(json.loads(given.out.read_text()))
    print(f"\nwritten: {given.out}")


if __name__ == "__main__":
    main()
