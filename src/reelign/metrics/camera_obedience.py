r"""Camera obedience as a metric of clips: does the camera do what the prompt, or a fixed instruction, asks of it?

Where the prompt has no words about a camera the metric does not apply, and where the camera cannot be told it says so:
both are ``Undefined`` with the reason, never 0. What is measured, and how it becomes a number: ``selection.camera``.

Run: ``measure(frames, fps, [CameraObedience()], prompt="the camera pans left")``.
"""

from __future__ import annotations

from collections.abc import Mapping

from reelign.metrics.clip import Accumulator, ClipInfo, Frame, MetricCard, Undefined
from reelign.selection.camera import MOST_FRAMES, CameraOptions, estimate_camera, read_instruction
from reelign.selection.camera_estimate import FOV_DEG, Thinned
from reelign.selection.camera_score import obey
from reelign.selection.camera_words import Instruction


class CameraObedience:
    """How well the camera follows the prompt, 0 to 1.

    Args:
        instruction: for all clips, read strictly; None takes the camera words of each clip's prompt.
        fov_deg: assumed horizontal field of view.
    """

    card = MetricCard(
        name="camera_obedience",
        version=1,
        values=("camera_obedience",),
        unit="score",
        range=(0.0, 1.0),
        better="higher",
        protocol=(
            f"sign × size × on-axis share, mean over segments (selection.camera_score); at most {MOST_FRAMES} evenly "
            f"spaced frames of short side 256, horizontal field of view {FOV_DEG:g}° unless set"
        ),
        needs_prompt=True,
    )

    def __init__(self, instruction: str | None = None, fov_deg: float = FOV_DEG) -> None:
        self.asked = read_instruction(instruction, "")
        self.options = CameraOptions(fov_deg=fov_deg)

    def start(self, info: ClipInfo) -> Accumulator:
        """A fresh accumulator."""
        return _Watching(self.asked or read_instruction(None, info.prompt), self.options, info.fps)


class _Watching:
    def __init__(self, asked: Instruction | None, options: CameraOptions, fps: float) -> None:
        self.asked, self.options, self.fps = asked, options, fps
        self.kept = Thinned(options.frames)

    def add(self, frame: Frame) -> None:
        if self.asked is not None:
            self.kept.add(frame.small)

    def finish(self) -> Mapping[str, float]:
        if self.asked is None:
            raise Undefined("the prompt says nothing about the camera")
        report = estimate_camera(self.kept.frames, self.options, indices=self.kept.indices)
        answer = obey(report.best, self.asked, self.kept.count / self.fps)
        if answer.reason:
            raise Undefined(f"the camera cannot be told: {answer.reason}")
        return {"camera_obedience": answer.score}
