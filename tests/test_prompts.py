"""Prompt sources, splits and orders."""

from __future__ import annotations

import pytest
from conftest import SHARED

from reelign.datasets.prompts import PromptOrder, load_prompts, split_prompts
from reelign.errors import DataError


def test_built_in_sets():
    animals = load_prompts("animals")
    assert len(animals) == 135
    assert animals[0] == "a cat washing the dishes"
    assert "an ant playing chess" in animals
    assert len(load_prompts("shapes")) == 248


def test_the_animals_are_those_of_the_papers():
    folder = SHARED / "data" / "prompts"
    if not folder.is_dir():
        pytest.skip(f"the shared prompts are not here: {folder}")
    from reelign.datasets.prompts import ACTIVITIES, ANIMALS

    assert list(ANIMALS) == (folder / "animals_45.txt").read_text().split()
    assert list(ACTIVITIES) == (folder / "activities_3.txt").read_text().strip().splitlines()
    assert len(load_prompts(str(folder / "vbench_prompts_sample.txt"))) == 200


def test_files(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("# comment\n a cat \n\na dog\ttag\na cat\n")
    assert load_prompts(str(path)) == ["a cat", "a dog"]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is UTF-8 text"):
        load_prompts(str(path))


def test_split_shares_nothing_and_is_seeded():
    prompts = load_prompts("shapes")
    split = split_prompts(prompts, 96, seed=1)
    assert len(split.held_out) == 96
    assert sorted(split.train + split.held_out) == sorted(prompts)
    assert split == split_prompts(prompts, 96, seed=1)
    assert split != split_prompts(prompts, 96, seed=2)
    with pytest.raises(DataError, match="3 prompts, 3 to be held out"):
        split_prompts(prompts[:3], 3)


def test_order_passes_through_all_and_resumes():
    order = PromptOrder("abcde", seed=0)
    first = [order.draw(2) for _ in range(5)]
    flat = "".join("".join(d) for d in first)
    assert sorted(flat[:5]) == sorted(flat[5:]) == list("abcde")
    state = order.state()
    after = [order.draw(3) for _ in range(4)]
    other = PromptOrder("abcde", seed=9)
    other.restore(state)
    assert [other.draw(3) for _ in range(4)] == after
