"""The page of rejected takes: one self-contained HTML file with the reason, in words, beside pictures of each clip.

A clip is shown as a strip of frames from its start to its end; one that does not decode, or decodes only in part, says
so in place of them. Names, prompts and reasons are untrusted: the template escapes everything.

Run: ``reelign reject TAKES``.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reelign.errors import DataError
from reelign.report.page import template
from reelign.selection.gates import rules
from reelign.selection.reject import RejectOptions, Verdicts
from reelign.video_decode import FrameStream
from reelign.video_io import replacing

PAGE = "rejected.html"
PICTURES = 8  # frames of a strip
HEIGHT = 96  # pixels of a picture
LOOKED_AT = 1200  # frames of a long clip, from its start
SHOWN = 300  # takes with pictures; the rest is in the table


@dataclass(frozen=True)
class Card:
    """One take on the page.

    Args:
        file, group, take: which one.
        reasons: gate and reason, in words.
        strip: a JPEG as a data address, or empty.
        missing: why there is no strip, or what is wrong with it; empty where all is well.
    """

    file: str
    group: str
    take: str
    reasons: Sequence[tuple[str, str]]
    strip: str
    missing: str


def write_page(
    folder: Path, verdicts: Verdicts, wide: pd.DataFrame, options: RejectOptions, locate: Any = None
) -> Path:
    """Write ``rejected.html`` to a takes folder; returns its path.

    Args:
        folder: where the page goes.
        verdicts: from ``reject_takes``.
        wide: the takes.
        options: the settings behind the verdicts.
        locate: file to path; None takes files relative to ``folder``.
    """
    folder = Path(folder)
    find = locate or (lambda file: folder / file)
    groups = wide.drop_duplicates("take").set_index("take")["group"].to_dict()
    rejected = _cards(verdicts.rejected, groups, find)
    page = template("rejects.html.j2").render(
        name=folder.resolve().name,
        takes=verdicts.takes,
        count=int(verdicts.rejected["take"].nunique()),
        counts=verdicts.counts(),
        rules=rules(options.gates),
        limits=verdicts.limits.say(),
        notes=verdicts.notes,
        rejected=rejected,
        more=max(0, int(verdicts.rejected["take"].nunique()) - len(rejected)),
        kept=_cards(verdicts.kept, groups, find),
        advice=_cards(verdicts.advice, groups, find),
    )
    with replacing(folder / PAGE) as part:
        part.write_text(page, encoding="utf-8")
    return folder / PAGE


def contact_strip(path: Path, pictures: int = PICTURES, height: int = HEIGHT) -> tuple[str, str]:
    """Frames of a clip side by side, evenly from the first to the last, as a JPEG data address; and what is wrong.

    Returns:
        The address, empty where no frame decodes; and the damage in words, empty where all is well.
    """
    frames: list[NDArray[np.uint8]] = []
    stream = FrameStream(path, LOOKED_AT, eight_bits=True)
    try:
        for frame in stream:
            width = max(1, round(frame.shape[1] * height / frame.shape[0]))
            small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
            frames.append(np.asarray(small, np.uint8))
        stream.check(strict=False)
    except DataError as error:
        return "", str(error).replace(f"{path}: ", "")
    chosen = np.unique(np.linspace(0, len(frames) - 1, pictures).round().astype(int))
    gap = np.full((height, 3, 3), 255, np.uint8)
    parts = [part for i in chosen for part in (frames[i], gap)][:-1]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(np.concatenate(parts, 1), cv2.COLOR_RGB2BGR))
    if not done:
        return "", "no picture can be made of it"
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}", stream.damage()


def _cards(table: pd.DataFrame, groups: Mapping[str, str], find: Any) -> list[Card]:
    cards = []
    for (take, file), rows in list(table.groupby(["take", "file"], sort=False))[:SHOWN]:
        strip, missing = contact_strip(find(file))
        reasons = list(zip(rows["gate"], rows["reason"], strict=True))
        cards.append(Card(file, groups.get(take, ""), take[:12], reasons, strip, missing))
    return cards
