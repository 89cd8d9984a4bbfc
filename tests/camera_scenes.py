"""Small clips of textured planes under a known camera, and trajectories, for the camera tests."""

from __future__ import annotations

import cv2
import numpy as np

HEIGHT, WIDTH, FOV_DEG = 144, 240, 50.0
FOCAL = WIDTH / 2 / np.tan(np.radians(FOV_DEG) / 2)
CAMERA = np.array([[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1.0]])
FAR = 1e6


def texture(seed: int, side: int = 800) -> np.ndarray:
    """RGB noise of several scales, uint8 [side,side,3]: corners everywhere."""
    random = np.random.default_rng(seed)
    whole = np.zeros((side, side, 3))
    for step, weight in ((4, 0.5), (10, 1.0), (30, 1.0)):
        coarse = random.normal(size=(side // step, side // step, 3)).astype(np.float32)
        whole += weight * cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 45 * whole, 0, 255).astype(np.uint8)


def turn(tilt=0.0, pan=0.0, roll=0.0) -> np.ndarray:
    """Camera-to-world rotation of degrees about x, y, z."""
    return cv2.Rodrigues(np.radians([tilt, pan, roll]))[0]


def plane(picture: np.ndarray, depth: float, rotation, position, zoom: float) -> np.ndarray:
    """A wall at ``depth`` with its texture at one texel a pixel, as a camera sees it; [H,W,3]."""
    side = picture.shape[0]
    to_plane = np.array([[1, 0, -(side - 1) / 2], [0, 1, -(side - 1) / 2], [0, 0, FOCAL]]) / FOCAL
    seen = CAMERA @ np.diag([zoom, zoom, 1.0]) @ rotation.T
    shift = np.eye(3) - np.outer(np.asarray(position, float), [0, 0, 1]) / depth
    return cv2.warpPerspective(picture, seen @ shift @ to_plane, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)


def clip(frames: int, move, layers=((1, FAR, None),)) -> list[np.ndarray]:
    """RGB frames; ``move(u)`` for u from 0 to 1 gives rotation, position and zoom.

    Layers are (seed, depth, box): box is the share of the texture that is there, x0, y0, x1, y1; None is all of it.
    """
    out = []
    painted = [(texture(seed), depth, _mask(box)) for seed, depth, box in layers]
    for u in np.linspace(0, 1, frames):
        rotation, position, zoom = move(u)
        frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for picture, depth, mask in painted:
            seen = plane(picture, depth, rotation, position, zoom)
            there = plane(mask, depth, rotation, position, zoom) > 127
            frame[there] = seen[there]
        out.append(frame)
    return out


def _mask(box, side: int = 800) -> np.ndarray:
    mask = np.zeros((side, side, 3), np.uint8)
    x0, y0, x1, y1 = (0, 0, 1, 1) if box is None else box
    mask[int(y0 * side) : int(y1 * side), int(x0 * side) : int(x1 * side)] = 255
    return mask


ROOM = ((1, 4.0, None), (2, 2.0, (0.4, 0.46, 0.6, 0.62)))  # a wall, and a box at half the distance


def turning(pan=0.0, tilt=0.0, roll=0.0, zoom=1.0):
    """A move that only turns and zooms, at constant speed."""
    return lambda u: (turn(u * tilt, u * pan, u * roll), np.zeros(3), zoom**u)


def travelling(*to):
    """A move along a straight line, at constant speed."""
    return lambda u: (np.eye(3), u * np.array(to), 1.0)


def path(rotations, positions) -> np.ndarray:
    """Trajectory [T,4,4] of camera-to-world rotations and positions."""
    poses = np.tile(np.eye(4), (len(positions), 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = rotations, positions
    return poses


def line(*to, frames: int = 6) -> np.ndarray:
    """A straight path without turns."""
    return path([np.eye(3)] * frames, np.linspace(0, 1, frames)[:, None] * np.array(to, float))


def pan(degrees: float, frames: int = 6) -> np.ndarray:
    """A path that only pans."""
    return path([turn(pan=u * degrees) for u in np.linspace(0, 1, frames)], np.zeros((frames, 3)))
