"""Tiny checkpoints in the formats of the full-size models, and how they are trained."""
