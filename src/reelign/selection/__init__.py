"""Scoring takes, and choosing the best of them."""
