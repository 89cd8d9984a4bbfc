"""Metrics with a frame model: sizes, chunks, the two consistencies, CLIPScore and aesthetic quality."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, CLIPModel, ViTConfig, ViTModel

from reelign.datasets.moving_shapes import MovingShapes, ShapeSpec
from reelign.errors import ConfigError, DataError, ModelError, NonFiniteError
from reelign.metrics.aesthetic import AestheticQuality, aesthetic_quality, load_linear_head
from reelign.metrics.clip import ClipInfo, ClipMetric, Frame, Undefined, measure
from reelign.metrics.clip_score import ClipScoreMetric, clip_scores
from reelign.metrics.consistency_models import (
    BackgroundConsistency,
    Consistency,
    SubjectConsistency,
    clip_image_features,
    consistency,
)
from reelign.metrics.frame_features import (
    FrameMean,
    InChunks,
    cap_longer,
    centre_crop,
    resize_shorter,
    to_frames,
)
from reelign.rewards.clip_tower import as_tensor
from reelign.zoo.models import resolve_model

CPU = torch.device("cpu")


def noise(count, height=48, width=64, seed=0):
    random = np.random.default_rng(seed)
    return list(random.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def drawn(spec=None, seed=0):
    spec = spec or ShapeSpec("square", "red", "moving left")
    video = MovingShapes().render([spec], torch.Generator().manual_seed(seed))[0]
    return list((video.permute(0, 2, 3, 1) * 255).round().byte().numpy())


def constant_frames(*levels):
    return [np.full((4, 4, 3), level, np.uint8) for level in levels]


class TestSizes:
    @pytest.mark.parametrize(
        ("height", "width", "size"),
        [(480, 854, (224, 398)), (854, 480, (398, 224)), (224, 224, (224, 224)), (100, 101, (224, 226))],
    )
    def test_the_shorter_side_is_met_and_the_longer_floored(self, height, width, size):
        assert resize_shorter(torch.rand(1, 3, height, width), 224, "bilinear").shape[-2:] == size

    @pytest.mark.parametrize(("mode", "flag"), [("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC)])
    def test_pixels_are_opencvs(self, mode, flag):
        picture = np.random.default_rng(0).random((53, 90, 3), np.float32)
        ours = resize_shorter(torch.from_numpy(picture).permute(2, 0, 1)[None], 32, mode)
        theirs = cv2.resize(picture, (54, 32), interpolation=flag)
        np.testing.assert_allclose(ours[0].permute(1, 2, 0).numpy(), theirs, atol=1e-5)

    def test_large_frames_are_capped_and_small_ones_stay(self):
        assert cap_longer(torch.rand(1, 3, 480, 854), 512).shape[-2:] == (287, 512)
        small = torch.rand(1, 3, 300, 512)
        assert cap_longer(small, 512) is small
        assert cap_longer(torch.rand(1, 3, 1, 5000), 512).shape[-2:] == (1, 512)

    @pytest.mark.parametrize(("length", "first"), [(8, 2), (7, 2), (9, 2), (4, 0)])  # 1.5 and 2.5 both round to 2
    def test_the_crop_is_the_middle(self, length, first):
        row = torch.arange(length).expand(1, 3, 4, length)
        assert centre_crop(row, 4)[0, 0, 0].tolist() == list(range(first, first + 4))


class TestChunks:
    def test_every_frame_once_in_order_and_never_more_than_a_chunk(self):
        seen = []
        chunks = InChunks(seen.append, CPU, 3)
        for index, picture in enumerate(constant_frames(*range(8))):
            chunks.add(Frame(index, picture))
            assert len(chunks.waiting) < 3
        chunks.flush()
        chunks.flush()
        assert [len(part) for part in seen] == [3, 3, 2]
        assert (torch.cat(seen)[:, 0, 0, 0] * 255).round().tolist() == list(range(8))
        assert seen[0].dtype == torch.float32
        assert seen[0].is_contiguous()
        with pytest.raises(ConfigError, match="chunk=0"):
            InChunks(seen.append, CPU, 0)

    def test_channels_keep_their_places(self):
        picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
        assert to_frames([picture], CPU)[0, 2, 1, 3].item() == pytest.approx(23 / 255)

    @given(st.lists(st.integers(0, 255), min_size=1, max_size=20), st.integers(1, 7))
    def test_the_mean_does_not_depend_on_the_chunks(self, levels, chunk):
        state = FrameMean("level", lambda frames: frames.mean((1, 2, 3)), CPU, chunk)
        for index, picture in enumerate(constant_frames(*levels)):
            state.add(Frame(index, picture))
        assert state.finish()["level"] == pytest.approx(np.mean(levels) / 255, abs=1e-6)

    def test_no_frames_and_no_numbers_are_errors(self):
        with pytest.raises(DataError, match="at least one frame"):
            FrameMean("level", lambda frames: frames.mean((1, 2, 3)), CPU).finish()
        state = FrameMean("level", lambda frames: frames.mean((1, 2, 3)) * math.nan, CPU)
        state.add(Frame(0, constant_frames(1)[0]))
        with pytest.raises(NonFiniteError, match="level is a finite number; got nan"):
            state.finish()

    def test_no_gradient_is_kept(self):
        state = FrameMean("level", lambda frames: torch.full((len(frames),), float(torch.is_grad_enabled())), CPU)
        state.add(Frame(0, constant_frames(1)[0]))
        assert state.finish() == {"level": 0.0}


class TestConsistency:
    def test_by_hand(self):
        # Cosine to the one before: 0.6 and 0.8; to the first: 0.6 and 0.
        features = torch.tensor([[2.0, 0.0], [0.6, 0.8], [0.0, 5.0]])
        assert consistency(features) == pytest.approx(((0.6 + 0.6) / 2 + (0.8 + 0.0) / 2) / 2)

    def test_opposite_frames_count_as_0_not_less(self):
        features = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
        assert consistency(features) == pytest.approx(((0 + 0) / 2 + (1 + 0) / 2) / 2)

    def test_a_frozen_clip_scores_1(self):
        assert consistency(torch.ones(5, 3)) == pytest.approx(1)

    @given(st.integers(0, 10_000), st.integers(2, 20), st.integers(1, 8))
    def test_streaming_gives_the_loop_of_the_definition(self, seed, frames, chunk):
        vectors = np.random.default_rng(seed).normal(size=(frames, 5))

        def cosine(a, b):
            return max(0.0, float(a @ b / math.sqrt((a @ a) * (b @ b))))

        expected = np.mean(
            [(cosine(vectors[t], vectors[t - 1]) + cosine(vectors[t], vectors[0])) / 2 for t in range(1, frames)]
        )
        table = torch.from_numpy(vectors)
        state = Consistency("s", lambda x: table[(x[:, 0, 0, 0] * 255).round().long()], CPU, chunk)
        for index, picture in enumerate(constant_frames(*range(frames))):
            state.add(Frame(index, picture))
        assert consistency(table) == pytest.approx(expected, abs=1e-12)
        assert state.finish()["s"] == pytest.approx(expected, abs=1e-12)

    def test_one_frame_has_no_consistency(self):
        with pytest.raises(Undefined, match="at least 2 frames"):
            consistency(torch.ones(1, 3))
        (value,) = measure(noise(1), 8.0, [BackgroundConsistency()]).values()
        assert isinstance(value, Undefined)

    def test_memory_holds_two_features_and_less_than_a_chunk_of_frames(self):
        state = Consistency("s", lambda x: x.flatten(1)[:, :7], CPU, 4)
        for index in range(103):
            state.add(Frame(index, constant_frames(index)[0]))
        assert state.ends.shape == (2, 7)
        assert len(state.chunks.waiting) == 3


def cubic(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Cubic convolution (Keys 1981) with a = −0.75 of values [N,…] at places [M], edges repeated."""

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    rows = []
    for place in at:
        taps = range(math.floor(place) - 1, math.floor(place) + 3)
        rows.append(sum(kernel(place - tap) * values[min(max(tap, 0), len(values) - 1)] for tap in taps))
    return np.array(rows)


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A random ViT in DINO's layout: 14×14 patches of 16 pixels, no pooler."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=224, patch_size=16
    )
    model = ViTModel(config, add_pooling_layer=False)
    torch.nn.init.normal_(model.embeddings.position_embeddings, std=0.5)
    path = tmp_path_factory.mktemp("dino")
    model.save_pretrained(path)
    return path


class TestSubjectConsistency:
    def test_positions_are_stretched_as_in_dinos_program(self, dino):
        metric = SubjectConsistency(str(dino))
        pixels = torch.rand(1, 3, 224, 398)
        embeddings = metric.model.embeddings
        own = embeddings.position_embeddings[0].numpy()
        grid = own[1:].reshape(14, 14, -1)
        down = cubic(grid, (np.arange(14) + 0.5) * 14 / 14.1 - 0.5)
        stretched = cubic(down.swapaxes(0, 1), (np.arange(24) + 0.5) * 14 / 24.1 - 0.5).swapaxes(0, 1)
        patches = embeddings.patch_embeddings(pixels)[0].numpy()  # the last 14 columns of pixels make no patch
        expected = np.concatenate([embeddings.cls_token[0].numpy() + own[:1], patches + stretched.reshape(14 * 24, -1)])
        found = embeddings(pixels, interpolate_pos_encoding=True)[0].numpy()
        np.testing.assert_allclose(found, expected, atol=2e-5)

    def test_a_square_frame_is_the_plain_model(self, dino):
        metric, frames = SubjectConsistency(str(dino)), torch.rand(2, 3, 224, 224)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        pixels = (frames - mean[:, None, None]) / std[:, None, None]
        plain = ViTModel.from_pretrained(dino, add_pooling_layer=False).eval()
        with torch.no_grad():
            expected = plain(pixels).last_hidden_state[:, 0]
        torch.testing.assert_close(metric.features(frames), expected, atol=1e-5, rtol=0)

    def test_other_frames_are_resized_bilinearly(self, dino):
        metric, frame = SubjectConsistency(str(dino)), torch.rand(1, 3, 300, 448)
        scaled = cv2.resize(frame[0].permute(1, 2, 0).numpy(), (334, 224), interpolation=cv2.INTER_LINEAR)
        pixels = (scaled - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        batch = torch.tensor(pixels.transpose(2, 0, 1), dtype=torch.float32)[None]
        with torch.no_grad():
            expected = metric.model(pixel_values=batch, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        torch.testing.assert_close(metric.features(frame), expected, atol=1e-4, rtol=0)

    def test_a_clip(self, dino):
        metric, frames = SubjectConsistency(str(dino), chunk=2), noise(5)
        assert isinstance(metric, ClipMetric)
        value = measure(frames, 8.0, [metric])["subject_consistency"]
        assert value == pytest.approx(consistency(metric.features(to_frames(frames, CPU))), abs=1e-6)
        assert measure([frames[0]] * 3, 8.0, [metric])["subject_consistency"] == pytest.approx(1)
        assert str(dino) in metric.card.protocol
        assert "224" in metric.card.protocol

    def test_another_model_is_refused(self, tmp_path):
        with pytest.raises(ModelError):
            SubjectConsistency("zoo:tiny-clip")
        with pytest.raises(ModelError, match="no model folder"):
            SubjectConsistency(str(tmp_path / "none"))


class TestBackgroundConsistency:
    def test_features_are_clips_on_vbenchs_pixels(self):
        metric, frames = BackgroundConsistency(), torch.rand(2, 3, 96, 131)
        plain = CLIPModel.from_pretrained(resolve_model("zoo:tiny-clip"), dtype=torch.float32).eval()
        scaled = [cv2.resize(f.permute(1, 2, 0).numpy(), (87, 64), interpolation=cv2.INTER_CUBIC) for f in frames]
        pixels = torch.from_numpy(np.stack(scaled))[:, :, 12:76].permute(0, 3, 1, 2)  # 11.5 rounds to 12
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
        with torch.no_grad():
            hidden = plain.vision_model((pixels - mean) / std).pooler_output
            expected = plain.visual_projection(hidden)
        torch.testing.assert_close(metric.features(frames), expected, atol=1e-4, rtol=0)

    def test_a_cut_lowers_it(self):
        metric = BackgroundConsistency()
        whole = drawn(ShapeSpec("square", "red", "staying still"))
        cut = whole[:8] + drawn(ShapeSpec("circle", "green", "staying still"), seed=5)[:9]
        values = [measure(clip, 8.0, [metric])["background_consistency"] for clip in (whole, cut)]
        assert 0 <= values[1] < values[0] - 0.1
        assert values[0] <= 1
        assert "zoo:tiny-clip" in metric.card.protocol


class TestClipScore:
    def test_by_hand(self):
        images = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
        assert clip_scores(images, torch.tensor([1.0, 0.0])).tolist() == pytest.approx([100, 60, 0])

    def test_is_torchmetrics(self):
        functional = pytest.importorskip("torchmetrics.functional.multimodal")
        place, prompt, clip = resolve_model("zoo:tiny-clip"), "a red square moving left", drawn()
        tokenizer = AutoTokenizer.from_pretrained(place)

        def processor(text=None, images=None, return_tensors="pt", padding=True):
            mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
            pixels = [((i.permute(1, 2, 0).numpy() / 255 - mean) / std).transpose(2, 0, 1) for i in images or []]
            words = tokenizer(text, return_tensors=return_tensors, padding=padding) if text else {}
            return {"pixel_values": torch.tensor(np.array(pixels), dtype=torch.float32), **words}

        def load():
            model = CLIPModel.from_pretrained(place, dtype=torch.float32).eval()
            image, text = model.get_image_features, model.get_text_features
            model.get_image_features = lambda *args: as_tensor(image(*args))  # what torchmetrics 1.9 reads
            model.get_text_features = lambda *args: as_tensor(text(*args))
            return model, processor

        images = [torch.from_numpy(frame).permute(2, 0, 1) for frame in clip]
        expected = float(functional.clip_score(images, [prompt] * len(images), model_name_or_path=load))
        assert 10 < expected < 100
        assert measure(clip, 8.0, [ClipScoreMetric()], prompt)["clip_score"] == pytest.approx(expected, abs=1e-3)

    def test_the_right_prompt_scores_more_and_none_is_undefined(self):
        metric, clip = ClipScoreMetric(chunk=5), drawn()
        assert isinstance(metric, ClipMetric)
        prompts = ("a red square moving left", "a green circle moving left", "")
        right, wrong, none = (measure(clip, 8.0, [metric], prompt)["clip_score"] for prompt in prompts)
        assert 0 <= wrong < right - 20
        assert right <= 100
        assert isinstance(none, Undefined)
        assert "needs a prompt" in str(none)
        assert metric.card.needs_prompt
        assert not BackgroundConsistency().card.needs_prompt

    def test_it_is_the_rewards_number(self):
        from reelign.metrics.reward_metric import RewardMetric
        from reelign.rewards.clip_similarity import ClipScore

        clip, prompt = noise(11, 40, 70), "a red square moving left"
        values = measure(clip, 8.0, [ClipScoreMetric(chunk=4), RewardMetric(ClipScore(), "reward")], prompt)
        assert values["clip_score"] == pytest.approx(values["reward"], abs=1e-4)


class TestAesthetic:
    def test_by_hand(self):
        head = torch.nn.Linear(2, 1)
        with torch.no_grad():
            head.weight.copy_(torch.tensor([[3.0, 4.0]]))
            head.bias.fill_(1.0)
        scores = aesthetic_quality(torch.tensor([[6.0, 8.0], [0.0, -2.0]]), head)  # unit: (0.6, 0.8) and (0, −1)
        assert scores.tolist() == pytest.approx([0.6, -0.3])

    @pytest.fixture
    def head(self, tmp_path):
        width = CLIPModel.config_class.from_pretrained(resolve_model("zoo:tiny-clip")).projection_dim
        random = torch.Generator().manual_seed(1)
        path = tmp_path / "sa_0_4_vit_l_14_linear.pth"
        torch.save({"weight": torch.randn(1, width, generator=random), "bias": torch.tensor([5.0])}, path)
        return str(path)

    def test_a_clip(self, head):
        metric, clip = AestheticQuality(head, "zoo:tiny-clip", chunk=4), noise(6)
        weights = torch.load(head)
        features = clip_image_features(metric.model, metric.preprocess, to_frames(clip, CPU)).numpy()
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        expected = float(np.mean(unit @ weights["weight"][0].numpy() + 5) / 10)
        assert measure(clip, 8.0, [metric])["aesthetic_quality"] == pytest.approx(expected, abs=1e-5)
        reach = float(weights["weight"].norm())
        assert metric.card.range == pytest.approx(((5 - reach) / 10, (5 + reach) / 10))

    def test_what_is_no_linear_head_is_refused(self, tmp_path):
        torch.save({"layers.0.weight": torch.ones(1, 2)}, tmp_path / "mlp.pth")
        with pytest.raises(ModelError, match=r"holds layers\.0\.weight"):
            load_linear_head(str(tmp_path / "mlp.pth"))
        torch.save({"weight": torch.ones(1, 768), "bias": torch.ones(1)}, tmp_path / "large.pth")
        with pytest.raises(ModelError, match="reads features of 768"):
            AestheticQuality(str(tmp_path / "large.pth"), "zoo:tiny-clip")


def test_one_pass_feeds_them_all():
    metrics = [BackgroundConsistency(), ClipScoreMetric()]
    together = measure(drawn(), 8.0, metrics, "a red square moving left")
    alone = {}
    for metric in metrics:
        alone |= measure(drawn(), 8.0, [metric], "a red square moving left")
    assert together == alone
    assert metrics[0].start(ClipInfo(8.0, 64, 64)) is not metrics[0].start(ClipInfo(8.0, 64, 64))
