"""reelign: post-train video generators from feedback, and prove that they got better."""

__version__ = "0.1.0"
