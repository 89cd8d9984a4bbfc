"""Rewards against straightforward independent computations, on tiny random checkpoints in the published layout."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, VideoMAEConfig, VideoMAEForPreTraining

from reelign.contracts import Request, RewardCard, VideoBatch
from reelign.datasets.moving_shapes import ALL_MOTIONS, PALETTE
from reelign.errors import ConfigError, ContractError, DataError, ModelError, NonFiniteError, UnknownNameError
from reelign.rewards.brightness_range import BrightnessRange
from reelign.rewards.clip_similarity import ClipSimilarity
from reelign.rewards.colour_coverage import ColourCoverage
from reelign.rewards.preprocess import preprocess_for, resize, resize_and_crop
from reelign.rewards.temporal_smoothness import TemporalSmoothness
from reelign.rewards.video_action import VideoAction
from reelign.rewards.weighted import Term, WeightedReward, loss_form
from reelign.zoo import models, tiny_clip, tiny_videomae
from reelign.zoo.models import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from reelign.zoo.words import word_tokenizer

PROMPTS = ("a red circle moving left", "a white square growing")
MEASURED = {
    **dict.fromkeys(("colour", "colour_degraded", "colour_margin", "shape", "shape_degraded", "shape_margin"), 0.5),
    **dict.fromkeys(("motion", "motion_degraded", "worst_motion", "probability"), 0.5),
}


def clips(frames: int = 5, height: int = 64, width: int = 64, prompts: tuple[str, ...] = PROMPTS) -> VideoBatch:
    video = torch.rand(len(prompts), frames, 3, height, width, generator=torch.Generator().manual_seed(3))
    return VideoBatch(video, 8.0, Request(prompts))


def with_pixels(batch: VideoBatch) -> tuple[VideoBatch, Tensor]:
    pixels = batch.video.detach().clone().requires_grad_()
    return VideoBatch(pixels, batch.fps, batch.request), pixels


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip.save(folder, tiny_clip.build_clip(), word_tokenizer(tiny_clip.TEXT_LENGTH), MEASURED)
    return folder


@pytest.fixture(scope="module")
def action_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("videomae")
    model = tiny_videomae.build_videomae()
    torch.nn.init.normal_(model.classifier.weight, std=0.5)  # probabilities that differ from 1/11
    tiny_videomae.save(folder, model, MEASURED)
    return folder


class TestModels:
    def test_names_resolve(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert models.resolve_model("openai/clip-vit-base-patch32") == "openai/clip-vit-base-patch32"
        assert models.resolve_model(str(tmp_path)) == str(tmp_path)
        monkeypatch.setattr(models, "WEIGHTS", tmp_path)
        (tmp_path / "tiny-clip").mkdir()
        with pytest.raises(ModelError, match="reelign zoo train tiny-clip"):
            models.resolve_model("zoo:tiny-clip")
        (tmp_path / "tiny-clip" / "config.json").write_text("{}")
        assert models.resolve_model("zoo:tiny-clip") == str(tmp_path / "tiny-clip")

    @pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/no-such-folder", "a/b/c"])
    def test_a_missing_folder_is_not_taken_for_a_hub_id(self, name: str) -> None:
        with pytest.raises(ModelError, match="no model folder at"):
            models.resolve_model(name)

    def test_unknown_names_get_a_suggestion(self) -> None:
        with pytest.raises(UnknownNameError, match="did you mean 'zoo:tiny-clip'"):
            models.resolve_model("zoo:tiny-clap")
        with pytest.raises(ModelError, match="did you mean 'zoo:tiny-clip'"):
            models.resolve_model("tiny-clip")

    def test_inventory_shows_what_was_measured(
        self, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(models, "WEIGHTS", tmp_path)
        shutil.copytree(clip_folder, tmp_path / "tiny-clip")
        entries = {entry.name: entry for entry in models.inventory()}
        assert "colour degraded 0.5" in entries["tiny-clip"].measured
        assert 1.0 < entries["tiny-clip"].megabytes < 3.0
        assert "reelign zoo train tiny-wan" in entries["tiny-wan"].measured

    def test_float16_on_disk_is_float32_and_frozen_in_memory(self, clip_folder: Path) -> None:
        assert load_file(clip_folder / "model.safetensors")["visual_projection.weight"].dtype == torch.float16
        model = models.load_whole(CLIPModel, str(clip_folder))
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())

    def test_a_random_projection_is_refused(self, clip_folder: Path, tmp_path: Path) -> None:
        shutil.copytree(clip_folder, tmp_path / "broken")
        weights = load_file(tmp_path / "broken" / "model.safetensors")
        del weights["visual_projection.weight"]
        save_file(weights, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelError, match=r"lacks 1 \(visual_projection\.weight\)"):
            ClipSimilarity(str(tmp_path / "broken"))

    def test_a_random_head_is_refused(self, tmp_path: Path) -> None:
        small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        decoder = {f"decoder_{name}": value for name, value in small.items()}
        config = VideoMAEConfig(image_size=32, num_frames=4, **small, **decoder)
        VideoMAEForPreTraining(config).save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=r"lacks \d+ \(classifier\.bias, classifier\.weight"):
            VideoAction(str(tmp_path))

    def test_a_broken_file_is_one_line(self, clip_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
        with pytest.raises(ModelError, match="cannot load") as caught:
            ClipSimilarity(str(tmp_path))
        assert "\n" not in str(caught.value)

    def test_even_indices(self) -> None:
        assert models.even_indices(17, 16) == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16]
        assert models.even_indices(3, 5) == [0, 1, 1, 2, 2]
        assert models.even_indices(5, 1) == [2]
        assert models.even_indices(1, 3) == [0, 0, 0]
        assert models.even_indices(81, 5) == [0, 20, 40, 60, 80]
        with pytest.raises(DataError, match="at least one"):
            models.even_indices(0, 2)


class TestPreprocess:
    def test_resize_is_pillows_bicubic(self) -> None:
        frame = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0))
        ours = resize(frame[None], 24, 20)[0]
        theirs = [
            np.array(Image.fromarray(plane.numpy(), mode="F").resize((20, 24), Image.Resampling.BICUBIC))
            for plane in frame
        ]
        np.testing.assert_allclose(ours.numpy(), np.stack(theirs), atol=1e-5)

    def test_crop_keeps_the_centre_and_squash_keeps_all(self) -> None:
        frame = torch.zeros(1, 3, 32, 96)
        frame[..., 32:64] = 1.0  # the middle third
        assert resize_and_crop(frame, 32, 32).mean() == 1
        torch.testing.assert_close(resize(frame, 32, 32).mean(), torch.tensor(1 / 3), atol=5e-3, rtol=0)
        assert resize_and_crop(torch.rand(1, 3, 50, 33), 16, 16).shape == (1, 3, 16, 16)

    def test_the_checkpoints_configuration_is_obeyed(self) -> None:
        config = {"size": {"height": 8, "width": 8}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1.0]}
        change = preprocess_for(8, config, (CLIP_MEAN, CLIP_STD), None)
        assert change.aspect == "squash"
        seen = change(torch.ones(1, 1, 3, 8, 8))[0, 0, :, 0, 0]
        torch.testing.assert_close(seen, torch.tensor([2.0, 1.0, 0.5]))
        plain = preprocess_for((8, 4), {"size": {"shortest_edge": 8}}, (CLIP_MEAN, CLIP_STD), None)
        assert (plain.aspect, plain.mean, plain.width) == ("crop", CLIP_MEAN, 4)
        raw = preprocess_for(8, {"do_normalize": False}, (CLIP_MEAN, CLIP_STD), "squash")
        assert (raw.aspect, raw.mean, raw.std) == ("squash", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        with pytest.raises(ConfigError, match="squash, crop or pad"):
            preprocess_for(8, {}, (CLIP_MEAN, CLIP_STD), "stretch")  # type: ignore[arg-type]


class TestClipSimilarity:
    def test_equals_the_models_own_forward(self, clip_folder: Path) -> None:
        reward, batch = ClipSimilarity(str(clip_folder)), clips()
        mean, std = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
        for row, prompt in enumerate(PROMPTS):
            tokens = reward.tower.tokenizer([prompt], return_tensors="pt")
            output = reward.tower.model(**tokens, pixel_values=(batch.video[row] - mean) / std)
            cosine = output.logits_per_image[:, 0] / reward.tower.model.logit_scale.exp()
            torch.testing.assert_close(reward(batch)[row], cosine.mean(), atol=1e-6, rtol=1e-5)

    def test_each_clip_is_compared_with_its_own_prompt(self, clip_folder: Path) -> None:
        reward, batch = ClipSimilarity(str(clip_folder)), clips()
        swapped = VideoBatch(batch.video.flip(0), 8.0, Request(PROMPTS[::-1]))
        torch.testing.assert_close(reward(swapped).flip(0), reward(batch))
        crossed = VideoBatch(batch.video, 8.0, Request(PROMPTS[::-1]))
        assert (reward(crossed) - reward(batch)).abs().min() > 1e-4

    def test_gradient_reaches_pixels_and_nothing_else(self, clip_folder: Path) -> None:
        reward = ClipSimilarity(str(clip_folder))
        batch, pixels = with_pixels(clips(height=48, width=80))
        reward(batch).sum().backward()
        assert pixels.grad is not None
        assert (pixels.grad.abs().amax((2, 3, 4)) > 0).all()  # every frame of every clip
        assert all(p.grad is None for p in reward.tower.model.parameters())

    def test_long_prompts_are_cut_and_padding_changes_nothing(self, clip_folder: Path) -> None:
        reward = ClipSimilarity(str(clip_folder))
        long = "a red circle moving left " * 10
        together = reward.tower.text_features([PROMPTS[0], long], torch.device("cpu"))
        alone = ClipSimilarity(str(clip_folder)).tower.text_features([PROMPTS[0]], torch.device("cpu"))
        torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=1e-5)
        assert (together[1] - together[0]).abs().max() > 1e-3

    def test_text_is_encoded_once(self, clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("reelign.rewards.clip_tower.REMEMBERED_PROMPTS", 2)
        reward = ClipSimilarity(str(clip_folder))
        encoded: list[str] = []
        original = reward.tower._encode
        monkeypatch.setattr(reward.tower, "_encode", lambda prompts: encoded.extend(prompts) or original(prompts))
        cpu = torch.device("cpu")
        reward.tower.text_features(["a", "b", "a"], cpu)
        reward.tower.text_features(["b", "a"], cpu)
        assert encoded == ["a", "b"]
        reward.tower.text_features(["c"], cpu)  # pushes out "b", the one longest unused
        reward.tower.text_features(["a", "c"], cpu)
        reward.tower.text_features(["b"], cpu)
        assert encoded == ["a", "b", "c", "b"]

    def test_training_sees_what_the_reward_sees(self, clip_folder: Path) -> None:
        reward, batch = ClipSimilarity(str(clip_folder)), clips(frames=1)
        image = tiny_clip.image_features(reward.tower.model, batch.video[:, 0])
        text = tiny_clip.text_features(reward.tower.model, reward.tower.tokenizer, PROMPTS)
        torch.testing.assert_close(reward(batch), (image * text).sum(-1), atol=1e-6, rtol=1e-5)


class TestVideoAction:
    def test_equals_a_softmax_of_the_models_logits(self, action_folder: Path) -> None:
        reward, batch = VideoAction(str(action_folder)), clips(frames=17)
        mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        frames = batch.video[:, [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16]]
        odds = reward.model(pixel_values=(frames - mean) / std).logits.double().exp()
        expected = odds / odds.sum(1, keepdim=True)
        own = torch.stack([expected[0, ALL_MOTIONS.index("moving left")], expected[1, ALL_MOTIONS.index("growing")]])
        torch.testing.assert_close(reward(batch).double(), own, atol=1e-6, rtol=1e-5)
        assert (own - 1 / len(ALL_MOTIONS)).abs().max() > 1e-2

    def test_gradient_reaches_the_chosen_frames(self, action_folder: Path) -> None:
        reward = VideoAction(str(action_folder))
        batch, pixels = with_pixels(clips(frames=17))
        reward(batch).sum().backward()
        assert pixels.grad is not None
        touched = (pixels.grad.abs().amax((2, 3, 4)) > 0).tolist()
        assert touched == [[i != 8 for i in range(17)]] * 2
        assert all(p.grad is None for p in reward.model.parameters())

    def test_minus_log_has_the_gradient_of_cross_entropy_where_p_is_tiny(self, action_folder: Path) -> None:
        reward = VideoAction(str(action_folder))
        wanted = ALL_MOTIONS.index("moving left")
        reward.model.classifier.bias[wanted] = -60.0
        batch, pixels = with_pixels(clips(frames=16, prompts=PROMPTS[:1]))
        score = reward(batch)
        assert 0 < score.item() < 1e-20
        loss_form(score, "cross_entropy").sum().backward()
        again, other = with_pixels(batch)
        torch.nn.functional.nll_loss(reward.log_probabilities(again.video), torch.tensor([wanted])).backward()
        torch.testing.assert_close(pixels.grad, other.grad)
        reward.model.classifier.bias[wanted] = -500.0  # no float32 holds this probability, but its logarithm
        assert -600 < reward.log_probabilities(batch.video)[0, wanted] < -400

    def test_class_of_a_prompt(self, action_folder: Path) -> None:
        reward = VideoAction(str(action_folder), classes={"spinning": "rotating clockwise", "growing old": "shrinking"})
        for prompt, label in (
            ("A red circle Moving Left, fast", "moving left"),
            ("a red circle turning blue", "turning"),
            ("a red square rotating counterclockwise", "rotating counterclockwise"),
            ("a spinning square", "rotating clockwise"),
            ("a man growing old", "shrinking"),
            ("a flower growing", "growing"),
        ):
            assert ALL_MOTIONS[reward.labels.class_of(prompt)] == label
        for prompt in ("a red circle", "an overgrowing garden"):
            with pytest.raises(DataError, match="names none"):
                reward.labels.class_of(prompt)

    def test_an_unknown_label_is_refused(self, action_folder: Path) -> None:
        with pytest.raises(UnknownNameError, match="did you mean 'growing'"):
            VideoAction(str(action_folder), classes={"rising": "growin"})

    def test_golden_prompts_fit_the_model(self, action_folder: Path, tmp_path: Path) -> None:
        captions = ("a red circle moving left", "a white triangle rotating clockwise")
        assert VideoAction(str(action_folder)).golden_prompts(captions) == captions
        shutil.copytree(action_folder, tmp_path / "other")
        file = tmp_path / "other" / "config.json"
        config = json.loads(file.read_text())
        config["id2label"] = {str(i): f"action {i}" for i in range(len(ALL_MOTIONS))}
        config["label2id"] = {name: int(i) for i, name in config["id2label"].items()}
        file.write_text(json.dumps(config))
        assert VideoAction(str(tmp_path / "other")).golden_prompts(captions) == ("action 0", "action 1")

    def test_training_sees_what_the_reward_sees(self, action_folder: Path) -> None:
        reward, batch = VideoAction(str(action_folder)), clips(frames=17)
        logits = tiny_videomae.motion_logits(reward.model, batch.video)
        torch.testing.assert_close(reward.log_probabilities(batch.video), logits.log_softmax(-1))


class TestWeightFree:
    def test_temporal_smoothness_by_hand(self) -> None:
        values = torch.tensor([0.0, 0.5, 0.2, 0.2])  # second differences −0.8 and 0.3
        video = values.view(1, 4, 1, 1, 1).expand(1, 4, 3, 2, 2).clone()
        still = torch.linspace(0, 1, 4).view(1, 4, 1, 1, 1).expand(1, 4, 3, 2, 2)
        batch = VideoBatch(torch.cat([video, still]), 8.0, Request(("x", "y")))
        torch.testing.assert_close(TemporalSmoothness()(batch), torch.tensor([-0.55, 0.0]), atol=1e-6, rtol=0)
        with pytest.raises(DataError, match="at least 3 frames; got 2"):
            TemporalSmoothness()(clips(frames=2))

    def test_brightness_range_by_hand(self) -> None:
        video = torch.zeros(3, 1, 3, 1, 2)
        video[0, ..., 1] = 1.0  # one pixel black, one white: both cost 1
        video[1] = 0.5  # inside
        video[2, :, 1] = 0.25 / 0.587  # luma 0.25, half way to black from 0.5
        batch = VideoBatch(video, 8.0, Request(("a", "b", "c")))
        torch.testing.assert_close(BrightnessRange(0.5, 0.75)(batch), torch.tensor([0.0, 1.0, 0.5]), atol=1e-6, rtol=0)
        torch.testing.assert_close(BrightnessRange(0.0, 0.75)(batch)[0], torch.tensor(0.5))  # black costs nothing
        for low, high in ((0.5, 0.5), (-0.1, 0.9), (0.0, 1.0)):
            with pytest.raises(ConfigError, match="0 ≤ low < high ≤ 1"):
                BrightnessRange(low, high)

    def test_colour_coverage_by_hand(self) -> None:
        video = torch.zeros(2, 1, 3, 1, 2)
        red, white = (torch.tensor(PALETTE[name]) for name in ("red", "white"))
        video[0, 0, :, 0, 0] = red  # one pixel as asked, one black
        video[1] = white[:, None, None]
        batch = VideoBatch(video, 8.0, Request(("a red circle growing", "a white square growing")))
        torch.testing.assert_close(ColourCoverage()(batch), torch.tensor([-red.mean().item() / 2, 0.0]))
        with pytest.raises(DataError, match="'a circle' names none"):
            ColourCoverage()(VideoBatch(video, 8.0, Request(("a circle", "a red one"))))


class Fixed:
    """A reward with given scores, attached to the pixels or not."""

    def __init__(
        self,
        *scores: float,
        attached: bool = True,
        bounds: tuple[float, float] = (0.0, 1.0),
        differentiable: bool = True,
    ) -> None:
        self.values, self.attached = torch.tensor(scores), attached
        self.card = RewardCard("fixed", "Fixed scores.", bounds, differentiable=differentiable)

    def __call__(self, batch: VideoBatch) -> Tensor:
        return self.values + (0 * batch.video.sum() if self.attached else 0)


class TestWeighted:
    def test_loss_forms_by_hand(self) -> None:
        score = torch.tensor([0.25, 1.0])
        torch.testing.assert_close(loss_form(score, "maximise"), torch.tensor([-0.25, -1.0]))
        torch.testing.assert_close(loss_form(score, "distance", 0.5), torch.tensor([0.25, 0.5]))
        torch.testing.assert_close(loss_form(score, "cross_entropy"), torch.tensor([math.log(4), 0.0]))
        for wrong in (torch.tensor([0.0, 0.5]), torch.tensor([0.5, 1.1]), torch.tensor([-1.0])):
            with pytest.raises(ContractError, match=r"probabilities in \(0, 1\]"):
                loss_form(wrong, "cross_entropy")
        with pytest.raises(ConfigError, match="needs a target"):
            loss_form(score, "distance")

    def test_objective_by_hand(self) -> None:
        reward = WeightedReward(
            [
                Term("a", Fixed(0.2, 0.4), weight=2.0),
                Term("b", Fixed(0.5, 1.0), weight=0.5, loss="cross_entropy"),
                Term("c", Fixed(3.0, 12.0, bounds=(0.0, 20.0)), weight=0.1, loss="distance", target=10.0),
            ]
        )
        scores = reward.scores(clips())
        assert {name: value.tolist() for name, value in scores.items()}.keys() == {"a", "b", "c"}
        torch.testing.assert_close(scores["c"], torch.tensor([3.0, 12.0]))
        by_hand = torch.tensor([2 * 0.2 + 0.5 * math.log(0.5) - 0.1 * 7, 2 * 0.4 + 0 - 0.1 * 2])
        torch.testing.assert_close(reward.objective(scores), by_hand)
        torch.testing.assert_close(reward(clips()), by_hand)
        assert reward.card.range == (-math.inf, 2.0)
        assert reward.card.differentiable

    def test_joint_range_and_promises(self) -> None:
        terms = [Term("a", Fixed(bounds=(-1.0, 3.0)), weight=-2.0), Term("b", Fixed(differentiable=False), weight=0.5)]
        card = WeightedReward(terms).card
        assert card.range == (-6.0, 2.5)
        assert not card.differentiable
        far = Term("c", Fixed(bounds=(0.0, 4.0)), loss="distance", target=10.0)
        assert far.contribution_range() == (-10.0, -6.0)

    def test_a_reward_that_is_not_a_number_is_named(self) -> None:
        reward = WeightedReward([Term("good", Fixed(0.1, 0.2)), Term("bad", Fixed(0.1, math.nan))])
        with pytest.raises(NonFiniteError, match="'bad' is not a number for 1 of 2"):
            reward(clips())

    def test_a_broken_contract_is_named(self) -> None:
        with pytest.raises(ContractError, match=r"'short' returned shape \[1\]"):
            WeightedReward([Term("short", Fixed(0.1))])(clips())
        batch, _ = with_pixels(clips())
        cut = WeightedReward([Term("cut", Fixed(0.1, 0.2, attached=False))])
        with pytest.raises(ContractError, match="'cut' says it is differentiable"):
            cut(batch)
        cut(clips())  # nothing asks for gradient here
        with torch.no_grad():
            cut(batch)
        WeightedReward([Term("cut", Fixed(0.1, 0.2, attached=False, differentiable=False))])(batch)

    def test_terms_are_checked_when_made(self) -> None:
        with pytest.raises(ConfigError, match="one of"):
            Term("a", Fixed(0.0), loss="maximize")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="finite and not 0"):
            Term("a", Fixed(0.0), weight=0.0)
        with pytest.raises(ConfigError, match="a target goes with"):
            Term("a", Fixed(0.0), target=1.0)
        with pytest.raises(ConfigError, match="each name once"):
            WeightedReward([Term("a", Fixed(0.0)), Term("a", Fixed(0.0))])
        with pytest.raises(ConfigError, match="at least one term"):
            WeightedReward([])
