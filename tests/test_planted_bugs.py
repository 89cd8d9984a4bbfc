"""``reelign doctor --bugs``: every planted bug is caught, and nothing is caught where nothing is planted."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist

from reelign import planted_bugs
from reelign.build import build_generator
from reelign.diagnosis import no_dropout_is_live
from reelign.distributed import require_synchronised
from reelign.errors import ContractError
from reelign.planted_bugs import BUGS, NOT_TRIED, Bug, examine_bugs

WORDS = ("detached", "did you mean", "frames a second", "not a number", "stay random", "FAILED", "live", ".module")


@pytest.mark.parametrize(("bug", "word"), zip(BUGS, WORDS, strict=True), ids=[bug.name for bug in BUGS])
def test_every_bug_is_caught_with_a_reason(bug, word, random_wan_folder, monkeypatch):
    monkeypatch.setattr(planted_bugs, "BUGS", (bug,))
    (finding,) = examine_bugs(str(random_wan_folder))
    assert bug.seen
    if finding.detail.startswith(NOT_TRIED):
        pytest.skip(finding.detail)
    assert finding.ok
    assert word in finding.detail


def test_two_processes_that_never_meet_are_reported_and_ended(random_wan_folder, monkeypatch):
    monkeypatch.setattr(planted_bugs, "BUGS", BUGS[-1:])
    monkeypatch.setattr(planted_bugs, "PAIR_SECONDS", 0.0)
    (finding,) = examine_bugs(str(random_wan_folder))
    assert not finding.ok
    assert finding.detail.startswith(NOT_TRIED)


@pytest.mark.parametrize("other", [1.0, 2.0])
def test_gradients_of_all_processes_are_compared(other, monkeypatch):
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather", lambda into, own: (into[0].copy_(own), into[1].copy_(own * other)))
    with nullcontext() if other == 1 else pytest.raises(ContractError, match="differ by 50%"):
        require_synchronised({"weight": parameter})


def test_a_bug_that_goes_through_is_reported(random_wan_folder, monkeypatch):
    monkeypatch.setattr(planted_bugs, "BUGS", (Bug("nothing planted", "nowhere", lambda generator: None),))
    (finding,) = examine_bugs(str(random_wan_folder))
    assert not finding.ok
    assert "went through" in finding.detail


def test_a_sound_generator_passes(random_wan_folder):
    generator = build_generator({"model": str(random_wan_folder), "height": 32, "width": 32, "frames": 5})
    assert no_dropout_is_live(generator).ok
    require_synchronised(generator.trainable())  # one process: nothing to compare
