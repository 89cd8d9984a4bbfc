"""Which metrics have a bad side, and the smallest spread of each that counts, in its own unit.

The steps say when a difference is worth a look at all: one unit of CIELAB is about the least difference the eye sees, a
grey level of flicker is visible on a calm surface, a tenth in ``sharpness`` is a Gaussian blur of a quarter pixel. They
were chosen on half of the clips of ``benchmarks/planted_defects.py``; docs/reject.md has what the other half says.

``STANDARD`` is what takes are rejected on unless told otherwise: metrics that stand for a fault. The others rise and
fall with what is shown (motion lowers ``temporal_flickering``), so a take may be at the bad end of them and be fine.
"""

from __future__ import annotations

from reelign.selection.outliers import Directed

DIRECTED: dict[str, Directed] = {
    "repeated_share": Directed("high", 0.02, "stalls"),
    "brightness_flicker": Directed("high", 0.1, "flickers"),
    "flicker_peak": Directed("high", 0.2, "flashes"),
    "motion_compensated_flicker": Directed("high", 0.4, "changes where nothing moves"),
    "sharpness": Directed("low", 0.1, "blurred"),
    "cuts": Directed("high", 0.1, "cuts"),
    "cut_score": Directed("high", 0.05, "jumps"),
    "colour_jump": Directed("high", 0.2, "its colours jump"),
    "colour_drift": Directed("high", 0.5, "its colours drift"),
    "temporal_flickering": Directed("low", 0.005, "changes much from frame to frame"),
    "motion_smoothness": Directed("low", 0.005, "moves unevenly"),
    "histogram_consistency": Directed("low", 0.02, "its colours do not stay"),
    "blockiness": Directed("high", 0.1, "blocky"),
    "clipped_share": Directed("high", 0.02, "clipped"),
    "frozen_share": Directed("high", 0.05, "stands still"),
}
STANDARD = (
    "repeated_share",
    "brightness_flicker",
    "flicker_peak",
    "motion_compensated_flicker",
    "sharpness",
    "cuts",
    "cut_score",
    "colour_jump",
    "colour_drift",
)
