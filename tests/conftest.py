"""Shared fixtures: the folder of golden numbers and clips beside the checkout, and zoo checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture
def golden():
    """Loads a golden case: tensors and description; skips where the folder is absent."""
    import json

    from safetensors.torch import load_file

    def load(case: str):
        folder = SHARED / "golden" / case
        if not folder.is_dir():
            pytest.skip(f"golden numbers are not here: {folder}")
        return load_file(folder / "golden.safetensors"), json.loads((folder / "golden.json").read_text())

    return load


@pytest.fixture(scope="session")
def tiny_wan():
    """The zoo's generator with an adapter; shared, so tests put back what they change."""
    from reelign.generators.wan import load_wan

    return load_wan(model="zoo:tiny-wan", device="cpu")


@pytest.fixture
def random() -> torch.Generator:
    """A seeded source of random numbers."""
    return torch.Generator().manual_seed(0)
