"""Clips side by side: a contact sheet of middle frames and a GIF, before training on the left, after it on the right.

Prompts are the first by index whose clips were saved both times, never the best; small clips are enlarged without
smoothing, so that what the model drew stays visible.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from reelign.errors import DataError
from reelign.report.summary import ClipPair, clip_pairs
from reelign.video_io import read_clip, write_gif

PAPER, INK, FAINT = (250, 249, 246), (28, 29, 31), (107, 104, 96)
GAP, MARGIN, LINE, FONT_SIZE = 4, 12, 18, 13  # pixels


def contact_sheet(run: Path, path: Path, prompts: int = 12, scale: int = 2, columns: int = 3) -> Path:
    """Save a PNG of the middle frames, one captioned before/after pair a prompt.

    Args:
        run: run folder.
        path: file to write, ``.png``.
        prompts: at most so many pairs.
        scale: whole factor by which frames are enlarged.
        columns: pairs next to each other.
    """
    pairs = _chosen(run, prompts, scale, columns)
    clips = [tuple(clip[len(clip) // 2][None] for clip in _frames(pair, scale)[0]) for pair in pairs]
    Image.fromarray(_grid(pairs, clips, columns)[0]).save(path)
    return Path(path)


def before_after_gif(run: Path, path: Path, prompts: int = 6, scale: int = 2, columns: int = 2) -> Path:
    """Save a GIF of captioned before/after pairs; a clip that ends first holds its last frame.

    Args:
        run: run folder.
        path: file to write, ``.gif``.
        prompts: at most so many pairs.
        scale: whole factor by which clips are enlarged.
        columns: pairs next to each other.
    """
    pairs = _chosen(run, prompts, scale, columns)
    read = [_frames(pair, scale) for pair in pairs]
    movie = _grid(pairs, [clips for clips, _ in read], columns)
    write_gif(Path(path), torch.from_numpy(movie).permute(0, 3, 1, 2).float() / 255, read[0][1])
    return Path(path)


def _chosen(run: Path, prompts: int, scale: int, columns: int) -> list[ClipPair]:
    if min(prompts, scale, columns) < 1:
        raise DataError(f"prompts, scale and columns are at least 1; got {prompts}, {scale} and {columns}")
    if not (pairs := clip_pairs(Path(run))[:prompts]):
        raise DataError(
            f"a grid needs prompts with a clip before and after; {run} saved none: evaluate with clips saved"
        )
    return pairs


def _frames(pair: ClipPair, scale: int) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """Both clips of a pair as uint8 [T,H,W,3], enlarged, and the frames per second of the first."""
    clips = [read_clip(file) for file in (pair.before, pair.after)]
    arrays = [(clip.video.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8) for clip in clips]
    before, after = (array.repeat(scale, axis=1).repeat(scale, axis=2) for array in arrays)
    return (before, after), clips[0].fps


def _grid(pairs: list[ClipPair], clips: list[tuple[np.ndarray, np.ndarray]], columns: int) -> np.ndarray:
    """Pairs of clips laid out on one page: uint8 [T,H,W,3]."""
    height, width = (max(clip.shape[axis] for pair in clips for clip in pair) for axis in (1, 2))
    cell = (2 * width + GAP + MARGIN, height + 2 * LINE + MARGIN)
    rows = -(-len(pairs) // columns)
    page = Image.new("RGB", (min(columns, len(pairs)) * cell[0] + MARGIN, rows * cell[1] + MARGIN), PAPER)
    corners = [(MARGIN + i % columns * cell[0], MARGIN + i // columns * cell[1]) for i in range(len(pairs))]
    for (x, y), pair in zip(corners, pairs, strict=True):
        _caption(page, (x, y), pair.prompt, width)
    frames = max(len(clip) for pair in clips for clip in pair)
    movie = np.repeat(np.asarray(page)[None], frames, axis=0)
    for (x, y), sides in zip(corners, clips, strict=True):
        for side, clip in enumerate(sides):
            left, top = x + side * (width + GAP), y + 2 * LINE
            shown = clip[np.minimum(np.arange(frames), len(clip) - 1)]
            movie[:, top : top + clip.shape[1], left : left + clip.shape[2]] = shown
    return movie


def _caption(page: Image.Image, corner: tuple[int, int], prompt: str, width: int) -> None:
    """The prompt, cut to the width of a pair, and under it which side is which."""
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(FONT_SIZE)
    text, room = " ".join(prompt.split()), 2 * width + GAP
    if draw.textlength(text, font) > room:
        while text and draw.textlength(text + "…", font) > room:
            text = text[:-1]
        text = text.rstrip() + "…"
    draw.text(corner, text, INK, font)
    for side, word in enumerate(("before", "after")):
        draw.text((corner[0] + side * (width + GAP), corner[1] + LINE), word, FAINT, font)
