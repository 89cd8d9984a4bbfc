r"""What is merely unusual: an isolation forest whose word is advice, never a rejection.

The forest (Liu, Ting and Zhou 2008) learns half of the takes that people accepted; the other half says what scores such
takes get. For a new take with score s (low is odd) the conformal p-value is

    p = (1 + #{accepted in the second half with score ≤ s})/(n + 1)

so of takes like the accepted ones a share of at most ``level`` has p ≤ level. There is no contamination: that is a
quota, which condemns takes of a clean batch as well. Without accepted takes nothing is scored and nothing flagged. A
forest cannot tell bad from unusually good, which is why it only says "look at this", with the columns that are furthest
in a tail (after ECOD: Li et al. 2022).

Run: ``reelign reject TAKES --calibrate ACCEPTED``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reelign.errors import ConfigError
from reelign.selection.gates import Finding
from reelign.selection.outliers import MIN_COHORT, check_level, robust_z

LEAST = 16  # accepted takes from which a forest can learn anything
NAMED = 3  # columns that an advice names


def compared(frame: pd.DataFrame, columns: Sequence[str], cohort: pd.Series, least: int = MIN_COHORT) -> pd.DataFrame:
    """Every column as signed z within the cohort, so that takes of different groups can share a forest.

    NaN, never zero, where a value is missing or the cohort too small. The smallest spread is 1 % of the median's size.
    """
    out = pd.DataFrame(np.nan, index=frame.index, columns=[name for name in columns if name in frame])
    for name, rows in frame.groupby(cohort, sort=False):
        for column in out.columns if name else ():
            values = rows[column].to_numpy(dtype=np.float64, na_value=np.nan)
            if np.isfinite(values).sum() >= least:
                step = max(0.01 * abs(float(np.nanmedian(values))), 1e-9)
                out.loc[rows.index, column] = robust_z(values, step)
    return out


def forest_scores(accepted: pd.DataFrame, seen: pd.DataFrame, seed: int = 0) -> NDArray[np.float64]:
    """score_samples of a forest of 200 trees learned on ``accepted``, for ``seen``; low is odd, −1 to 0.

    Missing values stay missing: the trees send them one way. Columns without any accepted value are left out.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import IsolationForest
    except ImportError as error:
        raise ConfigError("advice needs scikit-learn: pip install scikit-learn, or leave the advice out") from error
    columns = list(accepted.columns[accepted.notna().any()])
    forest = IsolationForest(n_estimators=200, contamination="auto", random_state=seed)
    forest.fit(_clipped(accepted[columns]))
    return np.asarray(forest.score_samples(_clipped(seen[columns])), np.float64)


def _clipped(z: pd.DataFrame) -> NDArray[np.float64]:
    """z of at most ±100: a value a million spreads away would make every split of its column useless."""
    return np.asarray(z.clip(-100, 100), np.float64)


def conformal_p(reference: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(1 + #{reference ≤ s})/(n + 1) for each s: the chance of a score as low, if the take is like the reference."""
    below = np.searchsorted(np.sort(reference), scores, side="right")
    return np.asarray((1 + below) / (len(reference) + 1), np.float64)


def tail_attribution(reference: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    """−log p of each value's own tail: p = (1 + takes of the reference at least as far out on that side)/(n + 1)."""
    out = pd.DataFrame(np.nan, index=seen.index, columns=seen.columns)
    for column in seen.columns:
        known = np.sort(reference[column].dropna().to_numpy(np.float64))
        values = seen[column].to_numpy(np.float64)
        here = np.isfinite(values)
        if len(known) and here.any():
            low = 1 + np.searchsorted(known, values[here], side="right")
            high = 1 + len(known) - np.searchsorted(known, values[here], side="left")
            out.loc[here, column] = -np.log(np.minimum(low, high) / (len(known) + 1))
    return out


def advise(
    frame: pd.DataFrame, z: pd.DataFrame, accepted: pd.DataFrame, level: float, seed: int = 0
) -> tuple[list[Finding], pd.DataFrame]:
    """Takes that are unusual beside accepted ones, as advice, and the score and p-value of every take.

    Args:
        frame: take and file.
        z: its columns, from ``compared``; a row without any value gets no score.
        accepted: those of takes that people accepted, at least ``LEAST``.
        level: share of ordinary takes that may be flagged.
        seed: of the forest and of which half it learns.

    Raises:
        ConfigError: too few accepted takes.
    """
    check_level(level)
    accepted = accepted[accepted.notna().any(axis=1)]
    if len(accepted) < LEAST:
        raise ConfigError(f"advice needs {LEAST} accepted takes in comparable groups; got {len(accepted)}: give more")
    order = np.random.default_rng(seed).permutation(len(accepted))
    half = len(accepted) // 2
    learn, hold = accepted.iloc[order[:half]], accepted.iloc[order[half:]]
    known = z[z.notna().any(axis=1)].reindex(columns=accepted.columns)
    scores = pd.DataFrame({"take": frame["take"], "score": np.nan, "p": np.nan})
    if known.empty:
        return [], scores
    both = forest_scores(learn, pd.concat([hold, known]), seed)
    scores.loc[known.index, "score"] = both[len(hold) :]
    scores.loc[known.index, "p"] = conformal_p(both[: len(hold)], both[len(hold) :])
    tails = tail_attribution(accepted, known)
    odd = scores.index[scores["p"] <= level]
    return [_say(frame.loc[i], z.loc[i], tails.loc[i], float(scores.loc[i, "p"])) for i in odd], scores


def _say(row: pd.Series, z: pd.Series, tails: pd.Series, p: float) -> Finding:
    named = ", ".join(f"{name} {z[name]:+.1f}" for name in tails.nlargest(NAMED).index)
    reason = f"unusual beside accepted takes (p = {p:.3f}); furthest out, in spreads of its cohort: {named}"
    return Finding(str(row["take"]), str(row["file"]), "unusual", reason, "forest", p, float("nan"), advice=True)
