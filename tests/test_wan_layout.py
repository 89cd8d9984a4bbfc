"""Official and diffusers' names of Wan's weights, both ways, and the files that hold them."""

from __future__ import annotations

import json
import re

import pytest
import torch
from causal_networks import generator
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import load_file, save_file

from reelign.build import build_generator
from reelign.contracts import Request
from reelign.errors import ModelError
from reelign.generators.wan_layout import read_weights, to_diffusers, to_official, write_official


@pytest.fixture(scope="module")
def official(random_wan_folder):
    """Other weights for the random pipeline's transformer, under official names."""
    torch.manual_seed(7)
    config = WanTransformer3DModel.load_config(random_wan_folder, subfolder="transformer")
    return to_official(WanTransformer3DModel.from_config(config).state_dict())


def names_of_wan(size):
    """A transformer without memory for its weights: the published 1.3B, or 14B."""
    heads, width, layers = {"1.3B": (12, 8960, 30), "14B": (40, 13824, 40)}[size]
    with torch.device("meta"):
        return WanTransformer3DModel(num_attention_heads=heads, ffn_dim=width, num_layers=layers).state_dict()


@pytest.mark.parametrize("size", ["1.3B", "14B"])
def test_names_go_there_and_back_as_in_diffusers_own_converter(size):
    ours = names_of_wan(size)
    there = to_official(ours)
    assert len(there) == len(ours) == {"1.3B": 825, "14B": 1095}[size]
    back = to_diffusers(there)
    assert list(back) == list(ours)
    assert all(back[name] is ours[name] for name in ours)
    theirs = convert_wan_transformer_to_diffusers(dict(there))
    assert {name: id(value) for name, value in theirs.items()} == {name: id(value) for name, value in ours.items()}


def test_names_are_those_of_the_release(golden):
    """Every name of the original's tiny model, and nothing else, with the shapes diffusers has."""
    tensors, about = golden("selfforcing_causal_wan")
    official = {name.removeprefix("weights/"): v for name, v in tensors.items() if name.startswith("weights/")}
    plain = to_diffusers(official)
    made = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
        ffn_dim=96, num_layers=about["config"]["model"]["num_layers"],
    )  # fmt: skip
    assert {n: v.shape for n, v in plain.items()} == {n: v.shape for n, v in made.state_dict().items()}
    assert set(to_official(plain)) == set(official)


def wrapped(state, wrapper):
    """Names as training wrappers leave them."""
    return {f"model.{wrapper}" + re.sub(r"(blocks\.\d+\.)", rf"\1{wrapper}", name): v for name, v in state.items()}


def other(state):
    return {name: value + 1 for name, value in state.items()}


def write_diffusers(folder, state):
    folder.mkdir(exist_ok=True)
    save_file(to_diffusers(state), folder / "diffusion_pytorch_model.safetensors")


def write_shards(folder, state):
    folder.mkdir(exist_ok=True)
    state = to_diffusers(state)
    names, index = sorted(state), {}
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        file = f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


RELEASES = {
    # Self-Forcing: both sets, the averaged one under names without wrappers.
    "self_forcing_dmd.pt": lambda f, s: torch.save(
        {"generator": wrapped(other(s), "_fsdp_wrapped_module."), "generator_ema": wrapped(s, "")}, f
    ),
    "self_forcing_live.pt": lambda f, s: torch.save(
        {"generator": wrapped(s, "_fsdp_wrapped_module."), "critic": wrapped(other(s), "")}, f
    ),
    "checkpointed.pt": lambda f, s: torch.save({"generator": wrapped(s, "_checkpoint_wrapped_module.")}, f),
    "compiled.pt": lambda f, s: torch.save({"model": {f"_orig_mod.{name}": v for name, v in s.items()}}, f),
    "causvid_model.pt": lambda f, s: torch.save({"generator": wrapped(s, "")}, f),
    "bare.pt": lambda f, s: torch.save(s, f),
    "wan_official.safetensors": lambda f, s: save_file(s, f),
    "half.safetensors": lambda f, s: save_file({name: v.bfloat16() for name, v in s.items()}, f),
    "diffusers.safetensors": lambda f, s: save_file(to_diffusers(s), f),
    "diffusers_folder": write_diffusers,
    "sharded_folder": write_shards,
}


@pytest.mark.parametrize("name", RELEASES)
def test_released_layouts_load(random_wan_folder, official, tmp_path, name):
    file = tmp_path / name
    RELEASES[name](file, official)
    made = build_generator(
        {"kind": "causal_wan", "model": str(random_wan_folder), "transformer": str(file), "frames_per_block": 1,
         "device": "cpu", "lora": {"rank": 2} if name == "causvid_model.pt" else None}
    )  # fmt: skip
    state = {n.replace(".base_layer.", "."): v for n, v in made.network.state_dict().items() if "lora_" not in n}
    for key, value in to_diffusers(official).items():
        expected = value.bfloat16().float() if name == "half.safetensors" else value
        assert torch.equal(state[key], expected), key


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@torch.no_grad()
def test_export_folds_the_adapter_in_and_loads_back(random_wan_folder, tmp_path, ending):
    made = generator(random_wan_folder, lora={"rank": 4, "alpha": 10.0})
    random = torch.Generator().manual_seed(5)
    for parameter in made.trainable().values():
        parameter += 0.3 * torch.randn(parameter.shape, generator=random)
    file = tmp_path / "deep" / f"mine{ending}"
    made.export(str(file))
    again = generator(random_wan_folder, transformer=str(file))
    x, t, condition = torch.randn(1, *made.latent_shape()), torch.tensor(500.0), made.encode(Request(("a red circle",)))
    expected = made.predict(x, t, condition)
    torch.testing.assert_close(again.predict(x, t, condition), expected, atol=1e-4, rtol=1e-4)
    plain = generator(random_wan_folder)
    assert (plain.predict(x, t, condition) - expected).abs().max() > 1e-2
    if ending == ".safetensors":
        assert "blocks.0.self_attn.q.weight" in load_file(file)
    else:
        loaded = torch.load(file, weights_only=True)["generator"]
        assert "model.blocks.0.self_attn.q.weight" in loaded
    with pytest.raises(ModelError, match=r"written to .pt or .safetensors; got mine.bin"):
        made.export(str(tmp_path / "mine.bin"))


def test_weights_that_do_not_fit_are_one_clear_line(random_wan_folder, official, tmp_path):
    def refused(state, message):
        file = tmp_path / "odd.safetensors"
        save_file(state, file)
        with pytest.raises(ModelError, match=message) as caught:
            generator(random_wan_folder, transformer=str(file))
        assert len(str(caught.value).splitlines()) == 1

    refused({**official, "blocks.0.extra.weight": torch.zeros(1)}, r"weight 'blocks.0.extra.weight' is not of a text")
    refused({**official, "img_emb.proj.0.weight": torch.zeros(1)}, r"'img_emb.proj.0.weight' is not of a text-to-video")
    refused(
        {**official, "blocks.2.ffn.0.bias": torch.zeros(1)}, r"not of it, blocks.2.ffn.net.0.proj.bias \(1 in all\)"
    )
    less = {name: v for name, v in official.items() if "blocks.1." not in name}
    refused(less, r"it has no blocks.1.attn1.norm_k.weight, .*, … \(27 in all\)")
    refused({**official, "head.head.bias": torch.zeros(5)}, r"proj_out.bias is \(5,\), not \(32,\)")
    assert "proj_out.bias" in to_diffusers(official)


class Spy:
    """Something that runs code when it is unpickled."""

    ran = False

    def __reduce__(self):
        return (setattr, (Spy, "ran", True))


def test_files_that_are_no_weights_are_refused_and_run_nothing(random_wan_folder, tmp_path):
    torch.save({"generator": {"a": torch.zeros(1)}, "trainer": Spy()}, tmp_path / "code.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    torch.save({"optimizer": {"state": {}}}, tmp_path / "no_part.pt")
    torch.save({"generator": {"step": 3}}, tmp_path / "numbers.pt")
    (tmp_path / "junk.pt").write_bytes(b"not a file of torch")
    (tmp_path / "junk.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not json")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("code.pt", "holds more than weights, which would run as code"),
        ("list.pt", "holds list, not named weights"),
        ("no_part.pt", r"has no part 'generator_ema'; it has optimizer"),
        ("numbers.pt", r"'step' .* is int, not a tensor"),
        ("junk.pt", "cannot read weights from|holds more than weights"),
        ("junk.safetensors", "cannot read weights from"),
        ("empty", "a folder with diffusion_pytorch_model.safetensors; there is no"),
        ("missing.pt", r"there is no .*missing.pt"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            read_weights(str(tmp_path / name))
        assert len(str(caught.value).splitlines()) == 1
    assert not Spy.ran
    with pytest.raises(ModelError, match=r"cannot read weights|more than weights"):
        generator(random_wan_folder, transformer=str(tmp_path / "junk.pt"))


def test_official_names_are_written_for_text_to_video_alone(tmp_path):
    with pytest.raises(ModelError, match=r"weight 'condition_embedder.image_embedder.norm1.bias' is not of"):
        write_official({"condition_embedder.image_embedder.norm1.bias": torch.zeros(1)}, tmp_path / "a.pt")
    assert not (tmp_path / "a.pt").exists()
