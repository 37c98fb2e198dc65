"""Loss that keeps an autoencoder from reconstructing synthetic anomalies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AscentLoss(nn.Module):
    """Reconstruction error of normal tissue - λ · that of synthetic anomalies + cross-entropy of the classifier.

    Georgescu et al., *A background-agnostic framework with adversarial training for abnormal event detection in video*,
    TPAMI 44(9), 2022, https://arxiv.org/abs/2008.12328: gradient descent on what is normal, ascent on what is abnormal,
    here voxel by voxel, each with the mean over its own voxels. The error is the absolute difference to the network's
    input, anomaly included.

    Images and reconstructions lie in [0, 1], so that the loss never falls below -λ. Of a reconstruction without bounds
    it would have none itself: the cheapest way to win is to reconstruct anomalies as infinity. To count errors up to 1
    alone does not help, since nothing holds back what is beyond: on drawn images they rose to 5.

    After each call ``parts`` holds the detached summands, unweighted, for logging: ``"normal"``, ``"abnormal"`` and
    ``"classification"``.

    Args:
        weight: λ ≥ 0 of the ascent. 0.2 is remembered from the paper, and was not checked.

    Raises:
        ValueError: when ``weight`` is negative.

    Example:
        >>> network = AscentAutoencoder(spatial_dims=3)
        >>> loss = SelfSupervisedLoss(AscentLoss(), network)
        >>> loss(network(image), (image, anomaly_mask)).backward()
    """

    def __init__(self, weight: float = 0.2) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight must not be negative, got {weight}.")
        self.weight = weight
        self.parts: dict[str, Tensor] = {}

    def forward(self, prediction: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
        """Computes the loss, in float32.

        Args:
            prediction: reconstruction (batch, channels, ...) in [0, 1] and logits (batch, 1, ...), as
                `AscentAutoencoder` gives in training.
            target: the image as the network got it (batch, channels, ...), with values in [0, 1], and the anomaly mask
                (batch, 1, ...), in [0, 1].

        Returns:
            Scalar in the graph.

        Raises:
            ValueError: when the reconstruction has another shape than the image.
        """
        reconstruction, logits = prediction
        image, mask = target
        if reconstruction.shape != image.shape:
            raise ValueError(
                f"The reconstruction has shape {tuple(reconstruction.shape)}, the image {tuple(image.shape)}."
            )
        with torch.autocast(image.device.type, enabled=False):
            mask = mask.float()
            errors = (reconstruction.float() - image.float()).abs().mean(dim=1, keepdim=True)
            parts = {
                "normal": _mean(errors, 1 - mask),
                "abnormal": _mean(errors, mask),
                "classification": F.binary_cross_entropy_with_logits(logits.float(), mask),
            }
        self.parts = {name: part.detach() for name, part in parts.items()}
        return parts["normal"] - self.weight * parts["abnormal"] + parts["classification"]


def _mean(errors: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean; 0 where nothing has weight."""
    return (errors * weights).sum() / weights.sum().clamp_min(1e-12)
