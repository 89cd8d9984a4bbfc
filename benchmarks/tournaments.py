"""Tournaments: against the published selector on held-out groups, and against noise.

1. ``selfplay_takes`` (SYNTHETIC: nothing was measured on a video and nobody chose): every group is judged by what was
   learned from all others. The published selector, re-stated in ``published_selector.py``, against ours.
2. The same on 300 groups drawn from a model like the one that made that data, which 24 groups are too few to resolve.
3. Sixteen takes, one true strength each, votes drawn from Bradley-Terry: how good is each scheme's winner for how many
   comparisons, how many does successive halving need for the regret of a round robin, and is the confidence right.

Run: ``python benchmarks/tournaments.py`` (minutes on one core); writes benchmarks/results/tournaments.json and
docs/assets/tournaments.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from published_selector import FEATURES, decisions, one_sided_bracket, train
from rich.console import Console
from rich.table import Table

from reelign.metrics.statistics import bootstrap_interval
from reelign.plots.curves import ACCENT, INK, STYLE, plain_axes
from reelign.selection.bradley_terry import posterior_draws, probability_top
from reelign.selection.judge import JudgeConfig, Pairs, fit_model, make_pairs
from reelign.selection.judge_calibration import calibrate
from reelign.selection.judge_split import rotations
from reelign.selection.labels import pairs_from_best
from reelign.selection.schemes import SCHEMES, Ledger, Scheme, play
from reelign.selection.tournament import informative_pairs, run_groups

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data" / "selfplay_takes"
OUT = ROOT / "benchmarks" / "results" / "tournaments.json"
PICTURE = ROOT / "docs" / "assets" / "tournaments.png"
PARTS = ("selfplay_takes", "like_selfplay", "noise")
MODELS = ("bradley_terry", "boosting", "forest")
TAKES, DEVIATIONS = 16, (1.0, 2.0)
console = Console(width=140)


# --- 1 and 2: learned judges ---------------------------------------------------------------------------------------


def selfplay() -> tuple[pd.DataFrame, dict[str, str]]:
    """Takes with scores and hidden utility, and the labelled take of each group."""
    takes = pd.read_csv(DATA / "takes_scores.csv").merge(pd.read_csv(DATA / "takes_truth.csv"))
    takes = takes.rename(columns={"group_id": "group", "video_name": "take"})
    takes["file"] = takes["take"] + ".mp4"
    labels = pd.read_csv(DATA / "takes_labels.csv")
    named = labels["best_video_name"].str.removesuffix(".mp4")
    group_of = takes.set_index("take")["group"]
    return takes, {group_of[take]: take for take in named}


def like_selfplay(groups: int, seed: int, size: int = 8) -> tuple[pd.DataFrame, dict[str, str]]:
    """Groups as that data's README describes them; the loadings and noises are ours, set by eye to its tables."""
    random, rows, best = np.random.default_rng(seed), [], {}
    for number in range(groups):
        group = f"{number:04d}"
        level = random.normal(0, [0.05, 0.006, 0.7, 0.07, 0.08])
        quality, obedience = random.normal(0, 1, (2, size))
        moves = (random.normal(0.8, 0.6, size) + level[2] > 0).astype(float)
        broken, failed = random.random(size) < 0.05, random.random(size) < 0.07
        imaging = 0.63 + level[0] + 0.03 * quality - 0.1 * broken + random.normal(0, 0.025, size)
        smooth = 0.98 + level[1] + 0.004 * quality - 0.004 * moves - 0.02 * broken + random.normal(0, 0.004, size)
        aesthetic = 0.52 + level[3] + 0.03 * quality + random.normal(0, 0.025, size)
        similarity = np.where(failed, 0, 0.42 + level[4] + 0.11 * obedience + random.normal(0, 0.09, size))
        utility = quality + 0.9 * obedience + 0.5 * moves - 3 * broken
        table = np.stack([imaging, smooth.clip(0, 1), moves, aesthetic, similarity.clip(0, 1), utility], 1)
        names = [f"{group}_{take}" for take in range(size)]
        rows.append(pd.DataFrame(table, columns=[*FEATURES, "true_utility"]).assign(group=group, take=names))
        best[group] = names[int(np.argmax(utility + random.normal(0, 0.25, size)))]
    takes = pd.concat(rows, ignore_index=True)
    return takes.assign(file=takes["take"] + ".mp4"), best


def learned(pairs: Pairs, groups: list[str], model: str, seed: int) -> Any:
    """A judge of these groups, calibrated on rotations inside them."""
    config = JudgeConfig(model=model, seed=seed)
    raw, truth = [], []
    for split in rotations(groups, 4, seed):
        judge, held = fit_model(pairs, split.train + split.validation, config), pairs.of(split.test, decided=True)
        raw.append(judge.raw(*pairs.sides(held)))
        truth.append(pairs.truth[held] == "left")
    calibration = calibrate(np.concatenate(raw), np.concatenate(truth), "slope")
    return replace(fit_model(pairs, groups, config), calibration=calibration)


def folds(takes: pd.DataFrame, held_out: set[str] | None) -> Iterator[tuple[list[str], list[str]]]:
    """Training and test groups: each group out in turn, or those given out at once."""
    names = sorted(set(takes["group"]))
    if held_out is not None:
        yield [n for n in names if n not in held_out], sorted(held_out)
        return
    for name in names:
        yield [n for n in names if n != name], [name]


def chosen_by_published(
    takes: pd.DataFrame, best: dict[str, str], held_out: set[str] | None, seed: int, leak: bool
) -> tuple[dict[str, str], float]:
    """Its winners, and the share of them that change when the files come in another order."""
    winners, moved = {}, []
    random = np.random.default_rng(seed)
    for training, test in folds(takes, held_out):
        if leak and winners:
            break
        forest = train(takes if leak else takes[takes["group"].isin(training)], best, seed)
        for group in sorted(set(takes["group"])) if leak else test:
            members = takes[takes["group"] == group].sort_values("file")
            said = decisions(forest, members)
            names = list(members["take"])
            winners[group] = names[one_sided_bracket(said, list(range(len(names))))]
            other = names[one_sided_bracket(said, list(random.permutation(len(names))))]
            moved.append(other != winners[group])
    return winners, float(np.mean(moved))


def worth(takes: pd.DataFrame, best: dict[str, str], winners: dict[str, str]) -> pd.DataFrame:
    """One row a group: whether the winner is the labelled and the truly best one, and what it loses to the latter."""
    utility = takes.set_index("take")["true_utility"]
    rows = []
    for group, take in sorted(winners.items()):
        members = utility[takes.loc[takes["group"] == group, "take"]]
        rows.append((group, take == best[group], take == members.idxmax(), members.max() - members[take]))
    return pd.DataFrame(rows, columns=["group", "labelled", "best", "regret"]).set_index("group").astype(float)


def summary(name: str, runs: list[pd.DataFrame], reference: pd.DataFrame | None, **more: Any) -> dict[str, Any]:
    """Means over groups of the means over seeds, intervals over groups, and what is gained on the reference."""
    mean = sum(runs) / len(runs)
    row: dict[str, Any] = {"selector": name, "groups": len(mean), "seeds": len(runs), **more}
    for column in mean:
        values = mean[column].to_numpy()
        row[column], row[f"{column}_ci95"] = float(values.mean()), bootstrap_interval(values, 10_000, 0.95, 0)
        if reference is not None and column in reference:
            gain = (mean[column] - reference[column]).to_numpy()
            row[f"{column}_gain"] = float(gain.mean())
            row[f"{column}_gain_ci95"] = bootstrap_interval(gain, 10_000, 0.95, 0)
    return row


def pair_accuracy(judge: Any, takes: pd.DataFrame, group: str, best: str) -> float:
    """Share of a group's other takes that the judge puts behind the labelled one."""
    members = takes[takes["group"] == group]
    others = members[members["take"] != best]
    first = members[members["take"] == best].iloc[[0] * len(others)]
    return float((judge.probability(first, others) > 0.5).mean())


def judged(
    takes: pd.DataFrame, best: dict[str, str], held_out: set[str] | None, seeds: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The published selector and ours on the same held-out groups; and how right the confidence is."""
    labels = pairs_from_best(pd.DataFrame({"best_video_name": list(best.values())}), takes)
    pairs = make_pairs(takes, labels)
    rows, published = [], {}
    for leak in (False, True):
        runs = [chosen_by_published(takes, best, held_out, seed, leak) for seed in range(seeds)]
        tables = [worth(takes, best, winners) for winners, _ in runs]
        if held_out is not None:
            tables = [table.loc[sorted(held_out)] for table in tables]
        published[leak] = sum(tables) / len(tables)
        name = "published, on the groups it was trained on" if leak else "published"
        moved = float(np.mean([share for _, share in runs]))
        rows.append(
            summary(name, tables, None, comparisons=int(takes.groupby("group").size().max()) - 1, reordered=moved)
        )
        console.print(f"{name}: labelled {rows[-1]['labelled']:.3f}")
    calibrated = []
    for model in MODELS:
        found: dict[str, list[pd.DataFrame]] = {scheme: [] for scheme in SCHEMES}
        sure: dict[str, list[pd.DataFrame]] = {scheme: [] for scheme in SCHEMES}
        made: dict[str, float] = {}
        for seed in range(1 if model != "forest" else max(1, seeds // 4)):
            standings: dict[str, dict[str, Any]] = {scheme: {} for scheme in SCHEMES}
            accuracy: dict[str, float] = {}
            for training, test in folds(takes, held_out):
                judge = learned(pairs, training, model, seed)
                accuracy.update({group: pair_accuracy(judge, takes, group, best[group]) for group in test})
                for scheme in SCHEMES:
                    members = takes[takes["group"].isin(test)]
                    standings[scheme].update(run_groups(members, judge, scheme))
            for scheme, played in standings.items():
                table = worth(takes, best, {group: s.takes[s.order[0]] for group, s in played.items()})
                table["pair_accuracy"] = pd.Series(accuracy)
                found[scheme].append(table)
                stated = {group: s.confidence()[s.order[0]] for group, s in played.items()}
                sure[scheme].append(table.assign(stated=pd.Series(stated)))
                made[scheme] = float(np.mean([s.comparisons for s in played.values()]))
        for scheme in SCHEMES:
            rows.append(summary(f"{model}, {scheme}", found[scheme], published[False], comparisons=made[scheme]))
            calibrated.append({"judge": model, "scheme": scheme, **confidence(pd.concat(sure[scheme]))})
        console.print(f"{model}: labelled {rows[-1]['labelled']:.3f}")
    return rows, calibrated


def confidence(table: pd.DataFrame) -> dict[str, Any]:
    """Mean stated confidence beside the share that is right, whole and by thirds of confidence, and Brier scores."""
    table = table.sort_values("stated")
    thirds = [table.iloc[part] for part in np.array_split(np.arange(len(table)), 3)]
    right = [name for name in ("labelled", "best") if name in table]
    return {
        "stated": float(table["stated"].mean()),
        **{name: float(table[name].mean()) for name in right},
        **{f"brier_{name}": float(((table["stated"] - table[name]) ** 2).mean()) for name in right},
        "thirds": [[float(third[name].mean()) for name in ("stated", *right)] for third in thirds],
    }


# --- 3: noise ------------------------------------------------------------------------------------------------------


def random_pairs(ledger: Ledger, comparisons: int | None = None) -> Scheme:
    """So many pairs drawn at random, then Bradley-Terry; for comparison only."""
    random = np.random.default_rng(int(ledger.wins.sum()))
    yield [tuple(random.choice(ledger.n, 2, replace=False).tolist()) for _ in range(comparisons or ledger.n)]
    return ledger.order()


def active_pairs(ledger: Ledger, comparisons: int | None = None) -> Scheme:
    """Pairs of ``informative_pairs``, five at a time, then Bradley-Terry: what the review page asks."""
    names = [f"{i:02d}" for i in range(ledger.n)]
    while ledger.comparisons < (comparisons or ledger.n):
        told = [
            (names[i], names[j], "left") for i, j in np.argwhere(ledger.wins) for _ in range(int(ledger.wins[i, j]))
        ]
        labels = pd.DataFrame(told, columns=["left", "right", "choice"])
        yield [(int(a), int(b)) for a, b in informative_pairs(labels, names, 5)]
    return ledger.order()


def against_noise(
    scheme: Callable[..., Scheme], comparisons: int, deviation: float, repeats: int, sure: bool = False
) -> pd.DataFrame:
    """One row a repeat; the same strengths and the same luck of each pair's k-th meeting for every scheme."""
    rows = []
    for repeat in range(repeats):
        random = np.random.default_rng([repeat, int(10 * deviation)])
        theta = random.normal(0, deviation, TAKES)
        luck = random.logistic(size=(TAKES, TAKES, comparisons + 1))
        ledger = Ledger(TAKES, votes=True)
        met = np.zeros((TAKES, TAKES), dtype=int)

        def ask(
            pairs: list[tuple[int, int]], theta: np.ndarray = theta, luck: Any = luck, met: Any = met
        ) -> list[float]:
            outcomes = []
            for i, j in pairs:
                low, high = min(i, j), max(i, j)
                first = theta[low] - theta[high] > luck[low, high, met[low, high]]
                met[low, high] += 1
                outcomes.append(float(first == (i == low)))
            return outcomes

        winner = play(scheme, ledger, ask, comparisons)[0]
        row = {"best": winner == theta.argmax(), "regret": theta.max() - theta[winner], "made": ledger.comparisons}
        if sure:
            row["stated"] = probability_top(posterior_draws(ledger.strengths(), 4000))[winner]
        rows.append(row)
    return pd.DataFrame(rows).astype(float)


def noise_table(repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The schemes at their usual lengths, and the shortest halving that is as good as a round robin."""
    entries: list[tuple[str, Callable[..., Scheme], int]] = [
        ("single elimination × 1", SCHEMES["elimination"], 15),
        ("single elimination × 3", SCHEMES["elimination"], 45),
        ("single elimination × 5", SCHEMES["elimination"], 75),
        ("Swiss, 8 rounds", SCHEMES["swiss"], 64),
        ("random pairs", random_pairs, 60),
        ("informative pairs", active_pairs, 60),
        ("round robin", SCHEMES["round_robin"], 120),
        ("successive halving", SCHEMES["halving"], 60),
        ("successive halving", SCHEMES["halving"], 120),
    ]
    rows, shortest = [], {}
    for deviation in DEVIATIONS:
        for name, scheme, comparisons in entries:
            count = repeats // 3 if scheme is active_pairs else repeats  # slow
            result = against_noise(scheme, comparisons, deviation, count, sure=True)
            row = {"scheme": name, "comparisons": result["made"].mean(), "deviation": deviation, "repeats": count}
            row.update(mean_error(result))
            rows.append({**row, "confidence": confidence(result)})
            console.print(f"sd {deviation:g} {name} {comparisons}: {row['regret']:.3f} ± {row['regret_se']:.3f}")
        shortest[f"{deviation:g}"] = shortest_halving(deviation, repeats)
    return rows, shortest


def mean_error(result: pd.DataFrame) -> dict[str, float]:
    """Means and standard errors of best and regret."""
    found: dict[str, float] = {}
    for name in ("best", "regret"):
        found[name], found[f"{name}_se"] = float(result[name].mean()), float(result[name].std() / len(result) ** 0.5)
    return found


def shortest_halving(deviation: float, repeats: int) -> dict[str, Any]:
    """Regret of halving less that of the round robin of 120, paired by strengths and luck, for growing lengths."""
    robin = against_noise(SCHEMES["round_robin"], 120, deviation, repeats)["regret"]
    curve = []
    for comparisons in range(20, 65, 5):
        halving = against_noise(SCHEMES["halving"], comparisons, deviation, repeats)
        gap = halving["regret"] - robin
        se = float(gap.std() / len(gap) ** 0.5)
        curve.append(
            {
                "comparisons": comparisons,
                "regret": float(halving["regret"].mean()),
                "gap": float(gap.mean()),
                "gap_se": se,
            }
        )
    equal = [c["comparisons"] for c in curve if c["gap"] <= 0]
    certain = [c["comparisons"] for c in curve if c["gap"] + 1.96 * c["gap_se"] <= 0]
    return {
        "round_robin": float(robin.mean()),
        "curve": curve,
        "equal_from": min(equal, default=None),
        "surely_no_worse_from": min(certain, default=None),
    }


# --- all -----------------------------------------------------------------------------------------------------------


def show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table("selector", "comparisons", "labelled", "truly best", "regret", "regret − published", title=title)
    for row in rows:
        gain = ""
        if "regret_gain" in row:
            gain = f"{row['regret_gain']:+.3f} [{row['regret_gain_ci95'][0]:+.3f}, {row['regret_gain_ci95'][1]:+.3f}]"
        cells = (
            f"{row[c]:.3f} [{row[f'{c}_ci95'][0]:.3f}, {row[f'{c}_ci95'][1]:.3f}]"
            for c in ("labelled", "best", "regret")
        )
        table.add_row(row["selector"], f"{row['comparisons']:.1f}", *cells, gain)
    console.print(table)


def keep(path: Path, part: str, found: dict[str, Any]) -> None:
    """Put one part into the file of results; the others stay."""
    results = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**results, part: found}, indent=1, sort_keys=True) + "\n")


def draw(noise: dict[str, Any], path: Path) -> None:
    """Regret of halving beside the round robin's, and stated confidence against the share that is right."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        for deviation, colour in zip(DEVIATIONS, (ACCENT, INK), strict=True):
            found = noise["halving_for_round_robin"][f"{deviation:g}"]
            made, regret = ([point[name] for point in found["curve"]] for name in ("comparisons", "regret"))
            left.plot(made, regret, color=colour, marker=".", label=f"halving, strengths of deviation {deviation:g}")
            left.axhline(found["round_robin"], color=colour, linestyle="--", linewidth=1)
            thirds = [
                third
                for row in noise["schemes"]
                if row["deviation"] == deviation
                for third in row["confidence"]["thirds"]
            ]
            right.scatter(*zip(*thirds, strict=True), s=12, color=colour, label=f"deviation {deviation:g}")
        left.plot([], [], color=INK, linestyle="--", linewidth=1, label="round robin of 120")
        right.plot([0.2, 1], [0.2, 1], color=INK, linewidth=1, alpha=0.5)
        left.set_title("regret of the winner, in logits", loc="left", fontsize=9, color=INK)
        right.set_title("share of winners that are the best", loc="left", fontsize=9, color=INK)
        for axes, label in ((left, "comparisons of 16 takes"), (right, "stated confidence, thirds of every scheme")):
            plain_axes(axes)
            axes.set_xlabel(label, fontsize=8, color=INK)
            axes.legend(frameon=False, fontsize=8, labelcolor=INK)
        left.set_ylim(0, None)
        right.xaxis.set_major_locator(MaxNLocator(5))
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", type=int, default=8, help="forests of the published selector, which has no seed")
    parser.add_argument("--repeats", type=int, default=600, help="tournaments in noise")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if "selfplay_takes" in arguments.parts:
        rows, sure = judged(*selfplay(), None, arguments.seeds)
        keep(arguments.out, "selfplay_takes", {"synthetic": True, "selectors": rows, "confidence": sure})
        show("selfplay_takes (synthetic), 24 groups of 8", rows)
    if "like_selfplay" in arguments.parts:
        takes, best = like_selfplay(360, seed=1)
        rows, sure = judged(takes, best, set(sorted(best)[60:]), max(1, arguments.seeds // 4))
        keep(arguments.out, "like_selfplay", {"synthetic": True, "selectors": rows, "confidence": sure})
        show("300 test groups of a model like it, 60 to train on", rows)
    if "noise" in arguments.parts:
        rows, shortest = noise_table(arguments.repeats)
        noise = {"takes": TAKES, "schemes": rows, "halving_for_round_robin": shortest}
        keep(arguments.out, "noise", noise)
        draw(noise, PICTURE)
        for deviation, found in shortest.items():
            console.print(
                f"sd {deviation}: a round robin of 120 loses {found['round_robin']:.3f}; successive halving needs "
                f"{found['equal_from']} comparisons, and is surely no worse from {found['surely_no_worse_from']}"
            )


if __name__ == "__main__":
    main()
