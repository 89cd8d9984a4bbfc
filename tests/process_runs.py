"""What the processes of ``test_processes.py`` do, together: each function runs in every one of them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch
from listeners import Deaf
from torch import nn
from torch.distributed.tensor import DTensor

from reelign import evaluation, optimisation
from reelign.config import parse_config
from reelign.contracts import RewardCard
from reelign.datasets.clips import CaptionedClip, ClipOrder
from reelign.distributed import average_gradients, gather, processes, rank, require_synchronised, share, spread
from reelign.errors import ClipError, ContractError, DataError, ReelignError
from reelign.loop import Run
from reelign.optimisation import Optimisation
from reelign.sampling import generate
from reelign.sharding import whole


class Halts(Deaf):
    """A listener that waits after a step, until a file says go on."""

    def __init__(self, folder, at):
        self.folder, self.at = folder, at

    def stepped(self, step, total, values):
        if step == self.at:
            halt(self.folder)


def halt(folder):
    """Leave word that this process waits, and wait until somebody lets it go on, or ends it."""
    (folder / f"waits_{os.environ['RANK']}").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)


class HaltsInTheSecond:
    """A reward at which the second process waits in its second training step, for ever."""

    def __init__(self, folder):
        self.card = RewardCard("halts", "test", (-1e9, 1e9))
        self.folder, self.calls = Path(folder), 0

    def __call__(self, batch):
        self.calls += batch.video.requires_grad and "shape" in batch.request.prompts[0]
        if self.calls > 1 and os.environ.get("RANK") == "1":
            halt(self.folder)
        return batch.video.mean((1, 2, 3, 4))


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
            {"name": "temporal_smoothness", "weight": -1.0, "normalise": True},  # has a gradient in any clip
            {"name": "temporal_smoothness", "keep_within": 1e-5},
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


def require_logged_alike(one: Path, other: Path):
    """Two run folders whose gradients were there, and whose logged values are the same."""
    logged = [pd.read_json(run / "metrics.jsonl", lines=True).drop(columns="seconds") for run in (one, other)]
    assert (logged[0]["gradient_norm"].dropna() > 1e-3).all()  # or there is nothing to compare
    for name in logged[0]:
        # A multiplier grows with the difference of two scores that are nearly the same.
        pd.testing.assert_series_equal(
            *(v[name] for v in logged), rtol=1e-2 if "multiplier" in name else 1e-4, atol=1e-6
        )
    assert list(logged[0]) == list(logged[1])


def start(folder: Path, count: int, in_parts: bool = False, **work):
    """Begin work, named functions and their options, in a number of processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["reelign.loop", "diffusers", "process_runs"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = [(number, count, port, work, folder, in_parts) for number in range(count)]
    started = [context.Process(target=join, args=place, daemon=True) for place in places]
    for process in started:
        process.start()
    return started


def launch(folder: Path, count: int, in_parts: bool = False, **work):
    """Do work in a number of processes; returns what each found."""
    for process in (started := start(folder, count, in_parts, **work)):
        process.join()
    assert [process.exitcode for process in started] == [0] * count
    return [torch.load(folder / f"{count}_{number}.pt") for number in range(count)]


def join(number: int, count: int, port: int, work, folder: Path, in_parts: bool) -> None:
    """One of ``count`` processes, which does all of ``work`` and leaves in ``folder`` what it returns, or its error."""
    torch.set_num_threads(1)
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
    os.environ.update(FSDP2 if in_parts else {})
    try:
        with processes():
            found = {name: do(**options) for name, (do, options) in work.items()}
    except ReelignError as error:
        (folder / f"said_{number}").write_text(str(error))
        raise SystemExit(1) from None
    torch.save(found, folder / f"{count}_{number}.pt")


def train(config, resume=False):
    """A run from beginning to end; its trained weights in this process, and which clips it was asked for."""
    run = Run(parse_config(config), resume)
    assert run.train(Deaf())
    return {name: whole(p.detach()).clone() for name, p in run.generator.trainable().items()}


def train_apart(config):
    """As ``train``, by processes that do not average their gradients, as if nobody noticed."""
    taken_out = {"average_gradients": lambda parameters: None, "require_synchronised": lambda parameters: None}
    with patch.multiple(optimisation, **taken_out):
        return train(config)


def examine(config):
    """How many held-out clips this process makes at a time in one evaluation, and how many rows are written."""
    run, made = Run(parse_config(config)), []

    def counted(generator, request, *rest):
        made.append(len(request))
        return generate(generator, request, *rest)

    with patch.object(evaluation, "generate", counted):
        rows = run.examiner.examine(run.generator, run.folder.samples(0), lambda done, total: None)
    return made, len(rows)


def train_in_parts(config, resume=False):
    """As ``train``; and the bytes of weights and moments that this process holds after, and of whole weights."""
    run = Run(parse_config(config), resume)
    assert run.train(Deaf())
    weights = list(run.generator.experts()[0].parameters())
    moments = [m for of_one in run.algorithm.optimisation.optimiser.state.values() for m in of_one.values()]
    bytes_of = {"weights": stored(weights), "moments": stored(moments), "whole": sum(p.nbytes for p in weights)}
    return {name: whole(p.detach()).clone() for name, p in run.generator.trainable().items()}, bytes_of


def stored(tensors):
    return sum((t.to_local() if isinstance(t, DTensor) else t).untyped_storage().nbytes() for t in tensors)


def stop_early(config, resume=False):
    """A run that is asked to stop; whether it finished, and its step."""
    run = Run(parse_config(config), resume)
    return run.train(Halts(Path(config["output"]), 3)), run.step


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
