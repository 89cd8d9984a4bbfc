"""Agreement with a video classifier, and VBench's totals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import VideoMAEForVideoClassification

from reelign.datasets.moving_shapes import MovingShapes, ShapeSpec
from reelign.errors import ConfigError, DataError, NonFiniteError, UnknownNameError
from reelign.metrics.action import Action, in_top, read_labels
from reelign.metrics.clip import ClipMetric, Undefined, measure
from reelign.metrics.vbench import QUALITY, SEMANTIC, vbench_quality, vbench_semantic, vbench_total
from reelign.zoo.models import resolve_model

MOTIONS = ("moving left", "moving right", "growing", "rotating clockwise", "bouncing", "staying still")


def drawn(motion, seed=0):
    video = MovingShapes().render([ShapeSpec("square", "red", motion)], torch.Generator().manual_seed(seed))[0]
    return list((video.permute(0, 2, 3, 1) * 255).round().byte().numpy())


class TestAction:
    @pytest.fixture(scope="class")
    def metric(self):
        return Action()

    def test_ranks_by_hand(self):
        scores = torch.tensor([0.1, 0.5, 0.3, 0.5])
        assert [in_top(scores, asked, 1) for asked in range(4)] == [0, 0, 0, 0]  # the best two tie: neither is first
        assert [in_top(scores, asked, 2) for asked in range(4)] == [0, 1, 0, 1]
        assert [in_top(scores, asked, 3) for asked in range(4)] == [0, 1, 1, 1]
        assert in_top(torch.zeros(11), 0, 5) == 0  # a classifier that says nothing agrees with nobody

    def test_drawn_clips(self, metric):
        assert isinstance(metric, ClipMetric)
        rows = [measure(drawn(motion), 8.0, [metric], f"a red square {motion}") for motion in MOTIONS]
        assert np.mean([row["action_top1"] for row in rows]) >= 5 / 6
        assert all(row["action_top5"] >= row["action_top1"] for row in rows)
        wrong = measure(drawn("moving left"), 8.0, [metric], "a red square moving right")
        assert wrong["action_top1"] == 0

    def test_logits_are_transformers_on_the_frames_named(self, metric):
        clip = drawn("growing")
        model = VideoMAEForVideoClassification.from_pretrained(
            resolve_model("zoo:tiny-videomae"), dtype=torch.float32
        ).eval()
        chosen = np.stack([clip[i] for i in (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16)]) / 255
        pixels = (chosen - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.no_grad():
            logits = model(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)[None]).logits[0]
        order = logits.argsort(descending=True).tolist()
        names = [model.config.id2label[i] for i in order]
        for rank, name in enumerate(names):
            row = measure(clip, 8.0, [Action(label=name)])
            assert row == {"action_top1": float(rank < 1), "action_top5": float(rank < 5)}

    def test_where_the_asked_class_comes_from(self, metric, tmp_path):
        clip = drawn("moving left")
        (tmp_path / "labels.csv").write_text('\ufeffprompt,label,note\n"to the west, slowly",Moving Left,x\n', "utf-8")
        by_option = Action(label="moving left")
        by_table = Action(labels=str(tmp_path / "labels.csv"))
        by_mapping = Action(labels={"westward": "moving left"})
        by_keyword = Action(classes={"westward": "moving left"})
        for source, prompt in (
            (by_option, ""),
            (by_option, "a red square growing"),
            (by_table, "to the west, slowly"),
            (by_mapping, "westward"),
            (by_keyword, "it goes westward"),
            (metric, "a red square moving left"),
        ):
            assert measure(clip, 8.0, [source], prompt)["action_top1"] == 1
            assert source.card.needs_prompt == (source is not by_option)

    @pytest.mark.parametrize(
        ("options", "prompt", "reason"),
        [
            ({}, "", "no prompt"),
            ({}, "a red square", "names one of the classes"),
            ({"labels": {"a": "growing"}}, "b", "table of labels has none for 'b'"),
            ({"labels": {"a": "growing"}}, "", "no prompt"),
        ],
    )
    def test_without_an_asked_class_there_is_no_value(self, options, prompt, reason):
        values = measure(drawn("growing"), 8.0, [Action(**options)], prompt)
        assert set(values) == {"action_top1", "action_top5"}
        for value in values.values():
            assert isinstance(value, Undefined)
            assert reason in str(value)

    def test_short_and_long_clips(self):
        metric = Action(label="staying still", max_frames=20)
        still = drawn("staying still")
        assert measure(still[:1], 8.0, [metric])["action_top5"] in (0.0, 1.0)
        seen = []
        plain = metric.classifier.log_probabilities
        metric.classifier.log_probabilities = lambda video: seen.append(video) or plain(video)
        long = [np.full((64, 64, 3), i, np.uint8) for i in range(50)]
        measure(long, 8.0, [metric])
        levels = (seen[0][0, :, 0, 0, 0] * 255).round().int().tolist()
        assert len(levels) == 16
        assert (levels[0], levels[-1]) == (0, 19)

    def test_what_cannot_be_used_is_refused(self, tmp_path, metric):
        with pytest.raises(UnknownNameError, match="did you mean 'moving left'"):
            Action(label="moving lefft")
        with pytest.raises(UnknownNameError, match="flying"):
            Action(labels={"a": "flying"})
        with pytest.raises(ConfigError, match="leave one out"):
            Action(label="growing", labels={})
        with pytest.raises(ConfigError, match="max_frames=0"):
            Action(max_frames=0)
        with pytest.raises(NonFiniteError, match="logits"):
            metric.agreement(torch.tensor([0.0, torch.nan]), 0)
        table = tmp_path / "labels.csv"
        for text, message in (
            ("prompt,class\na,growing\n", "columns prompt and label"),
            ("prompt,label\na,\n", "both filled"),
            ("prompt,label\na,growing\na,shrinking\n", "one prompt has one label"),
        ):
            table.write_text(text)
            with pytest.raises(DataError, match=message):
                read_labels(table)
        with pytest.raises(DataError, match="cannot be read"):
            read_labels(tmp_path / "none.csv")
        table.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DataError, match="cannot be read"):
            read_labels(table)


# Raw scores and, worked by hand from VBench's constants, the totals.
RAW = {
    "subject_consistency": 0.9646,
    "background_consistency": 0.9630,
    "temporal_flickering": 0.9880,
    "motion_smoothness": 0.9790,
    "dynamic_degree": 0.6500,
    "aesthetic_quality": 0.6100,
    "imaging_quality": 0.6700,
}


class TestVBench:
    def test_quality_by_hand(self):
        parts = (
            (0.9646 - 0.1462) / 0.8538,  # 0.958538
            (0.9630 - 0.2615) / 0.7385,  # 0.949898
            (0.9880 - 0.6293) / 0.3707,  # 0.967629
            (0.9790 - 0.7060) / 0.2915,  # 0.936535
            0.61,
            0.67,
            0.5 * 0.65,
        )
        assert parts[:4] == pytest.approx((0.958538, 0.949898, 0.967629, 0.936535), abs=1e-6)
        assert vbench_quality(RAW) == pytest.approx(5.4176 / 6.5, abs=1e-6)
        assert sum(parts) == pytest.approx(5.4176, abs=1e-6)

    def test_semantic_and_total_by_hand(self):
        semantic = dict.fromkeys(SEMANTIC, 0.0) | {"scene": 0.4111, "temporal_style": 0.091, "appearance_style": 0.0009}
        assert vbench_semantic(semantic) == pytest.approx((0.5 + 0.25) / 9)
        total = (4 * 5.4176 / 6.5 + 0.75 / 9) / 5
        assert vbench_total(RAW | semantic) == pytest.approx(total, abs=1e-6)

    def test_scores_outside_the_published_range_are_not_clipped(self):
        low = {name: dimension.low for name, dimension in QUALITY.items()}
        assert vbench_quality(low) == 0
        assert vbench_quality(low | {"temporal_flickering": 0.0}) == pytest.approx(-0.6293 / 0.3707 / 6.5)
        assert vbench_quality({name: dimension.high for name, dimension in QUALITY.items()}) == 1

    @pytest.mark.parametrize("name", QUALITY)
    def test_a_missing_dimension_is_undefined_never_0(self, name):
        for scores in ({k: v for k, v in RAW.items() if k != name}, RAW | {name: float("nan")}):
            with pytest.raises(Undefined, match=f"all 7 dimensions; missing: {name}$"):
                vbench_quality(scores)
        with pytest.raises(Undefined, match="all 9 dimensions; missing: object_class"):
            vbench_total(RAW)
        with pytest.raises(DataError, match="infinite"):
            vbench_quality(RAW | {name: float("inf")})
