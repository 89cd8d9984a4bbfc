"""VideoCrafter2 from a tiny random checkpoint in the published key layout."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from tiny_own import LAYERS, LENGTH, SIZES, WIDTH, WORDS, published, videocrafter2, videocrafter2_parts
from torch import nn
from torch.nn import functional

from reelign.build import build_generator
from reelign.config import load_config, parse_config
from reelign.contracts import Request
from reelign.errors import DataError, ModelError
from reelign.generation import GenerationJob
from reelign.generators.lora import adapter_options, adapter_state
from reelign.generators.videocrafter import load_videocrafter
from reelign.generators.videocrafter_network import VideoCrafterUNet
from reelign.rewards.weighted import loss_form

REQUEST = Request(("a cat", "a dog"))
QKV = ["to_q", "to_k", "to_v"]
START, END = len(WORDS) - 2, len(WORDS) - 1


def states_before_the_last_layer(weights, tokens):
    """An independent reading of open_clip's text tower: [L] to [L,D]."""
    x = weights["token_embedding.weight"][tokens] + weights["positional_embedding"]
    mask = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
    for layer in range(LAYERS - 1):
        w = {
            name.removeprefix(start): value
            for start in [f"transformer.resblocks.{layer}."]
            for name, value in weights.items()
            if name.startswith(start)
        }
        attention = nn.MultiheadAttention(WIDTH, 1, batch_first=True)
        attention.load_state_dict({name.removeprefix("attn."): v for name, v in w.items() if name.startswith("attn.")})
        y = functional.layer_norm(x, (WIDTH,), w["ln_1.weight"], w["ln_1.bias"])
        x = x + attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = functional.layer_norm(x, (WIDTH,), w["ln_2.weight"], w["ln_2.bias"])
        y = functional.gelu(y @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"])
        x = x + y @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]
    return functional.layer_norm(x, (WIDTH,), weights["ln_final.weight"], weights["ln_final.bias"])


@pytest.fixture(scope="module")
def parts():
    return videocrafter2_parts()


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("videocrafter2")
    videocrafter2(folder, parts)
    return folder


@pytest.fixture
def load(folder):
    def load(**changed):
        size = {
            "height": 16,
            "width": 24,
            "frames": 3,
            "device": "cpu",
            "lora": {"rank": 4, "alpha": 8, "targets": QKV},
        }
        return load_videocrafter(**{"model": str(folder), "tokenizer": str(folder / "tokenizer"), **size, **changed})

    return load


def noise(generator):
    return torch.randn(2, *generator.latent_shape(), generator=torch.Generator().manual_seed(3))


def test_is_a_generator_and_decodes_only_what_is_asked(load):
    generator = load()
    assert generator.latent_shape() == (4, 3, 8, 12)
    assert (generator.fps, generator.default_steps, generator.default_guidance_scale) == (24.0, 25, 12.0)
    x = noise(generator)
    calls = []
    with torch.no_grad():
        whole = generator.decode(x)
        generator.family.vae.decoder.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
        some = generator.decode(x, [2, 0])
    assert whole.shape == (2, 3, 3, 16, 24)
    assert calls == [2, 2]  # two frames of two clips, and no other
    torch.testing.assert_close(some, whole[:, [2, 0]], rtol=0, atol=1e-6)


def test_the_autoencoder_is_the_one_in_the_file(load, parts):
    generator = load(decode_checkpointing=True)
    x = noise(generator).requires_grad_()
    theirs = parts["vae"].decode(x[:, :, 1] / 0.18215).sample
    ours = generator.decode(x, [1])
    torch.testing.assert_close(ours[:, 0], (theirs * 0.5 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (ours[:, 0], (theirs * 0.5 + 0.5).clamp(0, 1))]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
    video = torch.rand(2, 3, 3, 16, 24, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        theirs = 0.18215 * parts["vae"].encode(video[:, 2] * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(generator.encode_video(video)[:, :, 2], theirs, rtol=0, atol=1e-5)


def test_the_text_is_read_before_the_last_layer_and_filled_up_with_zeros(load, parts):
    generator = load()
    condition = generator.encode(REQUEST)
    ids = [WORDS.index(word) for word in ("a</w>", "d", "o", "g</w>")]
    tokens = torch.tensor([START, *ids, END] + [0] * (LENGTH - 6))
    expected = states_before_the_last_layer(parts["text"], tokens)
    torch.testing.assert_close(condition.positive["text"][1], expected, rtol=0, atol=1e-5)
    empty = states_before_the_last_layer(parts["text"], torch.tensor([START, END] + [0] * (LENGTH - 2)))
    torch.testing.assert_close(condition.negative["text"][1], empty, rtol=0, atol=1e-5)
    with pytest.raises(DataError, match="at most 20 tokens for this model; shorten this one of 42"):
        generator.encode(Request(("a " * 40,)))


def test_the_network_is_told_the_frame_rate(load, parts):
    x, t = torch.randn(2, 4, 3, 8, 12, generator=torch.Generator().manual_seed(3)), torch.tensor(401.0)
    outputs = []
    for options, told in (({}, 24.0), ({"fps": 8}, 8.0), ({"fps": 10, "conditioning_fps": 24}, 24.0)):
        generator = load(**options)
        condition = generator.encode(REQUEST)
        assert condition.positive["fps"].tolist() == [told, told]
        with torch.no_grad():
            outputs.append(generator.predict(x, t, condition))
            direct = parts["unet"](x, t.expand(2), condition.positive["text"], torch.tensor([told, told]))
        torch.testing.assert_close(outputs[-1], direct, rtol=0, atol=1e-5)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-4)
    assert torch.equal(outputs[0], outputs[2])


class Wrapped(nn.Module):
    """The U-Net inside two modules, as it is in VADER's program."""

    def __init__(self, unet):
        super().__init__()
        self.model = nn.Module()
        self.model.diffusion_model = unet


@pytest.mark.parametrize("rank", [4, 6])
def test_vaders_published_adapters_load(load, parts, tmp_path, rank):
    unet = VideoCrafterUNet(SIZES)
    unet.load_state_dict(parts["unet"].state_dict())
    model = peft.get_peft_model(Wrapped(unet), peft.LoraConfig(r=rank, target_modules=QKV, lora_dropout=0.01))
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    state = peft.get_peft_model_state_dict(model)
    assert all(name.startswith("base_model.model.model.diffusion_model.") for name in state)
    file = tmp_path / f"peft_model_{rank}.pt"
    torch.save(state, file)
    options = adapter_options(file)
    assert options == {"rank": rank, "alpha": 8.0, "targets": ("to_k", "to_q", "to_v")}
    generator = load(adapter=str(file), lora=options)
    x, condition, t = noise(generator), generator.encode(REQUEST), torch.tensor(401.0)
    with torch.no_grad():
        theirs = unet.eval()(x, t.expand(2), condition.positive["text"], condition.positive["fps"])
        torch.testing.assert_close(generator.predict(x, t, condition), theirs, rtol=0, atol=1e-5)
        with generator.reference():
            assert not torch.allclose(generator.predict(x, t, condition), theirs, atol=1e-3)
    with pytest.raises(ModelError, match=r"another rank or network: .* is \[\d, 64\] there and \[5, 64\] here"):
        load(adapter=str(file), lora={"rank": 5, "alpha": 8, "targets": QKV})
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match=r"under PEFT's names, \*\.lora_A\.weight; .*other\.pt has none"):
        adapter_options(tmp_path / "other.pt")
    del state[next(iter(state))]
    torch.save(state, file)
    with pytest.raises(ModelError, match="does not fit this network"):
        load(adapter=str(file), lora={"rank": rank, "alpha": 8, "targets": QKV})


def test_every_weight_can_be_trained_and_saved(load, tmp_path):
    generator = load(train_all=True, dtype="bfloat16", lora=None)
    with torch.no_grad():
        for parameter in generator.trainable().values():
            parameter += 0.01
    generator.save(str(tmp_path))
    fresh = load(train_all=True, lora=None)
    fresh.load(str(tmp_path))
    assert len(fresh.trainable()) == len(dict(VideoCrafterUNet(SIZES).named_parameters()))
    assert all(torch.equal(p, generator.trainable()[name]) for name, p in fresh.trainable().items())


def test_runs_are_configured_by_kind(folder):
    options = {"kind": "videocrafter2", "model": str(folder), "tokenizer": str(folder / "tokenizer"), "height": 16,
               "width": 16, "frames": 2, "device": "cpu"}  # fmt: skip
    config = parse_config({"output": "x", "generator": options, "rewards": [{"name": "brightness_range"}]})
    generator = build_generator(config.generator.model_dump())
    assert generator.latent_shape() == (4, 2, 8, 8)
    lora = config.generator.lora
    assert (lora.rank, lora.alpha, lora.targets) == (16, 8, ("to_q", "to_k", "to_v"))


def test_clips_are_generated_with_a_published_adapter(load, folder, tmp_path):
    file = tmp_path / "peft_model_9.pt"
    prefix = "base_model.model.model.diffusion_model."
    torch.save({prefix + name: value + 0.01 for name, value in adapter_state(load().family.unet).items()}, file)
    size = {"height": 16, "width": 24, "frames": 3, "device": "cpu", "tokenizer": str(folder / "tokenizer")}
    job = GenerationJob.prepare(str(folder), "a cat", tmp_path / "out", adapter=file, kind="videocrafter2", **size)
    assert list(job.run(seed=0, steps=2, guidance_scale=2.0, batch=1)) == [1]
    assert all(float(p.detach().abs().max()) > 0 for p in job.generator.trainable().values())
    assert (tmp_path / "out" / "0000.mp4").is_file()


def test_wrong_input_is_one_line(load, parts, folder, tmp_path):
    with pytest.raises(ModelError, match=r"no weight file at .*model\.ckpt"):
        load(model=str(tmp_path))
    with pytest.raises(ModelError, match=r"generator\.tokenizer is CLIP's, of 15 words; the one in .* has 2"):
        load(tokenizer=str(tmp_path))
    with pytest.raises(ModelError, match="no weight file at"):
        load(adapter=str(tmp_path / "peft_model_10.pt"))

    def refused(weights, message):
        torch.save({"state_dict": weights}, tmp_path / "model.ckpt")
        with pytest.raises(ModelError, match=message):
            load(model=str(tmp_path / "model.ckpt"))

    weights = published(parts)
    refused(weights | {"scale_arr": torch.ones(1000)}, "another noise schedule than VideoCrafter2's: its scale_arr")
    refused(
        {n: w for n, w in weights.items() if not n.startswith("first_stage")}, r"holds weights first_stage_model\.\*"
    )
    refused({n: w for n, w in weights.items() if "fps_embedding" not in n}, r"fps_embedding\.0\.weight")
    refused({n: w for n, w in weights.items() if "out.2.bias" not in n}, r"lacks 1 \(out\.2\.bias")
    refused({n: w for n, w in weights.items() if "decoder.mid.attn_1.q.bias" not in n}, "the autoencoder in .* lacks 1")
    refused(
        {n: w for n, w in weights.items() if "ln_final.bias" not in n}, "the text tower of the checkpoint .* lacks 1"
    )


@pytest.mark.parametrize("name", ["aesthetic_hps", "pick_score"])
def test_the_recipes_are_vaders_settings(name):
    config = load_config(Path(f"vader_videocrafter2_{name}"))
    options, algorithm = config.generator, config.reward_gradient
    assert (options.height, options.width, options.frames, options.fps) == (320, 512, 12, 24)
    assert (options.lora.rank, options.lora.alpha) == (16, 8)
    assert (algorithm.steps, algorithm.guidance_scale, algorithm.eta, algorithm.k) == (25, 12, 1, 1)
    assert (algorithm.lr, algorithm.weight_decay, algorithm.frames.choose) == (2e-4, 0.01, "random")
    assert (config.training.batch, algorithm.micro_batch) == (8, 1)
    scores = {"laion_aesthetic": 4.0, "hpsv2": 0.3, "pick_score": 21.0}
    loss = sum(
        term.weight * float(loss_form(torch.tensor(scores[term.name]), term.loss, term.target))
        for term in config.rewards
    )
    published = {"aesthetic_hps": (1.5 * 0.1 * abs(4.0 - 10) + abs(1 - 0.3)) / 2, "pick_score": abs(1 - 21.0 / 100)}
    assert loss == pytest.approx(published[name])
