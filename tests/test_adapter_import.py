"""Adapters in the files of InstructVideo's and VADER's programs, on random networks."""

from __future__ import annotations

import pytest
import tiny_families as tiny
import torch
from diffusers import UNet3DConditionModel
from torch import nn

from reelign.contracts import Request
from reelign.errors import ModelError
from reelign.generation import GenerationJob
from reelign.generators.lora import LoraOptions, adapter_options, adapter_parameters, adapter_state, add_adapter
from reelign.generators.lora_import import PLAIN, published_options, published_state
from reelign.generators.modelscope import load_modelscope

SIZE = {"height": 32, "width": 32, "frames": 4, "device": "cpu"}
# Transformers of the tiny network, diffusers' name and that of ModelScope's own program; a level has two blocks there.
TINY = {
    "transformer_in": "input_blocks.0.1",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.temp_attentions.0": "input_blocks.1.2",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.temp_attentions.0": "middle_block.2",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.temp_attentions.0": "output_blocks.2.2",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "up_blocks.1.temp_attentions.1": "output_blocks.3.2",
}
LINEARS = [f"transformer_blocks.0.attn{i}.to_{x}" for i in (1, 2) for x in ("q", "k", "v", "out")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.build(tiny.modelscope, tmp_path_factory.mktemp("modelscope"))


def plain_unet(folder):
    return UNet3DConditionModel.from_pretrained(folder, subfolder="unet").eval()


def load(folder, **lora):
    return load_modelscope(model=str(folder), **SIZE, lora=lora)


def same(generator, unet):
    """Whether a generator predicts what a network without adapters does, and not what it began with."""
    x = torch.randn(1, *generator.latent_shape(), generator=torch.Generator().manual_seed(1))
    t, condition = torch.tensor([401.0]), generator.encode(Request(("a cat",)))
    with torch.no_grad():
        ours = generator.predict(x, t, condition)
        torch.testing.assert_close(ours, unet(x, t, condition.positive["text"])[0], rtol=1e-4, atol=1e-4)
        with generator.reference():
            assert (generator.predict(x, t, condition) - ours).abs().max() > 1e-2


def instructvideo(unet, rank=3):
    """A checkpoint as InstructVideo's program writes it, whose LoRA is added to the weights of ``unet`` too."""
    random, state = torch.Generator().manual_seed(7), {"input_blocks.0.0.weight": torch.zeros(2, 4, 3, 3)}
    for ours, theirs in TINY.items():
        for linear in LINEARS:
            layer = unet.get_submodule(f"{ours}.{linear}{'.0' if linear.endswith('out') else ''}")
            state[f"{theirs}.{linear}{'.0' if linear.endswith('out') else ''}.weight"] = layer.weight.detach().clone()
            down = torch.randn(rank, layer.in_features, generator=random) / 4
            up = torch.randn(layer.out_features, rank, generator=random) / 4
            state |= {f"{theirs}.{linear}_lora.{way}_linear.weight": w for way, w in (("down", down), ("up", up))}
            layer.weight.data += up @ down
    return {"state_dict": state, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-5}]}, "step": 620_000}


def vader(unet, rank, layers):
    """A list as VADER's program writes it, of ranks cut to the layers' width, added to the weights of ``unet`` too."""
    random, weights = torch.Generator().manual_seed(8), []
    for name, layer in unet.named_modules():
        if not (isinstance(layer, (nn.Linear, nn.Conv2d, nn.Conv3d)) and layers(name)):
            continue
        weight = layer.weight.data
        r = min(rank, *weight.shape[:2])
        down = torch.randn(r, *weight.shape[1:], generator=random) / weight[0].numel() ** 0.5
        up = torch.randn(len(weight), r, *[1] * (weight.dim() - 2), generator=random) / 4
        weight += (up.flatten(1) @ down.flatten(1)).view_as(weight)
        weights += [nn.Parameter(up), nn.Parameter(down)]  # what is float32 already is saved as a parameter
    return weights


def test_instructvideos_checkpoint_is_its_weights_added_to_the_networks(folder, tmp_path):
    file, unet = tmp_path / "reward_0620000.pth", plain_unet(folder)
    torch.save(instructvideo(unet), file)
    options = adapter_options(file)
    assert options == {"rank": 3, "alpha": 3.0, "targets": ("to_k", "to_out.0", "to_q", "to_v")}
    generator = load(folder, **options)
    generator.load(str(file))
    same(generator, unet)
    generator.save(str(tmp_path / "saved"))
    again = load(folder, **adapter_options(tmp_path / "saved"))
    again.load(str(tmp_path / "saved"))
    assert all(torch.equal(p, again.trainable()[name]) for name, p in generator.trainable().items())


def test_a_checkpoint_that_is_not_modelscopes_is_refused(folder, tmp_path):
    generator, file = load(folder, rank=3, alpha=3), tmp_path / "wrong.pth"

    def refused(message, change, **lora):
        content = instructvideo(plain_unet(folder))
        change(content["state_dict"])
        torch.save(content, file)
        with pytest.raises(ModelError, match=message):
            (load(folder, **lora) if lora else generator).load(str(file))

    name = "input_blocks.1.1.transformer_blocks.0.attn1.to_q_lora.up_linear.weight"
    refused(
        r"'input_blocks\.1\.3\.transformer_blocks.*', which is no layer of ModelScope's",
        lambda state: state.update({name.replace("1.1", "1.3", 1): state.pop(name)}),
    )
    refused(r"does not fit .*: down_blocks\.0\.attentions\.0.*to_q\.lora_B", lambda state: state.pop(name))
    refused("alpha / rank = 1; set generator.lora.alpha to the rank, 3, not 8", lambda state: None, rank=3, alpha=8)
    refused("has another rank or network", lambda state: None, rank=4, alpha=4)


def test_vaders_list_is_its_weights_added_to_every_layer(folder, tmp_path):
    file, unet = tmp_path / "500_unet.pt", plain_unet(folder)
    torch.save(vader(unet, 6, lambda name: True), file)
    assert adapter_options(file) == {"rank": 6, "alpha": 6.0, "targets": ("every",)}
    generator = load(folder, rank=6, alpha=6, targets=["every"])
    generator.load(str(file))
    same(generator, unet)
    # The input has 4 channels, so its rank is 4; what fills it up stays zero in training.
    down, up = (p for name, p in generator.trainable().items() if "conv_in" in name)
    assert down.shape[0] == 6
    assert down[4:].abs().max() == up[:, 4:].abs().max() == 0
    output = generator.predict(torch.randn(1, 4, 4, 16, 16), torch.tensor([1.0]), generator.encode(Request(("a",))))
    output.square().sum().backward()
    assert down.grad[:4].abs().max() > 0
    assert down.grad[4:].abs().max() == up.grad[:, 4:].abs().max() == 0
    generator.save(str(tmp_path / "saved"))
    again = load(folder, **adapter_options(tmp_path / "saved"))
    again.load(str(tmp_path / "saved"))
    same(again, unet)


def test_every_layer_trains_in_half_precision(folder):
    generator = load_modelscope(
        model=str(folder), **SIZE, dtype="bfloat16", gradient_checkpointing=True, lora={"rank": 2, "targets": ["every"]}
    )
    x = torch.randn(1, *generator.latent_shape(), generator=torch.Generator().manual_seed(1))
    output = generator.predict(x, torch.tensor([401.0]), generator.encode(Request(("a cat",))))
    output.float().square().mean().backward()
    up = {name: p for name, p in generator.trainable().items() if "lora_B" in name}
    assert len(up) == 175
    assert all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in up.values())
    # The last convolution of each of the eight temporal ones is zero at first, so the three before it get nothing.
    assert sum(bool(p.grad.abs().max() > 0) for p in up.values()) == 175 - 8 * 3


def test_vaders_list_of_the_layers_that_its_pinned_versions_train(folder, tmp_path):
    file, unet = tmp_path / "500_unet.pt", plain_unet(folder)
    temporal = ("transformer_in.proj", "temp_attentions.0.proj", "temp_attentions.1.proj", "temp_convs")
    torch.save(vader(unet, 4, lambda name: name in ("conv_in", "conv_out") or any(t in name for t in temporal)), file)
    job = GenerationJob.prepare(str(folder), "a cat", tmp_path / "out", adapter=file, kind="modelscope", **SIZE)
    assert adapter_options(file) == {"rank": 4, "alpha": 4.0, "targets": PLAIN}
    same(job.generator, unet)
    assert list(job.run(0, 1, None, 1)) == [1]


def test_a_list_of_another_length_or_order_is_refused(folder, tmp_path):
    generator, file = load(folder, rank=4, alpha=4, targets=["every"]), tmp_path / "1_unet.pt"
    weights = vader(plain_unet(folder), 4, lambda name: True)

    def refused(content, message):
        torch.save(content, file)
        with pytest.raises(ModelError, match=message):
            generator.load(str(file))

    refused(weights[:-2], r"for each of 174 layers, and this adapter is on 175: generator\.lora\.targets")
    refused(weights[:-1], "that in .*, of 349 tensors, is not")
    refused([w for pair in zip(weights[1::2], weights[::2], strict=True) for w in pair], "in turn")
    refused(weights[2:4] + weights[:2] + weights[4:], "another rank or network: conv_in.lora_A.weight")
    refused([weights[0], torch.tensor(1.0), *weights[2:]], "in turn")
    refused([*weights, "words"], "maps names to tensors")


def test_a_checkpoint_with_half_of_its_matrices_is_refused():
    half = {f"input_blocks.1.1.{LINEARS[0]}_lora.up_linear.weight": torch.zeros(8, 4)}
    with pytest.raises(ModelError, match=r"names, .*lora_A.*it has none"):
        published_options(half, "it")


def test_the_published_sizes():
    """InstructVideo's adapter at its own size: 1,661,440 weights, and every one of its 264 layers has its place."""
    with torch.device("meta"):
        unet = UNet3DConditionModel()
        add_adapter(unet, LoraOptions(rank=4, alpha=4))
    assert sum(p.numel() for p in unet.parameters()) == 1_411_233_860 + 1_661_440
    assert sum(p.numel() for p in adapter_parameters(unet).values()) == 1_661_440
    spatial = [*(f"input_blocks.{i}" for i in (1, 2, 4, 5, 7, 8)), *(f"output_blocks.{i}" for i in range(3, 12))]
    blocks = ["input_blocks.0.1", *(f"{block}.{i}" for block in (*spatial, "middle_block") for i in (1, 2))]
    empty = torch.empty(0, device="meta")
    names = [f"{b}.{linear}_lora.{way}_linear.weight" for b in blocks for linear in LINEARS for way in ("down", "up")]
    expected = adapter_state(unet)
    assert set(published_state(dict.fromkeys(names, empty), expected, "it")) == set(expected)
    assert len(expected) == len(names) == 2 * 8 * 33


def test_vaders_layers_at_the_published_size():
    """574 layers, or the 124 that are PyTorch's own in its pinned versions; a list says which by what is in it."""
    for targets, layers, weights in ((("every",), 574, 29_284_992), (PLAIN, 124, None)):
        with torch.device("meta"):
            unet = UNet3DConditionModel()
            add_adapter(unet, LoraOptions(rank=16, alpha=16, targets=targets))
        state = adapter_state(unet)
        pairs = [state[n.replace("lora_A", way)] for n in state if "lora_A" in n for way in ("lora_B", "lora_A")]
        assert len(pairs) == 2 * layers
        assert published_options(pairs, "it") == {"rank": 16, "alpha": 16.0, "targets": targets}
        assert weights is None or sum(p.numel() for p in adapter_parameters(unet).values()) == weights
