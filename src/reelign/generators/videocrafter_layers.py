"""The layers of VideoCrafter2's U-Net under their published names: residual blocks, transformers over space and time.

Pictures travel as [B·F,C,h,w], frames of a clip one after the other; what looks across frames regroups them. Facts that
the weights depend on: the norms of temporal layers take their statistics over the frames too, those of transformers
have ε = 1e-6 and the others 1e-5; temporal transformers hold two self-attentions and read no text; the temporal
convolutions are called ``temopral_conv``.

Left out: dropout. The published temporal convolutions were trained with 0.1, and VADER's program never switches it off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 32
INITIAL_HEADS = 8  # of the temporal transformer before the first block, whatever the width
MOST_ROWS = 1 << 15  # of one attention call: CUDA's fused kernels count rows in a launch dimension that ends at 65535


@dataclass(frozen=True)
class Given:
    """What the layers of one pass know besides their features.

    Args:
        embedding: [B,D], of the time and the frame rate together.
        text: [B,L,D'].
        frames: F.
    """

    embedding: Tensor
    text: Tensor
    frames: int


class Residual(nn.Module):
    """Two convolutions of each frame with the embedding between them, then convolutions over time; [B·F,C,h,w].

    Args:
        inside, outside: channels in and out.
        embedding: size of the embedding.
    """

    def __init__(self, inside: int, outside: int, embedding: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, inside), nn.SiLU(), nn.Conv2d(inside, outside, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outside))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, outside), nn.SiLU(), nn.Identity(), nn.Conv2d(outside, outside, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)
        self.temopral_conv = TemporalConvolutions(outside)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        """Features with ``outside`` channels."""
        added = self.emb_layers(given.embedding).repeat_interleave(given.frames, 0)
        inner = self.out_layers(self.in_layers(x) + added[:, :, None, None])
        video = to_video(self.skip_connection(x) + inner, given.frames)
        return to_pictures(self.temopral_conv(video))


class TemporalConvolutions(nn.Module):
    """Four convolutions over time alone, added to what came in; [B,C,F,h,w].

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        for number in range(1, 5):
            places = [nn.GroupNorm(GROUPS, channels), nn.SiLU(), *([nn.Identity()] if number > 1 else [])]
            convolution = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
            self.add_module(f"conv{number}", nn.Sequential(*places, convolution))

    def forward(self, video: Tensor) -> Tensor:
        """The same shape."""
        inner = video
        for convolution in self.children():
            inner = convolution(inner)
        return video + inner


class Attention(nn.Module):
    """Multi-head attention of queries to a context.

    Args:
        width: of the queries and of the result.
        context: of what keys and values are made from.
        heads, head: how many, and the width of one.
    """

    def __init__(self, width: int, context: int, heads: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.to_q = nn.Linear(width, heads * head, bias=False)
        self.to_k = nn.Linear(context, heads * head, bias=False)
        self.to_v = nn.Linear(context, heads * head, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head, width), nn.Identity())

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [N,L,D] over context [N,L',D'] to [N,L,D]."""
        parts = (linear(y) for linear, y in ((self.to_q, x), (self.to_k, context), (self.to_v, context)))
        queries, keys, values = (p.unflatten(-1, (-1, self.head)).transpose(1, 2) for p in parts)
        mixed = _attend(queries, keys, values)
        result: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return result


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """[N,heads,L,head] each, at most ``MOST_ROWS`` of N at a time."""
    if len(queries) <= MOST_ROWS:
        return functional.scaled_dot_product_attention(queries, keys, values)
    chunks = zip(*(torch.split(part, MOST_ROWS) for part in (queries, keys, values)), strict=True)
    return torch.cat([functional.scaled_dot_product_attention(*chunk) for chunk in chunks])


class Gated(nn.Module):
    """A linear layer to two halves, of which the second, through the exact GELU, gates the first.

    Args:
        width: of the input.
        inner: of the output.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """[…,width] to […,inner]."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * functional.gelu(gate)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Gated expansion to four times the width, and back.

    Args:
        width: of input and output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Gated(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return self.net(x)  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text (without one again to itself), feed-forward.

    Args:
        heads, head: how many, and the width of one; the block is ``heads`` × ``head`` wide.
        context: width of the text, or None.
    """

    def __init__(self, heads: int, head: int, context: int | None) -> None:
        super().__init__()
        width = heads * head
        self.attn1 = Attention(width, width, heads, head)
        self.ff = FeedForward(width)
        self.attn2 = Attention(width, context or width, heads, head)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, text: Tensor | None = None) -> Tensor:
        """x [N,L,D]; of the text [B,L',D'] each row serves N/B consecutive rows of x."""
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        y = self.norm2(x)
        if text is None:
            x = x + self.attn2(y, y)
        else:  # the frames of a clip are more queries to the same keys, which are then made once
            x = x + self.attn2(y.reshape(len(text), -1, y.shape[-1]), text).view_as(x)
        result: Tensor = x + self.ff(self.norm3(x))
        return result


class SpatialTransformer(nn.Module):
    """The places of a frame look at one another and at the text; [B·F,C,h,w].

    Args:
        channels: C.
        head: width of a head; there are C // head.
        context: width of the text.
    """

    def __init__(self, channels: int, head: int, context: int) -> None:
        super().__init__()
        heads = channels // head
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, heads * head)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(heads, head, context)])
        self.proj_out = nn.Linear(heads * head, channels)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        """The same shape."""
        places = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            places = block(places, given.text)
        added: Tensor = self.proj_out(places).transpose(1, 2).reshape(x.shape)
        return x + added


class TemporalTransformer(nn.Module):
    """Each place looks at itself in all frames, twice; [B·F,C,h,w]. Nothing tells frames apart but what they show.

    Args:
        channels: C.
        head: width of a head.
        initial: the one before the first block, which always has 8 heads, and pointwise convolutions as projections.
    """

    def __init__(self, channels: int, head: int, initial: bool = False) -> None:
        super().__init__()
        heads = INITIAL_HEADS if initial else channels // head
        width = heads * head
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Conv1d(channels, width, 1) if initial else nn.Linear(channels, width)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(heads, head, None)])
        self.proj_out = nn.Conv1d(width, channels, 1) if initial else nn.Linear(width, channels)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        """The same shape."""
        video = self.norm(to_video(x, given.frames))
        times = _project(self.proj_in, video.permute(0, 3, 4, 2, 1).flatten(0, 2))  # [B·h·w,F,C]
        for block in self.transformer_blocks:
            times = block(times)
        video = _project(self.proj_out, times).view(-1, *x.shape[2:], given.frames, x.shape[1])
        return x + to_pictures(video.permute(0, 4, 3, 1, 2))


def _project(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer or a pointwise convolution on [N,L,C]."""
    result: Tensor = layer(x) if isinstance(layer, nn.Linear) else layer(x.transpose(1, 2)).transpose(1, 2)
    return result


class Down(nn.Module):
    """Half the height and width by a convolution of stride 2.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        """[N,C,h,w] to [N,C,h/2,w/2]."""
        return self.op(x)  # type: ignore[no-any-return]


class Up(nn.Module):
    """Twice the height and width: pixels repeated, then a convolution.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        """[N,C,h,w] to [N,C,2h,2w]."""
        return self.conv(functional.interpolate(x, scale_factor=2.0))  # type: ignore[no-any-return]


def to_video(pictures: Tensor, frames: int) -> Tensor:
    """[B·F,C,h,w] to [B,C,F,h,w]."""
    return pictures.view(-1, frames, *pictures.shape[1:]).transpose(1, 2)


def to_pictures(video: Tensor) -> Tensor:
    """[B,C,F,h,w] to [B·F,C,h,w]."""
    return video.transpose(1, 2).flatten(0, 1)
