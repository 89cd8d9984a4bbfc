r"""The camera of a clip from point tracks: pan, tilt, roll and zoom a step, and travel where there is parallax.

Corners (Shi and Tomasi, 1994), spread over the picture, are followed from frame to frame (Lucas and Kanade's pyramid)
and kept where following them back ends within half a pixel of the start. Between frames a turn and a zoom are fitted
(``camera_models.fit_turn``). Over windows of about a fifth of the clip, the same tracks say whether that is enough:

    the turn leaves fewer than 12 % of the tracks beyond the threshold      → no parallax: turn and zoom, no travel
    else one epipolar geometry explains most of those that the turn does not, most tracks show parallax, most of
    them lie in front of the camera, and near and far differ                → travel: truck, pedestal, dolly
    the same, but all is equally far                                        → flat: turn and zoom, as a pan over a photo
    else the turn explains half of the tracks                               → turn and zoom; something else moves
    else                                                                    → this window cannot be told

"Most tracks show parallax" is what keeps a walking person in front of a fixed camera from being a truck: travel moves
everything at a finite distance, a person only itself. A camera that travels past one flat wall cannot be told from one
that turns or zooms; a far background with one near moving thing cannot be told from a truck that follows nothing.

Left out: long tracks over the whole clip, loop closure, learned matches, a field of view fitted to the clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from reelign.selection.camera_estimate import (
    DOLLY,
    FOV_DEG,
    PAN,
    PEDESTAL,
    ROLL,
    TILT,
    TRUCK,
    ZOOM,
    CameraEstimate,
    Picture,
    abstain,
    focal_px,
    in_first_depths,
    poses_from_steps,
    visible,
)
from reelign.selection.camera_models import Array, Travel, fit_travel, fit_turn, is_flat, vector_of

METHOD = "global motion"
CORNERS, CELLS = 600, 10  # corners sought, and cells across and down that share them evenly
RETURN_PX = 0.5  # a track followed forth and back ends within this
ERROR_PX = 1.0  # of a track that fits, at a short side of 256 pixels or less
ERROR_SHARE = 0.08  # and of how far things moved, for a wrong field of view and a lens that bends
FEWEST = 16  # tracks, below which nothing is said
SURVIVE = 0.25  # share of the tracks that a step must keep
MOST_OF_A_CELL = 6
CLEAR = 0.001  # least eigenvalue of a corner that is no compression noise (OpenCV's scale for 8-bit pictures)
COVERED = 0.5  # of 4×4 parts of the picture that must hold tracks before motion is the camera's
STILL_PX = 1.0  # median movement below which a window is still
WINDOWS, MIN_WINDOW = 5, 3  # of a clip, and steps of each
PARALLAX_SHARE = 0.12  # tracks that a turn does not explain
EXPLAINED = 0.6  # share that travel must explain, of all and of those that the turn does not
IN_FRONT = 0.85  # of the tracks with parallax
CANCEL = 3.0  # a turn that moves things this many times as far as they moved was made up to cancel the travel
LEAST_TURN = 0.5  # tracks that a turn must explain where travel does not
LOST = 0.25  # share of steps that may be unknown


@dataclass(frozen=True)
class Stretch:
    """Some frames through which the same points were followed.

    Args:
        start: position of the first frame.
        steps: points before and after each step, [N,2] and [N,2] in pixels; N falls from step to step.
        first, last: the points that survived to the end, at the start and at the end, [N,2].
    """

    start: int
    steps: tuple[tuple[Array, Array], ...]
    first: Array
    last: Array

    @property
    def end(self) -> int:
        """Position of the last frame."""
        return self.start + len(self.steps)


@dataclass(frozen=True)
class Window:
    """What the tracks of a stretch say together.

    Args:
        kind: ``turn``, ``travel``, ``flat`` or ``lost``.
        share: of the tracks that the chosen model explains.
        steps: the seven primitives of each step.
        moving: share of the tracks that move on their own.
    """

    kind: str
    share: float
    steps: Array
    moving: float = 0.0


def estimate_motion(
    greys: Sequence[Picture], fov_deg: float = FOV_DEG, frames: Sequence[int] | None = None
) -> CameraEstimate:
    """Camera motion of small grey frames (``small_greys``) by tracks.

    Args:
        greys: uint8 [H,W] each, in order of time.
        fov_deg: horizontal field of view of the first frame.
        frames: their indices in the clip, for the record.

    Returns:
        The estimate; it abstains on fewer than 2 frames, cuts, and where too few tracks agree on anything.
    """
    frames = list(range(len(greys)) if frames is None else frames)
    if len(greys) < 2:
        return abstain(METHOD, frames, f"motion needs at least 2 frames; got {len(greys)}", fov_deg)
    height, width = greys[0].shape
    focal = focal_px(width, fov_deg)
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    windows: list[Window] = []
    inliers: list[int] = []
    start, zoom = 0, 0.0
    length = max(MIN_WINDOW, -(-(len(greys) - 1) // WINDOWS))
    while start < len(greys) - 1:
        stretch = follow(greys, start, length)
        if not stretch.steps:
            return abstain(METHOD, frames, _unfollowed(greys[start], frames, start), fov_deg)
        window = _look(stretch, centre, focal * np.exp(zoom))
        windows.append(window)
        inliers += [round(window.share * len(before)) for before, _ in stretch.steps]
        zoom += float(window.steps[:, ZOOM].sum())
        start = stretch.end
    return _assemble(windows, frames, inliers, fov_deg)


def follow(greys: Sequence[Picture], start: int, length: int) -> Stretch:
    """Corners of frame ``start`` followed for at most ``length`` steps, or until half of them are lost."""
    points = corners(greys[start])
    first, sought = points, len(points)
    steps: list[tuple[Array, Array]] = []
    for k in range(start, min(start + length, len(greys) - 1)):
        moved, kept = _flow(greys[k], greys[k + 1], points)
        if kept.sum() < max(FEWEST, SURVIVE * len(points)) or (steps and kept.sum() < sought / 2):
            break
        points, moved, first = points[kept], moved[kept], first[kept]
        steps.append((points, moved))
        points = moved
    return Stretch(start, tuple(steps), first, points)


def corners(grey: Picture) -> Array:
    """Clear corners of a picture, the strongest of each cell, [N,2] in pixels."""
    height, width = grey.shape
    strongest = float(cv2.cornerMinEigenVal(grey, 3).max())
    if strongest <= CLEAR:
        return np.zeros((0, 2))
    found = cv2.goodFeaturesToTrack(grey, CORNERS, CLEAR / strongest, max(3.0, min(height, width) / 50))
    if found is None:
        return np.zeros((0, 2))
    points = np.asarray(found, float).reshape(-1, 2)
    cell = (points[:, 1] * CELLS // height).astype(int) * CELLS + (points[:, 0] * CELLS // width).astype(int)
    order = np.argsort(cell, kind="stable")  # strongest first within a cell, as OpenCV gives them
    _, begin, count = np.unique(cell[order], return_index=True, return_counts=True)
    place = np.arange(len(points)) - np.repeat(begin, count)
    return points[np.sort(order[place < MOST_OF_A_CELL])]


def _flow(a: Picture, b: Picture, points: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Where points of a are in b, and which came back to within half a pixel when followed from b to a."""
    if not len(points):
        return points, np.zeros(0, bool)
    before = points.astype(np.float32).reshape(-1, 1, 2)
    after, found, _ = cv2.calcOpticalFlowPyrLK(a, b, before, None, winSize=(15, 15), maxLevel=4)
    again, back, _ = cv2.calcOpticalFlowPyrLK(b, a, after, None, winSize=(15, 15), maxLevel=4)
    off = np.linalg.norm((before - again).reshape(-1, 2), axis=1)
    moved = after.reshape(-1, 2).astype(float)
    inside = (moved >= 0).all(1) & (moved < [a.shape[1], a.shape[0]]).all(1)
    return moved, (found.ravel() == 1) & (back.ravel() == 1) & (off < RETURN_PX) & inside


def _look(stretch: Stretch, centre: Array, focal: float) -> Window:
    """Which model explains a stretch, and the primitives of its steps."""
    x, y = (stretch.first - centre) / focal, (stretch.last - centre) / focal
    moved = float(np.median(np.linalg.norm(y - x, axis=1)))
    limit = max(ERROR_PX / focal, ERROR_SHARE * moved)
    turn = fit_turn(x, y, limit / 2)
    fits = turn.residual < limit
    steps = _turn_steps(stretch, centre, focal)
    if fits.mean() < 1 - PARALLAX_SHARE and _coverage(stretch.first, 2 * centre + 1) >= COVERED:
        travel = fit_travel(x, y, ERROR_PX / focal / 2, turn.rotation)
        if (share := _travel_share(travel, fits, ERROR_PX / focal, moved)) > 0:
            if _flat(travel, ERROR_PX / focal):
                return Window("flat", share, steps, 1 - share)
            return Window("travel", share, _travel_steps(travel, steps, ERROR_PX / focal), 1 - share)
    covered = moved < STILL_PX / focal or _coverage(stretch.first, 2 * centre + 1) >= COVERED
    kind = "turn" if covered and fits.mean() >= LEAST_TURN else "lost"
    return Window(kind, float(fits.mean()), steps, float(1 - fits.mean()))


def _coverage(points: Array, size: Array) -> float:
    """Share of the 4×4 parts of a picture of this width and height that hold a point."""
    return len({(int(x), int(y)) for x, y in points * 4 // size}) / 16


def _travel_share(travel: Travel, turn_fits: NDArray[np.bool_], limit: float, moved: float) -> float:
    """Share of the tracks that travel explains; 0 where it is not believed."""
    fits = travel.residual < limit
    near = travel.disparity > limit
    front = (travel.inverse_depth > 0)[fits & near]
    explains = fits.mean() >= EXPLAINED and fits[~turn_fits].mean() >= EXPLAINED
    cancels = float(np.linalg.norm(vector_of(travel.rotation))) > CANCEL * moved
    believed = explains and not cancels and near.mean() >= EXPLAINED and len(front) > 0 and front.mean() >= IN_FRONT
    return float(fits.mean()) if believed else 0.0


def _flat(travel: Travel, limit: float) -> bool:
    """Whether everything that moves is equally far, so that a narrower lens that turns would look the same."""
    known = (travel.residual < limit) & (travel.inverse_depth > 0) & (travel.disparity > limit)
    return is_flat(travel.inverse_depth[known])


def _turn_steps(stretch: Stretch, centre: Array, focal: float) -> Array:
    """The seven primitives of each step by its own turn and zoom; no travel."""
    steps, zoom = np.zeros((len(stretch.steps), 7)), 0.0
    for row, (before, after) in zip(steps, stretch.steps, strict=True):
        now = focal * np.exp(zoom)
        turn = fit_turn((before - centre) / now, (after - centre) / now, ERROR_PX / now / 2)
        row[[TILT, PAN, ROLL]] = np.degrees(vector_of(turn.rotation))
        row[ZOOM] = turn.log_zoom
        zoom += turn.log_zoom
    return steps


def _travel_steps(travel: Travel, turns: Array, limit: float) -> Array:
    """The seven primitives of each step of a travelling window, shared among the steps by how much moved in each."""
    known = (travel.residual < limit) & (travel.inverse_depth > 0)
    length = float(np.median(travel.inverse_depth[known]))
    whole = np.zeros(7)
    whole[[TILT, PAN, ROLL]] = np.degrees(vector_of(travel.rotation))
    whole[[TRUCK, PEDESTAL, DOLLY]] = length * travel.direction * [1, -1, 1]
    moved = np.linalg.norm(visible(turns), axis=1) + 1e-9
    return np.asarray(moved[:, None] / moved.sum() * whole, float)


def _assemble(windows: Sequence[Window], frames: Sequence[int], inliers: Sequence[int], fov: float) -> CameraEstimate:
    lengths = np.array([len(window.steps) for window in windows], float)
    shares = np.array([window.share for window in windows])
    unknown = np.repeat([window.kind == "lost" for window in windows], lengths.astype(int))
    lost = float(unknown.sum())
    if lost > LOST * lengths.sum():
        share = float(shares @ lengths / lengths.sum())
        reason = f"tracks do not agree on one camera: {share:.0%} fit, {lost:.0f} of {lengths.sum():.0f} steps unknown"
        return abstain(METHOD, frames, reason, fov)
    steps = np.concatenate([window.steps for window in windows])
    steps[unknown] = steps[~unknown].mean(0)
    count = min(1.0, float(np.mean(inliers)) / 50)
    moving = max(window.moving for window in windows if window.kind != "lost")
    notes = [f"up to {moving:.0%} of the tracks move on their own"] if moving > PARALLAX_SHARE else []
    notes += [f"{lost:.0f} of {len(steps)} steps unknown, taken as the mean of the others"] if lost else []
    notes += ["the scene is flat or far: a truck looks like a pan"] if any(w.kind == "flat" for w in windows) else []
    return CameraEstimate(
        METHOD,
        tuple(frames),
        steps,
        poses_from_steps(in_first_depths(steps)),
        confidence=float(shares @ lengths / lengths.sum()) * count,
        inliers=tuple(inliers),
        fov_deg=fov,
        parallax=any(window.kind == "travel" for window in windows),
        notes=tuple(notes),
    )


def _unfollowed(grey: Picture, frames: Sequence[int], start: int) -> str:
    if len(found := corners(grey)) < FEWEST:
        return f"frame {frames[start]} has {len(found)} clear corners to follow; {FEWEST} are needed"
    return f"nothing can be followed from frame {frames[start]} to {frames[start + 1]}: a cut, a flash or a blur"
