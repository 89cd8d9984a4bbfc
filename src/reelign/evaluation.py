"""The proof: the same held-out prompts and seeds at every evaluated step, every reward and measure, one row a clip."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from reelign.contracts import Generator, Request, VideoBatch
from reelign.rewards.weighted import WeightedReward
from reelign.sampling import generate
from reelign.video_io import write_clip

Measure = Callable[[VideoBatch], Mapping[str, Tensor]]


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

        Columns: index, prompt, seed, file (empty where no clip was saved), trained_reward, reward/NAME, held_out/NAME.
        """
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, object]] = []
        for start in range(0, len(self.prompts), self.batch):
            part = slice(start, start + self.batch)
            request = Request(self.prompts[part])
            clips = generate(generator, request, self.seeds[part], self.steps, self.guidance_scale, self.eta)
            columns = self.judge(clips)
            for offset, prompt in enumerate(request.prompts):
                index = start + offset
                name = f"{index:04d}.mp4" if index < self.save_clips else ""
                if name:
                    write_clip(folder / name, clips.video[offset], clips.fps)
                values = {column: float(value[offset]) for column, value in columns.items()}
                rows.append({"index": index, "prompt": prompt, "seed": self.seeds[index], "file": name, **values})
            progress(min(start + self.batch, len(self.prompts)), len(self.prompts))
        frame = pd.DataFrame(rows)
        temporary = folder / ".scores.csv.tmp"
        frame.to_csv(temporary, index=False)
        temporary.replace(folder / "scores.csv")
        return frame

    @torch.no_grad()
    def judge(self, clips: VideoBatch) -> dict[str, Tensor]:
        """Every reward and measure of clips, by column name."""
        scores = self.reward.scores(clips)
        columns = {"trained_reward": self.reward.objective(scores)}
        columns.update({f"reward/{name}": score for name, score in scores.items()})
        for measure in self.measures:
            columns.update({f"held_out/{name}": value for name, value in measure(clips).items()})
        return columns
