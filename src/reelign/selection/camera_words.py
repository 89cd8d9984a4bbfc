r"""Camera instructions: sentence → target, and trajectory → sentence, every primitive in both directions, yaw too.

    "pan left then dolly forward"                    two segments
    "zoom in 1.5x", "orbit right 30 degrees"         amounts
    "the camera pans right while tilting up slowly"  two primitives at once
    "pan left for 2 seconds, then hold still"        a segment of known length
    "static shot"                                    nothing moves

A sentence is cut at "then", "followed by", "before", ";" and "." into segments, one after the other, and within them at
"and", "while", "as", ",". Each piece is a verb with a direction, an amount where one is said, and words that carry no
amount ("slowly", "smoothly"). Anything else is an error that lists what is understood: nothing is guessed.

``camera_words`` is for prompts about other things ("The camera remains still, a girl approaches"): it reads only the
parts that speak of a camera, and says None where none does.

Left out: other languages, speeds, shots by name (a vertigo, a crane), targets of a movement ("toward the house").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reelign.errors import DataError
from reelign.selection.camera_estimate import (
    DOLLY,
    FOV_DEG,
    PAN,
    PEDESTAL,
    PRIMITIVES,
    ROLL,
    TILT,
    TRUCK,
    ZOOM,
    Array,
    CameraEstimate,
    visible,
)

SIGNS = {
    "left": -1, "right": 1, "up": 1, "down": -1, "in": 1, "out": -1, "forward": 1, "backward": -1,
    "clockwise": 1, "counterclockwise": -1,
}  # fmt: skip
VERBS: dict[str, tuple[str, tuple[str, ...]]] = {
    "pan": ("pan|yaw|turn|rotate|look", ("left", "right")),
    "tilt": ("tilt|pitch|turn|rotate|look", ("up", "down")),
    "roll": ("roll|turn|rotate", ("clockwise", "counterclockwise", "right", "left")),
    "zoom": ("zoom", ("in", "out")),
    "dolly": ("dolly|push|pull|move|travel|track|fly", ("forward", "backward", "in", "out")),
    "truck": ("truck|track|move|slide|travel|strafe|fly", ("left", "right")),
    "pedestal": ("pedestal|boom|crane|rise|descend|move|fly", ("up", "down")),
    "orbit": ("orbit|arc|circle", ("left", "right")),
}
STATIC = r"(static|still|fixed|locked|stationary|motionless|steady|hold|holds|holding|unmoving)"
SPELLING = (
    (r"\bdollie[sd]\b", "dolly"),
    (r"\b(pan|zoom|tilt|roll|pitch|yaw|orbit|arc|circl|truck|track|push|pull|turn|rotat|look|mov|travel|slid|strafe?|boom|crane?|ris|descend|dolly|pedestal|fly|flie)"
     r"(?:n|m|l)?(?:e?s|ed|ing)\b", r"\1"),
    (r"\b(mov|slid|circl|ris|rotat)\b", r"\1e"), (r"\bcran\b", "crane"), (r"\bstraf\b", "strafe"), (r"\bflie\b", "fly"),
    (r"\b(backwards|back|away)\b", "backward"), (r"\b(forwards|ahead|closer)\b", "forward"),
    (r"\b(upward|upwards)\b", "up"), (r"\b(downward|downwards)\b", "down"),
    (r"\b(leftward|leftwards)\b", "left"), (r"\b(rightward|rightwards)\b", "right"),
    (r"\b(anti-?clockwise|counter-clockwise|ccw)\b", "counterclockwise"), (r"\bcw\b", "clockwise"),
    (r"\brise\b(?! (?:up|down))", "rise up"), (r"\bdescend\b(?! (?:up|down))", "descend down"),
)  # fmt: skip
PADDING = """
the a an camera shot view lens frame it is to by at around of and with slowly slow quickly fast gently gradually
smoothly smooth steadily slightly subtly remains remain stays stay keeps keep kept completely perfectly very there
in place medium constant speed movement motion while moving on from perspective position
"""
FILLERS = frozenset(PADDING.split())
NO_MOVEMENT = r"\b(?:no|without)(?: any)?(?: camera)? (?:movement|motion)s?\b"
BETWEEN = "the|camera|view|slowly|smoothly|gently|quickly|slightly|to"  # a verb and its direction
AMOUNT = r"(\d+(?:\.\d+)?)\s*(degrees?|deg|°|x|times|%|percent|depths?)"
SECONDS = r"for\s+(\d+(?:\.\d+)?)\s*(?:seconds?|s|sec)\b"
UNITS = {
    "deg": ("pan", "tilt", "roll", "orbit"),
    "x": ("zoom",),
    "%": ("dolly", "truck", "pedestal"),
    "depth": ("dolly", "truck", "pedestal"),
}
UNDERSTOOD = (
    "pan left/right, tilt up/down, roll clockwise/counterclockwise, zoom in/out, dolly forward/backward (or in/out), "
    "truck left/right, pedestal up/down, orbit left/right, static; amounts such as '30 degrees', '1.5x', '0.2 depths'; "
    "'then' between segments, 'and' within one, 'for 2 seconds'"
)
DEFAULT_DEG = 15.0  # of an orbit that says no angle, to know its mixture of truck and pan


@dataclass(frozen=True)
class Asked:
    """One primitive that is asked for.

    Args:
        primitive: of ``PRIMITIVES``, or ``orbit``.
        sign: 1 or −1, as in ``camera_estimate``; an orbit to the right, seen from above counterclockwise, is 1.
        amount: in the primitive's unit (degrees, log of zoom, depths), above 0; None where not said.
    """

    primitive: str
    sign: int
    amount: float | None = None


@dataclass(frozen=True)
class Segment:
    """What is asked at one time; nothing asked means a still camera.

    Args:
        asked: primitives at once.
        seconds: its length; None where not said.
    """

    asked: tuple[Asked, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class Instruction:
    """Segments one after the other."""

    segments: tuple[Segment, ...]

    @property
    def static(self) -> bool:
        """Whether a still camera is asked for throughout."""
        return not any(segment.asked for segment in self.segments)


def parse_instruction(text: str) -> Instruction:
    """The target of a sentence about nothing but the camera.

    Raises:
        DataError: a part that is not understood, with a list of what is.
    """
    parts = _segments(text)
    if not parts:
        raise DataError(f"an instruction says what the camera does; got {text!r}; understood: {UNDERSTOOD}")
    return Instruction(tuple(_segment(part, text) for part in parts))


def _segments(text: str) -> list[str]:
    cut = re.split(r"\bthen\b|\bfollowed by\b|\bbefore\b|;|\.(?!\d)", _spelt(text))
    return [part.strip(" ,") for part in cut if re.sub(r"\b(and|after that|finally)\b|[\s,]", "", part)]


def _spelt(text: str) -> str:
    spelt = text.lower().replace("’", "'")
    for pattern, replacement in SPELLING:
        spelt = re.sub(pattern, replacement, spelt)
    return spelt


def _segment(part: str, text: str) -> Segment:
    seconds = [float(value) for value in re.findall(SECONDS, part)]
    if len(seconds) > 1 or 0.0 in seconds:
        raise DataError(f"a segment lasts one time above 0; got {part!r}")
    pieces = re.split(r",|\band\b|\bwhile\b|\bas\b", re.sub(SECONDS, " ", part))
    found = [_piece(piece, text) for piece in pieces if not _empty(piece)]
    asked = tuple(item for piece in found for item in piece)
    if len({item.primitive for item in asked}) < len(asked):
        raise DataError(f"a primitive moves one way at a time; got {part!r}: put 'then' between")
    return Segment(asked, seconds[0] if seconds else None)


def _empty(piece: str) -> bool:
    return not set(re.findall(r"[a-z0-9.°%]+", piece)) - FILLERS


def _piece(piece: str, text: str) -> list[Asked]:
    """What one verb asks; an empty list for a still camera."""
    amounts = re.findall(AMOUNT, piece)
    left = re.sub(AMOUNT, " ", piece)
    asked, used = _verb(left)
    if asked is None and re.search(rf"\b{STATIC}\b|{NO_MOVEMENT}", left):
        asked, used = (), rf"\b{STATIC}\b|{NO_MOVEMENT}"
    unknown = [word for word in re.findall(r"[a-z'-]+|\d+", re.sub(used, " ", left)) if word not in FILLERS]
    if asked is None or unknown or len(amounts) > 1 or (amounts and not asked):
        what = f"{unknown[0]!r} in " if unknown and asked is not None else ""
        raise DataError(f"cannot read {what}{piece.strip()!r} of {text!r}; understood: {UNDERSTOOD}")
    return [Asked(a.primitive, a.sign, _amount(amounts, a, text)) for a in asked]


def _verb(piece: str) -> tuple[tuple[Asked, ...] | None, str]:
    """The primitive and sign of a piece, and a pattern of the words used; None where there is no such verb."""
    for primitive, (verbs, ways) in VERBS.items():
        pattern = rf"\b(?:{verbs})\b(?:\s+(?:{BETWEEN}))*\s+({'|'.join(ways)})\b"
        if match := re.search(pattern, piece):
            return (Asked(primitive, SIGNS[match.group(1)]),), pattern
    return None, r"(?!)"


def _amount(amounts: Sequence[tuple[str, str]], asked: Asked, text: str) -> float | None:
    if not amounts:
        return None
    value, unit = float(amounts[0][0]), amounts[0][1]
    kind = {"d": "deg", "°": "deg", "x": "x", "t": "x", "%": "%", "p": "%"}[unit[0]]
    kind = "depth" if unit.startswith("depth") else kind
    if asked.primitive not in UNITS[kind] or value <= 0 or (kind == "x" and value == 1):
        raise DataError(f"{value:g} {unit} is no amount of a {asked.primitive}; got {text!r}")
    if kind == "x":
        return abs(float(np.log(value)))
    return value / 100 if kind == "%" else value


LINKS = "is|remains?|stays?|keeps?|kept|completely|perfectly|fully|absolutely|very|almost"
ABOUT = re.compile(r"\b(camera|shot|lens|viewpoint|footage)\b")
HELD = re.compile(  # a still camera, not a shot of still water
    rf"\b(?:camera|shot|viewpoint|footage)(?:\s+(?:{LINKS}))*\s+{STATIC}\b|\b{STATIC}\s+(?:\w+\s+)?(?:camera|shot)\b"
)
CLEAR = re.compile(r"\b(zoom (?:in|out)|dolly (?:in|out|forward|backward)|pan (?:left|right)|tilt (?:up|down))\b")


def camera_words(prompt: str) -> Instruction | None:
    """The camera's part of a prompt about anything; None where it has none that is understood.

    A prompt that is an instruction as a whole is read strictly. Else each clause (up to a comma, a full stop or
    "then") that speaks of a camera or has an unmistakable phrase ("zoom in", not "pan" or "track" alone) is searched.
    """
    try:
        return parse_instruction(prompt)
    except DataError:
        pass
    clauses = [c for c in re.split(r"[,;]|\.(?!\d)|\bthen\b", _spelt(prompt)) if ABOUT.search(c) or CLEAR.search(c)]
    segments = [segment for clause in clauses if (segment := _loose(clause)) is not None]
    moving = [segment for segment in segments if segment.asked]
    return Instruction(tuple(moving or segments[:1])) if segments else None


def _loose(clause: str) -> Segment | None:
    """The first phrase of each primitive in a clause."""
    if re.search(NO_MOVEMENT, clause):
        return Segment()
    if re.search(r"\b(?:not|no|never|without|avoid)\b|n't\b", clause):
        return None
    asked: list[Asked] = []
    for piece in re.split(r"\band\b|\bwhile\b|\bas\b", clause):
        found, _ = _verb(re.sub(AMOUNT, " ", piece))
        asked += [a for a in found or () if a.primitive not in {other.primitive for other in asked}]
    if asked:
        return Segment(tuple(asked))
    return Segment() if HELD.search(clause) else None


def target_amounts(asked: Asked, fov_deg: float = FOV_DEG) -> Array:
    """The seven signed amounts of one asked primitive; where none is said, those that move the picture by a fifth.

    An orbit to the right by θ around what is one depth away goes θ (in radians) to the right and turns θ to the left.
    """
    amounts = np.zeros(7)
    if asked.primitive == "orbit":
        angle = asked.sign * (asked.amount or DEFAULT_DEG)
        amounts[PAN], amounts[TRUCK] = -angle, np.radians(angle)
        return amounts
    index = PRIMITIVES.index(asked.primitive)
    amounts[index] = asked.sign
    shown = abs(float(visible(amounts, fov_deg)[index]))
    amounts[index] *= asked.amount if asked.amount is not None else 0.2 / shown
    return amounts


SAID = {
    PAN: ("pans right", "pans left", "{:.0f} degrees"),
    TILT: ("tilts up", "tilts down", "{:.0f} degrees"),
    ROLL: ("rolls clockwise", "rolls counterclockwise", "{:.0f} degrees"),
    ZOOM: ("zooms in", "zooms out", "{:.2f}x"),
    TRUCK: ("trucks right", "trucks left", "{:.2f} depths"),
    PEDESTAL: ("pedestals up", "pedestals down", "{:.2f} depths"),
    DOLLY: ("dollies forward", "dollies backward", "{:.2f} depths"),
}
SEEN = 0.02  # share of the picture's width below which a movement is not said


def describe(estimate: CameraEstimate) -> str:
    """A sentence for a trajectory that ``parse_instruction`` reads back, the largest movement first.

    Movements that shift the picture by less than 2 % of its width, or by less than a tenth of the largest, are left
    out; a pan and a truck against each other are an orbit. Where the estimate abstains the sentence says so.
    """
    if estimate.abstained:
        return f"unknown: {estimate.reason}"
    amounts = estimate.amounts
    shown = np.abs(visible(amounts, estimate.fov_deg))
    if shown.max() < SEEN:
        return "the camera stays still"
    words: list[tuple[float, str]] = []
    left = [int(i) for i in np.flatnonzero(shown >= max(SEEN, 0.1 * shown.max()))]
    if {PAN, TRUCK} <= set(left) and 1 / 3 <= -amounts[TRUCK] / np.radians(amounts[PAN]) <= 3:
        left = [i for i in left if i not in (PAN, TRUCK)]
        way = "right" if amounts[TRUCK] > 0 else "left"
        words.append((shown[[PAN, TRUCK]].max(), f"orbits {way} {abs(amounts[PAN]):.0f} degrees"))
    for i in left:
        positive, negative, unit = SAID[i]
        size = float(np.exp(amounts[i]) if i == ZOOM else abs(amounts[i]))
        words.append((shown[i], f"{positive if amounts[i] > 0 else negative} {unit.format(size)}"))
    return "the camera " + " and ".join(word for _, word in sorted(words, reverse=True))
