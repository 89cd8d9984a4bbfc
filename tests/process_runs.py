"""What the processes of ``test_processes.py`` do, together: each function runs in every one of them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from reelign.config import parse_config
from reelign.contracts import RewardCard
from reelign.datasets.clips import CaptionedClip, ClipOrder
from reelign.distributed import average_gradients, gather, processes, rank, require_synchronised, share, spread
from reelign.errors import ClipError, ContractError, DataError
from reelign.loop import Run
from reelign.optimisation import Optimisation
from reelign.sharding import whole


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


RANK2 = {"rank": 2}
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}


def settings(folder, output, steps=4, **more):
    """A run whose updates draw everything that can be drawn, in micro-batches that two processes cut differently."""
    return {
        "output": str(output),
        "generator": {"model": str(folder), "height": 32, "width": 32, "frames": 5, "device": "cpu", "lora": RANK2},
        "prompts": {"source": [f"a {c} shape" for c in "abcdefghij"], "held_out": 3},
        "rewards": [
            {"name": "brightness_range", "normalise": True},
            {"name": "temporal_smoothness", "keep_within": 0.01},
        ],
        "reward_gradient": {
            "steps": 2, "guidance_scale": 2.0, "lr": 1e-3, "mode": "random", "eta": 0.5, "micro_batch": 3,
            "frames": {"choose": "segments", "segments": 3}, "kl_weight": 0.1, "average": 0.5,
        },
        "training": {"steps": steps, "batch": 4, "checkpoint_every": 2, "keep": 0},
        "evaluation": {"save_clips": 2, "batch": 2},
        "guard": {"action": "warn", "every": 4, "prompts": 3, "seeds": 2},
        **more,
    }  # fmt: skip


def launch(folder: Path, count: int, in_parts: bool = False, **work):
    """Do work, named functions and their options, in a number of processes; returns what each found."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["reelign.loop", "diffusers", "process_runs"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = [(number, count, port, work, folder, in_parts) for number in range(count)]
    started = [context.Process(target=join, args=place, daemon=True) for place in places]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0
    return [torch.load(folder / f"{count}_{number}.pt") for number in range(count)]


def join(number: int, count: int, port: int, work, folder: Path, in_parts: bool) -> None:
    """One of ``count`` processes, which does all of ``work`` and leaves what it returns in ``folder``."""
    torch.set_num_threads(1)
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
    os.environ.update(FSDP2 if in_parts else {})
    with processes():
        found = {name: do(**options) for name, (do, options) in work.items()}
    torch.save(found, folder / f"{count}_{number}.pt")


def train(config, resume=False):
    """A run from beginning to end; its trained weights in this process, and which clips it was asked for."""
    run = Run(parse_config(config), resume)
    assert run.train(Deaf())
    return {name: whole(p.detach()).clone() for name, p in run.generator.trainable().items()}


def held(config):
    """As ``train``; then the bytes of the network's weights that lie in this process, and of all of them."""
    run = Run(parse_config(config))
    assert run.train(Deaf())
    weights = list(run.generator.experts()[0].parameters())
    here = [p.to_local() if isinstance(p, DTensor) else p for p in weights]
    moments = [m for of_one in run.algorithm.optimisation.optimiser.state.values() for m in of_one.values()]
    moments = [m.to_local() if isinstance(m, DTensor) else m for m in moments]
    return {"here": stored(here), "all": sum(p.numel() * p.element_size() for p in weights), "moments": stored(moments)}


def stored(tensors):
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


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
