r"""Layers of video translation: a causal ConvLSTM encoder and decoder, two discriminators, and a Q-network.

The encoder-decoder looks at one frame at a time and remembers what it saw in a ConvLSTM (Shi et al. 2015, eq. 3,
without peepholes), so that a frame depends on the frames before it and on none after:

    i, f, o, g = W_x * x_t + W_h * h_{t−1} + b       c_t = σ(f)·c_{t−1} + σ(i)·tanh(g)       h_t = σ(o)·tanh(c_t)

Its output is its input and two changes, u_t = clamp(x_t + κ(x_t) + 0.1·Δ(x_{1:t}), 0, 1), which begin as zero: of
all bijections of colours that fool a discriminator, the one nearest to no change is what people mean, and this is where
training begins. κ maps colours pixel by pixel and so leaves every edge where it is; Δ, which sees what is around and
what was before, adds what colours alone cannot say. κ is made of plateaus: what is nearly one colour is moved as one,
and keeps its texture. A map that slopes from what stays to what goes dark turns textures into their negatives, which no
discriminator can tell.

Beside the published layers (RL-V2V-GAN, section C.1 of its specification): residual blocks project where channels
change; frames are folded by two and halved once more, for at full size the first dense layer of a discriminator alone
has 8.6 billion weights; discriminators judge patches and average, so any size and length fits; values are normalised
over channels at each place, for statistics of a batch or of a frame would make frames depend on others or lose their
brightness. Left out: convolution over time outside the video discriminator.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from reelign.errors import DataError

State = tuple[Tensor, Tensor]  # h and c of a ConvLSTM, each [B,hidden,H/4,W/4]
FOLD = 4  # frames are padded to multiples of this: folded by 2, halved once
SMALLEST = 16  # pixels of the shorter side
AROUND = 0.1  # weight of Δ
EDGES: Literal["replicate"] = "replicate"  # how translators go on beyond a picture; zeros would draw a frame around it


class ChannelNorm(nn.Module):
    """x / sqrt(mean over channels of x² + 1e-4) at each place of [N,C,H,W], with a learned gain a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-4) * self.gain


class ResidualBlock(nn.Module):
    """Norm, ReLU, 3×3, ReLU, 3×3, added to the input; a 1×1 projection of the input where channels change."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode=EDGES)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, padding_mode=EDGES)
        self.project = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N,inputs,H,W] to [N,outputs,H,W]."""
        change: Tensor = self.second(functional.relu(self.first(functional.relu(self.norm(x)))))
        projected: Tensor = self.project(x)
        return projected + change


class ConvLSTM(nn.Module):
    """A ConvLSTM of 3×3 convolutions.

    Args:
        inputs, hidden: channels.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.of_input = nn.Conv2d(inputs, 4 * hidden, 3, padding=1, padding_mode=EDGES)
        self.of_hidden = nn.Conv2d(hidden, 4 * hidden, 3, padding=1, padding_mode=EDGES, bias=False)
        with torch.no_grad():
            assert self.of_input.bias is not None
            self.of_input.bias[hidden : 2 * hidden] += 1.0  # it begins by remembering

    def forward(self, x: Tensor, state: State | None, forget: bool = False) -> tuple[Tensor, State]:
        """[B,T,inputs,H,W] and the state before it to h [B,T,hidden,H,W] and the state after it.

        Args:
            state: None is all zero.
            forget: begin every frame from zero, as if it were the first.
        """
        count, frames = x.shape[:2]
        gates = self.of_input(x.flatten(0, 1))
        if forget:
            h, c = self._cell(gates, torch.zeros_like(gates[:, : self.hidden]))
            h, c = (part.reshape(count, frames, *part.shape[1:]) for part in (h, c))
            return h, (h[:, -1], c[:, -1])
        gates = gates.reshape(count, frames, *gates.shape[1:])
        h, c = state or (torch.zeros_like(gates[:, 0, : self.hidden]),) * 2
        outputs = []
        for t in range(frames):
            h, c = self._cell(gates[:, t] + self.of_hidden(h), c)
            outputs.append(h)
        return torch.stack(outputs, 1), (h, c)

    @staticmethod
    def _cell(gates: Tensor, c: Tensor) -> State:
        let_in, keep, let_out, new = gates.chunk(4, 1)
        c = keep.sigmoid() * c + let_in.sigmoid() * new.tanh()
        return let_out.sigmoid() * c.tanh(), c


class OneWayClamp(torch.autograd.Function):
    """clamp(x, 0, 1), whose gradient at values outside is kept where descent along it leads back inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Same shape, in [0,1]."""
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The gradient, zero where a step against it would lead further outside."""
        (x,), (gradient,) = ctx.saved_tensors, gradients
        outwards = ((x < 0) & (gradient > 0)) | ((x > 1) & (gradient < 0))
        return gradient.masked_fill(outwards, 0)


class ColourMap(nn.Module):
    """κ: what is added to a pixel of a colour, whatever is around it; zero at first.

    Args:
        width: of its hidden layers, whose tanh begin steep and so make plateaus.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 1)
        self.second = nn.Conv2d(width, width, 1)
        self.last = nn.Conv2d(width, 3, 1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N,3,H,W] in [−1,1] to changes of colours in [0,1], same shape."""
        hidden = self.first(3 * x).tanh()
        changes: Tensor = 2 * self.last(self.second(2 * hidden).tanh())
        return changes


class FrameNetwork(nn.Module):
    """A causal map of clips to clips: one residual, recurrent encoder and decoder. Translators and predictors are such.

    Args:
        channels: of frames folded by two; twice as many at half their size.
        hidden: channels of the ConvLSTM.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.into = nn.Conv2d(12, channels, 3, padding=1, padding_mode=EDGES)
        self.outer = ResidualBlock(channels, channels)
        self.down = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, padding_mode=EDGES)
        self.inner = ResidualBlock(2 * channels, 2 * channels)
        self.memory = ConvLSTM(2 * channels, hidden)
        self.after = ResidualBlock(hidden, 2 * channels)
        self.up = nn.Conv2d(2 * channels, 4 * channels, 3, padding=1, padding_mode=EDGES)
        self.finish = ResidualBlock(channels, channels)
        self.unfold = nn.Conv2d(channels, 4 * (channels // 2), 1)
        self.mix = nn.Conv2d(channels // 2 + 3, channels, 3, padding=1, padding_mode=EDGES)
        self.blend = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, 3, 3, padding=1, padding_mode=EDGES)
        self.colours = ColourMap(2 * channels)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)
        with torch.no_grad():  # the four pixels that a place unfolds to begin alike, so that no chequers show
            for layer in (self.up, self.unfold):
                assert layer.bias is not None
                layer.weight.copy_(layer.weight[::4].repeat_interleave(4, 0))
                layer.bias.copy_(layer.bias[::4].repeat_interleave(4, 0))
        for weight in (p for p in self.parameters() if p.ndim == 4):  # a quarter faster on a processor
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, video: Tensor, state: State | None = None, forget: bool = False) -> tuple[Tensor, State]:
        """[B,T,3,H,W] in [0,1] to as much in [0,1], and the state after the last frame.

        Args:
            state: after the frames before these; None where these are the first.
            forget: no memory between frames.

        Raises:
            DataError: no clip of three channels, or a side under 16 pixels.
        """
        check_clips(video)
        count, frames, _, height, width = video.shape
        x = video.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        padded = functional.pad(x, (0, -width % FOLD, 0, -height % FOLD), mode="replicate")
        scaled = 2 * padded - 1
        outer = self.outer(self.into(functional.pixel_unshuffle(scaled, 2)))
        inner = self.inner(self.down(outer))
        remembered, state = self.memory(inner.reshape(count, frames, *inner.shape[1:]), state, forget)
        inner = inner + self.after(remembered.flatten(0, 1))
        outer = outer + functional.pixel_shuffle(self.up(inner), 2)
        whole = functional.pixel_shuffle(self.unfold(self.finish(outer)), 2)
        mixed = functional.relu(self.mix(torch.cat([whole, scaled], 1)))
        change = self.colours(scaled) + AROUND * self.out(functional.relu(self.blend(mixed)))
        changed: Tensor = OneWayClamp.apply(x + change[..., :height, :width])  # type: ignore[no-untyped-call]
        return changed.reshape(video.shape), state


class FrameDiscriminator(nn.Module):
    """Which of two pictures is of the domain, patch by patch; weights divided by their largest singular value.

    Spectral norm: Miyato et al. 2018; patches: Isola et al. 2017.

    Args:
        channels: of its first layer.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                spectral_norm(nn.Conv2d(6, channels, 3, padding=1)),
                spectral_norm(nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1)),
                spectral_norm(nn.Conv2d(2 * channels, 4 * channels, 4, stride=2, padding=1)),
                spectral_norm(nn.Conv2d(4 * channels, 4 * channels, 3, padding=1)),
            ]
        )
        self.last = nn.Conv2d(4 * channels, 1, 1)

    def patches(self, pictures: Tensor) -> Tensor:
        """[N,3,H,W] in [0,1] to a logit for each patch [N,P]; higher is more like the domain."""
        return _logits(self.layers, self.last, with_detail(pictures))

    def forward(self, pictures: Tensor) -> Tensor:
        """[N,3,H,W] in [0,1] to logits [N], means over patches. Any size of at least 16."""
        return self.patches(pictures).mean(1)


class VideoDiscriminator(nn.Module):
    """As ``FrameDiscriminator``, of clips, with convolutions over time too.

    Args:
        channels: of its first layer.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                spectral_norm(nn.Conv3d(6, channels, (3, 4, 4), stride=(1, 2, 2), padding=1)),
                spectral_norm(nn.Conv3d(channels, 2 * channels, (3, 4, 4), stride=(1, 2, 2), padding=1)),
                spectral_norm(nn.Conv3d(2 * channels, 4 * channels, 3, padding=1)),
            ]
        )
        self.last = nn.Conv3d(4 * channels, 1, 1)

    def patches(self, video: Tensor) -> Tensor:
        """[B,T,3,H,W] in [0,1] to a logit for each patch of space and time [B,P]."""
        seen = with_detail(video.flatten(0, 1)).reshape(*video.shape[:2], 6, *video.shape[3:])
        return _logits(self.layers, self.last, seen.transpose(1, 2))

    def forward(self, video: Tensor) -> Tensor:
        """[B,T,3,H,W] in [0,1] to logits [B], means over patches. Any size of at least 16, any length."""
        return self.patches(video).mean(1)


def with_detail(pictures: Tensor) -> Tensor:
    """Pictures [N,3,H,W] in [0,1] as [N,6,H,W]: 2·p − 1, and 8·(p − its mean over 5×5 pixels).

    A discriminator whose layers have norm 1 sees large plain areas first. With rims, spots and texture made as loud, it
    tells made frames apart in half the updates.
    """
    around = pictures.contiguous()
    for size, edge in (((5, 1), (2, 0)), ((1, 5), (0, 2))):  # one after the other, a mean over both
        around = functional.avg_pool2d(around, size, stride=1, padding=edge, count_include_pad=False)
    return torch.cat([2 * pictures - 1, 8 * (pictures - around)], 1)


def _logits(layers: nn.ModuleList, last: nn.Module, x: Tensor) -> Tensor:
    for layer in layers:
        x = functional.leaky_relu(layer(x), 0.2)
    logits: Tensor = last(x)
    return logits.flatten(1)


class QNetwork(nn.Module):
    """Q(s, a): the return of going on from frames s with the frame a. Its last layer is linear: returns are negative.

    Args:
        frames: p, of a state.
        channels: of its first layer.
    """

    def __init__(self, frames: int, channels: int) -> None:
        super().__init__()
        sizes = (3 * (frames + 1), channels, 2 * channels, 4 * channels)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(sizes))
        self.last = nn.Linear(sizes[-1], 1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """s [B,p,3,H,W] and a [B,3,H,W] in [0,1] to Q [B], any number."""
        x = 2 * torch.cat([state.flatten(1, 2), action], 1) - 1
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), 0.2)
        value: Tensor = self.last(x.mean((2, 3)))
        return value[:, 0]


def check_clips(video: Tensor) -> None:
    """Raise ``DataError`` where ``video`` is not [B,T,3,H,W] with at least one frame and 16 pixels a side."""
    if video.ndim != 5 or video.shape[2] != 3 or not video.shape[1]:
        raise DataError(f"clips to translate are [B,T,3,H,W] with at least one frame; got {tuple(video.shape)}")
    if min(video.shape[3:]) < SMALLEST:
        height, width = video.shape[3:]
        raise DataError(f"translation needs at least {SMALLEST} pixels a side; got {height}×{width}")
