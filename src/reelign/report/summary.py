"""What a finished run amounts to: reads a run folder, compares before with after, writes ``summary.json``.

Clips are paired by (prompt, seed). A prompt sampled with several seeds counts once, by its mean, because its clips are
not independent: intervals and wins are over prompts. Every number comes from the files of the run folder.

Run: ``reelign report RUN``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from reelign.errors import DataError
from reelign.metrics.statistics import Paired, paired_delta
from reelign.video_io import replacing

TRAINED = "trained_reward"
REWARD = "reward/"
HELD_OUT = "held_out/"
HACKING = "Reward hacking"
PAIR = ["prompt", "seed"]
FEW = 20  # prompts below which a bootstrap interval is visibly too narrow
STATUS_KEYS = {"finished", "steps", "seconds", "peak_memory_mb", "stopped"}


@dataclass(frozen=True)
class ClipPair:
    """The saved clips of one prompt and seed, before and after training."""

    index: int
    prompt: str
    seed: int
    before: Path
    after: Path


def read_text(path: Path) -> str:
    """The text of one file of a run folder, or a one-line error that names it."""
    if not path.is_file():
        raise DataError(f"a report needs {path}, which does not exist: give the folder of a finished run")
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object from a file of a run folder."""
    return _json_object(read_text(path), str(path))


def read_status(run: Path) -> dict[str, Any]:
    """``status.json``, with all its keys."""
    status = read_json(run / "status.json")
    if missing := sorted(STATUS_KEYS - set(status)):
        raise DataError(f"{run / 'status.json'} lacks {', '.join(missing)}: resume the run so that it is written again")
    return status


def read_training(run: Path) -> pd.DataFrame:
    """``metrics.jsonl`` as a table, one row a step; quantities that a step did not log are NaN."""
    path = run / "metrics.jsonl"
    whole = read_text(path).split("\n")[:-1]  # a kill may have cut off the last line
    rows = [_json_object(line, f"{path}, line {n},") for n, line in enumerate(whole, 1) if line.strip()]
    if not rows or any("step" not in row for row in rows):
        raise DataError(
            f"{path} holds one object with a 'step' per line; got {len(rows)} objects, some without: resume the run"
        )
    return pd.DataFrame(rows)


def read_samples(run: Path) -> dict[int, pd.DataFrame]:
    """The scores of every ``samples/step_*`` folder, by step, ascending.

    Raises:
        DataError: there is no step 0, or nothing after it, so there is no before or no after.
    """
    folder = run / "samples"
    found = {int(match[1]): path for path in folder.glob("step_*") if (match := re.fullmatch(r"step_(\d+)", path.name))}
    if 0 not in found or len(found) < 2:
        got = ", ".join(found[step].name for step in sorted(found)) or "none"
        raise DataError(
            f"a report compares {folder}/step_000000 with a later step; got {got}: run or resume the training"
        )
    return {step: _read_scores(found[step] / "scores.csv") for step in sorted(found)}


def pair_samples(samples: Mapping[int, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """First and last table of ``samples`` with the same columns and rows, in the order of the first one's ``index``.

    Raises:
        DataError: the two do not hold the same measures for the same (prompt, seed) pairs.
    """
    first, last = samples[min(samples)], samples[max(samples)]
    names = f"steps {min(samples)} and {max(samples)}"
    if set(measures(first)) != set(measures(last)):
        differing = ", ".join(sorted(set(measures(first)) ^ set(measures(last))))
        raise DataError(f"{names} must have the same measures; {differing} is in one of them only: evaluate both alike")
    before, after = (table.set_index(PAIR, drop=False) for table in (first.sort_values("index"), last))
    if lonely := sorted(set(before.index) ^ set(after.index)):
        prompt, seed = lonely[0]
        raise DataError(
            f"{names} must hold the same (prompt, seed) pairs; {len(lonely)} are in one of them only, "
            f"first {prompt!r} with seed {seed}: evaluate both alike"
        )
    after = after.loc[before.index]
    return before.reset_index(drop=True), after.reset_index(drop=True)


def clip_pairs(run: Path) -> list[ClipPair]:
    """Every prompt whose clip was saved both before and after, in the order of the index."""
    samples = read_samples(run)
    folders = [run / "samples" / f"step_{step:06d}" for step in (min(samples), max(samples))]
    before, after = pair_samples(samples)
    pairs = []
    for row, other in zip(before.itertuples(), after.itertuples(), strict=True):
        if row.file and other.file:
            files = [_clip(folder, name) for folder, name in zip(folders, (row.file, other.file), strict=True)]
            pairs.append(ClipPair(int(row.index), row.prompt, int(row.seed), *files))
    return pairs


def measures(table: pd.DataFrame) -> list[str]:
    """The columns of a score table that hold a measure: the trained reward, the rewards, the held-out measures."""
    return [name for name in table.columns if name == TRAINED or name.startswith((REWARD, HELD_OUT))]


def summarise(run: Path) -> dict[str, Any]:
    """Compare before with after and write ``summary.json`` to the run folder; returns what it wrote.

    Raises:
        DataError: a file is missing or wrong, or before and after do not hold the same (prompt, seed) pairs.
    """
    run = Path(run)
    status, samples = read_status(run), read_samples(run)
    before, after = pair_samples(samples)
    compared = compare(before, after)
    sets = {path.name: compare(*pair_samples(read_samples(path))) for path in sorted((run / "prompt_sets").glob("*"))}
    summary = {
        **in_groups(compared),
        **({"prompt_sets": {name: in_groups(other) for name, other in sets.items()}} if sets else {}),
        "prompts": compared[TRAINED].n,
        "clips": len(before),
        "steps": status["steps"],
        "seconds": status["seconds"],
        "peak_memory_mb": status["peak_memory_mb"],
        "warnings": _warnings(compared, status, max(samples)),
    }
    with replacing(run / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


def compare(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, Paired]:
    """Every measure of two paired tables, over prompts."""
    means = [table.groupby("prompt", sort=False)[measures(before)].mean() for table in (before, after)]
    return {name: paired_delta(means[0][name], means[1][name]) for name in measures(before)}


def in_groups(compared: Mapping[str, Paired]) -> dict[str, Any]:
    """Comparisons as ``summary.json`` has them: the trained reward, the rewards, the held-out measures."""
    groups: dict[str, Any] = {TRAINED: asdict(compared[TRAINED])}
    for group, prefix in (("rewards", REWARD), ("held_out", HELD_OUT)):
        groups[group] = {n.removeprefix(prefix): asdict(c) for n, c in compared.items() if n.startswith(prefix)}
    return groups


def label(name: str) -> str:
    """A measure's column name in words: ``held_out/colour_accuracy`` is ``colour accuracy``."""
    return name.removeprefix(REWARD).removeprefix(HELD_OUT).replace("_", " ").strip()


def is_accuracy(name: str) -> bool:
    """Whether a measure is a share, shown in percent and points."""
    return name.endswith("_accuracy")


def show(name: str, number: float, decimals: int = 0) -> str:
    """A value of a measure: percent for accuracies, else three significant digits."""
    return f"{100 * number:.{decimals}f}\N{NO-BREAK SPACE}%" if is_accuracy(name) else _digits(number)


def show_change(name: str, number: float, decimals: int = 0) -> str:
    """A change of a measure with its sign, without unit: points for accuracies, else three significant digits."""
    text = f"{100 * number:.{decimals}f}" if is_accuracy(name) else _digits(number)
    bare = text.lstrip("-\N{MINUS SIGN}")
    if not bare.strip("0."):
        return bare
    return ("+" if number > 0 else "\N{MINUS SIGN}") + bare


def show_delta(name: str, number: float, decimals: int = 0) -> str:
    """``show_change`` with its unit, ``points`` for accuracies and none for others."""
    text = show_change(name, number, decimals)
    return text + (" points" if is_accuracy(name) else "")


def show_interval(name: str, ci95: tuple[float, float], decimals: int = 0) -> str:
    """The two ends of an interval of a change, for example ``+9 … +24``."""
    return "\N{NO-BREAK SPACE}…\N{NO-BREAK SPACE}".join(show_change(name, end, decimals) for end in ci95)


def describe(name: str, change: Mapping[str, Any]) -> str:
    """A comparison in words: ``from 71 % to 88 % (+17 points, 95 % interval +9 … +24)``."""
    values = f"from {show(name, change['before'])} to {show(name, change['after'])}"
    delta, interval = show_delta(name, change["delta"]), show_interval(name, change["ci95"])
    return f"{values} ({delta}, 95\N{NO-BREAK SPACE}% interval {interval})"


def _digits(number: float) -> str:
    """Three significant digits, without an exponent between 0.001 and a million."""
    rounded = float(f"{number:.3g}")
    text = f"{rounded:,.0f}" if rounded == 0 or 1e3 <= abs(rounded) < 1e6 else f"{rounded:#.3g}".rstrip(".")
    return text.replace("-", "\N{MINUS SIGN}").replace(",", "\N{NARROW NO-BREAK SPACE}")


def _warnings(compared: Mapping[str, Paired], status: Mapping[str, Any], last_step: int) -> list[str]:
    """Plain sentences on what a reader must know before believing the numbers."""
    warnings = _hacking(compared)
    if not any(name.startswith(HELD_OUT) for name in compared):
        warnings.append("No held-out measure was taken: a higher trained reward alone does not show better videos.")
    if not status["finished"]:
        warnings.append(f"The run did not finish: {status['stopped'] or 'it was interrupted'}.")
    elif status["stopped"]:
        warnings.append(f"The run was stopped: {status['stopped']}.")
    if last_step != status["steps"]:
        warnings.append(f"The last samples are from step {last_step}, but the run has {status['steps']} steps.")
    if (n := compared[TRAINED].n) < FEW:
        warnings.append(f"Only {n} prompts: intervals from fewer than {FEW} are too narrow to trust.")
    return warnings


def _hacking(compared: Mapping[str, Paired]) -> list[str]:
    """One sentence for every held-out measure that clearly fell while the trained reward clearly rose."""
    trained = compared[TRAINED]
    if trained.ci95[0] <= 0:
        return []
    rise = f"the trained reward rose {describe(TRAINED, asdict(trained))}"
    return [
        f"{HACKING}: {rise}, while held-out {label(name)} fell {describe(name, asdict(c))}."
        for name, c in compared.items()
        if name.startswith(HELD_OUT) and c.ci95[1] < 0
    ]


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} must be a JSON object; got {text[:40]!r} ({error.msg}): mend or remove it") from None
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a JSON object; got {text[:40]!r}: mend or remove it")
    return value


def _read_scores(path: Path) -> pd.DataFrame:
    read_text(path)
    try:
        table = pd.read_csv(path, dtype={"prompt": str, "file": str}, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path} must be a CSV table; got a file pandas refuses ({error}): evaluate again") from None
    if missing := [name for name in ("index", *PAIR, "file", TRAINED) if name not in table]:
        raise DataError(
            f"{path} lacks the column {', '.join(missing)}; it has {', '.join(table.columns)}: evaluate again"
        )
    for name in ("index", "seed", *measures(table)):
        table[name] = pd.to_numeric(table[name], errors="coerce")
        if not table[name].map(lambda x: abs(x) < float("inf")).all():
            raise DataError(
                f"{path}, column {name}, holds finite numbers; got an empty or other cell: score that clip again"
            )
    if table.duplicated(PAIR).any():
        prompt, seed = table.loc[table.duplicated(PAIR), PAIR].iloc[0]
        raise DataError(f"{path} has each (prompt, seed) once; got {prompt!r} with seed {seed} twice: remove one row")
    return table


def _clip(folder: Path, name: str) -> Path:
    """A clip of a samples folder; a name that points elsewhere is refused, because reports embed what it points to."""
    if Path(name).name != name:
        raise DataError(f"a clip lies in {folder} itself; got file {name!r}: mend scores.csv")
    if not (folder / name).is_file():
        raise DataError(f"scores.csv names {folder / name}, which does not exist: restore it or empty the cell")
    return folder / name
