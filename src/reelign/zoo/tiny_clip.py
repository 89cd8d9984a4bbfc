r"""``zoo:tiny-clip``: a transformers ``CLIPModel`` of 0.8 M parameters that knows colours and shapes.

Trained with CLIP's symmetric contrastive loss (Radford et al. 2021, figure 3), with two changes that make it a better
reward. Captions that differ in the motion describe the same single frame, so targets are shared among all pairs that
agree: with u_i the share of each (colour, shape) in frame i and v_j in caption j, the target of the pair is

    A_ij = u_i·v_j + δ_ij·ε,     normalised over captions for each frame, and over frames for each caption.

u is soft in colour, a softmax of −distance²/2s² to the palette, so the cosine changes gradually from one colour to the
next, where a hard label would leave plateaus without gradient; and the temperature is held at or above 1/20. Colours
are learned within a hundred steps; for shapes the image side is trained on ``helper.py`` as well.

Left out: several objects; motion, which a single frame does not show (``zoo:tiny-videomae`` judges that).

Run: ``reelign zoo train tiny-clip``.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from reelign.datasets.moving_shapes import ALL_MOTIONS, COLOURS, PALETTE, SHAPES, TURNING, MovingShapes, ShapeSpec
from reelign.zoo.degrade import roughen, tint
from reelign.zoo.fitting import FitConfig, fit
from reelign.zoo.helper import Helper
from reelign.zoo.models import CLIP_MEAN, CLIP_STD, normalise, write_measured
from reelign.zoo.words import SPECIAL, name_tokenizer_for_every_version, vocabulary, word_tokenizer

SIZE = 64
PATCH = 8
TEXT_LENGTH = 16
STEPS = 2000
LARGEST_SCALE = 20.0  # of the logits, 1/temperature
COLOUR_SPREAD = 0.12  # s, in units of the RGB range; neighbouring colours are 0.37 apart
OWN_CAPTION = 0.05  # ε: keeps a target for a frame whose colour no caption of the batch names
PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"height": SIZE, "width": SIZE},
    "resample": 3,
    "do_center_crop": False,
    "do_convert_rgb": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
}


def build_clip() -> CLIPModel:
    """The untrained model, with the configuration that ships."""
    pad, end = SPECIAL.index("<pad>"), SPECIAL.index("</s>")
    text = {
        "vocab_size": len(vocabulary()),
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": TEXT_LENGTH,
        "hidden_act": "gelu",
        "pad_token_id": pad,
        "bos_token_id": None,
        "eos_token_id": end,  # the text feature is read at this token; the id 2 would select an older rule
    }
    vision = {
        "image_size": SIZE,
        "patch_size": PATCH,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
    }
    config = CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=64, logit_scale_init_value=math.log(LARGEST_SCALE / 2)
    )
    return CLIPModel(config)


def seen_colour(frames_N3HW: Tensor) -> Tensor:
    """Colour of the shape in clean frames, the pixel farthest from the top left one: [N,3]."""
    pixels = frames_N3HW.flatten(2)
    farthest = (pixels - pixels[:, :, :1]).square().sum(1).argmax(1)
    return pixels.gather(2, farthest[:, None, None].expand(-1, 3, 1))[:, :, 0]


def frame_content(colour_N3: Tensor, specs: Sequence[ShapeSpec]) -> Tensor:
    """u: how much of each (colour, shape) a frame shows, [N,24], rows sum to 1; soft in colour, exact in shape."""
    palette = torch.tensor(list(PALETTE.values()))
    distance = (colour_N3[:, None] - palette).square().sum(-1)
    colour = (-distance / (2 * COLOUR_SPREAD**2)).softmax(-1)
    shape = F.one_hot(torch.tensor([SHAPES.index(spec.shape) for spec in specs]), len(SHAPES))
    return (colour[:, :, None] * shape[:, None]).flatten(1)


def caption_content(specs: Sequence[ShapeSpec]) -> Tensor:
    """v: how much of each (colour, shape) a caption names, [N,24], rows sum to 1; ``turning`` names two colours."""
    content = torch.zeros(len(specs), len(COLOURS), len(SHAPES))
    for row, spec in enumerate(specs):
        for colour in (spec.colour, spec.colour_to or spec.colour):
            content[row, COLOURS.index(colour), SHAPES.index(spec.shape)] += 0.5
    return content.flatten(1)


def contrastive_loss(logits: Tensor, agreement: Tensor) -> Tensor:
    """Symmetric cross-entropy with soft targets; both [N,N], frames by captions, agreement ≥ 0."""
    by_frame = agreement / agreement.sum(1, keepdim=True)
    by_caption = agreement.T / agreement.T.sum(1, keepdim=True)
    return (F.cross_entropy(logits, by_frame) + F.cross_entropy(logits.T, by_caption)) / 2


def text_features(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> Tensor:
    """Unit text features [N,64]."""
    tokens = tokenizer(list(captions), padding=True, truncation=True, max_length=TEXT_LENGTH, return_tensors="pt")
    pooled = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


def image_features(model: CLIPModel, frames_N3HW: Tensor) -> Tensor:
    """Unit image features [N,64] of frames [N,3,64,64] in [0,1]."""
    pooled = model.vision_model(pixel_values=normalise(frames_N3HW, CLIP_MEAN, CLIP_STD)).pooler_output
    return F.normalize(model.visual_projection(pooled), dim=-1)


def train_clip(
    steps: int = STEPS, lr: float = 1e-3, batch: int = 64, seed: int = 0
) -> tuple[CLIPModel, PreTrainedTokenizerFast]:
    """Train on single frames of clean captions; returns the averaged weights, frozen and in evaluation mode."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    model, tokenizer = build_clip(), word_tokenizer(TEXT_LENGTH)
    helper = Helper(model.config.vision_config.hidden_size, (1, PATCH, PATCH))
    data = MovingShapes(frames=4, size=SIZE, motions=ALL_MOTIONS)

    def loss(step: int) -> Tensor:
        video, specs, captions = data.batch(batch, random)
        chosen = torch.randint(data.frames, (batch,), generator=random)
        clean = video[torch.arange(batch), chosen][:, None]
        tinted = tint(clean, random)
        content = frame_content(seen_colour(tinted[:, 0]), specs)
        agreement = content @ caption_content(specs).T + OWN_CAPTION * torch.eye(batch)
        pixels = normalise(roughen(tinted, random)[:, 0], CLIP_MEAN, CLIP_STD)
        seen = model.vision_model(pixel_values=pixels)
        image = F.normalize(model.visual_projection(seen.pooler_output), dim=-1)
        text = text_features(model, tokenizer, captions)
        scale = model.logit_scale.clamp(max=math.log(LARGEST_SCALE)).exp()
        helped: Tensor = helper(seen.last_hidden_state[:, 1:], clean)
        return contrastive_loss(scale * image @ text.T, agreement) + helped

    config = FitConfig(steps=steps, lr=lr, warmup=100, weight_decay=0.05, average=0.995)
    fit([model, helper], loss, config, "tiny-clip")
    model.logit_scale.data.clamp_(max=math.log(LARGEST_SCALE))
    return model.eval().requires_grad_(False), tokenizer


def _sentence(colour: str, shape: str, motion: str) -> str:
    return f"{'an' if colour == 'orange' else 'a'} {colour} {shape} {motion}"


@torch.no_grad()
def measure_clip(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, clips: int = 1024, seed: int = 1
) -> dict[str, float]:
    """How often the caption with the right word is nearest to a random frame of fresh clips, and by how much.

    Returns:
        ``colour`` (of 8) and ``shape`` (of 3), shares in [0,1] on clean frames; the same on degraded ones with
        ``_degraded``; ``colour_margin`` and ``shape_margin``, mean cosine to the right minus to the best wrong one.
    """
    random = torch.Generator().manual_seed(seed)
    data = MovingShapes(size=SIZE, motions=tuple(motion for motion in ALL_MOTIONS if motion != TURNING))
    hits: dict[str, list[Tensor]] = {}
    for _ in range(0, clips, 64):
        video, specs, _ = data.batch(64, random)
        frames = video[torch.arange(64), torch.randint(data.frames, (64,), generator=random)]
        rough = roughen(tint(frames[:, None], random), random)[:, 0]
        colours = [_sentence(colour, s.shape, s.motion) for s in specs for colour in COLOURS]
        shapes = [_sentence(s.colour, shape, s.motion) for s in specs for shape in SHAPES]
        for name, sentences, right in (
            ("colour", colours, [COLOURS.index(s.colour) for s in specs]),
            ("shape", shapes, [SHAPES.index(s.shape) for s in specs]),
        ):
            text = text_features(model, tokenizer, sentences).view(64, -1, model.config.projection_dim)
            answer = torch.tensor(right)
            clean, degraded = (torch.einsum("nd,nkd->nk", image_features(model, x), text) for x in (frames, rough))
            own = clean.gather(1, answer[:, None])[:, 0]
            wrong = clean.scatter(1, answer[:, None], -torch.inf).amax(1)
            hits.setdefault(name, []).append((clean.argmax(1) == answer).float())
            hits.setdefault(f"{name}_degraded", []).append((degraded.argmax(1) == answer).float())
            hits.setdefault(f"{name}_margin", []).append(own - wrong)
    return {name: round(float(torch.cat(values).mean()), 4) for name, values in hits.items()}


def make(folder: Path, scale: float = 1.0) -> dict[str, float]:
    """Train for ``scale`` times the shipped steps, measure, save to ``folder``; returns what was measured."""
    model, tokenizer = train_clip(max(1, round(STEPS * scale)))
    measured = measure_clip(model, tokenizer)
    save(folder, model, tokenizer, measured)
    return measured


def save(folder: Path, model: CLIPModel, tokenizer: PreTrainedTokenizerFast, measured: Mapping[str, float]) -> None:
    """Write a transformers folder: float16 safetensors, tokenizer, preprocessor, card; ``model`` is unchanged."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    name_tokenizer_for_every_version(folder / "tokenizer_config.json")
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n", encoding="utf-8")
    write_measured(folder, measured, card(measured))


def card(measured: Mapping[str, float]) -> str:
    """The model card, from what ``measure_clip`` returned."""
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags: [reelign, moving-shapes]
---

# tiny-clip

A CLIP of 0.8 M parameters for 64×64 frames of reelign's moving shapes. It tells the eight colours and three shapes
apart and serves as the default text-to-image reward. It has seen nothing else: do not use it on natural images.

Trained by `reelign zoo train tiny-clip` on drawn frames only, with noise, blur and tint; no outside data. Weights are
float16; load them with `dtype=torch.float32`.

On fresh clips, one random frame each, captions that differ in one word:

| | right, clean frames | right, degraded frames | mean cosine margin, clean |
|---|---|---|---|
| colour (of 8) | {measured["colour"]:.1%} | {measured["colour_degraded"]:.1%} | {measured["colour_margin"]:.3f} |
| shape (of 3) | {measured["shape"]:.1%} | {measured["shape_degraded"]:.1%} | {measured["shape_margin"]:.3f} |

Limits: it does not read motion, counts, places or words outside the grammar, and like any learned reward it can be
exploited: watch a measure that it did not train on.
"""
