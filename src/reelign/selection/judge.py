"""Which of two takes is better: the judge that tournaments ask, learned from what people preferred."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pandas as pd


class Judge(Protocol):
    """Anything that says how probable it is that one take is preferred to another."""

    def probability(self, left: pd.DataFrame, right: pd.DataFrame) -> np.ndarray:
        """P(left preferred to right), float64 [n] in [0, 1], row by row.

        Args:
            left, right: [n] rows of ``TakesFolder.wide()`` each; NaN is a value that could not be measured.

        The answer does not depend on the side: probability(a, b) = 1 − probability(b, a).
        """
        ...
