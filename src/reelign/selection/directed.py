"""Which metrics have a bad side, and the smallest spread of each that counts."""

from __future__ import annotations

from reelign.selection.outliers import Directed

DIRECTED: dict[str, Directed] = {
    "temporal_flickering": Directed("low", 0.002, "flickers"),
    "motion_compensated_flicker": Directed("high", 0.2, "flickers beyond its motion"),
    "motion_smoothness": Directed("low", 0.002, "moves unevenly"),
    "histogram_consistency": Directed("low", 0.01, "its colours do not stay"),
    "sharpness": Directed("low", 0.1, "blurred"),
}
