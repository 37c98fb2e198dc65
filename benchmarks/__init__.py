"""Benchmarks: ratios against a stated reference, measured in the same run (``python -m benchmarks``)."""
