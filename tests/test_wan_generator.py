"""The Wan generator against diffusers' own pipeline, on a random checkpoint in the published layout."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from diffusers import WanPipeline

from reelign.contracts import Generator, Request
from reelign.diagnosis import WanGrid
from reelign.errors import ConfigError, ContractError, DataError, ModelError
from reelign.generators.wan import WEIGHTS, load_wan, noise_path
from reelign.generators.wan_vae import decode_frames, needed_prefix
from reelign.sampling import generate, seeded_noise
from reelign.zoo.tiny_wan import SHIFT

PROMPTS = ("a red circle moving left", "a blue square bouncing")


@pytest.fixture(scope="module")
def folder(random_wan_folder):
    return random_wan_folder


@pytest.fixture
def wan(folder):
    return load_wan(model=str(folder), device="cpu")


def shake(generator, scale=0.3):
    """Give the adapter an effect."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in generator.trainable().values():
            parameter += scale * torch.randn(parameter.shape, generator=random)


def test_it_is_a_generator(wan):
    assert isinstance(wan, Generator)
    assert wan.latent_shape() == (8, 5, 8, 8)
    assert wan.frames() == 17
    assert wan.path.shift == SHIFT


@torch.no_grad()
def test_decoding_equals_the_pipeline_and_frames_cost_their_prefix(wan):
    x = torch.randn(2, *wan.latent_shape())
    vae = wan.pipeline.vae
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    theirs = vae.decode(x * std + mean).sample.transpose(1, 2) * 0.5 + 0.5
    torch.testing.assert_close(wan.decode(x), theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(wan.decode(x, [6, 0, 4]), theirs[:, [6, 0, 4]], rtol=0, atol=1e-6)
    assert [needed_prefix([f]) for f in (0, 1, 4, 5, 16)] == [1, 2, 2, 3, 5]


def test_only_the_prefix_is_decoded(wan):
    calls = []
    handle = wan.pipeline.vae.decoder.register_forward_hook(lambda *a: calls.append(1))
    wan.decode(torch.randn(1, *wan.latent_shape()), [3])
    handle.remove()
    assert len(calls) == 2
    with pytest.raises(DataError, match="run from 0 to 16; asked for"):
        wan.decode(torch.randn(1, *wan.latent_shape()), [17])


def test_checkpointed_decoding_has_the_same_gradient_and_keeps_less(wan):
    grads, kept = [], []
    for checkpointing in (False, True):
        z = torch.randn(1, *wan.latent_shape(), generator=torch.Generator().manual_seed(0)).requires_grad_()
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            video = decode_frames(wan.pipeline.vae, z, None, checkpointing)
        video.square().mean().backward()
        grads.append(z.grad)
        kept.append(total)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-9)
    assert kept[1] < 0.5 * kept[0]


@torch.no_grad()
def test_the_adapter_starts_as_the_identity_and_switches_off(wan):
    x, condition = torch.randn(1, *wan.latent_shape()), wan.encode(Request(PROMPTS[:1]))
    t = torch.tensor(400.0)
    plain = wan.pipeline.transformer
    base = wan.predict(x, t, condition)
    shake(wan)
    assert (wan.predict(x, t, condition) - base).abs().max() > 1e-3
    with wan.reference():
        assert torch.equal(wan.predict(x, t, condition), base)
    assert (wan.predict(x, t, condition) - base).abs().max() > 1e-3
    assert plain is wan.pipeline.transformer


def test_only_the_adapter_is_trainable(wan):
    names = {n for n, p in wan.pipeline.transformer.named_parameters() if p.requires_grad}
    assert names
    assert all("lora_" in n for n in names)
    assert len(wan.trainable()) == len(names)
    assert not any(p.requires_grad for p in wan.pipeline.vae.parameters())


def test_saved_adapter_loads_in_diffusers_and_gives_the_same_video(wan, folder, tmp_path):
    """The round trip users need: train here, ``pipe.load_lora_weights`` there; alpha unlike rank on purpose."""
    generator = load_wan(model=str(folder), device="cpu", lora={"rank": 4, "alpha": 10.0})
    shake(generator)
    generator.save(str(tmp_path))
    ours = generate(generator, Request(PROMPTS), [3, 4], 3, 3.0)
    pipe = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = WanGrid(shift=SHIFT)
    pipe.load_lora_weights(str(tmp_path))
    theirs = pipe(
        prompt=list(PROMPTS), negative_prompt="", height=64, width=64, num_frames=17, num_inference_steps=3,
        guidance_scale=3.0, latents=seeded_noise(generator.latent_shape(), [3, 4]), max_sequence_length=12,
        output_type="pt",
    ).frames  # fmt: skip
    assert (ours.video - theirs).abs().max() <= 1e-3
    base = generate(wan, Request(PROMPTS), [3, 4], 3, 3.0)
    assert (ours.video - base.video).abs().max() > 0.05


def test_adapter_loads_back_exactly(wan, folder, tmp_path):
    shake(wan)
    wan.save(str(tmp_path))
    again = load_wan(model=str(folder), device="cpu")
    again.load(str(tmp_path))
    for name, parameter in wan.trainable().items():
        assert torch.equal(parameter, again.trainable()[name])
    other = load_wan(model=str(folder), device="cpu", lora={"targets": ("to_q",)})
    with pytest.raises(ModelError, match="does not fit this network"):
        other.load(str(tmp_path))
    with pytest.raises(ModelError, match=WEIGHTS):
        again.load(str(tmp_path / "nowhere"))


def test_bad_input_is_one_clear_line(folder, tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        load_wan(model=str(tmp_path / "missing"))
    with pytest.raises(ModelError, match="no model of kind wan could be loaded"):
        load_wan(model=str(tmp_path))
    with pytest.raises(ConfigError, match=r"clips of 4·n \+ 1 frames; got 16"):
        load_wan(model=str(folder), frames=16)
    with pytest.raises(ConfigError, match="multiples of 16 for this model; got 72x64"):
        load_wan(model=str(folder), height=72)
    with pytest.raises(ConfigError, match="LoRA targets must name layers"):
        load_wan(model=str(folder), lora={"targets": ("to_z",)})
    with pytest.raises(ModelError, match="flow scheduler"):
        noise_path({"prediction_type": "epsilon"})
    plain = load_wan(model=str(folder), lora=None)
    assert not plain.trainable()
    with pytest.raises(ContractError, match="no reference generator"), plain.reference():
        pass


def test_folding_the_adapter_changes_no_value_and_gives_the_weights_back(random_wan_folder):
    generator = load_wan(model=str(random_wan_folder), height=32, width=32, frames=5, device="cpu")
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.trainable().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    before = {name: p.detach().clone() for name, p in generator.experts()[0].named_parameters()}
    condition = generator.encode(Request(("a cat",)))
    x, t = torch.randn(1, *generator.latent_shape(), generator=random), torch.tensor(400.0)
    with torch.no_grad():
        plain = generator.predict(x, t, condition)
        with generator.reference():
            base = generator.predict(x, t, condition)
            with generator.merged():
                assert torch.equal(generator.predict(x, t, condition), base)
        with generator.merged():
            folded = generator.predict(x, t, condition)
            kinds = [m for m in generator.experts()[0].modules() if getattr(m, "disable_adapters", None) is True]
            assert kinds  # the adapter's own layers are passed over
        torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(base, plain, atol=1e-2)
        assert torch.equal(generator.predict(x, t, condition), plain)
    for name, parameter in generator.experts()[0].named_parameters():
        assert torch.equal(parameter, before[name])
    half = load_wan(model=str(random_wan_folder), height=32, width=32, frames=5, device="cpu", dtype="bfloat16")
    assert isinstance(half.merged(), nullcontext)
