r"""ODE initialisation: a causal few-step student learns where its teacher's trajectories end (CausVid).

The bidirectional teacher turns noise x_1 into a clip x_0 by its probability-flow ODE, in many guided Euler steps. The
states at the student's few levels σ_0 = 1 > σ_1 > … > σ_{S−1} > σ_S = 0 are kept. The student gets a mixture of them,
each block b at a level k_b of its own, and regresses the end (Yin et al. 2025, section 4.3):

    minimise  E_{c, x_1, k} [ mean_{b: k_b < S} ‖ x̂_0(x^k, t_k, c)_b − x_0^b ‖² ],     x^k_b = block b of x at σ_{k_b}

k is uniform on 0 … S: a block at S is clean, as the past of a rollout is, and is not in the loss. ``past=clean`` shows
every block the clean ones before it instead, as a rollout does (teacher forcing).

The teacher's chain is the student's own path in S·n steps. Its grid, equal parts of the unshifted level from 1 to 0,
contains the student's, so the chain passes through the student's levels exactly; with n = 12 and S = 4 these are the
states 0, 12, 24, 36 and 48 of the authors' 48 steps. (Their script also shifts teacher and student differently.)

Trajectories are drawn once for a prompt, all its seeds as one batch, and kept in half precision; a resumed run or a
second pass reads them. What is left of the teacher in a run that has them all is nothing: it is loaded when a
trajectory is missing.

Left out: clips as the beginning of trajectories, progressive schedules of levels.

Run: ``reelign train ode_init``.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from reelign.algorithms.causal_finetuning import TeacherForced
from reelign.contracts import Condition, Generator, Request, Schedule
from reelign.distributed import place
from reelign.errors import ConfigError
from reelign.generators.scores import load_score
from reelign.generators.wan import WanOptions
from reelign.objectives import per_frame, signal_and_noise
from reelign.optimisation import Optimisation, OptimiserName
from reelign.paths import endpoints
from reelign.sampling import ChainOptions, chain, seeded_noise
from reelign.video_io import replacing
from reelign.zoo.models import fingerprint

log = logging.getLogger(__name__)


class Config(BaseModel):
    """Settings of ODE initialisation.

    Args:
        steps: S, the student's steps, in training and in the sampling that evaluates.
        guidance_scale, eta: of the sampling that evaluates; the student has its teacher's guidance in it. eta is not
            used: each step draws new noise, as the generator's ``noise`` says.
        teacher: a Wan; None is the one that the generator is made of, before anything was put into it.
        teacher_steps: of its chain, a multiple of ``steps``.
        teacher_guidance_scale: w of its classifier-free guidance.
        seeds: trajectories of a prompt; this many are made as one batch.
        past: what a block sees before it: the other blocks as they are (``mixed``), or their clean ends (``clean``).
        pairs: folder where trajectories are kept; None is in the run folder. Runs with one teacher can share it.
        optimiser: ``adamw``, or ``adamw8bit``, whose moments take a quarter of the memory.
        lr, weight_decay, betas: of AdamW.
        max_grad_norm: gradients are scaled down to this joint norm.
        micro_batch: trajectories per forward and backward pass; 0 is all.
        average: decay of the moving average of weights that is evaluated and exported; 0 is off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(4, ge=1)
    guidance_scale: float = Field(1.0, ge=1)
    eta: float = Field(0.0, ge=0, le=1)
    teacher: WanOptions | None = None
    teacher_steps: int = Field(48, ge=1)
    teacher_guidance_scale: float = Field(3.0, ge=1)
    seeds: int = Field(8, ge=1)
    past: Literal["mixed", "clean"] = "mixed"
    pairs: str | None = None
    lr: float = Field(2e-4, gt=0)
    optimiser: OptimiserName = "adamw"
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = Field(1.0, gt=0)
    micro_batch: int = Field(0, ge=0)
    average: float = Field(0.0, ge=0, lt=1)


@torch.no_grad()
def trajectory(
    teacher: Generator, condition: Condition, noise: Tensor, schedule: Schedule, kept: int, guidance_scale: float
) -> Tensor:
    """The states of a teacher's chain at ``kept`` + 1 equally spaced points of its schedule: [B,kept+1,C,F,h,w].

    Args:
        noise: [B,C,F,h,w], the first state.
        schedule: of a multiple of ``kept`` steps.
    """
    states, size = [noise], len(schedule) // kept
    for start in range(0, len(schedule), size):
        part = section(schedule, start, start + size)
        states.append(chain(teacher, states[-1], condition, part, ChainOptions(guidance_scale)))
    return torch.stack(states, dim=1)


def section(schedule: Schedule, start: int, stop: int) -> Schedule:
    """The steps from ``start`` up to ``stop`` of a chain."""
    points = slice(start, stop + 1)
    return Schedule(
        schedule.t[start:stop], schedule.alpha[points], schedule.sigma[points], schedule.ancestral[start:stop]
    )


def mixed_states(states: Tensor, index: Tensor) -> Tensor:
    """One state a latent frame: [B,C,F,h,w] from states [B,S+1,C,F,h,w] and indices [B,F]."""
    wanted = index[:, None, None, :, None, None].expand(-1, 1, states.shape[2], -1, *states.shape[4:])
    return states.gather(1, wanted)[:, 0]


class Trajectories:
    """What a teacher makes of prompts, drawn when first asked for and kept: on disk where there is a folder.

    Args:
        draw: a prompt to states [seeds,S+1,C,F,h,w].
        label: everything but the prompt that these depend on.
        folder: where they are kept.
    """

    def __init__(self, draw: Callable[[str], Tensor], label: str, folder: Path | None) -> None:
        self.draw, self.label, self.folder = draw, label, folder
        self._known: dict[str, Tensor] = {}

    def states(self, prompt: str, seed: int) -> Tensor:
        """One trajectory, float32 [S+1,C,F,h,w], as it is read back from half precision."""
        key = hashlib.sha256(f"{self.label}\n{prompt}".encode()).hexdigest()[:32]
        if self.folder is None:
            if key not in self._known:
                self._known[key] = self._drawn(prompt)
            return self._known[key][seed].float()
        path = self.folder / f"trajectories_{key}.safetensors"
        if not path.is_file():
            with replacing(path) as part:
                save_file({"states": self._drawn(prompt)}, part)
        with safe_open(path, "pt") as file:
            states: Tensor = file.get_slice("states")[seed]
        return states.float()

    def _drawn(self, prompt: str) -> Tensor:
        return self.draw(prompt).half().cpu().contiguous()


class OdeInit:
    """ODE initialisation as an ``Algorithm``. Requests carry prompts alone.

    Args:
        generator: the student; a causal one.
        config: settings.
        seed: of the choice of trajectories and levels.
        cache: folder for trajectories, where ``config.pairs`` names none.
        teacher: in place of the one that the settings name.

    Raises:
        ConfigError: the generator is not causal, or the teacher's steps do not pass through the student's levels.
    """

    def __init__(
        self,
        generator: Generator,
        config: Config,
        seed: int = 0,
        cache: Path | None = None,
        teacher: Generator | None = None,
    ) -> None:
        if not isinstance(generator, TeacherForced):
            raise ConfigError(
                f"ode_init trains a causal generator; got {type(generator).__name__}: set generator.kind to causal_wan"
            )
        self.generator = generator
        self.config = config
        self.levels = generator.path.schedule(config.steps)
        self.fine = fine_schedule(generator, config)
        self.sizes = generator.blocks(generator.latent_shape()[1])
        self._teacher = teacher
        folder = Path(config.pairs).expanduser() if config.pairs else cache
        self.trajectories = Trajectories(self._draw_trajectories, self._label(), folder)
        self.random = torch.Generator().manual_seed(seed)
        self.optimisation = Optimisation(
            generator.trainable(),
            config.lr,
            weight_decay=config.weight_decay,
            betas=config.betas,
            optimiser=config.optimiser,
            max_grad_norm=config.max_grad_norm,
            average=config.average,
        )
        self.parameters = self.optimisation.parameters

    def step(self, request: Request) -> dict[str, float]:
        """One update from one trajectory of each prompt; logs ``loss`` and ``gradient_norm``."""
        rows = len(request)
        total, mine = place(rows)
        chosen = torch.randint(self.config.seeds, (total,), generator=self.random)[mine].tolist()
        pairs = zip(request.prompts, chosen, strict=True)
        states = torch.stack([self.trajectories.states(prompt, seed) for prompt, seed in pairs])
        drawn = self._draw_levels(total)
        noisy = (drawn < self.config.steps).float()
        index, weight = drawn[mine], (noisy / noisy.mean())[mine]  # every noisy frame counts alike, in parts too

        def loss(part: slice) -> Tensor:
            return self.loss(request[part], states[part], index[part], weight[part])

        return self.optimisation.update(loss, rows, self.config.micro_batch)

    def _draw_levels(self, rows: int) -> Tensor:
        """Indices [rows,F] of the student's levels, one a block, S being the clean one; not all clean."""
        top = self.config.steps + (self.config.past == "mixed")
        while True:
            index = torch.randint(top, (rows, len(self.sizes)), generator=self.random)
            if (index < self.config.steps).any():
                return per_frame(index, self.sizes)

    def loss(self, request: Request, states: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """Mean weighted squared error of x̂_0.

        Args:
            request: B captions.
            states: [B,S+1,C,F,h,w] of their trajectories.
            index: [B,F], which state each frame is shown at.
            weight: [B,F], 0 where the frame is clean.
        """
        condition = self.generator.encode(request)
        place = next(iter(condition.positive.values())).device
        states, index, weight = states.to(place), index.to(place), weight.to(place)
        levels = self.levels.to(states)
        x, end = mixed_states(states, index), states[:, -1]
        t = torch.cat([levels.t, levels.t.new_zeros(1)])[index]
        if self.config.past == "clean":
            output = self.generator.predict_after(x, t, condition, end, torch.zeros_like(t))
        else:
            output = self.generator.predict(x, t, condition)
        alpha, sigma = signal_and_noise(levels, index)
        x0, _ = endpoints(self.generator.path.prediction, output.float(), x, alpha, sigma)
        return (weight[:, None, :, None, None] * (x0 - end).square()).mean()

    def _label(self) -> str:
        """What a trajectory depends on besides its prompt."""
        options = self.config.teacher or getattr(getattr(self.generator, "wan", None), "options", None)
        parts = {
            "teacher": None if options is None else (options.model, fingerprint(options.model), options.dtype),
            "negative_prompt": None if options is None else options.negative_prompt,
            "sigma": self.fine.sigma.tolist(),
            "kept": self.config.steps,
            "guidance": self.config.teacher_guidance_scale,
            "seeds": self.config.seeds,
            "shape": self.generator.latent_shape(),
        }
        return json.dumps(parts, sort_keys=True)

    def _draw_trajectories(self, prompt: str) -> Tensor:
        """All trajectories of a prompt, from noise that is this prompt's own."""
        if self._teacher is None:
            log.info("loading the teacher: some prompts have no trajectories yet")
            self._teacher = load_score(self.generator, self.config.teacher)
        first = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:6], "big")
        condition = self._teacher.encode(Request((prompt,) * self.config.seeds))
        device = next(iter(condition.positive.values())).device
        noise = seeded_noise(self._teacher.latent_shape(), range(first, first + self.config.seeds), device)
        return trajectory(
            self._teacher, condition, noise, self.fine, self.config.steps, self.config.teacher_guidance_scale
        )

    def exported(self) -> AbstractContextManager[None]:
        """A context in which the generator holds the averaged weights, where there are any."""
        return self.optimisation.exported()

    def lower_rate(self, factor: float) -> None:
        """Multiply the learning rate, for good."""
        self.optimisation.lower_rate(factor)

    def state(self) -> dict[str, Any]:
        """Weights, their average, optimiser and random state."""
        return self.optimisation.state() | {"random": self.random.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue, bit for bit, from what ``state`` gave."""
        self.optimisation.restore(state)
        self.random.set_state(state["random"])


def fine_schedule(generator: Generator, config: Config) -> Schedule:
    """The teacher's chain: the student's path in ``teacher_steps``, which passes through each level of the student.

    Raises:
        ConfigError: it does not.
    """
    coarse, fine = generator.path.schedule(config.steps), generator.path.schedule(config.teacher_steps)
    every = len(fine) // len(coarse)
    if len(fine) % len(coarse) or not torch.allclose(fine.sigma[::every], coarse.sigma):
        raise ConfigError(
            f"the teacher's chain passes through the student's levels: teacher_steps is a multiple of steps, "
            f"{config.steps}; got {config.teacher_steps}"
        )
    return fine
