"""The tables of published options in the docs: every counterpart that they name is a key of a run file."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel

from reelign.config import RunConfig
from reelign.generators.modelscope import ModelScopeOptions
from reelign.generators.opensora import OpenSoraOptions
from reelign.generators.videocrafter import VideoCrafterOptions

PAGES = Path(__file__).resolve().parents[1] / "docs" / "generators"
KEY = re.compile(r"`(\.?[a-z_]+(?:\.[a-z_]+)*)(?::[^`]*)?`")
CASES = [
    ("modelscope", ModelScopeOptions, 40),
    ("videocrafter2", VideoCrafterOptions, 25),
    ("opensora", OpenSoraOptions, 20),
]


def models_of(annotation):
    """The pydantic models that a field may hold."""
    found = [annotation, *(model for part in typing.get_args(annotation) for model in models_of(part))]
    return [model for model in found if isinstance(model, type) and issubclass(model, BaseModel)]


def is_key(name, generator):
    """Whether a run file with this kind of generator has a key of this name."""
    models = [RunConfig]
    for part in name.split("."):
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if not fields:
            return False
        models = [generator] if part == "generator" else [m for field in fields for m in models_of(field.annotation)]
    return True


def counterparts(page):
    """Keys named in the last column of tables of three; ``.eta`` after ``reward_gradient.steps`` is of its section."""
    for line in (PAGES / f"{page}.md").read_text(encoding="utf-8").splitlines():
        cells = re.split(r"(?<!\\)\|", line)
        if len(cells) != 5 or not line.startswith("| `"):
            continue
        section = ""
        for name in KEY.findall(cells[3].partition("left out")[0]):
            if name.startswith(".") and section:
                yield f"{section}{name}"
            elif name.partition(".")[0] in RunConfig.model_fields:
                section = name.rpartition(".")[0]
                yield name


@pytest.mark.parametrize(("page", "generator", "at_least"), CASES)
def test_every_counterpart_is_a_key(page, generator, at_least):
    named = list(counterparts(page))
    assert [name for name in named if not is_key(name, generator)] == []
    assert len(named) >= at_least


def test_a_wrong_counterpart_is_noticed():
    assert is_key("generator.lora.rank", ModelScopeOptions)
    assert not is_key("generator.lora.rang", ModelScopeOptions)
    assert not is_key("reward_gradient.learning_rate", ModelScopeOptions)
    assert not is_key("generator.conditioning_fps", ModelScopeOptions)
