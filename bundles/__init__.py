"""Configurations of anomaly detection as MONAI bundles, written from one source."""
