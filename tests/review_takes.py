"""A small takes folder with real clips, and a review server in a process of its own, for tests of the review page."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from reelign.selection.takes import SCORE_COLUMNS, TakesFolder
from reelign.video_io import write_clip

CHROMIUM = Path("/usr/bin/chromium")
PROMPTS = ("a red square moves right", "<script>document.title = 'owned'</script> & \"quotes\"", "")
RUN = "import typer; from reelign.cli.review import review; typer.run(review)"


def make_takes(path: Path, per_group: int = 4, frames: int = 12, size: int = 64) -> TakesFolder:
    """Three groups of squares that move at different speeds, two generators, one score that is sometimes undefined."""
    folder = TakesFolder(path, create=True)
    takes, scores = [], []
    for group, prompt in enumerate(PROMPTS):
        for index in range(per_group):
            file = f"clips/{group}/{index}.mp4"
            write_clip(path / file, square(frames, size, group, index), 8)
            take = hashlib.sha256((path / file).read_bytes()).hexdigest()
            generator = ("alpha", "beta")[index % 2]
            takes.append((take, file, prompt, f"group {group}", generator, 100 * group + index))
            ok = index > 0
            status, reason = ("ok", "") if ok else ("undefined", "it has no motion to speak of")
            score = {"take": take, "metric": "motion", "version": 1, "parameters": "", "prompt": ""}
            value = float(group * 10 + index) if ok else float("nan")
            scores.append(score | {"value": value, "status": status, "reason": reason})
    folder.append_takes(pd.DataFrame(takes, columns=["take", "file", "prompt", "group", "generator", "seed"]))
    folder.append_scores(pd.DataFrame(scores)[list(SCORE_COLUMNS)])
    return folder


def square(frames: int, size: int, colour: int, speed: int) -> torch.Tensor:
    """A square that moves ``speed`` pixels a frame."""
    video = torch.full((frames, 3, size, size), 0.15)
    for t in range(frames):
        x = (4 + speed * t) % (size - 20)
        video[t, colour % 3, size // 3 : size // 3 + 16, x : x + 16] = 0.9
    return video


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Server:
    """``reelign review`` as users run it, in its own process."""

    takes: Path
    options: tuple[str, ...] = ()
    port: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self) -> Server:
        """Start, and wait until it answers; again on the same port."""
        self.port = self.port or free_port()
        command = [sys.executable, "-c", RUN, str(self.takes), "--port", str(self.port), *self.options]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(self.process.communicate()[0])
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
                return self
            except urllib.error.HTTPError:
                return self
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server did not start within 60 s")

    def kill(self) -> None:
        """SIGKILL: no chance to clean up."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"
