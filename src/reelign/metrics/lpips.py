r"""LPIPS: how different do two images look? (Zhang et al. 2018, arXiv 1801.03924)

    d(x, x₀) = Σ_l 1/(H_l·W_l) Σ_hw Σ_c w_lc·(ŷ_hwc − ŷ₀_hwc)²      (eq. 1; ŷ = y/(‖y‖₂ + 1e-10), per position)

y are the features after five rectifiers of AlexNet or VGG-16, w ≥ 0 the learned weight of each channel. Images are in
[−1, 1], then (x − shift)/scale by channel, as in version 0.1. 0 for equal images; larger is more different.

Two files: a backbone in torchvision's keys (``features.0.weight``, …; a classifier is ignored), and linear heads in
those of the lpips package (``alex.pth``, ``vgg.pth``: ``lin0.model.1.weight`` [1,C,1,1], …). Which backbone it is
can be read off the heads. Left out: SqueezeNet, version 0.0, spatial maps.

Run: ``lpips_of_clips(load_lpips("alexnet.pth", "alex.pth"), first, second)``, or ``LpipsConsecutive`` as a metric.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reelign.errors import DataError, ModelError
from reelign.metrics.clip import ClipInfo, Frame, MetricCard, Picture, Undefined
from reelign.metrics.frame_features import InChunks, NotApplicable, finite_mean, to_frames
from reelign.zoo.published import fill, read_weights

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
UNIT_EPS = 1e-10


@dataclass(frozen=True)
class Backbone:
    """One of the two published networks.

    Args:
        name: for messages.
        convolutions: place in torchvision's ``features`` to (outputs, kernel, stride, padding); a rectifier follows.
        pools: places of max pooling, with its kernel; the stride is 2.
        taps: places whose output is compared.
        channels: of those outputs.
        least: smallest side of an image that leaves a feature at every tap.
        chunk: frames seen at once; the compared features of one 720p frame are 38 MB of AlexNet, 450 MB of VGG-16.
    """

    name: str
    convolutions: Mapping[int, tuple[int, int, int, int]]
    pools: Mapping[int, int]
    taps: tuple[int, ...]
    channels: tuple[int, ...]
    least: int
    chunk: int


ALEX = Backbone(
    name="AlexNet",
    convolutions={0: (64, 11, 4, 2), 3: (192, 5, 1, 2), 6: (384, 3, 1, 1), 8: (256, 3, 1, 1), 10: (256, 3, 1, 1)},
    pools={2: 3, 5: 3},
    taps=(1, 4, 7, 9, 11),
    channels=(64, 192, 384, 256, 256),
    least=31,
    chunk=4,
)
VGG = Backbone(
    name="VGG-16",
    convolutions={
        place: (outputs, 3, 1, 1)
        for outputs, places in ((64, (0, 2)), (128, (5, 7)), (256, (10, 12, 14)), (512, (17, 19, 21, 24, 26, 28)))
        for place in places
    },
    pools=dict.fromkeys((4, 9, 16, 23), 2),
    taps=(3, 8, 15, 22, 29),
    channels=(64, 128, 256, 512, 512),
    least=16,
    chunk=1,
)


def lpips_distance(first: Sequence[Tensor], second: Sequence[Tensor], heads: Sequence[Tensor]) -> Tensor:
    """d [N] from features [N,C_l,H_l,W_l] of two stacks of images, of any length, and heads w_l [C_l]."""
    parts = [
        torch.einsum("nchw,c->nhw", (unit(a) - unit(b)).square(), head).mean((1, 2))
        for a, b, head in zip(first, second, heads, strict=True)
    ]
    return torch.stack(parts).sum(0)


def unit(features: Tensor) -> Tensor:
    """ŷ: features [N,C,H,W] divided by their length over the channels, plus 1e-10."""
    return features / (features.square().sum(1, keepdim=True).sqrt() + UNIT_EPS)


class Lpips:
    """LPIPS with its weights.

    Args:
        backbone: which network ``layers`` are.
        layers: torchvision's ``features`` up to the last tap, frozen.
        heads: w_l [C_l].
    """

    def __init__(self, backbone: Backbone, layers: nn.Sequential, heads: Sequence[Tensor]) -> None:
        self.backbone, self.layers, self.heads = backbone, layers, list(heads)

    def to(self, device: torch.device) -> Lpips:
        """The same on a device."""
        return Lpips(self.backbone, self.layers.to(device), [head.to(device) for head in self.heads])

    def features(self, frames: Tensor) -> list[Tensor]:
        """Features [N,C_l,H_l,W_l] of frames [N,3,H,W] in [0,1].

        Raises:
            Undefined: the frames are too small for the network.
        """
        if reason := self.too_small(*frames.shape[-2:]):
            raise Undefined(reason)
        shift, scale = (frames.new_tensor(values)[:, None, None] for values in (SHIFT, SCALE))
        x, found = (2 * frames - 1 - shift) / scale, []
        for place, layer in enumerate(self.layers):
            x = layer(x)
            if place in self.backbone.taps:
                found.append(x)
        return found

    def too_small(self, height: int, width: int) -> str:
        """Why frames of this size cannot be compared, or an empty string."""
        least = self.backbone.least
        if min(height, width) >= least:
            return ""
        return f"LPIPS with {self.backbone.name} needs at least {least}×{least} pixels; got {height}×{width}"

    def between(self, first: Tensor, second: Tensor) -> Tensor:
        """d [N] of frames [N,3,H,W] in [0,1] and as many others."""
        return lpips_distance(self.features(first), self.features(second), self.heads)


def load_lpips(backbone: str, heads: str) -> Lpips:
    """LPIPS from two weight files, each a path or ``owner/name:file`` on the hub.

    Args:
        backbone: AlexNet or VGG-16 as torchvision publishes them, for example ``alexnet-owt-7be5be79.pth``.
        heads: the linear weights of version 0.1 for it, ``alex.pth`` or ``vgg.pth`` of the lpips package.

    Raises:
        ModelError: a file is missing or of another layout, or the two do not fit.
    """
    linear = read_weights(heads)
    if missing := [name for name in _head_names() if name not in linear]:
        raise ModelError(f"LPIPS heads hold {missing[0]}; {heads} does not: use alex.pth or vgg.pth of lpips 0.1")
    weights = [linear[name].flatten() for name in _head_names()]
    channels = tuple(len(weight) for weight in weights)
    known = {kind.channels: kind for kind in (ALEX, VGG)}
    if channels not in known or len(linear) != len(weights):
        raise ModelError(f"LPIPS heads are for AlexNet or VGG-16; {heads} has {len(linear)} for {channels} channels")
    network = nn.ModuleDict({"features": build_layers(known[channels])})
    fill(network, read_weights(backbone), backbone, ignore=("classifier.",))
    layers = network["features"]
    assert isinstance(layers, nn.Sequential)
    return Lpips(known[channels], layers, weights)


def build_layers(kind: Backbone) -> nn.Sequential:
    """torchvision's ``features`` of a backbone up to the last tap, at the published places, with random weights."""
    layers: list[nn.Module] = []
    inputs = 3
    for place in range(kind.taps[-1] + 1):
        if place in kind.convolutions:
            outputs, kernel, stride, padding = kind.convolutions[place]
            layers.append(nn.Conv2d(inputs, outputs, kernel, stride, padding))
            inputs = outputs
        elif place in kind.pools:
            layers.append(nn.MaxPool2d(kind.pools[place], 2))
        else:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _head_names() -> list[str]:
    return [f"lin{i}.model.1.weight" for i in range(5)]


def lpips_of_clips(lpips: Lpips, first: Iterable[Picture], second: Iterable[Picture], device: str = "cpu") -> float:
    """Mean LPIPS between the frames of two clips, first with first, second with second; one frame of each at a time.

    Args:
        lpips: from ``load_lpips``.
        first, second: uint8 [H,W,3] each, aligned by index.
        device: where frames are compared.

    Raises:
        DataError: the clips have no frames, or different sizes or numbers of frames.
    """
    place, total, count = torch.device(device), 0.0, 0
    lpips = lpips.to(place)
    for one, other in itertools.zip_longest(first, second):
        if one is None or other is None:
            raise DataError(f"LPIPS compares clips of equal length; one ends after {count} frames: cut the other")
        if one.shape != other.shape:
            raise DataError(f"LPIPS compares frames of one size; got {one.shape[:2]} and {other.shape[:2]}: resize one")
        with torch.no_grad():
            total += float(lpips.between(to_frames([one], place), to_frames([other], place))[0])
        count += 1
    return finite_mean("LPIPS", total, count)


class LpipsConsecutive:
    """Mean LPIPS between consecutive frames: how much the picture changes, as the eye sees it; 0 for a frozen clip.

    Args:
        model: the backbone's weight file.
        heads: the linear heads' weight file.
        device: where frames are compared.
        chunk: frames seen at once; by the backbone where None.
    """

    def __init__(self, model: str, heads: str, device: str = "cpu", chunk: int | None = None) -> None:
        self.device = torch.device(device)
        self.lpips = load_lpips(model, heads).to(self.device)
        self.chunk = chunk or self.lpips.backbone.chunk
        self.card = MetricCard(
            name="lpips_consecutive",
            version=1,
            values=("lpips_consecutive",),
            unit="LPIPS",
            range=(0.0, float("inf")),
            better="neither",
            protocol=f"LPIPS 0.1 with {self.lpips.backbone.name} ({model}, {heads}), all frames at the clip's own rate "
            "and size; mean over consecutive frames",
            source="Zhang et al. 2018, arXiv 1801.03924",
        )

    def start(self, info: ClipInfo) -> ConsecutiveDistance | NotApplicable:
        """A fresh accumulator for a clip."""
        if reason := self.lpips.too_small(info.height, info.width):
            return NotApplicable(reason)
        return ConsecutiveDistance(self.card.name, self.lpips, self.device, self.chunk)


class ConsecutiveDistance:
    """Accumulates the distances between consecutive frames; keeps the features of the last one."""

    def __init__(self, name: str, lpips: Lpips, device: torch.device, chunk: int) -> None:
        self.name, self.lpips = name, lpips
        self.chunks = InChunks(self._see, device, chunk)
        self.last: list[Tensor] = []
        self.total, self.count = 0.0, 0

    def add(self, frame: Frame) -> None:
        """See the next frame."""
        self.chunks.add(frame)

    def finish(self) -> dict[str, float]:
        """The mean distance, by its name; raises ``Undefined`` for a clip of one frame."""
        self.chunks.flush()
        if not self.count:
            raise Undefined("LPIPS between frames needs at least 2; this clip has 1")
        return {self.name: finite_mean(self.name, self.total, self.count)}

    def _see(self, frames: Tensor) -> None:
        found = self.lpips.features(frames)
        chain = [torch.cat([a, b]) for a, b in zip(self.last, found, strict=True)] if self.last else found
        self.last = [part[-1:].clone() for part in found]  # not a view, which would keep the whole stack
        before, now = [part[:-1] for part in chain], [part[1:] for part in chain]
        self.total += float(lpips_distance(before, now, self.lpips.heads).cpu().double().sum())
        self.count += len(chain[0]) - 1
