r"""HPSv3: how much people prefer a frame for its prompt, judged by Qwen2-VL-7B.

    r = (1/T) Σ_t w_t·μ(x_t, prompt),      (μ, σ) = three linear layers at ``<|Reward|>``     (Ma et al. 2025, HPSv3)

The network gives the mean and the spread of a frame's preference; the score is the mean. A frame is resized to about
256·28² pixels, its aspect kept. The published file holds the whole network, so no adapter is merged.

Left out: σ; the text of the question, which is its authors' (``template`` names your copy of it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from reelign.contracts import RewardCard, VideoBatch
from reelign.errors import ConfigError, ModelError
from reelign.rewards.frames import average
from reelign.rewards.qwen2_vl import PROMPT, STEP, Dtype, Reader, prepare, read_template, rename
from reelign.zoo.published import read_weights

TOKENS = ("<|Reward|>",)
TEMPLATE = ("INSTRUCTION", "prompt_with_special_token")
PIXELS = 256 * STEP**2
WIDTHS = (1024, 16, 2)  # of the head's layers; the last is μ and a measure of σ


class HPSv3:
    """Mean HPSv3 score of the frames.

    Args:
        weights: a file, or ``MizzenAI/HPSv3:HPSv3.safetensors`` on the hub, about 17 GB.
        template: your copy of HPSv3's ``hpsv3/dataset/data_collator_qwen.py``, or a text file with the same question.
        base: a folder or hub id with the configuration and tokenizer of Qwen2-VL-7B; its weights are not read.
        dtype: ``float32``, or ``bfloat16`` as published, at half the memory.
    """

    card = RewardCard(
        name="hpsv3",
        summary="HPSv3: learned human preference between the prompt and each frame.",
        range=(-1000.0, 1000.0),
        needs_prompt=True,
        licence="that of the weights (reported as Apache-2.0, as Qwen2-VL-7B; the program is MIT)",
        source="MizzenAI/HPSv3 on Qwen/Qwen2-VL-7B-Instruct; Ma et al. 2025, arXiv 2508.03789",
    )

    def __init__(
        self,
        weights: str,
        template: str | None = None,
        base: str = "Qwen/Qwen2-VL-7B-Instruct",
        dtype: Dtype = "float32",
    ) -> None:
        if template is None:
            raise ConfigError(
                "hpsv3 needs the option 'template', your copy of hpsv3/dataset/data_collator_qwen.py from the HPSv3 "
                "repository: the question it asks is not part of reelign"
            )
        if dtype not in get_args(Dtype):
            raise ConfigError(f"hpsv3 has the dtypes {', '.join(get_args(Dtype))}; got {dtype!r}")
        self.template = read_template(template, TEMPLATE, TOKENS)
        content = rename(read_weights(weights, float32=False))
        if "rm_head.0.weight" not in content:
            raise ModelError(f"{weights} lacks rm_head.0.weight, which makes the scores and would stay random")
        head = build_head(content["rm_head.0.weight"].shape[-1])
        self.reader = Reader(content, head, base, TOKENS, dtype, weights)

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B]."""
        return average(self.frame_scores(batch.video, batch.request.prompts), batch)

    def frame_scores(self, video: Tensor, prompts: Sequence[str]) -> Tensor:
        """μ [B,T] of every frame of clips [B,T,3,H,W]; the frames of one clip are read together."""
        frames = prepare(video, PIXELS, PIXELS)
        questions = [self.template.replace(PROMPT, prompt) for prompt in prompts]
        said = [self.reader.read(clip[:, None], text) for clip, text in zip(frames, questions, strict=True)]
        return torch.stack(said)[..., 0, 0]


def build_head(width: int) -> nn.Sequential:
    """Linear, ReLU, dropout, linear, ReLU, linear, from ``width`` numbers to two; dropout sleeps when frozen."""
    first, second, last = WIDTHS
    return nn.Sequential(
        nn.Linear(width, first),
        nn.ReLU(),
        nn.Dropout(0.05),
        nn.Linear(first, second),
        nn.ReLU(),
        nn.Linear(second, last),
    )
