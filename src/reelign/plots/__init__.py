"""Curves, contact sheets and GIFs."""
