r"""``zoo:tiny-videomae``: a transformers ``VideoMAEForVideoClassification`` of 0.7 M parameters that names the motion.

Sixteen of a clip's seventeen frames become 8×2×8 tubes of 2×32×8 pixels, four transformer layers, a mean and a linear
head over the eleven motions of the data set (Tong et al. 2022, VideoMAE, section 3). In place of its masked
pre-training stands the helper task of ``helper.py``. Smoothed labels keep the probability away from 0 and 1, so there
is gradient on both sides; half of the clips are tinted, blurred and noisy.

Patches are tall because VideoMAE numbers them in one sequence and its fastest position wave has a period of 6.3
patches: columns of 16 pixels, four in a row, are hard to tell apart; columns of 8 pixels, eight in a row, are not.

Left out: masked pre-training, mixing of clips.

Run: ``reelign zoo train tiny-videomae``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from reelign.datasets.moving_shapes import ALL_MOTIONS, MovingShapes, ShapeSpec
from reelign.zoo.degrade import roughen, tint
from reelign.zoo.fitting import FitConfig, fit
from reelign.zoo.helper import Helper
from reelign.zoo.models import IMAGENET_MEAN, IMAGENET_STD, even_indices, normalise, write_measured

SIZE = 64
FRAMES = 16
STEPS = 2200
PATCH = (32, 8)  # height and width in pixels; see above
TUBELET = 2
LABEL_SMOOTHING = 0.05
TINT = 0.03  # standard deviation of colour shifts in degraded clips, in units of the pixel range
PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "VideoMAEImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": SIZE},
    "resample": 2,
    "do_center_crop": True,
    "crop_size": {"height": SIZE, "width": SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(IMAGENET_MEAN),
    "image_std": list(IMAGENET_STD),
}


def build_videomae() -> VideoMAEForVideoClassification:
    """The untrained model, with the configuration that ships; its labels are the data set's motions."""
    config = VideoMAEConfig(
        image_size=SIZE,
        patch_size=list(PATCH),
        num_frames=FRAMES,
        tubelet_size=TUBELET,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        id2label=dict(enumerate(ALL_MOTIONS)),
        label2id={name: i for i, name in enumerate(ALL_MOTIONS)},
    )
    return VideoMAEForVideoClassification(config)


def prepared(video_BTCHW: Tensor) -> Tensor:
    """Clips [B,T,3,64,64] in [0,1] to normalised [B,16,3,64,64]; frames are chosen as ``VideoAction`` does."""
    frames = video_BTCHW[:, even_indices(video_BTCHW.shape[1], FRAMES)]
    return normalise(frames, IMAGENET_MEAN, IMAGENET_STD)


def motion_logits(model: VideoMAEForVideoClassification, video_BTCHW: Tensor) -> Tensor:
    """Logits [B,11] for clips [B,T,3,64,64] in [0,1]."""
    logits: Tensor = model(pixel_values=prepared(video_BTCHW)).logits
    return logits


def motion_targets(specs: Sequence[ShapeSpec]) -> Tensor:
    """Class index [B] of each clip's motion."""
    return torch.tensor([ALL_MOTIONS.index(spec.motion) for spec in specs])


def train_videomae(
    steps: int = STEPS, lr: float = 1e-3, batch: int = 32, seed: int = 0
) -> VideoMAEForVideoClassification:
    """Train on fresh clips in every step; returns the averaged weights, frozen and in evaluation mode."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    model = build_videomae()
    helper = Helper(model.config.hidden_size, (TUBELET, *PATCH))
    data = MovingShapes(size=SIZE, motions=ALL_MOTIONS)

    def loss(step: int) -> Tensor:
        video, specs, _ = data.batch(batch, random)
        rough = roughen(tint(video[: batch // 2], random, offset=TINT), random)
        seen = torch.cat([rough, video[batch // 2 :]])
        hidden = model.videomae(prepared(seen)).last_hidden_state
        logits = model.classifier(model.fc_norm(hidden.mean(1)))
        named = F.cross_entropy(logits, motion_targets(specs), label_smoothing=LABEL_SMOOTHING)
        clean = video[:, even_indices(data.frames, FRAMES)]
        helped: Tensor = helper(hidden, clean)
        return named + helped

    config = FitConfig(steps=steps, lr=lr, warmup=100, weight_decay=0.05, average=0.995)
    fit([model, helper], loss, config, "tiny-videomae")
    return model.eval().requires_grad_(False)


@torch.no_grad()
def measure_videomae(model: VideoMAEForVideoClassification, clips: int = 1024, seed: int = 1) -> dict[str, float]:
    """How often the motion of fresh clips is named right.

    Returns:
        ``motion`` (of 11), share in [0,1] on clean clips; ``motion_degraded`` on degraded ones; ``probability``, mean
        probability of the right motion on clean clips; ``worst_motion``, the share of the motion that does worst.
    """
    random = torch.Generator().manual_seed(seed)
    data = MovingShapes(size=SIZE, motions=ALL_MOTIONS)
    clean, degraded, probability, targets = [], [], [], []
    for _ in range(0, clips, 64):
        video, specs, _ = data.batch(64, random)
        target = motion_targets(specs)
        logits = motion_logits(model, video)
        rough = motion_logits(model, roughen(tint(video, random, offset=TINT), random))
        clean.append((logits.argmax(1) == target).float())
        degraded.append((rough.argmax(1) == target).float())
        probability.append(logits.softmax(1).gather(1, target[:, None])[:, 0])
        targets.append(target)
    right, target = torch.cat(clean), torch.cat(targets)
    each = [float(right[target == i].mean()) for i in torch.unique(target).tolist()]
    result = {
        "motion": float(right.mean()),
        "motion_degraded": float(torch.cat(degraded).mean()),
        "probability": float(torch.cat(probability).mean()),
        "worst_motion": min(each),
    }
    return {name: round(value, 4) for name, value in result.items()}


def make(folder: Path, scale: float = 1.0) -> dict[str, float]:
    """Train for ``scale`` times the shipped steps, measure, save to ``folder``; returns what was measured."""
    model = train_videomae(max(1, round(STEPS * scale)))
    measured = measure_videomae(model)
    save(folder, model, measured)
    return measured


def save(folder: Path, model: VideoMAEForVideoClassification, measured: Mapping[str, float]) -> None:
    """Write a transformers folder: float16 safetensors, preprocessor and model card; ``model`` is unchanged."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).half().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n", encoding="utf-8")
    write_measured(folder, measured, card(measured))


def card(measured: Mapping[str, float]) -> str:
    """The model card, from what ``measure_videomae`` returned."""
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: video-classification
tags: [reelign, moving-shapes]
---

# tiny-videomae

A VideoMAE classifier of 0.7 M parameters for 64×64 clips of reelign's moving shapes, 16 frames. It names one of eleven
motions ({", ".join(ALL_MOTIONS)}) and serves as the default video-action reward. It has seen
nothing else: do not use it on natural videos.

Trained by `reelign zoo train tiny-videomae` on drawn clips only, with noise, blur and tint; no outside data. Weights
are float16; load them with `dtype=torch.float32`.

On fresh clips:

| measure | value |
|---|---|
| right motion (of {len(ALL_MOTIONS)}), clean clips | {measured["motion"]:.1%} |
| right motion, degraded clips | {measured["motion_degraded"]:.1%} |
| right motion, the motion that does worst, clean clips | {measured["worst_motion"]:.1%} |
| mean probability of the right motion, clean clips | {measured["probability"]:.3f} |

Limits: 16 frames spread over about two seconds; it does not read colours, counts or words, and like any learned reward
it can be exploited: watch a measure that it did not train on.
"""
