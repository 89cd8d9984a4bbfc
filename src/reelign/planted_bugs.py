"""``reelign doctor --bugs``: plants the silent bugs that this field is known for and shows each being caught.

Each case runs the real code on a deliberately broken part. A bug is caught when the code refuses it with an error, or
when the check that ``reelign doctor`` runs fails; what is reported is that message.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from reelign.algorithms.reward_gradient import Config, RewardGradient
from reelign.build import build_generator, build_reward
from reelign.contracts import Generator, RewardCard, VideoBatch
from reelign.diagnosis import Finding, adapter_has_no_effect, no_dropout_is_live
from reelign.distributed import require_synchronised
from reelign.errors import ReelignError
from reelign.rewards.brightness_range import BrightnessRange
from reelign.rewards.card import golden_clip
from reelign.rewards.weighted import Term, WeightedReward

PAIR_SECONDS = 60.0
NOT_TRIED = "could not be tried"


class NotTriedError(ReelignError):
    """The machine does not allow a bug to be planted; says nothing of whether it would be caught."""


@dataclass(frozen=True)
class Bug:
    """One known bug: its name, where it was seen, and code that plants it and must not go through."""

    name: str
    seen: str
    plant: Callable[[Generator], None]


def examine_bugs(model: str) -> Iterator[Finding]:
    """Plant every bug on a generator and report how it was caught."""
    for bug in BUGS:
        generator = build_generator({"model": model})
        try:
            bug.plant(generator)
        except NotTriedError as error:
            yield Finding(bug.name, False, f"{NOT_TRIED}: {error}")
        except ReelignError as error:
            yield Finding(bug.name, True, f"{error} ({bug.seen})")
        else:
            yield Finding(bug.name, False, f"went through ({bug.seen})")


class Detached:
    """A reward that cuts its gradient and says otherwise."""

    card = RewardCard("detached", "planted", (0.0, 1.0))

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Mean brightness, as a number."""
        return torch.tensor([clip.mean().item() for clip in batch.video])


class AtEightFps(BrightnessRange):
    """A reward that was trained at 8 frames a second."""

    card = replace(BrightnessRange.card, name="at_eight_fps", fps=8.0, golden=None)


class NotANumber:
    """A reward that divides by zero."""

    card = RewardCard("not_a_number", "planted", (0.0, 1.0))

    def __call__(self, batch: VideoBatch) -> Tensor:
        """0/0."""
        return 0 * batch.video.mean((1, 2, 3, 4)) / 0


def _score(reward: object, fps: float = 8.0) -> None:
    batch = golden_clip()
    video = batch.video.clone().requires_grad_()
    WeightedReward([Term("planted", reward)]).scores(VideoBatch(video, fps, batch.request))  # type: ignore[arg-type]


def _detached(generator: Generator) -> None:
    _score(Detached())


def _misspelt(generator: Generator) -> None:
    build_reward("clipp")


def _wrong_fps(generator: Generator) -> None:
    _score(AtEightFps(), fps=24.0)


def _not_a_number(generator: Generator) -> None:
    reward = WeightedReward([Term("planted", NotANumber())])
    algorithm = RewardGradient(generator, reward, Config(steps=1, guidance_scale=1.0, frames=(0,)))
    algorithm.step(golden_clip().request)


def _random_head(generator: Generator) -> None:
    small = VideoMAEConfig(
        image_size=32, patch_size=16, num_frames=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        VideoMAEForPreTraining(small).save_pretrained(folder)
        build_reward("video_action", {"model": folder})


def _adapter_not_identity(generator: Generator) -> None:
    with torch.no_grad():
        for name, parameter in generator.trainable().items():
            if "lora_B" in name:
                parameter.add_(0.01)
    _fail(adapter_has_no_effect(generator))  # type: ignore[arg-type]


def _train_mode(generator: Generator) -> None:
    network = generator.experts()[0]  # type: ignore[attr-defined]
    network.add_module("planted", nn.Dropout(0.1))
    network.train()
    _fail(no_dropout_is_live(generator))  # type: ignore[arg-type]


def _fail(finding: Finding) -> None:
    """Turn a failed check into an error, as the doctor would show it."""
    if not finding.ok:
        raise ReelignError(f"{finding.name}: FAILED, {finding.detail}")


def _unsynchronised(generator: Generator) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pair = mp.spawn(_one_process, (folder,), nprocs=2, join=False)  # type: ignore[attr-defined,no-untyped-call]
        _wait(pair)
        said = [(Path(folder) / f"{rank}.txt").read_text() for rank in range(2)]
    if all(said):
        raise ReelignError(said[0])


def _wait(pair: Any) -> None:
    deadline = time.monotonic() + PAIR_SECONDS
    while not pair.join(timeout=1):
        if time.monotonic() > deadline:
            for process in pair.processes:
                process.kill()
            raise NotTriedError(f"two processes did not reach each other in {PAIR_SECONDS:.0f} s on this machine")


def _one_process(rank: int, folder: str) -> None:
    """What VADER does: the wrapped model is unwrapped before it is called, so nobody averages the gradients."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.FileStore(f"{folder}/store", 2)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.manual_seed(0)
    wrapped = nn.parallel.DistributedDataParallel(nn.Linear(2, 1))
    wrapped.module(torch.full((1, 2), float(rank + 1))).sum().backward()
    said = ""
    try:
        require_synchronised(dict(wrapped.module.named_parameters()))
    except ReelignError as error:
        said = str(error)
    (Path(folder) / f"{rank}.txt").write_text(said)
    # No clean end: torch 2.13 joins gloo's threads under the interpreter's lock, for which one of them may be waiting.
    os._exit(0)


BUGS = (
    Bug("reward that detaches", "HPSv3 wrappers, VideoReward as shipped", _detached),
    Bug("misspelt reward", "GenRL trains on zeros", _misspelt),
    Bug("wrong frame rate", "VideoReward's scores depend on it", _wrong_fps),
    Bug("not a number", "Self-Forcing and DanceGRPO replace it", _not_a_number),
    Bug("head with random weights", "any transformers class loads with a warning", _random_head),
    Bug("adapter that is no identity at step 0", "wrong initialisation", _adapter_not_identity),
    Bug("dropout alive in frozen layers", "VADER on VideoCrafter2", _train_mode),
    Bug("gradients not synchronised between processes", "VADER, all variants", _unsynchronised),
)
