"""Watches a run for reward hacking: cheap statistics of fixed samples, held-out judges, and what to do about them."""
