"""What the processes of ``test_processes.py`` do, together: each function runs in every one of them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from reelign.config import parse_config
from reelign.contracts import RewardCard
from reelign.datasets.clips import CaptionedClip, ClipOrder
from reelign.distributed import average_gradients, gather, processes, rank, require_synchronised, share, spread
from reelign.errors import ClipError, ContractError, DataError
from reelign.loop import Run
from reelign.optimisation import Optimisation


class Deaf:
    """A listener that does nothing."""

    def stepped(self, step, total, values):
        pass

    def evaluating(self, step, done, total):
        pass

    def warned(self, text):
        pass


class FailsInTheSecond:
    """A reward that cannot go on in the second process, at its second training call."""

    def __init__(self):
        self.card = RewardCard("fails", "test", (-1e9, 1e9))
        self.calls = 0

    def __call__(self, batch):
        self.calls += batch.video.requires_grad and "shape" in batch.request.prompts[0]
        if self.calls > 1 and os.environ.get("RANK") == "1":
            raise DataError("the second process has had enough")
        return batch.video.mean((1, 2, 3, 4))


class Numbered:
    """Reads clips whose frames are their number; odd ones above 4 cannot be read."""

    def read(self, path):
        number = int(path.name)
        if number > 4 and number % 2:
            raise ClipError(f"clip {number} is broken")
        return torch.full((1, 3, 1, 1), number / 16)


def join(number: int, count: int, port: int, work, folder: Path) -> None:
    """One of ``count`` processes, which does all of ``work`` and leaves what it returns in ``folder``."""
    torch.set_num_threads(1)
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
    with processes():
        found = {name: do(**options) for name, (do, options) in work.items()}
    torch.save(found, folder / f"{count}_{number}.pt")


def train(config, resume=False):
    """A run from beginning to end; its trained weights in this process, and which clips it was asked for."""
    run = Run(parse_config(config), resume)
    assert run.train(Deaf())
    return {name: p.detach().clone() for name, p in run.generator.trainable().items()}


def draw_clips(count=4, times=6):
    """What a process reads of several requests, some of whose clips are broken."""
    order = ClipOrder([CaptionedClip(Path(str(i)), str(i)) for i in range(9)], Numbered(), seed=0)
    asked = [order.request(count, share(count)) for _ in range(times)]
    for request in asked:
        assert [int(p) / 16 for p in request.prompts] == request.source_videos.flatten(1)[:, 0].tolist()
    return [prompt for part in zip(*gather([r.prompts for r in asked]), strict=True) for r in part for prompt in r]


def gradients():
    """Parameters of two types, one without a gradient anywhere and one with a gradient in the first process alone."""
    parameters = {name: nn.Parameter(torch.full((3,), float(rank()))) for name in "abc"}
    parameters["half"] = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimisation = Optimisation(parameters, 0.1)
    begun = [parameter.tolist() for parameter in parameters.values()]
    parameters["a"].grad = torch.full((3,), 1.0 + rank())
    parameters["half"].grad = torch.full((2,), 2.0 * rank(), dtype=torch.bfloat16)
    if rank() == 0:
        parameters["b"].grad = torch.ones(3)
    try:
        require_synchronised({"a": parameters["a"]})
        noticed = ""
    except ContractError as error:
        noticed = str(error)
    average_gradients(optimisation.parameters)
    return begun, {name: None if p.grad is None else p.grad.tolist() for name, p in parameters.items()}, noticed


def spread_squares(count=5):
    """Results in order, whoever made them."""
    return spread(lambda n: (n * n, rank()), range(count))
