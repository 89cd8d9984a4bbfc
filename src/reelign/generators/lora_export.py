"""Saved adapters in the layouts of other tools: diffusers, PEFT, and ComfyUI.

ComfyUI's files name the layers of the official checkpoints, after ``diffusion_model.``; here for Wan, whose names
differ from diffusers', for LTX-Video, whose names are the same, and for HunyuanVideo, whose queries, keys and values
are one layer (``lora_fused``). The scale alpha / rank is folded into the up matrices, so that tools which overlook
alpha agree.

Left out: ComfyUI's layout for CogVideoX, whose own model there is still changing (its wrapper reads diffusers' layout),
and for families that it has no model of.

Run: ``reelign export FOLDER --out cat.safetensors --layout comfyui --kind wan``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

from safetensors.torch import load_file, save_file
from torch import Tensor

from reelign.errors import ConfigError, ModelError
from reelign.generators.lora import FILES, PEFT_CONFIG, PEFT_PREFIX, adapter_file, adapter_settings
from reelign.generators.lora_fused import official_hunyuan
from reelign.generators.wan_layout import to_official

ExportLayout = Literal["diffusers", "peft", "comfyui"]
COMFYUI = "diffusion_model."
COMFYUI_KINDS = ("wan", "wan_image", "causal_wan", "ltx", "hunyuan_video")
IMAGE_LAYERS = {"add_k_proj": "k_img", "add_v_proj": "v_img"}  # of Wan image-to-video, in the official names


def export_adapter(folder: Path, out: Path, layout: ExportLayout, kind: str = "wan", part: str = "transformer") -> None:
    """Write a saved adapter in another layout.

    Args:
        folder: of the adapter, as ``save`` or ``train`` wrote it; of two experts, each has a folder of its own.
        out: a folder, or for ``comfyui`` a file that ends in ``.safetensors``.
        layout: to write.
        kind: of the generator, for ``comfyui``, whose names differ from family to family.
        part: the network's name in its pipeline, for ``diffusers``: ``transformer`` or ``unet``.

    Raises:
        ModelError: there is no adapter in the folder.
        ConfigError: an unknown layout, or a kind that ComfyUI's layout is not known of.
    """
    if layout not in get_args(ExportLayout):
        raise ConfigError(f"adapters are exported as {', '.join(get_args(ExportLayout))}; got {layout!r}")
    state, settings = read_adapter(folder), adapter_settings(folder)
    if layout == "comfyui":
        if out.suffix != ".safetensors":
            raise ConfigError(f"ComfyUI reads a file that ends in .safetensors; got {out.name!r}")
        scale = float(settings["lora_alpha"]) / int(settings["r"])
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file(comfyui_names(state, kind, scale), out)
        return
    out.mkdir(parents=True, exist_ok=True)
    if layout == "peft":
        (out / PEFT_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
        save_file({PEFT_PREFIX + name: value for name, value in state.items()}, out / FILES["peft"])
        return
    prefixed = {f"{part}.{key}": value for key, value in settings.items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(prefixed, indent=2, sort_keys=True)}
    save_file({f"{part}.{name}": value for name, value in state.items()}, out / FILES["diffusers"], metadata)


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The weights of a saved adapter, by the names of layers in diffusers' networks; raises ModelError without one."""
    layout, file = adapter_file(folder)
    state = load_file(file)
    if layout == "peft":
        return {name.removeprefix(PEFT_PREFIX): value for name, value in state.items()}
    parts = {name.partition(".")[0] for name in state}
    if len(parts) != 1:
        raise ModelError(f"an adapter is of one network; {file} is of {', '.join(sorted(parts))}")
    return {name.partition(".")[2]: value for name, value in state.items()}


def comfyui_names(state: dict[str, Tensor], kind: str, scale: float) -> dict[str, Tensor]:
    """An adapter under ComfyUI's names, ``scale`` folded into its up matrices.

    Args:
        state: ``LAYER.lora_A.weight`` [r,in] and ``LAYER.lora_B.weight`` [out,r], in diffusers' names.
        kind: of the generator.
        scale: alpha / rank.
    """
    if kind not in COMFYUI_KINDS:
        raise ConfigError(
            f"ComfyUI's layout is known for {', '.join(COMFYUI_KINDS)}; got {kind!r}: --layout diffusers writes what "
            "ComfyUI's wrappers of other families read"
        )
    named: dict[str, Tensor] = {}
    for name, value in (official_hunyuan(state) if kind == "hunyuan_video" else state).items():
        layer, _, matrix = name.partition(".lora_")
        official = layer if kind in ("ltx", "hunyuan_video") else _official_wan(layer)
        named[f"{COMFYUI}{official}.lora_{matrix}"] = (value * scale if matrix.startswith("B") else value).contiguous()
    return named


def _official_wan(layer: str) -> str:
    """The official name of a layer of a Wan transformer; raises ModelError for others."""
    head, _, last = layer.rpartition(".")
    if last in IMAGE_LAYERS:
        return f"{head.replace('attn2', 'cross_attn')}.{IMAGE_LAYERS[last]}"
    return next(iter(to_official({f"{layer}.weight": Tensor()}))).removesuffix(".weight")
