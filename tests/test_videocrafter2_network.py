"""VideoCrafter2's U-Net against numbers of the original program, and its published size."""

from __future__ import annotations

import pytest
import torch
from golden_chains import videocrafter2_network

from reelign.errors import ModelError
from reelign.generators.lora import LoraOptions, adapter_parameters, add_adapter
from reelign.generators.videocrafter_network import Sizes, VideoCrafterUNet, read_sizes

QKV = ("to_q", "to_k", "to_v")


def close(computed, reference, tolerance):
    error = (computed.detach() - reference).abs().max() / reference.abs().max()
    assert error <= tolerance, f"relative difference {error:.1e}"


def test_the_network_is_the_originals(golden, monkeypatch):
    tensors, _ = golden("videocrafter2_unet")
    network = videocrafter2_network(tensors)
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
    network = videocrafter2_network(tensors)
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
