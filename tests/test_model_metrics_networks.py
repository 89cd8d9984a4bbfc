"""MUSIQ and LPIPS: the published layouts, numbers of the published programs, and pieces by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from reelign.errors import DataError, ModelError
from reelign.metrics.clip import ClipMetric, Undefined, measure
from reelign.metrics.frame_features import cap_longer, to_frames
from reelign.metrics.imaging_quality import ImagingQuality
from reelign.metrics.lpips import (
    ALEX,
    VGG,
    LpipsConsecutive,
    build_layers,
    load_lpips,
    lpips_distance,
    lpips_of_clips,
    unit,
)
from reelign.metrics.musiq import (
    Musiq,
    build_musiq,
    hashed_places,
    pad_to_cover,
    resize_longer,
    standardised,
    to_patches,
)

CPU = torch.device("cpu")


def noise(count, height=48, width=64, seed=0):
    random = np.random.default_rng(seed)
    return list(random.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


# The published checkpoints' names, with their shapes at width D, inner width M and N layers.
MUSIQ_LAYOUT = {
    "conv_root.weight": (64, 3, 7, 7),
    "gn_root.weight": (64,),
    "gn_root.bias": (64,),
    "block1.conv1.weight": (64, 64, 1, 1),
    "block1.conv2.weight": (64, 64, 3, 3),
    "block1.conv3.weight": (256, 64, 1, 1),
    "block1.conv_proj.weight": (256, 64, 1, 1),
    **{f"block1.gn{i}.{kind}": (64,) for i in (1, 2) for kind in ("weight", "bias")},
    **{f"block1.gn{i}.{kind}": (256,) for i in ("3", "_proj") for kind in ("weight", "bias")},
    "embedding.weight": ("D", 16384),
    "embedding.bias": ("D",),
    "transformer_encoder.cls": (1, 1, "D"),
    "transformer_encoder.posembed_input.position_emb": (1, 100, "D"),
    "transformer_encoder.scaleembed_input.scale_emb": (3, "D"),
    "transformer_encoder.encoder_norm.weight": ("D",),
    "transformer_encoder.encoder_norm.bias": ("D",),
    "head.weight": (1, "D"),
    "head.bias": (1,),
}
MUSIQ_BLOCK = {
    **{f"norm{i}.{kind}": ("D",) for i in (1, 2) for kind in ("weight", "bias")},
    **{f"attention.{part}.weight": ("D", "D") for part in ("query", "key", "value", "out")},
    **{f"attention.{part}.bias": ("D",) for part in ("query", "key", "value", "out")},
    "mlp.fc1.weight": ("M", "D"),
    "mlp.fc1.bias": ("M",),
    "mlp.fc2.weight": ("D", "M"),
    "mlp.fc2.bias": ("D",),
}


def musiq_shapes(width, inner, layers):
    block = "transformer_encoder.transformer.encoderblock_"
    names = MUSIQ_LAYOUT | {f"{block}{i}.{n}": shape for i in range(layers) for n, shape in MUSIQ_BLOCK.items()}
    sizes = {"D": width, "M": inner}
    return {name: tuple(sizes.get(side, side) for side in shape) for name, shape in names.items()}


def musiq_weights(width=24, inner=48, layers=2):
    """Weights that anyone can make again, from sines."""
    weights = {}
    for k, (name, shape) in enumerate(sorted(musiq_shapes(width, inner, layers).items())):
        i = torch.arange(int(np.prod(shape)), dtype=torch.float64)
        wave = torch.sin(0.7 * i + k) * torch.cos(i**1.5)
        one = 1.0 if ("norm" in name or "gn" in name) and name.endswith("weight") else 0.0
        weights[name] = (one + (0.02 if name == "embedding.weight" else 0.3) * wave).float().view(shape)
    return weights


def waves(height, width):
    i = torch.arange(3 * height * width, dtype=torch.float64).view(1, 3, height, width)
    return ((torch.sin(i * 0.013) + torch.cos(i**1.2 * 0.003)) / 4 + 0.5).float()


class TestMusiq:
    def test_the_layout_is_the_published_one(self):
        own = {name: tuple(value.shape) for name, value in Musiq().state_dict().items()}
        assert own == musiq_shapes(384, 1152, 14)

    # pyiqa's MUSIQ (the program VBench calls) on the same weights and images, in float32 on a CPU.
    @pytest.mark.parametrize(
        ("height", "width", "published"),
        [
            (64, 64, -1.3143529),
            (288, 512, -1.1754580),
            (333, 500, -1.2190406),
            (511, 37, -1.0993680),
            (480, 270, -1.1785747),
        ],
    )
    def test_scores_are_the_published_programs(self, height, width, published):
        model = build_musiq(musiq_weights(), "sines")
        with torch.no_grad():
            assert model(waves(height, width)).item() == pytest.approx(published, abs=2e-6)

    def test_a_score_does_not_depend_on_the_batch(self):
        model, images = build_musiq(musiq_weights(), "sines"), torch.rand(3, 3, 80, 100)
        with torch.no_grad():
            torch.testing.assert_close(model(images), torch.cat([model(i[None]) for i in images]), atol=1e-5, rtol=0)

    def test_places_by_hand(self):
        assert hashed_places(1, 4, 10).tolist() == [0, 2, 5, 7]
        assert hashed_places(3, 1, 10).tolist() == [0, 30, 60]
        assert hashed_places(2, 2, 3).tolist() == [0, 1, 3, 4]
        assert hashed_places(1, 20, 10).tolist() == [i // 2 for i in range(20)]

    def test_weights_are_standardised(self):
        weight = torch.tensor([1.0, 3.0, 5.0, 7.0]).view(1, 1, 2, 2)  # mean 4, unbiased variance 20/3
        expected = np.array([-3, -1, 1, 3]) / (np.sqrt(20 / 3) + 1e-5)
        assert standardised(weight).flatten().tolist() == pytest.approx(expected.tolist())

    def test_padding_is_tensorflows_same(self):
        padded = pad_to_cover(torch.ones(1, 1, 32, 33), 7, 2)
        assert padded.shape[-2:] == (37, 39)  # 16 and 17 steps of 2, and a kernel of 7
        assert padded[0, 0, :, 10].tolist() == [0] * 2 + [1] * 32 + [0] * 3
        assert padded[0, 0, 10].tolist() == [0] * 3 + [1] * 33 + [0] * 3
        assert pad_to_cover(torch.ones(1, 1, 8, 8), 1, 4).shape[-2:] == (8, 8)  # never cuts

    def test_patches_run_row_by_row(self):
        image = torch.arange(64 * 96.0).view(1, 1, 64, 96).expand(1, 3, -1, -1)
        patches, rows, columns = to_patches(image)
        assert (rows, columns) == (2, 3)
        assert torch.equal(patches[0, 4], image[0, :, 32:64, 32:64])
        patches, rows, columns = to_patches(torch.ones(2, 3, 33, 20))
        assert (rows, columns, patches.shape) == (2, 1, (2, 2, 3, 32, 32))
        assert patches[0, :, 0, :, 10].sum(1).tolist() == [17, 16]  # 31 rows of padding: 15 above, 16 below

    def test_views_keep_the_aspect(self):
        assert resize_longer(torch.rand(1, 3, 333, 500), 224).shape[-2:] == (149, 224)
        assert resize_longer(torch.rand(1, 3, 1, 900), 224).shape[-2:] == (1, 224)

    def test_other_checkpoints_are_refused(self):
        weights = musiq_weights()
        distribution = {k: v for k, v in weights.items() if not k.startswith("head")} | {"head.0.weight": torch.ones(1)}
        with pytest.raises(ModelError, match=r"with one score holds head\.weight"):
            build_musiq(distribution, "ava")
        with pytest.raises(ModelError, match="lacks 1"):
            build_musiq({k: v for k, v in weights.items() if k != "head.bias"}, "cut")
        with pytest.raises(ModelError, match="embeddings for 4"):
            build_musiq(weights | {"transformer_encoder.scaleembed_input.scale_emb": torch.ones(4, 24)}, "four")


class TestImagingQuality:
    def test_a_clip(self, tmp_path):
        torch.save(musiq_weights(), tmp_path / "musiq_spaq.pth")
        metric, clip = ImagingQuality(str(tmp_path / "musiq_spaq.pth"), chunk=2), noise(3, 40, 600)
        assert isinstance(metric, ClipMetric)
        model = build_musiq(musiq_weights(), "sines")
        with torch.no_grad():
            frames = cap_longer(to_frames(clip, CPU), 512)
            expected = np.mean([model(frame[None]).item() for frame in frames]) / 100
        assert frames.shape[-2:] == (34, 512)
        assert measure(clip, 8.0, [metric])["imaging_quality"] == pytest.approx(expected, abs=1e-6)
        assert "longer side at most 512" in metric.card.protocol


def alexnet_features():
    """torchvision's AlexNet up to its classifier, written out (Krizhevsky 2014)."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


def vgg16_features():
    """torchvision's VGG-16 up to its classifier (Simonyan and Zisserman 2015, column D)."""
    layers: list[nn.Module] = []
    inputs = 3
    for width in (64, 64, "pool", 128, 128, "pool", *[256] * 3, "pool", *[512] * 3, "pool", *[512] * 3, "pool"):
        if width == "pool":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(inputs, width, 3, 1, 1), nn.ReLU()]
            inputs = width
    return nn.Sequential(*layers)


NETWORKS = {"alex": alexnet_features, "vgg": vgg16_features}


@pytest.fixture(scope="module", params=["alex", "vgg"])
def files(request, tmp_path_factory):
    """A random backbone in torchvision's layout with a classifier, random heads, and the backbone itself."""
    torch.manual_seed(0)
    folder, network = tmp_path_factory.mktemp(request.param), NETWORKS[request.param]()
    weights = {f"features.{name}": value for name, value in network.state_dict().items()}
    torch.save(weights | {"classifier.1.weight": torch.ones(2, 2)}, folder / "backbone.pth")
    channels = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}[request.param]
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(channels)}
    torch.save(heads, folder / "heads.pth")
    return request.param, folder, network, heads


class TestLpips:
    def test_by_hand(self):
        # One layer, two channels, 1×2 positions. Unit vectors: (1,0) against (0,1), and (0.6,0.8) against itself.
        first = torch.tensor([[[[2.0, 3.0]], [[0.0, 4.0]]]])
        second = torch.tensor([[[[0.0, 6.0]], [[5.0, 8.0]]]])
        head = torch.tensor([0.5, 3.0])
        assert lpips_distance([first], [second], [head]).tolist() == pytest.approx([(0.5 + 3.0) / 2])
        # A second layer adds up: (1,0) against (−1,0) is 4 times the first channel's weight.
        east, west, heads = torch.tensor([[[[1.0]], [[0.0]]]]), torch.tensor([[[[-1.0]], [[0.0]]]]), [head, head / 2]
        other = lpips_distance([first, east], [second, west], heads)
        assert other.tolist() == pytest.approx([1.75 + 1.0])

    def test_nothing_stays_nothing(self):
        assert torch.equal(unit(torch.zeros(1, 3, 2, 2)), torch.zeros(1, 3, 2, 2))

    def test_is_the_sum_written_out(self, files):
        _, folder, network, heads = files
        lpips = load_lpips(str(folder / "backbone.pth"), str(folder / "heads.pth"))
        first, second = (to_frames(noise(2, 40, 47, seed), CPU) for seed in (1, 2))
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        a, b = (((2 * x - 1) - shift[:, None, None]) / scale[:, None, None] for x in (first, second))
        taps = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}[files[0]]
        total, layer = np.zeros(2), 0
        with torch.no_grad():
            for place, module in enumerate(network[: taps[-1] + 1]):
                a, b = module(a), module(b)
                if place in taps:
                    x, y = (v.numpy() / np.sqrt((v.numpy() ** 2).sum(1, keepdims=True) + 1e-30) for v in (a, b))
                    weight = heads[f"lin{layer}.model.1.weight"].numpy()
                    total += (weight * (x - y) ** 2).sum(1).mean((1, 2))
                    layer += 1
            found = lpips.between(first, second)
        assert layer == 5
        np.testing.assert_allclose(found.numpy(), total, rtol=1e-4)

    def test_is_torchmetrics_with_the_published_heads(self, files, monkeypatch):
        pytest.importorskip("torchmetrics")
        import torchmetrics.functional.image.lpips  # noqa: F401

        theirs = sys.modules["torchmetrics.functional.image.lpips"]
        kind, folder, network, _ = files
        monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained=False: network)
        heads = Path(theirs.__file__).parent / "lpips_models" / f"{kind}.pth"
        reference = theirs._LPIPS(net=kind, pnet_rand=True, model_path=str(heads))
        first, second = (to_frames(noise(3, 64, 70, seed), CPU) for seed in (3, 4))
        with torch.no_grad():
            expected = reference(first, second, normalize=True).flatten()
            found = load_lpips(str(folder / "backbone.pth"), str(heads)).between(first, second)
        assert expected.min() > 1e-3
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)

    def test_equal_images_are_0_and_order_does_not_matter(self, files):
        _, folder, _, _ = files
        lpips = load_lpips(str(folder / "backbone.pth"), str(folder / "heads.pth"))
        one, other = (to_frames(noise(1, 33, 33, seed), CPU) for seed in (5, 6))
        assert lpips.between(one, one).item() == 0
        assert lpips.between(one, other).item() == pytest.approx(lpips.between(other, one).item())
        assert lpips.between(one, other).item() > 0

    def test_between_clips(self, files):
        _, folder, _, _ = files
        lpips = load_lpips(str(folder / "backbone.pth"), str(folder / "heads.pth"))
        first, second = noise(3, 40, 40, 7), noise(3, 40, 40, 8)
        pairs = [
            lpips.between(to_frames([a], CPU), to_frames([b], CPU)).item() for a, b in zip(first, second, strict=True)
        ]
        assert lpips_of_clips(lpips, iter(first), iter(second)) == pytest.approx(np.mean(pairs), rel=1e-5)
        assert lpips_of_clips(lpips, first, first) == 0
        for longer, shorter in ((first, second[:2]), (first[:2], second)):
            with pytest.raises(DataError, match="one ends after 2 frames"):
                lpips_of_clips(lpips, longer, shorter)
        with pytest.raises(DataError, match="frames of one size"):
            lpips_of_clips(lpips, first, noise(3, 41, 40))
        with pytest.raises(DataError, match="got none"):
            lpips_of_clips(lpips, [], [])

    @pytest.mark.parametrize("chunk", [1, 2, 5])
    def test_between_consecutive_frames(self, files, chunk):
        _, folder, _, _ = files
        metric = LpipsConsecutive(str(folder / "backbone.pth"), str(folder / "heads.pth"), chunk=chunk)
        assert isinstance(metric, ClipMetric)
        clip = noise(5, 36, 36, 9)
        frames = to_frames(clip, CPU)
        expected = metric.lpips.between(frames[:-1], frames[1:]).mean().item()
        assert measure(clip, 8.0, [metric])["lpips_consecutive"] == pytest.approx(expected, rel=1e-5)
        assert measure([clip[0]] * 3, 8.0, [metric])["lpips_consecutive"] == pytest.approx(0, abs=1e-9)
        assert metric.lpips.backbone.name in metric.card.protocol

    def test_too_short_or_too_small_is_undefined(self, files):
        kind, folder, _, _ = files
        metric = LpipsConsecutive(str(folder / "backbone.pth"), str(folder / "heads.pth"))
        least = {"alex": 31, "vgg": 16}[kind]
        (single,) = measure(noise(1), 8.0, [metric]).values()
        (small,) = measure(noise(2, least - 1, 64), 8.0, [metric]).values()
        (enough,) = measure(noise(2, least, least), 8.0, [metric]).values()
        assert isinstance(single, Undefined)
        assert isinstance(small, Undefined)
        assert f"at least {least}×{least} pixels; got {least - 1}×64" in str(small)
        assert enough > 0
        with pytest.raises(RuntimeError):  # and below, the network has nothing to say
            metric.lpips.layers(torch.rand(1, 3, least - 1, least - 1))

    def test_files_that_do_not_fit_are_refused(self, files, tmp_path):
        kind, folder, network, heads = files
        backbone, linear = str(folder / "backbone.pth"), str(folder / "heads.pth")
        with pytest.raises(ModelError, match=r"LPIPS heads hold lin0\.model\.1\.weight"):
            load_lpips(backbone, backbone)
        torch.save(heads | {"lin5.model.1.weight": torch.ones(1, 512, 1, 1)}, tmp_path / "squeeze.pth")
        with pytest.raises(ModelError, match="for AlexNet or VGG-16"):
            load_lpips(backbone, str(tmp_path / "squeeze.pth"))
        torch.save({f"features.{k}": v for k, v in list(network.state_dict().items())[1:]}, tmp_path / "cut.pth")
        with pytest.raises(ModelError, match=r"lacks 1 \(features\.0\.weight"):
            load_lpips(str(tmp_path / "cut.pth"), linear)
        own = build_layers(VGG if kind == "alex" else ALEX)
        torch.save({f"features.{k}": v for k, v in own.state_dict().items()}, tmp_path / "other.pth")
        with pytest.raises(ModelError, match="does not fit"):
            load_lpips(str(tmp_path / "other.pth"), linear)
