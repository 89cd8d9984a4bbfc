"""Generating a folder of clips from prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reelign.build import build_generator
from reelign.contracts import Request
from reelign.datasets.prompts import load_prompts, read_prompt_lines
from reelign.datasets.video_folder import write_metadata
from reelign.errors import ConfigError, DataError, RunFolderError
from reelign.generators.family_generator import FamilyGenerator
from reelign.generators.lora import adapter_options
from reelign.generators.wan import WanGenerator
from reelign.sampling import generate
from reelign.video_io import write_clip


@dataclass(frozen=True)
class GenerationJob:
    """Prompts, a loaded generator and an output folder, all checked before the first clip.

    Args:
        generator: ready to sample.
        prompts: what is asked.
        out: an empty or new folder.
        name: of the generator, for the table.
    """

    generator: WanGenerator | FamilyGenerator
    prompts: tuple[str, ...]
    out: Path
    name: str = ""

    @staticmethod
    def prepare(
        model: str, source: str, out: Path, adapter: Path | None = None, limit: int | None = None, **options: Any
    ) -> GenerationJob:
        """Load the prompts (a file, a built-in set, or one prompt with a blank in it) and the generator.

        A ``.jsonl`` file of prompts brings their first frames with it.

        Args:
            options: further options of the generator, for example ``kind`` and ``dtype``.

        Raises:
            DataError: no prompt.
            ConfigError: first frames for a model of texts.
            ModelError: no such model or adapter.
            RunFolderError: the folder is used or refuses.
        """
        prompts = load_prompts([source] if _is_sentence(source) else source)[:limit]
        if not prompts:
            raise DataError(f"at least one prompt is needed; a limit of {limit} leaves none")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunFolderError(f"clips go to a new or empty folder; {out} is neither")
        lora = adapter_options(adapter) if adapter else None
        if _has_first_frames(source):
            if options.get("kind", "wan") in ("wan", "causal_wan"):
                raise ConfigError(f"{source} has first frames, for image-to-video; set --kind to such a family")
            options = {"first_frames": source, **options}
        generator = build_generator({"model": model, "lora": lora, **options})
        if adapter:
            generator.load(str(adapter))
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"the output folder {out} cannot be made: {error.strerror}") from error
        return GenerationJob(generator, tuple(prompts), out, f"{model} + {adapter}" if adapter else model)

    def batches(self, size: int) -> int:
        """How many batches ``run`` makes."""
        return -(-len(self.prompts) // size)

    def run(
        self, seed: int, steps: int | None, guidance_scale: float | None, batch: int, eta: float = 0.0
    ) -> Iterator[int]:
        """Write the clips batch by batch, then ``metadata.csv``; yields the count of clips written so far.

        ``frames_per_second`` in the table is the speed of the clip's batch, text, sampling and decoding together.

        Raises:
            ConfigError: η above 0 for a causal generator, whose chains have a noise of their own.
        """
        steps = self.generator.default_steps if steps is None else steps
        scale = self.generator.default_guidance_scale if guidance_scale is None else guidance_scale
        rows: list[dict[str, Any]] = []
        for part in Request(self.prompts).split(batch):
            seeds = [seed + len(rows) + i for i in range(len(part))]
            began = time.perf_counter()
            clips = generate(self.generator, part, seeds, steps, scale, eta)
            speed = clips.video.shape[0] * clips.video.shape[1] / (time.perf_counter() - began)
            for prompt, number, video in zip(part.prompts, seeds, clips.video, strict=True):
                name = f"{len(rows):04d}.mp4"
                write_clip(self.out / name, video, clips.fps)
                rows.append(
                    {
                        "file_name": name,
                        "text": prompt,
                        "generator": self.name,
                        "seed": number,
                        "steps": steps,
                        "guidance_scale": scale,
                        "eta": eta,
                        "frames_per_second": round(speed, 4),
                    }
                )
            yield len(rows)
        write_metadata(self.out, rows)


def _has_first_frames(source: str) -> bool:
    path = Path(source).expanduser()
    return path.suffix == ".jsonl" and path.is_file() and any(r.get("first_frame") for r in read_prompt_lines(path))


def _is_sentence(text: str) -> bool:
    return " " in text.strip() and not Path(text).expanduser().exists()
