"""Measurements side by side with the peers; `python -m benchmarks` runs them. Not part of the package."""
