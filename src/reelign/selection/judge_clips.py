"""Training the judge network from a takes folder: the clips themselves instead of their scores.

Every clip is read once and becomes frozen features; only the head of ``rewards.judge_network`` is trained, once a
rotation of the split by group and once on all groups. It is measured like the judges that read scores.

Left out: keeping features on disk between runs.

Run: ``reelign judge fit TAKES --labels labels.csv --model network --out judge/``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from reelign.errors import ClipError, DataError
from reelign.rewards.judge_network import Backbones, ClipFeatures, JudgeNetwork, NetworkConfig
from reelign.selection.judge import LearnedJudge, Measuring, Pairs, make_pairs
from reelign.selection.judge_calibration import Calibration
from reelign.selection.judge_fit import fit_and_measure
from reelign.video_io import read_clip

log = logging.getLogger(__name__)

PUBLISHED_TIE_FACTOR = 5.0  # VideoAlign's k


class NetworkTraining(Measuring):
    """How a judge network is trained.

    Args:
        video, text: the frozen VideoMAE and CLIP: ``zoo:NAME``, a folder or a hub id.
        tie_factor: k of Rao and Kupper; None is 5 where there are ties among the labels, as VideoAlign's, else 1.
        steps: updates of the head.
        batch: pairs of an update.
        max_frames: a clip is read at most this far.
        device: where features are computed.
    """

    video: str = "zoo:tiny-videomae"
    text: str = "zoo:tiny-clip"
    tie_factor: float | None = Field(None, ge=1)
    steps: int = Field(200, ge=1)
    batch: int = Field(64, ge=1)
    max_frames: int = Field(256, ge=1)
    device: str = "cpu"


def fit_network(
    takes: pd.DataFrame,
    labels: pd.DataFrame,
    locate: Callable[[str], Path],
    config: NetworkTraining | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> JudgeNetwork:
    """A judge network with its held-out numbers in ``facts``.

    Args:
        takes: take, file, prompt and group.
        labels: in the form of ``selection.labels``.
        locate: from ``file`` to where the clip is.
        config: how; the defaults where None.
        progress: called with clips read and clips in all.

    Raises:
        DataError: fewer than 3 groups with a preference whose clips can be read.
    """
    config = config or NetworkTraining()
    pairs = make_pairs(takes, labels, config.axis)
    tie_factor = config.tie_factor or (PUBLISHED_TIE_FACTOR if (pairs.truth == "tie").any() else 1.0)
    shape = NetworkConfig(video=config.video, text=config.text, tie_factor=tie_factor)
    backbones = Backbones(shape)
    features, bad = _features(pairs.takes, locate, backbones, config, progress)
    if bad:
        read = pairs.takes[~pairs.takes["take"].isin(bad)]["take"].tolist()
        pairs = _readable(takes, labels, bad, config.axis)
        features = features[torch.tensor([read.index(take) for take in pairs.takes["take"]])]
    heads: list[JudgeNetwork] = []

    def fit(groups: Sequence[str]) -> LearnedJudge:
        network = JudgeNetwork.untrained(shape, config.seed, backbones)
        train_head(network, pairs, features, groups, config)
        heads.append(network)
        return LearnedJudge(_Rows(), _HeadPairs(network, features), "network", Calibration(), 0.0, np.inf, {})

    judge = fit_and_measure(pairs, fit, config)
    network = heads[-1]
    network.normalise(features[torch.arange(len(pairs.takes))])
    network.facts = {
        **judge.card,
        "calibration": asdict(judge.calibration),
        "tie width": judge.tie_width,
        "unreadable takes": sorted(bad),
    }
    return network


def train_head(
    network: JudgeNetwork, pairs: Pairs, features: ClipFeatures, groups: Sequence[str], config: NetworkTraining
) -> None:
    """Update the head ``steps`` times with pairs of these groups, drawn with replacement; ties only where k > 1."""
    chosen = np.flatnonzero(pairs.of(groups, decided=network.config.tie_factor == 1))
    if not len(chosen):
        raise DataError("a judge learns from pairs with a preference; there is none: label some, not only ties")
    right_won = pairs.truth[chosen] == "right"
    first = torch.from_numpy(np.where(right_won, pairs.right[chosen], pairs.left[chosen]))
    second = torch.from_numpy(np.where(right_won, pairs.left[chosen], pairs.right[chosen]))
    tied = torch.from_numpy(pairs.truth[chosen] == "tie")
    random = torch.Generator().manual_seed(config.seed)
    for _ in range(config.steps):
        rows = torch.randint(len(chosen), (config.batch,), generator=random)
        network.update(features[first[rows]], features[second[rows]], tied[rows])


def _features(
    takes: pd.DataFrame,
    locate: Callable[[str], Path],
    backbones: Backbones,
    config: NetworkTraining,
    progress: Callable[[int, int], None] | None,
) -> tuple[ClipFeatures, set[str]]:
    """Features of every clip that can be read, in the order of ``takes``, and the takes that cannot."""
    found: list[ClipFeatures] = []
    bad: set[str] = set()
    rows = list(takes[["take", "file", "prompt"]].itertuples(index=False))
    for done, (take, file, prompt) in enumerate(rows, 1):
        if progress is not None:
            progress(done, len(rows))
        try:
            clip = read_clip(locate(file), config.max_frames).video
        except ClipError as error:
            log.warning("left out: %s", error)
            bad.add(str(take))
            continue
        with torch.no_grad():
            features = backbones.features(clip[None].to(config.device), [prompt])
        found.append(ClipFeatures(features.video.cpu(), features.text.cpu(), features.cosine.cpu()))
    if not found:
        raise DataError(f"the network learns from clips; none of the {len(rows)} labelled ones can be read")
    parts = (torch.cat([getattr(part, name) for part in found]) for name in ("video", "text", "cosine"))
    return ClipFeatures(*parts), bad


def _readable(takes: pd.DataFrame, labels: pd.DataFrame, bad: set[str], axis: str) -> Pairs:
    """The pairs again without takes that cannot be read."""
    good = labels[~(labels["left"].isin(bad) | labels["right"].isin(bad))]
    return make_pairs(takes[~takes["take"].isin(bad)], good, axis)


@dataclass(frozen=True)
class _Rows:
    """Reads where a take stands in the table, by which the features are found."""

    columns: tuple[str, ...] = ()

    def values(self, rows: pd.DataFrame) -> np.ndarray:
        places: np.ndarray = rows.index.to_numpy()
        return places

    def filled(self, rows: pd.DataFrame) -> np.ndarray:
        places: np.ndarray = rows.index.to_numpy()
        return places


@dataclass(frozen=True)
class _HeadPairs:
    """P(left preferred) = σ(h(left) − h(right)) from the places of takes."""

    network: JudgeNetwork
    features: ClipFeatures
    reads_missing: bool = False

    def probability(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            scores = self.network.head(self.features[torch.from_numpy(np.concatenate([left, right]))]).double()
        chances: np.ndarray = torch.sigmoid(scores[: len(left)] - scores[len(left) :]).numpy()
        return chances
