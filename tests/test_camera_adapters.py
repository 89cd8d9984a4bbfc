"""The metric, the command, files of poses, pycolmap's process and the VGGT adapter."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from camera_scenes import FOV_DEG, ROOM, clip, line, pan, path, travelling, turn, turning
from conftest import SHARED
from typer.testing import CliRunner

from reelign.cli.camera import camera as command
from reelign.errors import ConfigError, ContractError, DataError, ModelError
from reelign.metrics.camera_obedience import CameraObedience
from reelign.metrics.clip import ClipMetric, Undefined, measure
from reelign.selection import camera_colmap
from reelign.selection.camera import CameraOptions, estimate_camera, read_footage
from reelign.selection.camera_colmap import disagreement, estimate_colmap, gate
from reelign.selection.camera_estimate import CameraEstimate, small_greys, spread_indices, steps_from_poses
from reelign.selection.camera_files import ROTATION, TRANSLATION, read_poses
from reelign.selection.camera_odometry import estimate_odometry
from reelign.selection.camera_poses import invert, pose_errors
from reelign.selection.camera_vggt import VGGTPoses, estimate_network, prepare
from reelign.video_io import write_clip

MOVES = SHARED / "data" / "camera_moves"
needs_moves = pytest.mark.skipif(not MOVES.is_dir(), reason=f"the labelled clips are not here: {MOVES}")
has_colmap = importlib.util.find_spec("pycolmap") is not None  # asked without importing it


def estimate(poses: np.ndarray) -> CameraEstimate:
    return CameraEstimate("given", tuple(range(len(poses))), steps_from_poses(poses), poses, 1.0)


# The metric


@pytest.mark.parametrize(("prompt", "expected"), [("the camera pans right", 1.0), ("the camera pans left", 0.0)])
def test_metric(prompt: str, expected: float) -> None:
    found = measure(clip(8, turning(pan=10)), 8.0, [CameraObedience()], prompt)
    assert found["camera_obedience"] == pytest.approx(expected, abs=0.06)


def test_metric_takes_a_fixed_instruction() -> None:
    metric = CameraObedience("pan right 10 degrees", fov_deg=FOV_DEG)
    assert isinstance(metric, ClipMetric)
    assert measure(clip(8, turning(pan=10)), 8.0, [metric], "a cat")["camera_obedience"] > 0.95
    with pytest.raises(DataError, match="understood: pan"):
        CameraObedience("wobble")


@pytest.mark.parametrize(("frames", "prompt", "reason"), [
    (clip(3, turning()), "a cat", "says nothing about the camera"),
    (clip(3, turning()), "", "says nothing about the camera"),
    ([np.full((90, 160, 3), 9, np.uint8)] * 3, "pan left", "cannot be told: frame 0 has 0 clear corners"),
    (clip(1, turning()), "pan left", "at least 2 frames"),
    (clip(8, turning(pan=9)), "truck right", "no parallax"),
])  # fmt: skip
def test_metric_is_undefined_with_a_reason(frames: list, prompt: str, reason: str) -> None:
    found = measure(frames, 8.0, [CameraObedience()], prompt)["camera_obedience"]
    assert isinstance(found, Undefined)
    assert reason in str(found)


# The command


@pytest.fixture
def run():
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def takes(tmp_path: Path) -> Path:
    folder = tmp_path / "takes"
    for name, move in (("right", turning(pan=8)), ("still", turning())):
        pictures = torch.from_numpy(np.stack(clip(6, move))).permute(0, 3, 1, 2) / 255
        write_clip(folder / f"{name}.mp4", pictures, 8)
    (folder / "broken.mp4").write_bytes(b"")
    pd.DataFrame({"file_name": ["right.mp4"], "text": ["the camera pans right"]}).to_csv(
        folder / "metadata.csv", index=False
    )
    return folder


def test_command_on_a_folder(run, takes: Path, tmp_path: Path) -> None:
    result = run(takes, "--fov", FOV_DEG, "--out", tmp_path / "cameras.csv")
    assert result.exit_code == 0, result.output
    assert "pans right 8 degrees" in result.output
    assert "cannot be read: 33%" in result.output
    table = pd.read_csv(tmp_path / "cameras.csv")
    assert table["status"].tolist() == ["error", "ok", "ok"]
    assert table["obeys"].tolist() == ["not asked", "ok", "not asked"]
    assert table["obedience"][1] > 0.9
    assert len(pd.read_parquet(tmp_path / "cameras.parquet")) == 3


def test_command_on_a_clip_with_poses(run, takes: Path, tmp_path: Path) -> None:
    true = pan(8)
    rows = pd.DataFrame(true[:, :3, :3].reshape(-1, 9), columns=ROTATION)
    rows[TRANSLATION] = 0.0
    rows.to_csv(tmp_path / "poses.csv", index=False)
    arguments = ("--instruction", "pan left", "--fov", FOV_DEG, "--poses", tmp_path / "poses.csv")
    result = run(takes / "right.mp4", *arguments)
    assert result.exit_code == 0, result.output
    assert "0.00" in result.output  # obedience: it panned right
    assert "ate: does not apply" in result.output
    assert float(result.output.split("rotation_end:")[1].split()[0]) < 0.2


def test_command_refuses(run, takes: Path, tmp_path: Path) -> None:
    for arguments, error in (
        ((takes, "--poses", "x.csv"), ConfigError), ((takes, "--instruction", "wobble"), DataError),
    ):  # fmt: skip
        assert isinstance(run(*arguments).exception, error)
    (tmp_path / "none").mkdir()
    assert isinstance(run(tmp_path / "none").exception, ConfigError)


def test_command_line_module_is_light() -> None:
    code = "import sys, reelign.cli.camera; sys.exit(any(m in sys.modules for m in ('torch', 'pandas', 'cv2')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Files of poses


@pytest.mark.parametrize(("text", "message"), [
    ("a,b\n1,2\n", "lacks r00"), ("", "no table"), ("r00\n", "lacks r01"),
    ("file," + ",".join([*ROTATION, *TRANSLATION]) + "\n", "has 0 of c.mp4"),
])  # fmt: skip
def test_tables_that_hold_no_poses(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "poses.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_poses(tmp_path / "poses.csv", "c.mp4")


def test_missing_files_and_words_for_numbers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is none"):
        read_poses(tmp_path / "nothing.csv")
    pd.DataFrame([["one"] * 12] * 2, columns=[*ROTATION, *TRANSLATION]).to_csv(tmp_path / "p.csv")
    with pytest.raises(DataError, match="finite"):
        read_poses(tmp_path / "p.csv")
    (tmp_path / "images.txt").write_text("1 1 0 0 0 0 0 0 1 a.png\n\n")
    with pytest.raises(DataError, match="at least two images"):
        read_poses(tmp_path / "images.txt")


# pycolmap, in a process of its own


GOOD = {"registered": 6, "points": 300, "reprojection_px": 0.3, "depth": 4.0}


@pytest.mark.parametrize(("change", "reason"), [
    ({}, ""), ({"registered": 5}, "5 of 6 frames"), ({"points": 4}, "4 points"),
    ({"reprojection_px": 0.78}, "0.78 px"), ({"depth": -1.0}, "behind"),
])  # fmt: skip
def test_gate(change: dict, reason: str) -> None:
    found = gate({**GOOD, **change}, 6)
    assert reason in found
    assert bool(found) == bool(reason)


def test_rotation_is_cross_checked() -> None:
    assert disagreement(pan(10), range(6), estimate(pan(11))) == ""
    assert "10.0°" in disagreement(pan(10), range(6), estimate(pan(0)))
    assert disagreement(pan(10), range(6), None) == ""
    assert disagreement(pan(10), range(6), CameraEstimate("none", reason="dark")) == ""
    key = CameraEstimate("keys", (0, 5), steps_from_poses(pan(10)[[0, 5]]), pan(10)[[0, 5]], 1.0)
    assert disagreement(pan(10), range(6), key) == ""


@pytest.mark.parametrize(("answer", "reason"), [
    ({"error": "no model"}, "no model"), ({**GOOD, "registered": 1}, "1 of 4 frames"),
])  # fmt: skip
def test_failed_reconstructions_abstain(monkeypatch: pytest.MonkeyPatch, answer: dict, reason: str) -> None:
    monkeypatch.setattr(camera_colmap, "_reconstruct", lambda *_: answer)
    found = estimate_colmap([np.zeros((40, 60), np.uint8)] * 4)
    assert reason in found.reason
    assert "at least 3 frames" in estimate_colmap([np.zeros((40, 60), np.uint8)]).reason


def test_poses_come_back_in_scene_depths(monkeypatch: pytest.MonkeyPatch) -> None:
    """World-to-camera in, camera-to-world relative to the first out, divided by the median depth."""
    inverse = invert(path([np.eye(3)] * 4, [[0, 0, 7], [0, 0, 8], [0, 0, 9], [0, 0, 10.0]]))
    answer = {**GOOD, "registered": 4, "quaternions": [[-1, 0, 0, 0], [1, 0, 0, 0]] * 2, "observations": [5, 6, 7, 8]}
    answer["translations"] = inverse[:, :3, 3].tolist()
    monkeypatch.setattr(camera_colmap, "_reconstruct", lambda *_: answer)
    found = estimate_colmap([np.zeros((40, 60), np.uint8)] * 4)
    assert found.poses[:, 2, 3].tolist() == pytest.approx([0, 0.25, 0.5, 0.75])
    assert found.inliers == (6, 7, 8)


def test_without_pycolmap_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_colmap, "_reconstruct", lambda *_: {"missing": "No module named 'pycolmap'"})
    with pytest.raises(ModelError, match=r'pip install "reelign\[colmap\]"'):
        estimate_colmap([np.zeros((40, 60), np.uint8)] * 4)


def test_a_worker_that_dies_or_hangs_abstains(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [np.zeros((40, 60), np.uint8)] * 4
    died = subprocess.CompletedProcess([], -6, "", "free(): invalid pointer")
    monkeypatch.setattr(camera_colmap.subprocess, "run", lambda *_, **__: died)
    assert "code -6: free(): invalid pointer" in estimate_colmap(frames).reason

    def hang(*_, **options):
        raise subprocess.TimeoutExpired("pycolmap", options["timeout"])

    monkeypatch.setattr(camera_colmap.subprocess, "run", hang)
    assert "more than 7 s" in estimate_colmap(frames, timeout_s=7).reason


@needs_moves
@pytest.mark.skipif(not has_colmap, reason="pycolmap is not installed")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["truck_right", "dolly_in"])
def test_pycolmap_on_a_real_clip(name: str) -> None:
    frames = read_footage(MOVES / f"{name}.mp4").frames
    some = spread_indices(len(frames), 10)
    greys = small_greys(frames[i] for i in some)
    found = estimate_colmap(greys, 50.0, some, estimate_odometry(greys, 50.0, some))
    assert not found.reason
    errors = pose_errors(read_poses(MOVES / "poses.csv", f"{name}.mp4"), found.poses, some)
    assert errors.rotation_mean < 1
    assert errors.direction_deg is not None
    assert errors.direction_deg < 5
    assert errors.ate is not None
    assert errors.ate < 0.05
    assert "pycolmap" not in sys.modules


@pytest.mark.skipif(not has_colmap, reason="pycolmap is not installed")
@pytest.mark.slow
def test_pycolmap_abstains_on_a_pan() -> None:
    assert estimate_colmap(small_greys(clip(6, turning(pan=8))), FOV_DEG).abstained


def test_the_worker_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reelign.selection import camera_colmap_worker

    monkeypatch.setitem(sys.modules, "pycolmap", None)
    assert "missing" in camera_colmap_worker.main(tmp_path, 100.0)
    assert json.dumps(camera_colmap_worker.main(tmp_path, 100.0))


# Pose networks


def test_without_vggt_the_error_says_what_to_install() -> None:
    if importlib.util.find_spec("vggt") is not None:
        pytest.skip("vggt is installed here")
    with pytest.raises(ModelError, match=r"pip install git\+https://github.com/facebookresearch/vggt"):
        VGGTPoses()


def test_pictures_for_vggt() -> None:
    wide = prepare([np.full((90, 160, 3), 255, np.uint8)] * 2)
    assert (wide.shape, wide.dtype, wide.max()) == ((2, 3, 294, 518), np.float32, 1.0)
    assert prepare([np.zeros((200, 100, 3), np.uint8)]).shape == (1, 3, 518, 518)


def test_vggt_is_called_as_its_package_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the package's interface: world-to-camera out of it, camera-to-world out of ours."""
    true = line(0, 0, 2, frames=4)

    class Model(torch.nn.Module):
        @classmethod
        def from_pretrained(cls, weights: str) -> Model:
            if weights == "nowhere":
                raise OSError("no such folder")
            return cls()

        def aggregator(self, pictures):
            assert pictures.shape == (1, 4, 3, 308, 518)
            return [torch.zeros(1), torch.zeros(1)], 5

        def camera_head(self, tokens):
            return [torch.zeros(1), torch.ones(1)]

    def decode(code, size):
        assert size == (308, 518)
        assert code.item() == 1  # the last iteration of the camera head
        intrinsics = torch.eye(3).repeat(1, 4, 1, 1) * 259
        return torch.from_numpy(invert(true)[None, :, :3]).float(), intrinsics

    for name, parts in (
        ("vggt.models.vggt", {"VGGT": Model}),
        ("vggt.utils.pose_enc", {"pose_encoding_to_extri_intri": decode}),
    ):
        module = types.ModuleType(name)
        vars(module).update(parts)
        for package in (name.split(".")[0], name.rsplit(".", 1)[0]):
            monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
        monkeypatch.setitem(sys.modules, name, module)
    found = estimate_network(VGGTPoses(device="cpu"), [np.zeros((144, 242, 3), np.uint8)] * 4)
    np.testing.assert_allclose(found.poses, true, atol=1e-6)
    assert found.fov_deg == pytest.approx(90)
    assert found.confidence == 0.5
    with pytest.raises(ModelError, match="'nowhere' gives: no such folder"):
        VGGTPoses("nowhere", device="cpu")


def test_networks_pass_the_same_gates() -> None:
    frames = [np.zeros((40, 60, 3), np.uint8)] * 6
    checked = estimate_network(lambda _: (pan(10), 50.0), frames, check=estimate(pan(9)))
    assert (checked.reason, checked.confidence, checked.fov_deg) == ("", 0.9, 50.0)
    assert "two-view odometry" in estimate_network(lambda _: (pan(10), 50.0), frames, check=estimate(pan(-10))).reason
    assert "at least 2 frames" in estimate_network(lambda _: (pan(10), 50.0), frames[:1]).reason
    for bad in (2 * pan(10), np.zeros((6, 3))):
        with pytest.raises(ContractError, match="camera-to-world"):
            estimate_network(lambda _, bad=bad: (bad, 50.0), frames)
    with pytest.raises(ContractError, match="got 5 for 6"):
        estimate_network(lambda _: (pan(10, frames=5), 50.0), frames)


def test_a_network_takes_part_in_the_chain() -> None:
    frames = clip(10, travelling(0.5, 0, 0), ROOM)
    right = estimate_camera(
        frames, CameraOptions(fov_deg=FOV_DEG), lambda some: (line(1, 0, 0, frames=len(some)), 48.0)
    )
    assert right.best.method == "vggt"
    turned = path([turn(pan=40 * u) for u in np.linspace(0, 1, 10)], np.zeros((10, 3)))
    wrong = estimate_camera(frames, CameraOptions(fov_deg=FOV_DEG), lambda some: (turned, 48.0))
    assert wrong.best.method == "global motion"
    assert wrong.all["vggt"].abstained
