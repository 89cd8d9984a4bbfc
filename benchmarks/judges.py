"""Every kind of judge on one takes table with labels, held out by group: the table of docs/judge.md.

    python benchmarks/judges.py ../shared/data/selfplay_takes

reads ``takes_scores.csv`` and ``takes_labels.csv`` of the folder and writes ``benchmarks/results/judges.json``. The
first row is the published design as AirScape's program has it: mirrored pairs split at random 75:10:15, so its number
is of pairs whose mirror image it has seen.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier

from reelign.selection.judge import JudgeConfig, make_pairs
from reelign.selection.judge_features import PUBLISHED
from reelign.selection.judge_fit import fit_judge
from reelign.selection.labels import pairs_from_best

DESIGNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("forest, concatenated", {"model": "forest"}),
    ("forest, differences", {"model": "forest", "inputs": "differences"}),
    ("boosting, concatenated", {"model": "boosting", "inputs": "concatenated"}),
    ("boosting, differences", {"model": "boosting"}),
    ("bradley_terry", {"model": "bradley_terry"}),
)
RESULTS = Path(__file__).parent / "results" / "judges.json"


def leaking(takes: pd.DataFrame, labels: pd.DataFrame, seeds: int = 10) -> dict[str, float]:
    """Accuracy that the published split reports, and the same forest on labels drawn by lot, means over seeds."""
    found = {"as labelled": [], "drawn by lot": []}
    for seed in range(seeds):
        lot = takes.groupby("group").sample(1, random_state=seed).rename(columns={"take": "best_video_name"})
        for name, table in (("as labelled", labels), ("drawn by lot", pairs_from_best(lot, takes))):
            found[name].append(random_split_accuracy(takes, table, seed))
    return {name: float(np.mean(values)) for name, values in found.items()}


def random_split_accuracy(takes: pd.DataFrame, labels: pd.DataFrame, seed: int) -> float:
    pairs, random = make_pairs(takes, labels), np.random.default_rng(seed)
    winner = np.where(pairs.truth == "left", pairs.left, pairs.right)
    loser = np.where(pairs.truth == "left", pairs.right, pairs.left)
    rows = np.concatenate([np.stack([winner, loser], 1), np.stack([loser, winner], 1)])
    truth = np.repeat([1, 0], len(winner))
    scores = pairs.takes[list(PUBLISHED)].to_numpy().copy()
    zero = scores[:, -1] == 0
    scores[zero, -1] = np.clip(random.normal(0.1, 0.07, zero.sum()), 0, 0.25)
    values = scores[rows].reshape(len(rows), -1)
    order = random.permutation(len(rows))
    train, test = order[: int(0.75 * len(order))], order[int(0.85 * len(order)) :]
    forest = RandomForestClassifier(100, random_state=seed).fit(values[train], truth[train])
    return float((forest.predict(values[test]) == truth[test]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    takes = pd.read_csv(arguments.folder / "takes_scores.csv")
    takes = takes.rename(columns={"video_name": "take", "group_id": "group"})
    labels = pairs_from_best(pd.read_csv(arguments.folder / "takes_labels.csv"), takes)
    results: dict[str, Any] = {"published split": leaking(takes, labels), "judges": {}}
    print("published split, accuracy:", {name: round(value, 3) for name, value in results["published split"].items()})
    for name, options in DESIGNS:
        card = fit_judge(takes, labels, JudgeConfig(**options)).card
        held = card["held-out"]
        results["judges"][name] = {key: held[key] for key in ("accuracy", "AUC", "Brier score", "best take")} | {
            "calibration error": held["calibration error"],
            "without review": held["without review"],
        }
        results["protocol"] = card["protocol"]
        numbers = (f"{held[key]['value']:.3f} [{held[key]['low']:.3f}, {held[key]['high']:.3f}]" for key in
                   ("accuracy", "AUC", "Brier score", "best take"))  # fmt: skip
        print(f"| {name} | {' | '.join(numbers)} |")
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
