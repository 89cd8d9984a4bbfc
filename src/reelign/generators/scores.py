"""Score networks beside a causal generator: a bidirectional Wan that borrows everything but the transformer from it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanPipeline, WanTransformer3DModel

from reelign.contracts import Generator
from reelign.errors import ConfigError, ModelError
from reelign.generators.causal_wan import CausalWanGenerator
from reelign.generators.lora import LoraOptions
from reelign.generators.wan import WanGenerator, WanOptions
from reelign.zoo.models import resolve_model


def load_score(
    generator: Generator, options: WanOptions | None, lora: LoraOptions | None = None, train_all: bool = False
) -> WanGenerator:
    """A bidirectional Wan for latents and conditions of ``generator``, with an adapter, trained whole, or frozen.

    Args:
        generator: a causal Wan; text encoder and decoder are its own.
        options: which model; None is the one that the generator is made of, before anything was put into it.
        lora: the adapter.
        train_all: train every weight.

    Raises:
        ConfigError: the generator is no causal Wan, or the options name an adapter.
        ModelError: there is no such model, or it does not go with the generator.
    """
    if not isinstance(generator, CausalWanGenerator):
        raise ConfigError("score networks are made for causal Wan generators: set generator.kind to causal_wan")
    if options is not None and options.adapter is not None:
        raise ConfigError("a teacher is a whole model: fold its adapter into its weights and leave teacher.adapter out")
    own = generator.wan.options
    height, width = generator.picture_size()
    shared = {"height": height, "width": width, "frames": generator.frames(), "device": str(generator.device)}
    trained = {"lora": lora, "train_all": train_all, "adapter": None}
    chosen = (options or own).model_copy(update=shared | trained)
    source = resolve_model(chosen.model)
    dtype = torch.float32 if train_all else getattr(torch, chosen.dtype)
    try:
        kinds: dict[str, Any] = WanPipeline.load_config(source)
        network = WanTransformer3DModel.from_pretrained(source, subfolder="transformer", torch_dtype=dtype)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"no Wan teacher could be loaded from {chosen.model!r}: {str(error).splitlines()[0]}"
        ) from error
    _check(network, generator.network, kinds, chosen.model)
    parts = generator.wan.pipeline
    pipeline = WanPipeline(
        tokenizer=parts.tokenizer,
        text_encoder=parts.text_encoder,
        vae=parts.vae,
        scheduler=parts.scheduler,
        transformer=network,
    )
    return WanGenerator(pipeline, chosen)


def _check(network: Any, student: Any, kinds: dict[str, Any], name: str) -> None:
    if kinds.get("boundary_ratio") is not None or kinds.get("expand_timesteps"):
        raise ModelError(f"a teacher has one transformer with one time a clip; {name!r} has another kind")
    for key in ("in_channels", "text_dim"):
        theirs, ours = network.config[key], student.config[key]
        if theirs != ours:
            raise ModelError(
                f"teacher and generator share latents and texts; {key} is {theirs} of {name!r}, not {ours}"
            )
