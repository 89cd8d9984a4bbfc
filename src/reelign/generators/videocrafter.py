"""VideoCrafter2 text-to-video (Chen et al. 2024, arXiv 2401.09047), from its published ``model.ckpt``.

The base of VADER's main experiments: a U-Net with attention and convolutions over time that predicts ε (see
``videocrafter_network.py``), a picture autoencoder, OpenCLIP's text tower read before its last layer. The chain is
DDIM on the grid 1 + k·(1000 // S) with a signal scaled down towards noise; with ``eta`` 1, as VADER runs it, fresh
noise is added at every step, the last one too. Frames are decoded one by one, so only chosen frames cost anything.

Adapters are saved in PEFT's own layout; those that VADER published (``peft_model_N.pt``) load as they are.

Left out: VideoCrafter's image-to-video model, and dropout, which VADER's program leaves on (in LoRA and in the
temporal convolutions, in rollouts and validation too) because it never calls ``eval()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from pydantic import Field
from torch import Tensor
from transformers import CLIPTokenizer

from reelign.errors import DataError, ModelError
from reelign.generators.family import FamilyOptions, Features, Native, check_size, check_text_length
from reelign.generators.family_generator import FamilyGenerator
from reelign.generators.levers import recomputed
from reelign.generators.lora import AdapterLayout, LoraOptions
from reelign.generators.videocrafter_checkpoint import LATENT_SCALE, load_parts, noise_path
from reelign.zoo.models import resolve_model
from reelign.zoo.published import find_file

NATIVE = Native(frames=16, height=320, width=512, fps=24.0, steps=25, guidance_scale=12.0)
PADDING = 0  # open_clip fills up a text with zeros, transformers' tokenizers with their end token


class VideoCrafterOptions(FamilyOptions):
    """What all families have, and VideoCrafter2's own.

    Args:
        kind: always ``videocrafter2``.
        model: the file, a folder with ``model.ckpt`` in it, or ``VideoCrafter/VideoCrafter2:model.ckpt`` on the hub.
        tokenizer: a folder or hub id with CLIP's tokenizer.
        conditioning_fps: what the network is told; None is ``fps``, the rate of the clips, 24 unless told otherwise.
        lora: VADER's: queries, keys and values of every attention, and PEFT's own α of 8 whatever the rank.
        adapter: a saved adapter of this very rank to go on from: a folder, or a ``.pt`` file as VADER publishes them,
            ``zheyangqin/VADER_VideoCrafter_PickScore:vader_videocrafter_pickscore.pt`` (rank 16) and
            ``zheyangqin/VADER_VideoCrafter_HPS_Aesthetic:vader_videocrafter_hps_aesthetic.pt`` (rank 8) on the hub.
    """

    kind: Literal["videocrafter2"] = "videocrafter2"
    tokenizer: str = "openai/clip-vit-large-patch14"
    conditioning_fps: float | None = Field(None, gt=0)
    lora: LoraOptions | None = LoraOptions(rank=16, alpha=8, targets=("to_q", "to_k", "to_v"))


class VideoCrafter:
    """The family (see ``family.Family``).

    Args:
        parts: ``unet``, ``vae``, ``text`` and ``tokenizer``.
        options: what was asked.

    Raises:
        ConfigError: a size that the U-Net cannot halve as often as it has to.
    """

    native = NATIVE
    takes_image = False
    guidance: Tensor | None = None
    adapter_layout: AdapterLayout = "peft"  # diffusers has no LoRA loader for this U-Net

    def __init__(self, parts: dict[str, Any], options: VideoCrafterOptions) -> None:
        self.unet, self.vae, self.text, self.tokenizer = (parts[n] for n in ("unet", "vae", "text", "tokenizer"))
        self.path = noise_path()
        self.size = options.size(NATIVE)
        self.networks = {"unet": self.unet}
        self.frozen, self.encoders = [self.vae], [self.text]
        self._recompute = options.decode_checkpointing
        self._told = float(options.conditioning_fps or options.fps or NATIVE.fps)
        self._ratio = 2 ** (len(self.vae.config.block_out_channels) - 1)
        multiple = self._ratio * 2 ** (len(self.unet.sizes.channels) - 1)
        check_size("VideoCrafter2", self.size, multiple)

    def latent_shape(self) -> tuple[int, int, int, int]:
        """[C,F,h,w] of one clip."""
        space = (self.size.height // self._ratio, self.size.width // self._ratio)
        return (self.unet.sizes.latent, self.size.frames, *space)

    def encode_text(self, text: str, device: torch.device) -> Features:
        """Text states [L,D], and the frame rate; raises DataError where the text is too long."""
        text, length = prompt_clean(text), self.text.config.max_position_embeddings
        check_text_length(self.tokenizer, text, length)
        tokens = self.tokenizer(text).input_ids
        padded = torch.tensor([tokens + [PADDING] * (length - len(tokens))], device=device)
        return {"text": self.text(padded).last_hidden_state[0], "fps": torch.tensor(self._told)}

    def encode_image(self, pictures: Tensor) -> tuple[Features, Features]:
        """Never asked: clips are made from text alone."""
        raise DataError(f"this model makes clips from text alone; got {len(pictures)} pictures: leave them out")

    def predict(self, x: Tensor, t: Tensor, features: Features) -> Tensor:
        """ε for latents x [B,C,F,h,w] at t [B] in [0,999]."""
        output: Tensor = self.networks["unet"](x, t, features["text"], features["fps"])
        return output

    def decode(self, x: Tensor, frames: Sequence[int]) -> Tensor:
        """The asked frames [B,T',3,H,W] in about [-1,1], and no other."""
        latents = (x / LATENT_SCALE).to(self.vae.dtype).unbind(2)
        pictures = [recomputed(self._decode_picture, latents[frame], when=self._recompute) for frame in frames]
        return torch.stack(pictures, dim=1)

    def _decode_picture(self, z: Tensor) -> Tensor:
        picture: Tensor = self.vae.decode(z, return_dict=False)[0]
        return picture

    def encode_video(self, video: Tensor) -> Tensor:
        """One clip [B,T,3,H,W] in [-1,1] to latents, by the mode of the posterior, frame by frame."""
        pictures = video.to(self.vae.dtype).unbind(1)
        latents = [self.vae.encode(picture).latent_dist.mode() for picture in pictures]
        return torch.stack(latents, dim=2) * LATENT_SCALE


def load_videocrafter(**options: Any) -> FamilyGenerator:
    """Load a VideoCrafter2 generator; keyword arguments are those of ``VideoCrafterOptions``.

    Raises:
        ModelError: the file is not VideoCrafter2's, or there is no tokenizer or adapter where one should be.
    """
    chosen = VideoCrafterOptions(**options)
    if chosen.adapter is not None and not Path(chosen.adapter).exists():
        chosen = chosen.model_copy(update={"adapter": str(find_file(chosen.adapter))})
    # What is trained whole keeps full precision.
    parts = load_parts(chosen.model, torch.float32 if chosen.train_all else getattr(torch, chosen.dtype))
    parts["tokenizer"] = _load_tokenizer(chosen.tokenizer, parts["text"].config.vocab_size)
    return FamilyGenerator(VideoCrafter(parts, chosen), chosen)


def _load_tokenizer(name: str, words: int) -> Any:
    """CLIP's tokenizer; transformers 5 makes one without words of a folder that has none, so they are counted."""
    try:
        tokenizer = CLIPTokenizer.from_pretrained(resolve_model(name))
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"generator.tokenizer is CLIP's; none could be loaded from {name!r}: {reason}") from error
    if len(tokenizer) != words:
        raise ModelError(f"generator.tokenizer is CLIP's, of {words} words; the one in {name!r} has {len(tokenizer)}")
    return tokenizer
