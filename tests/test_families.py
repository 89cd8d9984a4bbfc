"""The contract of every family of generators, on tiny random checkpoints in the published layouts.

A chain is the library pipeline's, or the original program's; the gradient of K steps is that of finite differences;
every algorithm takes two steps of a real run; adapters come back, here and in the library; clips begin from pictures.
"""

from __future__ import annotations

import json
from contextlib import contextmanager

import diffusers
import pytest
import tiny_families as tiny
import torch
from family_cases import CASES, IMAGE, LIBRARY, STEPS, library, load, networks_of, options_of, request_for, shake
from golden_chains import GOLDEN
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from reelign import checkpoint
from reelign.algorithms.best_of_n import BestOfN
from reelign.algorithms.best_of_n import Config as BestOfNConfig
from reelign.algorithms.partial_chain import tail
from reelign.algorithms.reward_gradient import Config, RewardGradient
from reelign.cli.main import app
from reelign.config import load_config, parse_config
from reelign.contracts import ContinuingGenerator, Generator, Request
from reelign.datasets.prompts import load_prompts
from reelign.errors import ConfigError, ContractError, DataError, ModelError
from reelign.generation import GenerationJob
from reelign.generators.lora_export import export_adapter
from reelign.loop import Run
from reelign.rewards.brightness_range import BrightnessRange
from reelign.rewards.weighted import Term, WeightedReward
from reelign.sampling import ChainOptions, chain, generate, seeded_noise
from reelign.video_io import write_clip


@pytest.fixture
def generator(request, loaded):
    """The family's generator, with an adapter that has an effect; what a test changes is put back."""
    generator = loaded(request.param)
    before = {name: p.detach().clone() for name, p in generator.trainable().items()}
    shake(generator)
    yield generator
    with torch.no_grad():
        for name, parameter in generator.trainable().items():
            parameter.grad = None
            parameter.copy_(before[name])


every = pytest.mark.parametrize("generator", CASES, indirect=True, ids=str)
images = pytest.mark.parametrize("generator", IMAGE, indirect=True, ids=str)


def name_of(request):
    return request.node.callspec.params["generator"]


@pytest.mark.parametrize("generator", LIBRARY, indirect=True, ids=str)
@torch.no_grad()
def test_chain_and_decoding_are_those_of_the_librarys_pipeline(generator, request, folders):
    """The same noise, Euler or DDIM steps, guidance; a batch of two of ours, one of them theirs."""
    name = name_of(request)
    assert isinstance(generator, Generator)
    asked, scale = request_for(generator), CASES[name].scale
    x = seeded_noise(generator.latent_shape(), [0, 1])
    with generator.reference():
        latents = chain(generator, x, generator.encode(asked), generator.path.schedule(STEPS), ChainOptions(scale))
    theirs, frames = library(name, folders(name), generator, x[1:], asked[1:])
    known = 1 if name == "wan_2.2_5b_image" else 0  # that pipeline puts the known frame in after the last step
    difference = (latents[1:, :, known:] - theirs[:, :, known:]).abs().max() / theirs.abs().max()
    assert difference <= 1e-4
    ours = generator.decode(latents[1:])
    assert ours.shape == (1, generator.frames(), 3, 32, 32)
    assert (ours - frames).abs().max() <= 2e-4
    assert ours.std() > 0.01


@pytest.mark.parametrize("name", GOLDEN)
def test_the_chain_is_the_original_programs(name, golden):
    GOLDEN[name](golden)


def test_every_family_is_held_to_one_or_the_other():
    assert {*LIBRARY, *GOLDEN} == {*CASES}


@pytest.mark.parametrize("k", [1, 2])
@every
def test_the_gradient_of_k_steps_is_that_of_finite_differences(generator, request, k):
    """In float64, along a random direction of the adapter; the latent that enters the live steps is a constant.

    To 1e-6, or to 2e-3 where some of the network rounds to float32 whatever it is given, as rotary embeddings do.
    """
    case, networks = CASES[name_of(request)], generator.denoisers.all()
    for network in networks:
        network.double()
    try:
        parameters = list(generator.trainable().values())
        condition, schedule = generator.encode(request_for(generator)), generator.path.schedule(STEPS)
        x = seeded_noise(generator.latent_shape(), [0, 1]).double()
        random = torch.Generator().manual_seed(1)
        probe = torch.randn(x.shape, generator=random, dtype=torch.float64)
        direction = [torch.randn(p.shape, generator=random, dtype=torch.float64) for p in parameters]
        kept = []  # the latents that enter the live steps

        def observe(i, latent, condition, output):
            kept.append(latent.detach())

        live = range(STEPS - k, STEPS)
        options = ChainOptions(case.scale, gradient_steps=live, observe=observe)
        final = chain(generator, x, condition, schedule, options)
        gradients = torch.autograd.grad((final * probe).sum(), parameters, allow_unused=True)
        slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True) if g is not None)
        last = tail(schedule, k)

        @torch.no_grad()
        def value(h):
            for p, d in zip(parameters, direction, strict=True):
                p += h * d
            result = (chain(generator, kept[0], condition, last, ChainOptions(case.scale)) * probe).sum()
            for p, d in zip(parameters, direction, strict=True):
                p -= h * d
            return result

        h, tolerance = (1e-3, 1e-6) if case.exact else (3e-3, 2e-3)
        numeric = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
        assert slope.abs() > 1e-3
        assert (slope - numeric).abs() / numeric.abs() < tolerance
    finally:
        for network in networks:
            network.float()


@every
@torch.no_grad()
def test_only_what_is_asked_is_decoded_and_clips_are_encoded(generator):
    x = torch.randn(1, *generator.latent_shape(), generator=torch.Generator().manual_seed(3))
    whole = generator.decode(x)
    total = generator.frames()
    torch.testing.assert_close(generator.decode(x, [total - 1, 0]), whole[:, [total - 1, 0]], rtol=0, atol=1e-5)
    with pytest.raises(DataError, match=f"run from 0 to {total - 1}; asked for"):
        generator.decode(x, [total])
    assert generator.encode_video(whole).shape == x.shape


ASKED = (*tiny.PROMPTS, "a dog sits", "the cat")


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A folder of captioned clips that move, and a file of prompts with their first frames."""
    place, random = tmp_path_factory.mktemp("material"), torch.Generator().manual_seed(4)
    (place / "clips").mkdir()
    rows = ["file_name,text"]
    for i, prompt in enumerate(ASKED):
        video = (torch.rand(1, 3, 36, 44, generator=random) + torch.linspace(-0.2, 0.2, 30).view(-1, 1, 1, 1)).clamp(
            0, 1
        )
        write_clip(place / "clips" / f"{i}.mp4", video, 24.0)
        Image.fromarray((video[0] * 255).byte().permute(1, 2, 0).numpy()).save(place / f"{i}.png")
        rows.append(f"{i}.mp4,{prompt}")
    (place / "clips" / "metadata.csv").write_text("\n".join(rows))
    lines = [json.dumps({"prompt": prompt, "first_frame": f"{i}.png"}) for i, prompt in enumerate(ASKED)]
    (place / "prompts.jsonl").write_text("\n".join(lines))
    return place


ALGORITHMS = {
    "reward_gradient": {"steps": 2, "lr": 1e-3, "kl_weight": 0.1},
    "partial_chain": {"steps": 5, "lr": 1e-3},
    "best_of_n": {"steps": 2, "lr": 1e-3},
}


class Steps:
    """A ``loop.Listener`` that keeps what each update logged."""

    def __init__(self):
        self.values = []

    def stepped(self, step, total, values):
        self.values.append(values)

    def evaluating(self, step, done, total):
        pass

    def warned(self, text):
        pass


def run_file(place, material, folder, name, algorithm):
    case = CASES[name]
    generator = options_of(folder, name)
    if case.takes_image:
        generator["first_frames"] = str(material / "prompts.jsonl")
    chosen = {**ALGORITHMS[algorithm], "guidance_scale": case.scale, "eta": case.eta}
    data = {
        "output": str(place / "run"), "generator": generator, "algorithm": algorithm, algorithm: chosen,
        "prompts": {"source": str(material / "prompts.jsonl"), "held_out": 2}, "guard": {"action": "off"},
        "rewards": [{"name": "brightness_range", "options": {"low": 0.8, "high": 0.9}}],
        "training": {"steps": 2, "batch": 2, "checkpoint_every": 2}, "evaluation": {"save_clips": 0},
    }  # fmt: skip
    if algorithm != "reward_gradient":
        data["clips"] = {"source": str(material / "clips")}
    file = place / "run.yaml"
    file.write_text(json.dumps(data))
    return file


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", CASES)
def test_a_run_of_two_steps_trains_the_adapter_alone_and_saves_it(name, algorithm, folders, material, tmp_path):
    """From a run file, by the loop that ``reelign train`` runs: prompts and clips are read, held-out clips judged."""
    run, heard = Run(load_config(run_file(tmp_path, material, folders(name), name, algorithm))), Steps()
    trained = {id(parameter) for parameter in run.generator.trainable().values()}
    before = {
        (part, key): (tensor, tensor.detach().clone(), id(tensor) in trained)
        for part, network in networks_of(run.generator).items()
        for key, tensor in [*network.named_parameters(), *network.named_buffers()]
    }
    assert run.train(heard)
    assert len(heard.values) == 2
    assert all(torch.tensor(list(values.values())).isfinite().all() for values in heard.values)
    assert all(values["gradient_norm"] > 0 for values in heard.values)
    changed = {key for key, (tensor, old, _) in before.items() if not torch.equal(tensor, old)}
    adapter = {key for key, (_, _, is_trained) in before.items() if is_trained}
    assert changed <= adapter
    assert len(adapter) == len(trained)
    # Of two experts, one may have had no step; a first update moves up matrices alone; attention to a single token,
    # as in Stable Video Diffusion, has no gradient to its queries and keys.
    up = [[key in changed for key in adapter if key[0] == part and "lora_B" in key[1]] for part in ("0", "1")]
    assert max(sum(part) / len(part) for part in up if part) > 0.7
    assert len(run.generator.denoisers.all()) > 1 or any("lora_A" in name for _, name in changed)
    scores = (tmp_path / "run/samples/step_000002/scores.csv").read_text()
    assert "nan" not in scores
    saved = checkpoint.latest(run.folder.checkpoints)
    assert saved.name == "step_000002"
    again = load(folders(name), name, adapter=str(saved / "adapter"))
    for key, parameter in run.generator.trainable().items():
        assert torch.equal(parameter, again.trainable()[key])


@every
@torch.no_grad()
def test_a_saved_adapter_comes_back_bit_for_bit(generator, request, folders, tmp_path):
    name = name_of(request)
    generator.save(str(tmp_path))
    again = load(folders(name), name, adapter=str(tmp_path))
    for key, parameter in generator.trainable().items():
        assert torch.equal(parameter, again.trainable()[key])
    x, condition = seeded_noise(generator.latent_shape(), [0, 1]), generator.encode(request_for(generator))
    for t in generator.path.schedule(STEPS).t[[0, -1]].float():  # each expert's
        moved = generator.predict(x, t, condition)
        torch.testing.assert_close(again.predict(x, t, condition), moved, rtol=0, atol=1e-6)
        with generator.reference():
            assert (generator.predict(x, t, condition) - moved).abs().max() > 1e-3
        assert torch.equal(generator.predict(x, t, condition), moved)
        with generator.merged():
            torch.testing.assert_close(generator.predict(x, t, condition), moved, rtol=1e-3, atol=1e-4)
    with pytest.raises(ModelError, match="does not"):
        again.load(str(tmp_path / "nowhere"))


def librarys_networks(name, folder, generator, adapter):
    """The networks with the saved adapter in them, as the library, or PEFT alone, loads it."""
    if name not in LIBRARY:  # the network itself, without an adapter, is ours
        (part,) = generator.denoisers.networks
        plain = load(folder, name, lora=None).denoisers.networks[part]
        return {part: PeftModel.from_pretrained(plain, adapter).eval()}
    pipeline = getattr(diffusers, CASES[name].pipeline).from_pretrained(folder)
    parts = list(generator.denoisers.networks)
    if generator.denoisers.layout == "peft":
        PeftModel.from_pretrained(getattr(pipeline, parts[0]), adapter)  # puts the adapter into the network itself
    else:
        pipeline.load_lora_weights(str(adapter))
    for part in parts[1:]:
        pipeline.load_lora_weights(str(adapter / part), load_into_transformer_2=True)
    return {part: getattr(pipeline, part).eval() for part in parts}


@contextmanager
def networks_replaced(generator, theirs):
    places = [generator.denoisers.networks]
    places += [generator.family.networks] if hasattr(generator, "family") else []
    ours = dict(places[0])
    for place in places:
        place.update(theirs)
    yield
    for place in places:
        place.update(ours)


@every
@torch.no_grad()
def test_a_saved_adapter_loads_in_the_library(generator, request, folders, tmp_path):
    name = name_of(request)
    generator.save(str(tmp_path))
    theirs = librarys_networks(name, folders(name), generator, tmp_path)
    x, condition = seeded_noise(generator.latent_shape(), [0, 1]), generator.encode(request_for(generator))
    times = generator.path.schedule(STEPS).t[[0, -1]].float()
    ours = [generator.predict(x, t, condition) for t in times]
    with networks_replaced(generator, theirs):
        for t, output in zip(times, ours, strict=True):
            torch.testing.assert_close(generator.predict(x, t, condition), output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_hunyuan_videos_longer_clips_are_decoded_in_pieces_of_time_with_their_gradient(recompute, folders):
    """Of 7 latent frames, in three pieces; in float64, along a random direction."""
    generator = load(folders("hunyuan_video"), "hunyuan_video", frames=25, decode_checkpointing=recompute)
    vae, pieces = generator.family.vae.double(), []
    vae.decoder.register_forward_hook(lambda module, given, output: pieces.append(output.shape[2]))
    random = torch.Generator().manual_seed(0)
    x, direction = (torch.randn(1, *generator.latent_shape(), generator=random).double() for _ in range(2))
    x.requires_grad_()
    video = generator.family.decode(x, range(25))
    assert video.shape == (1, 25, 3, 32, 32)
    assert pieces == [17, 13, 1]
    probe = torch.randn(video.shape, generator=random).double()
    (gradient,) = torch.autograd.grad((video * probe).sum(), x)
    assert (len(pieces) > 3) == recompute
    assert (gradient.abs().amax((0, 1, 3, 4)) > 0).all()

    @torch.no_grad()
    def value(h):
        return (generator.family.decode(x + h * direction, range(25)) * probe).sum()

    h = 1e-4
    numeric = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    slope = (gradient * direction).sum()
    assert (slope - numeric).abs() / numeric.abs() < 1e-6
    with torch.no_grad():
        torch.testing.assert_close(generator.family.decode(x, [24, 0, 16]), video[:, [24, 0, 16]])
        theirs = vae.decode(x / vae.config.scaling_factor).sample.transpose(1, 2)
    torch.testing.assert_close(video, theirs)


def test_hunyuan_videos_longer_clips_are_encoded_generated_and_trained_on(folders):
    """A reward of the last frame reaches the adapter; clips go through the encoder in pieces too."""
    generator = load(folders("hunyuan_video"), "hunyuan_video", frames=25, gradient_checkpointing=True)
    reward = WeightedReward([Term("brightness", BrightnessRange(low=0.8, high=0.9))])
    algorithm = RewardGradient(generator, reward, Config(steps=2, guidance_scale=1.0, frames=[24], lr=1e-3))
    before = {name: p.detach().clone() for name, p in generator.trainable().items()}
    assert all(algorithm.step(Request(tiny.PROMPTS))["gradient_norm"] > 0 for _ in range(2))
    assert any(not torch.equal(before[name], p) for name, p in generator.trainable().items())
    clips = torch.rand(2, 25, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert generator.encode_video(clips).shape == (2, 4, 7, 4, 4)
    logged = BestOfN(generator, BestOfNConfig(lr=1e-3)).step(Request(tiny.PROMPTS, clips))
    assert 0 < logged["gradient_norm"] < float("inf")


@pytest.mark.parametrize("name", ["ltx", "wan_2.1_image"])
@torch.no_grad()
def test_an_exported_adapter_loads_in_peft_and_from_comfyuis_names(name, folders, tmp_path):
    """Alpha unlike rank on purpose; Wan's with the layers of the picture, whose official names are others."""
    targets = ["to_q", "to_out.0", *(["add_k_proj", "add_v_proj"] if name.startswith("wan") else [])]
    generator = load(folders(name), name, lora={"rank": 4, "alpha": 6.0, "targets": targets})
    shake(generator)
    generator.save(str(tmp_path / "saved"))
    kind = CASES[name].options["kind"]
    command = ["export", str(tmp_path / "saved"), "--kind", kind]
    assert CliRunner().invoke(app, [*command, "--out", str(tmp_path / "comfy.safetensors")]).exit_code == 0
    export_adapter(tmp_path / "saved", tmp_path / "peft", "peft")
    export_adapter(tmp_path / "peft", tmp_path / "again", "diffusers")
    assert all(key.startswith("diffusion_model.") for key in load_file(tmp_path / "comfy.safetensors"))
    x, t = seeded_noise(generator.latent_shape(), [0]), generator.path.schedule(STEPS).t[0].float()
    condition = generator.encode(request_for(generator, tiny.PROMPTS[:1]))
    ours, own = generator.predict(x, t, condition), generator.family.networks["transformer"]
    with generator.reference():
        assert (generator.predict(x, t, condition) - ours).abs().max() > 1e-3
    for place, file in (("", "comfy.safetensors"), ("peft", None), ("again", "pytorch_lora_weights.safetensors")):
        pipeline = getattr(diffusers, CASES[name].pipeline).from_pretrained(folders(name))
        if file is None:
            PeftModel.from_pretrained(pipeline.transformer, tmp_path / place)
        else:
            pipeline.load_lora_weights(str(tmp_path / place), weight_name=file)
        generator.family.networks["transformer"] = pipeline.transformer.eval()
        torch.testing.assert_close(generator.predict(x, t, condition), ours, rtol=1e-4, atol=1e-5)
    generator.family.networks["transformer"] = own
    with pytest.raises(ConfigError, match="ComfyUI's layout is known for"):
        export_adapter(tmp_path / "saved", tmp_path / "x.safetensors", "comfyui", "cogvideox")
    with pytest.raises(ConfigError, match=r"ends in \.safetensors"):
        export_adapter(tmp_path / "saved", tmp_path / "x", "comfyui")
    with pytest.raises(ConfigError, match="exported as diffusers, peft, comfyui"):
        export_adapter(tmp_path / "saved", tmp_path / "x", "kohya")


@images
@torch.no_grad()
def test_the_first_frame_matters(generator):
    asked = request_for(generator)
    made = generate(generator, asked, [0, 0], 2, 1.0).video
    other = Request(asked.prompts, first_frames=1 - asked.first_frames)
    assert (generate(generator, other, [0, 0], 2, 1.0).video - made).abs().max() > 1e-3


@torch.no_grad()
def test_prompts_bring_their_first_frames_from_a_file(folders, loaded, tmp_path):
    """The same file names the prompts of a run and their pictures, which are cut to the clip's size."""
    pictures = [Image.new("RGB", (96, 64), colour) for colour in ("red", "blue")]
    for picture, name in zip(pictures, ("red.png", "blue.png"), strict=True):
        picture.save(tmp_path / name)
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": p, "first_frame": f"{c}.png"} for p, c in zip(tiny.PROMPTS, ("red", "blue"), strict=True)]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    assert load_prompts(str(file)) == list(tiny.PROMPTS)
    generator = load(folders("cogvideox_image"), "cogvideox_image", first_frames=str(file))
    colours = torch.tensor([[1.0, 0, 0], [0, 0, 1]])[:, :, None, None].expand(-1, -1, 32, 32)
    from_file = generator.encode(Request(tiny.PROMPTS)).positive["image_latents"]
    given = generator.encode(Request(tiny.PROMPTS, first_frames=colours)).positive["image_latents"]
    torch.testing.assert_close(from_file, given)
    assert not torch.allclose(from_file[0], from_file[1])
    with pytest.raises(DataError, match=r"every prompt needs a first_frame in .*; 'another' has none"):
        generator.encode(Request(("another",)))
    (tmp_path / "red.png").write_text("no picture")
    with pytest.raises(DataError, match=r"the first frame .*red\.png of 'a cat runs' cannot be read"):
        generator.encode(Request(tiny.PROMPTS))
    with pytest.raises(ConfigError, match="first_frames are for image-to-video"):
        load(folders("cogvideox"), "cogvideox", first_frames=str(file))
    for text, message in (
        ('{"text": "a"}', "line 1, has"),
        ('{"prompt": "a", "first_frame": "b"}\n{"prompt": "a", "first_frame": "c"}', "a second one in line 2"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            load_prompts(str(file))
    file.write_text('{"prompt": "a"}')
    with pytest.raises(DataError, match="has none"):
        load(folders("cogvideox_image"), "cogvideox_image", first_frames=str(file))


@pytest.mark.parametrize("name", ["stable_video_diffusion", "cogvideox_image"])
def test_clips_of_a_file_of_prompts_with_pictures_and_an_adapter(name, folders, loaded, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": p, "first_frame": "red.png"}) for p in tiny.PROMPTS))
    loaded(name).save(str(tmp_path / "adapter"))
    size = {"height": 32, "width": 32, "frames": loaded(name).frames(), "device": "cpu"}
    kind = CASES[name].options["kind"]
    out = tmp_path / "clips"
    job = GenerationJob.prepare(str(folders(name)), str(file), out, adapter=tmp_path / "adapter", kind=kind, **size)
    assert list(job.run(0, 1, None, 2)) == [2]
    assert sorted(p.name for p in out.iterdir()) == ["0000.mp4", "0001.mp4", "metadata.csv"]
    with pytest.raises(ConfigError, match="set --kind to such a family"):
        GenerationJob.prepare("zoo:tiny-wan", str(file), tmp_path / "other")


@pytest.mark.parametrize("name", ["stable_video_diffusion", "cogvideox_1.5_image"])
def test_clips_go_on_from_the_last_frame(name, folders, loaded):
    """Three clips are one after another; only the first frame of the next clip knows of the last; gradient is safe."""
    one, three = loaded(name), load(folders(name), name, clips=3)
    frames = one.frames()
    assert isinstance(three, ContinuingGenerator)
    assert three.frames() == frames + 2 * (frames - 1)
    x = seeded_noise(three.latent_shape(), [0])
    asked = request_for(three, tiny.PROMPTS[:1])
    schedule = three.path.schedule(2)
    with torch.no_grad():
        latents = chain(three, x, three.encode(asked), schedule, ChainOptions(2.0))
        video = three.decode(latents)
        parts, given = [], asked
        for noise in x.chunk(3, dim=2):
            part = one.decode(chain(one, noise, one.encode(given), schedule, ChainOptions(2.0)))
            given = Request(asked.prompts, first_frames=part[:, -1])
            parts.append(part if not parts else part[:, 1:])
    torch.testing.assert_close(video, torch.cat(parts, dim=1), rtol=0, atol=1e-4)
    chosen = [0, frames - 1, frames, three.frames() - 1]
    torch.testing.assert_close(three.decode(latents, chosen), video[:, chosen], rtol=0, atol=1e-5)
    assert three.encode_video(video).shape == latents.shape
    reward = WeightedReward([Term("brightness", BrightnessRange(low=0.8, high=0.9))])
    algorithm = RewardGradient(three, reward, Config(steps=2, guidance_scale=2.0, frames=chosen, kl_weight=0.1))
    assert algorithm.step(asked)["gradient_norm"] > 0
    with pytest.raises(DataError, match=r"needs generator\.clips to be 1"):
        BestOfN(three, BestOfNConfig()).step(Request(asked.prompts, video))


def test_a_distilled_model_says_how_to_run_it(loaded, folders):
    generator = loaded("hunyuan_video")
    with pytest.raises(ContractError, match="set the guidance scale to 1"):
        generate(generator, request_for(generator), [0, 1], 1, 3.0)
    with torch.no_grad():
        made = [
            generate(load(folders("hunyuan_video"), "hunyuan_video", embedded_guidance=g), Request(("a",)), [0], 1, 1.0)
            for g in (1.0, 9.0)
        ]
    assert (made[0].video - made[1].video).abs().max() > 1e-4
    guided = load(folders("hunyuan_video"), "hunyuan_video", negative_prompt="")
    assert generate(guided, Request(("a",)), [0], 1, 3.0).video.isfinite().all()


def test_run_files_know_every_kind():
    for kind in {case.options["kind"] for case in CASES.values()}:
        generator = {"kind": kind, "model": "some/model"}
        config = parse_config({"output": "x", "generator": generator, "rewards": [{"name": "brightness_range"}]})
        assert config.generator.kind == kind
        with pytest.raises(ConfigError, match=r"unknown config key .*did you mean .*embedded_guidance|unknown config"):
            parse_config({"output": "x", "generator": {**generator, "embedded_guidence": 1}})
