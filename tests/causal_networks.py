"""Small causal networks for tests: the golden one, a random one, and a clip's passes one by one."""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from reelign.contracts import Condition
from reelign.generators.causal_layout import Layout
from reelign.generators.causal_network import advance, empty_memory
from reelign.generators.causal_wan import load_causal_wan
from reelign.generators.wan_layout import to_diffusers

# Every kind of layout, with a number of frames that it divides.
LAYOUTS = {
    "three": (Layout(3), 15),
    "one": (Layout(1), 7),
    "five": (Layout(5), 15),
    "first alone": (Layout(3, independent_first=True), 13),
    "window": (Layout(3, window=6), 15),
    "least window": (Layout(3, window=3), 15),
    "uneven window": (Layout(3, window=5), 15),
    "sink": (Layout(3, window=6, sink=3), 15),
    "small sink": (Layout(3, window=7, sink=1), 15),
    "sink over blocks": (Layout(2, window=7, sink=3), 12),
    "moved sink": (Layout(3, window=9, sink=3, rebase_sink=True), 18),
    "moved, first alone": (Layout(3, True, window=5, sink=1, rebase_sink=True), 13),
    "frame by frame": (Layout(1, window=4, sink=1, rebase_sink=True), 9),
}


def network(layers: int = 2) -> WanTransformer3DModel:
    """A random float64 transformer of 2 heads of 24, none of whose parameters is 0 or 1."""
    made = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
        ffn_dim=96, num_layers=layers, rope_max_seq_len=64,
    )  # fmt: skip
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in made.named_parameters():
            noise = torch.randn(value.shape, generator=random)
            value.copy_(1 + 0.2 * noise if "norm" in name and name.endswith("weight") else 0.15 * noise)
    return made.double().eval().requires_grad_(False)


def golden_network(tensors: dict[str, Tensor]) -> WanTransformer3DModel:
    """The transformer that the golden numbers of ``selfforcing_causal_wan`` come from."""
    made = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
        ffn_dim=96, num_layers=3,
    )  # fmt: skip
    official = {name.removeprefix("weights/"): v for name, v in tensors.items() if name.startswith("weights/")}
    made.load_state_dict(to_diffusers(official))
    return made.eval().requires_grad_(False)


def golden_text(tensors: dict[str, Tensor], batch: int) -> Tensor:
    """Text states [B,8,16]: zeros up to the text length, attended to, as the original does."""
    states = tensors["inputs/prompt_embeds"]
    return torch.cat([states, states.new_zeros(len(states), 3, 16)], dim=1)[:batch]


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Float64 normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def passes(made, layout: Layout, x: Tensor, t: Tensor, clean: Tensor, text, clean_t: Tensor):
    """Each noisy block after the memory of the clean ones: outputs of both, side by side, and the last memory."""
    memory, noisy, known, start = empty_memory(made, text), [], [], 0
    for size in layout.blocks(x.shape[2]):
        part = slice(start, start + size)
        noisy.append(advance(made, layout, x[:, :, part], t, memory, text)[0])
        output, memory = advance(made, layout, clean[:, :, part], clean_t, memory, text)
        known.append(output)
        start += size
    return torch.cat(noisy, 2), torch.cat(known, 2), memory


def generator(folder, made=None, **options):
    """A causal generator of a pipeline folder, without an adapter; its transformer may be another one."""
    chosen = load_causal_wan(**{"model": str(folder), "lora": None, "device": "cpu", "frames_per_block": 1, **options})
    if made is not None:
        made.gradient_checkpointing = chosen.options.gradient_checkpointing
        chosen.wan.pipeline.register_modules(transformer=made)
        chosen.wan.denoisers.networks["transformer"] = made
    return chosen


def text_condition(states: Tensor, negative: Tensor | None = None) -> Condition:
    """A condition of text states."""
    return Condition({"text": states}, None if negative is None else {"text": negative})
