"""The words every part of reelign speaks: requests, clips, generators, rewards, algorithms.

These are protocols, not base classes: anything with the right methods is a generator or a reward. This module needs
torch and nothing else of the package but its errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from reelign.errors import ContractError, DataError

Prediction = Literal["epsilon", "v", "flow", "x0"]


@dataclass(frozen=True)
class Request:
    """What a generator is asked for.

    Args:
        prompts: B non-empty sentences.
        source_videos: optional [B,T,C,H,W] in [0,1], for editing and translation.
        first_frames: optional [B,C,H,W] in [0,1], for image-to-video.
    """

    prompts: tuple[str, ...]
    source_videos: Tensor | None = None
    first_frames: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise DataError("a request needs at least one prompt; got none")
        if blank := [number for number, prompt in enumerate(self.prompts, 1) if not prompt.strip()]:
            raise DataError(f"a prompt says what to show; number {blank[0]} of {len(self.prompts)} is empty")
        for extra in (self.source_videos, self.first_frames):
            if extra is not None and len(extra) != len(self.prompts):
                raise DataError(f"one source per prompt: {len(self.prompts)} prompts, {len(extra)} sources")

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> Request:
        return Request(
            self.prompts[rows],
            None if self.source_videos is None else self.source_videos[rows],
            None if self.first_frames is None else self.first_frames[rows],
        )

    def split(self, size: int) -> Iterator[Request]:
        """Consecutive parts of at most ``size`` prompts."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def repeat(self, n: int) -> Request:
        """Each prompt ``n`` times, in contiguous groups."""
        return replace(
            self,
            prompts=tuple(p for p in self.prompts for _ in range(n)),
            source_videos=None if self.source_videos is None else self.source_videos.repeat_interleave(n, 0),
            first_frames=None if self.first_frames is None else self.first_frames.repeat_interleave(n, 0),
        )


@dataclass(frozen=True)
class VideoBatch:
    """Clips, checked once, at birth.

    Args:
        video: float32 [B,T,3,H,W] in [0,1]; may carry gradient.
        fps: frames per second of ``video`` as it is here (after any choice of frames), above zero.
        request: what these clips answer; B prompts.
        frame_weights: [T], how much each frame counts for rewards of images; None is 1 for all.
    """

    video: Tensor
    fps: float
    request: Request
    frame_weights: Tensor | None = None

    def __post_init__(self) -> None:
        if self.video.ndim != 5 or self.video.shape[2] != 3:
            raise ContractError(f"a video batch is [B,T,3,H,W]; got shape {tuple(self.video.shape)}")
        if self.video.dtype != torch.float32:
            raise ContractError(f"a video batch is float32 in [0,1]; got {self.video.dtype}")
        if len(self.video) != len(self.request):
            raise ContractError(f"{len(self.video)} clips answer {len(self.request)} prompts; the counts must be equal")
        if self.frame_weights is not None and self.frame_weights.shape != (self.video.shape[1],):
            raise ContractError(
                f"one weight a frame: {self.video.shape[1]} frames, weights of shape {tuple(self.frame_weights.shape)}"
            )
        if not self.fps > 0:
            raise ContractError(f"frames per second are above 0; got {self.fps}")
        low, high = (bound.item() for bound in torch.aminmax(self.video.detach()))
        if not (low >= -1e-4 and high <= 1 + 1e-4):
            raise ContractError(f"video values lie in [0,1]; got [{low:.4g}, {high:.4g}] (NaN counts as outside)")

    def __len__(self) -> int:
        return len(self.video)


@dataclass(frozen=True)
class Condition:
    """What a generator made of a request; only the generator looks inside.

    Args:
        positive: named tensors, batch first.
        negative: the same names for the negative prompt, or None where guidance is not possible.
        guidance: broadcastable to one latent, how much of the guidance each of its places gets: w there is
            1 + guidance·(w − 1). None is 1 everywhere. Stable Video Diffusion raises it from 0 to 1 over the frames.
    """

    positive: dict[str, Tensor]
    negative: dict[str, Tensor] | None = None
    guidance: Tensor | None = None

    def both(self) -> Condition:
        """Negative then positive as one batch of 2B, for guidance in a single pass."""
        if self.negative is None:
            raise ContractError(
                "guidance above 1 needs a negative prompt, and this generator's condition has none: set the guidance "
                "scale to 1, or a negative prompt"
            )
        joined = {name: torch.cat([self.negative[name], value]) for name, value in self.positive.items()}
        return Condition(joined)

    def __getitem__(self, rows: slice) -> Condition:
        def cut(part: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value[rows] for name, value in part.items()}

        return Condition(cut(self.positive), None if self.negative is None else cut(self.negative), self.guidance)


@dataclass(frozen=True)
class Schedule:
    """The points of one sampling chain of S steps, from noise to data, with x_t = α_t·x_0 + σ_t·ε.

    Args:
        t: [S], the time given to the network at each step.
        alpha: [S+1], signal level before each step and after the last.
        sigma: [S+1], noise level, likewise.
        ancestral: [S], σ_{s|t}, the fresh noise a step adds at η = 1.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    ancestral: Tensor

    def __len__(self) -> int:
        return len(self.t)

    def to(self, x: Tensor) -> Schedule:
        """The same schedule on the device of ``x``, in float32, or float64 where ``x`` is."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return Schedule(*(part.to(x.device, dtype) for part in (self.t, self.alpha, self.sigma, self.ancestral)))


class NoisePath(Protocol):
    """How a family of models goes from data to noise; see ``reelign.paths``."""

    @property
    def prediction(self) -> Prediction:
        """What the network predicts."""
        ...

    def schedule(self, steps: int) -> Schedule:
        """The chain of ``steps`` steps that the family samples with."""
        ...


@runtime_checkable
class Generator(Protocol):
    """Turns requests into clips, and can be trained."""

    fps: float

    @property
    def path(self) -> NoisePath:
        """The noise path that the network was trained on."""
        ...

    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent without its batch axis."""
        ...

    def frames(self) -> int:
        """Frames of a decoded clip."""
        ...

    def encode(self, request: Request) -> Condition:
        """Text (and images) to a condition; no gradient."""
        ...

    def predict(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Raw network output for x [B,…] at time t, one for all or [B], for the positive part of ``condition``."""
        ...

    def decode(self, x: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        """Latents to float32 [B,T',3,H,W] in [0,1]; only the asked frames, in the asked order."""
        ...

    def encode_video(self, video: Tensor) -> Tensor:
        """Clips [B,T,3,H,W] in [0,1] to latents; no gradient."""
        ...

    def trainable(self) -> dict[str, nn.Parameter]:
        """Every parameter that training may change, by name."""
        ...

    def merged(self) -> AbstractContextManager[None]:
        """A context for passes without gradient: the adapter may be folded into the weights, values stay."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """A context in which the adapter is off and the generator is the one training started from."""
        ...

    def save(self, folder: str) -> None:
        """Write what was trained to ``folder``, in the format the field loads."""
        ...

    def load(self, folder: str) -> None:
        """Read back what ``save`` wrote, bit for bit."""
        ...


@runtime_checkable
class ContinuingGenerator(Generator, Protocol):
    """Makes a long clip as several that follow one another, their latents side by side along the frames."""

    clips: int

    def continued(self, x: Tensor, condition: Condition) -> Condition:
        """The condition of the clip that follows the clip of latents x [B,C,F,…]; no gradient."""
        ...


@runtime_checkable
class CausalGenerator(Generator, Protocol):
    """Makes a clip block after block, and can go on for ever. Memory is a value: what comes back is another one."""

    @property
    def fresh_noise(self) -> bool:
        """Whether each step of a block draws new noise (few-step students), or keeps what it estimated (teachers)."""
        ...

    def blocks(self, frames: int, start: int = 0) -> list[int]:
        """Sizes of the blocks, in latent frames, that ``frames`` frames from frame ``start`` divide into."""
        ...

    def begin(self, condition: Condition, frame: int = 0) -> Any:
        """The memory before frame ``frame``, with the text taken in once; no gradient."""
        ...

    def advance(self, x: Tensor, t: Tensor, condition: Condition, memory: Any) -> tuple[Tensor, Any]:
        """Raw output for the block x [B,C,f,h,w] that follows what ``memory`` holds, and the memory with it."""
        ...

    def advance_after(
        self, x: Tensor, t: Tensor, condition: Condition, memory: Any, clean: Tensor, clean_t: Tensor
    ) -> tuple[Tensor, Any]:
        """Two passes in one, no gradient: raw output for x after ``clean``, and the memory with ``clean`` in it."""
        ...


@runtime_checkable
class Translator(Protocol):
    """Turns clips of one domain, x or y, into clips of the other, frame after frame; can be trained."""

    fps: float
    to: Literal["x", "y"]  # where ``sampling.generate`` takes source clips

    def frames(self) -> int:
        """Frames of the clips it is trained on; it translates any number."""
        ...

    def picture_size(self) -> tuple[int, int]:
        """Height and width of the clips it is trained on; it translates others."""
        ...

    def translate(self, video: Tensor, to: Literal["x", "y"], state: Any = None) -> tuple[Tensor, Any]:
        """Clips [B,T,3,H,W] in [0,1] to as many of the domain ``to``, and the state with which they go on.

        State is a value: a clip in pieces, the state handed on, gives the frames of the clip as a whole.
        """
        ...

    def cycle(self, video: Tensor, domain: Literal["x", "y"]) -> tuple[Tensor, Tensor]:
        """Clips [B,T,3,H,W] of ``domain`` in the other domain, and those brought back."""
        ...

    def trainable(self) -> dict[str, nn.Parameter]:
        """Every parameter that training may change, by name."""
        ...

    def save(self, folder: str) -> None:
        """Write the weights and what is needed to load them to ``folder``."""
        ...

    def load(self, folder: str) -> None:
        """Read back what ``save`` wrote, bit for bit."""
        ...


@dataclass(frozen=True)
class RewardCard:
    """What a reward promises; ``reelign.rewards.card`` verifies it when the reward loads.

    Args:
        name: the name users type.
        summary: one sentence.
        range: least and largest value.
        frames: ``any``, or the number of frames the model was trained on.
        resolution: height and width it resizes to, or None where it takes any.
        fps: rate it was trained at, or None where it does not matter.
        differentiable: whether gradient reaches the pixels.
        needs_prompt: whether the score depends on the prompt.
        licence: of the weights.
        source: where the weights and the definition come from.
        golden: score of the golden clip (see ``card.py``), or None where there is none yet.
    """

    name: str
    summary: str
    range: tuple[float, float]
    frames: int | Literal["any"] = "any"
    resolution: tuple[int, int] | None = None
    fps: float | None = None
    differentiable: bool = True
    needs_prompt: bool = False
    licence: str = "Apache-2.0"
    source: str = "reelign"
    golden: float | None = None


@runtime_checkable
class Reward(Protocol):
    """Scores clips: higher is better, one float32 per clip, differentiable where its card says so."""

    card: RewardCard

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B] of the clips."""
        ...


@runtime_checkable
class TrainableReward(Reward, Protocol):
    """A reward that can be fitted, for example a discriminator."""

    def fit(self, better: VideoBatch, worse: VideoBatch) -> dict[str, float]:
        """One update from clips that should score higher and clips that should score lower."""
        ...

    def state(self) -> dict[str, Any]:
        """Named parts to save."""
        ...


@runtime_checkable
class Algorithm(Protocol):
    """One training method; every phase and optimiser of a step lives inside."""

    def step(self, request: Request) -> dict[str, float]:
        """One update from these prompts; returns what to log."""
        ...

    def state(self) -> dict[str, Any]:
        """Named parts that, given back to ``restore``, continue bit for bit: optimisers, random state, averages."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` gave."""
        ...
