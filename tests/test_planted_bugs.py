"""``reelign doctor --bugs``: every planted bug is caught, and nothing is caught where nothing is planted."""

from __future__ import annotations

import pytest

from reelign import planted_bugs
from reelign.build import build_generator
from reelign.diagnosis import no_dropout_is_live
from reelign.distributed import require_synchronised
from reelign.planted_bugs import BUGS, Bug, examine_bugs


def test_every_bug_is_caught_with_a_reason(random_wan_folder):
    findings = list(examine_bugs(str(random_wan_folder)))
    assert [finding.name for finding in findings] == [bug.name for bug in BUGS]
    assert not [finding for finding in findings if not finding.ok]
    words = ["detached", "did you mean", "frames a second", "not a number", "stay random", "FAILED", "live", ".module"]
    for finding, word in zip(findings, words, strict=True):
        assert word in finding.detail


def test_a_bug_that_goes_through_is_reported(random_wan_folder, monkeypatch):
    monkeypatch.setattr(planted_bugs, "BUGS", (Bug("nothing planted", "nowhere", lambda generator: None),))
    (finding,) = examine_bugs(str(random_wan_folder))
    assert not finding.ok
    assert "went through" in finding.detail


def test_a_sound_generator_passes(random_wan_folder):
    generator = build_generator({"model": str(random_wan_folder), "height": 32, "width": 32, "frames": 5})
    assert no_dropout_is_live(generator).ok
    require_synchronised(generator.trainable())  # one process: nothing to compare


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_bug_names_where_it_was_seen(bug):
    assert bug.seen
