"""Causal rollouts: a memory against none, ``reelign`` against the released loop, bytes, and frames a second.

On a CPU, 21 latent frames in blocks of 3, 4 steps a block, random weights, one thread, one process, in turns; seconds
are of the processor (other work on the machine does not count), medians over the turns. All rows start from the same
noise and must give the same clip, to 1e-4.

    reelign     ``sampling.rollout``
    recompute   no memory: each pass runs all frames so far through the block-causal network, clean ones at time 0
    rebuild     no memory between passes: each pass makes it anew from all blocks so far, block by block
    official    the released loop, restated (``causal_rollout_official.py``)

Passes are counted where they happen; ``blocks`` are passes times the blocks in each. Then bytes: of the memory after
each block, and the peak of all bytes alive, for ever longer clips with and without a window. Then frames a second of a
stream, with and without decoding.

Run: ``python benchmarks/causal_rollout.py`` (minutes), with ``--quick`` to see that it runs; on a GPU, Wan 2.1 1.3B's
size at 480×832: ``python benchmarks/causal_rollout.py --device cuda`` (needs no weights).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from causal_models import BLOCK, SHIFT, SIZES, STEPS, build, text
from causal_rollout_official import OfficialLoop
from meters import peak_bytes
from rich.console import Console
from rich.table import Table
from torch import Tensor

from reelign.contracts import Condition
from reelign.generators.causal_network import whole
from reelign.generators.causal_wan import CausalWanGenerator
from reelign.sampling import RolloutOptions, begin, roll, rollout

RESULTS = Path(__file__).parent / "results" / "causal_rollout.json"
FRAMES = 21
GOALS = {"recompute": 3.0, "rebuild": 3.0, "official": 1.2}
SAME = 1e-4


class Tape:
    """Noise for a batch: the same draws for whoever asks in the same order."""

    def __init__(self, batch: int, device: torch.device, seed: int = 3) -> None:
        self.random, self.batch, self.device = torch.Generator().manual_seed(seed), batch, device

    def __call__(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(self.batch, *shape, generator=self.random).to(self.device)


class Case:
    """One model, ready to be rolled out in each way."""

    def __init__(self, size: str, batch: int, frames: int, **causal: Any) -> None:
        self.generator = build(size, **causal)
        self.condition, self.batch, self.frames = text(self.generator, size, batch), batch, frames
        layout = self.generator.layout
        self.loop = OfficialLoop(self.generator.network, BLOCK, layout.window or -1, layout.sink, SHIFT)

    def tape(self) -> Tape:
        return Tape(self.batch, self.generator.device)

    @torch.no_grad()
    def reelign(self) -> Tensor:
        schedule = self.generator.path.schedule(STEPS)
        return rollout(self.generator, self.condition, self.frames, schedule, self.tape())

    def recompute(self) -> Tensor:
        network, layout = self.generator.network, self.generator.layout
        words = self.generator.begin(self.condition).text

        def flow(known: Tensor, x: Tensor, t: Tensor) -> Tensor:
            times = torch.zeros(self.batch, known.shape[2] + x.shape[2])
            times[:, known.shape[2] :] = t
            return whole(network, layout, torch.cat([known, x], 2), times, words)[:, :, known.shape[2] :]

        return self._without_memory(flow)

    def rebuild(self) -> Tensor:
        generator, still = self.generator, torch.tensor(0.0)
        empty = generator.begin(self.condition)

        def flow(known: Tensor, x: Tensor, t: Tensor) -> Tensor:
            memory = empty
            for block in known.split(BLOCK, dim=2) if known.shape[2] else ():
                memory = generator.advance(block, still, self.condition, memory)[1]
            return generator.advance(x, t, self.condition, memory)[0]

        return self._without_memory(flow)

    @torch.no_grad()
    def _without_memory(self, flow: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        draw, levels = self.tape(), self.generator.path.schedule(STEPS).to(torch.zeros(()))
        channels, _, *space = self.generator.latent_shape()
        known = torch.zeros(self.batch, channels, 0, *space)
        for size in self.generator.blocks(self.frames):
            x = draw((channels, size, *space))
            for i in range(STEPS):
                x0 = x - levels.sigma[i] * flow(known, x, levels.t[i])
                if i < STEPS - 1:
                    x = levels.alpha[i + 1] * x0 + levels.sigma[i + 1] * draw(x.shape[1:])
            known = torch.cat([known, x0], 2)
        return known

    def official(self) -> Tensor:
        channels, _, *space = self.generator.latent_shape()
        tape, shape = self.tape(), (channels, BLOCK, *space)
        drawn = [[tape(shape) for _ in range(STEPS)] for _ in range(self.frames // BLOCK)]  # in reelign's order
        noise = torch.cat([block[0] for block in drawn], 2).transpose(1, 2).contiguous()
        later = iter([each for block in drawn for each in block[1:]])
        clip = self.loop(noise, self.condition.positive["text"], lambda x0: next(later).transpose(1, 2))
        return clip.transpose(1, 2)


@contextmanager
def counting(network: Any) -> Iterator[Counter[str]]:
    """Inside, counts passes of the network, and the blocks in them."""
    counts: Counter[str] = Counter()

    def note(module: Any, args: tuple[Tensor]) -> None:
        counts["passes"] += 1
        counts["blocks"] += args[0].shape[2] // BLOCK

    handle = network.patch_embedding.register_forward_pre_hook(note)
    try:
        yield counts
    finally:
        handle.remove()


def compare(
    name: str, case: Case, repeats: int, without: Sequence[str] = (), small: bool = True
) -> list[dict[str, Any]]:
    """A row for each way: that it is the same clip, how much was run, and seconds."""
    ways: dict[str, Callable[[], Tensor]] = {
        "reelign": case.reelign, "recompute": case.recompute, "rebuild": case.rebuild, "official": case.official,
    }  # fmt: skip
    ways = {way: make for way, make in ways.items() if way not in without}
    rows, clips = {}, {}
    for way, make in ways.items():
        with counting(case.generator.network) as counts:
            clips[way] = make()
        rows[way] = {"case": name, "way": way, **counts, "peak_bytes": None, "seconds_all": []}
        if small:  # the meter looks at every operator, which takes its time
            with peak_bytes(case.generator.device) as peak:
                make()
                rows[way]["peak_bytes"] = peak()
        rows[way]["difference"] = (clips[way] - clips["reelign"]).abs().max().item()
        if not rows[way]["difference"] <= SAME:
            raise SystemExit(f"{name}: {way} made another clip, {rows[way]['difference']:.2g} away")
    for _ in range(repeats):
        for way, make in ways.items():
            start = time.process_time()
            make()
            rows[way]["seconds_all"].append(time.process_time() - start)
    for way, row in rows.items():
        row["seconds"] = statistics.median(row["seconds_all"])
        pairs = zip(row["seconds_all"], rows["reelign"]["seconds_all"], strict=True)
        row["times_reelign"] = statistics.median(theirs / ours for theirs, ours in pairs)
        row["goal"] = GOALS.get(way)
    return list(rows.values())


@torch.no_grad()
def growth(size: str, lengths: Sequence[int], **causal: Any) -> list[dict[str, Any]]:
    """Bytes of the memory at the end, and the peak of bytes alive, of ever longer clips whose blocks nobody keeps."""
    generator = build(size, **causal)
    condition, rows = text(generator, size, 1), []
    for frames in lengths:
        with peak_bytes(generator.device) as peak:
            blocks = roll(
                generator, condition, generator.blocks(frames), generator.path.schedule(STEPS),
                Tape(1, generator.device), RolloutOptions(), begin(generator, condition),
            )  # fmt: skip
            for _, memory in blocks:
                held = memory.bytes()
            del blocks, memory
            rows.append(
                {"layout": causal or "everything", "frames": frames, "memory_bytes": held, "peak_bytes": peak()}
            )
    return rows


@torch.no_grad()
def stream(
    generator: CausalWanGenerator, condition: Condition, frames: int, decode: bool, warm_up: bool = True
) -> dict[str, Any]:
    """Wall seconds to the first pictures of a stream, and pictures a second after that; blocks decoded as they come."""
    if warm_up:
        stream(generator, condition, 2 * BLOCK, decode, False)
    sizes, draw = generator.blocks(frames), Tape(1, generator.device)
    pixels, marks, cache = 0, [_now(generator.device)], None
    schedule, options = generator.path.schedule(STEPS), RolloutOptions()
    for x0, _ in roll(generator, condition, sizes, schedule, draw, options, begin(generator, condition)):
        if decode:
            _, cache = generator.decode_next(x0, cache)
        pixels += x0.shape[2] * 4
        marks.append(_now(generator.device))
    blocks = [after - before for before, after in itertools.pairwise(marks)]
    return {
        "decoded": decode,
        "latent_frames": frames,
        "first_pictures_s": blocks[0],
        "pictures_a_second": (pixels - 3) / sum(blocks),
        "pictures_a_second_later": BLOCK * 4 / statistics.median(blocks[1:]),
        "seconds_a_block": blocks,
    }


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def streams(size: str, device: str, dtype: str, frames: int) -> dict[str, Any]:
    """Frames a second of a size, without a window and with one, with and without decoding."""
    rows = []
    for causal in ({}, {"window": 9, "sink": 3}):
        generator = build(size, device, dtype, **causal)
        condition = text(generator, size, 1)
        for decode in (False, True):
            with peak_bytes(generator.device) if device == "cuda" else _unmeasured() as peak:
                row = stream(generator, condition, frames, decode)
                rows.append({"layout": causal or "everything", **row, "peak_bytes": peak()})
        del generator
    where = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"size": size, "device": where, "dtype": dtype, "rows": rows}


@contextmanager
def _unmeasured() -> Iterator[Callable[[], None]]:
    yield lambda: None


def show(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in (row.get(name) for name in columns)))
    Console().print(table)


def on_cpu(quick: bool, repeats: int) -> dict[str, Any]:
    frames = 2 * BLOCK if quick else FRAMES
    cases = {
        "tiny-wan, 1 clip": ("tiny-wan", 1, {}, 5 * repeats, ()),
        "tiny-wan, 4 clips": ("tiny-wan", 4, {}, repeats, ()),
        "tiny-wan, window 9, sink 3": ("tiny-wan", 1, {"window": 9, "sink": 3}, 5 * repeats, ("recompute", "rebuild")),
        "middle, 1 clip": ("middle", 1, {}, repeats, ()),
    }
    rows = []
    for name, (size, batch, causal, turns, without) in cases.items():
        case = Case("tiny" if quick else size, batch, frames, **causal)
        rows += compare(name, case, turns, without, quick or size == "tiny-wan")
    show(rows, ["case", "way", "passes", "blocks", "seconds", "times_reelign", "goal", "peak_bytes", "difference"])
    lengths = (6, 12) if quick else (21, 42, 84, 168)
    bytes_ = [row for causal in ({}, {"window": 9}, {"window": 9, "sink": 3}) for row in
              growth("tiny" if quick else "tiny-wan", lengths, **causal)]  # fmt: skip
    show(bytes_, ["layout", "frames", "memory_bytes", "peak_bytes"])
    seen = streams("tiny" if quick else "tiny-wan", "cpu", "float32", frames)
    show(seen["rows"], ["layout", "decoded", "first_pictures_s", "pictures_a_second"])
    return {"frames": frames, "threads": torch.get_num_threads(), "speed": rows, "memory": bytes_, "stream": seen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, to see that it runs; saves nothing")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=sorted(SIZES), help="only frames a second, of this size")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="with --size or cuda; cuda: bfloat16")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    kept = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    if arguments.device == "cuda" or arguments.size:
        size = arguments.size or "wan-1.3b"
        dtype = arguments.dtype or ("bfloat16" if arguments.device == "cuda" else "float32")
        found = streams(size, arguments.device, dtype, 2 * BLOCK if arguments.quick else FRAMES)
        show(found["rows"], ["layout", "decoded", "first_pictures_s", "pictures_a_second", "peak_bytes"])
        kept[f"stream {size} {found['device']}"] = found
    else:
        kept |= on_cpu(arguments.quick, 1 if arguments.quick else arguments.repeats)
    if not arguments.quick:
        arguments.out.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
