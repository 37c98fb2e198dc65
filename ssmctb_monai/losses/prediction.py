"""Loss of a predicted image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmctb_monai.checks import check_spatial_dims


class PredictionLoss(nn.Module):
    """Mean squared error + difference of gradient magnitudes, which keeps edges.

    Liu et al., *Future frame prediction for anomaly detection - a new baseline*, CVPR 2018,
    https://arxiv.org/abs/1712.09867, after Mathieu et al., ICLR 2016, https://arxiv.org/abs/1511.05440; both weights
    are 1. The magnitudes are those of the steps along each axis, the last one to a border of 0; each axis has a mean of
    its own, and these are summed.

    After each call ``parts`` holds the detached summands for logging: ``"intensity"`` and ``"gradient"``.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.

    Raises:
        ValueError: when ``spatial_dims`` is neither 2 nor 3.

    Example:
        >>> network = FuturePredictor(spatial_dims=2, in_channels=5)
        >>> loss = SelfSupervisedLoss(PredictionLoss(spatial_dims=2), network)
        >>> loss(network(run), run).backward()
    """

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        self.spatial_dims = spatial_dims
        self.parts: dict[str, Tensor] = {}

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Computes the loss, in float32.

        Args:
            prediction: image (batch, channels, height, width[, depth]).
            target: image of the same size, whose first channels are those of the prediction: in a run of slices those
                of the slice.

        Returns:
            Scalar in the graph.

        Raises:
            ValueError: when the images differ in size, or have another number of dimensions.
        """
        target = target[:, : prediction.shape[1]]
        if prediction.shape != target.shape or target.dim() != self.spatial_dims + 2:
            raise ValueError(
                f"Expected a prediction and a target of one size with {self.spatial_dims} spatial dimensions, got "
                f"{tuple(prediction.shape)} and {tuple(target.shape)}."
            )
        with torch.autocast(target.device.type, enabled=False):
            prediction, target = prediction.float(), target.float()
            gradients = [F.l1_loss(_steps(prediction, axis), _steps(target, axis)) for axis in range(2, target.dim())]
            parts = {
                "intensity": F.mse_loss(prediction, target),
                "gradient": torch.stack(gradients).sum(),
            }
        self.parts = {name: part.detach() for name, part in parts.items()}
        return parts["intensity"] + parts["gradient"]


def _steps(x: Tensor, axis: int) -> Tensor:
    """Sizes of the steps along an axis, of the shape of ``x``."""
    return x.diff(dim=axis, append=torch.zeros_like(x.narrow(axis, 0, 1))).abs()
