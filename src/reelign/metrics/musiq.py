"""MUSIQ: a transformer that rates an image from patches of several sizes of it (Ke et al. 2021, arXiv 2108.05997).

    image, and the image with its longer side at 224 and at 384 ─► patches of 32×32 ─► convolutions ─► tokens
    + embedding of the place, hashed to a 10×10 grid (section 3.3) + embedding of the scale ─► transformer ─► score

The keys are those of the published PyTorch checkpoints (``musiq_spaq_ckpt-358bb6af.pth``, also KonIQ-10k and
PaQ-2-PiQ), and so are the details that the paper leaves open: weights of convolutions are standardised with the
unbiased deviation, patches at the border are filled up with mid-grey on both sides, images are resized bicubically
without antialiasing.
All sizes are read off the weights, except the number of heads, which is 6.

Left out: training, several crops, checkpoints that predict a distribution (AVA's), and padding tokens, which the
published program adds and masks out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reelign.errors import ModelError
from reelign.zoo.published import depth, fill, read_weights

PATCH = 32
SIDES = (224, 384)  # longer sides of the smaller views, by scale embedding; the last embedding is for the image itself
HEADS = 6
ROOT = 64  # channels of the first convolution
GROUPS = 32
NORM_EPS = 1e-6
BLOCK_EPS = 1e-4
STANDARD_EPS = 1e-5


def standardised(weight: Tensor) -> Tensor:
    """(w − mean)/(std + 1e-5) over all but the first axis, std unbiased (Qiao et al. 2019, weight standardisation)."""
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    return centred / (centred.std((1, 2, 3), keepdim=True) + STANDARD_EPS)


def pad_to_cover(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around [...,H,W], so that ⌈H/stride⌉ × ⌈W/stride⌉ kernels fit; an odd one goes right and below."""
    missing = [max(0, (-(-length // stride) - 1) * stride + kernel - length) for length in x.shape[-2:]]
    above, left = missing[0] // 2, missing[1] // 2
    return F.pad(x, (left, missing[1] - left, above, missing[0] - above))


def hashed_places(rows: int, columns: int, grid: int) -> Tensor:
    """Index [rows·columns] into a flat grid × grid, row by row: place i of n falls to cell ⌊i·grid/n⌋ (nearest)."""
    cells = torch.arange(grid, dtype=torch.float32)[None, None]
    down, across = (F.interpolate(cells, count, mode="nearest")[0, 0].long() for count in (rows, columns))
    return (down[:, None] * grid + across).flatten()


def to_patches(images: Tensor) -> tuple[Tensor, int, int]:
    """Patches [N,L,3,32,32] of images [N,3,H,W], row by row, and how many rows and columns they make."""
    images = pad_to_cover(images, PATCH, PATCH)
    rows, columns = images.shape[-2] // PATCH, images.shape[-1] // PATCH
    cut = images.reshape(len(images), 3, rows, PATCH, columns, PATCH)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2), rows, columns


def resize_longer(images: Tensor, side: int) -> Tensor:
    """Images [N,3,H,W] with the longer side at ``side``, bicubic without antialiasing; sides are rounded."""
    ratio = side / max(images.shape[-2:])
    size = [max(1, round(length * ratio)) for length in images.shape[-2:]]
    return F.interpolate(images, size, mode="bicubic", align_corners=False)


class StandardConv(nn.Module):
    """A convolution without bias, with standardised weights, whose output is ⌈H/stride⌉ × ⌈W/stride⌉."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] to [N,C',H',W']."""
        return F.conv2d(pad_to_cover(x, self.kernel, self.stride), standardised(self.weight), stride=self.stride)


class Bottleneck(nn.Module):
    """Three convolutions around a projected shortcut, group norm after each (He et al. 2016, figure 5, right)."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.gn1 = StandardConv(width, width, 1), nn.GroupNorm(GROUPS, width, BLOCK_EPS)
        self.conv2, self.gn2 = StandardConv(width, width, 3), nn.GroupNorm(GROUPS, width, BLOCK_EPS)
        self.conv3, self.gn3 = StandardConv(width, outputs, 1), nn.GroupNorm(GROUPS, outputs, BLOCK_EPS)
        self.conv_proj, self.gn_proj = StandardConv(width, outputs, 1), nn.GroupNorm(GROUPS, outputs, BLOCK_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] to [N,C',H,W]."""
        inner = F.relu(self.gn2(self.conv2(F.relu(self.gn1(self.conv1(x))))))
        return F.relu(self.gn3(self.conv3(inner)) + self.gn_proj(self.conv_proj(x)))


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[N,L,D] to [N,L,D]."""
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """One layer of the transformer, normed before (Dosovitskiy et al. 2021, eq. 2 and 3)."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, NORM_EPS), nn.LayerNorm(width, NORM_EPS)
        self.attention = Attention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: Tensor) -> Tensor:
        """[N,L,D] to [N,L,D]."""
        x = x + self.attention(self.norm1(x))
        mixed: Tensor = x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return mixed


class Encoder(nn.Module):
    """Embeddings of places and scales, the class token, and the transformer.

    Args:
        width, inner: of the tokens and inside the MLPs.
        layers, heads: of the transformer.
        scales: how many views of the image there are.
        grid: side of the grid that places are hashed to.
    """

    def __init__(self, width: int, inner: int, layers: int, heads: int, scales: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.posembed_input = nn.ParameterDict({"position_emb": torch.empty(1, grid * grid, width)})
        self.scaleembed_input = nn.ParameterDict({"scale_emb": torch.empty(scales, width)})
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        blocks = {f"encoderblock_{i}": Block(width, inner, heads) for i in range(layers)}
        self.transformer = nn.ModuleDict(blocks)
        self.encoder_norm = nn.LayerNorm(width, NORM_EPS)

    def placed(self, tokens: Tensor, rows: int, columns: int, scale: int) -> Tensor:
        """Tokens [N,rows·columns,D] with their place's and their scale's embedding added."""
        places = hashed_places(rows, columns, self.grid).to(tokens.device)
        place_PD, scale_SD = self.posembed_input["position_emb"][0], self.scaleembed_input["scale_emb"]
        placed: Tensor = tokens + place_PD[places] + scale_SD[scale]
        return placed

    def forward(self, tokens: Tensor) -> Tensor:
        """The class token [N,D] after the transformer, from placed tokens [N,L,D]."""
        x = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.transformer.values():
            x = block(x)
        normed: Tensor = self.encoder_norm(x[:, 0])
        return normed


class Musiq(nn.Module):
    """MUSIQ with one score, on the scale of the data it was trained on: 0 to 100.

    Args:
        width, inner, layers, heads, grid: see ``Encoder``.
        sides: longer sides of the smaller views, ascending.
    """

    def __init__(
        self,
        width: int = 384,
        inner: int = 1152,
        layers: int = 14,
        heads: int = HEADS,
        grid: int = 10,
        sides: tuple[int, ...] = SIDES,
    ) -> None:
        super().__init__()
        self.sides = sides
        self.conv_root, self.gn_root = StandardConv(3, ROOT, 7, 2), nn.GroupNorm(GROUPS, ROOT, NORM_EPS)
        self.block1 = Bottleneck(ROOT, 4 * ROOT)
        self.embedding = nn.Linear(4 * ROOT * (PATCH // 4) ** 2, width)
        self.transformer_encoder = Encoder(width, inner, layers, heads, len(sides) + 1, grid)
        self.head = nn.Linear(width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N] of images [N,3,H,W] in [0,1]."""
        whole = 2 * images - 1
        views = [*(resize_longer(whole, side) for side in self.sides), whole]
        tokens = torch.cat([self._tokens(view, scale) for scale, view in enumerate(views)], dim=1)
        scores: Tensor = self.head(self.transformer_encoder(tokens))
        return scores[:, 0]

    def _tokens(self, view: Tensor, scale: int) -> Tensor:
        """Placed tokens [N,L,D] of one view [N,3,H,W] in [−1,1]."""
        patches, rows, columns = to_patches(view)
        x = F.relu(self.gn_root(self.conv_root(patches.flatten(0, 1))))
        x = self.block1(F.max_pool2d(pad_to_cover(x, 3, 2), 3, 2))
        # The embedding's weights count channels fastest, as TensorFlow stores them.
        tokens = self.embedding(x.permute(0, 2, 3, 1).flatten(1)).unflatten(0, (len(view), -1))
        return self.transformer_encoder.placed(tokens, rows, columns, scale)


def build_musiq(weights: Mapping[str, Tensor], source: str) -> Musiq:
    """A frozen MUSIQ with published weights, its sizes read off them.

    Raises:
        ModelError: they are not of this layout, or have more than one output.
    """
    before = "transformer_encoder."
    needed = (f"{before}posembed_input.position_emb", f"{before}scaleembed_input.scale_emb",
              f"{before}transformer.encoderblock_0.mlp.fc1.weight", "head.weight")  # fmt: skip
    if missing := [name for name in needed if name not in weights]:
        raise ModelError(f"a MUSIQ checkpoint with one score holds {missing[0]}; {source} does not: use the SPAQ one")
    places, scales, inner, _ = (weights[name].shape for name in needed)
    if scales[0] != len(SIDES) + 1:
        raise ModelError(f"MUSIQ sees an image at {len(SIDES) + 1} scales; {source} has embeddings for {scales[0]}")
    model = Musiq(
        places[2], inner[0], depth(weights, f"{before}transformer.encoderblock_"), grid=round(places[1] ** 0.5)
    )
    fill(model, weights, source)
    return model


def load_musiq(name: str) -> Musiq:
    """MUSIQ from a weight file, or ``owner/name:file`` on the hub.

    Raises:
        ModelError: it is not there, or is no such checkpoint.
    """
    return build_musiq(read_weights(name), name)
