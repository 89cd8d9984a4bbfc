"""Scoring speed without weights: ``reelign``'s one pass against the same numbers from scikit-image and torchmetrics.

Three sets: ``plain`` (pictures only), ``flow`` (metrics on optical flow), ``reference`` (PSNR and SSIM of a pair). The
other side is what one writes with those libraries (``scoring_speed_baseline.py``): each metric loads the clip with PyAV
and works on whole clips. ``decoded once`` takes off what it spends on loading in all metrics but the first, so that
what sharing the decoder brings is told from what the code brings. One thread, one process, in turns, medians; peaks of
memory (Linux) in processes of their own, above what their imports and four frames take.

The same numbers are asserted first, on the same frames. ``reelign`` decodes with exact rounding of colours, which is
slower than PyAV's default, and pays for it here.

Run: ``python benchmarks/scoring_speed.py`` (some minutes), needs scikit-image and torchmetrics; with ``--memory`` it
measures only the peaks anew, into the results that are there.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import scoring_speed_baseline as baseline
import skimage
import torch
import torchmetrics
from rich.console import Console
from rich.table import Table

from reelign.metrics import consistency, drift, dynamics, flicker, integrity, picture_quality, smoothness
from reelign.metrics.clip import ClipMetric, Undefined, measure
from reelign.metrics.full_reference import compare
from reelign.video_decode import FrameStream
from reelign.video_io import write_clip

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
CLIPS = (DATA / "clips" / "fastvideo_wan21_lora_cartoon.mp4", DATA / "reference_scores" / "fastvideo_ltx2.mp4")
RESULTS = ROOT / "benchmarks" / "results" / "scoring_speed.json"
GOAL = 3.0
FPS = 16.0  # the same for both sides; it only sets which frames dynamic degree samples
PLAIN: list[ClipMetric] = [
    flicker.TemporalFlickering(), consistency.HistogramConsistency(), picture_quality.Sharpness(),
    picture_quality.Blur(), picture_quality.Blockiness(), picture_quality.Exposure(), picture_quality.Clipping(),
    picture_quality.Colourfulness(), integrity.Freezes(), drift.ColourSteadiness(),
]  # fmt: skip
FLOW: list[ClipMetric] = [
    flicker.MotionCompensatedFlicker(), smoothness.MotionSmoothness(), dynamics.DynamicDegree(), integrity.Cuts(),
]  # fmt: skip
# How far the same number may be off: 8-bit roundings of resizing, 1/32 pixel in OpenCV's warping, the outermost pixel
# of the Laplacian. Columns not named here: 1e-4.
TOLERANCE = {
    "sharpness": 0.02, "brightness": 1e-3, "contrast": 1e-3, "colourfulness": 1e-3, "flicker_peak": 0.01,
    "brightness_flicker": 0.01, "colour_jump": 0.01, "colour_drift": 0.01,
    "motion_compensated_flicker": 0.05, "motion_smoothness": 2e-4, "motion_px": 0.15, "cut_score": 0.02,
    "psnr_frame_mean": 1e-6, "psnr_pooled": 1e-6, "ssim": 1e-4,
}  # fmt: skip


def ours(path: str, frames: int, metrics: list[ClipMetric]) -> dict[str, float]:
    return solid(measure(FrameStream(path, frames), FPS, metrics))


def our_pair(reference: str, path: str, frames: int) -> dict[str, float]:
    return solid(compare(FrameStream(reference, frames), FrameStream(path, frames)))


def solid(found: dict[str, float | Undefined]) -> dict[str, float]:
    assert not any(isinstance(value, Undefined) for value in found.values()), found
    return found  # type: ignore[return-value]


def theirs(path: str, frames: int, metrics: tuple[baseline.Metric, ...]) -> dict[str, float]:
    return {name: value for metric in metrics for name, value in metric(baseline.load(path, frames), FPS).items()}


def their_pair(reference: str, path: str, frames: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for metric in baseline.FULL_REFERENCE:
        found.update(metric(baseline.load(reference, frames), baseline.load(path, frames)))
    return found


def distorted(path: Path, frames: int, folder: Path) -> str:
    """A strongly compressed copy, for the pair."""
    video = torch.from_numpy(np.stack(list(FrameStream(path, frames)))).permute(0, 3, 1, 2).float() / 255
    write_clip(folder / path.name, video, FPS, crf=38)
    return str(folder / path.name)


def check_same(clips: list[tuple[str, str]], frames: int) -> dict[str, float]:
    """Largest difference of each column over the clips, on the very same frames.

    Raises:
        AssertionError: a column differs by more than its tolerance.
    """
    worst: dict[str, float] = {}
    for path, copy in clips:
        video, other = (np.stack(list(FrameStream(each, frames))) for each in (path, copy))
        pair = [metric(video, other) for metric in baseline.FULL_REFERENCE]
        found = [metric(video, FPS) for metric in (*baseline.PLAIN, *baseline.WITH_FLOW)]
        expected = {name: value for row in (*found, *pair) for name, value in row.items()}
        mine = {**ours(path, frames, PLAIN + FLOW), **our_pair(path, copy, frames)}
        assert set(mine) == set(expected)
        for name, value in expected.items():
            worst[name] = max(worst.get(name, 0.0), abs(mine[name] - value))
    wrong = {name: off for name, off in worst.items() if off > TOLERANCE.get(name, 1e-4)}
    assert not wrong, f"not the same numbers: {wrong}"
    return worst


def sides(path: str, copy: str, frames: int) -> dict[tuple[str, str], Callable[[], object]]:
    """Set and side to what is timed; ``loading`` is one pass of the libraries' side over the clip."""
    return {
        ("plain", "reelign"): lambda: ours(path, frames, PLAIN),
        ("plain", "libraries"): lambda: theirs(path, frames, baseline.PLAIN),
        ("flow", "reelign"): lambda: ours(path, frames, FLOW),
        ("flow", "libraries"): lambda: theirs(path, frames, baseline.WITH_FLOW),
        ("plain and flow", "reelign"): lambda: ours(path, frames, PLAIN + FLOW),
        ("reference", "reelign"): lambda: our_pair(path, copy, frames),
        ("reference", "libraries"): lambda: their_pair(path, copy, frames),
        ("loading", "libraries"): lambda: baseline.load(path, frames),
    }


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def times(path: str, copy: str, frames: int, repeats: int) -> list[dict[str, object]]:
    """A row a set and side: medians over the repeats, taken in turns."""
    chosen = sides(path, copy, frames)
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in chosen}
    for _, (key, run) in itertools.product(range(repeats), chosen.items()):
        taken[key].append(timed(run))
    rows = []
    for (group, side), seconds in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*seconds, strict=True))
        rows.append({"clip": Path(path).name, "set": group, "side": side, "wall_s": wall, "cpu_s": cpu})
    return rows


def peak_bytes(group: str, side: str, path: str, copy: str, frames: int) -> int:
    """Peak resident memory of a process of its own, above what it had after its imports."""
    command = [sys.executable, __file__, "--frames", str(frames), "--peak", group, side, path, copy]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak(group: str, side: str, path: str, copy: str, frames: int) -> int:
    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

    # What lazy imports and first calls take is not the clip's.
    sides(path, copy, 4)[group, side]()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    sides(path, copy, frames)[group, side]()
    return status("VmHWM") - before


PASSES = {"plain": len(baseline.PLAIN), "flow": len(baseline.WITH_FLOW), "reference": len(baseline.FULL_REFERENCE)}
PASSES["plain and flow"] = PASSES["plain"] + PASSES["flow"]  # times a clip is decoded by the libraries' side


def summary(rows: list[dict[str, object]], unit: str) -> dict[str, dict[str, float]]:
    """Seconds of both sides, all clips together, and their ratio with many decodes and with one, by set."""
    spent: dict[tuple[str, str], float] = {}
    for row in rows:
        key = (str(row["set"]), str(row["side"]))
        spent[key] = spent.get(key, 0.0) + float(row[unit])  # type: ignore[arg-type]
    spent["plain and flow", "libraries"] = spent["plain", "libraries"] + spent["flow", "libraries"]
    found = {}
    for group, count in PASSES.items():
        mine, other = spent[group, "reelign"], spent[group, "libraries"]
        clips = 2 if group == "reference" else 1
        once = other - (count - 1) * clips * spent["loading", "libraries"]
        found[group] = {
            "reelign": mine, "libraries": other, "libraries_decoded_once": once,
            "ratio": other / mine, "ratio_decoded_once": once / mine,
        }  # fmt: skip
    return found


def speeds(clips: list[tuple[str, str]], frames: int, repeats: int) -> dict[str, object]:
    """Everything but the memory."""
    worst = check_same(clips, frames)
    rows = [row for clip in clips for row in times(*clip, frames, repeats)]
    return {
        "frames": frames, "repeats": repeats, "clips": [path.name for path in CLIPS], "threads": 1,
        "versions": {
            "scikit-image": skimage.__version__, "torchmetrics": torchmetrics.__version__, "opencv": cv2.__version__,
            "numpy": np.__version__,
        },
        "processor_s": summary(rows, "cpu_s"), "wall_s": summary(rows, "wall_s"), "rows": rows,
        "passes": {"reelign": 1, "libraries": PASSES}, "largest_difference": worst, "tolerance": TOLERANCE,
    }  # fmt: skip


def show(result: dict[str, object], console: Console) -> None:
    table = Table(title=f"seconds of processor time, first {result['frames']} frames of each of two clips")
    for name in ("set", "reelign", "libraries", "ratio", "decoded once", "passes", "MB", "libraries' MB"):
        table.add_column(name, justify="left" if name == "set" else "right")
    for group, row in result["processor_s"].items():
        peaks = [f"{value / 1e6:.0f}" for value in result["peak_bytes"].get(group, {}).values()]
        times = (f"{row['reelign']:.2f}", f"{row['libraries']:.2f}", f"{row['ratio']:.1f}")
        table.add_row(group, *times, f"{row['ratio_decoded_once']:.1f}", f"1 / {PASSES[group]}", *peaks)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=24, help="of each clip, from its start")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--memory", action="store_true", help="only the peaks, into the results that are there")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    console = Console()
    if options.peak:
        group, side, path, copy = options.peak
        console.file.write(str(own_peak(group, side, path, copy, options.frames)))
        return
    with tempfile.TemporaryDirectory() as folder:
        clips = [(str(path), distorted(path, options.frames, Path(folder))) for path in CLIPS]
        result = (
            json.loads(options.out.read_text()) if options.memory else speeds(clips, options.frames, options.repeats)
        )
        result["peak_bytes"] = {
            group: {side: peak_bytes(group, side, *clips[1], options.frames) for side in ("reelign", "libraries")}
            for group in ("plain", "flow", "reference")
        }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    show(result, console)
    overall = result["processor_s"]["plain and flow"]["ratio"]
    console.print(f"the same {len(result['largest_difference'])} numbers on both sides, within their tolerances")
    console.print(f"all metrics: {overall:.1f} times as fast; the goal is {GOAL:.0f}")
    assert overall >= GOAL, f"{overall:.2f} is below {GOAL}"


if __name__ == "__main__":
    main()
