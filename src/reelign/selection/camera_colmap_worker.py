"""The process that runs pycolmap for ``camera_colmap``: pictures in, ``answer.json`` out. Only this file imports it.

Features and matching on the processor, one thread and a fixed seed, so that the same pictures give the same poses; the
global mapper with the focal length fixed. Run: ``python -m reelign.selection.camera_colmap_worker FOLDER FOCAL``.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any


def main(folder: Path, focal: float) -> dict[str, Any]:
    """Reconstruct ``folder/images``; the answer, or ``missing`` or ``error`` alone."""
    try:
        pycolmap: Any = importlib.import_module("pycolmap")
    except ImportError as error:
        return {"missing": str(error)}
    names = sorted(path.name for path in (folder / "images").iterdir())
    _match(pycolmap, folder, focal)
    options = pycolmap.GlobalPipelineOptions()
    options.num_threads, options.random_seed = 1, 0
    options.mapper.bundle_adjustment.refine_focal_length = False
    options.mapper.bundle_adjustment.refine_extra_params = False
    (folder / "out").mkdir()
    models = pycolmap.global_mapping(folder / "database.db", folder / "images", folder / "out", options)
    if not models:
        return {"error": "no model could be built from the matches"}
    return _answer(max(models.values(), key=lambda model: int(model.num_reg_images())), names)


def _match(pycolmap: Any, folder: Path, focal: float) -> None:
    picture = pycolmap.Bitmap.read(str(next((folder / "images").iterdir())), False)
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "SIMPLE_PINHOLE"  # COLMAP's pixel centres are at halves
    reader.camera_params = f"{focal},{picture.width / 2},{picture.height / 2}"
    extraction, matching = pycolmap.FeatureExtractionOptions(), pycolmap.FeatureMatchingOptions()
    extraction.num_threads = matching.num_threads = 1
    extraction.sift.max_num_features = 2048
    pycolmap.set_random_seed(0)
    pycolmap.extract_features(
        folder / "database.db",
        folder / "images",
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=reader,
        extraction_options=extraction,
        device=pycolmap.Device.cpu,
    )
    pycolmap.match_exhaustive(folder / "database.db", matching_options=matching, device=pycolmap.Device.cpu)


def _answer(model: Any, names: list[str]) -> dict[str, Any]:
    images = {image.name: image for image in model.images.values()}
    placed = [images[name] for name in names if name in images and images[name].has_pose]
    poses = [image.cam_from_world() for image in placed]
    depths = sorted(float((poses[0] * point.xyz)[2]) for point in model.points3D.values()) if poses else []
    return {
        "registered": len(placed),
        "points": len(model.points3D),
        "reprojection_px": float(model.compute_mean_reprojection_error()),
        "depth": depths[len(depths) // 2] if depths else 0.0,
        "quaternions": [[float(pose.rotation.quat[i]) for i in (3, 0, 1, 2)] for pose in poses],
        "translations": [[float(value) for value in pose.translation] for pose in poses],
        "observations": [int(image.num_points3D) for image in placed],
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "answer.json").write_text(json.dumps(main(place, float(sys.argv[2]))), encoding="utf-8")
