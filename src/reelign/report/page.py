"""The report of a run: one self-contained HTML file with clips, curves and intervals, which asks for nothing outside.

``build_report`` turns the files of a run folder into words and positions; ``template.html.j2`` lays them out. Prompts
and names are untrusted: the template escapes everything but the curves, which matplotlib drew.

Run: ``reelign report RUN``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from reelign.metrics.statistics import RESAMPLES, wilson
from reelign.plots.curves import (
    inline_svg,
    is_main,
    means_figure,
    means_over_steps,
    quantities,
    smooth,
    training_figure,
)
from reelign.plots.guard import guard_figure
from reelign.report import summary as words
from reelign.report.summary import HACKING, HELD_OUT, REWARD, TRAINED
from reelign.video_io import replacing

CLIPS = 12  # prompts whose clips are shown
CLIPS_MB = 48  # of video files at most; a page holds a third more, as base64


@dataclass(frozen=True)
class Measure:
    """One compared measure, as the page shows it.

    Args:
        name: column name, with its prefix.
        role: ``trained on``, ``reward`` or ``held out``.
        change: its comparison, from ``summary.json``.
        scale: change at the right end of its interval bar; the left end is the negative of it.
    """

    name: str
    role: str
    change: Mapping[str, Any]
    scale: float

    @property
    def title(self) -> str:
        """Its name in words."""
        text = words.label(self.name)
        return text[:1].upper() + text[1:]

    @property
    def direction(self) -> str:
        """``rose``, ``fell``, or ``no clear change`` where the interval holds zero."""
        low, high = self.change["ci95"]
        return "rose" if low > 0 else "fell" if high < 0 else "no clear change"

    @property
    def tone(self) -> str:
        """``direction`` as one word, for the style sheet."""
        return "flat" if self.direction == "no clear change" else self.direction

    def value(self, key: str, decimals: int = 0) -> str:
        """``before`` or ``after``, with its unit."""
        return words.show(self.name, self.change[key], decimals)

    def delta(self, decimals: int = 0) -> str:
        """The change, with sign and unit."""
        return words.show_delta(self.name, self.change["delta"], decimals)

    def interval(self, decimals: int = 0) -> str:
        """The interval of the change."""
        return words.show_interval(self.name, self.change["ci95"], decimals)

    def place(self, number: float) -> float:
        """Where a change lies on the bar, in percent from the left."""
        return round(50 + 50 * number / self.scale, 2)

    @property
    def win_rate(self) -> str:
        """Share of prompts that got better among those that changed, with its Wilson interval."""
        wins, changed = self.change["wins"], self.change["wins"] + self.change["losses"]
        if not changed:
            return "–"
        low, high = wilson(wins, changed)
        return f"{wins / changed:.0%} ({low:.0%} … {high:.0%})".replace("%", "\N{NO-BREAK SPACE}%")


@dataclass(frozen=True)
class Curve:
    """One small figure of the page: its name, what it says in words, and its SVG."""

    title: str
    text: str
    svg: str
    main: bool = True


def build_report(run: Path) -> Path:
    """Write ``summary.json`` and ``report.html`` to a run folder; returns the path of the page.

    Raises:
        DataError: a file of the run is missing or wrong.
    """
    run = Path(run)
    summary, samples, training = words.summarise(run), words.read_samples(run), words.read_training(run)
    before, after = words.pair_samples(samples)
    config = words.read_text(run / "config.yaml")
    measures = compared_measures(summary)
    clips, saved = _clips(run)
    page = template("template.html.j2").render(
        name=run.resolve().name,
        summary=summary,
        verdict=verdict(measures, _prompts_in_words(config, summary["prompts"])),
        hacking=[text for text in summary["warnings"] if text.startswith(HACKING)],
        cautions=[text for text in summary["warnings"] if not text.startswith(HACKING)],
        facts=_facts(summary),
        measures=measures,
        cards=[measure for measure in measures if measure.role != "reward"],
        clips=clips,
        saved=saved,
        deltas=_deltas(before, after),
        steps=list(samples),
        curves=training_curves(training),
        guard=guard_section(run),
        held_out_curves=held_out_curves(samples),
        sets=[(name, compared_measures(other)) for name, other in summary.get("prompt_sets", {}).items()],
        config=config,
        resamples=f"{RESAMPLES:,}",
        environment=flat(words.read_json(run / "environment.json")),
    )
    with replacing(run / "report.html") as part:
        part.write_text(page, encoding="utf-8")
    return run / "report.html"


def compared_measures(summary: Mapping[str, Any]) -> list[Measure]:
    """The trained reward, the held-out measures, then every reward; the bars of all accuracies share one scale."""
    changes = [(TRAINED, "trained on", summary[TRAINED])]
    changes += [(HELD_OUT + name, "held out", change) for name, change in summary["held_out"].items()]
    changes += [(REWARD + name, "reward", change) for name, change in summary["rewards"].items()]
    reach = {name: 1.1 * max(abs(end) for end in change["ci95"]) for name, _, change in changes}
    widest = max((reach[name] for name in reach if words.is_accuracy(name)), default=0.0)
    return [
        Measure(name, role, change, (widest if words.is_accuracy(name) else reach[name]) or 1.0)
        for name, role, change in changes
    ]


def verdict(measures: Sequence[Measure], prompts: str) -> list[str]:
    """One sentence: held-out measures that fell, rose, show no clear change; where none was taken, the trained reward.

    Args:
        measures: from ``compared_measures``.
        prompts: what was measured on, for example ``96 prompts it never trained on``.

    Returns:
        The parts of the sentence, to be joined by semicolons.
    """
    told = [m for m in measures if m.role == "held out"] or [m for m in measures if m.name == TRAINED]
    clear = sorted((m for m in told if m.tone != "flat"), key=lambda m: m.tone)  # a loss never hides behind a gain
    parts = [f"{words.label(m.name)} {m.direction} {words.describe(m.name, m.change)}" for m in clear]
    parts += [
        f"{words.label(m.name)} shows no clear change ({m.value('before')} to {m.value('after')}, "
        f"95\N{NO-BREAK SPACE}% interval {m.interval()})"
        for m in told
        if m not in clear
    ]
    return [parts[0][:1].upper() + f"{parts[0][1:]} on {prompts}", *parts[1:]]


def training_curves(training: pd.DataFrame) -> list[Curve]:
    """Every logged quantity, the reward first."""
    curves = []
    for number, name in enumerate(quantities(training)):
        logged = training[["step", name]].dropna()
        line = smooth(logged[name])
        ends = [words.show("", end) for end in (line.iloc[0], line.iloc[-1])]
        text = f"{ends[0]} → {ends[1]}, steps {logged['step'].iloc[0]} to {logged['step'].iloc[-1]}"
        svg = inline_svg(training_figure(training, name), f"training{number}")
        curves.append(Curve(name, text, svg, is_main(name)))
    return curves


def guard_section(run: Path) -> dict[str, Any] | None:
    """What the guard saw and did, for the page; None where there was no guard."""
    if not (run / "guard.json").is_file():
        return None
    record = words.read_json(run / "guard.json")
    acted = [decision for decision in record["decisions"] if decision["action"] != "go on"]
    count = f"{len(record['looks'])} looks"
    text = f"{count}, stepped in {len(acted)} times" if acted else f"{count}, nothing had to be done"
    said = [f"{decision['action']}: {decision['why']}" for decision in record["decisions"]]
    return {"svg": inline_svg(guard_figure(record), "guard"), "text": text, "said": said}


def held_out_curves(samples: Mapping[int, pd.DataFrame]) -> list[Curve]:
    """Mean of every held-out measure at each sampled step; none where only before and after were sampled."""
    if len(samples) < 3:
        return []
    means, curves = means_over_steps(samples), []
    for number, name in enumerate(means.columns):
        text = " → ".join(words.show(name, value, 1) for value in means[name].dropna())
        svg = inline_svg(means_figure(means, name), f"heldout{number}")
        curves.append(Curve(words.label(name), text, svg))
    return curves


def template(name: str) -> Any:
    """A page's template; what it shows is escaped unless marked safe, and an unknown name is an error."""
    environment = Environment(
        loader=PackageLoader("reelign", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _prompts_in_words(config: str, count: int) -> str:
    """Says that the prompts were never trained on only where the run's config set that many aside."""
    try:
        held_out = yaml.safe_load(config)["prompts"]["held_out"]
    except (yaml.YAMLError, KeyError, TypeError):
        held_out = None
    return f"{count} prompts it never trained on" if held_out == count else f"{count} evaluation prompts"


def _clips(run: Path) -> tuple[list[dict[str, str]], int]:
    """The first pairs of clips by index, as base64, within ``CLIPS`` and ``CLIPS_MB``; and how many were saved."""
    pairs, shown, room = words.clip_pairs(run), [], CLIPS_MB * 2**20
    for pair in pairs[:CLIPS]:
        files = [pair.before.read_bytes(), pair.after.read_bytes()]
        room -= sum(map(len, files))
        if room < 0:
            break
        before, after = (base64.b64encode(file).decode() for file in files)
        shown.append({"prompt": pair.prompt, "seed": str(pair.seed), "before": before, "after": after})
    return shown, len(pairs)


def _deltas(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, Any]:
    """One row a clip: prompt, seed, and the change of the trained reward and of every held-out measure."""
    names = [name for name in words.measures(before) if name == TRAINED or name.startswith(HELD_OUT)]
    difference = after[names] - before[names]
    columns = [words.label(name) + (" (points)" if words.is_accuracy(name) else "") for name in names]
    rows = [
        (prompt, seed, [(words.show_change(name, d), d) for name, d in zip(names, row, strict=True)])
        for prompt, seed, row in zip(before["prompt"], before["seed"], difference.to_numpy(), strict=True)
    ]
    return {"columns": columns, "rows": rows}


def _facts(summary: Mapping[str, Any]) -> list[str]:
    clips = "" if summary["clips"] == summary["prompts"] else f", {summary['clips']} clips each time"
    memory = summary["peak_memory_mb"]
    return [
        f"{summary['steps']} steps",
        _duration(summary["seconds"]),
        *([] if memory is None else [f"{memory / 1024:.1f} GiB of memory at the peak"]),
        f"measured on {summary['prompts']} prompts{clips}",
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one level with dotted names, everything else as text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found
