"""What devices have: memory, and arithmetic a second as their makers publish it, dense, without sparsity."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field

import torch

from reelign.errors import UnknownNameError

GIB = 1 << 30
CONTEXT = int(0.6 * GIB)  # of a GPU's driver and libraries; no tensor lives there
SLACK = 0.05  # of the peak: what the allocator cannot use again, and libraries' workspaces
EFFICIENCY = 0.4  # share of the published arithmetic that training reaches


@dataclass(frozen=True)
class Device:
    """Where a run is to fit.

    Args:
        name: as people say it.
        memory: bytes.
        tflops: 10¹² operations a second at full use: ``half`` precision, ``float32`` products, and ``convolution`` in
            float32, which cuDNN does in TF32. Empty where nobody knows.
        gpu: whether the driver takes memory, and idle encoders are parked elsewhere.
        efficiency: share of ``tflops`` that is reached.
    """

    name: str
    memory: int
    tflops: dict[str, float] = field(default_factory=dict, hash=False)
    gpu: bool = True
    efficiency: float = EFFICIENCY

    def needed(self, peak: int) -> int:
        """Bytes of this device that a peak of live bytes takes up."""
        return int(peak * (1 + SLACK)) + CONTEXT if self.gpu else peak

    def fits(self, peak: int) -> bool:
        """Whether that is there."""
        return self.needed(peak) <= self.memory


def _gpu(name: str, gib: int, half: float, float32: float, convolution: float) -> Device:
    return Device(name, gib * GIB, {"half": half, "float32": float32, "convolution": convolution})


DEVICES = {
    "h200": _gpu("H200", 141, 989, 67, 494),
    "h100": _gpu("H100", 80, 989, 67, 494),
    "a100": _gpu("A100", 80, 312, 19.5, 156),
    "4090": _gpu("RTX 4090", 24, 165, 82.6, 82.6),
    "3090": _gpu("RTX 3090", 24, 71, 35.6, 35.6),
    "l4": _gpu("L4", 24, 121, 30.3, 60),
}


def find_device(name: str) -> Device:
    """A device by name: of the table, ``24GB`` for any GPU of that size, ``cpu``, or ``auto`` for what is here.

    Raises:
        UnknownNameError: neither.
    """
    wanted = name.lower().strip()
    if wanted == "auto" and torch.cuda.is_available():
        return this_gpu()
    if wanted in ("auto", "cpu"):
        return this_processor()
    if size := re.fullmatch(r"(\d+(?:\.\d+)?)\s*gi?b", wanted):
        return Device(f"a GPU of {size[1]} GB", int(float(size[1]) * GIB))
    if wanted not in DEVICES:
        raise UnknownNameError("device", name, [*DEVICES, "cpu", "auto", "24GB"])
    return DEVICES[wanted]


def this_gpu() -> Device:
    """The GPU that is here, with the arithmetic of the table where its name is there."""
    found = torch.cuda.get_device_properties(0)
    known = next((device for key, device in DEVICES.items() if key in found.name.lower()), None)
    return Device(found.name, found.total_memory, known.tflops if known else {})


def this_processor(side: int = 512, repeats: int = 5) -> Device:
    """This machine's memory, and its arithmetic as a short product of matrices measures it."""
    a = torch.randn(side, side)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    rate = 2 * side**3 / min(times) / 1e12
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Device("cpu", memory, dict.fromkeys(("half", "float32", "convolution"), rate), gpu=False)
