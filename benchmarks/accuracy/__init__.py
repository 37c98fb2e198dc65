"""Accuracy of the bundles on real cases, cross-validated (``python -m benchmarks.accuracy``)."""
