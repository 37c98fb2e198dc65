"""Anomaly detection networks."""

from ssmctb_monai.networks.nets.draem import DRAEM, Reconstruction

__all__ = ["DRAEM", "Reconstruction"]
