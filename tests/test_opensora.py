"""Open-Sora 1.2: its network and sampling against golden numbers, and a tiny random checkpoint as published."""

from __future__ import annotations

import pytest
import torch

from reelign.generators.opensora_network import STDiT3, STDiT3Config


def part(tensors, prefix):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def distance(computed, reference):
    return ((computed - reference).abs().max() / reference.abs().max()).item()


def network(tensors, config):
    made = STDiT3(STDiT3Config.from_published(config))
    made.load_state_dict(part(tensors, "weights/"))
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("output", "x", "mask", "frames"),
    [
        ("out", "x", "mask", None),
        ("out_nomask", "x", None, None),
        ("out_odd", "x_odd", "mask", None),
        ("out_xmask", "x", "mask", "x_mask"),
    ],
)
def test_network_against_the_original(golden, output, x, mask, frames):
    tensors, described = golden("opensora_stdit3")
    given = part(tensors, "inputs/")
    computed = network(tensors, described["config"])(
        given[x], given["timestep"], given["y"][:, 0], None if mask is None else given[mask],
        (float(given["height"][0]), float(given["width"][0])), given["fps"], None if frames is None else given[frames],
    )  # fmt: skip
    assert distance(computed, tensors[f"outputs/{output}"]) < described["tolerance"]["default"]


def test_the_published_size_has_the_published_names(golden):
    """Names and shapes of the golden network's state, widened to XL/2: 28 pairs of blocks, width 1152, T5-XXL."""
    _, described = golden("opensora_stdit3")
    wide = {48: 1152, 144: 3456, 192: 4608, 288: 6912, 96: 2304, 12: 72, 20: 4096, 9: 300}
    expected = {}
    for name, shape in described["weights"]["shapes"].items():
        size = tuple(wide.get(int(n), int(n)) for n in shape.split("x"))
        copies = range(28) if "_blocks.0." in name else [None] if "_blocks.1." not in name else []
        for i in copies:
            expected[name if i is None else name.replace("_blocks.0.", f"_blocks.{i}.")] = size
    expected["rope.freqs"] = (36,)
    with torch.device("meta"):
        made = STDiT3(STDiT3Config())
    assert {name: tuple(value.shape) for name, value in made.state_dict().items()} == expected
