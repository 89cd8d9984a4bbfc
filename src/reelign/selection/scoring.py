"""Score every clip of a folder with any rewards: one row a clip, whatever state the clip is in.

A row has ``file`` (relative to the folder), ``status``, ``reason`` and one column a reward. ``ok`` means that every
reward gave a value; ``reason`` is then empty, or says what was special ("only the first 256 of 300 frames were read").
Otherwise the status is ``error``, the reason says why, and what could not be scored is NaN: never a zero, and never the
end of the run.

Each clip is decoded once, at its own size, and given to every reward. A reward made for a fixed number of frames (its
card's ``frames``) gets that many, at round(linspace(0, T − 1, frames)): a longer clip is thinned evenly, a shorter one
repeats frames evenly, and ``fps`` is that of the frames chosen.

Run: ``reelign score takes/ --rewards brightness_range --out scores.parquet``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from reelign.contracts import Request, Reward, VideoBatch
from reelign.datasets.video_folder import captions
from reelign.errors import ConfigError, ContractError, DataError, NonFiniteError, ReelignError, RunFolderError
from reelign.video_io import CLIP_SUFFIXES, Clip, find_clips, read_clip, replacing

MAX_FRAMES = 256  # of 1280×720 these are 2.8 GB
COLUMNS = ("file", "status", "reason")
NO_PROMPT = "(no prompt)"  # a request must have one; only rewards that never look at it get this
# What a clip can do to a reward: too small for its kernel, too large for the memory. Anything else is a bug in the
# reward, which would repeat on every clip, and keeps its traceback.
CLIP_FAULTS = (ReelignError, RuntimeError, ValueError, MemoryError)


def score_folder(
    folder: str | Path,
    rewards: Mapping[str, Reward],
    prompts: Mapping[str, str] | None = None,
    max_frames: int = MAX_FRAMES,
    strict: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Score every clip in ``folder`` and below.

    Args:
        folder: where the clips are.
        rewards: what to score with, by column name.
        prompts: clip relative to ``folder`` to prompt; None reads the tables beside the clips.
        max_frames: at most this many frames of a clip, from its start; bounds the memory.
        strict: whether a damaged clip is an error; if not, what decodes is scored, with the damage as reason.
        progress: called with clips done and clips in all, first with 0.

    Returns:
        One row a clip, sorted by file: ``file``, ``status`` (``ok`` or ``error``), ``reason``, and one float a reward.

    Raises:
        DataError: no such folder, no clip in it, or its caption tables cannot be read.
        ConfigError: no reward, or one named like another column.
    """
    folder = Path(folder)
    if not rewards or set(rewards) & set(COLUMNS):
        raise ConfigError(f"scoring needs rewards, not named {', '.join(COLUMNS)}; got {', '.join(rewards) or 'none'}")
    clips = find_clips(folder)
    if not clips:
        raise DataError(f"a folder to score holds clips ({', '.join(CLIP_SUFFIXES)}); {folder} has none")
    prompts = captions(folder) if prompts is None else prompts
    report = progress or (lambda done, total: None)
    report(0, len(clips))
    rows = []
    for done, path in enumerate(clips, 1):
        name = path.relative_to(folder).as_posix()
        values, reasons, failed = _score_clip(path, rewards, prompts.get(name), max_frames, strict)
        rows.append({"file": name, "status": "error" if failed else "ok", "reason": "; ".join(reasons), **values})
        report(done, len(clips))
    return pd.DataFrame(rows, columns=[*COLUMNS, *rewards])


def choose_frames(clip: Clip, frames: int) -> Clip:
    """``frames`` frames at round(linspace(0, T − 1, frames)), and the rate they are then shown at.

    Args:
        clip: T frames, any T; where T is below ``frames``, frames repeat evenly.
        frames: how many, at least 1.
    """
    length = len(clip.video)
    if length == frames:
        return clip
    index = torch.linspace(0, length - 1, frames, dtype=torch.float64).round().long()
    # First and last frame stay, so it is the gaps that stretch, not the frames.
    share = (frames - 1) / (length - 1) if min(frames, length) > 1 else frames / length
    return Clip(clip.video[index], clip.fps * share, clip.notes)


def check_writable(path: str | Path) -> None:
    """Make the folder of ``path`` and make sure that a table can be written there, before hours of work.

    Raises:
        RunFolderError: it cannot.
    """
    for table in _tables(path):
        if table.is_dir():
            raise RunFolderError(f"a table of scores is a file; {table} is a folder: choose another name")
        probe = table.with_name(f".{table.name}.probe")
        with replacing(probe) as part:
            part.touch()
        probe.unlink()


def write_scores(frame: pd.DataFrame, path: str | Path) -> tuple[Path, Path]:
    """Write the table as Parquet, and as CSV next to it; both appear only when both are complete.

    Args:
        frame: what ``score_folder`` gave.
        path: with or without ``.parquet`` or ``.csv``; a table that is there is replaced.

    Returns:
        The two paths, Parquet first.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    parquet, table = _tables(path)
    with replacing(parquet) as parquet_part, replacing(table) as table_part:
        frame.to_parquet(parquet_part, index=False)
        frame.to_csv(table_part, index=False)
    return parquet, table


def _tables(path: str | Path) -> tuple[Path, Path]:
    path = Path(path)
    stem = path.stem if path.suffix in (".parquet", ".csv") else path.name
    return path.with_name(f"{stem}.parquet"), path.with_name(f"{stem}.csv")


def _score_clip(
    path: Path, rewards: Mapping[str, Reward], prompt: str | None, max_frames: int, strict: bool
) -> tuple[dict[str, float], list[str], bool]:
    """A value a reward, the reasons, and whether anything is missing."""
    values = dict.fromkeys(rewards, math.nan)
    try:
        clip = read_clip(path, max_frames, strict=strict)
    except CLIP_FAULTS as error:
        return values, [_one_line(error).removeprefix(f"{path}: ")], True
    reasons = list(clip.notes)
    for name, reward in rewards.items():
        try:
            values[name] = _score(reward, clip, prompt)
        except CLIP_FAULTS as error:
            reasons.append(f"{name}: {_one_line(error)}")
    return values, reasons, any(math.isnan(value) for value in values.values())


def _score(reward: Reward, clip: Clip, prompt: str | None) -> float:
    card = reward.card
    if card.needs_prompt and not prompt:
        raise DataError("needs a prompt, and this clip has none; add it to metadata.csv")
    chosen = clip if card.frames == "any" else choose_frames(clip, card.frames)
    with torch.no_grad():
        score: Tensor = reward(VideoBatch(chosen.video[None], chosen.fps, Request((prompt or NO_PROMPT,))))
    if not isinstance(score, Tensor) or score.shape != (1,):
        shape = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
        raise ContractError(f"a reward gives one score a clip, shape (1,); got {shape}")
    value = score.item()
    if not math.isfinite(value):
        raise NonFiniteError(f"a score is a finite number; got {value}")
    return value


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ReelignError) else f"{type(error).__name__}: {text}"
