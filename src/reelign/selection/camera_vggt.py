r"""Camera poses from a feed-forward network: VGGT (Wang et al., 2025) for users who have its package and weights.

``VGGTPoses`` is one pose network: a callable from frames to camera-to-world poses and a field of view. Any other such
callable fits ``estimate_network``, which holds it against the same gates as the other estimators: poses that are
rotations, and rotation that agrees with two-view odometry. VGGT gives poses for any pictures whatever, also for ones
that show no rigid scene, so without a cross-check its confidence is no more than one half.

Licence: the weights ``facebook/VGGT-1B`` are for research only; read their card before anything else.

Left out: its depth, points and tracks, and the order in which it takes pictures (the first is the reference).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from reelign.errors import ContractError, DataError, ModelError
from reelign.selection.camera_colmap import disagreement
from reelign.selection.camera_estimate import CameraEstimate, Picture, abstain, steps_from_poses
from reelign.selection.camera_models import Array
from reelign.selection.camera_poses import from_world_to_camera, relative

METHOD = "vggt"
SIDE, PATCH = 518, 14  # the network's picture width, and what heights are multiples of


class PoseNetwork(Protocol):
    """Poses of frames by any means."""

    def __call__(self, frames: Sequence[Picture]) -> tuple[Array, float]:
        """Camera-to-world poses [T,4,4] of uint8 RGB frames [H,W,3], and the horizontal field of view in degrees."""
        ...


class VGGTPoses:
    """VGGT as a pose network; loads when it is made.

    Args:
        weights: a folder or a name on the Hugging Face hub.
        device: ``cuda`` or ``cpu``; None takes the first where there is one.

    Raises:
        ModelError: the package ``vggt`` is not installed, or the weights cannot be loaded.
    """

    def __init__(self, weights: str = "facebook/VGGT-1B", device: str | None = None) -> None:
        try:
            models = importlib.import_module("vggt.models.vggt")
            self.decode = importlib.import_module("vggt.utils.pose_enc").pose_encoding_to_extri_intri
        except ImportError as error:
            raise ModelError(
                "VGGT's package is not installed; install it with: pip install git+https://github.com/facebookresearch/vggt"
            ) from error
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            self.model: Any = models.VGGT.from_pretrained(weights).to(self.device).eval()
        except (OSError, ValueError) as error:
            raise ModelError(f"VGGT's weights are a folder or a hub name; {weights!r} gives: {error}") from error

    def __call__(self, frames: Sequence[Picture]) -> tuple[Array, float]:
        """Camera-to-world poses [T,4,4] and the horizontal field of view of the first frame in degrees."""
        pictures = torch.from_numpy(prepare(frames)).to(self.device)[None]
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, self.device.type == "cuda"):
            tokens, _ = self.model.aggregator(pictures)
        with torch.inference_mode():
            code = self.model.camera_head([layer.float() for layer in tokens])[-1]
            extrinsics, intrinsics = self.decode(code, pictures.shape[-2:])
        focal = float(intrinsics[0, 0, 0, 0])
        fov_deg = math.degrees(2 * math.atan(pictures.shape[-1] / 2 / focal))
        return from_world_to_camera(extrinsics[0].double().cpu().numpy()), fov_deg


def prepare(frames: Sequence[Picture]) -> NDArray[np.float32]:
    """Frames as VGGT takes them: [T,3,H,518] in [0,1], H a multiple of 14 of at most 518, the middle kept."""
    height, width = frames[0].shape[:2]
    tall = max(PATCH, round(height * SIDE / width / PATCH) * PATCH)
    resized = [cv2.resize(frame, (SIDE, tall), interpolation=cv2.INTER_CUBIC) for frame in frames]
    top = max(0, (tall - SIDE) // 2)
    stacked = np.stack(resized)[:, top : top + SIDE].transpose(0, 3, 1, 2)
    return np.asarray(stacked / 255, np.float32)


def estimate_network(
    network: PoseNetwork,
    frames: Sequence[Picture],
    indices: Sequence[int] | None = None,
    check: CameraEstimate | None = None,
) -> CameraEstimate:
    """Camera motion as a pose network sees it, behind the gates.

    Args:
        network: the callable.
        frames: uint8 RGB [H,W,3] each.
        indices: of the frames in the clip, for the record.
        check: two-view odometry of the same clip, to cross-check rotation.

    Raises:
        ContractError: the network gives no trajectory of these frames.
    """
    indices = list(range(len(frames)) if indices is None else indices)
    if len(frames) < 2:
        return abstain(METHOD, indices, f"motion needs at least 2 frames; got {len(frames)}")
    try:
        given, fov_deg = network(frames)
        poses = relative(given)
    except DataError as error:
        raise ContractError(f"a pose network gives camera-to-world poses; {error}") from error
    if len(poses) != len(frames):
        raise ContractError(f"a pose network gives one pose a frame; got {len(poses)} for {len(frames)}")
    if reason := disagreement(poses, indices, check):
        return abstain(METHOD, indices, reason, fov_deg)
    checked = check is not None and not check.abstained
    return CameraEstimate(
        METHOD,
        tuple(indices),
        steps_from_poses(poses),
        poses,
        confidence=0.9 if checked else 0.5,
        fov_deg=fov_deg,
        parallax=True,
        notes=("lengths are in the network's own unit", *(() if checked else ("nothing could check it",))),
    )
