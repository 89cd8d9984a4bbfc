"""What streaming costs on this machine: first frame, frames a second, and memory over 60 s of video.

    python benchmarks/stream.py                                    # zoo:tiny-causal-wan
    python benchmarks/stream.py zoo:tiny-wan --frames-per-block 1 --steps 4 --guidance-scale 1

Three parts, written to ``benchmarks/results/stream.json``: latency and speed over fresh streams, in the engine alone;
one stream of 60 s of video after 10 s of warming up, whose prompt changes twice, likewise; and 60 s as a page gets them
from a server in a process of its own, with two new prompts, the page closed and opened again in between. Memory is the
resident size of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from websockets.sync.client import connect

from reelign.generators.causal_wan import CausalWanGenerator
from reelign.stream.loading import load_streamer
from reelign.stream.messages import HEADER, pack_frame
from reelign.stream.session import StreamOptions, StreamSession
from reelign.video_io import to_pictures

RESULTS = Path(__file__).parent / "results" / "stream.json"
PROMPTS = ("a red circle moving left", "a blue square moving up", "a green triangle growing")
WARM_UP_S, VIDEO_S = 10, 60


def first_frames(generator: CausalWanGenerator, options: StreamOptions, streams: int, seconds: float) -> dict[str, Any]:
    """Fresh streams, each some seconds of video; prompts that were not seen before, so that text is encoded too."""
    latencies, speeds, packing = [], [], []
    for index in range(streams):
        prompt = f"{PROMPTS[index % 3]} {'again ' * (index // 3)}".strip()
        with StreamSession(generator, prompt, options) as session:
            began, latency = time.perf_counter(), 0.0
            for part in session:
                if not latency:
                    latency = part.seconds
                    began = time.perf_counter()
                if session.frames >= seconds * generator.fps:
                    break
            made = session.frames - 1
            speeds.append(made / (time.perf_counter() - began))
            latencies.append(latency)
        began = time.perf_counter()
        pictures = to_pictures(part.video)
        for picture in pictures:
            pack_frame(picture, 0, 0, 0.0)
        packing.append((time.perf_counter() - began) / len(pictures))
    return {
        "streams": streams,
        "first_frame_s": spread(latencies),
        "frames_per_s": spread(speeds),
        "jpeg_s_a_frame": round(statistics.median(packing), 5),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {
        "median": round(statistics.median(values), 4),
        "least": round(min(values), 4),
        "largest": round(max(values), 4),
    }


def long_stream(generator: CausalWanGenerator, options: StreamOptions) -> dict[str, Any]:
    """One stream of 60 s after 10 s of warming up, with a new prompt at a third and at two thirds."""
    process, fps = psutil.Process(), generator.fps
    wanted = [prompt_at * fps for prompt_at in (WARM_UP_S + VIDEO_S / 3, WARM_UP_S + 2 * VIDEO_S / 3)]
    prompts, changes = list(PROMPTS[1:]), []
    resident: list[tuple[float, int]] = []
    network: list[int] = []
    began, changing = time.perf_counter(), False
    with StreamSession(generator, PROMPTS[0], options) as session:
        while session.frames < (WARM_UP_S + VIDEO_S) * fps:
            before = time.perf_counter()
            part = next(session)
            if changing:
                changes.append({"frame": part.first, "next_frames_s": round(time.perf_counter() - before, 4)})
            changing = bool(wanted) and session.frames >= wanted[0]
            if changing:
                wanted.pop(0)
                session.change(prompts.pop(0))
            if session.frames >= WARM_UP_S * fps:
                resident.append((session.frames / fps, process.memory_info().rss))
                network.append(session.memory_bytes)
    return {
        "video_s": VIDEO_S,
        "frames": session.frames,
        "seconds": round(time.perf_counter() - began, 1),
        "changes": changes,
        "keys_and_values_bytes": {"least": min(network), "largest": max(network)},
        "resident": growth(resident),
    }


def growth(resident: list[tuple[float, int]], every_s: float = 5.0) -> dict[str, Any]:
    """Of (seconds of video, bytes): the least of each 5 s, which is between passes, against the first of them."""
    least: dict[int, int] = {}
    for second, size in resident:
        place = int(second // every_s)
        least[place] = min(size, least.get(place, size))
    sizes = list(least.values())
    return {
        "after_warm_up_bytes": sizes[0],
        "largest_growth": round(max(sizes) / sizes[0] - 1, 5),
        "last_growth": round(sizes[-1] / sizes[0] - 1, 5),
        "megabytes_from_second": {f"{place * every_s:.0f}": round(size / 2**20, 1) for place, size in least.items()},
    }


class Page:
    """A page without a browser: it takes frames as they come and says so."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.began, self.first, self.seconds, self.frames = 0.0, 0.0, 0.0, 0
        self.hello = json.loads(self.socket.recv())

    def start(self, prompt: str) -> None:
        self.began = time.perf_counter()
        self.socket.send(json.dumps({"type": "start", "prompt": prompt}))

    def frame(self) -> None:
        while isinstance(message := self.socket.recv(timeout=120), str):
            said = json.loads(message)
            if said["type"] in ("refused", "ended"):
                raise SystemExit(f"the server: {said}")
        index = HEADER.unpack_from(message)[0]
        self.first = self.first or time.perf_counter() - self.began
        self.frames += 1
        self.socket.send(json.dumps({"type": "seen", "index": index}))


def served(arguments: list[str]) -> dict[str, Any]:
    """A server, and a page that watches 10 s, then twice 30 s, closed and opened again in between."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "reelign", "stream", *arguments, "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, server)
        return watched(f"127.0.0.1:{port}", psutil.Process(server.pid))
    finally:
        server.terminate()
        server.wait(30)


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server did not start; run `reelign stream` to see why")


def watched(address: str, process: psutil.Process) -> dict[str, Any]:
    resident: list[tuple[float, int]] = []
    pages, seconds = [], 0.0
    for length, prompts in ((WARM_UP_S, PROMPTS[:1]), (VIDEO_S / 2, PROMPTS[:2]), (VIDEO_S / 2, PROMPTS[1:])):
        with connect(f"ws://{address}/stream", origin=f"http://{address}") as opened:
            page, sizes = watch(Page(opened), length, prompts, process)
        warm = len(sizes) // 2 if not pages else 0
        resident += [(seconds + second, size) for second, size in sizes[warm:]]
        seconds += length
        pages.append(page)
    return {
        "first_frame_s": [round(page.first, 4) for page in pages],
        "frames_per_s_shown": [round(page.frames / page.seconds, 3) for page in pages],
        "resident": growth(resident),
    }


def watch(
    page: Page, length_s: float, prompts: tuple[str, ...], process: psutil.Process
) -> tuple[Page, list[tuple[float, int]]]:
    """A stream of some seconds, with a new prompt in its middle where there is one."""
    fps, sizes = page.hello["fps"], []
    page.start(prompts[0])
    while page.frames < length_s * fps:
        page.frame()
        if len(prompts) > 1 and page.frames == length_s * fps // 2:
            page.socket.send(json.dumps({"type": "change", "prompt": prompts[1]}))
        sizes.append((page.frames / fps, process.memory_info().rss))
    page.seconds = time.perf_counter() - page.began
    return page, sizes


def server_arguments(chosen: argparse.Namespace) -> list[str]:
    """The same model for ``reelign stream``."""
    named = ("frames_per_block", "steps", "guidance_scale", "window", "sink")
    given = [(name, getattr(chosen, name)) for name in named if getattr(chosen, name) is not None]
    return [chosen.model, *(word for name, value in given for word in (f"--{name.replace('_', '-')}", str(value)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="zoo:tiny-causal-wan")
    parser.add_argument("--frames-per-block", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--window", type=int)
    parser.add_argument("--sink", type=int, default=0)
    parser.add_argument("--streams", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=5.0, help="of video in each fresh stream")
    chosen = parser.parse_args()
    generator = load_streamer(
        chosen.model, window=chosen.window, sink=chosen.sink, frames_per_block=chosen.frames_per_block
    )
    options = StreamOptions(steps=chosen.steps, guidance_scale=chosen.guidance_scale, seed=0)
    with StreamSession(generator, "warming up", options) as session:
        for _ in range(4):
            next(session)
    height, width = generator.picture_size()
    scale = generator.default_guidance_scale if chosen.guidance_scale is None else chosen.guidance_scale
    found = {
        "model": chosen.model,
        "picture": [height, width],
        "fps": generator.fps,
        "frames_per_block": generator.layout.frames_per_block,
        "window": generator.layout.window,
        "sink": generator.layout.sink,
        "steps": chosen.steps or generator.default_steps,
        "guidance_scale": scale,
        "device": str(generator.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU",
        "fresh_streams": first_frames(generator, options, chosen.streams, chosen.seconds),
        "long_stream": long_stream(generator, options),
        "served": served(server_arguments(chosen)),
    }
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
