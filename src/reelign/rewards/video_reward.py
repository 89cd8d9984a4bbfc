r"""VideoReward: people's judgement of a clip's visual quality, its motion, and its match with the prompt.

    r_a = (s_a − μ_a)/σ_a,   a ∈ {VQ, MQ, TA},      overall = r_VQ + r_MQ + r_TA        (Liu et al. 2025, section 3)

s_a is a bias-free linear head on Qwen2-VL-2B, read at the special token ``<|a_reward|>`` of a question that states the
three rubrics; each sees the clip and what was asked before it, and only the last sees the prompt. μ and σ come with
the checkpoint. Frames are chosen at the checkpoint's own rate (2 a second, at least 4) by the ``fps`` of the clips: any
rate will do, so the card names none, but a wrong one changes the scores (KlingAIResearch/VideoAlign#21).

Left out: the text of the question, which is its authors' (``template`` names your copy of it); the ``multi_pts`` way of
choosing frames; clamping of what bicubic resizing overshoots, which has no gradient.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration

from reelign.contracts import RewardCard, VideoBatch
from reelign.errors import ConfigError, DataError, ModelError
from reelign.rewards.qwen2_vl import (
    EMBEDDING,
    PAIR,
    PROMPT,
    STEP,
    Dtype,
    Reader,
    merge_lora,
    prepare,
    read_template,
    rename,
)
from reelign.zoo.models import load_whole
from reelign.zoo.published import find_folder, read_weights

Aspect = Literal["overall", "VQ", "MQ", "TA"]
ASPECTS = ("VQ", "MQ", "TA")
TOKENS = tuple(f"<|{aspect}_reward|>" for aspect in ASPECTS)
TEMPLATE = "DETAILED_PROMPT_WITH_SPECIAL_TOKEN"
LEAST_PIXELS = 128 * STEP**2
LEAST_FRAMES, MOST_FRAMES = 4, 768
FULL, ADAPTER, REST = "model.pth", "adapter_model.safetensors", "non_lora_state_dict.pth"
SETTINGS = "model_config.json"


@dataclass(frozen=True)
class Published:
    """What a checkpoint's ``model_config.json`` says.

    Args:
        base: the Qwen2-VL it was made of.
        fps: at which frames are chosen.
        frames: how many frames, instead of a rate; or None.
        pixels: at most, of a frame.
        scale: of the LoRA, α/r, or α/√r where it is rank-stabilised.
        mean, std: of the raw scores, in the order of ``ASPECTS``.
    """

    base: str
    fps: float
    frames: int | None
    pixels: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_settings(folder: Path) -> Published:
    """The settings beside a checkpoint.

    Raises:
        ModelError: there are none, or they describe another way of scoring.
    """
    file = folder / SETTINGS
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        data, model, lora = (content[part] for part in ("data_config", "model_config", "peft_lora_config"))
        norm = content.get("inference_config") or {}
        rank = lora["lora_r"] ** 0.5 if lora.get("use_rslora") else lora["lora_r"]
        published = Published(
            base=model["model_name_or_path"],
            fps=float(data["fps"]),
            frames=None if data.get("num_frames") is None else int(data["num_frames"]),
            pixels=int(data["max_frame_pixels"]),
            scale=lora["lora_alpha"] / rank,
            mean=tuple(float(norm[f"{aspect}_mean"]) if norm else 0.0 for aspect in ASPECTS),
            std=tuple(float(norm[f"{aspect}_std"]) if norm else 1.0 for aspect in ASPECTS),
        )
        way = (data["sample_type"], data["prompt_template_type"], model["use_special_tokens"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"VideoReward's folder holds its {SETTINGS}; reading {file} failed ({error!r})") from error
    if way != ("uniform", "detailed_special", True):
        raise ModelError(
            f"video_reward chooses frames evenly and reads special tokens of the detailed question; {file} says {way}"
        )
    return published


def read_checkpoint(folder: Path, base: str, scale: float) -> dict[str, Tensor]:
    """Weights of the network, adapter merged, and of its head, from the latest ``checkpoint-N`` in a folder.

    Either form will do: the whole model, or an adapter with what else was trained, on top of ``base``.

    Raises:
        ModelError: no checkpoint, or one that would leave something untrained.
    """
    steps = {int(place.name[11:]): place for place in folder.glob("checkpoint-*") if place.name[11:].isdigit()}
    if not steps:
        raise ModelError(f"VideoReward's folder holds checkpoint-N with {FULL}, or {ADAPTER} and {REST}; {folder} none")
    latest = steps[max(steps)]
    if (latest / FULL).is_file():
        weights = rename(read_weights(str(latest / FULL), float32=False))
    else:
        trained = rename({**read_weights(str(latest / ADAPTER)), **read_weights(str(latest / REST))})
        if EMBEDDING not in trained:
            raise ModelError(f"{latest} lacks the embeddings of {' '.join(TOKENS)}, which would stay untrained")
        weights = {**rename(load_whole(Qwen2VLForConditionalGeneration, base).state_dict()), **trained}
    if "rm_head.weight" not in weights:
        raise ModelError(f"{latest} lacks rm_head.weight, which makes the scores and would stay random")
    return merge_lora(weights, scale)


def chosen_frames(total: int, fps: float, wanted: float, count: int | None = None) -> list[int]:
    """Indices of frames spread evenly over a clip, ends included: an even number, ``wanted`` a second or ``count``.

    Raises:
        DataError: a clip of one frame.
    """
    if total < PAIR:
        raise DataError(f"video_reward reads frames in pairs; these clips have {total}")
    most = total // PAIR * PAIR
    asked = total / fps * wanted if count is None else count
    if count is None:
        asked = min(max(asked, LEAST_FRAMES), MOST_FRAMES)
    number = round(min(asked, most) / PAIR) * PAIR
    return [int(index) for index in torch.linspace(0, total - 1, max(number, PAIR)).round()]


class VideoReward:
    """VideoReward's overall judgement or one of its aspects, in deviations from the mean that its authors give.

    Args:
        model: a folder or hub id, ``KwaiVGI/VideoReward``: ``model_config.json`` and ``checkpoint-N``.
        template: your copy of VideoAlign's ``prompt_template.py``, or a text file with the same question.
        base: a folder or hub id with the Qwen2-VL it was made of; where None, the one that ``model_config.json`` names.
        aspect: ``overall`` (the sum), ``VQ`` (visual quality), ``MQ`` (motion quality) or ``TA`` (text alignment).
        dtype: ``float32``, or ``bfloat16`` as published, at half the memory.
    """

    card = RewardCard(
        name="video_reward",
        summary="VideoReward: learned human preference for visual quality, motion quality and text alignment.",
        range=(-100.0, 100.0),
        needs_prompt=True,
        licence="that of the weights (reported as Apache-2.0, as Qwen2-VL-2B; the program is MIT)",
        source="KwaiVGI/VideoReward on Qwen/Qwen2-VL-2B-Instruct; Liu et al. 2025, arXiv 2501.13918",
    )

    def __init__(
        self,
        model: str,
        template: str | None = None,
        base: str | None = None,
        aspect: Aspect = "overall",
        dtype: Dtype = "float32",
    ) -> None:
        if template is None:
            raise ConfigError(
                "video_reward needs the option 'template', your copy of prompt_template.py from the VideoAlign "
                "repository: the question it asks is not part of reelign"
            )
        if aspect not in get_args(Aspect) or dtype not in get_args(Dtype):
            raise ConfigError(
                f"video_reward has the aspects {', '.join(get_args(Aspect))} and the dtypes "
                f"{', '.join(get_args(Dtype))}; got {aspect!r} and {dtype!r}"
            )
        self.template = read_template(template, (TEMPLATE,), TOKENS)
        self.aspect = aspect
        folder = find_folder(
            model, (SETTINGS, f"checkpoint-*/{FULL}", f"checkpoint-*/{ADAPTER}", f"checkpoint-*/{REST}")
        )
        self.settings = read_settings(folder)
        base = base or self.settings.base
        weights = read_checkpoint(folder, base, self.settings.scale)
        self.reader = Reader(weights, _head(weights["rm_head.weight"]), base, TOKENS, dtype, model)

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B]."""
        scores = self.aspects(batch)
        return scores.sum(1) if self.aspect == "overall" else scores[:, ASPECTS.index(self.aspect)]

    def aspects(self, batch: VideoBatch) -> Tensor:
        """Visual quality, motion quality and text alignment, [B,3], in deviations."""
        raw = self.raw(batch)
        mean, std = raw.new_tensor(self.settings.mean), raw.new_tensor(self.settings.std)
        return (raw - mean) / std

    def raw(self, batch: VideoBatch) -> Tensor:
        """What the head says, [B,3], before mean and deviation are taken out."""
        settings = self.settings
        frames = chosen_frames(batch.video.shape[1], batch.fps, settings.fps, settings.frames)
        clips = prepare(batch.video[:, frames], LEAST_PIXELS, settings.pixels)
        questions = [self.template.replace(PROMPT, prompt) for prompt in batch.request.prompts]
        said = torch.cat([self.reader.read(clip[None], text) for clip, text in zip(clips, questions, strict=True)])
        return said[..., 0] if said.shape[-1] == 1 else said.diagonal(dim1=1, dim2=2)


def _head(weight: Tensor) -> Any:
    """The bias-free head: one output read at each token, or one for each token."""
    if weight.ndim != 2 or len(weight) not in (1, len(ASPECTS)):
        raise ModelError(f"VideoReward's rm_head has 1 or {len(ASPECTS)} outputs; got shape {list(weight.shape)}")
    return nn.Linear(weight.shape[1], len(weight), bias=False)
