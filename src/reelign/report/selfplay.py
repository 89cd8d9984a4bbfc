"""The report of self-play: what every round made, kept and gained, as one self-contained HTML file.

Run: ``reelign selfplay selfplay``; again from the files with ``build_selfplay_report``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from reelign.errors import DataError
from reelign.plots.curves import inline_svg
from reelign.plots.selfplay import rounds_figure
from reelign.report import summary as words
from reelign.report.page import build_report, template
from reelign.video_io import replacing

CLIPS = 6  # held-out prompts whose clips are shown


def round_in_words(record: Mapping[str, Any]) -> str:
    """One line on a round: how many takes, who was selected, what the held-out prompts gained."""
    goal, unit = record["held_out"]["goal"], goal_name(record)
    rejected = f", {record['rejected_takes']} rejected" if record["rejected_takes"] else ""
    return (
        f"round {record['round']}: {record['takes']} takes{rejected}, {record['winners']} winners; held-out goal "
        f"{_change(unit, goal['of_round'])} in this round, {_change(unit, goal['in_all'])} in all"
    )


def goal_name(record: Mapping[str, Any]) -> str:
    """A name for the goal that shows its unit: an accuracy where all its measures are."""
    names = [name for name in record["held_out"] if name != "goal"]
    return "goal_accuracy" if all(words.is_accuracy(name) for name in names) else "goal"


def build_selfplay_report(folder: Path) -> Path:
    """Write ``report.html`` to a folder of self-play, and to the run folder of every round.

    Raises:
        DataError: no round is done, or a file is missing.
    """
    folder = Path(folder)
    result = words.read_json(folder / "selfplay.json")
    if not result["rounds"]:
        raise DataError(f"{folder} has no finished round: resume it")
    for record in result["rounds"]:
        build_report(folder / "rounds" / f"{record['round']:02d}" / "train")
    names = [name for name in result["rounds"][0]["held_out"] if name != "goal"]
    page = template("selfplay.html.j2").render(
        name=folder.resolve().name,
        result=result,
        verdict=verdict(result),
        figure=inline_svg(rounds_figure(result["rounds"], words.is_accuracy(goal_name(result["rounds"][0]))), "rounds"),
        rounds=[_row(record) for record in result["rounds"]],
        measures=[_measure(name, result["rounds"]) for name in ["goal", *names]],
        clips=_clips(folder, result["rounds"]),
        config=words.read_text(folder / "config.yaml"),
    )
    with replacing(folder / "report.html") as part:
        part.write_text(page, encoding="utf-8")
    return folder / "report.html"


def verdict(result: Mapping[str, Any]) -> str:
    """One sentence: what the held-out prompts gained in all, at the best round."""
    best = next((r for r in result["rounds"] if r["round"] == result["best_round"]), result["rounds"][-1])
    change = best["held_out"]["goal"]["in_all"]
    low, high = change["ci95"]
    moved = "rose" if low > 0 else "fell" if high < 0 else "shows no clear change"
    count = len(result["rounds"])
    where = f"at the best of {count} rounds" if count > 1 else "in one round"
    name = goal_name(best)
    before, after = (words.show(name, change[key], 1) for key in ("before", "after"))
    return (
        f"In self-play the held-out goal {moved}: {before} to {after} {where}, "
        f"{_change(name, change)}, on {result['held_out_prompts']} prompts it never trained on"
    )


def _change(name: str, change: Mapping[str, Any]) -> str:
    return f"{words.show_delta(name, change['delta'], 1)} ({words.show_interval(name, change['ci95'], 1)})"


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    reasons = ", ".join(f"{gate} {count}" for gate, count in record["rejected"].items()) or "none"
    bought = ", ".join(f"{name} {v['all']:.3f} → {v['winners']:.3f}" for name, v in record["selected"].items())
    goal, name = record["held_out"]["goal"], goal_name(record)
    return {
        **{key: record[key] for key in ("round", "takes", "winners", "without_winner", "steps", "stopped")},
        "rejected": f"{record['rejected_takes']} ({reasons})" if record["rejected_takes"] else "none",
        "confidence": f"{record['confidence']:.2f}",
        "selected": bought,
        "gain": _change(name, goal["of_round"]),
        "tone": _tone(goal["of_round"]),
        "link": f"rounds/{record['round']:02d}/train/report.html",
    }


def _measure(name: str, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    changes = [record["held_out"][name]["in_all"] for record in rounds]
    unit = goal_name(rounds[0]) if name == "goal" else name
    values = [changes[0]["before"], *(change["after"] for change in changes)]
    return {
        "title": "Goal, the mean of them" if name == "goal" else words.label(name),
        "values": [words.show(unit, value, 1) for value in values],
        "change": _change(unit, changes[-1]),
        "tone": _tone(changes[-1]),
    }


def _tone(change: Mapping[str, Any]) -> str:
    low, high = change["ci95"]
    return "rose" if low > 0 else "fell" if high < 0 else "flat"


def _clips(folder: Path, rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The clips of some held-out prompts, base and every round, as base64; first those whose goal changed most."""
    places = [folder / "rounds/01/train/samples/step_000000", *(Path(record["samples"]) for record in rounds)]
    tables = [pd.read_csv(place / "scores.csv", keep_default_na=False) for place in places]
    names = [name for name in rounds[0]["held_out"] if name != "goal"]
    gain = (tables[-1][names].mean(axis=1) - tables[0][names].mean(axis=1)).abs()
    saved = tables[0].index[(tables[0]["file"] != "") & (tables[-1]["file"] != "")]
    chosen = gain[saved].sort_values(ascending=False, kind="stable").index[:CLIPS]
    return [
        {
            "prompt": str(tables[0].loc[index, "prompt"]),
            "videos": [
                base64.b64encode((place / str(table.loc[index, "file"])).read_bytes()).decode()
                for place, table in zip(places, tables, strict=True)
            ],
        }
        for index in chosen
    ]


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """The records of the rounds that are done, in order."""
    found = sorted((Path(folder) / "rounds").glob("*/round.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in found]
