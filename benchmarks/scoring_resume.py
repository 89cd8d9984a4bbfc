"""Two thousand clips, killed half-way: what is there stays as it is, and nothing is computed twice.

Writes ``benchmarks/results/scoring_resume.json``: clips, rows kept by the kill, clips scored after it, rows that a
second computation would have doubled, and whether the table equals that of a run that nobody killed.

Run: ``python benchmarks/scoring_resume.py`` (a few minutes).
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from reelign.build import MetricSpec, build_scorers
from reelign.selection.executors import executor
from reelign.selection.scoring import score_takes
from reelign.selection.takes import TakesFolder
from reelign.selection.takes_import import import_takes
from reelign.video_io import write_clip

RESULTS = Path(__file__).parent / "results" / "scoring_resume.json"
METRICS = ("facts", "temporal_flickering", "sharpness", "freezes")


def make_clips(folder: Path, count: int) -> None:
    """Small clips, all different: a bright square at a place and of a size of its own."""
    for number in range(count):
        video = torch.full((4, 3, 32, 32), 0.1 + 0.4 * (number % 7) / 7)
        row, column = divmod(number // 7, 24)
        video[:, number % 3, row % 24 : row % 24 + 8, column : column + 8] = 0.9 - 0.2 * (number // 576) / 4
        video[1:, :, 28:, number % 28] += 0.1
        write_clip(folder / f"{number:05d}.mp4", video.clamp(0, 1), 8)


def score(source: Path, takes: Path) -> int:
    """Score what is missing, in a pool of two; returns how many clips that were."""
    specs = [MetricSpec("metric", name) for name in METRICS]
    return score_takes(import_takes(takes, source), partial(build_scorers, specs), executor("pool", 2))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--clips", type=int, default=2000)
    options.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.worker:
        print(score(*chosen.worker))
        return
    with tempfile.TemporaryDirectory() as place:
        source, killed, whole = (Path(place) / name for name in ("clips", "killed", "whole"))
        make_clips(source, chosen.clips)
        unique = import_takes(killed, source).takes()["take"].nunique()
        command = [sys.executable, __file__, "--worker", str(source), str(killed)]
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        while kept(killed) < unique // 2 and run.poll() is None:
            time.sleep(0.05)
        subprocess.run(["kill", "-KILL", "--", f"-{run.pid}"], check=True)
        run.wait()
        assert run.returncode == -signal.SIGKILL
        before = {path.name: path.read_bytes() for path in (killed / "scores.parquet").glob("part-*")}
        at_kill = kept(killed)
        again = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        unchanged = all((killed / "scores.parquet" / name).read_bytes() == data for name, data in before.items())
        score(source, whole)
        scores, expected = TakesFolder(killed).scores(), TakesFolder(whole).scores()
        result = {
            "clips": chosen.clips,
            "different_clips": unique,
            "clips_kept_by_the_kill": at_kill,
            "clips_scored_after_it": again,
            "parts_unchanged": unchanged,
            "rows": len(scores),
            "rows_computed_twice": int(scores.duplicated(["take", "metric"]).sum()),
            "equal_to_a_run_nobody_killed": scores.equals(expected),
        }
    assert at_kill + again == unique
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def kept(takes: Path) -> int:
    """Clips that have scores on disk."""
    return int(TakesFolder(takes).scores()["take"].nunique())


if __name__ == "__main__":
    main()
