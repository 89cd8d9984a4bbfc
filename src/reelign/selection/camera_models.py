r"""Two models of what a moving camera does to points, each fitted robustly to tracks between two frames.

Axes are OpenCV's: x right, y down, z forward. A camera that turns by R and moves by v (both camera-to-world, in the
axes of the first frame) and changes its focal length f to s·f sees the point X = (x, y, 1)/ρ, of inverse depth ρ, at

    x' = s·π(Rᵀ(X − v)),      π(X, Y, Z) = (X/Z, Y/Z)

- ``fit_turn`` has v = 0 (or ρ = 0: everything is far): R and s, four numbers, no parallax;
- ``fit_travel`` has s = 1: R, the direction of v, and one ρ a point, by the epipolar constraint x'ᵀRᵀ[v]ₓx = 0 with
  Sampson's error (Hartley and Zisserman, Multiple View Geometry, 2003, 11.4.3).

A zoom is not a dolly, because a dolly moves near things more than far ones; a pan is not a truck for the same reason.

Left out: lens distortion, rolling shutter, a zoom during a translation.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ITERATIONS = 12
POLISHES = 2  # fits to the inliers alone
FEWEST = 8  # points for a fit of travel
RELIEF = 1.4  # nearest over farthest, below which a scene is flat
SCREENING = 3  # iterations from every start before the best two go on
AXES = np.eye(3)
DIAGONALS = np.array([[1, 1, 0], [1, -1, 0], [1, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1]]) / np.sqrt(2)
STARTS = np.vstack([AXES, DIAGONALS])


@dataclass(frozen=True)
class Turn:
    """Rotation and zoom between two frames.

    Args:
        rotation: R [3,3], camera-to-world.
        log_zoom: log s; above 0 the picture grows.
        residual: error of each point, in focal lengths [N].
    """

    rotation: Array
    log_zoom: float
    residual: Array


@dataclass(frozen=True)
class Travel:
    """Rotation and translation between two frames.

    Args:
        rotation: R [3,3], camera-to-world.
        direction: v of length 1 [3], camera-to-world, in the first frame's axes.
        residual: Sampson's error of each point, in focal lengths [N].
        inverse_depth: ρ of each point in units of 1/|v| [N]; negative means behind the camera, which nothing is.
        disparity: how far each point moved beyond the rotation, in focal lengths [N].
    """

    rotation: Array
    direction: Array
    residual: Array
    inverse_depth: Array
    disparity: Array


def rotation_of(vector: Array) -> Array:
    """Rotation matrix of a rotation vector [3] in radians (Rodrigues)."""
    return np.asarray(cv2.Rodrigues(np.asarray(vector, float))[0], float)


def vector_of(rotation: Array) -> Array:
    """Rotation vector in radians [3] of a rotation matrix; its length is the angle."""
    return np.asarray(cv2.Rodrigues(np.asarray(rotation, float))[0], float).ravel()


def turned(x: Array, rotation: Array, log_zoom: float = 0.0) -> Array:
    """Where far points x [N,2] (in focal lengths) are seen after a turn and a zoom."""
    seen = np.column_stack([x, np.ones(len(x))]) @ rotation  # rows times R are Rᵀ times columns
    return np.asarray(np.exp(log_zoom) * seen[:, :2] / seen[:, 2:], float)


def fit_turn(x: Array, y: Array, scale: float) -> Turn:
    """The turn and zoom that take most of x to y, both [N,2] in focal lengths.

    RANSAC with a similarity finds the larger part of the picture; Gauss-Newton with Cauchy weights of width ``scale``
    then fits all four numbers, with the perspective of a turn, which a similarity lacks.
    """
    rotation, log_zoom = _first_turn(x, y, 3 * scale)
    for _ in range(ITERATIONS):
        seen = turned(x, rotation, log_zoom)
        error = y - seen
        weight = 1 / (1 + (error**2).sum(1) / scale**2)
        jacobian = _turn_jacobian(seen, np.exp(log_zoom))
        normal = np.einsum("nij,n,nik->jk", jacobian, weight, jacobian) + 1e-12 * np.eye(4)
        step = np.linalg.solve(normal, np.einsum("nij,n,ni->j", jacobian, weight, error))
        rotation, log_zoom = rotation @ rotation_of(step[:3]), log_zoom + float(step[3])
        if np.abs(step).max() < 1e-7:
            break
    return Turn(rotation, float(log_zoom), np.linalg.norm(y - turned(x, rotation, log_zoom), axis=1))


def _first_turn(x: Array, y: Array, threshold: float) -> tuple[Array, float]:
    # In thousandths of a focal length, because OpenCV's refinement stops at steps that are small in pixels.
    similarity, _ = cv2.estimateAffinePartial2D(
        1000 * x, 1000 * y, method=cv2.RANSAC, ransacReprojThreshold=1000 * threshold, maxIters=1000, confidence=0.999
    )
    if similarity is None:
        return np.eye(3), 0.0
    cosine, sine = similarity[0, 0], similarity[1, 0]
    across, down = similarity[:, 2] / 1000
    return rotation_of(np.array([down, -across, -np.arctan2(sine, cosine)])), float(np.log(np.hypot(cosine, sine)))


def _turn_jacobian(seen: Array, zoom: float) -> Array:
    """d(seen)/d(turn about x, y, z, log zoom) at points seen [N,2], [N,2,4]."""
    a, b = (seen / zoom).T
    across = zoom * np.stack([a * b, -1 - a**2, b, a], 1)
    down = zoom * np.stack([1 + b**2, -a * b, -a, b], 1)
    return np.stack([across, down], 1)


def fit_travel(x: Array, y: Array, scale: float, first: Array) -> Travel:
    """The turn and direction of travel that take most of x to y, both [N,2] in focal lengths, whatever the depths.

    Gauss-Newton on Sampson's error with Cauchy weights of width ``scale``, from no rotation and from the rotation
    ``first``, each with nine directions; the start that ends with the smallest robust error wins. The sign of the
    direction is the one that puts most points in front of the camera.
    """
    a, b = np.column_stack([x, np.ones(len(x))]), np.column_stack([y, np.ones(len(y))])
    starts = [(rotation, direction) for rotation in (np.eye(3), first) for direction in STARTS]
    screened = sorted((_refine(a, b, *start, scale, SCREENING) for start in starts), key=lambda fit: fit[0])
    fits = [_refine(a, b, rotation, direction, scale, ITERATIONS) for _, rotation, direction in screened[:2]]
    _, rotation, direction = min(fits, key=lambda fit: fit[0])
    # Outliers still pull a little, and would vote on the sign: the rest is fitted again, to its own spread.
    good = np.abs(_sampson(a, b, rotation, direction)) < 2 * scale
    for _ in range(POLISHES if good.sum() >= FEWEST else 0):
        _, rotation, direction = _refine(a[good], b[good], rotation, direction, scale, ITERATIONS)
        error = np.abs(_sampson(a, b, rotation, direction))
        scale = max(1.5 * float(np.median(error[good])), scale / 10)
        good = error < 2 * scale
    inverse_depth, disparity = depths(a, b, rotation, direction)
    if (np.sign(inverse_depth) * disparity)[good].sum() < 0:
        direction, inverse_depth = -direction, -inverse_depth
    return Travel(rotation, direction, np.abs(_sampson(a, b, rotation, direction)), inverse_depth, disparity)


def is_flat(inverse_depth: Array) -> bool:
    """Whether points of inverse depths [N] are all about equally far, so that a longer lens that turns would do."""
    near, far = np.quantile(inverse_depth, [0.95, 0.05])
    return bool(near < RELIEF * far)


def _refine(
    a: Array, b: Array, rotation: Array, direction: Array, scale: float, iterations: int
) -> tuple[float, Array, Array]:
    """Gauss-Newton from one start; the robust cost, R and v."""
    step = 1e-5
    for _ in range(iterations):
        error = _sampson(a, b, rotation, direction)
        tangent = np.linalg.svd(direction[None])[2][1:]
        moved = [_sampson(a, b, rotation @ rotation_of(step * axis), direction) for axis in np.eye(3)]
        moved += [_sampson(a, b, rotation, direction + step * axis) for axis in tangent]
        jacobian = (np.stack(moved, 1) - error[:, None]) / step
        weight = 1 / (1 + (error / scale) ** 2)
        normal = jacobian.T @ (weight[:, None] * jacobian)
        # A little damping: without translation the direction cannot be seen, and the matrix is singular.
        normal += 1e-6 * np.trace(normal) * np.eye(5) + 1e-15 * np.eye(5)
        change: Array = np.asarray(-np.linalg.solve(normal, jacobian.T @ (weight * error)), float)
        change *= min(1.0, 0.3 / max(float(np.abs(change).max()), 1e-12))
        rotation = rotation @ rotation_of(change[:3])
        direction = direction + change[3:] @ tangent
        direction = direction / np.linalg.norm(direction)
        if np.abs(change).max() < 1e-5:
            break
    cost = float(np.log1p((_sampson(a, b, rotation, direction) / scale) ** 2).sum())
    return cost, rotation, direction


def _sampson(a: Array, b: Array, rotation: Array, direction: Array) -> Array:
    """Signed Sampson error of homogeneous points [N,3], in focal lengths [N]."""
    x, y, z = direction
    essential = rotation.T @ np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    line, back = a @ essential.T, b @ essential
    length = line[:, 0] ** 2 + line[:, 1] ** 2 + back[:, 0] ** 2 + back[:, 1] ** 2
    return np.asarray((b * line).sum(1) / np.sqrt(np.maximum(length, 1e-18)), float)


def depths(a: Array, b: Array, rotation: Array, direction: Array) -> tuple[Array, Array]:
    """Signed inverse depth of homogeneous points [N,3] in the first frame, and their disparity after derotation, [N].

    The ray of b, turned into the first frame's axes, r = R·b, meets a − ρ·v: r × (a − ρ·v) = 0, so in least squares
    ρ = (r × v)·(r × a)/|r × v|².
    """
    ray = b @ rotation.T
    side, across = np.cross(ray, direction), np.cross(ray, a)
    inverse_depth = (side * across).sum(1) / np.maximum((side**2).sum(1), 1e-18)
    disparity = np.linalg.norm(ray[:, :2] / ray[:, 2:] - a[:, :2], axis=1)
    return inverse_depth, disparity
