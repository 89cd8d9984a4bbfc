"""The proof: the same held-out prompts and seeds at every evaluated step, every reward and measure, one row a clip.

Generators of clips from prompts are examined by ``Examiner``, translators of clips by ``TranslationExaminer``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from torch import Tensor

from reelign.contracts import Generator, Request, VideoBatch
from reelign.datasets.translation import Domains
from reelign.distributed import count, leads, spread
from reelign.metrics.translation import Examined, ExamPlan, Translates, examine_translation
from reelign.rewards.weighted import WeightedReward
from reelign.sampling import generate
from reelign.video_io import replacing, write_clip

Measure = Callable[[VideoBatch], Mapping[str, Tensor]]


@dataclass(frozen=True)
class _Part:
    """What became of some of the prompts: their rows, and the files of their clips by name."""

    rows: list[dict[str, object]]
    files: dict[str, bytes]


@dataclass(frozen=True)
class Examiner:
    """What is asked of a generator, and how its answers are judged.

    Args:
        prompts: held-out prompts.
        seeds: one a prompt.
        reward: the trained reward.
        measures: held-out measures.
        steps, guidance_scale, eta: of sampling.
        batch: clips at a time.
        save_clips: how many clips are written.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    reward: WeightedReward
    measures: Sequence[Measure]
    steps: int
    guidance_scale: float
    eta: float = 0.0
    batch: int = 16
    save_clips: int = 24

    def examine(self, generator: Generator, folder: Path, progress: Callable[[int, int], None]) -> pd.DataFrame:
        """Sample every prompt, write clips and ``scores.csv`` to ``folder``; returns the rows.

        Several processes share the prompts; the first one writes.

        Columns: index, prompt, seed, file (empty where no clip was saved), trained_reward, reward/NAME, held_out/NAME.
        """
        total = len(self.prompts)
        size = min(self.batch, -(-total // count()))  # so that every process has something to do
        done = 0

        def part(start: int) -> _Part:
            nonlocal done
            made = self._examine_part(generator, slice(start, min(start + size, total)))
            done = min(done + size * count(), total)
            progress(done, total)
            return made

        parts = spread(part, range(0, total, size))
        rows = [row for part in parts for row in part.rows]
        if leads():
            for name, clip in (file for part in parts for file in part.files.items()):
                with replacing(folder / name) as path:
                    path.write_bytes(clip)
            _write_scores(folder, rows)
        return pd.DataFrame(rows)

    def _examine_part(self, generator: Generator, part: slice) -> _Part:
        """Sample and judge some of the prompts."""
        request = Request(self.prompts[part])
        clips = generate(generator, request, self.seeds[part], self.steps, self.guidance_scale, self.eta)
        columns = self.judge(clips)
        made = _Part([], {})
        for offset, prompt in enumerate(request.prompts):
            index = part.start + offset
            name = f"{index:04d}.mp4" if index < self.save_clips else ""
            if name:
                made.files[name] = _encoded(clips.video[offset], clips.fps)
            values = {column: float(value[offset]) for column, value in columns.items()}
            made.rows.append({"index": index, "prompt": prompt, "seed": self.seeds[index], "file": name, **values})
        return made

    @torch.no_grad()
    def judge(self, clips: VideoBatch) -> dict[str, Tensor]:
        """Every reward and measure of clips, by column name."""
        scores = self.reward.scores(clips)
        columns = {"trained_reward": self.reward.objective(scores)}
        columns.update({f"reward/{name}": score for name, score in scores.items()})
        for measure in self.measures:
            columns.update({f"held_out/{name}": value for name, value in measure(clips).items()})
        return columns


@dataclass(frozen=True)
class TranslationExaminer:
    """Clips that a translator is asked for, there and back, and how they are judged.

    Args:
        domains: where clips come from.
        plan: how many, in which directions.
        save_clips: how many of each direction are written.
    """

    domains: Domains
    plan: ExamPlan
    save_clips: int = 6

    def examine(self, generator: Translates, folder: Path, progress: Callable[[int, int], None]) -> pd.DataFrame:
        """Translate every clip; write clips, ``sets.json`` and then ``scores.csv`` to ``folder``; returns the rows.

        Columns: index, to, clip (of its direction), file, source, cycled, truth (empty where none was saved), then
        the measures of ``metrics.translation`` (empty where one does not apply).
        """
        folder.mkdir(parents=True, exist_ok=True)
        files: list[dict[str, str]] = []
        asked = self.plan.clips * len(self.plan.to)

        def see(examined: Examined) -> None:
            files.append(self._save(examined, folder))
            progress(len(files), asked)

        found = examine_translation(generator, self.domains, self.plan, see)
        progress(asked, asked)  # folders may hold fewer pairs than were asked for
        sets = {
            "distances": [asdict(d) for d in found.distances],
            "skipped": dict(found.skipped),
            "judged_on": self.domains.judged_on(),
        }
        with replacing(folder / "sets.json") as part:
            part.write_text(json.dumps(sets, indent=2) + "\n", encoding="utf-8")
        rows = []
        for index, (row, saved) in enumerate(zip(found.rows, files, strict=True)):
            measures = {name: value for name, value in row.items() if name not in ("to", "index")}
            rows.append({"index": index, "to": row["to"], "clip": row["index"], **saved, **measures})
        return _write_scores(folder, rows)

    def _save(self, examined: Examined, folder: Path) -> dict[str, str]:
        """Write the clips of one row; returns their names by column."""
        clips = {
            "file": examined.translated,
            "source": examined.source,
            "cycled": examined.cycled,
            "truth": examined.truth,
        }
        names = dict.fromkeys(clips, "")
        if examined.index < self.save_clips:
            for column, clip in clips.items():
                if clip is not None:
                    what = "translated" if column == "file" else column
                    names[column] = f"to_{examined.to}_{examined.index:04d}_{what}.mp4"
                    write_clip(folder / names[column], clip, self.domains.fps)
        return names


def _encoded(video: Tensor, fps: float) -> bytes:
    """A clip as an mp4 file."""
    with TemporaryDirectory() as place:
        write_clip(Path(place, "clip.mp4"), video, fps)
        return Path(place, "clip.mp4").read_bytes()


def _write_scores(folder: Path, rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Write ``scores.csv``, whole or not at all."""
    frame = pd.DataFrame(rows)
    with replacing(folder / "scores.csv") as part:
        frame.to_csv(part, index=False)
    return frame
