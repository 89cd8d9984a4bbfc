"""What every family says to a user's mistake: one clear line, and no traceback of a library."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from family_cases import CASES, IMAGE, load, request_for
from typer.testing import CliRunner

from reelign.cli.main import app
from reelign.contracts import Request
from reelign.errors import ConfigError, DataError, ModelError, ReelignError
from reelign.sampling import generate

TEXT = [name for name in CASES if name not in IMAGE]
KINDS = {case.options["kind"]: name for name, case in reversed(CASES.items())}  # the first case of each
every = pytest.mark.parametrize("name", CASES)
of_each_kind = pytest.mark.parametrize("name", KINDS.values())


@contextmanager
def refused(kind, said):
    """One line of this kind, and no longer than people read."""
    with pytest.raises(kind, match=said) as caught:
        yield
    assert isinstance(caught.value, ReelignError)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@every
def test_another_familys_folder(name, folders):
    kind = CASES[name].options["kind"]
    for other_kind, other in KINDS.items():
        if other_kind != kind:
            model = folders(other) / CASES[other].places["model"]
            with refused(ModelError, other_kind if CASES[name].pipeline and CASES[other].pipeline else str(model)):
                load(folders(name), name, model=str(model))


@every
def test_a_folder_that_lacks_a_part(name, folders, tmp_path):
    with refused(ModelError, str(tmp_path)):
        load(tmp_path, name)
    folder = folders(name)
    parts = [place for place in folder.iterdir() if place.is_dir()]
    assert len(parts) >= 1
    for place in parts:
        hidden = place.rename(folder.parent / f"hidden_{folder.name}")
        try:
            with refused(ModelError, place.name):
                load(folder, name)
        finally:
            hidden.rename(place)


@every
def test_a_size_that_the_model_cannot_make(name, folders):
    case, folder = CASES[name], folders(name)
    if case.wrong_frames:
        frames, message = case.wrong_frames
        with refused(ConfigError, message):
            load(folder, name, frames=frames)
    if name != "opensora":  # makes the multiples of 8 below
        with refused(ConfigError, r"must be multiples of \d+ for this model; got 34x\d\d"):
            load(folder, name, height=34)


@of_each_kind
def test_options_that_do_not_go_together(name, folders, tmp_path):
    with refused(ConfigError, "LoRA targets must name layers"):
        load(folders(name), name, lora={"targets": ["nothing"]})
    with refused(ModelError, "nowhere"):
        load(folders(name), name, adapter=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", IMAGE)
def test_first_frames_that_are_missing_or_of_another_size(name, loaded):
    generator = loaded(name)
    asked = request_for(generator)
    with refused(DataError, "begins from pictures, and this request has none"):
        generator.encode(Request(asked.prompts))
    with refused(DataError, r"first frames are \[B,3,32,32\] for this generator; got \[2, 3, 16, 16\]"):
        generator.encode(Request(asked.prompts, first_frames=asked.first_frames[..., ::2, ::2]))


@pytest.mark.parametrize("name", TEXT)
def test_pictures_and_clips_for_a_model_of_texts(name, loaded, folders):
    with refused(DataError, "clips from text alone: leave first_frames out"):
        loaded(name).encode(Request(("a cat",), first_frames=torch.rand(1, 3, 32, 32)))
    if CASES[name].options["kind"] != "wan":  # which has no such options
        with refused(ConfigError, r"set generator\.clips to 1, not 2"):
            load(folders(name), name, clips=2)


@every
def test_prompts_that_are_empty_or_too_long(name, loaded):
    generator = loaded(name)
    with refused(DataError, "a prompt says what to show; number 2 of 2 is empty"):
        Request(("a cat", " "))
    if name != "stable_video_diffusion":  # reads no text
        with refused(DataError, r"a prompt has at most \d+ tokens for this model; shorten this one of \d+: 'a a a"):
            generator.encode(request_for(generator, ("a " * 1100,)))


@every
def test_chains_without_steps(name, loaded):
    generator = loaded(name)
    with refused(ConfigError, "a chain has .*1 .*step.*; got 0"):
        generate(generator, request_for(generator), [0, 1], 0, CASES[name].scale)


def test_the_command_line_takes_no_zero_for_the_models_own(folders, tmp_path):
    command = ["generate", "--generator", str(folders("modelscope")), "--kind", "modelscope", "--out", str(tmp_path)]
    for words in (["--prompts", "a cat", "--steps", "0"], ["--prompts", ""]):
        caught = CliRunner().invoke(app, [*command, *words]).exception
        assert isinstance(caught, ReelignError) or caught.code == 2
