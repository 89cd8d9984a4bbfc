r"""What rewards made of Qwen2-VL share: its way of seeing, and a head read at special tokens.

    s = head(h_i),      h = the last layer after its norm, i = the place of a special token in the text

as VideoReward (Liu et al. 2025) and HPSv3 (Ma et al. 2025) publish it. Three things in which their programs differ from
the language model that they were made of, and which change scores:

- every token's place is its number in the sequence on all three axes of the rotary embedding, in pictures too: their
  forward pass gives no places, and transformers 4.45 then counts (Qwen2-VL itself gives rows, columns and frames);
- the rotary frequencies are rounded to bfloat16: the whole model is cast to it, buffers included, also in training;
- the vocabulary ends with the special tokens, right after the tokenizer's own.

Visuals are read one clip at a time, thousands of tokens each, so no padding is needed and a score cannot depend on its
batch. Left out: PEFT at run time (adapters are merged), quantised weights.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from reelign.errors import ConfigError, DataError, ModelError
from reelign.rewards.clip_tower import load_tokenizer
from reelign.rewards.preprocess import resize
from reelign.zoo.models import CLIP_MEAN, CLIP_STD, normalise, resolve_model
from reelign.zoo.published import fill

Dtype = Literal["float32", "bfloat16"]
PATCH, MERGE, PAIR = 14, 2, 2  # pixels of a patch's side, patches of a token's side, frames of a patch
STEP = PATCH * MERGE
PROMPT = "{text_prompt}"
PEFT_PREFIX = "base_model.model."
# Beginnings of names, newest layout first, and what Qwen2VLModel calls them (KlingAIResearch/VideoAlign#15).
PLACES = {
    "model.visual.": "visual.",
    "model.language_model.": "language_model.",
    "visual.": "visual.",
    "model.": "language_model.",
    "rm_head.": "rm_head.",
}
EMBEDDING = "language_model.embed_tokens.weight"


def fitting_size(height: int, width: int, least: int, most: int) -> tuple[int, int]:
    """Multiples of 28 nearest to height × width, scaled to between ``least`` and ``most`` pixels (Wang et al. 2024)."""
    rows, columns = (max(1, round(side / STEP)) for side in (height, width))
    if rows * columns * STEP**2 > most:
        shrink = math.sqrt(height * width / most)
        rows, columns = (max(1, math.floor(side / shrink / STEP)) for side in (height, width))
    elif rows * columns * STEP**2 < least:
        grow = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(side * grow / STEP) for side in (height, width))
    return rows * STEP, columns * STEP


def prepare(video: Tensor, least: int, most: int) -> Tensor:
    """Clips [B,T,3,H,W] in [0,1] as Qwen2-VL sees them: resized to a fitting size, CLIP's mean and deviation."""
    size = fitting_size(video.shape[-2], video.shape[-1], least, most)
    frames = normalise(resize(video.flatten(0, 1), *size), CLIP_MEAN, CLIP_STD)
    return frames.view(*video.shape[:3], *size)


def patchify(visuals: Tensor) -> tuple[Tensor, Tensor]:
    """Patches [N·t·h·w,1176] of prepared visuals [N,T,3,H,W] and their grids (t, h, w), [N,3]; one frame counts twice.

    The four patches that become one token are neighbours; a patch's numbers go by colour, frame, row, column.
    """
    if visuals.shape[1] == 1:
        visuals = visuals.expand(-1, PAIR, -1, -1, -1)
    count, frames, _, height, width = visuals.shape
    grid = (frames // PAIR, height // PATCH, width // PATCH)
    blocks = visuals.reshape(
        count, grid[0], PAIR, 3, grid[1] // MERGE, MERGE, PATCH, grid[2] // MERGE, MERGE, PATCH
    )  # n t f c Y y i X x j
    patches = blocks.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).reshape(-1, 3 * PAIR * PATCH**2)
    return patches, torch.tensor([grid] * count, device=visuals.device)


def rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names, with or without PEFT's prefix, of any version of transformers, as ``Qwen2VLModel`` has them.

    The head keeps its name ``rm_head.*``; the output layer for words is dropped, since no words are asked for.

    Raises:
        ModelError: a name that is not Qwen2-VL's.
    """
    renamed = {}
    for published, value in weights.items():
        name = published.removeprefix(PEFT_PREFIX)
        if name.startswith("lm_head."):
            continue
        start = next((start for start in PLACES if name.startswith(start)), None)
        if start is None:
            raise ModelError(f"weights of a Qwen2-VL reward are named visual.*, model.* and rm_head.*; got {published}")
        renamed[PLACES[start] + name.removeprefix(start)] = value
    return renamed


def merge_lora(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """W + scale·B·A for every adapted layer (Hu et al. 2022, eq. 3, scale = α/r), the rest unchanged.

    Raises:
        ModelError: half an adapter, an adapter without its layer, or one of another kind.
    """
    merged = {name.replace(".base_layer.", "."): value for name, value in weights.items() if ".lora_" not in name}
    left = {name for name in weights if ".lora_" in name or name.endswith(".base_layer.weight")}
    for down in sorted(name for name in left if ".lora_A." in name):
        layer = down.split(".lora_A.")[0]
        up, target = down.replace(".lora_A.", ".lora_B."), f"{layer}.weight"
        if up in left and target in merged:
            merged[target] = merged[target].float() + scale * weights[up].float() @ weights[down].float()
            left -= {up, down, f"{layer}.base_layer.weight"}
    if left:
        raise ModelError(
            f"a LoRA is lora_A, lora_B and the layer they adapt; {len(left)} weights are not ({sorted(left)[0]}, …)"
        )
    return merged


def read_template(file: str, names: Sequence[str], tokens: Sequence[str]) -> str:
    """The question asked about a visual: named strings of a Python file (parsed, never run), or a whole text file.

    Args:
        file: ``*.py``, or any other file, taken as the text itself.
        names: of the strings in a Python file, joined in this order.
        tokens: that the text must hold once each, in this order.

    Raises:
        ConfigError: the file is not there, or lacks the strings, the tokens or a place for the prompt.
    """
    wanted = f"a text with {PROMPT} and, once each, {' '.join(tokens)}; or a .py with it under {' and '.join(names)}"
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
        if file.endswith(".py"):
            strings = _strings(ast.parse(text))
            text = "".join(strings[name] for name in names)
    except (OSError, UnicodeDecodeError, SyntaxError, KeyError) as error:
        raise ConfigError(f"the template is {wanted}; {file} is not ({type(error).__name__}: {error})") from error
    places = [text.find(token) for token in tokens]
    if PROMPT not in text or any(text.count(token) != 1 for token in tokens) or places != sorted(places):
        raise ConfigError(f"the template is {wanted}; the text in {file} is not")
    return text


def _strings(module: ast.Module) -> dict[str, str]:
    """The string constants that a module assigns to plain names."""
    return {
        target.id: node.value.value
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


class Reader:
    """A frozen Qwen2-VL with a head, which answers a question about a visual by one vector per special token.

    Args:
        weights: of the network and of ``rm_head``, from ``rename``, adapters merged.
        head: the layers of ``rm_head``, to be filled.
        base: a folder or hub id with Qwen2-VL's configuration and tokenizer.
        tokens: the special tokens, in the order in which they follow the tokenizer's own.
        dtype: of the network; the head works in float32.
        source: how messages call the weights.

    Raises:
        ModelError: weights are missing or left over, or the tokenizer is of another model.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        head: nn.Module,
        base: str,
        tokens: Sequence[str],
        dtype: Dtype,
        source: str,
    ) -> None:
        self.head = head
        fill(head, {name[8:]: value for name, value in weights.items() if name.startswith("rm_head.")}, source)
        own = {name: value for name, value in weights.items() if not name.startswith("rm_head.")}
        config = load_config(base)
        self.tokenizer = load_tokenizer(base)
        self.tokenizer.add_tokens(list(tokens), special_tokens=True)
        words = len(own[EMBEDDING]) if EMBEDDING in own else 0
        if words != len(self.tokenizer):
            raise ModelError(
                f"{source} has {words} words with its special tokens, the tokenizer of {base} {len(self.tokenizer)}: "
                "name the Qwen2-VL that it was made of as 'base'"
            )
        config.text_config.vocab_size = words
        self.model = AutoModel.from_config(config, dtype=getattr(torch, dtype))
        fill(self.model, own, source)
        round_frequencies(self.model)
        self.pads = {"image": config.image_token_id, "video": config.video_token_id}
        self.special = torch.tensor(self.tokenizer.convert_tokens_to_ids(list(tokens)))

    def read(self, visuals: Tensor, question: str) -> Tensor:
        """What the head says [N,S,O] at the S special tokens of one question about each prepared visual [N,T,3,H,W].

        Visuals of one frame are images, others videos of an even number of frames.
        """
        kind = "image" if visuals.shape[1] == 1 else "video"
        patches, grid = patchify(visuals)
        ids = self._ids(kind, int(grid[0].prod()) // MERGE**2, question).to(visuals.device)
        spots = torch.isin(ids, self.special.to(ids.device)).nonzero()[:, 0]
        places = torch.arange(len(ids), device=ids.device).expand(3, len(visuals), -1)
        if self.model.device != visuals.device:
            self.model.to(visuals.device)
            self.head.to(visuals.device)
        pixels = "pixel_values" if kind == "image" else "pixel_values_videos"
        inputs = {pixels: patches.to(self.model.dtype), f"{kind}_grid_thw": grid}
        hidden = self.model(input_ids=ids.expand(len(visuals), -1), position_ids=places, use_cache=False, **inputs)
        said: Tensor = self.head(hidden.last_hidden_state[:, spots].float())
        return said

    def _ids(self, kind: str, count: int, question: str) -> Tensor:
        """Token ids [L] of Qwen2-VL's chat: a visual of ``count`` tokens, then the question."""
        chat = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
            f"<|{kind}_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = torch.tensor(self.tokenizer(chat, add_special_tokens=False)["input_ids"])
        is_pad, is_special = ids == self.pads[kind], torch.isin(ids, self.special)
        if is_pad.sum() != 1 or is_special.sum() != len(self.special):
            raise DataError(f"a prompt must not hold the special tokens of the model that reads it; got {question!r}")
        return ids.repeat_interleave(torch.where(is_pad, count, 1))


def round_frequencies(model: nn.Module) -> None:
    """Round the frequencies of every rotary embedding to bfloat16, in place, as casting the whole model does."""
    for module in model.modules():
        frequencies = getattr(module, "inv_freq", None)
        if isinstance(frequencies, Tensor):
            frequencies.copy_(frequencies.bfloat16())


def load_config(base: str) -> Any:
    """The configuration of a Qwen2-VL in a folder or on the hub.

    Raises:
        ModelError: there is none, or it is another model's.
    """
    try:
        config = AutoConfig.from_pretrained(resolve_model(base))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"cannot read the configuration of {base}: {' '.join(str(error).split())[:200]}") from error
    if config.model_type != "qwen2_vl":
        raise ModelError(f"the base of this reward is a Qwen2-VL; {base} is a {config.model_type}")
    return config
