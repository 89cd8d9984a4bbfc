"""Moving shapes: captioned clips drawn on the fly, the embedded data set.

One coloured shape on a dark plain background does one thing: it moves in a direction, bounces, rotates, grows,
shrinks, turns into another colour, or stays still. Shapes are signed distance fields, so edges are anti-aliased,
every clip of a batch is drawn at once, and nothing is read from disk. A chosen share of captions can be made wrong in
one attribute, which gives a generator something to be aligned away from.

Left out: several objects, textures, camera motion.

Run: ``reelign data shapes OUT --clips 100``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reelign.errors import DataError

PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.14, 0.16),
    "green": (0.16, 0.68, 0.24),
    "blue": (0.16, 0.30, 0.90),
    "yellow": (0.92, 0.86, 0.16),
    "purple": (0.60, 0.22, 0.78),
    "orange": (0.94, 0.50, 0.10),
    "cyan": (0.18, 0.80, 0.86),
    "white": (0.92, 0.92, 0.92),
}
COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle")
TURNING = "turning"
TURNS = (3, 5)  # how many places further in ``COLOURS`` the last colour of a turning clip stands
STILL = "staying still"
ROTATIONS = ("rotating clockwise", "rotating counterclockwise")
TRANSLATIONS = {
    "moving left": (-1.0, 0.0),
    "moving right": (1.0, 0.0),
    "moving up": (0.0, -1.0),
    "moving down": (0.0, 1.0),
}
MOTIONS = (*TRANSLATIONS, "bouncing", "growing", "shrinking", *ROTATIONS, TURNING)
ALL_MOTIONS = (*MOTIONS, STILL)
ATTRIBUTES = ("colour", "shape", "motion")

# Circumradius of each shape when all have the area of a circle of radius one.
CIRCUMRADIUS = {
    "circle": 1.0,
    "square": math.sqrt(math.pi / 2),
    "triangle": math.sqrt(4 * math.pi / (3 * math.sqrt(3))),
}


@dataclass(frozen=True)
class ShapeSpec:
    """What one clip shows.

    Args:
        shape: one of ``SHAPES``.
        colour: one of ``COLOURS``; the first colour where the motion is ``turning``.
        motion: one of ``ALL_MOTIONS``; a circle cannot rotate visibly.
        colour_to: the last colour, given exactly when the motion is ``turning``.
    """

    shape: str
    colour: str
    motion: str
    colour_to: str | None = None

    def __post_init__(self) -> None:
        for value, allowed in ((self.shape, SHAPES), (self.colour, COLOURS), (self.motion, ALL_MOTIONS)):
            if value not in allowed:
                raise DataError(f"a moving-shapes clip takes one of {', '.join(allowed)}; got {value!r}")
        if (self.motion == TURNING) != (self.colour_to is not None):
            raise DataError(f"colour_to goes with the motion 'turning' and with no other; got {self.motion!r}")
        if self.colour_to is not None and (self.colour_to not in COLOURS or self.colour_to == self.colour):
            raise DataError(f"colour_to must be another colour than {self.colour!r}; got {self.colour_to!r}")
        if self.shape == "circle" and self.motion in ROTATIONS:
            raise DataError("a rotating circle looks like a still one: choose square or triangle")

    @property
    def caption(self) -> str:
        """The sentence that describes the clip, for example ``a red circle moving left``."""
        tail = f"turning {self.colour_to}" if self.motion == TURNING else self.motion
        return f"{'an' if self.colour == 'orange' else 'a'} {self.colour} {self.shape} {tail}"


_CAPTION = re.compile(rf"^an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) (.+?)\.?$")


def parse_caption(caption: str) -> ShapeSpec:
    """Read a caption of the grammar back into its spec.

    Raises:
        DataError: the sentence is not one the grammar makes.
    """
    match = _CAPTION.match(caption.strip().lower())
    if match is None:
        raise DataError(f"a moving-shapes caption reads 'a COLOUR SHAPE MOTION'; got {caption!r}")
    colour, shape, tail = match.groups()
    if tail.startswith("turning "):
        return ShapeSpec(shape, colour, TURNING, tail.removeprefix("turning "))
    return ShapeSpec(shape, colour, tail)


def all_specs(motions: tuple[str, ...] = MOTIONS) -> list[ShapeSpec]:
    """Every clip the grammar can describe with these motions, in a fixed order (248 with the default motions)."""
    kinds = [
        (motion, shape, colour)
        for motion in motions
        for shape in (SHAPES[1:] if motion in ROTATIONS else SHAPES)
        for colour in COLOURS
    ]
    specs = []
    for motion, shape, colour in kinds:
        lasts = _lasts(colour) if motion == TURNING else [None]
        specs += [ShapeSpec(shape, colour, motion, last) for last in lasts]
    return specs


def _lasts(colour: str) -> tuple[str, ...]:
    """What a colour turns into."""
    return tuple(COLOURS[(COLOURS.index(colour) + turn) % len(COLOURS)] for turn in TURNS)


def _choice(options: tuple[str, ...], generator: torch.Generator) -> str:
    return options[int(torch.randint(len(options), (1,), generator=generator))]


def random_spec(generator: torch.Generator, motions: tuple[str, ...] = MOTIONS) -> ShapeSpec:
    """Draw one spec: motion, then shape, then colours, each uniform over what the earlier choices allow."""
    motion = _choice(motions, generator)
    shape = _choice(SHAPES[1:] if motion in ROTATIONS else SHAPES, generator)
    colour = _choice(COLOURS, generator)
    return ShapeSpec(shape, colour, motion, _choice(_lasts(colour), generator) if motion == TURNING else None)


def wrong_spec(spec: ShapeSpec, attribute: str, generator: torch.Generator) -> ShapeSpec:
    """Return ``spec`` with one attribute changed to any other value, for captions that lie."""
    if attribute == "colour":
        others = tuple(c for c in COLOURS if c not in (spec.colour, spec.colour_to))
        return replace(spec, colour=_choice(others, generator))
    if attribute == "shape":
        others = tuple(s for s in SHAPES if s != spec.shape and not (s == "circle" and spec.motion in ROTATIONS))
        return replace(spec, shape=_choice(others, generator))
    rigid = tuple(m for m in MOTIONS if m not in (spec.motion, TURNING))
    allowed = tuple(m for m in rigid if not (spec.shape == "circle" and m in ROTATIONS))
    return replace(spec, motion=_choice(allowed, generator), colour_to=None)


@dataclass(frozen=True)
class MovingShapes:
    """The data set: how clips look and how often captions lie.

    Args:
        frames: frames of a clip, T ≥ 2.
        size: height and width in pixels, H = W ≥ 32.
        fps: frames per second written to files.
        caption_noise: probability, for each attribute, that this attribute (and only this) of the caption is wrong;
            the three together are at most 1.
        motions: which motions are drawn.
    """

    frames: int = 17
    size: int = 64
    fps: float = 8.0
    caption_noise: tuple[float, float, float] = (0.0, 0.0, 0.0)
    motions: tuple[str, ...] = MOTIONS

    def __post_init__(self) -> None:
        if self.frames < 2 or self.size < 32:
            raise DataError(f"moving shapes need frames ≥ 2 and size ≥ 32; got {self.frames} and {self.size}")
        if min(self.caption_noise) < 0 or sum(self.caption_noise) > 1:
            raise DataError(f"caption noise rates are ≥ 0 and sum to ≤ 1; got {self.caption_noise}")

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[ShapeSpec], list[str]]:
        """Draw clips: video float32 [count,T,3,H,W] in [0,1], their true specs, their (noisy) captions."""
        specs = [random_spec(generator, self.motions) for _ in range(count)]
        return self.render(specs, generator), specs, [self.caption(spec, generator) for spec in specs]

    def caption(self, spec: ShapeSpec, generator: torch.Generator) -> str:
        """The caption of a clip, wrong in at most one attribute at the rates of ``caption_noise``."""
        draw = float(torch.rand(1, generator=generator))
        for attribute, rate in zip(ATTRIBUTES, self.caption_noise, strict=True):
            if draw < rate:
                return wrong_spec(spec, attribute, generator).caption
            draw -= rate
        return spec.caption

    def render(self, specs: list[ShapeSpec], generator: torch.Generator) -> Tensor:
        """Draw the clips of ``specs`` with random places, sizes, speeds and backgrounds: [N,T,3,H,W] in [0,1]."""
        tracks = _Tracks.draw(specs, self.frames, 1.28 / self.size, generator)
        coverage = _coverage(specs, tracks, self.size)
        first = torch.tensor([PALETTE[s.colour] for s in specs])
        last = torch.tensor([PALETTE[s.colour_to or s.colour] for s in specs])
        blend = torch.linspace(0, 1, self.frames).mul(1.4).sub(0.2).clamp(0, 1)[None, :, None]
        colour_NT3 = torch.lerp(first[:, None], last[:, None], blend)
        background = tracks.background[:, None, None, None, None]
        alpha = coverage[:, :, None]
        return background + alpha * (colour_NT3[..., None, None] - background)


@dataclass(frozen=True)
class _Tracks:
    """Where each shape is in each frame, in units of the frame's side: all [N,T] but the background, [N]."""

    x: Tensor
    y: Tensor
    radius: Tensor
    angle: Tensor
    background: Tensor

    @staticmethod
    def draw(specs: list[ShapeSpec], frames: int, margin: float, generator: torch.Generator) -> _Tracks:
        n = len(specs)
        time = torch.linspace(0, 1, frames)[None]  # [1,T]

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(n, 1, generator=generator)

        def flag(*motions: str) -> Tensor:
            return torch.tensor([[float(s.motion in motions)] for s in specs])

        grow, shrink = flag("growing"), flag("shrinking")
        small, large = uniform(0.085, 0.105), uniform(0.19, 0.22)
        radius = uniform(0.13, 0.18).expand(-1, frames)
        radius = torch.where(grow > 0, small + (large - small) * time, radius)
        radius = torch.where(shrink > 0, large + (small - large) * time, radius)

        extent = torch.tensor([[CIRCUMRADIUS[s.shape]] for s in specs]) * radius.amax(1, keepdim=True) + margin
        room = 1 - 2 * extent  # how far the centre may travel
        direction = torch.tensor([TRANSLATIONS.get(s.motion, (0.0, 0.0)) for s in specs])
        travel = uniform(0.75, 1.0)
        start = torch.rand(n, 2, generator=generator)
        x = extent + room * _track(start[:, :1], direction[:, :1], travel, time)
        y = extent + room * _track(start[:, 1:], direction[:, 1:], travel, time)
        hop = torch.sin(math.pi * (2 * time + uniform(0.0, 1.0))).abs()
        y = torch.where(flag("bouncing") > 0, extent + room * (1 - travel * hop), y)

        turn = flag("rotating clockwise") - flag("rotating counterclockwise")
        angle = uniform(0, 2 * math.pi) * turn.abs() + turn * uniform(0.5, 0.8) * math.pi * time
        background = 0.04 + 0.14 * torch.rand(n, generator=generator)
        return _Tracks(x, y, radius, angle, background)


def _track(start: Tensor, direction: Tensor, travel: Tensor, time: Tensor) -> Tensor:
    """Place along one axis in [0,1]: a straight run of length ``travel``, or ``start`` where ``direction`` is 0."""
    low = start * (1 - travel)
    run = torch.where(direction > 0, low + travel * time, low + travel * (1 - time))
    return torch.where(direction == 0, start.expand_as(run), run)


def _coverage(specs: list[ShapeSpec], tracks: _Tracks, size: int) -> Tensor:
    """Anti-aliased share of each pixel that the shape covers: [N,T,H,W] in [0,1]."""
    grid = (torch.arange(size) + 0.5) / size
    dx = grid[None, None, None, :] - tracks.x[..., None, None]
    dy = grid[None, None, :, None] - tracks.y[..., None, None]
    cos, sin = tracks.angle.cos()[..., None, None], tracks.angle.sin()[..., None, None]
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    distance = torch.empty(u.shape)
    for shape in SHAPES:
        chosen = torch.tensor([s.shape == shape for s in specs])
        if chosen.any():
            distance[chosen] = signed_distance(shape, u[chosen], v[chosen], tracks.radius[chosen][..., None, None])
    return (0.5 - distance * size).clamp(0, 1)


def signed_distance(shape: str, u: Tensor, v: Tensor, radius: Tensor) -> Tensor:
    """Distance to the outline, negative inside; ``radius`` is that of the circle of equal area."""
    circumradius = CIRCUMRADIUS[shape] * radius
    if shape == "circle":
        return (u.square() + v.square()).sqrt() - circumradius
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) - circumradius / math.sqrt(2)
    slope = math.sqrt(3) / 2  # a triangle pointing up: y grows downwards
    return torch.maximum(v, torch.maximum(slope * u, -slope * u) - 0.5 * v) - circumradius / 2
