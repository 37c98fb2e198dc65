"""Labels of synthetic anomalies."""

from __future__ import annotations

from torch import Tensor

from ssmctb_monai.transforms.anomalies.parts import AnomalyLabel


class BinaryLabel(AnomalyLabel):
    """1 where an anomaly lies, 0 elsewhere."""

    def __call__(self, clean: Tensor, corrupted: Tensor, mask: Tensor) -> Tensor:
        """Labels an image, as `AnomalyLabel` describes it."""
        return mask.float()


class ContinuousLabel(AnomalyLabel):
    """How much an anomaly has changed the image: the absolute difference, averaged over the channels.

    Schlüter et al., *Natural Synthetic Anomalies*, ECCV 2022, https://arxiv.org/abs/2109.15222.

    Args:
        full: change that is labelled 1, as are larger ones.

    Raises:
        ValueError: when ``full`` is not positive.
    """

    def __init__(self, full: float = 1.0) -> None:
        if full <= 0:
            raise ValueError(f"full must be positive, got {full}.")
        self.full = full

    def __call__(self, clean: Tensor, corrupted: Tensor, mask: Tensor) -> Tensor:
        """Labels an image, as `AnomalyLabel` describes it."""
        return ((corrupted.float() - clean.float()).abs().mean(0) / self.full).clamp(max=1)
