"""ModelScope text-to-video on a tiny random checkpoint in the published layout."""

from __future__ import annotations

import pytest
import torch
from diffusers import TextToVideoSDPipeline, UNet3DConditionModel
from peft import PeftModel
from tiny_modelscope import SIZE, build

from reelign.algorithms.partial_chain import Config, PartialChain
from reelign.contracts import Generator, Request
from reelign.errors import ConfigError, DataError, ModelError
from reelign.generators.modelscope import load_modelscope
from reelign.rewards.brightness_range import BrightnessRange
from reelign.rewards.weighted import Term, WeightedReward
from reelign.sampling import ChainOptions, chain

REQUEST = Request(("a cat", "a dog"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("modelscope"))


@pytest.fixture
def generator(folder):
    return load_modelscope(model=str(folder), **SIZE)


def noise(generator):
    return torch.randn(2, *generator.latent_shape(), generator=torch.Generator().manual_seed(3))


def test_the_chain_is_that_of_the_librarys_pipeline(folder, generator):
    pipeline = TextToVideoSDPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    x = noise(generator)
    theirs = pipeline(
        list(REQUEST.prompts), negative_prompt=["", ""], height=32, width=32, num_frames=4, num_inference_steps=5,
        guidance_scale=4.0, latents=x, output_type="latent",
    ).frames  # fmt: skip
    with torch.no_grad():
        ours = chain(
            generator, x, generator.encode(REQUEST), generator.path.schedule(5), ChainOptions(guidance_scale=4.0)
        )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_is_a_generator_and_decodes_only_what_is_asked(generator):
    assert isinstance(generator, Generator)
    x = noise(generator)
    with torch.no_grad():
        whole = generator.decode(x)
        some = generator.decode(x, [2, 0])
    assert whole.shape == (2, 4, 3, 32, 32)
    torch.testing.assert_close(some, whole[:, [2, 0]], rtol=0, atol=1e-6)
    calls = []
    generator.family.vae.decoder.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    generator.decode(x, [1])
    assert calls == [2]
    with pytest.raises(DataError, match="from 0 to 3"):
        generator.decode(x, [4])


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


def test_the_adapter_is_without_effect_at_first_and_loads_in_peft(folder, generator, tmp_path):
    x, condition, t = noise(generator), generator.encode(REQUEST), torch.tensor(401.0)
    with torch.no_grad():
        with generator.reference():
            base = generator.predict(x, t, condition)
        assert torch.equal(generator.predict(x, t, condition), base)
        for parameter in generator.trainable().values():
            parameter += 0.05
        moved = generator.predict(x, t, condition)
        assert not torch.allclose(moved, base, atol=1e-4)
        generator.save(str(tmp_path))
        fresh = load_modelscope(model=str(folder), **SIZE)
        fresh.load(str(tmp_path))
        torch.testing.assert_close(fresh.predict(x, t, condition), moved, rtol=0, atol=0)
        unet = UNet3DConditionModel.from_pretrained(folder, subfolder="unet").eval()
        theirs = PeftModel.from_pretrained(unet, tmp_path).eval()
        torch.testing.assert_close(theirs(x, t, condition.positive["text"])[0], moved, rtol=0, atol=1e-5)
    with pytest.raises(ModelError, match="does not"):
        load_modelscope(model=str(folder), **SIZE).load(str(tmp_path / "nowhere"))


def test_instructvideo_runs_on_it(generator):
    reward = WeightedReward([Term("brightness", BrightnessRange(low=0.8, high=0.9))])
    frames = {"choose": "segments", "segments": 2, "attenuation": 1.0}
    algorithm = PartialChain(generator, reward, Config(steps=5, tau=0.6, frames=frames, lr=1e-3))
    video = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    before = {name: p.detach().clone() for name, p in generator.trainable().items()}
    logged = algorithm.step(Request(REQUEST.prompts, source_videos=video))
    assert logged["gradient_norm"] > 0
    assert any(not torch.equal(before[name], p) for name, p in generator.trainable().items())


def test_wrong_settings_are_one_line(folder, tmp_path):
    with pytest.raises(ConfigError, match="multiples of 4"):
        load_modelscope(model=str(folder), **{**SIZE, "height": 34})
    with pytest.raises(ModelError, match="no ModelScope"):
        load_modelscope(model=str(tmp_path), **SIZE)
    with pytest.raises(ConfigError, match="LoRA targets"):
        load_modelscope(model=str(folder), **SIZE, lora={"targets": ["nothing"]})
