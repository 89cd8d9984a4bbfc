"""Distances between sets as results: intervals that cover, floors, refusals, and score tables compared."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from reelign.errors import DataError, UnknownNameError
from reelign.metrics.feature_sets import FeatureProtocol, FeatureSet, FrameChoice
from reelign.metrics.mmd import CUBIC, mmd2
from reelign.metrics.score_comparison import compare_scores, unpaired_delta
from reelign.metrics.set_comparison import (
    METRICS,
    Options,
    SetDistance,
    comparable,
    compare_sets,
    distance_of,
    from_json,
    half_sample_interval,
    reference_floor,
)
from reelign.metrics.statistics import paired_delta

VIDEOMAE = FeatureProtocol("videomae", "a/model", "ab" * 32, "classifier input", "none", (8, 8), FrameChoice(16))
FEW = Options(halves=40, splits=8)


def feature_set(values: np.ndarray, name: str = "r", protocol: FeatureProtocol = VIDEOMAE) -> FeatureSet:
    values = values if values.ndim == 3 else values[:, None]
    names = tuple(f"{name}{i}" for i in range(len(values)))
    return FeatureSet(values, names, names, protocol)


def normal(clips: int, length: int = 6, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (clips, length))


class TestResult:
    def test_value_is_the_plain_one_where_sides_are_equal(self) -> None:
        a, b = normal(30, seed=1), normal(30, seed=2, shift=0.5)
        found = compare_sets("mmd_videomae", feature_set(a), feature_set(b, "g"), FEW)
        assert found.value == pytest.approx(mmd2(a, b, CUBIC))
        assert found.low < found.value < found.high
        assert (found.clips, found.rows, found.length) == (30, 30, 6)

    def test_the_seed_decides(self) -> None:
        sides = feature_set(normal(40)), feature_set(normal(20, seed=3), "g")
        first, again, other = (compare_sets("mmd_videomae", *sides, replace(FEW, seed=s)) for s in (0, 0, 1))
        assert first == again
        assert first.value != other.value
        assert first.reference == other.reference

    def test_sides_are_made_equal(self) -> None:
        sides = feature_set(normal(40)), feature_set(normal(20, seed=3), "g")
        found = compare_sets("frechet_videomae", *sides, FEW)
        assert found.clips == 20
        assert any("sides of 40 and 20 clips were made equal by a seeded draw" in text for text in found.warnings)
        assert compare_sets("frechet_videomae", *sides, replace(FEW, clips=10)).clips == 10

    def test_warnings(self) -> None:
        zoo = replace(VIDEOMAE, model="zoo:tiny-videomae")
        twice = replace(feature_set(normal(20), protocol=zoo), hashes=("x", *(f"r{i}" for i in range(1, 20))))
        again = replace(feature_set(normal(20, seed=1), "g", zoo), hashes=("x",) * 20, failed={"bad.mp4": "empty"})
        text = "; ".join(compare_sets("mmd_videomae", twice, again, FEW).warnings)
        for words in (
            "20 rows a side; published numbers have at least 2048",
            "not told apart from the reference against itself",
            "1 clips are on both sides",
            "19 of the clips are copies of others",
            "1 of the clips gave no features",
            "has only seen moving shapes",
        ):
            assert words in text

    def test_no_warning_without_cause(self) -> None:
        many = feature_set(normal(2048, 1, 1)), feature_set(normal(2048, 1, 2, 1.0), "g")
        assert compare_sets("frechet_videomae", *many, Options(halves=3, splits=3)).warnings == ()

    def test_refuses_too_few_for_frechet_and_names_the_way_out(self) -> None:
        sides = feature_set(normal(30, 31)), feature_set(normal(30, 31, 1), "g")
        with pytest.raises(
            DataError, match=r"at least as many features a side as they are long, 31; got 30.*mmd_videomae"
        ):
            compare_sets("frechet_videomae", *sides, FEW)
        assert compare_sets("mmd_videomae", *sides, FEW).clips == 30

    def test_frames_count_as_rows(self) -> None:
        """Two frames a clip: 2·20 rows are enough for 31 dimensions, 2·15 are not."""
        sides = [feature_set(normal(40, 31, seed).reshape(20, 2, 31), str(seed)) for seed in (1, 2)]
        assert compare_sets("frechet_videomae", *sides, FEW).rows == 40
        with pytest.raises(DataError, match="got 30"):
            compare_sets("frechet_videomae", *sides, replace(FEW, clips=15))

    def test_refuses_other_sets(self) -> None:
        ordinary = feature_set(normal(20))
        other = feature_set(normal(20), "g", replace(VIDEOMAE, preprocessing="another"))
        with pytest.raises(DataError, match="features of one protocol"):
            compare_sets("mmd_videomae", ordinary, other, FEW)
        with pytest.raises(DataError, match="fvd compares i3d features"):
            compare_sets("fvd", ordinary, ordinary, FEW)
        with pytest.raises(DataError, match="at least 4 clips a side; got 3"):
            compare_sets("mmd_videomae", ordinary, feature_set(normal(3), "g"), FEW)
        with pytest.raises(UnknownNameError, match="did you mean 'fvd'"):
            compare_sets("fdv", ordinary, ordinary, FEW)

    @pytest.mark.parametrize("options", [{"halves": 1}, {"splits": 0}, {"confidence": 95}, {"clips": 3}])
    def test_refuses_options(self, options: dict[str, int]) -> None:
        with pytest.raises(DataError):
            Options(**options)  # type: ignore[arg-type]

    def test_every_metric_names_a_way_out(self) -> None:
        for metric in METRICS.values():
            if metric.kernel is None:
                instead = METRICS[metric.instead]
                assert instead.kernel is not None
                assert instead.kernel.unbiased
                assert instead.family == metric.family


class TestInterval:
    def test_of_a_difference_of_means_is_the_textbook_one(self) -> None:
        """Half-samples of a linear statistic have its own variance, s²/N on each side."""
        random = np.random.default_rng(0)
        pool = np.concatenate([random.normal(0, 1, 60), random.normal(0, 3, 60)])
        low, high = half_sample_interval(
            lambda a, b: float(pool[b].mean() - pool[a].mean()), np.arange(60), np.arange(60, 120),
            Options(halves=6000), random,
        )  # fmt: skip
        expected = 1.96 * np.sqrt((pool[:60].var(ddof=1) + pool[60:].var(ddof=1)) / 60)
        assert (-low, high) == pytest.approx((expected, expected), rel=0.06)

    def test_an_odd_number_is_mended(self) -> None:
        """Halves of 2 of 5 clips: √(2/3) times the spread of all 10 such halves, of which the ends are known."""
        pool = np.array([0.0, 1, 2, 3, 10, 5])
        low, high = half_sample_interval(
            lambda a, b: float(pool[a].mean()), np.arange(5), np.array([5]), Options(halves=3000, confidence=0.9999),
            np.random.default_rng(1),
        )  # fmt: skip
        means = [np.mean(pair) for pair in itertools.combinations(pool[:5], 2)]
        around = np.sqrt(2 / 3) * (np.array([min(means), max(means)]) - np.mean(means))
        assert (low, high) == pytest.approx(tuple(around), abs=0.1)

    @pytest.mark.parametrize(
        ("name", "shift"), [("mmd_videomae", 0.0), ("mmd_videomae", 0.3), ("frechet_videomae", 0.3)]
    )
    def test_covers_what_is_estimated_where_a_bootstrap_does_not(self, name: str, shift: float) -> None:
        """At least 93 % of 95 % intervals hold the statistic's own mean; plain bootstrap intervals mostly miss it."""
        metric, n, d, random = METRICS[name], 64, 16, np.random.default_rng(5)
        a, b = np.arange(n), np.arange(n, 2 * n)

        def draw() -> np.ndarray:
            return np.concatenate([random.normal(0, 1, (n, 1, d)), random.normal(shift, 1, (n, 1, d))])

        truth = np.mean([distance_of(metric, draw())(a, b) for _ in range(400)])
        ours = bootstrap = 0
        for _ in range(60):
            distance = distance_of(metric, draw())
            value = distance(a, b)
            low, high = half_sample_interval(distance, a, b, Options(halves=50), random)
            ours += value + low <= truth <= value + high
            again = [distance(random.choice(a, n), random.choice(b, n)) for _ in range(50)]
            bootstrap += np.quantile(again, 0.025) <= truth <= np.quantile(again, 0.975)
        assert ours >= 0.93 * 60
        assert bootstrap < 0.7 * 60


class TestFloor:
    def test_at_the_same_number_where_the_reference_is_twice_as_large(self) -> None:
        found = compare_sets("frechet_videomae", feature_set(normal(60)), feature_set(normal(30, seed=2), "g"), FEW)
        assert found.floor.clips == found.clips == 30

    def test_at_half_where_it_is_not(self) -> None:
        """Biased as it is, the distance at the floor's size is the one to hold against the floor."""
        found = compare_sets("frechet_videomae", feature_set(normal(60)), feature_set(normal(60, seed=2), "g"), FEW)
        assert (found.floor.clips, found.clips) == (30, 60)
        assert found.floor.distance > 1.5 * found.value
        assert found.floor.value == pytest.approx(found.floor.distance, rel=0.5)

    def test_parts_of_the_reference_are_disjoint(self) -> None:
        """A distance that counts common clips stays 0."""
        seen = []

        def common(a: np.ndarray, b: np.ndarray) -> float:
            seen.append((set(a.tolist()), set(b.tolist())))
            return float(len(set(a.tolist()) & set(b.tolist())))

        floor = reference_floor(common, 10, np.arange(10, 17), 20, np.random.default_rng(0))
        assert (floor.clips, floor.value, floor.distance) == (5, 0, 0)
        assert all(max(a) < 10 and len(a) == len(b) == 5 for a, b in seen)

    def test_tells_a_shift_from_chance(self) -> None:
        few = Options(halves=2)

        def told_apart(seed: int, shift: float) -> bool:
            sides = (
                feature_set(normal(200, seed=2 * seed)),
                feature_set(normal(100, seed=2 * seed + 1, shift=shift), "g"),
            )
            words = "not told apart from the reference against itself"
            return words not in compare_sets("mmd_videomae", *sides, few).warnings

        assert sum(told_apart(seed, 0.0) for seed in range(30)) <= 4  # about 1 expected
        assert all(told_apart(seed, 0.5) for seed in range(10))


class TestComparable:
    def result(self, metric: str = "mmd_videomae", clips: int = 20, name: str = "r", **protocol: str) -> SetDistance:
        chosen = replace(VIDEOMAE, **protocol)  # type: ignore[arg-type]
        sides = feature_set(normal(20), name, chosen), feature_set(normal(20, seed=1), "g", chosen)
        return compare_sets(metric, *sides, replace(FEW, clips=clips))

    def test_same_protocol_and_reference(self) -> None:
        for other in (replace(self.result(), value=0.0), self.result(model="a/copy/of/it")):
            assert other.protocol.id == self.result().protocol.id
            comparable(self.result(), other)  # raises where they are not

    @pytest.mark.parametrize("change", [{"weights": "cd" * 32}, {"preprocessing": "another"}, {"feature": "logits"}])
    def test_another_protocol(self, change: dict[str, str]) -> None:
        with pytest.raises(DataError, match="another feature protocol are not comparable"):
            comparable(self.result(), self.result(**change))

    def test_another_metric_reference_or_number(self) -> None:
        with pytest.raises(DataError, match="another metric"):
            comparable(self.result(), self.result("frechet_videomae"))
        with pytest.raises(DataError, match="another reference are not comparable"):
            comparable(self.result(), self.result(name="other"))
        with pytest.raises(DataError, match="another number of clips are not comparable; got 20 and 10"):
            comparable(self.result("frechet_videomae"), self.result("frechet_videomae", clips=10))
        comparable(self.result(), self.result(clips=10))  # unbiased
        with pytest.raises(DataError, match="another number of clips"):
            comparable(self.result("cmmd", family="clip"), self.result("cmmd", clips=10, family="clip"))

    def test_survives_json(self) -> None:
        found = self.result()
        again = from_json(json.loads(json.dumps(asdict(found))))
        assert again == found
        assert again.protocol.id == found.protocol.id
        with pytest.raises(DataError, match="'protocol'"):
            from_json({"metric": "fvd"})


def takes(values: list[float], prompts: str = "abcdef", seeds: tuple[object, ...] = (0,) * 6) -> pd.DataFrame:
    count = len(values)
    seed = pd.array(list(seeds[:count]), dtype="Int64")
    return pd.DataFrame({"prompt": list(prompts[:count]), "seed": seed, "score": values})


class TestScores:
    def test_pairs_by_prompt_and_seed_in_any_order(self) -> None:
        before = takes([1.0, 2.0, 4.0])
        after = takes([5.0, 2.5, 3.0], prompts="cab")
        (found,) = compare_scores(before, after, ["score"])
        assert (found.kind, found.n_before, found.delta) == ("paired", 3, pytest.approx(3.5 / 3))
        assert (found.low, found.high) == paired_delta([1, 2, 4], [2.5, 3, 5]).ci95
        assert found.reason == ""

    @pytest.mark.parametrize(
        "after",
        [
            takes([2.0, 3.0, 5.0], seeds=(1, 1, 1)),
            takes([2.0, 3.0, 5.0], seeds=(None, None, None)),
            takes([2.0, 3.0, 5.0], prompts="xyz"),
            takes([2.0, 3.0, 5.0], prompts="aaa"),
        ],
        ids=["seeds differ", "no seeds", "prompts differ", "doubled"],
    )
    def test_else_means_are_compared(self, after: pd.DataFrame) -> None:
        (found,) = compare_scores(takes([1.0, 2.0, 4.0]), after, ["score"])
        assert (found.kind, found.delta) == ("unpaired", pytest.approx(1.0))
        assert found.low < 1 < found.high

    def test_no_prompt_is_no_pair(self) -> None:
        before, after = (takes(values, seeds=(0, 1)).assign(prompt="") for values in ([1.0, 2.0], [2.0, 3.0]))
        (found,) = compare_scores(before, after, ["score"])
        assert found.kind == "unpaired"

    def test_a_doubled_key_pairs_with_nothing(self) -> None:
        after = takes([9.0, 9.0, 2.0, 3.0, 4.0], prompts="aabcd")
        (found,) = compare_scores(takes([1.0, 2.0, 3.0, 4.0], prompts="abcd"), after, ["score"])
        assert (found.kind, found.n_before, found.delta) == ("paired", 3, 0)
        assert found.reason == "3 takes have no partner with a value"

    def test_missing_is_counted_and_never_zero(self) -> None:
        (found,) = compare_scores(takes([1.0, np.nan, 4.0, 5.0]), takes([2.0, 3.0, 5.0, 5.0]), ["score"])
        assert (found.kind, found.n_before, found.missing_before, found.missing_after) == ("paired", 3, 1, 0)
        assert found.before == pytest.approx(10 / 3)
        assert found.reason == "2 takes have no partner with a value"

    @pytest.mark.parametrize(
        ("metric", "refused", "reason"),
        [
            ("score", {}, r"fewer than 2 takes have a value on a side \(1 and 3\)"),
            ("other", {}, r"fewer than 2 takes have a value on a side \(0 and 0\)"),
            ("score", {"score": "computed in two versions"}, "computed in two versions"),
        ],
    )
    def test_undefined_has_a_reason(self, metric: str, refused: dict[str, str], reason: str) -> None:
        before = takes([np.nan, np.nan, 1.0])
        (found,) = compare_scores(before, takes([1.0, 2.0, 3.0]), [metric], refused)
        assert found.kind == "undefined"
        assert np.isnan([found.before, found.after, found.delta, found.low, found.high]).all()
        assert re.search(reason, found.reason)

    def test_unpaired_interval_is_scipys(self) -> None:
        stats = pytest.importorskip("scipy.stats", reason="SciPy is the reference here")
        random = np.random.default_rng(0)
        a, b = random.exponential(1, 50), random.exponential(1.5, 80)
        theirs = stats.bootstrap(
            (b, a), lambda x, y, axis: x.mean(axis) - y.mean(axis), n_resamples=9999, method="percentile", rng=1
        ).confidence_interval
        delta, low, high = unpaired_delta(a, b)
        assert delta == pytest.approx(b.mean() - a.mean())
        assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.03)

    def test_unpaired_refuses(self) -> None:
        with pytest.raises(DataError, match="got 1 and 5"):
            unpaired_delta(np.ones(1), np.ones(5))
        with pytest.raises(DataError, match="finite"):
            unpaired_delta(np.array([1, np.nan]), np.ones(5))


def test_own_statistic_in_words() -> None:
    assert METRICS["fvd"].statistic == "Fréchet distance, covariance over N − 1"
    assert METRICS["kid"].statistic == "unbiased MMD², polynomial (x·y/d + 1)³, × 1"
    assert METRICS["cmmd"].statistic == "biased MMD², Gaussian, σ = 10, × 1000"
