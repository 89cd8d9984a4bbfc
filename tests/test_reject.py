"""Rejecting takes: gates, outliers among comparable takes, advice; the published defects cannot recur."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelign.errors import ConfigError, DataError
from reelign.metrics.statistics import wilson
from reelign.selection import advice as odd
from reelign.selection.gates import GateOptions, apply_gates, majority, rules
from reelign.selection.outliers import (
    Directed,
    Limits,
    bad_z,
    calibrate,
    cohorts,
    load_limits,
    null_limit,
    outliers,
    robust_z,
)
from reelign.selection.reject import (
    RejectOptions,
    accepted_takes,
    add_keep,
    read_keep,
    reject_takes,
    resolve,
    write_verdicts,
)

GOOD, BAD = "sharpness", "motion_compensated_flicker"  # higher is better, lower is better
COLUMNS = {GOOD: Directed("low", 1e-6, "blurred"), BAD: Directed("high", 1e-6, "flickers")}


def table(groups, size, rng=None, generator="", **columns):
    """Takes of ``groups`` groups of ``size``, with metric columns; rows are named g0-0, g0-1, …"""
    rng = rng or np.random.default_rng(0)
    names = [(f"g{g}", f"g{g}-{i}") for g in range(groups) for i in range(size)]
    frame = pd.DataFrame(
        {
            "take": [f"{i:064x}" for i in range(len(names))],
            "file": [f"{name}.mp4" for _, name in names],
            "prompt": "",
            "group": [group for group, _ in names],
            "generator": generator,
            GOOD: rng.standard_normal(len(names)),
            BAD: rng.standard_normal(len(names)),
        }
    )
    return frame.assign(**columns)


def long(wide, **errors):
    """The scores behind a table: one ok row a take, or an error with its reason by file."""
    rows = [
        {
            "take": row.take,
            "metric": "frames",
            "version": 1,
            "parameters": "",
            "value": 1.0,
            "status": "error" if row.file in errors else "ok",
            "reason": errors.get(row.file, ""),
        }
        for row in wide.itertuples()
    ]
    return pd.DataFrame(rows)


class TestGates:
    def test_a_clip_that_does_not_decode_goes_with_the_reason_as_given_and_meets_no_other_gate(self):
        wide = table(1, 3, black_share=[1.0, 0.0, 0.0])
        scores = long(wide, **{"g0-0.mp4": "truncated: 10 of 20 bytes are there"})
        rejected = reject_takes(wide, scores).rejected
        assert list(rejected["gate"]) == ["decodes"]
        assert rejected["reason"][0] == "cannot be scored: truncated: 10 of 20 bytes are there"

    def test_one_failed_metric_is_advice_and_no_rejection(self):
        wide = table(1, 3)
        scores = pd.concat([long(wide), long(wide.head(1), **{"g0-0.mp4": "out of memory"}).assign(metric="clip")])
        verdicts = reject_takes(wide, scores)
        assert verdicts.rejected.empty
        assert list(verdicts.advice["reason"]) == ["clip: out of memory"]

    def test_an_infinite_score_is_refused_by_name(self):
        found = apply_gates(table(1, 2, psnr=[1.0, math.inf])).found
        assert [(f.file, f.reason) for f in found] == [("g0-1.mp4", "scores are finite numbers; infinite here: psnr")]

    def test_odd_frame_count_against_the_majority(self):
        found = apply_gates(table(1, 4, frames=[16.0, 16.0, 9.0, 16.0])).found
        assert [(f.file, f.metric, f.value, f.limit) for f in found] == [("g0-2.mp4", "frames", 9.0, 16.0)]
        assert found[0].reason == "9 frames instead of 16, as 3 of 4 takes of group “g0”"

    def test_without_a_majority_nobody_is_wrong_and_a_note_says_so(self):
        findings = apply_gates(table(1, 4, frames=[16.0, 16.0, 9.0, 9.0]))
        assert not findings.found
        assert any("no value of frames has a majority" in note for note in findings.notes)

    def test_models_of_different_length_do_not_condemn_each_other(self):
        wide = table(1, 8, generator=["a"] * 5 + ["b"] * 3, frames=[16.0] * 5 + [49.0] * 3)
        assert not apply_gates(wide).found

    def test_what_the_request_asks_comes_before_the_majority(self):
        found = apply_gates(table(1, 3, frames=[16.0, 16.0, 17.0]), GateOptions(frames=17)).found
        assert [f.file for f in found] == ["g0-0.mp4", "g0-1.mp4"]
        assert found[0].reason == "16 frames instead of 17, as asked"

    def test_a_frame_rate_of_29_97_is_30(self):
        assert not apply_gates(table(1, 3, fps=[30.0, 30.0, 29.97])).found
        assert len(apply_gates(table(1, 3, fps=[30.0, 30.0, 29.0])).found) == 1

    def test_black_and_frozen_at_their_limits(self):
        wide = table(1, 4, black_share=[0.49, 0.5, 0.0, 0.0], frozen_share=[0.0, 0.0, 0.9, 0.89])
        assert [(f.file, f.gate) for f in apply_gates(wide).found] == [("g0-1.mp4", "black"), ("g0-2.mp4", "frozen")]
        assert not apply_gates(wide, GateOptions(black=None, frozen=None)).found

    def test_undefined_is_a_note_and_neither_good_nor_bad(self):
        findings = apply_gates(table(1, 2, frozen_share=[math.nan, 0.1]))
        assert not findings.found
        assert any("frozen_share is undefined or missing for 1 of 2" in note for note in findings.notes)

    def test_a_copy_is_told_and_the_original_stays(self):
        wide = table(1, 3)
        wide.loc[2, "take"] = wide.loc[0, "take"]
        verdicts = reject_takes(wide, long(wide))
        assert verdicts.rejected.empty
        assert list(verdicts.advice["reason"]) == ["has the same bytes as g0-0.mp4: it counts once"]
        assert list(accepted_takes(wide, verdicts.rejected)["file"]) == ["g0-0.mp4", "g0-1.mp4"]

    def test_majority(self):
        assert majority(pd.Series([1.0, 1.0, 2.0])) == 1
        assert majority(pd.Series([1.0, 2.0])) is None
        assert majority(pd.Series([math.nan])) is None

    def test_rules_are_told_with_their_numbers(self):
        told = rules(GateOptions(frames=16, frozen=None))
        assert "frozen" not in told
        assert told["black"].startswith("fewer than 0.5 ")
        assert told["shape"].endswith("16 frames")


class TestRobustZ:
    def test_by_hand(self):
        """Median 3, absolute deviations 2 1 0 1 7, MAD 1: z of 10 is 7/1.4826."""
        z = robust_z(np.array([1.0, 2, 3, 4, 10]), 1e-9)
        assert z == pytest.approx(np.array([-2, -1, 0, 1, 7]) / 1.4826)

    def test_equal_values_are_measured_by_the_smallest_spread_that_counts(self):
        assert robust_z(np.array([1.0, 1, 1, 1.5]), 0.25) == pytest.approx([0, 0, 0, 2])

    def test_missing_is_not_zero(self):
        z = robust_z(np.array([5.0, 6, 7, math.nan]), 1e-9)
        assert math.isnan(z[3])
        assert z[:3] == pytest.approx(robust_z(np.array([5.0, 6, 7]), 1e-9))
        assert np.isnan(robust_z(np.array([math.nan, math.nan]), 1.0)).all()

    def test_a_step_of_zero_is_refused(self):
        with pytest.raises(ConfigError, match="above 0; got 0"):
            robust_z(np.ones(3), 0)

    @given(st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=20), st.floats(0.1, 10), st.floats(-100, 100))
    @settings(max_examples=50, deadline=None)
    def test_neither_unit_nor_origin_matters(self, values, scale, shift):
        values = np.array(values)
        if np.median(np.abs(values - np.median(values))) < 1e-3:
            return
        assert robust_z(values * scale + shift, 1e-9) == pytest.approx(robust_z(values, 1e-9), rel=1e-6, abs=1e-6)

    def test_only_the_bad_side_has_a_positive_z(self):
        wide = table(1, 9)
        wide[GOOD] = wide[BAD] = np.arange(9.0)
        z = bad_z(wide, COLUMNS, cohorts(wide))
        assert z[GOOD].to_numpy() == pytest.approx(-z[BAD].to_numpy())
        assert z[BAD].iloc[8] > 0


class TestLimits:
    def test_against_the_normal_distribution_for_a_large_cohort(self):
        from scipy.stats import norm

        assert null_limit(256, 0.01) == pytest.approx(norm.isf(0.01), rel=0.03)

    def test_small_cohorts_have_wide_limits(self):
        limits = [null_limit(size, 0.001) for size in (5, 8, 16, 64)]
        assert limits == sorted(limits, reverse=True)
        assert limits[0] > 3 * limits[-1]

    def test_limits_that_the_documentation_states(self):
        """docs/reject.md: a level of 2 % over 9 metrics."""
        limits = [null_limit(size, 0.02 / 9) for size in (5, 8, 12, 32)]
        assert limits == pytest.approx([13.2, 5.7, 4.5, 3.3], abs=0.06)

    @pytest.mark.parametrize("size", [3, 5, 8, 16])
    def test_the_level_is_held_for_normal_values(self, size):
        rng = np.random.default_rng(size)
        x = rng.standard_normal((20_000, size))
        centred = x - np.median(x, axis=1, keepdims=True)
        z = centred / (1.4826 * np.median(np.abs(centred), axis=1, keepdims=True))
        assert (z > null_limit(size, 0.01)).mean() == pytest.approx(0.01, abs=0.003)

    def test_calibration_by_hand(self):
        """Level 0.25, 7 takes: T sorted, the ⌈8·0.75⌉ = 6th is the factor; limits never fall below 3."""
        z = pd.DataFrame({GOOD: [4.0, 5, 6, 7, 8, 9, 10], BAD: [0.0] * 7})
        limits = calibrate(z, ["g"] * 7, 0.25)
        assert limits.by_metric[GOOD] == pytest.approx(9.0)  # the second largest: one of seven is above
        assert limits.by_metric[BAD] == pytest.approx(3 * 9 / 8.5)  # the scale of GOOD is its 0.75 quantile, 8.5
        assert (limits.takes, limits.groups) == (7, 1)

    def test_a_level_that_the_calibration_cannot_hold_is_refused(self):
        with pytest.raises(ConfigError, match=r"1.0% needs 99 accepted takes in comparable groups; got 98"):
            calibrate(pd.DataFrame({GOOD: np.zeros(98)}), ["g"] * 98, 0.01)

    def test_calibrated_limits_hold_their_level_for_values_with_heavy_tails(self):
        """Where limits for normal values do not: 300 groups of 12, Student's t with 2 degrees of freedom."""
        rng = np.random.default_rng(1)
        first, second = (table(150, 12).assign(**{name: rng.standard_t(2, 1800) for name in COLUMNS}) for _ in range(2))
        limits = calibrate(bad_z(first, COLUMNS, cohorts(first)), list(first["group"]), 0.05)
        calibrated = len({f.take for f in outliers(second, COLUMNS, limits)[0]})
        normal = len({f.take for f in outliers(second, COLUMNS, Limits(0.05, {}))[0]})
        assert wilson(calibrated, 1800)[0] <= 0.05 <= wilson(calibrated, 1800)[1] + 0.01
        assert normal > calibrated

    def test_saved_and_loaded(self, tmp_path):
        limits = Limits(0.01, {GOOD: 4.5}, 120, 10)
        limits.save(tmp_path / "limits.json")
        assert load_limits(tmp_path / "limits.json") == limits
        (tmp_path / "wrong.json").write_text("[]")
        with pytest.raises(DataError, match="limits are a JSON file"):
            load_limits(tmp_path / "wrong.json")


class TestCohorts:
    def test_a_group_is_its_own_cohort_when_large_enough(self):
        assert cohorts(table(2, 5)).nunique() == 2

    def test_small_groups_are_compared_with_takes_of_the_same_generator_and_size(self):
        wide = table(3, 3, generator="wan", height=480.0, width=832.0)
        assert set(cohorts(wide)) == {"by “wan” at 832×480"}
        wide.loc[0, "height"] = 240.0
        assert cohorts(wide)[0] == ""
        wide.loc[0, "height"] = math.nan
        assert cohorts(wide)[0] == ""

    def test_too_few_abstain_and_say_so(self):
        wide = table(1, 4)
        found, notes = outliers(wide, COLUMNS, Limits(0.01, {}))
        assert not found
        assert notes == ["group “g0”: 4 takes have fewer than 5 comparable takes, so nothing is said about outliers"]

    def test_sizes_are_not_mixed(self):
        wide = table(1, 12, height=[240.0] * 6 + [480.0] * 6, width=[416.0] * 6 + [832.0] * 6)
        assert cohorts(wide).nunique() == 2

    def test_file_names_mean_nothing(self):
        wide = table(4, 8, np.random.default_rng(3))
        wide.loc[5, GOOD] = -50
        renamed = wide.assign(file=[f"a_b_c_d_e_{i}.mp4" for i in range(len(wide))])
        first, second = (reject_takes(w, long(w)).rejected for w in (wide, renamed))
        assert list(first["take"]) == list(second["take"]) == [wide["take"][5]]


class TestPublishedDefects:
    """The AirScape discriminator's contamination of 0.15 made outliers of good takes; see specs, part D."""

    @pytest.mark.parametrize("size", [3, 4, 6, 7, 8, 16])
    def test_takes_of_equal_quality_are_not_forced_out(self, size):
        """500 groups of identical quality: the published filter flags 1 of 3 … 3 of 16, here at most the level."""
        wide = table(500, size, np.random.default_rng(size))
        rejected = reject_takes(wide, long(wide), RejectOptions(cohort=3)).rejected["take"].nunique()
        assert wilson(rejected, len(wide))[0] <= 0.01

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 7, 8, 16])
    def test_takes_of_equal_numbers_are_never_out(self, size):
        wide = table(1, size, **{GOOD: 3.0, BAD: 0.5})
        assert reject_takes(wide, long(wide)).rejected.empty

    def test_a_true_outlier_of_eight_is_found_and_condemns_no_good_take(self):
        wide = table(1, 8)
        wide[GOOD] = wide[BAD] = [-1.4, -0.85, -0.47, -0.15, 0.15, 0.47, 0.85, 1.4]  # where eight normal values lie
        assert reject_takes(wide, long(wide)).rejected.empty
        wide.loc[3, GOOD] = -60
        assert list(reject_takes(wide, long(wide)).rejected["take"]) == [wide["take"][3]]

    def test_beside_a_true_outlier_good_takes_are_out_no_more_often_than_the_level(self):
        wide = table(500, 8, np.random.default_rng(8))
        wide.loc[3::8, GOOD] = -60
        rejected = reject_takes(wide, long(wide)).rejected["take"]
        planted = set(wide["take"][3::8])
        assert len(planted & set(rejected)) >= 0.9 * len(planted)
        assert wilson(len(set(rejected) - planted), 500 * 7)[0] <= 0.01

    def test_unusually_good_is_not_bad(self):
        wide = table(1, 16)
        wide.loc[3, GOOD], wide.loc[3, BAD] = 1e3, -1e3
        assert wide["take"][3] not in set(reject_takes(wide, long(wide)).rejected["take"])

    def test_unequal_frame_counts_do_not_crash(self):
        wide = table(2, 8, frames=[float(9 + i) for i in range(16)])
        assert reject_takes(wide, long(wide)).rejected.empty

    def test_missing_is_not_the_worst_value(self):
        wide = table(1, 16)
        wide[GOOD] += 10  # zero would be far below everybody
        wide.loc[3, GOOD] = math.nan
        assert reject_takes(wide, long(wide)).rejected.empty

    def test_groups_under_three(self):
        wide = pd.concat([table(1, 1), table(1, 2).assign(group="h", take=["a" * 64, "b" * 64])], ignore_index=True)
        verdicts = reject_takes(wide, long(wide))
        assert verdicts.rejected.empty
        assert sum("nothing is said about outliers" in note for note in verdicts.notes) == 2


class TestReasons:
    def test_a_reason_has_value_limit_and_what_is_usual(self):
        wide = table(1, 9)
        wide[GOOD] = [1.0, 2, 3, 4, 5, 6, 7, 8, -90]
        found, _ = outliers(wide, COLUMNS, Limits(0.01, {GOOD: 5.0}, 99, 9))
        # median 4, deviations 3 2 1 0 1 2 3 4 94: MAD 2, limit 4 − 5·1.4826·2
        assert found[0].limit == pytest.approx(4 - 5 * 1.4826 * 2)
        assert found[0].reason == (
            "blurred: sharpness -90 is below -10.83, the limit among 9 takes of group “g0” "
            "(the middle half lies in 2 … 6)"
        )

    def test_a_metric_that_was_not_calibrated_rejects_nobody(self):
        wide = table(1, 9)
        wide.loc[0, BAD] = 1e6
        assert not outliers(wide, COLUMNS, Limits(0.01, {GOOD: 5.0}, 99, 9))[0]

    def test_a_column_without_a_known_bad_side_is_refused(self):
        with pytest.raises(DataError, match="known bad side"):
            reject_takes(table(1, 3), long(table(1, 3)), RejectOptions(columns=("taste",)))

    def test_a_table_without_groups_is_refused(self):
        with pytest.raises(DataError, match="group is missing"):
            reject_takes(table(1, 3).drop(columns="group"), long(table(1, 3)))


class TestPeople:
    def test_a_kept_take_stays_and_the_reason_is_remembered(self):
        wide = table(1, 3, black_share=[1.0, 0.0, 0.0])
        for name in (wide["take"][0], wide["take"][0][:63], "g0-0.mp4"):
            verdicts = reject_takes(wide.tail(0) if name is None else wide, long(wide), keep=[wide["take"][0]])
            assert verdicts.rejected.empty
            assert list(verdicts.kept["gate"]) == ["black"]

    def test_names_of_kept_takes(self):
        wide = table(1, 3)
        assert resolve(wide, ["g0-1.mp4"]) == [wide["take"][1]]
        assert resolve(wide, [wide["take"][2]]) == [wide["take"][2]]
        with pytest.raises(DataError, match="fits 0 takes"):
            resolve(wide, ["nobody.mp4"])
        with pytest.raises(DataError, match="fits 3 takes"):
            resolve(wide, ["0" * 10])
        with pytest.raises(DataError, match="fits 0 takes"):
            resolve(wide, [""])

    def test_the_list_of_kept_takes_lasts(self, tmp_path):
        assert read_keep(tmp_path) == []
        (tmp_path / "keep.txt").write_text("# mine\n\nabc\n")
        add_keep(tmp_path, ["def", "abc"])
        assert read_keep(tmp_path) == ["abc", "def"]


class TestAdvice:
    def test_p_by_hand(self):
        reference = np.array([1.0, 2, 3, 4])
        assert odd.conformal_p(reference, np.array([0.0, 1, 2.5, 9])) == pytest.approx([1 / 5, 2 / 5, 3 / 5, 1])

    def test_tails_by_hand(self):
        reference, seen = pd.DataFrame({"a": [1.0, 2, 3, 4]}), pd.DataFrame({"a": [0.0, 5, 2.5, math.nan]})
        tails = odd.tail_attribution(reference, seen)["a"].to_numpy()
        assert tails[:3] == pytest.approx(-np.log([1 / 5, 1 / 5, 3 / 5]))
        assert math.isnan(tails[3])

    def test_the_level_is_held_on_ordinary_takes_and_it_is_no_quota(self):
        accepted, seen = table(60, 10, np.random.default_rng(1)), table(60, 10, np.random.default_rng(2))
        verdicts = reject_takes(seen, long(seen), RejectOptions(level=0.05), accepted=accepted)
        unusual = verdicts.advice[verdicts.advice["gate"] == "unusual"]
        assert wilson(len(unusual), 600)[0] <= 0.05
        assert len(verdicts.unusual) == 600
        even = np.tile(np.arange(10) / 10, 60)
        clean = seen.assign(**{GOOD: even, BAD: even})
        assert reject_takes(clean, long(clean), RejectOptions(level=0.05), accepted=accepted).advice.empty

    def test_an_odd_take_is_flagged_with_its_columns_and_never_rejected_for_it(self):
        accepted, seen = table(30, 10, np.random.default_rng(1)), table(1, 10, np.random.default_rng(2))
        seen.loc[4, GOOD] = 40  # unusually good: only odd
        verdicts = reject_takes(seen, long(seen), RejectOptions(level=0.05), accepted=accepted)
        assert seen["take"][4] not in set(verdicts.rejected["take"])
        said = verdicts.advice[verdicts.advice["take"] == seen["take"][4]].iloc[0]
        assert said["gate"] == "unusual"
        assert "sharpness +" in said["reason"]

    def test_without_accepted_takes_nothing_is_called_unusual(self):
        wide = table(1, 10)
        wide.loc[4, GOOD] = 40
        assert reject_takes(wide, long(wide)).advice.empty

    def test_missing_values_go_through(self):
        accepted, seen = table(30, 10, np.random.default_rng(1)), table(2, 10, np.random.default_rng(2))
        seen.loc[3, GOOD] = math.nan
        seen.loc[3:4, BAD] = math.nan
        seen.loc[4, GOOD] = math.nan
        scores = reject_takes(seen, long(seen), RejectOptions(level=0.05), accepted=accepted).unusual
        assert scores.loc[[3, 4], "score"].isna().all()
        assert scores["score"].notna().sum() == 18

    def test_too_few_accepted_takes_are_refused(self):
        with pytest.raises(ConfigError, match="accepted takes"):
            reject_takes(table(1, 8), long(table(1, 8)), RejectOptions(level=0.2), accepted=table(1, 8))


def test_tables_on_disk(tmp_path):
    wide = table(1, 3, black_share=[1.0, 0.0, 0.0])
    verdicts = reject_takes(wide, long(wide))
    path = write_verdicts(tmp_path, verdicts)
    read = pd.read_parquet(path)
    assert list(read.columns) == ["take", "file", "gate", "reason", "metric", "value", "limit"]
    assert list(read["take"]) == [wide["take"][0]]
    assert pd.read_csv(tmp_path / "rejected.csv").shape == read.shape
    assert pd.read_parquet(tmp_path / "advice.parquet").empty
    assert verdicts.counts() == {"black": 1}


def test_an_empty_table():
    wide = table(1, 3).head(0)
    verdicts = reject_takes(wide, long(wide).reindex(columns=["take", "metric", "status", "reason"]))
    assert verdicts.rejected.empty
    assert verdicts.takes == 0
