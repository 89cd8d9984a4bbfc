"""Do set metrics see what is wrong? Drawn clips against more of them, and against frozen, blurred and recoloured ones.

260 reference clips, 130 of each kind from other seeds; the features are those of the zoo's models, which know these
shapes. Nothing is downloaded.

Run: ``python benchmarks/set_metrics_clips.py`` (a few minutes on one core); writes results/set_metrics_clips.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from reelign.datasets.moving_shapes import MovingShapes
from reelign.metrics.set_comparison import Options
from reelign.metrics.set_evaluation import Plan, evaluate
from reelign.video_io import write_clip


def frozen(video: Tensor) -> Tensor:
    """The second half stands still."""
    return torch.cat([video[:9], video[8:9].expand(8, -1, -1, -1)])


def blurred(video: Tensor) -> Tensor:
    """Means of 5×5 pixels."""
    return torch.nn.functional.avg_pool2d(video, 5, 1, 2, count_include_pad=False)


def recoloured(video: Tensor) -> Tensor:
    """Red, green and blue change places."""
    return video[:, [1, 2, 0]]


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "same": lambda video: video,
    "frozen half-way": frozen,
    "blurred": blurred,
    "recoloured": recoloured,
}


def draw(folder: Path, clips: int, seed: int, change: Callable[[Tensor], Tensor]) -> Path:
    """A folder of drawn and changed clips, 17 frames of 64×64."""
    data, random = MovingShapes(frames=17, size=64, fps=8.0), torch.Generator().manual_seed(seed)
    for index in range(clips):
        video, _, _ = data.batch(1, random)
        write_clip(folder / f"{index:04d}.mp4", change(video[0]), 8.0)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=130, help="of each kind; twice as many in the reference")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = draw(folder / "reference", 2 * arguments.clips, 1, KINDS["same"])
        plan = Plan(options=Options(halves=50), cache=folder / "cache")
        for number, (kind, change) in enumerate(KINDS.items()):
            found = evaluate(reference, draw(folder / kind, arguments.clips, 2 + number, change), plan)
            rows += [
                {
                    "kind": kind,
                    "metric": d.metric,
                    "value": d.value,
                    "interval": [d.low, d.high],
                    "floor": [d.floor.low, d.floor.high],
                    "told_apart": d.floor.distance > d.floor.high,
                }
                for d in found.distances
            ]
    table = Table("metric", *KINDS, "reference from itself, 95 %")
    for metric in dict.fromkeys(row["metric"] for row in rows):
        mine = [row for row in rows if row["metric"] == metric]
        cells = [f"{row['value']:.3g}{' *' if row['told_apart'] else ''}" for row in mine]
        table.add_row(metric, *cells, f"{mine[0]['floor'][0]:.3g} … {mine[0]['floor'][1]:.3g}")
    Console().print(table, "* told apart from the reference against itself")
    out = Path(__file__).parent / "results" / "set_metrics_clips.json"
    out.write_text(json.dumps({"clips": arguments.clips, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
