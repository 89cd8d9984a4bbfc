r"""Trajectories out of files: a table of camera-to-world poses, or COLMAP's ``images.txt``.

The table (.csv) has one row a frame with ``r00`` … ``r22`` and ``tx``, ``ty``, ``tz``, camera-to-world, in OpenCV's
axes; a column ``file`` picks the rows of one clip, a column ``frame`` their order.

``images.txt`` has two lines an image: ``IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME``, world-to-camera, and then its
2-D points, which are numbers too and are not poses. Images are ordered by name, because their ids follow no time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reelign.errors import DataError
from reelign.selection.camera_models import Array
from reelign.selection.camera_poses import from_quaternions, relative

ROTATION = [f"r{row}{column}" for row in range(3) for column in range(3)]
TRANSLATION = ["tx", "ty", "tz"]


def read_poses(path: str | Path, clip: str = "") -> Array:
    """Camera-to-world poses [T,4,4] relative to the first, of one clip.

    Args:
        path: a .csv table, or COLMAP's images.txt.
        clip: file name of the clip, where the table has rows of several.

    Raises:
        DataError: no such file, a line that is no pose, or no rows of this clip.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"poses are read from a .csv or COLMAP's images.txt; {path} is none")
    return _from_images(path) if path.suffix == ".txt" else _from_table(path, clip)


def _from_table(path: Path, clip: str) -> Array:
    import pandas as pd

    try:
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no table of poses: {error}") from error
    if missing := [name for name in (*ROTATION, *TRANSLATION) if name not in table.columns]:
        raise DataError(f"a table of poses has columns r00 … r22, tx, ty, tz; {path} lacks {', '.join(missing)}")
    if "file" in table.columns:
        table = table[table["file"] == clip]
    if "frame" in table.columns:
        table = table.sort_values("frame")
    if len(table) < 2:
        raise DataError(f"a trajectory has at least two rows; {path} has {len(table)} of {clip or 'this clip'}")
    numbers = table[ROTATION + TRANSLATION].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    poses = np.concatenate([numbers[:, :9].reshape(-1, 3, 3), numbers[:, 9:, None]], 2)
    return relative(poses)


def _from_images(path: Path) -> Array:
    rows: dict[str, list[float]] = {}
    # A line of points may be empty, so lines are counted, not filtered.
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    for number, line in enumerate(lines[::2]):
        fields = line.split(maxsplit=9)
        if not fields and number == len(lines[::2]) - 1:
            continue
        rows[_name(fields, path, line)] = [float(value) for value in fields[1:8]]
    if len(rows) < 2:
        raise DataError(f"a trajectory has at least two images; {path} has {len(rows)}")
    ordered = np.array([rows[name] for name in sorted(rows)])
    return from_quaternions(ordered[:, :4], ordered[:, 4:])


def _name(fields: list[str], path: Path, line: str) -> str:
    """The image's name, once its line is known to be a pose."""
    try:
        [float(value) for value in fields[1:8]]
        int(fields[0]), int(fields[8])
        return fields[9]
    except (ValueError, IndexError) as error:
        raise DataError(f"images.txt has a pose and a points line an image; {path} has {line[:60]!r}") from error
