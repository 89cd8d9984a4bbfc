"""Which groups train, validate and test a judge: whole groups, so nothing of a test pair is seen in training.

AirScape's program splits mirrored pairs at random, 75:10:15 (its text says 6:1:1): a test pair's mirror image, and the
same takes in other pairs, stand in the training set. Here a group is on one side only, with all its takes and pairs.

``rotations`` deals shuffled groups round a circle: a block is tested, the next eighth calibrates, the rest trains. With
8 folds each rotation is 6:1:1 and every group is tested exactly once; with as many folds as groups it is leave-one-out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from reelign.errors import DataError

PARTS = 8  # 6:1:1
LEAST_GROUPS = 3


@dataclass(frozen=True)
class Split:
    """Group names; no group is in two parts."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def rotations(groups: Iterable[str], folds: int = PARTS, seed: int = 0) -> list[Split]:
    """``folds`` splits in which every group is tested exactly once; the same for any order of ``groups``.

    Args:
        groups: names; repetitions count once.
        folds: how many blocks are tested in turn; at most the number of groups is used.
        seed: of the shuffle.

    Raises:
        DataError: fewer than 3 groups, or fewer than 2 folds.
    """
    names = np.array(sorted(set(groups)))
    if len(names) < LEAST_GROUPS:
        raise DataError(f"training, validation and test need a group each, 3 in all; got {len(names)}: label more")
    if folds < 2:
        raise DataError(f"every group is tested once in 2 folds or more; got {folds}: for one split use split_groups")
    circle = np.random.default_rng(seed).permutation(names)
    folds = min(folds, len(names))
    held = max(1, round(len(names) / PARTS))
    edges = np.linspace(0, len(names), folds + 1).round().astype(int)
    splits = []
    for start, end in itertools.pairwise(edges):
        order = np.roll(circle, -start)
        size = end - start
        kept = min(held, len(names) - size - 1)
        if kept < 1:
            raise DataError(f"{folds} folds of {len(names)} groups leave none to train or calibrate: use more folds")
        test, validation, train = order[:size], order[size : size + kept], order[size + kept :]
        splits.append(Split(*(tuple(part.tolist()) for part in (train, validation, test))))
    return splits


def split_groups(groups: Iterable[str], seed: int = 0) -> Split:
    """One split 6:1:1 by group, as near as the number of groups allows.

    Raises:
        DataError: fewer than 3 groups.
    """
    return rotations(groups, PARTS, seed)[0]
