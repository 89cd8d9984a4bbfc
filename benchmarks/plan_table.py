"""What fits where: each family at its published size, in 8 to 80 GB, predicted from published configs.

Every row is VADER as ``reelign train`` runs it: one prompt, bfloat16, LoRA of rank 16, gradient in the last of 25
steps, one rewarded frame, a reward of the zoo. ``plain`` is that; ``checkpointed`` adds both kinds of checkpointing,
and decodes frames one by one where that is an option; ``small`` adds offloaded weights and decoding in tiles.

Run: ``python benchmarks/plan_table.py`` writes ``benchmarks/results/plan_table.json`` and ``docs/plan_table.md``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from published_configs import PUBLISHED, options

from reelign.config import parse_config
from reelign.planning.devices import DEVICES, GIB, Device
from reelign.planning.predict import Prediction, predict

HEAD = """# What fits where

**Predicted, not measured**, by `python benchmarks/plan_table.py` from published configs ([how](plan.md)): one prompt,
bfloat16, LoRA of rank 16, gradient in the last of 25 steps, the first frame rewarded by the zoo's CLIP, evaluation of
one clip at a time. HunyuanVideo and Wan 2.2 have not been predicted at their published size yet.

"""
MEANS = {
    "plain": "that.",
    "checkpointed": "`gradient_checkpointing` and `decode_checkpointing`; `decode_chunk: 1` where there is one.",
    "small": "*checkpointed*, `memory.offload` and `memory.decode_tiling: 256`.",
}
SIZES = (8, 16, 24, 48, 80)
CHECKPOINTED = {"gradient_checkpointing": True, "decode_checkpointing": True}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointed": CHECKPOINTED,
    "small": CHECKPOINTED | {"memory": {"offload": True, "decode_tiling": 256}},
}
CHUNKED = ("stable_video_diffusion", "modelscope")


def settings_of(kind: str, row: str) -> dict[str, Any]:
    """What one row sets, of what the family has."""
    chosen = SETTINGS[row]
    return chosen | ({"decode_chunk": 1} if chosen and kind in CHUNKED else {})


def plan(name: str, folder: Path, row: str) -> Prediction:
    """The prediction of one row on an H100."""
    kind = PUBLISHED[name][0]
    chosen = options(name, folder) | {"dtype": "bfloat16", "lora": {"rank": 16, "alpha": 16}} | settings_of(kind, row)
    return predict(
        parse_config(
            {
                "output": "never",
                "generator": chosen,
                "prompts": {"source": ("a cat runs", "a dog sits")},
                "rewards": [{"name": "clip"}],
                "reward_gradient": {
                    "steps": 25,
                    "frames": [0],
                    "guidance_scale": 1.0 if kind == "hunyuan_video" else 5.0,
                },
                "training": {"batch": 1},
                "evaluation": {"batch": 1},
            }
        ),
        DEVICES["h100"],
    )


def row(name: str, told: Prediction, what: str) -> dict[str, Any]:
    """One row of the record."""
    train = max(size for phase, size in told.phases.items() if phase != "evaluation")
    return {
        "model": name,
        "settings": what,
        "clip": "×".join(map(str, told.size)),
        "weights_bytes": sum(told.weights.values()),
        "phases_bytes": told.phases,
        "peak_bytes": told.peak,
        "training_peak_bytes": train,
        "fullest_phase": told.fullest,
        "h100_seconds": told.seconds,
        "fits": {str(size): Device("", size * GIB).fits(told.peak) for size in SIZES},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of the record, with what its settings mean."""
    used = {r["settings"] for r in rows}
    means = "".join(f"- *{what}*: {meaning}\n" for what, meaning in MEANS.items() if what in used)
    head = ["model", "clip", "settings", "peak (GiB)", "fullest phase", *(f"{size} GB" for size in SIZES), "s on H100"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        marks = ["yes" if r["fits"][str(size)] else "–" for size in SIZES]
        peak, time_s = f"{r['peak_bytes'] / GIB:.1f}", f"{r['h100_seconds']:.1f}"
        lines.append(
            "| " + " | ".join([r["model"], r["clip"], r["settings"], peak, r["fullest_phase"], *marks, time_s]) + " |"
        )
    return means + "\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Predict each row, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(PUBLISHED))
    parser.add_argument("--rows", default=",".join(SETTINGS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/plan_table.json"))
    parser.add_argument("--markdown", type=Path, default=Path("docs/plan_table.md"))
    args = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(args.out.read_text())["rows"] if args.out.is_file() else []
    for name in args.models.split(","):
        for what in args.rows.split(","):
            start = time.process_time()
            with tempfile.TemporaryDirectory() as temporary:
                made = row(name, plan(name, Path(temporary) / "model", what), what)
            print(name, what, f"{time.process_time() - start:.0f} s to predict", made["peak_bytes"] / GIB, flush=True)
            rows = [*(r for r in rows if (r["model"], r["settings"]) != (name, what)), made]
            rows.sort(key=lambda r: (list(PUBLISHED).index(r["model"]), list(SETTINGS).index(r["settings"])))
            args.out.write_text(json.dumps({"predicted": True, "rows": rows}, indent=2) + "\n")
            args.markdown.write_text(HEAD + table(rows))


if __name__ == "__main__":
    main()
