"""Prompts: from a text file, a list, or a built-in set, split into those to train on and those held out.

Built-in: ``shapes`` (every caption of the moving-shapes grammar) and ``animals`` (45 animals × 3 activities, the
prompts of DDPO and VADER; Black et al. 2024, appendix).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reelign.contracts import Request
from reelign.datasets.moving_shapes import all_specs
from reelign.errors import DataError

ANIMALS = (
    "cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow", "goat", "lion",
    "tiger", "bear", "raccoon", "fox", "wolf", "lizard", "beetle", "ant", "butterfly", "fish", "shark", "whale",
    "dolphin", "squirrel", "mouse", "rat", "snake", "turtle", "frog", "chicken", "duck", "goose", "bee", "pig",
    "turkey", "fly", "llama", "camel", "bat", "gorilla", "hedgehog", "kangaroo",
)  # fmt: skip
ALL = slice(None)
ACTIVITIES = ("washing the dishes", "riding a bike", "playing chess")


@dataclass(frozen=True)
class PromptSplit:
    """Prompts for training and prompts never trained on; the two share none."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def load_prompts(source: str | Sequence[str]) -> list[str]:
    """The distinct prompts of a source, in order.

    Args:
        source: ``shapes``, ``animals``, a text file with a prompt a line (empty lines and lines starting with # are
            skipped; what follows a tab is dropped), a ``.jsonl`` file with a ``prompt`` a line, or the prompts
            themselves.

    Raises:
        DataError: there is no such file, or no prompt in it.
    """
    prompts = _named(source) if isinstance(source, str) else [prompt.strip() for prompt in source]
    distinct = list(dict.fromkeys(prompt for prompt in prompts if prompt))
    if not distinct:
        raise DataError(f"at least one prompt is needed; {source!r} holds none")
    return distinct


def _named(source: str) -> list[str]:
    if source == "shapes":
        return [spec.caption for spec in all_specs()]
    if source == "animals":
        return [f"{_article(animal)} {animal} {activity}" for animal in ANIMALS for activity in ACTIVITIES]
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(f"prompts come from a text file, 'shapes' or 'animals'; there is no file {source!r}")
    try:
        if path.suffix == ".jsonl":
            return [row["prompt"] for row in read_prompt_lines(path)]
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"a prompt file is UTF-8 text; {source!r} is not") from error
    return [line.split("\t")[0].strip() for line in lines if not line.startswith("#")]


def read_prompt_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a prompt file, each with a ``prompt``.

    Raises:
        DataError: a line is not a JSON object with a prompt, or a prompt has two pictures.
    """
    rows: list[dict[str, Any]] = []
    pictures: dict[str, Any] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        prompt = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise DataError(
                f'a line of a prompt file reads {{"prompt": "…"}}; {file}, line {number}, has {line[:60]!r}'
            )
        if pictures.setdefault(prompt.strip(), row.get("first_frame")) != row.get("first_frame"):
            raise DataError(f"a prompt has one first_frame; {file} gives {prompt[:60]!r} a second one in line {number}")
        rows.append({**row, "prompt": prompt.strip()})
    return rows


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def split_prompts(prompts: Sequence[str], held_out: int, seed: int = 0) -> PromptSplit:
    """Set ``held_out`` prompts aside, drawn at random; both parts keep the order of the draw.

    Raises:
        DataError: nothing would be left to train on.
    """
    if held_out >= len(prompts):
        raise DataError(f"some prompts must be left for training: {len(prompts)} prompts, {held_out} to be held out")
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = [prompts[i] for i in order]
    return PromptSplit(tuple(shuffled[held_out:]), tuple(shuffled[:held_out]))


class PromptOrder:
    """Endless prompts, each pass in a new order; its state goes into checkpoints.

    Args:
        prompts: what is drawn from.
        seed: of the orders.
    """

    def __init__(self, prompts: Sequence[str], seed: int) -> None:
        self.prompts = tuple(prompts)
        self._random = torch.Generator().manual_seed(seed)
        self._order: list[int] = []

    def __len__(self) -> int:
        return len(self.prompts)

    def texts(self) -> tuple[str, ...]:
        """Every prompt, in no order that means anything."""
        return self.prompts

    def draw(self, count: int) -> tuple[str, ...]:
        """The next ``count`` prompts."""
        while len(self._order) < count:
            self._order += torch.randperm(len(self.prompts), generator=self._random).tolist()
        taken, self._order = self._order[:count], self._order[count:]
        return tuple(self.prompts[i] for i in taken)

    def request(self, count: int, rows: slice = ALL) -> Request:
        """Those in ``rows`` of the next ``count`` prompts, as a request."""
        return Request(self.draw(count)[rows])

    def state(self) -> dict[str, object]:
        """What ``restore`` needs to continue."""
        return {"random": self._random.get_state(), "order": list(self._order)}

    def restore(self, state: dict[str, object]) -> None:
        """Continue from what ``state`` gave."""
        random, order = state["random"], state["order"]
        assert isinstance(random, torch.Tensor)
        assert isinstance(order, list)
        self._random.set_state(random)
        self._order = list(order)
