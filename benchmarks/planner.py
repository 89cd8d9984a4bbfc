"""The planner against what happens: predicted and counted peak bytes of an update, above the weights.

Counted as in ``meters.py``: each storage from the operator that returns it until it is freed, in the second update of a
real run, when the optimiser has its state. The predictions never see weights. Two generators: ``zoo:tiny-wan``, and a
random transformer about ten times its size with the zoo's autoencoder and text encoder.

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
from meters import LiveBytes
from reward_gradient_report import environment
from reward_gradient_setup import PROMPTS, load_model

from reelign.algorithms.reward_gradient import RewardGradient
from reelign.build import build_generator, build_weighted_reward
from reelign.config import RunConfig, parse_config
from reelign.contracts import Request
from reelign.planning.devices import GIB, Device
from reelign.planning.predict import predict

WITHIN = 0.2
CHECKPOINTED = {"gradient_checkpointing": True, "decode_checkpointing": True}
# name: options of the generator, of the algorithm
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "gradient checkpointing": ({"gradient_checkpointing": True}, {}),
    "decode checkpointing": ({"decode_checkpointing": True}, {}),
    "least memory": ({**CHECKPOINTED, "merge_adapter": False}, {"micro_batch": 1, "frames": [0]}),
    "micro-batch 1": ({}, {"micro_batch": 1}),
    "two gradient steps": ({}, {"k": 2}),
    "all weights": ({"train_all": True}, {}),
    "bfloat16": ({"dtype": "bfloat16"}, {}),
}
CPU = Device("cpu", 16 * GIB, {"half": 1.0, "float32": 1.0, "convolution": 1.0}, gpu=False)


def configuration(folder: Path, row: str, batch: int, steps: int) -> RunConfig:
    """The run of one row."""
    generator, settings = ROWS[row]
    return parse_config(
        {
            "output": "never",
            "generator": {"model": str(folder), "device": "cpu", **generator},
            "prompts": {"source": PROMPTS},
            "rewards": [{"name": "clip"}],
            "reward_gradient": {"steps": steps, "frames": [0, 4], **settings},
            "training": {"batch": batch},
            "evaluation": {"batch": 1},
        }
    )


def count(config: RunConfig) -> int:
    """Peak bytes alive in the second update of a real run, without what was there after loading."""
    generator = build_generator(config.generator.model_dump())
    reward = build_weighted_reward([r.model_dump() for r in config.rewards])
    request = Request(PROMPTS[: config.training.batch])
    with LiveBytes() as live:
        algorithm = RewardGradient(generator, reward, config.reward_gradient, config.seed)
        for _ in range(2):
            live.peak = live.now
            algorithm.step(request)
    return live.peak


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
