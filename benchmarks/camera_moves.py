"""How right the camera is: labelled clips with poses, played both ways, and real generated clips; figure and JSON.

Run: ``python benchmarks/camera_moves.py [DATA]`` (DATA has ``camera_moves`` and ``clips``; default ``../shared/data``).
Writes benchmarks/results/camera_moves.json and docs/assets/camera.png. Two minutes on one core, half of it pycolmap's.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from reelign.selection.camera import CameraOptions, camera_table, estimate_camera, judge_camera, read_footage
from reelign.selection.camera import read_instruction as read
from reelign.selection.camera_colmap import estimate_colmap
from reelign.selection.camera_estimate import PRIMITIVES, small_greys
from reelign.selection.camera_files import read_poses
from reelign.selection.camera_motion import estimate_motion
from reelign.selection.camera_odometry import estimate_odometry
from reelign.selection.camera_poses import invert, pose_errors, relative

ROOT = Path(__file__).resolve().parents[1]
KNOWN, ASSUMED = 50.0, 55.0
AXIS = {"pan": "pan", "tilt": "tilt", "roll": "roll", "zoom": "zoom", "truck": "truck", "dolly": "dolly"}


def truth(row: dict[str, str], true: np.ndarray) -> dict[str, float]:
    """The signed amount of the labelled primitive; travel in units of the longest path."""
    kind = row["label"].split("_")[0]
    if kind == "static":
        return {}
    amount = float(row["total_amount"])
    return {kind: float(np.log(amount)) if kind == "zoom" else amount}


def timed(work: Any) -> tuple[Any, float]:
    start = time.process_time()
    return work(), 1000 * (time.process_time() - start)


def played(frames: list[np.ndarray], true: np.ndarray, backwards: bool) -> tuple[list[np.ndarray], np.ndarray]:
    return (frames[::-1], relative(true[::-1])) if backwards else (frames, true)


def moves(data: Path, fov_deg: float) -> list[dict[str, Any]]:
    """Every clip, forwards and backwards: amounts, errors, obedience to its instruction and to the mirrored one."""
    rows = []
    for row in csv.DictReader((data / "moves.csv").open()):
        footage, true = read_footage(data / row["file"]), read_poses(data / "poses.csv", row["file"])
        for backwards in (False, True):
            frames, poses = played(footage.frames, true, backwards)
            report, ms = timed(lambda frames=frames: estimate_camera(frames, CameraOptions(fov_deg=fov_deg)))
            greys = small_greys(frames)
            key, key_ms = timed(lambda greys=greys: estimate_odometry(greys, fov_deg))
            score = judge_camera(report, read(row["instruction"], "")).score
            sign = -1 if backwards else 1
            rows.append({
                "file": row["file"], "backwards": backwards, "label": row["label"], "sentence": report.sentence,
                "true": {name: sign * value for name, value in truth(row, true).items()},
                "estimated": report.best.named(), "confidence": report.best.confidence,
                "errors": vars(pose_errors(poses, report.best.poses, report.best.frames)),
                "odometry": None if key.abstained else key.named(),
                "odometry_errors": None if key.abstained else vars(pose_errors(poses, key.poses, key.frames)),
                "obedience": score, "chain_ms": ms, "odometry_ms": key_ms,
                "motion_ms": timed(lambda greys=greys: estimate_motion(greys, fov_deg))[1],
            })  # fmt: skip
    return rows


def right(row: dict[str, Any]) -> bool:
    """Forwards the instruction is obeyed; backwards it is not, except by a camera that stays."""
    obeyed = row["obedience"] > 0.5
    return obeyed if not row["backwards"] or row["label"] == "static" else row["obedience"] < 0.05


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    turns = [row for row in rows if next(iter(row["true"]), "") in ("pan", "tilt", "roll")]
    zooms = [row for row in rows if "zoom" in row["true"]]
    travels = [row for row in rows if next(iter(row["true"]), "") in ("truck", "dolly")]

    def off(row: dict[str, Any], of: str) -> float:
        ((name, value),) = row["true"].items()
        return abs(row[of][name] / value - 1)

    return {
        "labels_right": sum(map(right, rows)), "clips": len(rows),
        "turn_amount_off_worst": max(off(row, "estimated") for row in turns),
        "turn_amount_off_worst_odometry": max(off(row, "odometry") for row in turns),
        "zoom_amount_off_worst": max(off(row, "estimated") for row in zooms),
        "rotation_end_worst_deg": max(row["errors"]["rotation_end"] for row in rows),
        "direction_worst_deg": max(row["errors"]["direction_deg"] for row in travels),
        "direction_worst_deg_odometry": max(row["odometry_errors"]["direction_deg"] for row in travels),
        "ate_worst": max(row["errors"]["ate"] for row in travels),
        "auc30_least": min(row["errors"]["auc30"] for row in rows),
        "obedience_least": min(row["obedience"] for row in rows if not row["backwards"]),
        "motion_ms_median": float(np.median([row["motion_ms"] for row in rows])),
        "odometry_ms_median": float(np.median([row["odometry_ms"] for row in rows])),
        "chain_ms_median": float(np.median([row["chain_ms"] for row in rows])),
    }  # fmt: skip


def colmap(data: Path) -> list[dict[str, Any]]:
    """pycolmap on the two clips that travel, on a pan and on a zoom; wall time, as it is another process."""
    rows = []
    for name in ("truck_right", "dolly_in", "pan_left", "zoom_in"):
        greys = small_greys(read_footage(data / f"{name}.mp4").frames)
        start = time.monotonic()
        found = estimate_colmap(greys, KNOWN, check=estimate_odometry(greys, KNOWN))
        row = {"file": f"{name}.mp4", "seconds": time.monotonic() - start, "reason": found.reason}
        if not found.abstained:
            row["errors"] = vars(pose_errors(read_poses(data / "poses.csv", f"{name}.mp4"), found.poses))
        rows.append(row)
    return rows


def generated(data: Path) -> list[dict[str, Any]]:
    """What the chain says about real clips, and what their prompts ask."""
    prompts = {row["file"]: row["prompt"] for row in csv.DictReader((data / "manifest.csv").open())}
    clips = sorted(path for path in data.glob("*.*") if path.name in prompts)
    table = camera_table(clips, lambda clip: read(None, prompts[clip.name]))
    table["file"] = [Path(name).name for name in table["file"]]
    table["reason"] = [reason.rsplit("/", 1)[-1] for reason in table["reason"]]
    columns = ["file", "status", "reason", "sentence", "confidence", "method", "obeys", "obedience"]
    return json.loads(table[columns].to_json(orient="records"))


def figure(data: Path, out: Path) -> None:
    """Estimated against true yaw, pitch, roll, zoom and travel over the frames of the clips."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = (("pan", ("pan_right", "pan_left")), ("tilt", ("tilt_up", "tilt_down")), ("roll", ("roll_clockwise",)),
              ("zoom", ("zoom_in", "zoom_out")), ("truck", ("truck_right",)), ("dolly", ("dolly_in",)))  # fmt: skip
    units = {"zoom": "log focal length", "truck": "share of the path", "dolly": "share of the path"}
    fig, axes = plt.subplots(2, 3, figsize=(9, 4.8), constrained_layout=True)
    for axis, (name, files) in zip(axes.flat, panels, strict=True):
        for file in files:
            for backwards in (False, True) if name in units and name != "zoom" else (False,):
                draw(axis, data, name, file, backwards)
        axis.set_title(name, fontsize=10)
        axis.set_ylabel(units.get(name, "degrees"), fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("frame", fontsize=8)
    handles, names = axes[0, 2].get_legend_handles_labels()
    axes[0, 2].legend(handles, names, fontsize=8, loc="lower right")
    fig.savefig(out, dpi=110)


def draw(axis: Any, data: Path, name: str, file: str, backwards: bool) -> None:
    frames, true = played(
        read_footage(data / f"{file}.mp4").frames, read_poses(data / "poses.csv", f"{file}.mp4"), backwards
    )
    found = estimate_camera(frames, CameraOptions(fov_deg=KNOWN)).best
    column = PRIMITIVES.index(name)
    guess = np.concatenate([[0], found.steps[:, column].cumsum()])
    if name in ("truck", "dolly"):
        place = {"truck": 0, "dolly": 2}[name]
        real, guess = true[:, place, 3], found.poses[:, place, 3]
        guess, real = guess / np.abs(guess).max(), real / np.abs(real).max()
    elif name == "zoom":
        rows = [row for row in csv.DictReader((data / "poses.csv").open()) if row["file"] == f"{file}.mp4"]
        real = np.log([float(row["fx"]) / float(rows[0]["fx"]) for row in rows])
    else:
        turns = invert(true[:-1]) @ true[1:]
        places = {"pan": (0, 2), "tilt": (2, 1), "roll": (1, 0)}[name]
        real = np.degrees(np.concatenate([[0], np.arcsin(turns[:, places[0], places[1]]).cumsum()]))
    axis.plot(real, color="0.75", linewidth=5, label="true", solid_capstyle="round")
    axis.plot(guess, color="C0", linewidth=1.4, label="estimated")
    label = file.replace("_", " ") + (", backwards" if backwards else "")
    up = real[-1] > 0
    axis.annotate(
        label, (len(real) * 0.55, real[-1] * 0.55), xytext=(-4, 8 if up else -8), textcoords="offset points",
        fontsize=7, color="0.3", ha="right", va="bottom" if up else "top",
    )  # fmt: skip


def rounded(value: Any) -> Any:
    """Four significant digits, at any depth."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(data: Path) -> None:
    at = {fov: moves(data / "camera_moves", fov) for fov in (KNOWN, ASSUMED)}
    clips = generated(data / "clips")
    results = {
        "summary": {f"fov_{fov:g}": summary(rows) for fov, rows in at.items()},
        "generated": {
            "clips": len(clips), "abstained": sum(clip["status"] == "abstained" for clip in clips), "rows": clips,
        },
        "colmap": colmap(data / "camera_moves") if importlib.util.find_spec("pycolmap") else "not installed",
        "moves": at[KNOWN],
    }  # fmt: skip
    out = ROOT / "benchmarks" / "results" / "camera_moves.json"
    out.write_text(json.dumps(rounded(results), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    figure(data / "camera_moves", ROOT / "docs" / "assets" / "camera.png")
    print(json.dumps(rounded(results["summary"]), indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "data")
