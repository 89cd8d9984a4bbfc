"""Open-Sora 1.2: its network against golden numbers, and a tiny random checkpoint as published."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from golden_chains import distance, opensora_network, part
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from tiny_own import OPENSORA_LENGTH, OPENSORA_VAE, opensora
from torch import nn

from reelign.build import build_generator
from reelign.config import load_config, recipe
from reelign.contracts import Condition, Request
from reelign.errors import ConfigError, DataError, ModelError
from reelign.generators.lora import LoraOptions
from reelign.generators.opensora import load_opensora, noise_path
from reelign.generators.opensora_network import STDiT3, STDiT3Config
from reelign.generators.opensora_vae import (
    CausalConv3d,
    OpenSoraVAE,
    VAESizes,
    doubled,
    latent_frames,
    load_opensora_vae,
)
from reelign.sampling import generate


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
    computed = opensora_network(tensors, described["config"])(
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


def test_times_against_the_original(golden):
    tensors, described = golden("opensora_rflow")
    for (height, width, frames), times in zip(
        tensors["inputs/transform_table_hwf"].tolist(), tensors["outputs/transform_table"], strict=True
    ):
        computed = noise_path(height, width, frames).schedule(5).t.float()
        assert distance(computed, times) < described["tolerance"]["overrides"]["outputs/transform_table"]


def test_the_last_step_of_vaders_run():
    assert noise_path(276, 368, 51).schedule(30).sigma[-2].item() == pytest.approx(0.0767495, abs=1e-7)


# A tiny random checkpoint in the published layout: three folders.

REQUEST = Request(("A cat  sings", "A dog"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("opensora")
    opensora(place)
    return {"model": str(place / "stdit"), "vae": str(place / "vae"), "text_encoder": str(place / "t5")}


SIZE = {"height": 36, "width": 40, "frames": 34, "device": "cpu"}


@pytest.fixture
def generator(folders):
    return load_opensora(**folders, **SIZE)


@pytest.fixture(scope="module")
def vae(folders):
    return load_opensora_vae(folders["vae"])


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def test_generates_clips_of_the_size_the_latents_give(generator):
    assert generator.latent_shape() == (4, 10, 4, 5)
    assert (generator.picture_size(), generator.frames(), generator.fps) == ((32, 40), 34, 24.0)
    batch = generate(generator, REQUEST, [0, 1], steps=2, guidance_scale=7.0)
    assert batch.video.shape == (2, 34, 3, 32, 40)
    assert batch.request.prompts == REQUEST.prompts  # rewards see no aesthetic score
    alone = generate(generator, REQUEST[1:], [1], steps=2, guidance_scale=7.0)
    torch.testing.assert_close(alone.video[0], batch.video[1], rtol=0, atol=1e-4)


def test_a_picture_is_a_clip_of_one_frame(folders):
    generator = load_opensora(**folders, **{**SIZE, "frames": 1})
    assert generator.latent_shape() == (4, 1, 4, 5)
    assert generator.family.told_fps == 120
    assert generator.encode_video(torch.rand(2, 1, 3, 32, 40)).shape == (2, 4, 1, 4, 5)
    assert generate(generator, REQUEST, [0, 1], steps=1, guidance_scale=7.0).video.shape == (2, 1, 3, 32, 40)


def test_the_model_reads_the_aesthetic_score(folders, generator):
    assert generator.family.model_text(" A cat  sings ") == "a cat sings aesthetic score: 6.5."
    assert generator.family.model_text("A cat. Aesthetic score: 7.5.") == "a cat. aesthetic score: 7.5."
    assert load_opensora(**folders, **SIZE, aesthetic_score=None).family.model_text("A cat") == "a cat"


def test_the_null_caption_is_as_long_as_the_prompt(generator):
    condition = generator.encode(REQUEST)
    null = generator.family.network.y_embedder.y_embedding
    assert condition.positive["mask"].sum(1).tolist() == [11, 10]  # words, five of the score and its stops, </s>
    assert torch.equal(condition.negative["mask"], condition.positive["mask"])
    assert torch.equal(condition.negative["text"], null.expand(2, -1, -1))
    x, t = noise(2, *generator.latent_shape()), torch.tensor(700.0)
    with torch.no_grad():
        before = generator.predict(x, t, Condition(condition.negative))
        null[11:] += 1
        torch.testing.assert_close(generator.predict(x, t, Condition(generator.encode(REQUEST).negative)), before)
        null[10] += 1
        after = generator.predict(x, t, Condition(generator.encode(REQUEST).negative))
    assert not torch.allclose(after[0], before[0], atol=1e-4)
    torch.testing.assert_close(after[1], before[1])


def test_vaders_adapter_file_loads(folders, tmp_path):
    network = STDiT3.from_pretrained(folders["model"])
    targets = ["qkv", "q_linear", "kv_linear"]
    wrapped = get_peft_model(network, LoraConfig(r=4, target_modules=targets, lora_dropout=0.01)).eval()
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    file = tmp_path / "peft_model_120.pt"
    torch.save(get_peft_model_state_dict(wrapped), file)
    ours = load_opensora(**folders, **SIZE, lora={"rank": 4}, adapter=str(file))
    x, t, condition = noise(2, *ours.latent_shape()), torch.tensor(400.0), ours.encode(REQUEST)
    with torch.no_grad():
        loaded = ours.predict(x, t, condition)
        ours.family.networks["stdit"] = wrapped
        torch.testing.assert_close(loaded, ours.predict(x, t, condition), rtol=0, atol=1e-5)
    with pytest.raises(ModelError, match="rank"):
        load_opensora(**folders, **SIZE, lora={"rank": 8}, adapter=str(file))


def test_half_precision_and_whole_training(folders, tmp_path):
    half = load_opensora(**folders, **SIZE, dtype="bfloat16")
    assert half.family.network.rope.freqs.dtype == torch.float32
    assert half.family.network.t_block[1].weight.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in half.trainable().values())
    x, t = noise(1, *half.latent_shape()), torch.tensor(400.0)
    whole = load_opensora(**folders, **SIZE, train_all=True)
    with torch.no_grad():
        condition = whole.encode(REQUEST[:1])
        exact = whole.predict(x, t, condition)
        assert distance(half.predict(x, t, condition).float(), exact) < 0.05
        whole.trainable()["0.final_layer.linear.weight"] += 0.1
        moved = whole.predict(x, t, condition)
        whole.save(str(tmp_path))
        fresh = load_opensora(**folders, **SIZE, train_all=True)
        fresh.load(str(tmp_path))
        torch.testing.assert_close(fresh.predict(x, t, condition), moved, rtol=0, atol=0)


def test_autoencoder_has_the_published_names():
    with torch.device("meta"):
        state = OpenSoraVAE().state_dict()
    assert VAESizes.of(state) == VAESizes()
    shapes = {
        "spatial_vae.module.decoder.mid_block.attentions.0.to_q.weight": (512, 512),
        "spatial_vae.module.encoder.conv_out.weight": (8, 512, 3, 3),
        "temporal_vae.encoder.conv_in.conv.weight": (128, 4, 3, 3, 3),
        "temporal_vae.encoder.block_res_blocks.1.0.conv3.conv.weight": (256, 128, 1, 1, 1),
        "temporal_vae.encoder.conv_blocks.1.conv.weight": (256, 256, 3, 3, 3),
        "temporal_vae.encoder.conv2.conv.weight": (8, 512, 1, 1, 1),
        "temporal_vae.decoder.conv_blocks.2.conv.weight": (1024, 512, 3, 3, 3),
        "temporal_vae.decoder.block_res_blocks.0.3.conv2.conv.weight": (128, 128, 3, 3, 3),
        "temporal_vae.decoder.conv_out.conv.weight": (4, 128, 3, 3, 3),
        "scale": (1, 4, 1, 1, 1),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert "temporal_vae.encoder.conv_blocks.0.conv.weight" not in state
    assert not any("block_res_blocks" in name and name.endswith("conv.bias") for name in state)


def test_convolutions_see_no_later_frame():
    conv = CausalConv3d(1, 1, 3, bias=False)
    nn.init.zeros_(conv.conv.weight)
    conv.conv.weight.data[0, 0, :, 1, 1] = torch.tensor([100.0, 10.0, 1.0])
    x = torch.arange(1.0, 5.0).view(1, 1, 4, 1, 1)
    assert conv(x).flatten().tolist() == [1, 12, 123, 234]
    halved = CausalConv3d(1, 1, 3, time_stride=2, bias=False)
    halved.load_state_dict(conv.state_dict())
    assert halved(x).flatten().tolist() == [12, 234]


def test_pairs_of_channels_become_frames():
    x = torch.tensor([[10.0, 20.0], [11.0, 21.0], [30.0, 40.0], [31.0, 41.0]]).view(1, 4, 2, 1, 1)
    assert doubled(x)[0, :, :, 0, 0].tolist() == [[10, 11, 20, 21], [30, 31, 40, 41]]


def test_a_piece_is_filled_up_in_front(vae):
    x = noise(1, 4, 17, 4, 5)
    with torch.no_grad():
        filled = torch.cat([torch.zeros(1, 4, 3, 4, 5), x], 2)
        z = vae.temporal_vae.encode(x)
        torch.testing.assert_close(z, vae.temporal_vae.encode(filled), rtol=0, atol=0)
        assert z.shape == (1, 4, 5, 4, 5)
        whole = vae.temporal_vae.decode(z, 20)
        torch.testing.assert_close(vae.temporal_vae.decode(z, 17), whole[:, :, 3:], rtol=0, atol=0)
    assert [latent_frames(n) for n in (1, 17, 51)] == [1, 5, 15]


def test_a_frame_depends_on_its_piece_alone(vae):
    z = noise(1, 4, 10, 4, 5).requires_grad_()
    clip = vae.decode(z, range(34))
    some = vae.decode(z, [20, 3])
    torch.testing.assert_close(some, clip[:, [20, 3]], rtol=0, atol=1e-5)
    torch.testing.assert_close(vae.decode(z[:, :, 5:], range(17)), clip[:, 17:], rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(some[:, 0].sum(), z)
    assert gradient[:, :, :5].abs().max() == 0
    assert (gradient[:, :, 5:].abs().amax((0, 1, 3, 4)) > 0).all()
    calls = []
    hook = vae.picture_vae.decoder.register_forward_hook(lambda module, given, out: calls.append(len(out)))
    vae.decode(z, [33])
    hook.remove()
    assert calls == [1]


def test_latents_are_centred_and_scaled_by_the_checkpoint(vae):
    video, plain = noise(1, 17, 3, 32, 40).clamp(-1, 1), OpenSoraVAE(OPENSORA_VAE)
    plain.load_state_dict(vae.state_dict() | {"shift": 0 * vae.shift, "scale": 0 * vae.scale + 1})
    with torch.no_grad():
        z, raw = vae.encode(video), plain.encode(video)
        picture = vae.picture_vae.encode(video[:, 0]).latent_dist.mode() * 0.18215
        torch.testing.assert_close(plain.encode(video[:, :1]), plain.temporal_vae.encode(picture[:, :, None]))
        torch.testing.assert_close(z * vae.scale + vae.shift, raw)
        torch.testing.assert_close(vae.decode(z, [7]), plain.decode(raw, [7]), rtol=0, atol=1e-4)
    assert vae.shift.flatten().tolist() == pytest.approx([-0.10, 0.34, 0.27, 0.98])
    assert vae.scale.flatten().tolist() == pytest.approx([3.85, 2.32, 2.33, 3.06])


def test_wrong_settings_are_one_line(folders, generator, tmp_path):
    with pytest.raises(ConfigError, match="no negative prompt; got 'dull'"):
        load_opensora(**folders, **SIZE, negative_prompt="dull")
    with pytest.raises(DataError, match=f"at most {OPENSORA_LENGTH} tokens"):
        generator.encode(Request(("a " * 30,)))
    with pytest.raises(ModelError, match=r"config\.json"):
        load_opensora(**{**folders, "model": folders["vae"]}, **SIZE)
    with pytest.raises(ModelError, match="OpenSora-VAE"):
        load_opensora(**{**folders, "vae": folders["model"]}, **SIZE)
    with pytest.raises(ModelError, match="T5 with its tokenizer"):
        load_opensora(**{**folders, "text_encoder": str(tmp_path)}, **SIZE)
    with pytest.raises(ModelError, match=r"has qk_norm True; this config\.json has False"):
        STDiT3Config.from_published({"qk_norm": False})


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="sentencepiece is installed: spiece.model is read")
def test_a_tokenizer_that_cannot_be_read_says_what_is_missing(folders, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(folders["text_encoder"]) / name, tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"\x0a\x0e")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    with pytest.raises(ModelError, match=r"needs sentencepiece: pip install 'reelign\[t5\]'"):
        load_opensora(**{**folders, "text_encoder": str(tmp_path)}, **SIZE)


def test_the_recipe_is_vaders_run(folders):
    config = load_config(recipe("vader_opensora_hps"))
    generator, training = config.generator, config.reward_gradient
    assert generator.kind == "opensora"
    assert generator.lora == LoraOptions(rank=16, alpha=8, targets=("qkv", "q_linear", "kv_linear"))
    assert (training.steps, training.guidance_scale, training.k, training.lr) == (30, 7.0, 1, 2e-4)
    assert (config.training.batch, training.micro_batch, config.training.steps) == (8, 1, 800)
    small = build_generator({**generator.model_dump(), **folders, **SIZE})
    assert small.family.network.gradient_checkpointing
    assert small.family.vae.recompute
