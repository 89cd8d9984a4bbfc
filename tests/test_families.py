"""One suite for every family of generators: parity with diffusers' own pipeline, exact gradients, training, files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial

import diffusers
import pytest
import tiny_families as tiny
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from reelign.algorithms.best_of_n import BestOfN
from reelign.algorithms.best_of_n import Config as BestOfNConfig
from reelign.algorithms.partial_chain import Config as PartialChainConfig
from reelign.algorithms.partial_chain import PartialChain, tail
from reelign.algorithms.reward_gradient import Config, RewardGradient
from reelign.build import build_generator
from reelign.cli.main import app
from reelign.config import parse_config
from reelign.contracts import ContinuingGenerator, Generator, Request
from reelign.datasets.prompts import load_prompts
from reelign.diagnosis import WanGrid
from reelign.errors import ConfigError, ContractError, DataError, ModelError
from reelign.generation import GenerationJob
from reelign.generators.lora_export import export_adapter
from reelign.rewards.brightness_range import BrightnessRange
from reelign.rewards.weighted import Term, WeightedReward
from reelign.sampling import ChainOptions, chain, generate, seeded_noise

STEPS, SCALE = 4, 3.0


@dataclass(frozen=True)
class Case:
    """A family: how its folder is made, how it is loaded, and how diffusers runs it."""

    maker: object
    pipeline: str
    options: dict
    call: dict = field(default_factory=dict)
    frames_first: bool = False  # the pipeline's latents are [B,F,C,h,w]
    wrong_frames: tuple = (10, "frames; got 10")
    scale: float = SCALE
    rounds: bool = True  # some of the network is in float32 whatever it is given, as rotary embeddings are


CASES = {
    "stable_video_diffusion": Case(
        tiny.stable_video_diffusion, "StableVideoDiffusionPipeline",
        {"kind": "stable_video_diffusion", "frames": 4}, frames_first=True, wrong_frames=(), rounds=False,
    ),
    "wan_2.1_image": Case(
        partial(tiny.wan_image, image_dim=16), "WanImageToVideoPipeline", {"kind": "wan_image", "frames": 5},
        {"max_sequence_length": 512},
    ),
    "wan_2.2_image": Case(
        partial(tiny.wan_image, experts=2), "WanImageToVideoPipeline", {"kind": "wan_image", "frames": 5},
        {"max_sequence_length": 512},
    ),
    "wan_2.2_5b_image": Case(
        partial(tiny.wan_image, expand_timesteps=True), "WanImageToVideoPipeline", {"kind": "wan_image", "frames": 5},
        {"max_sequence_length": 512},
    ),
    "cogvideox": Case(
        tiny.cogvideox, "CogVideoXPipeline", {"kind": "cogvideox"}, {"max_sequence_length": 24}, frames_first=True,
        rounds=False,
    ),
    "cogvideox_image": Case(
        partial(tiny.cogvideox, image=True), "CogVideoXImageToVideoPipeline", {"kind": "cogvideox"},
        {"max_sequence_length": 24}, frames_first=True,
    ),
    "cogvideox_1.5_image": Case(
        partial(tiny.cogvideox, image=True, later=True), "CogVideoXImageToVideoPipeline", {"kind": "cogvideox"},
        {"max_sequence_length": 24}, frames_first=True,
    ),
    "ltx": Case(tiny.ltx, "LTXPipeline", {"kind": "ltx", "frames": 9}, {"max_sequence_length": 64}),
    "ltx_image": Case(
        tiny.ltx, "LTXImageToVideoPipeline", {"kind": "ltx", "frames": 9, "image_to_video": True},
        {"max_sequence_length": 64},
    ),
    "hunyuan_video": Case(
        tiny.hunyuan_video, "HunyuanVideoPipeline", {"kind": "hunyuan_video", "frames": 5}, scale=1.0
    ),
}  # fmt: skip
IMAGE = [name for name in CASES if "image" in name or name.startswith("stable")]
TRAINED = ["stable_video_diffusion", "wan_2.1_image", "cogvideox", "cogvideox_image", "ltx", "hunyuan_video"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tiny.build(CASES[name].maker, tmp_path_factory.mktemp(name))
        return made[name]

    return folder


@pytest.fixture(scope="module")
def loaded(folders):
    made = {}

    def generator(name):
        if name not in made:
            made[name] = load(folders(name), name)
        return made[name]

    return generator


def load(folder, name, **options):
    size = {"height": 32, "width": 32, "device": "cpu"}
    return build_generator({"model": str(folder), **size, **CASES[name].options, **options})


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


def shake(generator, scale=0.2):
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in generator.trainable().values():
            parameter += scale * torch.randn(parameter.shape, generator=random)


def request_for(generator, prompts=tiny.PROMPTS):
    """Prompts, and first frames of 8-bit values where the family takes some."""
    random = torch.Generator().manual_seed(2)
    pictures = torch.randint(0, 256, (len(prompts), 3, 32, 32), generator=random) / 255
    return Request(prompts, first_frames=pictures if generator.family.takes_image else None)


every = pytest.mark.parametrize("generator", CASES, indirect=True, ids=str)
images = pytest.mark.parametrize("generator", IMAGE, indirect=True, ids=str)
trained = pytest.mark.parametrize("generator", TRAINED, indirect=True, ids=str)


def case_of(request):
    return CASES[request.node.callspec.params["generator"]]


def library(case, folder, generator, x, row):
    """Latents and frames that diffusers' pipeline makes of noise x [1,C,F,h,w] for one row of the request."""
    pipeline = getattr(diffusers, case.pipeline).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if "Wan" in case.pipeline:
        pipeline.scheduler = WanGrid(shift=generator.path.shift)
    kept = []

    def keep(pipe, i, t, values):
        kept.append(values["latents"])
        return {}

    call = {"num_inference_steps": STEPS, "height": 32, "width": 32, "num_frames": generator.family.size.frames}
    if row.first_frames is not None:
        pixels = (row.first_frames[0] * 255).round().byte().permute(1, 2, 0).numpy()
        call["image"] = Image.fromarray(pixels)
    if "Stable" in case.pipeline:
        call |= {"max_guidance_scale": SCALE, "generator": torch.Generator().manual_seed(0)}
    else:
        call |= {"prompt": list(row.prompts), "guidance_scale": SCALE if case.scale > 1 else 6.0}
        call |= {} if case.scale == 1 else {"negative_prompt": ""}
    if "LTX" in case.pipeline:
        x = packed_for_ltx(pipeline, x, call)
    x = x.transpose(1, 2) if case.frames_first else x
    video = pipeline(**call, **case.call, latents=x, output_type="pt", callback_on_step_end=keep).frames
    latents = kept[-1]
    if "LTX" in case.pipeline:
        latents = pipeline._unpack_latents(latents, *generator.latent_shape()[1:])
    return (latents.transpose(1, 2) if case.frames_first else latents), video


def packed_for_ltx(pipeline, x, call):
    """Noise as LTX's pipelines take it; image-to-video's with the picture's latents in front, which it makes itself."""
    if "image" not in call:
        return pipeline._pack_latents(x)
    image = pipeline.video_processor.preprocess(call["image"], height=32, width=32)
    own, _ = pipeline.prepare_latents(image, 1, 8, 32, 32, call["num_frames"], torch.float32, torch.device("cpu"))
    own = pipeline._unpack_latents(own, *x.shape[2:])
    return pipeline._pack_latents(torch.cat([own[:, :, :1], x[:, :, 1:]], dim=2))


@every
@torch.no_grad()
def test_chain_and_decoding_are_those_of_the_librarys_pipeline(generator, request, folders):
    """The same noise, Euler or DDIM steps, guidance; a batch of two of ours, one of them theirs."""
    case, name = case_of(request), request.node.callspec.params["generator"]
    assert isinstance(generator, Generator)
    asked = request_for(generator)
    x = seeded_noise(generator.latent_shape(), [0, 1])
    with generator.reference():
        latents = chain(generator, x, generator.encode(asked), generator.path.schedule(STEPS), ChainOptions(case.scale))
    theirs, frames = library(case, folders(name), generator, x[1:], asked[1:])
    known = 1 if name == "wan_2.2_5b_image" else 0  # that pipeline puts the known frame in after the last step
    difference = (latents[1:, :, known:] - theirs[:, :, known:]).abs().max() / theirs.abs().max()
    assert difference <= 1e-4
    ours = generator.decode(latents[1:])
    assert ours.shape == (1, generator.frames(), 3, 32, 32)
    assert (ours - frames).abs().max() <= 2e-4
    assert ours.std() > 0.01


@every
def test_the_gradient_of_k_steps_is_that_of_finite_differences(generator, request):
    """In float64, along a random direction of the adapter; the latent that enters the live steps is a constant."""
    case, k = case_of(request), 2
    networks = generator.denoisers.all()
    for network in networks:
        network.double()
    try:
        parameters = list(generator.trainable().values())
        condition, schedule = generator.encode(request_for(generator)), generator.path.schedule(STEPS)
        x = seeded_noise(generator.latent_shape(), [0, 1]).double()
        random = torch.Generator().manual_seed(1)
        probe = torch.randn(x.shape, generator=random, dtype=torch.float64)
        direction = [torch.randn(p.shape, generator=random, dtype=torch.float64) for p in parameters]
        live = range(STEPS - k, STEPS)
        final = chain(generator, x, condition, schedule, ChainOptions(case.scale, gradient_steps=live))
        gradients = torch.autograd.grad((final * probe).sum(), parameters, allow_unused=True)
        slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True) if g is not None)

        def run(start, steps):
            return chain(generator, start, condition, steps, ChainOptions(case.scale))

        with torch.no_grad():
            before = type(schedule)(schedule.t[:-k], *(part[:-k] for part in (schedule.alpha, schedule.sigma)),
                                    schedule.ancestral[:-k])  # fmt: skip
            middle = run(x, before)

            def value(h):
                for p, d in zip(parameters, direction, strict=True):
                    p += h * d
                result = (run(middle, tail(schedule, k)) * probe).sum()
                for p, d in zip(parameters, direction, strict=True):
                    p -= h * d
                return result

            h, tolerance = (3e-3, 1e-3) if case.rounds else (1e-3, 1e-6)
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


@pytest.mark.parametrize("name", ["stable_video_diffusion", "wan_2.1_image", "cogvideox", "ltx", "hunyuan_video"])
def test_checkpointing_changes_no_gradient(name, folders, loaded):
    """Of the network's blocks, and of the decoder."""
    plain, thrifty = loaded(name), load(folders(name), name, gradient_checkpointing=True, decode_checkpointing=True)
    thrifty.denoisers.all()[0].train(False)
    gradients = []
    for generator in (plain, thrifty):
        x = seeded_noise(generator.latent_shape(), [0])
        condition = generator.encode(request_for(generator, tiny.PROMPTS[:1]))
        options = ChainOptions(1.0, gradient_steps=(0,))
        final = chain(generator, x, condition, generator.path.schedule(1), options)
        up = [p for name, p in generator.trainable().items() if "lora_B" in name]
        found = torch.autograd.grad(generator.decode(final, [0]).square().sum(), up, allow_unused=True)
        gradients.append([g for g in found if g is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert max(g.abs().max() for g in gradients[0]) > 0
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in TRAINED if n != "cogvideox_image"])
def test_bfloat16_stays_close_and_trains_an_adapter_in_float32(name, folders):
    outputs = []
    for dtype in ("float32", "bfloat16"):
        generator = load(folders(name), name, dtype=dtype)
        x, t = seeded_noise(generator.latent_shape(), [0, 1]), generator.path.schedule(STEPS).t[1].float()
        output = generator.predict(x, t, generator.encode(request_for(generator))).float()
        output.square().mean().backward()
        outputs.append(output.detach().flatten())
        parameters = generator.trainable().values()
        assert all(p.dtype == torch.float32 for p in parameters)
        assert sum(p.grad.abs().sum() for p in parameters if p.grad is not None) > 0
    assert torch.nn.functional.cosine_similarity(*outputs, dim=0) > 0.999


def reward():
    return WeightedReward([Term("brightness", BrightnessRange(low=0.8, high=0.9))])


@trained
def test_every_algorithm_takes_two_steps(generator, request):
    """Reward gradients, editing and fine-tuning on clips, each by its real class on a real reward."""
    scale = case_of(request).scale
    asked = request_for(generator)
    random = torch.Generator().manual_seed(4)
    clips = Request(asked.prompts, torch.rand(2, generator.frames(), 3, 32, 32, generator=random))
    made = [
        (RewardGradient(generator, reward(), Config(steps=3, guidance_scale=scale, kl_weight=0.1, lr=1e-3)), asked),
        (
            PartialChain(generator, reward(), PartialChainConfig(steps=5, guidance_scale=scale, frames="first")),
            clips,
        ),
        (BestOfN(generator, BestOfNConfig(lr=1e-3)), clips),
    ]
    for algorithm, what in made:
        before = {name: p.detach().clone() for name, p in generator.trainable().items()}
        for _ in range(2):
            logged = algorithm.step(what)
            assert logged["gradient_norm"] > 0
            assert all(torch.isfinite(torch.tensor(value)) for value in logged.values())
        assert any(not torch.equal(before[name], p) for name, p in generator.trainable().items())


@every
@torch.no_grad()
def test_a_saved_adapter_comes_back_bit_for_bit(generator, request, folders, tmp_path):
    name = request.node.callspec.params["generator"]
    generator.save(str(tmp_path))
    again = load(folders(name), name, adapter=str(tmp_path))
    for key, parameter in generator.trainable().items():
        assert torch.equal(parameter, again.trainable()[key])
    x, t = seeded_noise(generator.latent_shape(), [0, 1]), generator.path.schedule(STEPS).t[2].float()
    condition = generator.encode(request_for(generator))
    moved = generator.predict(x, t, condition)
    torch.testing.assert_close(again.predict(x, t, condition), moved, rtol=0, atol=1e-6)
    with generator.reference():
        assert (generator.predict(x, t, condition) - moved).abs().max() > 1e-3
    assert torch.equal(generator.predict(x, t, condition), moved)
    with generator.merged():
        torch.testing.assert_close(generator.predict(x, t, condition), moved, rtol=1e-3, atol=1e-4)
    with pytest.raises(ModelError, match="does not"):
        again.load(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("generator", TRAINED, indirect=True, ids=str)
@torch.no_grad()
def test_a_saved_adapter_loads_in_the_library(generator, request, folders, tmp_path):
    name = request.node.callspec.params["generator"]
    generator.save(str(tmp_path))
    pipeline = getattr(diffusers, CASES[name].pipeline).from_pretrained(folders(name))
    part = next(iter(generator.family.networks))
    if generator.family.adapter_layout == "peft":
        PeftModel.from_pretrained(getattr(pipeline, part), tmp_path)  # puts the adapter into the network itself
    else:
        pipeline.load_lora_weights(str(tmp_path))
    theirs = getattr(pipeline, part).eval()
    x, t = seeded_noise(generator.latent_shape(), [0, 1]), generator.path.schedule(STEPS).t[0].float()
    condition = generator.encode(request_for(generator))
    ours = generator.predict(x, t, condition)
    kept = generator.family.networks[part]
    generator.family.networks[part] = theirs
    try:
        torch.testing.assert_close(generator.predict(x, t, condition), ours, rtol=1e-4, atol=1e-5)
    finally:
        generator.family.networks[part] = kept


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
def test_the_first_frame_matters_and_is_missed(generator):
    asked = request_for(generator)
    made = generate(generator, asked, [0, 0], 2, 1.0).video
    other = Request(asked.prompts, first_frames=1 - asked.first_frames)
    assert (generate(generator, other, [0, 0], 2, 1.0).video - made).abs().max() > 1e-3
    with pytest.raises(DataError, match="begins from pictures, and this request has none"):
        generator.encode(Request(asked.prompts))
    with pytest.raises(DataError, match=r"first frames are \[B,3,32,32\] for this generator; got \[2, 3, 16, 16\]"):
        generator.encode(Request(asked.prompts, first_frames=asked.first_frames[..., ::2, ::2]))


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
    algorithm = RewardGradient(three, reward(), Config(steps=2, guidance_scale=2.0, frames=chosen, kl_weight=0.1))
    assert algorithm.step(asked)["gradient_norm"] > 0
    with pytest.raises(DataError, match=r"needs generator\.clips to be 1"):
        BestOfN(three, BestOfNConfig()).step(Request(asked.prompts, video))


@pytest.mark.parametrize("name", CASES)
def test_wrong_settings_are_one_clear_line(name, folders, tmp_path):
    case, folder = CASES[name], folders(name)
    if case.wrong_frames:
        frames, message = case.wrong_frames
        with pytest.raises(ConfigError, match=message):
            load(folder, name, frames=frames)
    with pytest.raises(ConfigError, match=r"must be multiples of .* for this model; got 34x32"):
        load(folder, name, height=34)
    with pytest.raises(ModelError, match="could be loaded from"):
        load(tmp_path, name)
    with pytest.raises(ConfigError, match="LoRA targets must name layers"):
        load(folder, name, lora={"targets": ["nothing"]})


def test_a_text_model_refuses_pictures_clips_and_long_prompts(loaded, folders):
    generator = loaded("cogvideox")
    with pytest.raises(DataError, match="from text alone"):
        generator.encode(Request(("a",), first_frames=torch.rand(1, 3, 32, 32)))
    with pytest.raises(DataError, match=r"at most 24 tokens for this model; shorten this one of 31"):
        generator.encode(Request(("a" * 30,)))
    with pytest.raises(ConfigError, match=r"set generator\.clips to 1"):
        load(folders("cogvideox"), "cogvideox", clips=2)


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
