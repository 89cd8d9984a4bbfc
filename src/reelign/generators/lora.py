"""LoRA adapters through PEFT (Hu et al. 2022): added to a frozen network, switched, folded in, saved and loaded.

The adapter starts as the identity: its up matrix is zero, so at step 0 the generator is exactly the base.

Two layouts of files: ``diffusers``, which ``pipe.load_lora_weights`` reads, and ``peft``, which
``peft.PeftModel.from_pretrained(network, folder)`` reads, for networks that diffusers has no LoRA loader for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reelign.errors import ConfigError, ModelError
from reelign.generators.lora_import import has_unit_scale, published_options, published_state
from reelign.zoo.published import read_tensors

NAME = "reelign"
FILES = {"diffusers": "pytorch_lora_weights.safetensors", "peft": "adapter_model.safetensors"}
PEFT_CONFIG, PEFT_PREFIX = "adapter_config.json", "base_model.model."

LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d)

AdapterLayout = Literal["diffusers", "peft"]


class LoraOptions(BaseModel):
    """What the adapter is.

    Args:
        rank: r, the width of the bottleneck.
        alpha: the update is scaled by alpha / rank.
        targets: endings of the names of the layers that get one; ``every`` is all linear and convolutional layers.
        seed: of the down matrices' first values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(8, ge=1)
    alpha: float = Field(8.0, gt=0)
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    seed: int = 0


def add_adapter(network: nn.Module, options: LoraOptions) -> None:
    """Freeze ``network`` and add a float32 adapter to it.

    Raises:
        ConfigError: no layer matches the targets.
    """
    network.requires_grad_(False)
    targets = list(options.targets)
    if targets == ["every"]:
        targets = [name for name, module in network.named_modules() if isinstance(module, LAYERS)]
    config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        try:
            inject_adapter_in_model(config, network, adapter_name=NAME)
        except ValueError as error:
            raise ConfigError(f"LoRA targets must name layers of the network; got {targets[:4]}") from error
    for parameter in adapter_parameters(network).values():
        parameter.data = parameter.data.float()


@contextmanager
def merged(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, the adapters are folded into the weights: the same values up to round-off, with fewer operations.

    For passes without gradient. The weights themselves come back after, bit for bit; meanwhile there is a second copy
    of the adapted ones.
    """
    layers = [m for network in networks for m in network.modules() if isinstance(m, BaseTunerLayer)]
    active = [layer for layer in layers if not layer.disable_adapters]
    originals = [layer.get_base_layer().weight.data for layer in active]
    with torch.no_grad():
        for layer, original in zip(active, originals, strict=True):
            delta = layer.get_delta_weight(layer.active_adapters[0])
            layer.get_base_layer().weight.data = original + delta.to(original.dtype)
            layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, original in zip(active, originals, strict=True):
            layer.get_base_layer().weight.data = original
            layer._disable_adapters = False


@contextmanager
def switched_off(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, the adapters have no effect; after, they are as they were."""
    layers = [m for network in networks for m in network.modules() if isinstance(m, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def adapter_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name."""
    return {name: p for name, p in network.named_parameters() if "lora_" in name and f".{NAME}." in name}


def adapter_state(network: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights under PEFT's names."""
    state: dict[str, Tensor] = get_peft_model_state_dict(network, adapter_name=NAME)
    return state


def load_adapter_state(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Put weights under PEFT's names into the adapter, exactly.

    Raises:
        ModelError: the names or the rank do not fit this adapter.
    """
    expected = adapter_state(network)
    if set(expected) != set(state):
        odd = sorted(set(expected) ^ set(state))[:3]
        raise ModelError(f"the adapter in {source} does not fit this network and its LoRA targets: {', '.join(odd)}, …")
    if odd := [name for name, own in expected.items() if own.shape != state[name].shape]:
        ours, theirs = (list(part[odd[0]].shape) for part in (expected, state))
        raise ModelError(
            f"the adapter in {source} has another rank or network: {odd[0]} is {theirs} there and {ours} here; "
            "generator.lora.rank has to be the one it was trained with"
        )
    set_peft_model_state_dict(network, state, adapter_name=NAME)


def save_adapter(network: nn.Module, folder: Path, part: str, layout: AdapterLayout = "diffusers") -> None:
    """Write a network's adapter, with its settings, to ``folder``.

    Args:
        part: the network's name in its pipeline, for example ``transformer``; the prefix of diffusers' names.
        layout: of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    peft_config: Any = network.peft_config
    settings = {k: sorted(v) if isinstance(v, set) else v for k, v in peft_config[NAME].to_dict().items()}
    prefix = PEFT_PREFIX if layout == "peft" else f"{part}."
    state = {prefix + name: value.contiguous() for name, value in adapter_state(network).items()}
    metadata = {"format": "pt"}
    if layout == "peft":
        (folder / PEFT_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
    else:
        prefixed = {f"{part}.{key}": value for key, value in settings.items()}
        metadata["lora_adapter_metadata"] = json.dumps(prefixed, indent=2, sort_keys=True)
    save_file(state, folder / FILES[layout], metadata=metadata)


def adapter_options(folder: Path) -> dict[str, Any]:
    """Rank, alpha and targets of a saved adapter of either layout, from its own file; see ``LoraOptions``.

    Args:
        folder: or a file of weights alone, as VADER and InstructVideo publish; see ``lora_import``.

    Raises:
        ModelError: the folder holds no adapter with its settings, or the file no LoRA weights.
    """
    if folder.is_file():
        return published_options(read_tensors(str(folder)), str(folder))
    settings = adapter_settings(folder)
    return {"rank": settings["r"], "alpha": settings["lora_alpha"], "targets": tuple(settings["target_modules"])}


def adapter_settings(folder: Path) -> dict[str, Any]:
    """PEFT's settings of a saved adapter of either layout; raises as ``adapter_options``."""
    layout, file = adapter_file(folder)
    settings: dict[str, Any]
    if layout == "peft":
        settings = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
    else:
        with safe_open(file, "pt") as opened:
            metadata = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
        settings = {key.partition(".")[2]: value for key, value in metadata.items()}
    if "r" not in settings:
        raise ModelError(f"{file} does not say its rank and alpha, so it was not saved by reelign or diffusers")
    return settings


def adapter_file(folder: Path) -> tuple[str, Path]:
    """The layout of a saved adapter, and its file; raises ModelError where there is none."""
    found = [(layout, folder / name) for layout, name in FILES.items() if (folder / name).is_file()]
    if not found:
        raise ModelError(f"an adapter folder holds {' or '.join(FILES.values())}; {folder} does not")
    return found[0]


def load_adapter(network: nn.Module, folder: Path, part: str) -> None:
    """Put an adapter that ``save_adapter`` wrote, in either layout, into the network's own, bit for bit.

    Args:
        folder: or a file as another program wrote it; see ``lora_import``.

    Raises:
        ModelError: there is none in the folder, or it does not fit.
    """
    if folder.is_file():
        _load_published(network, str(folder))
        return
    layout, file = adapter_file(folder)
    prefix = PEFT_PREFIX if layout == "peft" else f"{part}."
    load_adapter_state(network, {k.removeprefix(prefix): v for k, v in load_file(file).items()}, str(folder))


def _load_published(network: nn.Module, file: str) -> None:
    content = read_tensors(file)
    config: Any = network.peft_config
    rank, alpha = config[NAME].r, config[NAME].lora_alpha
    if has_unit_scale(content) and rank != alpha:
        raise ModelError(
            f"the adapter in {file} was trained with alpha / rank = 1; set generator.lora.alpha to the rank, {rank}, "
            f"not {alpha:g}"
        )
    load_adapter_state(network, published_state(content, adapter_state(network), file), file)
