"""Features of folders: which frames, which pixels, which layer, read once; on drawn, real and hostile clips."""

from __future__ import annotations

import itertools
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reelign.errors import ClipError, ConfigError, DataError, ModelError, ReelignError
from reelign.metrics.feature_sets import Extractor, FeatureCache, FeatureProtocol, FrameChoice, extract, read_frames
from reelign.metrics.frechet import frechet_distance
from reelign.metrics.set_extractors import (
    build_extractor,
    clean_resize,
    clip_extractor,
    i3d_extractor,
    i3d_input,
    inception_extractor,
    tensorflow_resize,
    videomae_extractor,
    vjepa_extractor,
    weights_hash,
)
from reelign.video_io import read_clip, write_clip

CLIPS = SHARED / "data" / "clips"


def needs(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"the shared clips are not here: {folder}")
    return folder


def counting_clip(path: Path, frames: int, fps: float = 8.0, size: int = 32) -> Path:
    """Frame i is grey at level i/frames, so a frame tells its index."""
    levels = torch.arange(frames).float() / frames
    write_clip(path, levels[:, None, None, None].expand(frames, 3, size, size), fps, crf=0)
    return path


def indices(pictures: list[np.ndarray], frames: int) -> list[int]:
    return [round(float(picture.mean()) / 255 * frames) for picture in pictures]


class TestFrames:
    @pytest.mark.parametrize(
        ("choice", "expected"),
        [
            (FrameChoice(4, "first"), [0, 1, 2, 3]),
            (FrameChoice(4, "even"), [0, 7, 13, 20]),  # 6⅔ and 13⅓
            (FrameChoice(1, "even"), [10]),
            (FrameChoice(21, "even"), list(range(21))),
            (FrameChoice(4, "first", fps=4), [0, 2, 4, 6]),
            (FrameChoice(3, "first", fps=8), [0, 1, 2]),
            (FrameChoice(3, "first", fps=3), [0, 3, 5]),  # 2⅔ and 5⅓
        ],
    )
    def test_chosen_from_21_at_8_a_second(self, tmp_path: Path, choice: FrameChoice, expected: list[int]) -> None:
        clip = counting_clip(tmp_path / "a.mp4", 21)
        assert indices(read_frames(clip, choice), 21) == expected

    @pytest.mark.parametrize(
        ("choice", "message"),
        [
            (FrameChoice(22, "first"), "has 21 frames, this protocol needs 22"),
            (FrameChoice(22, "even"), "has 21 frames, this protocol needs 22"),
            (FrameChoice(12, "first", fps=4), "lasts 21 frames at 8 a second, this protocol needs 23"),
            (FrameChoice(2, "first", fps=24), "plays at 8 frames a second, below the 24"),
        ],
    )
    def test_a_clip_too_short_or_slow_is_refused_never_padded(
        self, tmp_path: Path, choice: FrameChoice, message: str
    ) -> None:
        with pytest.raises(ClipError, match=message):
            read_frames(counting_clip(tmp_path / "a.mp4", 21), choice)

    @pytest.mark.parametrize("name", ["finetrainers_hiker_tiny.mp4", "hostile/odd_65x47.webm"])
    def test_are_those_of_read_clip(self, name: str) -> None:
        """Also where the container does not announce how long it is (WebM)."""
        path = needs(CLIPS) / name
        video = read_clip(path).video
        choice = FrameChoice(5)
        found = read_frames(path, choice)
        for picture, index in zip(found, choice.indices(len(video), 0.0), strict=True):
            expected = (video[index] * 255).round().byte().permute(1, 2, 0).numpy()
            assert (picture == expected).all()

    @given(st.integers(1, 40), st.integers(1, 400), st.floats(1, 60), st.floats(1, 60))
    def test_indices_rise(self, frames: int, total: int, clip_fps: float, fps: float) -> None:
        for choice in (
            FrameChoice(frames),
            FrameChoice(frames, "first"),
            FrameChoice(frames, "first", min(fps, clip_fps)),
        ):
            found = choice.indices(total, clip_fps)
            assert len(found) == frames
            assert found[0] >= 0
            assert all(b > a for a, b in itertools.pairwise(found))
        if frames <= total:
            assert FrameChoice(frames).indices(total, 1)[-1] < total

    @pytest.mark.parametrize(
        "options",
        [
            {"frames": 0},
            {"frames": 2, "choice": "last"},
            {"frames": 2, "fps": 8},
            {"frames": 2, "choice": "first", "fps": 0},
            {"frames": "x"},
            {"frames": 2.5},
            {"frames": 2, "choice": "first", "fps": "x"},
        ],
    )
    def test_refuses(self, options: dict[str, object]) -> None:
        with pytest.raises(ConfigError):
            FrameChoice(**options)  # type: ignore[arg-type]


class TestExtraction:
    protocol = FeatureProtocol("clip", "some/model", "ab" * 32, "mean colour", "none", (8, 8), FrameChoice(3))

    def extractor(self, calls: list[int] | None = None, **changes: object) -> Extractor:
        def run(pictures: list[np.ndarray]) -> np.ndarray:
            if calls is not None:
                calls.append(len(pictures))
            return np.stack([picture.mean((0, 1)) for picture in pictures])

        return Extractor(replace(self.protocol, **changes), run)  # type: ignore[arg-type]

    def test_real_and_hostile_clips(self) -> None:
        """What cannot be read is a row with its reason; everything else gives features."""
        folder = needs(CLIPS) / "hostile"
        clips = {path.name: path for path in sorted(folder.iterdir())}
        found = extract(clips, self.extractor())
        assert found.values.shape == (len(found.files), 3, 3)
        assert set(found.files) | set(found.failed) == set(clips)
        assert not set(found.files) & set(found.failed)
        assert {"zero_byte.mp4", "text_named.mp4", "truncated_no_index.mp4", "truncated_with_index.mp4"} <= set(
            found.failed
        )
        assert "has 1 frames, this protocol needs 3" in found.failed["one_frame.mp4"]
        assert {"odd_65x47.mp4", "gray16.mkv", "yuv444.mp4", "decord_unordered.mov"} <= set(found.files)
        assert all(reason and "\n" not in reason for reason in found.failed.values())

    def test_a_second_run_computes_nothing(self, tmp_path: Path) -> None:
        clips = {f"{n}.mp4": counting_clip(tmp_path / f"{n}.mp4", n) for n in (5, 6, 7)}
        calls: list[int] = []
        cache = FeatureCache(tmp_path / "cache")
        first = extract(clips, self.extractor(calls), cache)
        renamed = {"other name": clips["5.mp4"].rename(tmp_path / "moved.mp4")} | {
            k: v for k, v in clips.items() if k != "5.mp4"
        }
        again = extract(renamed, self.extractor(calls), cache)
        assert (first.computed, again.computed, len(calls)) == (3, 0, 3)
        assert (again.values == first.values).all()
        assert again.files == ("other name", "6.mp4", "7.mp4")
        assert extract(renamed, self.extractor(calls, weights="cd" * 32), cache).computed == 3
        assert extract(renamed, self.extractor(calls, model="a/copy"), cache).computed == 0

    def test_a_changed_file_is_another_clip(self, tmp_path: Path) -> None:
        cache, path = FeatureCache(tmp_path / "cache"), tmp_path / "a.mp4"
        first = extract({"a": counting_clip(path, 5)}, self.extractor(), cache)
        second = extract({"a": counting_clip(path, 9)}, self.extractor(), cache)
        assert second.computed == 1
        assert first.hashes != second.hashes
        assert not np.allclose(first.values, second.values)

    def test_a_damaged_cache_is_said_and_mended(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        cache = FeatureCache(tmp_path / "cache")
        clips = {"a": counting_clip(tmp_path / "a.mp4", 5)}
        first = extract(clips, self.extractor(), cache)
        (file,) = (tmp_path / "cache").rglob("*.npy")
        for content in (b"", b"nonsense", file.read_bytes()[:-5]):
            file.write_bytes(content)
            with caplog.at_level(logging.WARNING):
                again = extract(clips, self.extractor(), cache)
            assert (again.values == first.values).all()
            assert again.computed == 1
            assert "computed again" in caplog.text
            caplog.clear()
        assert extract(clips, self.extractor(), cache).computed == 0

    def test_a_cache_never_unpickles(self, tmp_path: Path) -> None:
        cache = FeatureCache(tmp_path / "cache")
        clips = {"a": counting_clip(tmp_path / "a.mp4", 5)}
        extract(clips, self.extractor(), cache)
        (file,) = (tmp_path / "cache").rglob("*.npy")

        class Trap:
            def __reduce__(self) -> tuple[object, ...]:
                return os.mkdir, (str(tmp_path / "sprung"),)

        np.save(file, np.array([Trap()], dtype=object), allow_pickle=True)
        assert extract(clips, self.extractor(), cache).computed == 1
        assert not (tmp_path / "sprung").exists()

    def test_no_feature_at_all_is_an_error_with_the_first_reason(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no clip gives features of clip: a: has 2 frames, this protocol needs 3"):
            extract({"a": counting_clip(tmp_path / "a.mp4", 2)}, self.extractor())
        with pytest.raises(DataError, match="there is no clip"):
            extract({}, self.extractor())

    def test_nan_is_a_reason(self, tmp_path: Path) -> None:
        clips = {f"{n}.mp4": counting_clip(tmp_path / f"{n}.mp4", n) for n in (5, 6)}
        values = iter([np.nan, 1.0])
        broken = Extractor(self.protocol, lambda pictures: np.full((3, 2), next(values)))
        found = extract(clips, broken, FeatureCache(tmp_path / "cache"))
        assert found.failed == {"5.mp4": "clip gives features that are not finite numbers"}
        assert found.files == ("6.mp4",)
        assert len(list((tmp_path / "cache").rglob("*.npy"))) == 1

    @pytest.mark.parametrize(
        "change",
        [{"weights": "x"}, {"preprocessing": "x"}, {"feature": "x"}, {"resolution": (9, 8)}, {"frames": FrameChoice(4)},
         {"frames": FrameChoice(3, "first")}, {"family": "i3d"}],
    )  # fmt: skip
    def test_every_part_of_a_protocol_is_in_its_id(self, change: dict[str, object]) -> None:
        assert replace(self.protocol, **change).id != self.protocol.id  # type: ignore[arg-type]
        assert replace(self.protocol, model="another path").id == self.protocol.id


class TinyI3D(nn.Module):
    """The signature of the published file; refuses what that file's later layers could not take."""

    def __init__(self, length: int = 400) -> None:
        super().__init__()
        self.head = nn.Linear(6, length)

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        if rescale or resize or not return_features or x.shape[3] != 224 or x.shape[4] != 224 or x.ndim != 5:
            raise RuntimeError("not called as FVD calls it")
        if x.min() < -1.001 or x.max() > 1.001:
            raise RuntimeError("pixels are not in [-1,1]")
        return self.head(torch.cat([x.mean((2, 3, 4)), x.std((2, 3, 4))], 1))


class TinyInception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2048, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("scripts")
    torch.manual_seed(0)
    models = {"i3d": TinyI3D(), "short": TinyI3D(10), "inception": TinyInception()}
    for name, model in models.items():
        torch.jit.script(model).save(str(folder / f"{name}.pt"))
    return {name: str(folder / f"{name}.pt") for name in models}


def pictures(frames: int = 16, height: int = 48, width: int = 64, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8))


class TestI3D:
    def test_tensorflow_resize_by_hand(self) -> None:
        """2 to 4 pixels: read at 0, ½, 1, 1½; TensorFlow 1 has no half-pixel centres, and holds the last pixel."""
        row = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
        assert tensorflow_resize(row, 1, 4).flatten().tolist() == [0, 0.5, 1, 1]
        column = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 1, 4, 1)
        assert tensorflow_resize(column, 2, 1).flatten().tolist() == [0, 2]

    def test_google_stretches_and_stylegan_crops(self) -> None:
        """Twice as wide as high, left fifth white: stretched it stays a fifth, cropped it is gone."""
        video = torch.zeros(10, 3, 112, 224)
        video[..., :45] = 1
        stretched, cropped = (i3d_input(video, way) for way in ("google", "stylegan"))
        assert stretched.shape == cropped.shape == (3, 10, 224, 224)
        assert float((stretched + 1).mean()) / 2 == pytest.approx(0.2, abs=0.01)
        assert float(cropped.max()) == -1

    @pytest.mark.parametrize(("height", "width"), [(224, 224), (100, 130), (130, 100), (720, 1280), (225, 224)])
    def test_stylegan_is_torchs_bilinear_then_the_centre(self, height: int, width: int) -> None:
        video = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        scale = 224 / min(height, width)
        size = [-(-height * 224 // min(height, width)), -(-width * 224 // min(height, width))]
        assert min(size) == 224
        assert abs(max(size) - scale * max(height, width)) < 1
        whole = F.interpolate(video, size, mode="bilinear", align_corners=False)
        top, left = (size[0] - 224) // 2, (size[1] - 224) // 2
        expected = whole[..., top : top + 224, left : left + 224] * 2 - 1
        assert torch.allclose(i3d_input(video, "stylegan").transpose(0, 1), expected, atol=1e-6)

    def test_features(self, scripts: dict[str, str]) -> None:
        extractor = i3d_extractor(scripts["i3d"])
        assert extractor.run(pictures()).shape == (1, 400)
        assert extractor.protocol.frames == FrameChoice(16, "first")
        assert extractor.protocol.id != i3d_extractor(scripts["i3d"], way="stylegan").protocol.id
        white = np.full((12, 40, 40, 3), 255, np.uint8)
        head = torch.jit.load(scripts["i3d"]).head
        expected = head(torch.tensor([[1.0, 1, 1, 0, 0, 0]])).detach().numpy()
        assert i3d_extractor(scripts["i3d"], frames=12).run(list(white)) == pytest.approx(expected, abs=1e-5)

    def test_refuses(self, scripts: dict[str, str], tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"shape \(1, 10\); its family gives \(1, 400\)"):
            i3d_extractor(scripts["short"]).run(pictures())
        with pytest.raises(ModelError, match="cannot be run as its family is"):
            i3d_extractor(scripts["inception"]).run(pictures())
        with pytest.raises(ConfigError, match="at least 10 frames; got 9"):
            i3d_extractor(scripts["i3d"], frames=9)
        with pytest.raises(ConfigError, match="'google' or the 'stylegan' way; got 'crop'"):
            i3d_extractor(scripts["i3d"], way="crop")  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="there is no TorchScript file"):
            i3d_extractor(str(tmp_path / "none.pt"))
        (tmp_path / "text.pt").write_text("not a network")
        with pytest.raises(ModelError, match="is not TorchScript"):
            i3d_extractor(str(tmp_path / "text.pt"))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("clips", "frames", "expected", "tolerance"), [(16, 15, 131.0, 1.0), (8, 30, 151.256, 0.05)]
    )
    def test_published_conformance(self, clips: int, frames: int, expected: float, tolerance: float) -> None:
        """Black against white clips of 64×64: Google's self-test, and JunyaoHu's with the TorchScript file."""
        if not (file := os.environ.get("REELIGN_I3D")):
            pytest.skip("REELIGN_I3D does not name i3d_torchscript.pt")
        extractor = i3d_extractor(file, frames=frames)
        black, white = (
            np.repeat(extractor.run([np.full((64, 64, 3), level, np.uint8)] * frames), clips, 0) for level in (0, 255)
        )
        assert frechet_distance(black, white) == pytest.approx(expected, abs=tolerance)


class TestInception:
    def test_clean_resize_is_torchs_antialiased_bicubic(self) -> None:
        """Pillow's filter in float32; PyTorch's antialias=True was written after it, on its own."""
        for height, width in ((64, 48), (480, 640), (299, 299)):
            (picture,) = pictures(1, height, width)
            x = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
            expected = F.interpolate(x, (299, 299), mode="bicubic", antialias=True, align_corners=False)[0].numpy()
            assert np.abs(clean_resize(picture) - expected).max() < 0.02

    def test_sees_pixels_around_128(self, scripts: dict[str, str]) -> None:
        extractor = inception_extractor(scripts["inception"], frames=3)
        frames = [np.full((20, 30, 3), level, np.uint8) for level in (0, 128, 255)]
        convolution = torch.jit.load(scripts["inception"]).layers
        values = torch.tensor([-1.0, 0, 127 / 128]).view(3, 1, 1, 1).expand(3, 3, 299, 299)
        expected = convolution(values).flatten(1).detach().numpy()
        assert extractor.run(frames) == pytest.approx(expected, abs=1e-4)

    def test_refuses_another_file(self, scripts: dict[str, str]) -> None:
        with pytest.raises(ModelError, match="has no 'layers'"):
            inception_extractor(scripts["i3d"])


class TestTransformers:
    def test_videomae_features_are_what_its_classifier_sees(self) -> None:
        from transformers import VideoMAEForVideoClassification

        from reelign.rewards.video_action import VideoAction
        from reelign.zoo.models import load_whole

        frames = pictures(16, 64, 64)
        features = videomae_extractor().run(frames)
        whole = load_whole(VideoMAEForVideoClassification, "zoo:tiny-videomae")
        logits = whole.classifier(torch.from_numpy(features).float()).log_softmax(-1)
        video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()[None] / 255
        with torch.no_grad():
            expected = VideoAction().log_probabilities(video)
        assert torch.allclose(logits, expected, atol=1e-4)

    def test_clip_features_are_the_rewards(self) -> None:
        from reelign.rewards.clip_tower import load_tower

        frames = pictures(8, 50, 70)
        features = clip_extractor().run(frames)
        video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()[None] / 255
        with torch.no_grad():
            expected = load_tower("zoo:tiny-clip").image_features(video)[0].numpy()
        assert features == pytest.approx(expected, abs=1e-5)
        assert np.linalg.norm(features, axis=1) == pytest.approx(np.ones(8), abs=1e-6)

    @pytest.mark.parametrize("pooled", [False, True])
    def test_vjepa(self, tmp_path: Path, pooled: bool) -> None:
        """With a classifier the features are what it sees; without, the mean of the encoder's tokens."""
        from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model

        torch.manual_seed(3)
        config = VJEPA2Config(
            patch_size=8, crop_size=32, frames_per_clip=8, tubelet_size=2, hidden_size=48, num_attention_heads=4,
            num_hidden_layers=2, pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=2,
            num_pooler_layers=1,
        )  # fmt: skip
        model = (VJEPA2ForVideoClassification if pooled else VJEPA2Model)(config).eval()
        model.save_pretrained(tmp_path)
        extractor = vjepa_extractor(str(tmp_path), frames=8)
        frames = pictures(8, 32, 32)
        mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        x = ((torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255 - mean) / deviation)[None]
        features = torch.from_numpy(extractor.run(frames)).float()
        with torch.no_grad():
            if pooled:
                assert torch.allclose(model.classifier(features), model(x).logits, atol=1e-4)
            else:
                assert torch.allclose(features, model(x).last_hidden_state.mean(1), atol=1e-4)
        with pytest.raises(ConfigError, match="multiple of 2; got 7"):
            vjepa_extractor(str(tmp_path), frames=7)

    def test_weights_hash_sees_one_weight(self) -> None:
        model = nn.Linear(3, 2)
        before = weights_hash(model)
        assert weights_hash(model) == before
        with torch.no_grad():
            model.bias[1] += 1e-3
        assert weights_hash(model) != before

    def test_names(self, tmp_path: Path) -> None:
        with pytest.raises(ReelignError, match="did you mean 'videomae'"):
            build_extractor("videomea")
        with pytest.raises(ConfigError, match=r"features of i3d need a model: name it with --model i3d=PATH"):
            build_extractor("i3d")
        assert build_extractor("clip", frames=4).protocol.frames.frames == 4
