"""What a review asks, and of whom how much."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

AXES = {  # question for each axis with a name of its own; others are asked by their name
    "overall": "Which is better overall?",
    "visual_quality": "Which looks better in each frame?",
    "motion": "Which moves more naturally?",
    "text_alignment": "Which follows the prompt more closely?",
}
RATED = {
    "overall": "How good is it overall?",
    "visual_quality": "How good does each frame look?",
    "motion": "How natural is the motion?",
    "text_alignment": "How closely does it follow the prompt?",
}
PAIR_CHOICES = ("left", "right", "tie", "both_bad")
SCALES = {"five": ("1", "2", "3", "4", "5"), "pass": ("fail", "pass")}


class ReviewSettings(BaseModel):
    """Settings of one review.

    Args:
        axes: what is asked about each pair or take, in this order; ``overall`` is what selection reads by default.
        scale: single takes are rated from 1 to ``five``, or ``pass`` or fail.
        pairing: which pair next: ``informative`` (most is learned about the group's best take) or ``balanced`` (the
            least compared takes).
        goal: comparisons each take should get from each annotator; 0 asks for every pair.
        overlap: share of pairs taken from those that other annotators answered, so that agreement can be told.
        repeats: share of pairs asked again, sides swapped, at least five questions later; never exported as labels.
        checks: share of attention checks, a take against a spoiled copy of itself; never exported as labels.
        seed: of sides and order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    axes: tuple[str, ...] = ("overall",)
    scale: Literal["five", "pass"] = "five"
    pairing: Literal["informative", "balanced"] = "informative"
    goal: int = Field(6, ge=0)
    overlap: float = Field(0.2, ge=0, le=1)
    repeats: float = Field(0.05, ge=0, le=0.5)
    checks: float = Field(0.0, ge=0, le=0.5)
    seed: int = 0

    @field_validator("axes")
    @classmethod
    def _axes(cls, axes: tuple[str, ...]) -> tuple[str, ...]:
        fine = all(0 < len(axis) <= 64 and axis == axis.strip() for axis in axes)
        if not axes or not fine or len(set(axes)) < len(axes):
            raise ValueError(f"axes are different names of 1 to 64 letters, at least one; got {', '.join(axes)!r}")
        return axes

    def choices(self, task: str) -> tuple[str, ...]:
        """What may be answered."""
        return PAIR_CHOICES if task == "pair" else SCALES[self.scale]

    def wording(self, task: str) -> dict[str, str]:
        """The question of each axis, in words."""
        known = AXES if task == "pair" else RATED
        stem = "Which is better: {}?" if task == "pair" else "How good: {}?"
        return {axis: known.get(axis, stem.format(axis.replace("_", " "))) for axis in self.axes}
