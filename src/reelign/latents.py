"""Latents of clips, encoded once: two algorithms begin from clips, and encoding costs more than a training step."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reelign.contracts import Generator


class LatentCache:
    """Latents of clips, encoded once; in memory, and on disk where a folder is given.

    Args:
        generator: what encodes.
        folder: where latents are kept between runs.
    """

    def __init__(self, generator: Generator, folder: Path | None = None) -> None:
        self.generator = generator
        self.folder = folder
        self._known: dict[str, Tensor] = {}

    def encode(self, video: Tensor) -> Tensor:
        """Latents [B,…] of clips [B,T,3,H,W] in [0,1], on the CPU."""
        keys = [_key(clip) for clip in video.cpu()]
        for key, clip in zip(keys, video, strict=True):
            if key not in self._known:
                self._known[key] = self._read(key) if self._kept(key) else self._write(key, clip)
        return torch.stack([self._known[key] for key in keys])

    def _kept(self, key: str) -> bool:
        return self.folder is not None and (self.folder / f"{key}.safetensors").is_file()

    def _read(self, key: str) -> Tensor:
        assert self.folder is not None
        latent: Tensor = load_file(self.folder / f"{key}.safetensors")["latent"]
        return latent

    def put(self, clip: Tensor, latent: Tensor) -> None:
        """Keep the latent that a clip [T,3,H,W] was decoded from, which is better than encoding the clip again."""
        self._known[_key(clip.cpu())] = self._keep(_key(clip.cpu()), latent.cpu())

    def _write(self, key: str, clip: Tensor) -> Tensor:
        return self._keep(key, self.generator.encode_video(clip[None])[0].cpu())

    def _keep(self, key: str, latent: Tensor) -> Tensor:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            part = self.folder / f".{key}.{os.getpid()}.part"
            save_file({"latent": latent.contiguous()}, part)
            part.replace(self.folder / f"{key}.safetensors")
        return latent


def _key(clip: Tensor) -> str:
    return hashlib.sha256(clip.contiguous().numpy().tobytes()).hexdigest()[:32]
