"""The planner against what happens: predicted and counted peak bytes of an update, above the weights.

Counted by the planner's meter, of real tensors: each storage from the operator that returns it until it is freed, in
the second update of a real run, when the optimiser has its state. The predictions never see weights. Two generators:
``zoo:tiny-wan``, and a random transformer about ten times its size with the zoo's autoencoder and text encoder.

Run: ``python benchmarks/planner.py`` (minutes), ``--models tiny`` or ``--rows plain`` for a part; rows that are
not measured again stay in the file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
from reward_gradient_report import environment
from reward_gradient_setup import PROMPTS, load_model

from reelign.algorithms.partial_chain import PartialChain
from reelign.algorithms.reward_gradient import RewardGradient
from reelign.build import build_generator, build_weighted_reward
from reelign.config import RunConfig, parse_config
from reelign.contracts import Request
from reelign.planning.devices import GIB, Device
from reelign.planning.levers import changed
from reelign.planning.meter import Meter
from reelign.planning.predict import predict

WITHIN = 0.2
CHECKPOINTED = {"generator.gradient_checkpointing": True, "generator.decode_checkpointing": True}
LEAST = CHECKPOINTED | {"generator.merge_adapter": False, "reward_gradient.micro_batch": 1}
# name: settings, as after --set
ROWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gradient checkpointing": {"generator.gradient_checkpointing": True},
    "decode checkpointing": {"generator.decode_checkpointing": True},
    "least memory": LEAST | {"reward_gradient.frames": {"choose": [0]}},
    "micro-batch 1": {"reward_gradient.micro_batch": 1},
    "two gradient steps": {"reward_gradient.k": 2},
    "all weights": {"generator.train_all": True},
    "bfloat16": {"generator.dtype": "bfloat16"},
    "checkpointed": CHECKPOINTED,
    "checkpointed and sliced": CHECKPOINTED | {"generator.memory.decode_slicing": True},
    "checkpointed and tiled": CHECKPOINTED | {"generator.memory.decode_tiling": 32},
    "parked rewards": {"training.park_rewards": True},
    "partial chain": {"algorithm": "partial_chain", "clips": {"source": "shapes:4"}},
}
CPU = Device("cpu", 16 * GIB, {"half": 1.0, "float32": 1.0, "convolution": 1.0}, gpu=False)


def configuration(folder: Path, row: str, batch: int, steps: int) -> RunConfig:
    """The run of one row."""
    common = parse_config(
        {
            "output": "never",
            "generator": {"model": str(folder), "device": "cpu"},
            "prompts": {"source": PROMPTS},
            "rewards": [{"name": "clip"}],
            "reward_gradient": {"steps": steps, "frames": [0, 4]},
            "partial_chain": {"steps": 2 * steps, "tau": 0.5, "frames": [0, 4]},
            "training": {"batch": batch},
            "evaluation": {"batch": 1},
        }
    )
    return changed(common, ROWS[row])


def count(config: RunConfig) -> int:
    """Peak bytes alive in the second update of a real run, without what was there after loading."""
    generator = build_generator(config.generator.model_dump())
    reward = build_weighted_reward([r.model_dump() for r in config.rewards], config.training.park_rewards)
    partial = config.algorithm == "partial_chain"
    size, prompts = (config.training.batch, generator.frames(), 3, *generator.picture_size()), PROMPTS
    requests = [Request(prompts[: size[0]], source_videos=torch.rand(size) if partial else None) for _ in range(2)]
    kind: Any = PartialChain if partial else RewardGradient
    with Meter() as meter:
        algorithm = kind(generator, reward, config.settings, config.seed)
        for request in requests:  # clips of its own, which are not in the cache of latents
            meter.forget()
            algorithm.step(request)
    return meter.peak


def measure(folder: Path, row: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row: predicted, counted, and how long each took."""
    config = configuration(folder, row, args.batch, args.steps)
    start = time.process_time()
    told = predict(config, CPU)
    between = time.process_time()
    counted = count(config)
    ratio = told.above / counted
    print(f"{row:24} predicted {told.above / 2**20:9.1f} MiB, counted {counted / 2**20:9.1f} MiB, ratio {ratio:.3f}")
    return {
        "row": row,
        "predicted_bytes": told.above,
        "counted_bytes": counted,
        "predicted_over_counted": round(ratio, 4),
        "within": abs(ratio - 1) <= WITHIN,
        "weights_bytes": sum(told.weights.values()),
        "fullest_phase": told.fullest,
        "processor_seconds_to_predict": round(between - start, 2),
        "processor_seconds_of_two_updates": round(time.process_time() - between, 2),
    }


def main() -> None:
    """Measure, show, write after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny,large")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/planner.json"))
    args = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    settings = {"batch": args.batch, "steps": args.steps, "prompts": PROMPTS[: args.batch]}
    record: dict[str, Any] = {"environment": environment("cpu"), "settings": settings, "models": {}}
    if args.out.is_file():  # rows that are not measured again stay
        record["models"] = json.loads(args.out.read_text())["models"]
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.models.split(","):
            model = load_model(name, "cpu", Path(temporary))
            rows = record["models"].setdefault(name, {"weights": model.weights, "rows": []})["rows"]
            for row in args.rows.split(","):
                rows[:] = [*(old for old in rows if old["row"] != row), measure(model.folder, row, args)]
                args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
