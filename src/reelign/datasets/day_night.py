"""Day and night: one drawn scene in two lights, so that unpaired translation has a known answer.

Up to three shapes bounce or rotate before a striped backdrop with small grey lamps. By night

- the backdrop is dark and its colours are mixed by a matrix, its stripes stand out more, and corners are darker still;
- shapes keep nearly their colours (mixed by another matrix, close to the identity) and glow over what is near them;
- lamps are lit, warm, with a glow.

Both are filmed by cameras with grain, which a steady translation does not carry on: known answers have none.

All of the night can be seen in the day, and places and hues stay: the map is near the least change, so cycles and a
discriminator can find it. Backdrops are brighter than most shapes by day and darker by night, so no map of single
channels, such as matching their histograms, is close (``benchmarks/translation.py`` measures it).

Left out: shadows, camera motion, objects that only one light shows.

Run: ``reelign data translation OUT``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reelign.datasets.moving_shapes import PALETTE, SHAPES, signed_distance
from reelign.errors import DataError

Light = Literal["day", "night"]
LIGHTS: tuple[Light, ...] = ("day", "night")
MOTIONS = ("mixed", "bouncing", "rotating")
MOST, LAMPS = 3, 4  # shapes and lamps of a scene
COLOURS = torch.tensor([PALETTE[name] for name in ("red", "green", "blue", "yellow", "purple", "orange", "cyan")])
BACKDROPS = torch.tensor([(0.72, 0.86, 0.96), (0.94, 0.88, 0.74), (0.80, 0.92, 0.78)])  # sky, sand, meadow
LAMP_BY_DAY, LAMP_BY_NIGHT = torch.tensor([0.45, 0.45, 0.48]), torch.tensor([1.0, 0.86, 0.52])
# Rows give red, green and blue by night from red, green and blue by day.
BACKDROP_MIX = torch.tensor([(0.16, -0.02, -0.04), (0.04, 0.10, -0.02), (0.02, 0.06, 0.18)])
SHAPE_MIX = torch.tensor([(0.82, 0.12, 0.02), (0.08, 0.76, 0.12), (0.04, 0.16, 0.76)])
GLOW, REACH = 0.2, 0.05  # of shapes: share of their colour, and distance in sides at which it falls to 1/e
GRAIN: dict[Light, float] = {"day": 0.01, "night": 0.008}  # deviation of the cameras' noise


@dataclass(frozen=True)
class DayNight:
    """Draws clips of scenes by day, by night, or both.

    Args:
        frames: of a clip, at least 2.
        size: height and width in pixels, at least 32.
        fps: of a clip; scenes move at the same speed at any rate.
        motion: ``bouncing``, ``rotating`` on the spot, or ``mixed``: each shape one of the two.
    """

    frames: int = 16
    size: int = 64
    fps: float = 8.0
    motion: str = "mixed"

    def __post_init__(self) -> None:
        if self.frames < 2 or self.size < 32 or not self.fps > 0:
            raise DataError(
                f"drawn scenes need frames ≥ 2, size ≥ 32 and fps > 0; got {self.frames}, {self.size} and {self.fps:g}"
            )
        if self.motion not in MOTIONS:
            raise DataError(f"shapes of a scene move as one of {', '.join(MOTIONS)}; got {self.motion!r}")

    def batch(self, light: Light, count: int, generator: torch.Generator) -> Tensor:
        """Clips of new scenes in one light, as filmed: float32 [count,T,3,H,W] in [0,1]."""
        return self.filmed(light, self._draw(count, generator)[LIGHTS.index(light)], generator)

    def filmed(self, light: Light, clips: Tensor, generator: torch.Generator) -> Tensor:
        """Clips in [0,1] with the grain of the camera of one light."""
        return (clips + GRAIN[light] * torch.randn(clips.shape, generator=generator)).clamp(0, 1)

    def pair(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same new scenes by day and by night, without grain: twice float32 [count,T,3,H,W] in [0,1]."""
        return self._draw(count, generator)

    def _draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        day, night, points = _backdrop(count, self.size, generator)
        day, night = (picture[:, None].repeat(1, self.frames, 1, 1, 1) for picture in (day, night))
        _lamps(day, night, points, generator)
        seconds = torch.arange(self.frames) / self.fps
        for rank in range(MOST):
            distance = _tracks(count, seconds, points, self.motion, generator)
            # A scene has one shape for certain, a second in 3 of 4, a third in half of these.
            there = torch.rand(count, generator=generator) < (1.0, 0.75, 0.5)[rank]
            colour = COLOURS[torch.randint(len(COLOURS), (count,), generator=generator)]
            colour = (colour + 0.06 * torch.randn(count, 3, generator=generator)).clamp(0.08, 0.95)
            _paint(day, night, distance + 9.0 * ~there[:, None, None, None], colour)
        return day.clamp(0, 1), night.clamp(0, 1)


def _backdrop(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Day and night [N,3,H,W] of empty scenes, and the middle of every pixel, x and y [2,H,W] in sides."""
    along = (torch.arange(size) + 0.5) / size
    points = torch.stack(torch.meshgrid(along, along, indexing="xy"))
    x, y = points
    weights = torch.rand(count, len(BACKDROPS), generator=generator).pow(3)
    tint = (weights / weights.sum(1, keepdim=True)) @ BACKDROPS
    angle, phase = (math.pi * torch.rand(count, 1, 1, generator=generator) for _ in range(2))
    waves = 4 + 3 * torch.rand(count, 1, 1, generator=generator)
    stripes = (2 * math.pi * waves * (angle.cos() * x + angle.sin() * y) + phase).sin()
    day = tint[:, :, None, None] * (1 - 0.15 * y) * (1 + 0.05 * stripes[:, None])
    dark = _mix(BACKDROP_MIX, tint)[:, :, None, None] * (1 - 0.15 * y) * (1 + 0.2 * stripes[:, None])
    corner = (x - 0.5).square() + (y - 0.5).square()
    return day, dark * (1.15 - 0.9 * corner), points


def _lamps(day: Tensor, night: Tensor, points: Tensor, generator: torch.Generator) -> None:
    """Paint the lamps of every scene into [N,T,3,H,W], in place."""
    side = 1 / day.shape[-1]
    for _ in range(LAMPS):
        place = 0.08 + 0.84 * torch.rand(len(day), 2, 1, 1, generator=generator)
        distance = (points - place).square().sum(1).sqrt()[:, None, None]
        cover = (0.5 - (distance - 0.026) / side).clamp(0, 1)
        day.lerp_(LAMP_BY_DAY.view(3, 1, 1).expand_as(day), cover)
        light = LAMP_BY_NIGHT.view(3, 1, 1)
        night.add_(GLOW * light * (-(distance / REACH).square()).exp())
        night.lerp_(light.expand_as(night), cover)


def _tracks(count: int, seconds: Tensor, points: Tensor, motion: str, generator: torch.Generator) -> Tensor:
    """Signed distance, in sides, from every pixel to the outline of one moving shape a scene: [N,T,H,W]."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, generator=generator)

    radius = uniform(0.09, 0.15)
    bounces = {"mixed": torch.rand(count, 1, generator=generator) < 0.6}.get(
        motion, torch.full((count, 1), motion == "bouncing")
    )
    heading, speed = uniform(0, 2 * math.pi), uniform(0.15, 0.4) * bounces
    turn = uniform(0.4, 1.2) * (1 - 2 * (uniform(0, 1) < 0.5).float()) * ~bounces
    room = 1 - 2 * radius
    x, y = (
        radius + room * _triangle(uniform(0, 2) + speed * towards * seconds / room)
        for towards in (heading.cos(), heading.sin())
    )
    angle = (uniform(0, 2 * math.pi) + math.pi * turn * seconds)[..., None, None]
    dx, dy = points[0] - x[..., None, None], points[1] - y[..., None, None]
    u, v = angle.cos() * dx + angle.sin() * dy, angle.cos() * dy - angle.sin() * dx
    kind = torch.randint(len(SHAPES), (count,), generator=generator)
    kind = torch.where((kind == 0) & ~bounces[:, 0], 1, kind)  # a rotating circle looks like a still one
    distance = torch.empty(u.shape)
    for index, shape in enumerate(SHAPES):
        rows = kind == index
        distance[rows] = signed_distance(shape, u[rows], v[rows], radius[rows][..., None, None])
    return distance


def _triangle(phase: Tensor) -> Tensor:
    """There and back between 0 and 1, with period 2."""
    return 1 - (phase.remainder(2) - 1).abs()


def _paint(day: Tensor, night: Tensor, distance: Tensor, colour: Tensor) -> None:
    """Paint shapes of colour [N,3] with signed distance [N,T,H,W] into both lights [N,T,3,H,W], in place."""
    cover = (0.5 - distance * day.shape[-1]).clamp(0, 1)[:, :, None]
    by_day, by_night = (paint[:, None, :, None, None] for paint in (colour, _mix(SHAPE_MIX, colour)))
    day.lerp_(by_day.expand_as(day), cover)
    night.add_(GLOW * by_night * (-distance.clamp(min=0) / REACH).exp()[:, :, None])
    night.lerp_(by_night.expand_as(night), cover)


def _mix(matrix: Tensor, colour: Tensor) -> Tensor:
    """Colours [N,3] through a matrix, within [0,1]."""
    return (colour @ matrix.T).clamp(0, 1)
