r"""From a table of takes to winners: who competes, who wins each group, how sure that is, and the folder they go into.

Takes compete within their ``group``, an explicit column: names of files are never parsed. Takes that were rejected, and
those a judge cannot look at because all its columns are missing, are left out, each with its reason; a group in which
nobody is left, or whose winner is not sure enough, is reported and has no winner.

    OUT/0000-<group>-<hash>.mp4   the clips, hard links where the disk allows it
    OUT/metadata.csv              file_name and text of every clip: a videofolder, which training reads
    OUT/winners.parquet, .csv     COLUMNS
    OUT/left_out.csv              group, take, reason

Left out: choosing across groups: strengths of different groups are on different scales.

Run: ``reelign select TAKES --columns "clip=1,motion_smoothness=0.5" --out winners/``.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from reelign.checkpoint import digest
from reelign.datasets.video_folder import write_metadata
from reelign.errors import DataError, RunFolderError
from reelign.selection.diversity import diverse, standard_features
from reelign.selection.tournament import Standing

COLUMNS = (
    "group",
    "rank",
    "take",
    "file",
    "prompt",
    "score",
    "confidence",
    "runner_up",
    "runner_up_file",
    "beats_runner_up",
    "comparisons",
    "note",
)
LEFT_OUT = ("group", "take", "reason")
CLOSE, ONLY = "too close to call", "only take of its group"
GONE, CHANGED = "no clip: the file is not there", "no clip: the file changed since it was scored"
TABLE = "winners.parquet"
LONGEST_NAME = 60  # characters of a group in a file name


class WinnerOptions(BaseModel):
    """Who counts as a winner.

    Args:
        per_group: winners of each group, at most.
        min_confidence: a winner is among the best ``per_group`` of its group with at least this probability.
        close: below this probability of being better than the runner-up a winner is too close to call.
        diverse: columns in which several winners of one group should differ; none chooses the best alone.
        alpha: how much strength counts against difference; see ``reelign.selection.diversity``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_group: int = Field(1, ge=1)
    min_confidence: float = Field(0.0, ge=0, le=1)
    close: float = Field(0.6, ge=0.5, le=1)
    diverse: tuple[str, ...] = ()
    alpha: float = Field(1.0, gt=0)


@dataclass(frozen=True)
class Selection:
    """What was selected.

    Args:
        winners: ``COLUMNS``, sorted by group and rank. ``score`` is the strength within the group in logits,
            ``confidence`` the probability of being among the best ``per_group``, ``runner_up`` the best take that did
            not win, ``note`` empty or what a person should look at.
        left_out: ``LEFT_OUT``: takes that did not compete, and groups without a winner (``take`` is empty).
    """

    winners: pd.DataFrame
    left_out: pd.DataFrame

    @property
    def without_winner(self) -> list[str]:
        """Groups that have no winner."""
        return sorted(set(self.left_out["group"]) - set(self.winners["group"]))


def candidates(
    wide: pd.DataFrame, rejected: pd.DataFrame | None, columns: tuple[str, ...]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Takes that compete, and those that don't with the reason.

    Args:
        wide: take, group, and score columns.
        rejected: take and reason (and gate), one row a reason; None rejects nothing.
        columns: what the judge looks at; a take that has none of them cannot be judged.

    Returns:
        Rows of ``wide``, and ``LEFT_OUT``.
    """
    reasons = pd.Series("", wide.index)
    if columns:
        missing = [name for name in columns if name not in wide]
        if missing:
            raise DataError(f"a judge looks at scores of the takes; {missing[0]!r} was not computed: score it first")
        unseen = wide[list(columns)].isna().all(axis=1)
        reasons[unseen] = f"not judged: no value of {', '.join(columns)}"
    if rejected is not None:
        why = _reasons(rejected)
        refused = wide["take"].isin(why.index)
        reasons[refused] = "rejected: " + wide.loc[refused, "take"].map(why).astype(str)
    out = reasons != ""
    left_out = wide[out][["group", "take"]].assign(reason=reasons[out])
    return wide[~out], left_out[list(LEFT_OUT)].reset_index(drop=True)


def _reasons(rejected: pd.DataFrame) -> pd.Series:
    if missing := {"take", "reason"} - set(rejected.columns):
        raise DataError(f"a table of rejections has columns take and reason; {', '.join(sorted(missing))} is missing")
    words = rejected["reason"].astype(str)
    if "gate" in rejected:
        words = rejected["gate"].astype(str) + ": " + words
    return words.groupby(rejected["take"]).agg(lambda several: "; ".join(dict.fromkeys(several)))


def select_winners(
    wide: pd.DataFrame,
    standings: Mapping[str, Standing],
    options: WinnerOptions | None = None,
    left_out: pd.DataFrame | None = None,
) -> Selection:
    """The winners of groups that have been played.

    Args:
        wide: the takes that competed: take, group, file, prompt, and the columns of ``options.diverse``.
        standings: by group, of ``reelign.selection.tournament``.
        options: see there.
        left_out: takes that did not compete, as ``candidates`` gave them.
    """
    options = options or WinnerOptions()
    rows: list[dict[str, object]] = []
    out = [] if left_out is None else left_out.to_dict("records")
    table = wide.sort_values(["group", "take", "file"]).drop_duplicates(["group", "take"])
    for group, members in table.groupby("group"):
        standing = standings[str(group)]
        chosen = _winners_of(standing, members, options)
        rows += [row for row in chosen if float(str(row["confidence"])) >= options.min_confidence]
        if unsure := [row for row in chosen if float(str(row["confidence"])) < options.min_confidence]:
            sure = f"{unsure[0]['confidence']:.2f} sure, below {options.min_confidence:.2f}"
            reason = f"no winner: the best is {sure}: compare its takes in a review"
            take = "" if len(unsure) == len(chosen) else unsure[0]["take"]
            out.append({"group": group, "take": take, "reason": reason if not take else f"a winner only {sure}"})
    out += _empty_groups(out, set(table["group"]))
    winners = pd.DataFrame(rows, columns=list(COLUMNS))
    return Selection(winners, pd.DataFrame(out, columns=list(LEFT_OUT)).sort_values(["group", "take"], kind="stable"))


def _winners_of(standing: Standing, members: pd.DataFrame, options: WinnerOptions) -> list[dict[str, object]]:
    members = members.set_index("take").loc[list(standing.takes)]
    order, k = list(standing.order), min(options.per_group, len(standing.takes))
    if options.diverse and k > 1:
        features = standard_features(members, list(options.diverse))
        # Earlier in the order is better even where a bracket, not a strength, said so.
        ranked = sorted(standing.strengths.theta, reverse=True)
        quality = pd.Series(ranked, order).sort_index().to_numpy()
        chosen = diverse(quality, features, k, options.alpha)
    else:
        chosen = order[:k]
    confidence = standing.confidence(k)
    rest = [i for i in order if i not in chosen]
    rows = []
    for rank, i in enumerate(chosen, 1):
        beats = standing.beats(i, rest[0]) if rest else float("nan")
        note = ONLY if len(order) == 1 else CLOSE if rest and beats < options.close else ""
        second = standing.takes[rest[0]] if rest else ""
        row = members.loc[standing.takes[i]]
        values = (
            *(row["group"], rank, standing.takes[i], row["file"], row.get("prompt", "")),
            *(float(standing.strengths.theta[i]), float(confidence[i]), second),
            *(members.loc[second, "file"] if second else "", beats, standing.comparisons, note),
        )
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def _empty_groups(out: list[dict[str, object]], playing: set[object]) -> list[dict[str, object]]:
    """A row for every group none of whose takes competed."""
    empty: dict[object, int] = {}
    for row in out:
        if row["group"] not in playing:
            empty[row["group"]] = empty.get(row["group"], 0) + 1
    return [
        {"group": group, "take": "", "reason": f"no winner: none of its {count} takes could compete"}
        for group, count in empty.items()
    ]


def write_winners(selection: Selection, locate: Callable[[str], Path], out: str | Path, copy: bool = False) -> Path:
    """Write the folder of winners, whole or not at all; an earlier one of ours is replaced.

    Args:
        selection: what to write.
        locate: from ``file`` to the clip.
        out: the folder.
        copy: copy clips even where a hard link would do.

    Returns:
        ``out``. Its tables have one more column, ``clip``: the name in the folder, empty where the file is gone or is
        no longer the take that was judged; ``note`` says which.

    Raises:
        RunFolderError: ``out`` holds something else, or cannot be written.
    """
    out = Path(out)
    if out.exists() and not (out / TABLE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"winners go into a new folder, or replace earlier winners; {out} holds something else")
    part, old = (out.with_name(f".{out.name}.{os.getpid()}.{word}") for word in ("part", "old"))
    try:
        part.mkdir(parents=True)
        _fill(part, selection, locate, copy)
        if out.exists():
            out.rename(old)
        part.rename(out)
    except OSError as error:
        raise RunFolderError(f"cannot write {out}: {error.strerror or error}; choose a folder you may write") from error
    finally:
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)
    return out


def _fill(part: Path, selection: Selection, locate: Callable[[str], Path], copy: bool) -> None:
    names, notes = [], []
    for number, row in enumerate(selection.winners.to_dict("records")):
        source = locate(row["file"])
        trouble = GONE if not source.is_file() else CHANGED if digest(source) != row["take"] else ""
        names.append(
            "" if trouble else f"{number:04d}-{safe_name(row['group'])}-{row['take'][:8]}{source.suffix.lower()}"
        )
        notes.append("; ".join(filter(None, (row["note"], trouble))))
        if not trouble:
            _place(source, part / names[-1], copy)
    winners = selection.winners.assign(clip=names, note=notes)
    winners.to_parquet(part / TABLE, index=False)
    winners.to_csv((part / TABLE).with_suffix(".csv"), index=False)
    selection.left_out.to_csv(part / "left_out.csv", index=False)
    there = winners[winners["clip"] != ""].rename(columns={"clip": "file_name", "prompt": "text"})
    if len(there):
        kept = ["file_name", "text", "group", "rank", "take", "score", "confidence", "note"]
        write_metadata(part, there[kept].to_dict("records"))


def safe_name(group: str) -> str:
    """A group as part of a file name: letters, digits, dash and underscore; never empty, never a path."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", str(group)).strip("_-")[:LONGEST_NAME] or "group"


def _place(source: Path, target: Path, copy: bool) -> None:
    source = source.resolve()
    if not copy:
        try:
            os.link(source, target)
        except OSError:  # another disk, or a file system without links
            copy = True
    if copy:
        shutil.copyfile(source, target)
