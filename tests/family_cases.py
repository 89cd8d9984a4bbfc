"""Every family of generators: how a tiny folder of it is made and loaded, and how diffusers runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import diffusers
import tiny_families as tiny
import tiny_own
import torch
from PIL import Image

from reelign.build import build_generator
from reelign.contracts import Request
from reelign.diagnosis import WanGrid

STEPS, SCALE = 4, 3.0
SIZE = {"height": 32, "width": 32}


@dataclass(frozen=True)
class Case:
    """A family, or a member of one that goes another way through its code.

    Args:
        maker: writes the folder.
        options: of the generator.
        pipeline: diffusers', which the chain is held to; empty for those that are held to golden numbers.
        call: what that pipeline is told besides.
        takes_image: whether clips begin from a picture.
        frames_first: the pipeline's latents are [B,F,C,h,w].
        wrong_frames: a length that the model cannot make, and what is said of it; empty where there is none.
        scale: of guidance.
        exact: the network works in float64 throughout; others hold rotary embeddings in float32.
        places: options that are places in the folder.
        eta: of training.
    """

    maker: object
    options: dict
    pipeline: str = ""
    call: dict = field(default_factory=dict)
    takes_image: bool = False
    frames_first: bool = False
    wrong_frames: tuple = (10, "n \\+ 1 frames; got 10")
    scale: float = SCALE
    exact: bool = False
    places: dict = field(default_factory=lambda: {"model": "."})
    eta: float = 0.0


def wan_case(maker, pipeline, kind="wan", **options):
    return Case(
        maker, {"kind": kind, "frames": 5, **options}, pipeline, {"max_sequence_length": 512},
        takes_image=kind == "wan_image",
    )  # fmt: skip


T2V, I2V = "WanPipeline", "WanImageToVideoPipeline"
CASES = {
    "modelscope": Case(
        tiny.modelscope, {"kind": "modelscope", "frames": 4}, "TextToVideoSDPipeline", wrong_frames=(), exact=True
    ),
    "stable_video_diffusion": Case(
        tiny.stable_video_diffusion, {"kind": "stable_video_diffusion", "frames": 4}, "StableVideoDiffusionPipeline",
        takes_image=True, frames_first=True, wrong_frames=(), exact=True,
    ),
    "wan_2.1": wan_case(tiny.wan, T2V),
    "wan_2.2": wan_case(partial(tiny.wan, experts=2), T2V),
    "wan_2.2_5b": wan_case(partial(tiny.wan, expand_timesteps=True), T2V),
    "wan_2.1_image": wan_case(partial(tiny.wan_image, image_dim=16), I2V, "wan_image"),
    "wan_2.2_image": wan_case(partial(tiny.wan_image, experts=2), I2V, "wan_image"),
    "wan_2.2_5b_image": wan_case(partial(tiny.wan_image, expand_timesteps=True), I2V, "wan_image"),
    "cogvideox": Case(
        tiny.cogvideox, {"kind": "cogvideox"}, "CogVideoXPipeline", {"max_sequence_length": 24}, frames_first=True,
        exact=True,
    ),
    "cogvideox_image": Case(
        partial(tiny.cogvideox, image=True), {"kind": "cogvideox"}, "CogVideoXImageToVideoPipeline",
        {"max_sequence_length": 24}, takes_image=True, frames_first=True,
    ),
    "cogvideox_1.5_image": Case(
        partial(tiny.cogvideox, image=True, later=True), {"kind": "cogvideox"}, "CogVideoXImageToVideoPipeline",
        {"max_sequence_length": 24}, takes_image=True, frames_first=True,
    ),
    "ltx": Case(tiny.ltx, {"kind": "ltx", "frames": 9}, "LTXPipeline", {"max_sequence_length": 64}),
    "ltx_image": Case(
        tiny.ltx, {"kind": "ltx", "frames": 9, "image_to_video": True}, "LTXImageToVideoPipeline",
        {"max_sequence_length": 64}, takes_image=True,
    ),
    "hunyuan_video": Case(
        tiny.hunyuan_video, {"kind": "hunyuan_video", "frames": 5}, "HunyuanVideoPipeline", scale=1.0
    ),
    "videocrafter2": Case(
        tiny_own.videocrafter2, {"kind": "videocrafter2", "frames": 4, "height": 16, "width": 16},
        wrong_frames=(), places={"model": ".", "tokenizer": "tokenizer"}, eta=1.0,
    ),
    "opensora": Case(
        tiny_own.opensora, {"kind": "opensora", "frames": 17},
        wrong_frames=(16, r"multiple of 17; got 16: set generator\.frames to 17"),
        places={"model": "stdit", "vae": "vae", "text_encoder": "t5"},
    ),
}  # fmt: skip
IMAGE = [name for name, case in CASES.items() if case.takes_image]
LIBRARY = [name for name, case in CASES.items() if case.pipeline]


def options_of(folder, name, **changed):
    """What a user would write under ``generator``."""
    case = CASES[name]
    places = {option: str(folder / place) for option, place in case.places.items()}
    return {**SIZE, "device": "cpu", **places, **case.options, **changed}


def load(folder, name, **changed):
    return build_generator(options_of(folder, name, **changed))


def shake(generator, scale=0.2):
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in generator.trainable().values():
            parameter += scale * torch.randn(parameter.shape, generator=random)


def takes_image(generator):
    return hasattr(generator, "family") and generator.family.takes_image


def request_for(generator, prompts=tiny.PROMPTS):
    """Prompts, and first frames of 8-bit values where the family takes some."""
    random = torch.Generator().manual_seed(2)
    pictures = torch.randint(0, 256, (len(prompts), 3, *generator.picture_size()), generator=random) / 255
    return Request(prompts, first_frames=pictures if takes_image(generator) else None)


def vae_of(generator):
    return generator.family.vae if hasattr(generator, "family") else generator.pipeline.vae


def networks_of(generator):
    """Everything with weights, by a name."""
    if hasattr(generator, "family"):
        others = {"frozen": generator.family.frozen, "encoders": generator.family.encoders}
    else:
        others = {"frozen": [generator.pipeline.vae], "encoders": [generator.pipeline.text_encoder]}
    named = {str(i): network for i, network in enumerate(generator.denoisers.all())}
    return named | {f"{kind}.{i}": network for kind, part in others.items() for i, network in enumerate(part)}


def library(name, folder, generator, x, row):
    """Latents and frames that diffusers' pipeline makes of noise x [1,C,F,h,w] for one row of the request."""
    case = CASES[name]
    pipeline = getattr(diffusers, case.pipeline).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if "Wan" in case.pipeline:
        pipeline.scheduler = WanGrid(shift=generator.path.shift)
    kept = []

    def keep(pipe, i, t, values):
        kept.append(values["latents"])
        return {}

    call = {"num_inference_steps": STEPS, "height": 32, "width": 32, "num_frames": generator.frames(), **case.call}
    call |= (
        {"callback": lambda i, t, latents: kept.append(latents)}
        if name == "modelscope"
        else {"callback_on_step_end": keep}
    )
    if row.first_frames is not None:
        pixels = (row.first_frames[0] * 255).round().byte().permute(1, 2, 0).numpy()
        call["image"] = Image.fromarray(pixels)
    if "Stable" in case.pipeline:
        call |= {"max_guidance_scale": SCALE, "generator": torch.Generator().manual_seed(0)}
    else:
        call |= {"prompt": row.prompts[0], "guidance_scale": SCALE if case.scale > 1 else 6.0}
        call |= {} if case.scale == 1 else {"negative_prompt": ""}
    if "LTX" in case.pipeline:
        x = packed_for_ltx(pipeline, x, call)
    x = x.transpose(1, 2) if case.frames_first else x
    video = pipeline(**call, latents=x, output_type="pt").frames
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
