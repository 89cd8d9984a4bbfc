"""Measures of translated clips, against answers known by construction and against scikit-image."""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from reelign.datasets.translation import DomainOptions, Domains
from reelign.errors import DataError
from reelign.metrics.clip import Undefined
from reelign.metrics.translation import (
    ExamPlan,
    clip_scores,
    cycle_error,
    examine_clips,
    examine_translation,
    features_of,
    fidelity,
    set_distances,
    source_motion,
)
from reelign.metrics.translation import (
    warping_error as error_along,
)
from reelign.video_io import to_pictures


def texture(size: int, seed: int = 0, blur: float = 2.0) -> np.ndarray:
    """A smooth random picture, uint8 [size,size,3]."""
    noise = np.random.default_rng(seed).normal(size=(size, size, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), blur)
    return np.clip(128 + 200 * soft * blur, 0, 255).astype(np.uint8)


def panned(picture: np.ndarray, steps: int, shift: int = 2, side: int = 96) -> list[np.ndarray]:
    """A window that moves over a picture by whole pixels: its flow is known exactly."""
    return [picture[8 : 8 + side, 8 + shift * t : 8 + shift * t + side].copy() for t in range(steps)]


def warping_error(source, clip):
    return error_along(source_motion(source), clip)


class Change:
    """Translates with a function of clips; to x it takes another."""

    def __init__(self, there, back=None):
        self.functions = {"y": there, "x": back or there}

    def translate(self, video, to):
        return self.functions[to](video), None


def test_warping_error_of_exact_motion():
    """Another look that moves exactly along the source's flow has none; the flow's own error is all there is."""
    source, other = panned(texture(160), 6), panned(texture(160, 1), 6)
    assert warping_error(source, other) < 1.5
    still = [source[0]] * 4
    assert warping_error(still, [other[0]] * 4) == 0.0
    assert warping_error(source, [np.full_like(source[0], 77)] * 6) == 0.0


def test_warping_error_rises_with_flicker_by_what_was_added():
    """Frames that are d grey levels brighter every second time are d off at every step, where nothing moves."""
    still = [texture(64)] * 5
    for level in (0, 3, 9):
        look = [np.full((64, 64, 3), 100 + level * (t % 2), np.uint8) for t in range(5)]
        assert warping_error(still, look) == pytest.approx(level)
    moving, look = panned(texture(160), 5), panned(texture(160, 1), 5)
    steady = warping_error(moving, look)
    noisy = [np.clip(p + np.random.default_rng(t).normal(0, 8, p.shape), 0, 255).astype(np.uint8) for t, p in
             enumerate(look)]  # fmt: skip
    assert warping_error(moving, noisy) > steady + 5


def test_warping_error_of_what_stays_behind():
    """A look that does not move with the source is off by as much as it changes over one step."""
    source, other = panned(texture(160), 5), texture(160, 1)[8:104, 8:104]
    change = np.abs(other[:, 2:].astype(float) - other[:, :-2]).mean()
    assert warping_error(source, [other] * 5) == pytest.approx(change, rel=0.1)


def test_what_is_uncovered_does_not_count():
    """A square moves over a picture; what was hidden behind it is new in the translation and must not count."""
    back, source, look = texture(96), [], []
    for t in range(4):
        frame, drawn = back.copy(), np.full((96, 96, 3), 50, np.uint8)
        frame[30:60, 10 + 4 * t : 40 + 4 * t] = texture(30, 5, 1.0)
        drawn[30:60, 10 + 4 * t : 40 + 4 * t] = 200
        source.append(frame)
        look.append(drawn)
    everywhere = np.mean([np.abs(b.astype(float) - a).mean() for a, b in itertools.pairwise(look)])
    assert warping_error(source, look) < 0.35 * everywhere


def test_warping_error_that_is_none():
    picture = texture(64)
    with pytest.raises(Undefined, match="needs two frames"):
        warping_error([picture], [picture])
    with pytest.raises(Undefined, match="32 pixels a side"):
        warping_error([picture[:20]] * 2, [picture[:20]] * 2)
    with pytest.raises(DataError, match="as long and large as its source, 3 frames; got 2 of 64×64"):
        warping_error([picture] * 3, [picture] * 2)


def test_fidelity_is_scikit_images(random):
    truth, clip = (torch.rand(3, 3, 40, 48, generator=random) for _ in range(2))
    clip = 0.7 * truth + 0.3 * clip
    found, (a, b) = fidelity(to_pictures(truth), to_pictures(clip)), (to_pictures(each) for each in (truth, clip))
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(np.stack(a), np.stack(b), data_range=255))
    grey = [[cv2.cvtColor(p, cv2.COLOR_RGB2GRAY) for p in pictures] for pictures in (a, b)]
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    ssim = np.mean([structural_similarity(p, q, **settings) for p, q in zip(*grey, strict=True)])
    assert found["ssim"] == pytest.approx(ssim, abs=1e-4)


def test_fidelity_of_the_answer_itself(random):
    clip = to_pictures(torch.rand(2, 3, 16, 16, generator=random))
    assert fidelity(clip, clip) == {
        "psnr": pytest.approx(10 * math.log10(255**2 * 2 * 16 * 16 * 3)),
        "ssim": pytest.approx(1),
    }


def test_cycle_error_by_hand():
    a, b = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)
    b[0, 0] = (12, 0, 24)  # 36 over 12 values
    assert cycle_error([a, a], [a, b]) == pytest.approx(1.5)


def test_small_clips_have_no_warping_error(random):
    clips = torch.rand(3, 4, 3, 20, 20, generator=random)
    assert set(clip_scores(*clips)) == {"cycle_error"}


def test_a_perfect_translator(random):
    """The known answer itself: best PSNR, SSIM 1, no cycle error, and as steady as the answer is."""
    domains, plan = Domains(DomainOptions(size=32, frames=4)), ExamPlan(clips=4, to=("y",), batch=2)
    day, night = [], []
    for examined in examine_clips(Change(lambda video: video), domains, plan):
        day.append(examined.source)
        night.append(examined.truth)
    there = {float(a.sum()): b for a, b in zip(day, night, strict=True)}
    back = {float(b.sum()): a for a, b in zip(day, night, strict=True)}
    oracle = Change(
        lambda video: torch.stack([there[float(clip.sum())] for clip in video]),
        lambda video: torch.stack([back[float(clip.sum())] for clip in video]),
    )
    scores = examine_translation(oracle, domains, plan)
    assert [row["index"] for row in scores.rows] == [0, 1, 2, 3]
    for row in scores.rows:
        assert row["ssim"] == pytest.approx(1)
        assert row["cycle_error"] == 0.0
        assert row["warping_error"] == row["warping_error_truth"]


def test_both_directions_and_their_sets():
    domains, plan = Domains(DomainOptions(size=64, frames=16)), ExamPlan(clips=16)
    seen = []
    scores = examine_translation(Change(lambda video: video), domains, plan, seen.append)
    assert [(row["to"], row["index"]) for row in scores.rows] == [(to, i) for to in "yx" for i in range(16)]
    assert [(e.to, e.index) for e in seen] == [(row["to"], row["index"]) for row in scores.rows]
    assert scores.mean("psnr") == pytest.approx(np.mean([r["psnr"] for r in scores.rows if r["to"] == "y"]))
    assert math.isnan(scores.mean("nothing"))
    assert not scores.skipped
    names = [(d.to, d.metric) for d in scores.distances]
    assert names == [(to, m) for to in "yx" for m in ("frechet_clip", "cmmd", "mmd_videomae")]
    for distance in scores.distances:  # the day is not the night, whichever way
        assert distance.low < distance.value < distance.high
        assert distance.value > 2 * distance.floor
    again = examine_translation(Change(lambda video: video), domains, plan)
    assert again.rows == scores.rows
    assert again.distances == scores.distances


def test_a_set_from_itself_is_no_distance(random):
    features = np.random.default_rng(0).normal(size=(20, 8, 64))
    skipped = {}
    found = set_distances("y", "clip", np.concatenate([features, features]), features, 0, skipped)
    assert [d.metric for d in found] == ["frechet_clip", "cmmd"]
    assert found[0].value == pytest.approx(0, abs=1e-6)
    assert found[1].value == pytest.approx(0, abs=1e-6)
    assert not skipped


def test_too_few_clips_for_a_distance():
    features, skipped = np.random.default_rng(0).normal(size=(8, 4, 64)), {}
    assert [d.metric for d in set_distances("y", "clip", features, features[:4], 0, skipped)] == ["cmmd"]
    assert skipped == {"frechet_clip": "needs 128 features a side; 4 clips give fewer"}


def test_short_clips_leave_out_the_network_of_long_ones():
    domains = Domains(DomainOptions(size=32, frames=8))
    scores = examine_translation(Change(lambda video: video), domains, ExamPlan(clips=4, to=("y",)))
    assert scores.skipped["mmd_videomae"] == "its network sees 16 frames; these clips have 8"
    assert {d.metric for d in scores.distances} == {"cmmd"}


def test_without_known_pairs():
    domains = Domains(DomainOptions(x="shapes:day:rotating", y="shapes:night:bouncing", size=32, frames=4))
    (row, *_) = examine_translation(Change(lambda video: video), domains, ExamPlan(clips=4, to=("x",))).rows
    assert set(row) == {"to", "index", "cycle_error", "warping_error", "warping_error_source"}


def test_features_are_those_of_files(tmp_path):
    """In memory or from a lossless round of 8-bit pictures: the same numbers."""
    from reelign.metrics.set_extractors import build_extractor

    clip = Domains(DomainOptions(frames=16)).batch("y", 1, torch.Generator().manual_seed(0))[0]
    extractor = build_extractor("clip")
    rounded = (clip * 255).round() / 255
    assert np.array_equal(features_of(extractor, clip), features_of(extractor, rounded))
    assert features_of(extractor, clip).shape == (8, 64)


@pytest.mark.parametrize("wrong", [{"clips": 3}, {"batch": 0}, {"to": ()}, {"to": ("z",)}])
def test_plans_that_are_none(wrong):
    with pytest.raises(DataError, match="at least 4 clips"):
        ExamPlan(**wrong)


def test_an_examination_on_disk(tmp_path):
    import json

    import pandas as pd

    from reelign.evaluation import TranslationExaminer
    from reelign.video_io import read_clip

    domains = Domains(DomainOptions(size=32, frames=8))
    bars = []
    examiner = TranslationExaminer(domains, ExamPlan(clips=4, batch=3), save_clips=1)
    frame = examiner.examine(Change(lambda video: 1 - video), tmp_path, lambda done, total: bars.append((done, total)))
    assert bars[-1] == (8, 8)
    written = pd.read_csv(tmp_path / "scores.csv", keep_default_na=False)
    assert written["to"].tolist() == ["y"] * 4 + ["x"] * 4
    assert [name for name in written["file"] if name] == ["to_y_0000_translated.mp4", "to_x_0000_translated.mp4"]
    assert np.allclose(written["psnr"], frame["psnr"])
    source, truth, cycled, translated = (
        read_clip(tmp_path / f"to_y_0000_{what}.mp4").video for what in ("source", "truth", "cycled", "translated")
    )
    assert (source - cycled).abs().mean() < 0.01
    assert (source + translated - 1).abs().mean() < 0.02
    assert truth.mean() < 0.4 < source.mean()
    assert {d["metric"] for d in json.loads((tmp_path / "sets.json").read_text())["distances"]} == {"cmmd"}
