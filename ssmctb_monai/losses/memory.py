"""Loss of a prediction through a memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MemoryLoss(nn.Module):
    """Mean squared error + compactness of features around the memory's items + separateness of the items.

    Park et al., *Learning memory-guided normality for anomaly detection* (MNAD), CVPR 2020,
    https://arxiv.org/abs/2003.13228. Compactness is the mean squared difference of features from their nearest item;
    separateness a triplet loss, by which the nearest item lies nearer than the second one by ``margin``.

    After each call ``parts`` holds the detached summands for logging, unweighted: ``"intensity"``, ``"compactness"``
    and ``"separateness"``.

    Args:
        compactness: weight of the compactness.
        separateness: weight of the separateness.
        margin: margin of the triplet loss.

    Raises:
        ValueError: when a number is negative.

    Example:
        >>> network = MemoryAutoencoder(spatial_dims=2, in_channels=5)
        >>> loss = SelfSupervisedLoss(MemoryLoss(), network)
        >>> loss(network(run), run).backward()
    """

    def __init__(self, compactness: float = 0.1, separateness: float = 0.1, margin: float = 1.0) -> None:
        super().__init__()
        for name, value in {"compactness": compactness, "separateness": separateness, "margin": margin}.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        self.weights = {"intensity": 1.0, "compactness": compactness, "separateness": separateness}
        self.margin = margin
        self.parts: dict[str, Tensor] = {}

    def forward(self, prediction: tuple[Tensor, Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        """Computes the loss, in float32.

        Args:
            prediction: image (batch, channels, …), queries, their nearest and second nearest items (number of queries,
                channels), as `MemoryAutoencoder` gives them in training.
            target: image of the same size, whose first channels are those of the prediction: in a run of slices those
                of the slice.

        Returns:
            Scalar in the graph.

        Raises:
            ValueError: when the images differ in size.
        """
        image = prediction[0]
        target = target[:, : image.shape[1]]
        if image.shape != target.shape:
            raise ValueError(f"The prediction has shape {tuple(image.shape)}, the target {tuple(target.shape)}.")
        with torch.autocast(target.device.type, enabled=False):
            image, queries, nearest, second = (tensor.float() for tensor in prediction)
            parts = {
                "intensity": F.mse_loss(image, target.float()),
                "compactness": F.mse_loss(queries, nearest),
                "separateness": F.triplet_margin_loss(queries, nearest, second, margin=self.margin),
            }
        self.parts = {name: part.detach() for name, part in parts.items()}
        return torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
