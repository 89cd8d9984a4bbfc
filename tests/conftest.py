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


@pytest.fixture(scope="session")
def random_wan_folder(tmp_path_factory):
    """A random WanPipeline folder of two small layers, in the published layout, in float16 files."""
    from diffusers import WanTransformer3DModel

    from reelign.zoo.tiny_wan import build_text_encoder, save_pipeline
    from reelign.zoo.tiny_wan_vae import build_vae
    from reelign.zoo.words import word_tokenizer

    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=8, out_channels=8, text_dim=64, freq_dim=32,
        ffn_dim=64, num_layers=2, rope_max_seq_len=64,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("wan")
    save_pipeline(path, build_vae(), transformer, build_text_encoder(), word_tokenizer(12))
    return path


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A tiny random checkpoint of a family by the name of its case; each is made once, and only read."""
    import tiny_families as tiny
    from family_cases import CASES

    made = {}

    def folder(name):
        if name not in made:
            made[name] = tiny.build(CASES[name].maker, tmp_path_factory.mktemp(name))
        return made[name]

    return folder


@pytest.fixture(scope="module")
def loaded(folders):
    """The generator of a case by its name, made once; tests put back what they change."""
    from family_cases import load

    made = {}

    def generator(name):
        if name not in made:
            made[name] = load(folders(name), name)
        return made[name]

    return generator


@pytest.fixture
def random() -> torch.Generator:
    """A seeded source of random numbers."""
    return torch.Generator().manual_seed(0)
