"""Ratios, verdicts and tables from what ``reward_gradient_step.py`` measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.table import Table

MEBI = 2**20
SAME_GRADIENT, NEAR_GRADIENT = 0.9999, 0.99
# (what, which of ours, against which rows, largest ratio)
EXACT = ("reelign", "reelign checkpointed", "reelign compiled")
FAST = ("reelign bf16", "reelign bf16 checkpointed", "reelign compiled", "reelign bf16 compiled")
VADERS = ("VADER", "VADER checkpointed")
FUNS = (
    "VideoX-Fun last",
    "VideoX-Fun last checkpointed",
    "VideoX-Fun defaults (3 latents)",
    "VideoX-Fun tail 5",
    "VideoX-Fun script (tail 5, checkpointed)",
)
TARGETS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], float, float], ...] = (
    ("seconds", EXACT, VADERS, 0.8, SAME_GRADIENT),
    ("peak_bytes", EXACT, VADERS, 0.7, SAME_GRADIENT),
    ("peak_bytes", EXACT, FUNS, 0.3, SAME_GRADIENT),
    ("seconds", FAST, VADERS, 0.5, NEAR_GRADIENT),
)
FLAT = 0.05


def verdicts(rows: Sequence[Mapping[str, Any]], flat: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """Each target for each pair of rows that was measured: the ratio, the limit, and whether it holds."""
    known = {row["row"]: row for row in rows}
    found = []
    for what, ours, theirs, limit, cosine in TARGETS:
        for our in ours:
            for their in theirs:
                if our not in known or their not in known or known[our][what] is None:
                    continue
                ratio = known[our][what] / known[their][what]
                close = known[our]["gradient_cosine"]
                met = ratio <= limit and close >= cosine
                found.append(
                    {"what": what, "row": our, "against": their, "ratio": ratio, "limit": limit,
                     "cosine": close, "least_cosine": cosine, "met": met}
                )  # fmt: skip
    for name, peaks in flat.items():
        spread = max(peaks.values()) / min(peaks.values()) - 1
        found.append(
            {"what": "peak_bytes", "row": name, "against": f"itself, {'/'.join(peaks)} steps", "ratio": 1 + spread,
             "limit": 1 + FLAT, "met": spread <= FLAT}
        )  # fmt: skip
    return found


def environment(device: str) -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "device": device,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
    }


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:
        names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(names)) or platform.processor()


def show(record: Mapping[str, Any]) -> None:
    """Print a table of rows and one of verdicts for each model."""
    console = Console(width=170)
    console.print(f"[bold]{record['environment']}[/]\nreward: {record['reward']}")
    for model in record["models"]:
        console.print(_row_table(model))
        console.print(_verdict_table(model))


def _row_table(model: Mapping[str, Any]) -> Table:
    title = f"{model['model']}: {model['transformer_parameters'] / 1e6:.1f} M parameters, {model['weights']}"
    table = Table(title=title)
    for name in ("row", "s", "forward", "backward", "cpu s", "calls", "rows", "+recomputed", "latents", "frames", "saved MiB",
                 "peak MiB", "cosine", "difference"):  # fmt: skip
        table.add_column(name, justify="left" if name == "row" else "right")
    for row in model["rows"]:
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / MEBI:.1f}"
        table.add_row(
            row["row"], f"{row['seconds']:.3f}", f"{row['seconds_forward']:.3f}", f"{row['seconds_backward']:.3f}",
            f"{row['seconds_processor']:.3f}", str(row["network_calls"]), str(row["network_rows"]), f"{row['rows_with_recomputation']:g}",
            str(row["decoded_latents"]), str(row["decoded_frames"]), f"{row['saved_bytes'] / MEBI:.1f}", peak,
            f"{row['gradient_cosine']:.6f}", f"{row['gradient_difference']:.1e}",
        )  # fmt: skip
    return table


def _verdict_table(model: Mapping[str, Any]) -> Table:
    table = Table(title=f"{model['model']}: targets")
    for name in ("what", "row", "against", "ratio", "at most", "met"):
        table.add_column(name, justify="right" if name in ("ratio", "at most") else "left")
    for verdict in model["verdicts"]:
        met = "[green]yes[/]" if verdict["met"] else "[red]no[/]"
        table.add_row(
            verdict["what"], verdict["row"], verdict["against"], f"{verdict['ratio']:.3f}", f"{verdict['limit']:g}", met
        )
    return table
