"""From a table of takes and whatever judges them to winners, in one call.

What judges may be a learned judge, weights of score columns where nobody has labelled anything, or people's choices
themselves; everything after that is the same.

Run: ``select_takes(folder.wide(), {"clip": 1.0})``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from reelign.errors import ConfigError, DataError
from reelign.selection.best_of import BestOf, best_of_curve
from reelign.selection.tournament import Standing, column_judge, run_groups, standings_from_labels
from reelign.selection.winners import Selection, WinnerOptions, candidates, select_winners

if TYPE_CHECKING:
    from reelign.selection.judge import Judge

STRENGTH = "strength"


class Play(BaseModel):
    """How a tournament is played.

    Args:
        scheme: ``elimination``, ``swiss``, ``halving`` or ``round_robin``.
        comparisons: for each group, at most; None is the scheme's own number.
        votes: whether the judge answers differently each time, so that asking again tells more.
        seed: None orders brackets by content hash; a number shuffles that order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheme: str = "halving"
    comparisons: int | None = Field(None, ge=1)
    votes: bool = False
    seed: int | None = None


@dataclass(frozen=True)
class Jury:
    """What judges takes: exactly one of a judge, weights of columns, and labels.

    Args:
        judge: asked for pairs.
        weights: by score column; see ``column_judge``.
        labels: people's choices on one axis; see ``reelign.selection.labels``.
        columns: what ``judge`` looks at: a take without any of them does not compete, and none may be gold.
    """

    judge: Judge | None = None
    weights: Mapping[str, float] | None = None
    labels: pd.DataFrame | None = None
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse none and several."""
        if sum(part is not None for part in (self.judge, self.weights, self.labels)) != 1:
            raise ConfigError("takes are judged by one of a judge, weights of columns, or labels: give exactly one")

    @property
    def needs(self) -> tuple[str, ...]:
        """Score columns it looks at."""
        return self.columns if self.weights is None else tuple(self.weights)

    def standings(self, takes: pd.DataFrame, play: Play) -> dict[str, Standing]:
        """How every group comes out; labels are a tournament that has been played already."""
        if self.labels is not None:
            return standings_from_labels(self.labels, takes)
        judge = self.judge if self.weights is None else column_judge(takes, self.weights)
        assert judge is not None  # __post_init__
        return run_groups(takes, judge, play.scheme, play.comparisons, play.votes, play.seed)


def select_takes(
    wide: pd.DataFrame,
    jury: Jury,
    rejected: pd.DataFrame | None = None,
    play: Play | None = None,
    options: WinnerOptions | None = None,
) -> Selection:
    """Winners of every group.

    Args:
        wide: ``TakesFolder.wide()``: take, file, prompt, group, and scores.
        jury: what judges them.
        rejected: take and reason, one row a reason; these don't compete.
        play: which tournament.
        options: who counts as a winner.

    Raises:
        DataError: no take is there, or a column the jury needs is missing.
    """
    if not len(wide):
        raise DataError("winners are chosen from takes; there is none: import clips first")
    takes, left_out = candidates(wide, rejected, jury.needs)
    return select_winners(takes, jury.standings(takes, play or Play()), options, left_out)


def best_of_takes(
    wide: pd.DataFrame, jury: Jury, gold: str, rejected: pd.DataFrame | None = None, largest: int | None = None
) -> BestOf:
    """The best-of-n curve of a jury, measured by ``gold``, which it must not look at.

    Takes are ordered by their strength in a round robin, since a shorter tournament ranks only the top well.

    Raises:
        DataError: the jury looks at ``gold``, or too few groups have it.
    """
    if gold in jury.needs:
        raise DataError(f"what selects cannot tell whether selecting helped; the jury looks at {gold!r}: name another")
    if gold not in wide:
        known = ", ".join(wide.select_dtypes("number").columns)
        raise DataError(f"gold is a score of the takes; {gold!r} is none of {known}")
    takes, _ = candidates(wide, rejected, jury.needs)
    standings = jury.standings(takes, Play(scheme="round_robin"))
    strength = {
        (group, take): float(theta)
        for group, standing in standings.items()
        for take, theta in zip(standing.takes, standing.strengths.theta.round(9), strict=True)
    }
    takes = takes.drop_duplicates(["group", "take"])
    keys = zip(takes["group"], takes["take"], strict=True)
    return best_of_curve(takes.assign(**{STRENGTH: [strength[key] for key in keys]}), STRENGTH, gold, largest)


def read_rejected(folder: Path) -> pd.DataFrame | None:
    """The table of rejections of a takes folder, or None where nothing was rejected yet.

    Raises:
        DataError: it cannot be read.
    """
    path = folder / "rejected.parquet"
    if not path.is_file():
        return None
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}; reject again") from error


def parse_weights(text: str) -> dict[str, float]:
    """``clip=1,flicker=-0.5`` as weights by column; a name alone weighs 1.

    Raises:
        ConfigError: a part is empty, named twice, or its weight is no number.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        try:
            weight = float(value) if "=" in part else 1.0
        except ValueError:
            weight = float("nan")
        if not name or name in weights or weight != weight:
            raise ConfigError(
                f"columns are different names with weights, for example clip=1,flicker=-0.5; got {part!r}"
            )
        weights[name] = weight
    return weights
