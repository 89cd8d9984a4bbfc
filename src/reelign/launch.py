"""What a launcher asks of this process: which GPU is its own, and whether networks are kept in parts.

``accelerate launch`` says it in environment variables, which are read once and taken away, so that no library acts on
them too: told of FSDP, transformers would load weights in one process alone.
"""

from __future__ import annotations

import os

import torch

from reelign.errors import ConfigError

WRAPPERS = ("DEEPSPEED", "MEGATRON_LM", "TP", "PARALLELISM_CONFIG")  # what Accelerate calls them
FSDP2 = {
    "FSDP_VERSION": "2",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",  # generator.gradient_checkpointing does it
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}


def asked_for_parts() -> bool:
    """Whether networks are to be kept in parts, by FSDP2.

    Raises:
        ConfigError: accelerate is told something that is not supported. Only in the first process; others exit.
    """
    problem, in_parts = _unsupported(), _asked("FSDP")
    if problem and os.environ.get("RANK") != "0":
        raise SystemExit(2)
    if problem:
        raise ConfigError(problem)
    for name in ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        os.environ.pop(name, None)
    return in_parts


def _unsupported() -> str | None:
    for name in filter(_asked, WRAPPERS):
        return (
            f"accelerate is told to use {name}, which is not supported: launch with --multi_gpu, or with --use_fsdp "
            "--fsdp_version 2 where a network is too large for one GPU"
        )
    for name, only in FSDP2.items() if _asked("FSDP") else ():
        got = os.environ.get(name, "1" if name == "FSDP_VERSION" else only)
        if got.lower() != only:
            return f"of accelerate's {name}, reelign knows {only} alone; got {got}: launch with --{name.lower()} {only}"
    return None


def _asked(wrapper: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{wrapper}", "").lower() in ("true", "1")


def choose_gpu() -> None:
    """Take the GPU of this process's number, where there are any.

    Raises:
        ConfigError: more processes than GPUs.
    """
    local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if there and local >= there:
        raise ConfigError(
            f"a GPU for each process: this machine has {there}, and was asked for process {local + 1}: start "
            f"{there}, or set CUDA_VISIBLE_DEVICES= to run on the CPU"
        )
    if there:
        torch.cuda.set_device(local)
