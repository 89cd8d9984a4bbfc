"""The recipe of self-play, as a user runs it; its numbers without the paths.

Writes ``benchmarks/results/selfplay.json``.

Run: ``python benchmarks/selfplay_run.py`` (about half an hour on two cores; goes on where it was stopped), or with
``--folder RUN`` to take up a finished run.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "selfplay.json"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--folder", type=Path, default=Path("runs/selfplay"))
    folder = options.parse_args().folder
    if not (folder / "selfplay.json").is_file():
        resume = ["--resume"] if (folder / "config.yaml").is_file() else []
        command = [sys.executable, "-m", "reelign", "selfplay", "selfplay", "--set", f"output={folder}", *resume]
        subprocess.run(command, check=True)
    result = json.loads((folder / "selfplay.json").read_text())
    for record in result["rounds"]:
        for path in ("adapter", "samples"):
            record.pop(path)
    del result["adapter"]
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for record in result["rounds"]:
        goal = record["held_out"]["goal"]["in_all"]
        print(f"round {record['round']}: {goal['before']:.3f} -> {goal['after']:.3f}, {goal['ci95']}")


if __name__ == "__main__":
    main()
