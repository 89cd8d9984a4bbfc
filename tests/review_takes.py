"""A small takes folder with real clips, for tests of the review page."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd
import torch

from reelign.selection.takes import SCORE_COLUMNS, TakesFolder
from reelign.video_io import write_clip

PROMPTS = ("a red square moves right", "<script>document.title = 'owned'</script> & \"quotes\"", "")


def make_takes(path: Path, per_group: int = 4, frames: int = 12, size: int = 64) -> TakesFolder:
    """Three groups of squares that move at different speeds, two generators, one score that is sometimes undefined."""
    folder = TakesFolder(path, create=True)
    takes, scores = [], []
    for group, prompt in enumerate(PROMPTS):
        for index in range(per_group):
            file = f"clips/{group}/{index}.mp4"
            write_clip(path / file, square(frames, size, group, index), 8)
            take = hashlib.sha256((path / file).read_bytes()).hexdigest()
            generator = ("alpha", "beta")[index % 2]
            takes.append((take, file, prompt, f"group {group}", generator, 100 * group + index))
            ok = index > 0
            status, reason = ("ok", "") if ok else ("undefined", "it has no motion to speak of")
            score = {"take": take, "metric": "motion", "version": 1, "parameters": "", "prompt": ""}
            value = float(group * 10 + index) if ok else float("nan")
            scores.append(score | {"value": value, "status": status, "reason": reason})
    folder.append_takes(pd.DataFrame(takes, columns=["take", "file", "prompt", "group", "generator", "seed"]))
    folder.append_scores(pd.DataFrame(scores)[list(SCORE_COLUMNS)])
    return folder


def square(frames: int, size: int, colour: int, speed: int) -> torch.Tensor:
    """A square that moves ``speed`` pixels a frame."""
    video = torch.full((frames, 3, size, size), 0.15)
    for t in range(frames):
        x = (4 + speed * t) % (size - 20)
        video[t, colour % 3, size // 3 : size // 3 + 16, x : x + 16] = 0.9
    return video
