"""Open-Sora 1.2: its network and sampling against golden numbers, and a tiny random checkpoint as published."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from reelign.contracts import Condition
from reelign.generators.opensora import OpenSora, OpenSoraOptions, noise_path
from reelign.generators.opensora_network import STDiT3, STDiT3Config
from reelign.generators.opensora_vae import OpenSoraVAE, VAESizes
from reelign.sampling import ChainOptions, chain

TINY = VAESizes((32, 32, 32, 32), 1, 32, (1, 2, 2, 4), 1)
SAME = {"height": "height", "width": "width", "frames": "num_frames", "fps": "fps"}


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


class Golden:
    """A generator of the golden network and its captions; keeps what it was asked."""

    def __init__(self, tensors, described):
        given = part(tensors, "inputs/")
        sizes = {name: int(given[key][0]) for name, key in SAME.items()}
        net = network(tensors, described["config"]["model"])
        self.family = OpenSora(net, OpenSoraVAE(TINY), nn.Identity(), None, OpenSoraOptions(**sizes))
        self.path = self.family.path
        positive = {"text": given["y"][:, 0], "mask": given["mask"].bool()}
        self.condition = Condition(positive, self.family.negative(positive))
        self.calls = []

    def merged(self):
        return nullcontext()

    def predict(self, x, t, condition):
        output = self.family.predict(x, t.expand(len(x)), condition.positive)
        self.calls.append((x[: len(x) // 2].detach(), t, output))
        return output


def test_times_against_the_original(golden):
    tensors, described = golden("opensora_rflow")
    for (height, width, frames), times in zip(
        tensors["inputs/transform_table_hwf"].tolist(), tensors["outputs/transform_table"], strict=True
    ):
        computed = noise_path(height, width, frames).schedule(5).t.float()
        assert distance(computed, times) < described["tolerance"]["overrides"]["outputs/transform_table"]


def test_the_last_step_of_vaders_run():
    assert noise_path(276, 368, 51).schedule(30).sigma[-2].item() == pytest.approx(0.0767495, abs=1e-7)


def test_sampling_against_the_original(golden):
    tensors, described = golden("opensora_rflow")
    outputs, tolerance = part(tensors, "outputs/"), described["tolerance"]
    original = Golden(tensors, described)
    options = ChainOptions(described["config"]["scheduler"]["cfg_scale"], gradient_steps=[4])
    weights = dict(original.family.network.named_parameters())
    chosen = {name: weights[name].requires_grad_() for name in described["chosen_weights"]}
    final = chain(original, tensors["inputs/z"], original.condition, original.path.schedule(5), options)
    for i, (x, t, output) in enumerate(original.calls):
        assert distance(t.expand(2), outputs["timesteps"][i]) < tolerance["overrides"]["outputs/timesteps"]
        assert i == 0 or distance(x, outputs["latents"][i - 1]) < tolerance["default"]
        negative, positive = output.detach().chunk(2)
        assert distance(-positive, outputs["pred_cond"][i, :, :4]) < tolerance["default"]
        assert distance(-negative, outputs["pred_uncond"][i, :, :4]) < tolerance["default"]
    assert distance(final.detach(), outputs["final"]) < tolerance["default"]
    loss = (final * tensors["inputs/probe"]).sum()
    assert distance(loss.detach(), outputs["loss"]) < tolerance["overrides"]["outputs/loss"]
    loss.backward()
    for name, weight in chosen.items():
        assert distance(weight.grad, outputs[f"grad/{name}"]) < tolerance["overrides"]["outputs/grad/"]
