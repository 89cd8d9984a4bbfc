"""What set metrics are worth at N clips: bias of each estimate, coverage of its interval, false alarms of its floor.

Two samples of one seeded Gaussian, d = 400 (as FVD) for the bias; small ones, where hundreds of repetitions are quick,
for coverage. All of it is in numbers that need no weights.

Run: ``python benchmarks/set_metrics.py`` (a few minutes on one core); writes results/set_metrics.json and draws
docs/assets/set_metrics.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from reelign.metrics.frechet import frechet_distance
from reelign.metrics.mmd import CUBIC, QUADRATIC, mmd2
from reelign.metrics.set_comparison import METRICS, Options, distance_of, half_sample_interval, reference_floor
from reelign.plots.curves import ACCENT, INK, STYLE

ROOT = Path(__file__).resolve().parent.parent
LENGTH = 400
SIZES = (64, 128, 256, 512, 1024, 2048)
ESTIMATES = {
    "Fréchet distance": frechet_distance,
    "MMD², cubic, unbiased": lambda a, b: mmd2(a, b, CUBIC),
    "MMD², cubic, biased": lambda a, b: mmd2(a, b, CUBIC, unbiased=False),
    "MMD², quadratic, biased, × 100": lambda a, b: mmd2(a, b, QUADRATIC),
}
# metric, dimensions, clips a side, shift of the mean of every dimension
CASES = (
    ("frechet_videomae", 16, 64, 0.0),
    ("frechet_videomae", 16, 64, 0.3),
    ("frechet_videomae", 16, 200, 0.1),
    ("mmd_videomae", 16, 64, 0.0),
    ("mmd_videomae", 16, 64, 0.3),
    ("mmd_videomae", 16, 200, 0.1),
)


def bias(repeats: int) -> list[dict[str, Any]]:
    """Mean and spread of every estimate between two samples of one distribution, at every size."""
    random, rows = np.random.default_rng(0), []
    for size in SIZES:
        pairs = [random.normal(size=(2, size, LENGTH)) for _ in range(repeats if size < 1024 else 2)]
        for name, estimate in ESTIMATES.items():
            start = perf_counter()
            values = [estimate(*pair) for pair in pairs]
            seconds = (perf_counter() - start) / len(pairs)
            spread = float(np.std(values, ddof=1))
            rows.append(
                {"estimate": name, "n": size, "mean": float(np.mean(values)), "spread": spread, "seconds": seconds}
            )
    return rows


def coverage(trials: int, draws: int) -> list[dict[str, Any]]:
    """How often 95 % intervals hold the statistic's own mean, for half-samples and for the ordinary bootstrap."""
    return [_coverage(*case, trials, draws) for case in CASES]


def _coverage(name: str, length: int, n: int, shift: float, trials: int, draws: int) -> dict[str, Any]:
    random, metric = np.random.default_rng(1), METRICS[name]
    a, b = np.arange(n), np.arange(n, 2 * n)

    def draw() -> np.ndarray:
        return np.concatenate([random.normal(0, 1, (n, 1, length)), random.normal(shift, 1, (n, 1, length))])

    truth = float(np.mean([distance_of(metric, draw())(a, b) for _ in range(400)]))
    halves = bootstrap = 0
    for _ in range(trials):
        distance = distance_of(metric, draw())
        value = distance(a, b)
        low, high = half_sample_interval(distance, a, b, Options(halves=draws), random)
        halves += bool(value + low <= truth <= value + high)
        again = [distance(random.choice(a, n), random.choice(b, n)) for _ in range(draws)]
        bootstrap += bool(np.quantile(again, 0.025) <= truth <= np.quantile(again, 0.975))
    return {
        "metric": name,
        "d": length,
        "n": n,
        "shift": shift,
        "mean": truth,
        "half_samples": halves / trials,
        "bootstrap": bootstrap / trials,
    }


def false_alarms(trials: int) -> dict[str, float]:
    """How often two samples of one distribution are told apart, with a reference of 2N clips and of N."""
    random, found = np.random.default_rng(2), {}
    for words, total in (("reference of 2N", 200), ("reference of N", 100)):
        alarms = 0
        for _ in range(trials):
            pool = random.normal(size=(total + 100, 1, 6))
            distance = distance_of(METRICS["mmd_videomae"], pool)
            floor = reference_floor(distance, total, np.arange(total, total + 100), 20, random)
            alarms += floor.distance > floor.high
        found[words] = alarms / trials
    return found


def figure(rows: list[dict[str, Any]]) -> Figure:
    """Left, the Fréchet distance of a distribution from itself against N; right, the two cubic estimates."""
    with mpl.rc_context(STYLE):
        page = Figure(figsize=(7.2, 2.8), layout="constrained")
        left, right = page.subplots(1, 2)
        for axes, name, colour in (
            (left, "Fréchet distance", ACCENT),
            (right, "MMD², cubic, unbiased", ACCENT),
            (right, "MMD², cubic, biased", INK),
        ):
            mine = [row for row in rows if row["estimate"] == name]
            numbers = ([row["n"] for row in mine], [row["mean"] for row in mine], [row["spread"] for row in mine])
            axes.errorbar(*numbers, color=colour, marker="o", markersize=4, linewidth=1.6, capsize=2, label=name)
        left.set_title("Fréchet distance of a distribution from itself", loc="left", fontsize=9, color=INK)
        right.set_title("MMD² of a distribution from itself", loc="left", fontsize=9, color=INK)
        right.legend(frameon=False, fontsize=8, labelcolor=INK)
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_xticks(SIZES, [str(size) for size in SIZES])
            axes.minorticks_off()
            axes.axhline(0, color=INK, linewidth=0.8, alpha=0.5)
            axes.set_xlabel("clips on each side", color=INK)
            axes.tick_params(colors=INK, labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color(INK)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="pairs of samples below 1024 clips; 2 from there")
    parser.add_argument("--trials", type=int, default=200, help="repetitions for coverage and false alarms")
    parser.add_argument("--draws", type=int, default=100, help="half-samples or resamples of an interval")
    arguments = parser.parse_args()
    results = {
        "bias": bias(arguments.repeats),
        "coverage": coverage(arguments.trials, arguments.draws),
        "false_alarms": false_alarms(arguments.trials),
        "d": LENGTH,
        "trials": arguments.trials,
    }
    table = Table("estimate", *map(str, SIZES))
    for name in ESTIMATES:
        table.add_row(name, *(f"{row['mean']:.4g}" for row in results["bias"] if row["estimate"] == name))
    console = Console()
    console.print(table)
    for row in results["coverage"]:
        console.print(row)
    console.print(results["false_alarms"])
    figure(results["bias"]).savefig(ROOT / "docs" / "assets" / "set_metrics.png", dpi=160)
    out = Path(__file__).parent / "results" / "set_metrics.json"
    out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
