"""Losses of SSM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmctb_monai.checks import check_spatial_dims
from ssmctb_monai.networks.error_maps import gradient_errors, ssim_map


class MSGMSLoss(nn.Module):
    """1 - multi-scale gradient magnitude similarity, which compares the edges of images.

    Zavrtanik et al., *Reconstruction by inpainting for visual anomaly detection*, Pattern Recognition 112, 2021,
    https://doi.org/10.1016/j.patcog.2020.107706: Prewitt gradient magnitudes of the mean over channels, after a median
    filter of 3 voxels an axis; the mean over the image, and over four scales, each half of the one before.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.

    Raises:
        ValueError: when ``spatial_dims`` is neither 2 nor 3.

    Example:
        >>> MSGMSLoss(spatial_dims=2)(network(image), image).backward()
    """

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        self.spatial_dims = spatial_dims

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Computes the loss, in float32.

        Args:
            prediction: image (batch, channels, height, width[, depth]), of at least 24 voxels along each axis.
            target: image of the same shape.

        Returns:
            Scalar in the graph, in [0, 1].

        Raises:
            ValueError: when the images differ in shape, have another number of dimensions or are too small.
        """
        if prediction.shape != target.shape or target.dim() != self.spatial_dims + 2:
            raise ValueError(
                f"Expected two images of one shape with {self.spatial_dims} spatial dimensions, got "
                f"{tuple(prediction.shape)} and {tuple(target.shape)}."
            )
        with torch.autocast(target.device.type, enabled=False):
            grey = [image.float().mean(dim=1, keepdim=True) for image in (prediction, target)]
            return torch.stack([errors.mean() for errors in gradient_errors(grey[0], grey[1], "reflect")]).mean()


class SSMLoss(nn.Module):
    """Mean squared error + MSGMS + (1 - SSIM) of the restoration, and mean squared error of the predicted masks.

    Huang et al., *Self-Supervised Masking for Unsupervised Anomaly Detection and Localization*, IEEE TMM 25, 2023,
    https://arxiv.org/abs/2205.06568; all weights are 1, the errors of the masks of the sets are summed.

    After each call ``parts`` holds the detached summands for logging: ``"l2"``, ``"msgms"``, ``"ssim"``, ``"mask"``.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.

    Raises:
        ValueError: when ``spatial_dims`` is neither 2 nor 3.

    Example:
        >>> network = SSM(spatial_dims=2, in_channels=1)
        >>> loss = SelfSupervisedLoss(SSMLoss(spatial_dims=2), network)
        >>> loss(network(image), image).backward()
    """

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self.msgms = MSGMSLoss(spatial_dims)
        self.parts: dict[str, Tensor] = {}

    def forward(self, prediction: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        """Computes the loss, in float32.

        Args:
            prediction: restoration (batch, channels, …), predicted masks and true ones (batch, sets, …), as `SSM` gives
                in training.
            target: image of the shape of the restoration, of at least 24 voxels along each axis.

        Returns:
            Scalar in the graph.

        Raises:
            ValueError: when the images or the masks differ in shape, or an image is too small.
        """
        restored, predicted, masks = prediction
        if predicted.shape != masks.shape or masks.shape[2:] != target.shape[2:]:
            raise ValueError(
                f"The predicted masks {tuple(predicted.shape)} and the true ones {tuple(masks.shape)} must have the "
                f"same shape, and the size of the image {tuple(target.shape)}."
            )
        msgms = self.msgms(restored, target)
        with torch.autocast(target.device.type, enabled=False):
            restored, target, predicted = restored.float(), target.float(), predicted.float()
            parts = {
                "l2": F.mse_loss(restored, target),
                "msgms": msgms,
                "ssim": (1 - ssim_map(restored, target, torch.ones(()), border="zeros")).mean(),
                "mask": masks.shape[1] * F.mse_loss(predicted, masks.float()),
            }
        self.parts = {name: part.detach() for name, part in parts.items()}
        return parts["l2"] + parts["msgms"] + parts["ssim"] + parts["mask"]
