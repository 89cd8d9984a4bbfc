"""Other projects' training steps, restated in our words on the same Wan networks, to compare ``reelign`` with.

Each keeps what its authors do in one step, from prompts to a loss; no code is theirs:

- VADER (mihirp1998/VADER, VideoCrafter2 variant): guidance in two passes, a loop over all parameters before every step
  that sets ``requires_grad``, every step inside ``save_on_cpu``, reward weights that take gradients.
- InstructVideo (ali-vilab/VGen): guidance in two passes, gradient steps as non-reentrant checkpoints, the whole clip
  decoded with gradient, one frame of each of four segments scored, weighted towards the middle; reward not frozen.
- VideoX-Fun (aigc-apps/VideoX-Fun 804a425, scripts/wan2.1/train_reward_lora.py): guidance in one batch, a graph for
  every step, detached where a step should carry no gradient (which frees it at once), the first latents decoded.

All encode their text anew in every step, generator's and reward's. What they do besides a step (their samplers,
autocast, logging) is left out; the sampler is the pipeline's first-order one, so the gradient can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from diffusers import WanPipeline
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from reelign.diagnosis import WanGrid
from reelign.generators.wan import WanGenerator
from reelign.generators.wan_vae import decode_frames
from reelign.rewards.clip_similarity import ClipSimilarity

SEGMENTS = 4
SPREAD = 1.0  # λ of InstructVideo's temporal weights


class Baseline:
    """What the restated steps share.

    Args:
        generator: only its networks and its adapter are used.
        reward: only its network, tokenizer and preprocessing are used.
        prompts: B sentences.
        noise: [B,C,F,h,w].
        steps: of the chain.
        scale: guidance.
    """

    def __init__(
        self,
        generator: WanGenerator,
        reward: ClipSimilarity,
        prompts: tuple[str, ...],
        noise: Tensor,
        steps: int,
        scale: float,
    ) -> None:
        self.pipeline: WanPipeline = generator.pipeline
        self.network: nn.Module = generator.pipeline.transformer
        self.dtype: torch.dtype = getattr(torch, generator.options.dtype)
        self.text_length = generator.text_length
        self.statistics = generator._latent_statistics(noise)
        self.scheduler = WanGrid(shift=generator.path.shift)  # one grid for all
        self.reward = reward
        self.prompts = prompts
        self.noise = noise
        self.steps = steps
        self.scale = scale

    def texts(self) -> tuple[Tensor, Tensor]:
        """Text states [B,L,D] of no prompt and of the prompts."""
        with torch.no_grad():
            negative, positive = (
                self.pipeline.encode_prompt(
                    list(prompts), do_classifier_free_guidance=False, max_sequence_length=self.text_length,
                    device=self.noise.device,
                )[0]
                for prompts in ([""] * len(self.prompts), self.prompts)
            )  # fmt: skip
        return negative, positive

    def predict(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """One pass of the network."""
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output: Tensor = self.network(x, t.expand(len(x)), text.to(x.dtype), return_dict=False)[0]
        return output.to(x.dtype)

    def guided_in_two_passes(self, x: Tensor, t: Tensor, texts: tuple[Tensor, Tensor]) -> Tensor:
        """Guidance, first without the prompt, then with it."""
        negative = self.predict(x, t, texts[0])
        positive = self.predict(x, t, texts[1])
        return negative + self.scale * (positive - negative)

    def denormalised(self, x: Tensor) -> Tensor:
        """Latents in the decoder's units."""
        mean, std = self.statistics
        return x * std + mean

    def scores(self, video: Tensor, weights: Tensor | None = None) -> Tensor:
        """Cosine of prompt and frames of [B,T,3,H,W], averaged over frames, [B]; the text is encoded here."""
        clip = self.reward.tower.model
        longest = clip.config.text_config.max_position_embeddings
        tokens = self.reward.tower.tokenizer(
            list(self.prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(video.device)
        text_BD = _unit(clip.get_text_features(tokens["input_ids"], tokens["attention_mask"]))
        pixels = self.reward.tower.preprocess(video)
        image_BTD = _unit(clip.get_image_features(pixels.flatten(0, 1))).view(*pixels.shape[:2], -1)
        cosine_BT = torch.einsum("btd,bd->bt", image_BTD, text_BD)
        return (cosine_BT if weights is None else cosine_BT * weights).mean(1)


class Vader(Baseline):
    """VADER with K = 1: the gradient of the last step, one decoded frame.

    Its decoder takes frames one by one; here the least causal prefix is decoded, which for frame 0 is one latent.

    Args:
        frame: which frame; the authors draw it.
        offload: the context of every step.
    """

    def __init__(self, *shared: object, frame: int = 0) -> None:
        super().__init__(*shared)  # type: ignore[arg-type]
        self.frame = frame
        self.offload: Callable[[], AbstractContextManager[object]] = save_on_cpu

    def loss(self) -> Tensor:
        """From prompts to the loss, with a graph."""
        texts, x = self.texts(), self.noise
        self.scheduler.set_timesteps(self.steps, device=x.device)
        for i, t in enumerate(self.scheduler.timesteps):
            self.allow_gradient(i >= self.steps - 1)
            with self.offload():
                output = self.guided_in_two_passes(x, t, texts)
                x = self.scheduler.step(output, t, x, return_dict=False)[0]
        video = decode_frames(self.pipeline.vae, self.denormalised(x), [self.frame])
        return -self.scores(video.transpose(1, 2) * 0.5 + 0.5).mean()

    def allow_gradient(self, allowed: bool) -> None:
        """Walk through all parameters: none may have gradient, or those of the adapter."""
        for name, parameter in self.network.named_parameters():
            if not allowed:
                parameter.requires_grad = False
            elif "lora" in name:
                parameter.requires_grad = True


class InstructVideo(Baseline):
    """InstructVideo with K = 1, the whole chain instead of its last 60 %, and each segment's middle frame."""

    def loss(self) -> Tensor:
        """From prompts to the loss, with a graph."""
        texts, x = self.texts(), self.noise
        self.scheduler.set_timesteps(self.steps, device=x.device)
        for i, t in enumerate(self.scheduler.timesteps):
            if i < self.steps - 1:
                with torch.no_grad():
                    output = self.guided_in_two_passes(x, t, texts)
            else:
                output = checkpoint(self.guided_in_two_passes, x, t, texts, use_reentrant=False)
            x = self.scheduler.step(output, t, x, return_dict=False)[0]
        video = self.pipeline.vae.decode(self.denormalised(x), return_dict=False)[0]
        video = (video.transpose(1, 2) * 0.5 + 0.5).clamp(0, 1)
        length = video.shape[1] // SEGMENTS
        chosen = [segment * length + length // 2 for segment in range(SEGMENTS)]
        middle = torch.tensor(chosen, device=video.device) - video.shape[1] / 2
        return 1 - self.scores(video[:, chosen], (-SPREAD * middle.abs()).exp()).mean()


class VideoXFun(Baseline):
    """VideoX-Fun's reward LoRA.

    Args:
        gradient_steps: how many steps of the tail carry gradient.
        latents: how many of the first latents are decoded.
    """

    def __init__(self, *shared: object, gradient_steps: int = 1, latents: int = 1) -> None:
        super().__init__(*shared)  # type: ignore[arg-type]
        self.gradient_steps = gradient_steps
        self.latents = latents

    def loss(self) -> Tensor:
        """From prompts to the loss, with a graph; a local name here lives as long as it does in the original."""
        text, latents = torch.cat(self.texts()), self.noise
        self.scheduler.set_timesteps(self.steps, device=latents.device)
        for i, t in enumerate(self.scheduler.timesteps):
            latent_model_input = torch.cat([latents] * 2)
            noise_pred = self.predict(latent_model_input, t, text)
            if i < self.steps - self.gradient_steps:
                noise_pred = noise_pred.detach()
            noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)
            noise_pred = noise_pred_uncond + self.scale * (noise_pred_text - noise_pred_uncond)
            latents = self.scheduler.step(noise_pred, t, latents, return_dict=False)[0]
        sampled = self.denormalised(latents)[:, :, : self.latents]
        frames = self.pipeline.vae.decode(sampled, return_dict=False)[0].clamp(-1, 1)
        frames = (frames / 2 + 0.5).clamp(0, 1)
        return (1 - self.scores(frames.transpose(1, 2))).abs().mean()


def _unit(output: object) -> Tensor:
    features = output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]
    return F.normalize(features, dim=-1)
