"""The selector of AirScape (arXiv 2507.08885) re-stated from its description, defects included, as a reference.

Pairs of (labelled best, other) in both orders, ten numbers each; zero similarities of the training pairs, but not those
met later, become N(0.1, 0.07) cut to [0, 0.25]; a random three quarters of the pairs train a forest of 100 trees, so
that mirrored pairs and one take's pairs lie on both sides of the split. Winners come from single elimination in the
order of files: neighbours meet, the forest decides (A, B) alone, an odd one passes.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier

FEATURES = ["imaging_quality", "motion_smoothness", "dynamic_degree", "aesthetic_quality", "similarity"]
TRAINING = 0.75


def train(takes: pd.DataFrame, best: dict[str, str], seed: int) -> RandomForestClassifier:
    """The published forest from the groups of ``takes``; the original has no seed."""
    random, pairs, labels = np.random.default_rng(seed), [], []
    for group, members in takes.groupby("group"):
        rows = members.set_index("take")[FEATURES].to_numpy(float, copy=True)
        missing = rows[:, -1] == 0
        rows[missing, -1] = np.clip(random.normal(0.1, 0.07, missing.sum()), 0, 0.25)
        winner = list(members["take"]).index(best[group])
        for other in set(range(len(rows))) - {winner}:
            pairs += [np.hstack([rows[winner], rows[other]]), np.hstack([rows[other], rows[winner]])]
            labels += [1, 0]
    kept = random.permutation(len(pairs))[: round(TRAINING * len(pairs))]
    forest = RandomForestClassifier(100, random_state=seed)
    return forest.fit(np.array(pairs)[kept], np.array(labels)[kept])


def one_sided_bracket(wins: np.ndarray, order: list[int]) -> int:
    """Single elimination as published, over wins[a, b] = whether a is said to beat b when shown first."""
    while len(order) > 1:
        pairs = zip(order[::2], order[1::2], strict=False)
        order = [a if wins[a, b] else b for a, b in pairs] + (order[-1:] if len(order) % 2 else [])
    return order[0]


def decisions(forest: RandomForestClassifier, members: pd.DataFrame) -> np.ndarray:
    """What the forest says of every ordered pair of a group, [n, n] bool; zero similarities stay zeros here."""
    rows = members[FEATURES].to_numpy(float)
    n = len(rows)
    pairs = np.hstack([np.repeat(rows, n, 0), np.tile(rows, (n, 1))])
    return forest.predict(pairs).reshape(n, n).astype(bool)
