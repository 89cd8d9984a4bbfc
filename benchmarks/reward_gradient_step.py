"""One training step of reward gradients: ``reelign`` against VADER, InstructVideo and VideoX-Fun.

A step is the sampling chain, the decoder, the reward and the backward pass up to the adapter's gradients; the
optimiser, the same for all, is left out. Every row has the same weights, adapter, noise, prompts, frame and reward, in
one process, in turns; times are medians. Bytes are measured once, with a meter that is off while times are taken.

Frame 0 is rewarded by default, because then all but InstructVideo decode the same single latent; any other frame costs
its causal prefix in ``reelign`` and VADER alike.

Run: ``python benchmarks/reward_gradient_step.py`` (minutes), or with ``--quick`` to see that it runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from meters import Passes, SavedBytes, peak_bytes
from reward_gradient_baselines import InstructVideo, Vader, VideoXFun
from reward_gradient_report import environment, show, verdicts
from reward_gradient_setup import PROMPTS, Model, load_model, load_reward, reward_source
from torch import Tensor, nn

from reelign.algorithms.reward_gradient import Config, RewardGradient, gradient_steps
from reelign.contracts import Request
from reelign.generators.wan import WanGenerator
from reelign.rewards.clip_similarity import ClipSimilarity
from reelign.rewards.weighted import Term, WeightedReward
from reelign.sampling import SeededNoise

GUIDANCE = 3.0
FLAT_STEPS = (5, 10, 25, 50)
CHECKPOINTED = {"gradient_checkpointing": True, "decode_checkpointing": True}
HALF = {"dtype": "bfloat16"}
# name: options of the generator, whether every clip is a micro-batch of its own
OURS: dict[str, tuple[dict[str, Any], bool]] = {
    "reelign": ({}, False),
    "reelign checkpointed": (CHECKPOINTED, False),
    "reelign least memory": ({**CHECKPOINTED, "merge_adapter": False}, False),
    "reelign micro-batch 1": ({}, True),
    "reelign checkpointed, micro-batch 1": (CHECKPOINTED, True),
    "reelign bf16": (HALF, False),
    "reelign bf16 checkpointed": ({**HALF, **CHECKPOINTED}, False),
}
COMPILED: dict[str, tuple[dict[str, Any], bool]] = {
    "reelign compiled": ({"compile": True}, False),
    "reelign bf16 compiled": ({**HALF, "compile": True}, False),
}
BLOCKS = {"gradient_checkpointing": True}
# name: which, options of the generator, whether every clip is a micro-batch of its own, further arguments
THEIRS: dict[str, tuple[Any, dict[str, Any], bool, dict[str, int]]] = {
    "VADER": (Vader, {}, False, {}),
    "VADER checkpointed": (Vader, BLOCKS, False, {}),
    "VADER checkpointed, micro-batch 1": (Vader, BLOCKS, True, {}),  # as its script has it, but in float32
    "VADER bf16": (Vader, HALF, False, {}),
    "InstructVideo": (InstructVideo, {}, False, {}),
    "VideoX-Fun last": (VideoXFun, {}, False, {}),
    "VideoX-Fun last, checkpointed": (VideoXFun, BLOCKS, False, {}),
    "VideoX-Fun last, 3 latents": (VideoXFun, {}, False, {"latents": 3}),  # its defaults
    "VideoX-Fun tail 5": (VideoXFun, {}, False, {"gradient_steps": 5}),
    "VideoX-Fun tail 5, checkpointed": (VideoXFun, BLOCKS, False, {"gradient_steps": 5}),  # as its script has it
}


class Ours:
    """``RewardGradient`` up to its loss, with K = 1, the last step."""

    def __init__(
        self, generator: WanGenerator, reward: ClipSimilarity, request: Request, noise: Tensor, steps: int, frame: int
    ) -> None:
        config = Config(steps=steps, guidance_scale=GUIDANCE, frames=(frame,))
        self.algorithm = RewardGradient(generator, WeightedReward([Term("clip", reward)]), config)
        self.request, self.noise, self.frame = request, noise, frame

    def loss(self) -> Tensor:
        """From prompts to the loss, with a graph."""
        algorithm = self.algorithm
        live = gradient_steps(algorithm.config, algorithm.random)
        batch, divergence = algorithm.rollout(
            self.request, self.noise, live, [self.frame], SeededNoise(range(len(self.request)))
        )
        objective = algorithm.reward.objective(algorithm.reward.scores(batch))
        return -objective.mean() + algorithm.config.kl_weight * divergence


class Row:
    """One implementation with its settings, ready to run.

    Args:
        name: how tables call it.
        generator, reward: its own.
        steps: makers of a loss, one for each micro-batch, all of the same size.
    """

    def __init__(self, name: str, generator: WanGenerator, reward: ClipSimilarity, steps: Sequence[Any]) -> None:
        self.name = name
        self.generator = generator
        self.steps = steps
        self.networks: list[nn.Module] = [generator.pipeline.transformer, generator.pipeline.vae, reward.tower.model]
        self.parameters = list(generator.trainable().values())

    def clear(self) -> None:
        """No gradients and no garbage."""
        for network in self.networks:
            network.zero_grad(set_to_none=True)
        gc.collect()

    def run(self) -> None:
        """One step."""
        for step in self.steps:
            (step.loss() / len(self.steps)).backward()

    def times(self) -> tuple[float, float, float]:
        """Seconds forward, backward, and of the processor in both, of one step."""
        self.clear()
        _wait(self.generator)
        forward = backward = 0.0
        busy = time.process_time()
        for step in self.steps:
            start = time.perf_counter()
            loss = step.loss() / len(self.steps)
            _wait(self.generator)
            middle = time.perf_counter()
            loss.backward()
            _wait(self.generator)
            forward, backward = forward + middle - start, backward + time.perf_counter() - middle
        return forward, backward, time.process_time() - busy

    def gradient(self) -> Tensor:
        """All the adapter's gradients as one vector, float64."""
        return torch.cat([parameter.grad.flatten().double().cpu() for parameter in self.parameters])  # type: ignore[union-attr]

    def peak(self) -> int:
        """Peak of bytes alive above rest in one step."""
        self.clear()
        with peak_bytes(self.generator.device) as peak:
            self.run()
            return peak()

    def saved(self) -> int:
        """Bytes the graph of one micro-batch keeps at the end of its forward pass."""
        self.clear()
        meter, step = SavedBytes(self.networks), self.steps[0]
        own = getattr(step, "offload", None)
        if own is not None:
            step.offload = meter.hooks
        with meter.hooks():
            loss = step.loss()
        kept = meter.now
        del loss
        if own is not None:
            step.offload = own
        return kept

    def counts(self) -> dict[str, float]:
        """Passes of network and decoder in one step."""
        self.clear()
        passes = Passes(self.generator.pipeline.transformer, self.generator.pipeline.vae)
        try:
            for step in self.steps:
                passes.backward = False
                loss = step.loss() / len(self.steps)
                passes.backward = True
                loss.backward()
        finally:
            passes.close()
        counts = passes.counts
        return {
            "network_calls": counts["calls"],
            "network_rows": counts["rows"],
            "rows_with_recomputation": counts["block_rows"] / passes.blocks,
            "decoded_latents": counts["latents"],
            "decoded_frames": counts["frames"],
        }


def build_rows(model: Model, rewards: Callable[[bool], ClipSimilarity], args: argparse.Namespace) -> list[Row]:
    """Every row of the table for one model; see the module's docstring."""
    noise, frozen, rows = model.noise(args.batch), rewards(True), []
    ours = {**OURS, **(COMPILED if args.compile else {})}
    for name, (options, single) in ours.items():
        if wanted(name, args):
            generator = model.generator(**options)
            parts = split(noise, single)
            steps = [Ours(generator, frozen, Request(p), x, args.steps, args.frame) for p, x in parts]
            rows.append(Row(name, generator, frozen, steps))
    for name, (kind, options, single, extra) in THEIRS.items():
        if wanted(name, args):
            generator, reward = model.generator(**options), rewards(kind is VideoXFun)
            more = {"frame": args.frame, **extra} if kind is Vader else extra
            parts = split(noise, single)
            steps = [kind(generator, reward, p, x, args.steps, GUIDANCE, **more) for p, x in parts]
            rows.append(Row(name, generator, reward, steps))
    return rows


def split(noise: Tensor, single: bool) -> list[tuple[tuple[str, ...], Tensor]]:
    """Prompts and noise of each micro-batch: of one clip, or of all."""
    size = 1 if single else len(noise)
    return [(PROMPTS[i : i + size], noise[i : i + size]) for i in range(0, len(noise), size)]


def wanted(name: str, args: argparse.Namespace) -> bool:
    """Whether ``--rows`` names this row, or nothing."""
    return not args.rows or name in args.rows.split(";") or name == "VADER"


def measure(rows: Sequence[Row], repeats: int) -> list[dict[str, Any]]:
    """Counts, bytes and gradients, which also warm up, then times in turns."""
    results, gradients = [], {}
    for row in rows:
        counts = row.counts()
        gradients[row.name] = row.gradient()
        compiled = row.generator.options.compile and row.generator.device.type == "cpu"
        peak = None if compiled else row.peak()  # the meter would take compiled code apart
        results.append({"row": row.name, **counts, "peak_bytes": peak, "saved_bytes": row.saved()})
        print(f"  measured {row.name}", flush=True)
    seconds: dict[str, list[tuple[float, float, float]]] = {row.name: [] for row in rows}
    for _ in range(repeats):
        for row in rows:
            seconds[row.name].append(row.times())
            row.clear()
    truth = gradients["VADER"]
    for result in results:
        taken, gradient = seconds[result["row"]], gradients[result["row"]]
        totals = [forward + backward for forward, backward, _ in taken]
        result["seconds"] = statistics.median(totals)
        for place, part in enumerate(("forward", "backward", "processor")):
            result[f"seconds_{part}"] = statistics.median(times[place] for times in taken)
        result["seconds_all"] = totals
        result["gradient_cosine"] = float(torch.nn.functional.cosine_similarity(gradient, truth, dim=0))
        result["gradient_difference"] = float((gradient - truth).norm() / truth.norm())
    return results


def flatness(model: Model, reward: ClipSimilarity, args: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Peak bytes of ``reelign`` for chains of several lengths."""
    request, noise = Request(PROMPTS[: args.batch]), model.noise(args.batch)
    peaks: dict[str, dict[str, int]] = {}
    for name in ("reelign", "reelign checkpointed"):
        generator = model.generator(**OURS[name][0])
        for steps in FLAT_STEPS:
            row = Row(name, generator, reward, [Ours(generator, reward, request, noise, steps, args.frame)])
            peaks.setdefault(name, {})[str(steps)] = row.peak()
    return peaks


def run_model(model: Model, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All measurements for one model, with the reward in ``folder``."""
    name, device = model.name, model.device
    parameters = model.generator(lora=None).parameter_count()
    print(f"{name}: transformer of {parameters / 1e6:.1f} M parameters, {model.weights}", flush=True)
    rows = build_rows(model, lambda frozen: load_reward(folder, device, frozen), args)
    results = measure(rows, args.repeats)
    rows.clear()
    flat = {} if args.no_flat else flatness(model, load_reward(folder, device, True), args)
    return {
        "model": name,
        "weights": model.weights,
        "transformer_parameters": parameters,
        "rows": results,
        "peak_bytes_by_steps": flat,
        "verdicts": verdicts(results, flat),
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny,large", help="of tiny, large")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25, help="denoising steps of a chain")
    parser.add_argument("--batch", type=int, default=2, choices=range(1, len(PROMPTS) + 1))
    parser.add_argument("--frame", type=int, default=0, help="the rewarded frame")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="add rows with torch.compile")
    parser.add_argument("--rows", default="", help="names between semicolons; VADER is always there")
    parser.add_argument("--no-flat", action="store_true", help="skip the chains of other lengths")
    parser.add_argument("--quick", action="store_true", help="tiny only, 3 steps, once")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reward_gradient_step.json"))
    args = parser.parse_args()
    if args.quick:
        args.models, args.repeats, args.steps = "tiny", 1, 3
    return args


def main() -> None:
    """Measure, show, write."""
    args = parse()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder, reward = reward_source(Path(temporary))
        loaded = [load_model(name, args.device, Path(temporary)) for name in args.models.split(",")]
        models = [run_model(model, folder, args) for model in loaded]
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    record = {"environment": environment(args.device), "settings": settings, "reward": reward, "models": models}
    show(record)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {args.out}")


def _wait(generator: WanGenerator) -> None:
    if generator.device.type == "cuda":
        torch.cuda.synchronize(generator.device)


if __name__ == "__main__":
    main()
