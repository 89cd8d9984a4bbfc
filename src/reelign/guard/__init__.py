"""Watching a run for reward hacking."""
