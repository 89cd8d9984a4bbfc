"""What was predicted beside what happened, once a run, in its folder as ``plan.json``; only where a GPU can say."""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from typing import Any

import torch

from reelign.config import RunConfig
from reelign.errors import ReelignError
from reelign.planning.devices import this_gpu
from reelign.planning.predict import PLANNED, Prediction, predict
from reelign.run_folder import RunFolder

FILE = "plan.json"


def compare(config: RunConfig, device: torch.device, folder: RunFolder) -> None:
    """Write the comparison after training on a GPU; nothing on a CPU, or of algorithms that are not planned."""
    if device.type != "cuda" or config.algorithm not in PLANNED:
        return
    measured, logged = torch.cuda.max_memory_allocated(device), [line["seconds"] for line in folder.metrics()]
    steps = [after - before for before, after in pairwise(logged)]
    try:
        told = predict(config, this_gpu())
    except ReelignError as error:  # a finished run is not lost for want of a prediction
        folder.write_json(FILE, {"not_predicted": str(error), "measured_peak_bytes": measured})
        return
    folder.write_json(FILE, compared(told, measured, median(steps) if steps else None))


def compared(told: Prediction, measured: int, seconds: float | None) -> dict[str, Any]:
    """Predicted and measured peak bytes and seconds of a step, and the ratio of the bytes."""
    return {
        "device": told.device.name,
        "predicted_peak_bytes": told.peak,
        "measured_peak_bytes": measured,
        "predicted_over_measured": round(told.peak / measured, 4),
        "fullest_phase": told.fullest,
        "predicted_seconds_of_a_step": told.seconds,
        "measured_seconds_of_a_step": seconds,
    }
