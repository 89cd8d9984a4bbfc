"""What an evaluation of two folders leaves on disk, and how an earlier one is set beside it.

evaluation.json   everything, with protocols; what is undefined is null
evaluation.csv    a row a number
left_out.csv      clips without features, and why
pairs.csv         PSNR and SSIM of every pair of files, where these were asked for
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from reelign import __version__
from reelign.errors import DataError
from reelign.metrics.paired_files import FileMean
from reelign.metrics.score_comparison import ScoreChange
from reelign.metrics.set_comparison import SetDistance, comparable, from_json
from reelign.metrics.set_evaluation import Evaluation
from reelign.video_io import replacing


def check_writable(out: Path) -> None:
    """Make the folder and make sure that files can be written there, before hours of work.

    Raises:
        RunFolderError: it cannot.
    """
    with replacing(out / "probe") as part:
        part.touch()
    (out / "probe").unlink()


def save(evaluation: Evaluation, out: Path) -> list[Path]:
    """Write the files of the module's docstring, each whole or not at all.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    paths = [out / name for name in ("evaluation.json", "evaluation.csv", "left_out.csv")]
    with replacing(paths[0]) as part:
        part.write_text(json.dumps(as_json(evaluation), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    with replacing(paths[1]) as part:
        as_table(evaluation).to_csv(part, index=False)
    with replacing(paths[2]) as part:
        evaluation.left_out.to_csv(part, index=False)
    if evaluation.files is not None:
        paths.append(out / "pairs.csv")
        with replacing(paths[-1]) as part:
            evaluation.files.to_csv(part, index=False)
    return paths


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Everything but the takes tables, in plain types; what is undefined is null."""
    distances = [{**asdict(d), "protocol_id": d.protocol.id} for d in evaluation.distances]
    return {
        "reelign": __version__,
        "reference": evaluation.reference,
        "clips": evaluation.clips,
        "distances": distances,
        "undefined": dict(evaluation.undefined),
        "scores": [_plain_values(change) for change in evaluation.scores],
        "pairs": [_plain_values(mean) for mean in evaluation.means],
        "left_out": evaluation.left_out.to_dict("records"),
    }


def as_table(evaluation: Evaluation) -> pd.DataFrame:
    """One row a number: kind, name, value, low, high, clips, floor, protocol, and what to know."""
    rows: list[dict[str, Any]] = [
        {
            "kind": "set",
            "name": d.metric,
            "value": d.value,
            "low": d.low,
            "high": d.high,
            "clips": d.clips,
            "floor": d.floor.value,
            "floor_clips": d.floor.clips,
            "protocol": d.protocol.id,
            "note": "; ".join(d.warnings),
        }
        for d in evaluation.distances
    ]
    rows += [{"kind": "undefined", "name": name, "note": reason} for name, reason in evaluation.undefined.items()]
    rows += [
        {
            "kind": change.kind,
            "name": change.metric,
            "value": change.delta,
            "low": change.low,
            "high": change.high,
            "clips": min(change.n_before, change.n_after),
            "note": change.reason,
        }
        for change in evaluation.scores
    ]
    rows += [
        {
            "kind": "pairs",
            "name": mean.name,
            "value": mean.value,
            "low": mean.low,
            "high": mean.high,
            "clips": mean.clips,
            "note": f"{mean.without} without a value" if mean.without else "",
        }
        for mean in evaluation.means
    ]
    columns = ("kind", "name", "value", "low", "high", "clips", "floor", "floor_clips", "protocol", "note")
    return pd.DataFrame(rows, columns=columns)


def read_distances(path: Path) -> dict[str, SetDistance]:
    """Metric to result, of an ``evaluation.json``.

    Raises:
        DataError: the file is not one that ``save`` wrote.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["distances"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"an earlier evaluation is a file evaluation.json; cannot read {path}: {error}") from error
    return {distance.metric: distance for distance in map(from_json, found)}


def against(
    distances: Iterable[SetDistance], earlier: Mapping[str, SetDistance]
) -> list[tuple[SetDistance, SetDistance | None, str]]:
    """Each set metric, its earlier value where the two are comparable, and the reason where they are not."""
    rows: list[tuple[SetDistance, SetDistance | None, str]] = []
    for distance in distances:
        if distance.metric not in earlier:
            rows.append((distance, None, "the earlier evaluation has no such metric"))
            continue
        try:
            comparable(distance, earlier[distance.metric])
            rows.append((distance, earlier[distance.metric], ""))
        except DataError as error:
            rows.append((distance, None, str(error)))
    return rows


def _plain_values(row: ScoreChange | FileMean) -> dict[str, Any]:
    return {key: _plain(value) for key, value in asdict(row).items()}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
