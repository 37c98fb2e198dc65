"""Anomaly detection networks."""

from ssmctb_monai.networks.nets.draem import DRAEM

__all__ = ["DRAEM"]
