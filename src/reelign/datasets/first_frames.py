"""First frames of prompts, for image-to-video: a ``.jsonl`` file with a ``prompt`` and a ``first_frame`` a line.

    {"prompt": "the cat jumps", "first_frame": "pictures/cat.png"}

The same file names the prompts of a run (``prompts.source``) and their pictures (``generator.first_frames``). Paths are
relative to the file. A prompt has one picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from reelign.datasets.clips import cover
from reelign.datasets.prompts import read_prompt_lines
from reelign.errors import DataError


class FirstFrames:
    """The pictures of prompts, read when they are asked for.

    Args:
        source: the ``.jsonl`` file.

    Raises:
        DataError: there is no such file, or no picture in it.
    """

    def __init__(self, source: str | Path) -> None:
        self.file = Path(source).expanduser()
        if not self.file.is_file():
            raise DataError(f"first frames come from a .jsonl file of prompts; there is no {str(source)!r}")
        rows = read_prompt_lines(self.file)
        self.paths = {row["prompt"]: self.file.parent / row["first_frame"] for row in rows if row.get("first_frame")}
        if not self.paths:
            raise DataError(f"a file of first frames has a 'first_frame' in its lines; {self.file} has none")

    def read(self, prompts: Sequence[str], height: int, width: int) -> Tensor:
        """The pictures [B,3,H,W] in [0,1] of these prompts, resized to cover height × width and cut at the centre.

        Raises:
            DataError: a prompt has no picture, or it cannot be read.
        """
        return torch.stack([cover(self._picture(prompt)[None], height, width)[0] for prompt in prompts])

    def _picture(self, prompt: str) -> Tensor:
        if prompt not in self.paths:
            raise DataError(f"every prompt needs a first_frame in {self.file}; {prompt[:60]!r} has none")
        path = self.paths[prompt]
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"the first frame {path} of {prompt[:60]!r} cannot be read: {error}") from error
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
