r"""V-JEPA predictability: can a world model tell the hidden parts of a clip from the rest?

    r = −(1/M) Σ_m mean |P(E(x outside m), m) − LN(E(x))_m|         (Bardes et al. 2024, V-JEPA, eq. 1)

The reward of VADER for long videos (Prabhudesai et al. 2024, section 5): minus the training loss of V-JEPA. E is the
encoder, P the predictor, m a mask that covers all frames: eight small blocks (0.15 of the picture each) or two large
ones (0.7 each), their sides' ratio in [0.75, 1.5]. Masks are drawn once from a seed, so a clip's score is one number.

The encoder runs on the visible tokens alone. (The forward pass of transformers' ``VJEPA2Model`` masks what the
encoder returns, after every token has seen every other: the answer leaks into the question.) No gradient flows
through the targets, as in V-JEPA's training; VADER does not say.

Left out: a slowly averaged target encoder; checkpoints hold one encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import VJEPA2Model

from reelign.contracts import RewardCard, VideoBatch
from reelign.errors import ConfigError
from reelign.rewards.preprocess import Aspect, preprocess_for
from reelign.zoo.models import IMAGENET_MEAN, IMAGENET_STD, even_indices, load_whole, read_preprocessor

BLOCKS = ((8, 0.15), (2, 0.7))  # how many, and the share of the picture of each
RATIOS = (0.75, 1.5)


def draw_mask(grid: tuple[int, int, int], blocks: int, share: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of visible and of hidden tokens of a [frames, rows, columns] grid; a block hides all frames.

    Raises:
        ConfigError: nothing stays visible in a hundred draws.
    """
    frames, rows, columns = grid
    for _ in range(100):
        hidden = torch.zeros(rows, columns, dtype=torch.bool)
        for _ in range(blocks):
            ratio = RATIOS[0] + (RATIOS[1] - RATIOS[0]) * float(torch.rand((), generator=random))
            area = share * rows * columns
            height = min(max(1, round((area * ratio) ** 0.5)), rows)
            width = min(max(1, round((area / ratio) ** 0.5)), columns)
            top = int(torch.randint(rows - height + 1, (1,), generator=random))
            left = int(torch.randint(columns - width + 1, (1,), generator=random))
            hidden[top : top + height, left : left + width] = True
        if not hidden.all():
            everywhere = hidden.expand(frames, rows, columns).flatten()
            return (~everywhere).nonzero()[:, 0], everywhere.nonzero()[:, 0]
    raise ConfigError(f"masks of {blocks} blocks of {share:g} leave nothing visible of a {rows}x{columns} grid")


class JepaPredictability:
    """Minus V-JEPA's loss, at most 0.

    Args:
        model: a folder or hub id with a transformers ``VJEPA2Model``, for example ``facebook/vjepa2-vitl-fpc64-256``.
        frames: how many frames the model sees, evenly chosen; a multiple of its tubelet.
        masks: mask sets of each kind.
        seed: of the masks.
        aspect: ``crop``, ``squash`` or ``pad``; the model's own way where None.
    """

    card = RewardCard(
        name="jepa_predictability",
        summary="How well V-JEPA 2 predicts hidden regions of the clip from the visible ones: minus its loss.",
        range=(-100.0, 0.0),
        licence="that of the weights (V-JEPA 2: MIT)",
        source="facebook/vjepa2-*; Bardes et al. 2024, arXiv 2404.08471; Assran et al. 2025, arXiv 2506.09985",
    )

    def __init__(
        self, model: str, frames: int = 16, masks: int = 1, seed: int = 0, aspect: Aspect | None = None
    ) -> None:
        self.model = load_whole(VJEPA2Model, model)
        config = self.model.config
        if frames < config.tubelet_size or frames % config.tubelet_size:
            raise ConfigError(f"frames of jepa_predictability are a multiple of {config.tubelet_size}; got {frames}")
        self.frames = frames
        side = config.crop_size
        self.preprocess = preprocess_for(side, read_preprocessor(model), (IMAGENET_MEAN, IMAGENET_STD), aspect)
        grid = (frames // config.tubelet_size, side // config.patch_size, side // config.patch_size)
        random = torch.Generator().manual_seed(seed)
        self.masks = [draw_mask(grid, *kind, random) for kind in BLOCKS for _ in range(masks)]
        self.card = replace(type(self).card, frames=frames, resolution=(side, side))

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B], at most 0."""
        self.model.to(batch.video.device)
        chosen = even_indices(batch.video.shape[1], self.frames)
        pixels = self.preprocess(batch.video[:, chosen])
        with torch.no_grad():
            whole = self.model(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state
            target = F.layer_norm(whole, whole.shape[-1:])
        tokens = self.model.encoder.embeddings(pixels)
        losses = [self._loss(tokens, target, visible, hidden) for visible, hidden in self.masks]
        return -torch.stack(losses).mean(0)

    def _loss(self, tokens: Tensor, target: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """Mean absolute error [B] of the predicted features of the hidden tokens."""
        seen, asked = (index.to(tokens.device).expand(len(tokens), -1) for index in (visible, hidden))
        context = tokens[:, visible]
        for layer in self.model.encoder.layer:
            context = first(layer(context, seen))
        context = self.model.encoder.layernorm(context)
        return (self._predict(context, seen, asked) - target[:, hidden]).abs().mean((1, 2))

    def _predict(self, context: Tensor, seen: Tensor, asked: Tensor) -> Tensor:
        """The predictor's features [B,n,D] at the hidden places."""
        predictor = self.model.predictor
        hidden = predictor.embeddings.mask_tokens[1 % predictor.embeddings.num_mask_tokens]
        visible = predictor.embeddings.predictor_embeddings(context)
        both = torch.cat([visible, hidden.expand(len(context), asked.shape[1], -1)], 1)
        places = torch.cat([seen, asked], 1)
        for layer in predictor.layer:
            both = first(layer(both, places))
        features: Tensor = predictor.proj(predictor.layernorm(both)[:, seen.shape[1] :])
        return features


def first(output: Tensor | Sequence[Tensor]) -> Tensor:
    """The hidden state of a layer, which some versions of transformers wrap in a tuple."""
    return output if isinstance(output, Tensor) else output[0]
