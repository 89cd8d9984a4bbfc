"""ModelScope text-to-video (Wang et al. 2023) and its relatives: ``damo-vilab/text-to-video-ms-1.7b``, Zeroscope.

The base of InstructVideo and of VADER's first experiments: a 3-D U-Net that predicts ε, a picture autoencoder, CLIP.
Frames are decoded one by one, so only chosen frames cost anything. The chain is DDIM on the grid 1 + k·(1000 // S),
as InstructVideo samples.

Adapters are saved in PEFT's own layout, which ``peft.PeftModel.from_pretrained(unet, folder)`` loads: diffusers has no
LoRA loader for this U-Net.

Left out: training of the text encoder (in VADER's program it never trained: its embeddings had no gradient).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModel, CLIPTokenizer

from reelign.contracts import Condition, Request
from reelign.errors import ConfigError, ContractError, DataError, ModelError
from reelign.generators.family import pick_device
from reelign.generators.lora import LoraOptions, merged
from reelign.paths import DiscretePath
from reelign.zoo.models import resolve_model
from reelign.zoo.skeletons import open_component

WEIGHTS = "adapter_model.safetensors"


class ModelScopeOptions(BaseModel):
    """Which model, at what size, with what adapter.

    Args:
        kind: always ``modelscope``.
        model: a folder or hub id in the layout of diffusers' ``TextToVideoSDPipeline``.
        height, width, frames, fps: of clips; 256×256, 16 frames, 8 a second are what it was trained on.
        negative_prompt: what guidance moves away from.
        dtype: of the U-Net's arithmetic; the adapter stays in float32.
        lora: the adapter; None leaves the generator as it is, to sample from.
        adapter: folder of a saved adapter of this very rank to go on from.
        gradient_checkpointing: recompute the U-Net's blocks in the backward pass.
        decode_chunk: frames decoded at a time; with gradient each chunk is recomputed in the backward pass. 0 is all.
        device: ``auto`` is cuda where there is one, else cpu.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["modelscope"] = "modelscope"
    model: str
    height: int = Field(256, ge=16)
    width: int = Field(256, ge=16)
    frames: int = Field(16, ge=1)
    fps: float = Field(8.0, gt=0)
    negative_prompt: str = ""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    lora: LoraOptions | None = LoraOptions(rank=4, alpha=4)
    adapter: str | None = None
    gradient_checkpointing: bool = False
    decode_chunk: int = Field(0, ge=0)
    device: str = "auto"


class ModelScopeGenerator:
    """A generator (see ``contracts.Generator``) around the parts of a ``TextToVideoSDPipeline``."""

    def __init__(self, parts: dict[str, Any], options: ModelScopeOptions) -> None:
        self.options = options
        self.unet, self.vae, self.text_encoder = parts["unet"], parts["vae"], parts["text_encoder"]
        self.tokenizer = parts["tokenizer"]
        scheduler = parts["scheduler"]
        self.path = DiscretePath(scheduler.alphas_cumprod.double(), prediction_of(scheduler.config))
        self.fps = options.fps
        self.default_steps, self.default_guidance_scale = 50, 9.0
        self.device = torch.device(pick_device(options.device))
        self._dtype = getattr(torch, options.dtype)
        self._ratio = 2 ** (len(self.vae.config.block_out_channels) - 1)
        multiple = self._ratio * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if options.height % multiple or options.width % multiple:
            raise ConfigError(
                f"height and width must be multiples of {multiple} for this model; got {options.height}x{options.width}"
            )
        for module in (self.unet, self.vae, self.text_encoder):
            module.eval().requires_grad_(False).to(self.device)
        if options.gradient_checkpointing and not self.unet._supports_gradient_checkpointing:
            raise ConfigError(
                "diffusers cannot recompute this U-Net's blocks; set generator.gradient_checkpointing to false"
            )
        if options.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.adapter = add_adapter(self.unet, options.lora) if options.lora else None
        self._texts: dict[str, Tensor] = {}

    def latent_shape(self) -> tuple[int, ...]:
        """[C,F,h,w] of one clip."""
        o = self.options
        return (self.unet.config.in_channels, o.frames, o.height // self._ratio, o.width // self._ratio)

    def frames(self) -> int:
        """Frames of a decoded clip."""
        return self.options.frames

    def picture_size(self) -> tuple[int, int]:
        """Height and width of a decoded clip in pixels."""
        return self.options.height, self.options.width

    def parameter_count(self) -> int:
        """Parameters of the U-Net, adapter included."""
        return sum(p.numel() for p in self.unet.parameters())

    @torch.no_grad()
    def encode(self, request: Request) -> Condition:
        """Text states [B,L,D] of the prompts and of the negative prompt; each text is encoded once and kept."""
        for text in dict.fromkeys((self.options.negative_prompt, *request.prompts)):
            if text not in self._texts:
                tokens = self.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt")
                states = self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state
                self._texts[text] = states[0].float().cpu()
        negative = self._texts[self.options.negative_prompt].expand(len(request), -1, -1)
        positive = torch.stack([self._texts[text] for text in request.prompts])
        return Condition({"text": positive.to(self.device)}, {"text": negative.to(self.device)})

    def predict(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """ε (or what the scheduler's config says) for latents x [B,C,F,h,w] at t in [0,999], one for all or [B]."""
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            text = condition.positive["text"].to(x.dtype)
            output: Tensor = self.unet(x, t.to(self.device), text, return_dict=False)[0]
        return output

    def decode(self, x: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """Latents to float32 [B,T',3,H,W] in [0,1]; decodes the asked frames and no other."""
        if frames is not None and not (frames and all(0 <= f < x.shape[2] for f in frames)):
            raise DataError(f"frames of this clip run from 0 to {x.shape[2] - 1}; got {list(frames)}")
        chosen = x if frames is None else x[:, :, list(frames)]
        z = (chosen / self.vae.config.scaling_factor).transpose(1, 2).flatten(0, 1).to(self.vae.dtype)
        chunks = torch.split(z, self.options.decode_chunk or len(z))
        pictures = torch.cat([self._decode(chunk) for chunk in chunks]).float()
        video: Tensor = (pictures * 0.5 + 0.5).clamp(0, 1)
        return video.view(len(x), chosen.shape[2], *video.shape[1:])

    def _decode(self, z: Tensor) -> Tensor:
        if self.options.decode_chunk and torch.is_grad_enabled() and z.requires_grad:
            pictures: Tensor = checkpoint(self._decode_now, z, use_reentrant=False)
            return pictures
        return self._decode_now(z)

    def _decode_now(self, z: Tensor) -> Tensor:
        pictures: Tensor = self.vae.decode(z, return_dict=False)[0]
        return pictures

    @torch.no_grad()
    def encode_video(self, video: Tensor) -> Tensor:
        """Clips [B,T,3,H,W] in [0,1] to latents [B,C,T,h,w], by the mode of the posterior."""
        pixels = (video.flatten(0, 1) * 2 - 1).to(self.device, self.vae.dtype)
        chunks = torch.split(pixels, self.options.decode_chunk or len(pixels))
        latents = torch.cat([self.vae.encode(chunk).latent_dist.mode() for chunk in chunks])
        z: Tensor = latents.float() * self.vae.config.scaling_factor
        return z.view(*video.shape[:2], *z.shape[1:]).transpose(1, 2)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters."""
        if self.adapter is None:
            return {}
        return {name: p for name, p in self.unet.named_parameters() if "lora_" in name}

    def merged(self) -> AbstractContextManager[None]:
        """Inside, for passes without gradient in float32, the adapter is folded into the weights."""
        return merged([self.unet]) if self.adapter is not None and self._dtype == torch.float32 else nullcontext()

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Switch the adapter off: inside, this is the generator that training started from."""
        if self.adapter is None:
            raise ContractError("without an adapter there is no reference generator: set generator.lora")
        with self.adapter.disable_adapter():
            yield

    def save(self, folder: str) -> None:
        """Write the adapter in PEFT's layout."""
        if self.adapter is None:
            raise ContractError("there is no adapter to save: set generator.lora")
        self.adapter.save_pretrained(folder)

    def load(self, folder: str) -> None:
        """Read back what ``save`` wrote."""
        file = Path(folder) / WEIGHTS
        if self.adapter is None or not file.is_file():
            raise ModelError(f"an adapter folder holds {WEIGHTS}, and the generator an adapter; {folder} does not fit")
        state = load_file(file)
        expected = get_peft_model_state_dict(self.adapter)
        if odd := sorted(set(expected) ^ set(state)):
            raise ModelError(f"the adapter in {folder} does not fit this network: {', '.join(odd[:3])}, …")
        set_peft_model_state_dict(self.adapter, state)


def add_adapter(unet: nn.Module, options: LoraOptions) -> PeftModel:
    """Put a float32 adapter into the U-Net, and return it as PEFT's model.

    Raises:
        ConfigError: no layer matches the targets.
    """
    config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=list(options.targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        try:
            adapter = PeftModel(unet, config)
        except ValueError as error:
            raise ConfigError(f"LoRA targets must name layers of the network; got {list(options.targets)}") from error
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return adapter


def prediction_of(scheduler: Any) -> Literal["epsilon", "v"]:
    """What the network predicts, from a scheduler's config.

    Raises:
        ModelError: neither ε nor v.
    """
    kinds: dict[str, Literal["epsilon", "v"]] = {"epsilon": "epsilon", "v_prediction": "v"}
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in kinds:
        raise ModelError(f"this U-Net should predict epsilon or v_prediction; the scheduler's config says {kind!r}")
    return kinds[kind]


def load_modelscope(**options: Any) -> ModelScopeGenerator:
    """Load a ModelScope generator; keyword arguments are those of ``ModelScopeOptions``.

    Raises:
        ModelError: the folder or hub id does not hold the parts of a ``TextToVideoSDPipeline``.
    """
    chosen = ModelScopeOptions(**options)
    source, dtype = resolve_model(chosen.model), getattr(torch, chosen.dtype)
    try:
        parts = {
            "unet": open_component(UNet3DConditionModel, source, "unet", torch_dtype=dtype),
            "vae": open_component(AutoencoderKL, source, "vae", torch_dtype=torch.float32),
            "text_encoder": open_component(CLIPTextModel, source, "text_encoder", dtype=torch.float32),
            "tokenizer": open_component(CLIPTokenizer, source, "tokenizer"),
            "scheduler": open_component(DDIMScheduler, source, "scheduler"),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"no ModelScope text-to-video could be loaded from {chosen.model!r}: {reason}") from error
    generator = ModelScopeGenerator(parts, chosen)
    if chosen.adapter is not None:
        generator.load(chosen.adapter)
    return generator
