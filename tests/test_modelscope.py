"""What is ModelScope's own; what it shares with other families is in ``test_families.py``."""

from __future__ import annotations

import pytest
import tiny_families as tiny
import torch

from reelign.contracts import Request
from reelign.generators.modelscope import load_modelscope

SIZE = {"height": 32, "width": 32, "frames": 4, "device": "cpu"}
REQUEST = Request(("a cat", "a dog"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.build(tiny.modelscope, tmp_path_factory.mktemp("modelscope"))


@pytest.fixture
def generator(folder):
    return load_modelscope(model=str(folder), **SIZE)


def noise(generator):
    return torch.randn(2, *generator.latent_shape(), generator=torch.Generator().manual_seed(3))


def test_only_frames_that_are_asked_are_decoded(generator):
    x = noise(generator)
    calls = []
    generator.family.vae.decoder.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    generator.decode(x, [1])
    assert calls == [2]


def test_chunked_decoding_has_the_same_gradient(folder):
    whole, chunked = (load_modelscope(model=str(folder), **SIZE, decode_chunk=n) for n in (0, 3))
    gradients = []
    for generator in (whole, chunked):
        x = noise(generator).requires_grad_()
        (gradient,) = torch.autograd.grad(generator.decode(x, [0, 3]).square().sum(), x)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_recomputed_blocks_keep_less_and_have_the_same_gradient(folder):
    """diffusers' own U-Net refuses."""
    gradients, kept = [], []
    for again in (False, True):
        generator = load_modelscope(model=str(folder), **SIZE, gradient_checkpointing=again)
        condition, held = generator.encode(REQUEST), {}

        def keep(tensor, held=held):
            held[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = generator.predict(noise(generator), torch.tensor(401.0), condition)
        kept.append(sum(held.values()))
        up = [p for name, p in generator.trainable().items() if "lora_B" in name]
        gradients.append(torch.autograd.grad(output.square().sum(), up))
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert kept[1] < 0.5 * kept[0]


def test_frames_are_encoded_on_their_own(generator):
    video = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    latents = generator.encode_video(video)
    assert latents.shape == (2, *generator.latent_shape())
    torch.testing.assert_close(generator.encode_video(video[1:, 2:3])[0, :, 0], latents[1, :, 2], rtol=0, atol=1e-5)
