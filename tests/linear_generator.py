"""A generator whose network is linear, so that every chain and gradient has an exact answer; bent on request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from reelign.contracts import Condition, NoisePath, Request


class LinearGenerator(nn.Module):
    """eps = W·x + (t/1000)·u + V·y over channels, latents [B,C,F,h,w]; decoding maps channels 0..2 to colours."""

    def __init__(self, path: NoisePath, w: Tensor, u: Tensor, v: Tensor, shape: Sequence[int]) -> None:
        super().__init__()
        self.w, self.u, self.v = nn.Parameter(w), nn.Parameter(u), nn.Parameter(v)
        self.path, self.shape, self.fps, self.calls = path, tuple(shape), 8.0, 0
        self.use_adapter, self.bent = True, False

    def latent_shape(self) -> tuple[int, ...]:
        return self.shape

    def frames(self) -> int:
        return self.shape[1]

    def encode(self, request: Request) -> Condition:
        y = torch.stack([torch.full((self.v.shape[1],), float(len(p) % 7) - 3) for p in request.prompts]).to(self.w)
        return Condition({"y": y}, {"y": torch.zeros_like(y)})

    def predict(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.calls += 1
        w = self.w if self.use_adapter else self.w.detach() * 0
        out = torch.einsum("oc,bcfhw->bofhw", w, x) + (t / 1000).view(-1, 1, 1, 1, 1) * self.u.view(1, -1, 1, 1, 1)
        out = out + torch.einsum("ok,bk->bo", self.v, condition.positive["y"]).view(len(x), -1, 1, 1, 1)
        return 2 * torch.sin(out) if self.bent else out

    def decode(self, x: Tensor, frames: Sequence[int] | None = None) -> Tensor:
        video = torch.sigmoid(x[:, :3].transpose(1, 2)).float()
        return video if frames is None else video[:, list(frames)]

    def encode_video(self, video: Tensor) -> Tensor:
        latent = torch.zeros(len(video), *self.shape)
        latent[:, :3] = torch.logit(video.clamp(1e-4, 1 - 1e-4)).transpose(1, 2)
        return latent.to(self.w.dtype)

    def trainable(self) -> dict[str, nn.Parameter]:
        return {"w": self.w, "u": self.u, "v": self.v}

    def merged(self):
        return nullcontext()

    @contextmanager
    def reference(self) -> Iterator[None]:
        self.use_adapter = False
        yield
        self.use_adapter = True

    def save(self, folder: str) -> None:
        raise AssertionError("not needed here")

    def load(self, folder: str) -> None:
        raise AssertionError("not needed here")
