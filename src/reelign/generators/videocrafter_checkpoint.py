"""VideoCrafter2's one published file, ``model.ckpt``: which of its weights are the U-Net's, the decoder's, the text's.

The layout is that of latent diffusion: ``model.diffusion_model.*``, ``first_stage_model.*`` (a KL autoencoder of single
pictures) and ``cond_stage_model.model.*`` (OpenCLIP's ViT-H/14 without its image half). Everything else in the file is
the noise schedule. No configuration comes with it; all sizes are read off the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from reelign.errors import ModelError
from reelign.generators.videocrafter_network import Sizes, VideoCrafterUNet, read_sizes
from reelign.paths import DiscretePath, falling_scale, scaled_linear_alphas
from reelign.zoo.open_clip import build_text
from reelign.zoo.published import depth, fill, find_file, read_shapes, read_weights
from reelign.zoo.skeletons import fake_network, hollow

FILE = "model.ckpt"
PARTS = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text": "cond_stage_model.model."}
LATENT_SCALE = 0.18215
WIDTHS = (128, 256, 512, 512)  # of the published autoencoder
TEXT = {"vocab_size": 49408, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
        "num_attention_heads": 16, "max_position_embeddings": 77}  # fmt: skip


def read_checkpoint(model: str) -> dict[str, dict[str, Tensor]]:
    """The weights of each part, as stored, without the part's prefix.

    Args:
        model: the file, a folder with ``model.ckpt`` in it, or ``VideoCrafter/VideoCrafter2:model.ckpt`` on the hub.

    Raises:
        ModelError: no such file, a part is missing, or the file's noise schedule is another model's.
    """
    place = Path(model).expanduser()
    file = str(place / FILE) if place.is_dir() else model
    weights = read_shapes(find_file(file)) if hollow() else read_weights(file, float32=False)
    _check_schedule(weights, model)
    parts = {
        part: {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        for part, prefix in PARTS.items()
    }
    for part, prefix in PARTS.items():
        if not parts[part]:
            raise ModelError(f"a VideoCrafter2 checkpoint holds weights {prefix}*; {model} has none")
    return parts


def load_parts(model: str, dtype: torch.dtype) -> dict[str, Any]:
    """``unet`` in ``dtype``, ``vae`` and ``text``; without weights, a file on the hub is taken to be the published one.

    Raises:
        ModelError: as ``read_checkpoint`` and the builders.
    """
    if hollow() and ":" in model and not Path(model).expanduser().exists():
        return {
            "unet": fake_network(lambda: VideoCrafterUNet(Sizes()), dtype),
            "vae": fake_network(lambda: _vae(WIDTHS, layers=2, latent=4)),
            "text": fake_network(lambda: CLIPTextModel(CLIPTextConfig(hidden_act="gelu", **TEXT))),
        }
    weights = read_checkpoint(model)  # each part leaves it as it is built: the whole takes 7 GB
    return {
        "text": build_text_encoder(weights.pop("text")),
        "unet": build_unet(weights.pop("unet"), model, dtype),
        "vae": build_vae(weights.pop("vae"), model),
    }


def noise_path() -> DiscretePath:
    """VideoCrafter2's: ε, Stable Diffusion's ᾱ, and a signal that is scaled down from 1 to 0.7 towards noise."""
    return DiscretePath(scaled_linear_alphas(), "epsilon", falling_scale())


def _check_schedule(weights: Mapping[str, Tensor], model: str) -> None:
    path = noise_path()
    assert path.scale is not None
    for name, ours in (("alphas_cumprod", path.alphas_cumprod), ("scale_arr", path.scale)):
        if name in weights and (
            weights[name].shape != ours.shape
            or not (hollow() or torch.allclose(weights[name].double(), ours, rtol=0, atol=1e-3))
        ):
            raise ModelError(f"{model} was trained on another noise schedule than VideoCrafter2's: its {name} differs")


def build_unet(weights: Mapping[str, Tensor], model: str, dtype: torch.dtype) -> VideoCrafterUNet:
    """The U-Net with its weights in ``dtype``, frozen.

    Raises:
        ModelError: the weights are not those of one.
    """
    sizes = read_sizes(weights, model)
    with torch.device("meta"):
        unet = VideoCrafterUNet(sizes)
    unet = unet.to(dtype).to_empty(device="cpu")
    fill(unet, weights, model)
    return unet


def build_vae(weights: Mapping[str, Tensor], model: str) -> AutoencoderKL:
    """The autoencoder as diffusers', in float32, frozen.

    Raises:
        ModelError: the weights are not those of a latent-diffusion autoencoder.
    """
    levels, latent = depth(weights, "encoder.down."), "post_quant_conv.weight"
    ends = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(levels)]
    if missing := [name for name in (latent, *ends) if name not in weights]:
        raise ModelError(f"a latent-diffusion autoencoder has {missing[0]}; that in {model} does not")
    widths = tuple(len(weights[name]) for name in ends)
    vae = _vae(widths, depth(weights, "encoder.down.0.block."), weights[latent].shape[1])
    plain = {name: value.float() for name, value in weights.items() if not name.startswith("loss.")}
    fill(vae, convert_ldm_vae_checkpoint(plain, vae.config), f"the autoencoder in {model}")
    return vae


def _vae(widths: tuple[int, ...], layers: int, latent: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        layers_per_block=layers,
        latent_channels=latent,
        scaling_factor=LATENT_SCALE,
    )


def build_text_encoder(weights: Mapping[str, Tensor]) -> CLIPTextModel:
    """OpenCLIP's text tower up to its last layer but one, in float32, frozen; states [B,77,1024] as published.

    Raises:
        ModelError: the weights are not those of one.
    """
    return build_text({name: value.float() for name, value in weights.items()})
