"""Makes runs of ``reelign demo``, each in a process of its own and several at once; what is there already is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def make_runs(runs: Mapping[Path, Sequence[str]], at_once: int) -> None:
    """Run ``reelign demo`` with these arguments for each output folder; the processors are shared among ``at_once``."""
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}

    def make(out: Path) -> None:
        if (out / "summary.json").exists():
            return
        command = [sys.executable, "-m", "reelign", "demo", "--out", str(out), *runs[out]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        print(f"{out.name}: {'done' if done.returncode == 0 else done.stdout + done.stderr}", flush=True)
        done.check_returncode()

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(make, runs))


def read_run(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """``summary.json`` of a run, and its ``guard.json`` (empty lists where it had no guard)."""
    guard = out / "guard.json"
    record = json.loads(guard.read_text()) if guard.exists() else {"looks": [], "decisions": [], "best": None}
    return json.loads((out / "summary.json").read_text()), record
