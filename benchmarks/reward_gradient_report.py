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
EXACT = (
    "reelign",
    "reelign checkpointed",
    "reelign least memory",
    "reelign micro-batch 1",
    "reelign checkpointed, micro-batch 1",
    "reelign compiled",
)
FAST = ("reelign bf16", "reelign bf16 checkpointed", "reelign compiled", "reelign bf16 compiled")
VADER_EXACT = ("VADER", "VADER checkpointed", "VADER checkpointed, micro-batch 1")
VADER_ANY = (*VADER_EXACT[:2], "VADER bf16")
VIDEOX_FUN = (
    "VideoX-Fun last",
    "VideoX-Fun last, checkpointed",
    "VideoX-Fun last, 3 latents",
    "VideoX-Fun tail 5",
    "VideoX-Fun tail 5, checkpointed",
)
# what, whose, against whom, largest ratio, least cosine of the gradient with VADER's
TARGETS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], float, float], ...] = (
    ("seconds", EXACT, VADER_EXACT, 0.8, SAME_GRADIENT),
    ("peak_bytes", EXACT, VADER_EXACT, 0.7, SAME_GRADIENT),
    ("peak_bytes", EXACT, VIDEOX_FUN, 0.3, SAME_GRADIENT),
    ("seconds", FAST, VADER_ANY, 0.5, NEAR_GRADIENT),
)
FLAT = 0.05


def verdicts(rows: Sequence[Mapping[str, Any]], flat: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """Each target for each pair of rows that was measured: the ratio, the limit, and whether it holds."""
    known = {row["row"]: row for row in rows}
    found = []
    for what, ours, theirs, limit, cosine in TARGETS:
        pairs = [(our, their) for our in ours for their in theirs if our in known and their in known]
        for our, their in pairs:
            if known[our][what] is None:
                continue
            ratio, close = known[our][what] / known[their][what], known[our]["gradient_cosine"]
            found.append(
                {"what": what, "row": our, "against": their, "ratio": ratio, "limit": limit, "cosine": close,
                 "least_cosine": cosine, "met": ratio <= limit and close >= cosine}
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
        for what, ours, theirs, limit, cosine in TARGETS:
            chosen = [v for v in model["verdicts"] if v["what"] == what and v["limit"] == limit]
            title = (
                f"{model['model']}: {what}, ours / theirs; at most {limit}, at a gradient cosine of {cosine} or more"
            )
            console.print(_ratio_table(title, ours, theirs, chosen))
        for verdict in model["verdicts"]:
            if "least_cosine" not in verdict:
                console.print(f"peak bytes of {verdict['row']}, largest / least of {verdict['against']}: ", end="")
                console.print(_mark(verdict))


def _row_table(model: Mapping[str, Any]) -> Table:
    title = f"{model['model']}: {model['transformer_parameters'] / 1e6:.1f} M parameters, {model['weights']}"
    table = Table(title=title)
    names = "row,s,forward,backward,cpu s,calls,rows,+recomputed,latents,frames,saved MiB,peak MiB,cosine,difference"
    for name in names.split(","):
        table.add_column(name, justify="left" if name == "row" else "right")
    for row in model["rows"]:
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / MEBI:.1f}"
        seconds = (f"{row[f'seconds{part}']:.3f}" for part in ("", "_forward", "_backward", "_processor"))
        passes = (f"{row[name]:g}" for name in ("network_calls", "network_rows", "rows_with_recomputation"))
        decoded = (str(row["decoded_latents"]), str(row["decoded_frames"]))
        saved, difference = f"{row['saved_bytes'] / MEBI:.1f}", f"{row['gradient_difference']:.1e}"
        cosine = f"{row['gradient_cosine']:.6f}"
        table.add_row(row["row"], *seconds, *passes, *decoded, saved, peak, cosine, difference)
    return table


def _ratio_table(
    title: str, ours: Sequence[str], theirs: Sequence[str], verdicts: Sequence[Mapping[str, Any]]
) -> Table:
    """Our rows down, theirs across."""
    found = {(verdict["row"], verdict["against"]): verdict for verdict in verdicts}
    columns = [their for their in theirs if any(against == their for _, against in found)]
    table = Table("row", *columns, title=title)
    for our in ours:
        if any(row == our for row, _ in found):
            table.add_row(our, *(_mark(found[our, their]) for their in columns))
    return table


def _mark(verdict: Mapping[str, Any]) -> str:
    colour = "green" if verdict["met"] else "red"
    return f"[{colour}]{verdict['ratio']:.3f} {'met' if verdict['met'] else 'missed'}[/]"
