"""The report of a translation run: source, translation, cycle and truth side by side, curves, before and after.

One self-contained HTML file as ``report.html``, and ``summary.json`` with every comparison. Clips are the same at
every evaluation, so each is its own control. Warping and cycle errors are not called better or worse: a translator
that changes nothing, as it is before training, has no cycle error and no more warping error than its source.

Run: ``reelign report RUN``.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from reelign.errors import DataError
from reelign.metrics.statistics import RESAMPLES, paired_delta
from reelign.metrics.translation import CLIP_MEASURES, HIGHER_IS_BETTER
from reelign.plots.curves import inline_svg, means_figure
from reelign.report import summary as words
from reelign.report.page import Curve, flat, template, training_curves
from reelign.video_io import replacing

ALGORITHM = "video_translation"
SHOWN = 6  # clips of each direction
CLIPS_MB = 48  # of video files at most
FILES = ("source", "file", "cycled", "truth")
NAMES = {
    "psnr": ("PSNR", "dB"),
    "ssim": ("SSIM", ""),
    "warping_error": ("Warping error", "grey levels"),
    "cycle_error": ("Cycle error", "grey levels"),
    "frechet_clip": ("Fréchet distance of CLIP features", ""),
    "cmmd": ("CMMD", ""),
    "mmd_videomae": ("MMD of VideoMAE features", ""),
}  # measure to its name and unit
REFERENCES = {"warping_error": ("warping_error_source", "warping_error_truth")}


@dataclass(frozen=True)
class Change:
    """One measure of one direction, before and after.

    Args:
        name: of the measure.
        values: its ``metrics.statistics.Paired``, as a mapping.
        note: what the value would be at best, or empty.
    """

    name: str
    values: Mapping[str, Any]
    note: str = ""

    @property
    def title(self) -> str:
        """Its name in words, with its unit."""
        return title(self.name)

    @property
    def tone(self) -> str:
        """``rose`` where it clearly got better, ``fell`` where worse, else ``flat``: classes of the style sheet.

        Errors that a translator without training has by changing nothing are neither.
        """
        low, high = self.values["ci95"]
        if low <= 0 <= high or self.name not in HIGHER_IS_BETTER:
            return "flat"
        return "rose" if low > 0 else "fell"

    @property
    def outcome(self) -> str:
        """``tone`` in words."""
        low, high = self.values["ci95"]
        if self.name not in HIGHER_IS_BETTER and not low <= 0 <= high:
            return "grew" if low > 0 else "shrank"
        return {"rose": "better", "fell": "worse", "flat": "no clear change"}[self.tone]

    def shown(self) -> tuple[str, str, str, str]:
        """Before, after, change and interval."""
        before, after = (words.show("", self.values[key]) for key in ("before", "after"))
        return before, after, words.show_delta("", self.values["delta"]), words.show_interval("", self.values["ci95"])


def is_translation(run: Path) -> bool:
    """Whether a folder holds a run of ``video_translation``."""
    config = Path(run) / "config.yaml"
    if not config.is_file():
        return False
    try:
        found = yaml.safe_load(config.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return False  # the ordinary report says what is wrong
    return isinstance(found, dict) and found.get("algorithm") == ALGORITHM


def build_translation_report(run: Path) -> Path:
    """Write ``summary.json`` and ``report.html`` to a run folder; returns the path of the page.

    Raises:
        DataError: a file of the run is missing or wrong.
    """
    run = Path(run)
    summary, samples, training = summarise(run), read_evaluations(run), words.read_training(run)
    page = template("translation.html.j2").render(
        name=run.resolve().name,
        summary=summary,
        verdict=verdict(summary),
        directions=[_direction(to, summary) for to in summary["directions"]],
        clips=_clips(run, samples[max(samples)], max(samples)),
        curves=training_curves(training),
        along=along_curves(samples),
        steps=list(samples),
        config=words.read_text(run / "config.yaml"),
        environment=flat(words.read_json(run / "environment.json")),
        resamples=f"{RESAMPLES:,}",
    )
    with replacing(run / "report.html") as part:
        part.write_text(page, encoding="utf-8")
    return run / "report.html"


def read_evaluations(run: Path) -> dict[int, pd.DataFrame]:
    """The scores of every ``samples/step_*`` folder of a translation run, by step, ascending.

    Raises:
        DataError: there is no step 0 or nothing after it, or a table is not one of these.
    """
    found = sorted((run / "samples").glob("step_*/scores.csv"))
    steps = {int(match[1]): path for path in found if (match := re.search(r"step_(\d+)$", path.parent.name))}
    if 0 not in steps or len(steps) < 2:
        raise DataError(
            f"a report compares step 0 with a later one; {run}/samples has {sorted(steps) or 'none'}: train"
        )
    tables = {step: pd.read_csv(path, dtype=dict.fromkeys((*FILES, "to"), str)) for step, path in steps.items()}
    for step, table in tables.items():
        missing = [name for name in ("to", "clip", *FILES) if name not in table]
        if missing:
            raise DataError(f"{steps[step]} lacks the column {', '.join(missing)}: evaluate again")
        table[list(FILES)] = table[list(FILES)].fillna("")
    return tables


def summarise(run: Path) -> dict[str, Any]:
    """Compare before with after, direction by direction, and write ``summary.json``; returns what it wrote."""
    status, samples = words.read_status(run), read_evaluations(run)
    first, last = min(samples), max(samples)
    directions = {
        to: {
            "measures": _compared(*(samples[step][samples[step]["to"] == to] for step in (first, last))),
            "references": _references(samples[last][samples[last]["to"] == to]),
            "sets": _sets(run, to, first, last),
            "clips": int((samples[last]["to"] == to).sum()),
        }
        for to in samples[last]["to"].unique()
    }
    summary = {
        "directions": directions,
        **{key: status[key] for key in ("steps", "seconds", "peak_memory_mb")},
        "warnings": [*_warnings(directions, status, last), *_few_files(run, last)],
    }
    with replacing(run / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


def _compared(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, Any]:
    """Every measure that both tables have, over the clips that have it in both."""
    both = before.merge(after, on="clip", suffixes=("_before", "_after"))
    found = {}
    for name in CLIP_MEASURES:
        if name not in before or name not in after:
            continue
        pairs = both[[f"{name}_before", f"{name}_after"]].dropna()
        if len(pairs) >= 2:
            found[name] = asdict(paired_delta(*(pairs[column].to_numpy() for column in pairs)))
    return found


def _references(table: pd.DataFrame) -> dict[str, float]:
    """Means of what a measure is at best: of the sources and of the known translations."""
    names = [name for group in REFERENCES.values() for name in group if name in table]
    return {name: float(table[name].mean()) for name in names if table[name].notna().any()}


def _sets(run: Path, to: str, first: int, last: int) -> dict[str, Any]:
    """Metric to its distances before and after."""
    found: dict[str, Any] = {}
    for key, step in (("before", first), ("after", last)):
        path = run / "samples" / f"step_{step:06d}" / "sets.json"
        for distance in words.read_json(path)["distances"] if path.is_file() else []:
            if distance["to"] == to:
                found.setdefault(distance["metric"], {})[key] = distance
    return {name: pair for name, pair in found.items() if len(pair) == 2}


def _warnings(directions: Mapping[str, Any], status: Mapping[str, Any], last: int) -> list[str]:
    found = []
    if not status["finished"]:
        found.append(f"The run did not finish: {status['stopped'] or 'it was interrupted'}.")
    if last != status["steps"]:
        found.append(f"The last evaluation is of step {last}, but the run has {status['steps']} steps.")
    if not any("psnr" in direction["measures"] for direction in directions.values()):
        found.append("No translation is known, so nothing here says whether clips became the right ones: look at them.")
    if (few := min(direction["clips"] for direction in directions.values())) < words.FEW:
        found.append(f"Only {few} clips: intervals from fewer than {words.FEW} are too narrow to trust.")
    return found


def _few_files(run: Path, last: int) -> list[str]:
    """A sentence for each folder whose held-out windows come from few clips: windows of a clip are not independent."""
    path = run / "samples" / f"step_{last:06d}" / "sets.json"
    counts = words.read_json(path).get("judged_on", {}) if path.is_file() else {}
    return [
        f"The windows of {side} that are judged come from {count} clip{'s' if count > 1 else ''}: intervals from fewer "
        f"than {words.FEW} are too narrow to trust."
        for side, count in counts.items()
        if count < words.FEW
    ]


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """One sentence a direction: what the clips gained."""
    parts = []
    for to, found in summary["directions"].items():
        named = [name for name in ("psnr", "ssim") if name in found["measures"]] or ["cycle_error", "warping_error"]
        changes = [Change(name, found["measures"][name]) for name in named if name in found["measures"]]
        told = [_told(change) for change in changes]
        parts.append(f"{way(to)}: {', '.join(told)}, on {found['clips']} held-out clips")
    return parts


def _told(change: Change) -> str:
    name, unit = NAMES[change.name]
    before, after = change.shown()[:2]
    return f"{name} from {before} to {after}{unit and ' ' + unit} ({change.outcome})"


def title(name: str) -> str:
    """A measure in words, with its unit."""
    return ", ".join(filter(None, NAMES[name]))


def way(to: str) -> str:
    """A direction in signs: ``x → y``."""
    return "x → y" if to == "y" else "y → x"


def changes_of(found: Mapping[str, Any]) -> list[Change]:
    """The measures of one direction of ``summary.json``, in the order of the page."""
    notes = {
        name: ", ".join(
            f"{label} {words.show('', found['references'][reference])}"
            for reference, label in zip(references, ("source's own", "known translation's"), strict=True)
            if reference in found["references"]
        )
        for name, references in REFERENCES.items()
    }
    return [Change(name, values, notes.get(name, "")) for name, values in found["measures"].items()]


def along_curves(samples: Mapping[int, pd.DataFrame]) -> list[Curve]:
    """Mean of every measure and direction at each evaluated step; none where only before and after were."""
    if len(samples) < 3:
        return []
    curves = []
    for to in samples[max(samples)]["to"].unique():
        rows = {step: table[table["to"] == to] for step, table in samples.items()}
        names = [
            name
            for name in CLIP_MEASURES
            if all(name in table and table[name].notna().any() for table in rows.values())
        ]
        means = pd.DataFrame({step: table[names].mean() for step, table in rows.items()}).T.rename_axis("step")
        for name in names:
            text = " → ".join(words.show("", value) for value in means[name])
            figure = inline_svg(means_figure(means, name), f"along-{to}-{name}")
            curves.append(Curve(f"{way(to)}: {title(name)}", text, figure))
    return curves


def _direction(to: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    found = summary["directions"][to]

    def told(distance: Mapping[str, Any]) -> str:
        value, low, high = (words.show("", distance[key]) for key in ("value", "low", "high"))
        return f"{value} ({low} … {high})"

    sets = [
        {
            "title": title(name),
            "before": told(pair["before"]),
            "after": told(pair["after"]),
            "floor": words.show("", pair["after"]["floor"]),
            "clips": pair["after"]["clips"],
        }
        for name, pair in found["sets"].items()
    ]
    return {"to": to, "way": way(to), "clips": found["clips"], "measures": changes_of(found), "sets": sets}


def _clips(run: Path, table: pd.DataFrame, step: int) -> list[dict[str, Any]]:
    """The first saved clips of each direction, as base64, within ``SHOWN`` and ``CLIPS_MB``."""
    folder, room, shown = run / "samples" / f"step_{step:06d}", CLIPS_MB * 2**20, []
    saved = table[table["file"] != ""].groupby("to", sort=False).head(SHOWN)
    for _, row in saved.iterrows():
        files = {column: row[column] for column in FILES if row[column]}
        for name in files.values():
            if Path(name).name != name or not (folder / name).is_file():
                raise DataError(
                    f"scores.csv names {name!r}, which is no clip in {folder}: restore it or empty the cell"
                )
        data = {column: (folder / name).read_bytes() for column, name in files.items()}
        room -= sum(map(len, data.values()))
        if room < 0:
            break
        shown.append(
            {
                "title": f"{way(row['to'])}, clip {row['clip']}",
                "to": row["to"],
                "scores": _scores(row),
                "videos": [(_label(column, row["to"]), base64.b64encode(data[column]).decode()) for column in files],
            }
        )
    return shown


def _label(column: str, to: str) -> str:
    start = "x" if to == "y" else "y"
    return {"source": f"source, {start}", "file": f"translated to {to}", "cycled": f"back to {start}",
            "truth": f"known {to}"}[column]  # fmt: skip


def _scores(row: Mapping[str, Any]) -> str:
    """The measures of a clip, in one line."""
    known = [name for name in CLIP_MEASURES if name in row and pd.notna(row[name])]
    return " · ".join(f"{NAMES[name][0]} {words.show('', row[name])}" for name in known)


def table_rows(summary: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    """The rows that the command line shows: direction, measure, before, after, change, interval."""
    return [
        (way(to), change.title, *change.shown())
        for to, found in summary["directions"].items()
        for change in changes_of(found)
    ]
