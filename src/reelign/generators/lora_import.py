r"""Adapters in the files of the programs that trained them: InstructVideo's, and VADER's two kinds.

- **VADER on VideoCrafter2 and Open-Sora**, ``peft_model_N.pt``: PEFT's names, after those of whatever wrapped the
  network. α is PEFT's default of 8, which nobody set.
- **VADER on ModelScope**, ``N_unet.pt``: a list up, down, up, down, … without names, a pair a layer, in the order in
  which the network registers them; α / r = 1. A layer narrower than the rank has its own width as rank; here it is
  filled up with zeros, which stay zero in training, since the gradient of either factor is a multiple of the other.
  Every layer has a pair; with the versions that the program pins, only those that diffusers had not made its own.
- **InstructVideo**, ``…_0620000.pth``: the whole network and its LoRA under the names of ModelScope's own program,
  ``input_blocks.1.1.transformer_blocks.0.attn1.to_q_lora.down_linear.weight``; α / r = 1.

Left out: VADER's ``N_text_encoder.pt``, which never trained, and InstructVideo's copy of the frozen weights.

Run: ``reelign generate --kind modelscope --generator MODEL --adapter FILE …``, or ``generator.adapter`` in a run file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from reelign.errors import ModelError

Content = Mapping[str, Tensor] | Sequence[Tensor]

DOWN, UP = ".lora_A.weight", ".lora_B.weight"  # PEFT's
PEFT_ALPHA = 8.0  # what a LoraConfig has that nobody set
PLAIN = (
    *("conv_in", "conv_out", "conv1.2", "conv2.3", "conv3.3", "conv4.3"),
    *("transformer_in.proj_in", "transformer_in.proj_out"),
    *(f"temp_attentions.{j}.proj_{end}" for j in range(3) for end in ("in", "out")),
)
ORIGINAL = re.compile(r"^(.+)\.(transformer_blocks\.0\.attn[12]\.to_(?:q|k|v|out))_lora\.(down|up)_linear\.weight$")
BLOCK = re.compile(r"^(?:(in|out)put_blocks\.(\d+)|middle_block)\.([12])$")


def published_options(content: Content, file: str) -> dict[str, Any]:
    """Rank, α and targets of an adapter that has no settings beside it; see ``LoraOptions``.

    Raises:
        ModelError: these are no LoRA weights.
    """
    if not isinstance(content, Mapping):
        pairs = _pairs(content, file)
        rank = max(len(down) for _, down in pairs)
        every = any(down.dim() == 4 for _, down in pairs[1:-1])  # a convolution of a residual block
        return {"rank": rank, "alpha": float(rank), "targets": ("every",) if every else PLAIN}
    original = [match for name in content if (match := ORIGINAL.match(name)) and match[3] == "down"]
    if original:
        rank = len(content[original[0].string])
        targets = {_ending(match[2]) for match in original}
        return {"rank": rank, "alpha": float(rank), "targets": tuple(sorted(targets))}
    layers = [name.removesuffix(DOWN) for name in content if name.endswith(DOWN)]
    if not layers:
        raise ModelError(f"an adapter's weights are under PEFT's names, *{DOWN}; {file} has none")
    return {
        "rank": len(content[layers[0] + DOWN]),
        "alpha": PEFT_ALPHA,
        "targets": tuple(sorted({_ending(layer) for layer in layers})),
    }


def has_unit_scale(content: Content) -> bool:
    """Whether the program that wrote this adapter added up·down to the weights as it is."""
    return not isinstance(content, Mapping) or any(ORIGINAL.match(name) for name in content)


def published_state(content: Content, expected: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """An adapter under PEFT's names.

    Args:
        content: of the file.
        expected: the adapter that it goes into, in the order in which the network registers its layers.
        file: for the error.

    Raises:
        ModelError: another number of layers, or a layer that this network does not have.
    """
    if not isinstance(content, Mapping):
        return _numbered(_pairs(content, file), expected, file)
    if any(ORIGINAL.match(name) for name in content):
        return _renamed(content, expected, file)
    known = next(iter(expected))
    prefix = next((name.removesuffix(known) for name in content if name.endswith(f".{known}")), "")
    return {name.removeprefix(prefix): value for name, value in content.items()}


def _ending(layer: str) -> str:
    """How ``LoraOptions.targets`` calls a layer."""
    *_, parent, last = layer.split(".")
    if last == "to_out":
        return "to_out.0"
    return f"{parent}.{last}" if last.isdigit() else last


def _pairs(content: Sequence[Tensor], file: str) -> list[tuple[Tensor, Tensor]]:
    """Up [out,r,…] and down [r,in,…] of each layer."""
    pairs = list(zip(content[::2], content[1::2], strict=False))
    if (
        len(content) % 2
        or not pairs
        or any(min(up.dim(), down.dim()) < 2 or up.shape[1] != len(down) for up, down in pairs)
    ):
        raise ModelError(
            f"a list of LoRA weights is up [out,r], down [r,in], … in turn; that in {file}, of {len(content)} tensors, "
            "is not"
        )
    return pairs


def _numbered(pairs: Sequence[tuple[Tensor, Tensor]], expected: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """The i-th pair under the name of the i-th layer."""
    layers = [name.removesuffix(DOWN) for name in expected if name.endswith(DOWN)]
    if len(pairs) != len(layers):
        raise ModelError(
            f"{file} has a pair of LoRA weights for each of {len(pairs)} layers, and this adapter is on {len(layers)}: "
            "generator.lora.targets and the model have to be those it was trained with"
        )
    state: dict[str, Tensor] = {}
    for layer, (up, down) in zip(layers, pairs, strict=True):
        missing = max(0, len(expected[layer + DOWN]) - len(down))
        state[layer + DOWN] = F.pad(down, (0, 0) * (down.dim() - 1) + (0, missing))
        state[layer + UP] = F.pad(up, (0, 0) * (up.dim() - 2) + (0, missing))
    return state


def _renamed(content: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """InstructVideo's LoRA weights under PEFT's names in diffusers' network."""
    numbers = [match[1] for name in expected if (match := re.match(r"down_blocks\.0\.attentions\.(\d+)\.", name))]
    if not numbers:
        raise ModelError(f"the adapter in {file} is InstructVideo's, for generators of kind modelscope alone")
    each = max(int(number) for number in numbers) + 2  # blocks of a level: those with attention and one that resizes
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        if "_lora." not in name:
            continue
        match = ORIGINAL.match(name)
        place = None if match is None else _place(match[1], each)
        if match is None or place is None:
            raise ModelError(f"the adapter in {file} is on {name!r}, which is no layer of ModelScope's network")
        inside = match[2] + (".0" if match[2].endswith("to_out") else "")
        state[f"{place}.{inside}{DOWN if match[3] == 'down' else UP}"] = value
    return state


def _place(block: str, each: int) -> str | None:
    """diffusers' name of a transformer in ModelScope's own network: ``input_blocks.1.2`` to its first temporal one.

    Args:
        block: its name there.
        each: blocks of a level.
    """
    if block == "input_blocks.0.1":
        return "transformer_in"
    match = BLOCK.match(block)
    if match is None:
        return None
    way, number, kind = match.groups()
    attention = "attentions" if kind == "1" else "temp_attentions"
    if way is None:
        return f"mid_block.{attention}.0"
    level, block_of_level = divmod(int(number) - (way == "in"), each)
    return f"{'down' if way == 'in' else 'up'}_blocks.{level}.{attention}.{block_of_level}"
