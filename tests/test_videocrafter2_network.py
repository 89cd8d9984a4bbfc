"""VideoCrafter2's U-Net and chain against numbers of the original program, and its published size."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from reelign.contracts import Condition
from reelign.errors import ModelError
from reelign.generators.lora import LoraOptions, adapter_parameters, add_adapter
from reelign.generators.videocrafter_network import Sizes, VideoCrafterUNet, read_sizes
from reelign.paths import DiscretePath, falling_scale, scaled_linear_alphas
from reelign.sampling import ChainOptions, chain
from reelign.zoo.published import fill

QKV = ("to_q", "to_k", "to_v")


def network_of(tensors):
    weights = {name.removeprefix("weights/"): t.float() for name, t in tensors.items() if name.startswith("weights/")}
    network = VideoCrafterUNet(read_sizes(weights, "golden"))
    fill(network, weights, "golden")
    return network


def close(computed, reference, tolerance):
    error = (computed.detach() - reference).abs().max() / reference.abs().max()
    assert error <= tolerance, f"relative difference {error:.1e}"


def test_the_network_is_the_originals(golden, monkeypatch):
    tensors, _ = golden("videocrafter2_unet")
    network = network_of(tensors)
    x, t, text, fps = (tensors[f"inputs/{name}"] for name in ("x", "timesteps", "context", "fps"))
    with torch.no_grad():
        close(network(x, t, text, fps), tensors["outputs/eps"], 2e-5)
        close(network(x, t, text, torch.tensor([16, 16])), tensors["outputs/eps_default_fps"], 2e-5)
        close(network(0.01 * x, t, text, fps), tensors["outputs/eps_small_input"], 5e-5)
        close(network.time_embed(network._sinusoid(t)), tensors["intermediates/time_embed"], 2e-5)
        close(network.fps_embedding(network._sinusoid(fps)), tensors["intermediates/fps_embedding"], 2e-5)
        monkeypatch.setattr("reelign.generators.videocrafter_layers.MOST_ROWS", 5)  # attention in pieces
        close(network(x, t, text, fps), tensors["outputs/eps"], 2e-5)


def test_recomputed_blocks_have_the_same_gradient(golden):
    tensors, _ = golden("videocrafter2_unet")
    network = network_of(tensors)
    arguments = [tensors[f"inputs/{name}"][:1] for name in ("x", "timesteps", "context", "fps")]
    chosen = network.get_parameter("init_attn.0.transformer_blocks.0.attn2.to_k.weight").requires_grad_()
    gradients, kept = [], []
    for recompute in (False, True):
        network.gradient_checkpointing = recompute
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            output = network(*arguments)
        gradients.append(torch.autograd.grad(output.square().sum(), chosen)[0])
        kept.append(sum(sizes))
    close(gradients[1], gradients[0], 1e-6)
    assert kept[1] < 0.2 * kept[0]


@pytest.mark.parametrize("eta", [0, 1])
def test_the_chain_and_its_last_steps_gradient_are_the_originals(golden, eta):
    tensors, description = golden("videocrafter2_ddim")
    network = network_of(tensors)
    chosen = {name: network.get_parameter(name).requires_grad_() for name in description["chosen_weights"]}

    class Guided:
        path = DiscretePath(scaled_linear_alphas(), scale=falling_scale())
        merged = staticmethod(nullcontext)
        seen: list[torch.Tensor] = []  # noqa: RUF012

        def predict(self, x, t, condition):
            self.seen.append(x[:1].detach())
            return network(x, t.expand(len(x)), condition.positive["text"], condition.positive["fps"])

    generator, fps = Guided(), tensors["inputs/fps"]
    generator.seen.clear()
    condition = Condition(
        {"text": tensors["inputs/context"], "fps": fps}, {"text": tensors["inputs/uncond_context"], "fps": fps}
    )
    schedule = generator.path.schedule(5)
    assert schedule.t.tolist() == tensors["outputs/timesteps"].tolist()
    close(generator.path.scale, tensors["outputs/scale_arr"], 1e-6)
    close(generator.path.alphas_cumprod, tensors["outputs/alphas_cumprod"], 1e-6)
    close(schedule.sigma[:-1].flip(0), tensors["outputs/ddim_sqrt_one_minus_alphas"], 1e-6)
    if eta:
        close(schedule.ancestral.flip(0), tensors["outputs/eta1/ddim_sigmas"], 1e-6)

    noise = iter(tensors["inputs/noise"])
    options = ChainOptions(12.0, eta, [4])
    final = chain(generator, tensors["inputs/x_T"], condition, schedule, options, lambda shape: next(noise))
    expected = tensors[f"outputs/eta{eta}/latents"]
    for ours, theirs in zip([*generator.seen[1:], final], expected, strict=True):
        close(ours, theirs, 5e-5)
    loss = (final * tensors["inputs/probe"]).sum()
    close(loss, tensors[f"outputs/eta{eta}/loss"], 5e-4)
    for name, gradient in zip(chosen, torch.autograd.grad(loss, list(chosen.values())), strict=True):
        close(gradient, tensors[f"outputs/eta{eta}/grad/{name}"], 2e-4)


def test_the_published_size_and_its_adapters():
    for rank, parameters in ((8, 2_507_776), (16, 5_015_552)):
        with torch.device("meta"):
            network = VideoCrafterUNet()
        assert sum(p.numel() for p in network.parameters()) == 1_413_284_420
        add_adapter(network, LoraOptions(rank=rank, targets=QKV))
        adapter = adapter_parameters(network)
        assert len([name for name in adapter if "lora_A" in name]) == 198
        assert sum(p.numel() for p in adapter.values()) == parameters


def test_recomputing_keeps_little_at_the_published_size():
    with torch.device("meta"):
        network = VideoCrafterUNet().bfloat16()
        add_adapter(network, LoraOptions(rank=16, targets=QKV))
        x, text = torch.empty(2, 4, 12, 40, 64).bfloat16(), torch.empty(2, 77, 1024).bfloat16()
        t = fps = torch.empty(2)
    network.gradient_checkpointing = True
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[id(tensor.untyped_storage())] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x, t, text, fps)
    gibibytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 2**30
    assert gibibytes == pytest.approx(1.45, rel=0.05)


def test_sizes_are_read_off_the_weights():
    with torch.device("meta"):
        weights = VideoCrafterUNet().state_dict()
    assert read_sizes(weights, "model.ckpt") == Sizes()
    del weights["fps_embedding.0.weight"]
    with pytest.raises(
        ModelError, match=r"holds model\.diffusion_model\.fps_embedding\.0\.weight; model\.ckpt does not"
    ):
        read_sizes(weights, "model.ckpt")
