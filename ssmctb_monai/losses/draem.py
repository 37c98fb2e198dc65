"""Loss of DRAEM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import FocalLoss
from torch import Tensor, nn

from ssmctb_monai.checks import check_spatial_dims
from ssmctb_monai.networks.error_maps import ssim_map


class DRAEMLoss(nn.Module):
    """Reconstruction loss (L2 + SSIM) + focal loss.

    Zavrtanik et al., *DRAEM - A discriminatively trained reconstruction embedding for surface anomaly detection*,
    ICCV 2021, https://arxiv.org/abs/2108.07610. `SelfSupervisedLoss` adds that of the network's blocks.

    After each call ``parts`` holds the detached summands for logging: ``"l2"``, ``"ssim"`` and ``"focal"``.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        ssim_window: side of the Gaussian window of SSIM, odd. The paper's is 11.
        gamma: exponent of the focal loss.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> network = DRAEM(spatial_dims=3)
        >>> loss = SelfSupervisedLoss(DRAEMLoss(spatial_dims=3), network)
        >>> loss(network(image), (image_clean, anomaly_mask)).backward()
    """

    def __init__(self, spatial_dims: int, ssim_window: int = 11, gamma: float = 2.0) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        if ssim_window < 1 or ssim_window % 2 == 0:
            raise ValueError(f"ssim_window must be odd and positive, got {ssim_window}.")
        self.spatial_dims = spatial_dims
        self.ssim_window = ssim_window
        self.focal = FocalLoss(gamma=gamma, use_softmax=True, reduction="none")
        self.parts: dict[str, Tensor] = {}

    def forward(self, prediction: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
        """Computes the loss, in float32.

        Args:
            prediction: reconstruction (batch, channels, ...) and logits (batch, 2, ...), as `DRAEM` gives in training.
            target: clean image (batch, channels, ...) in [0, 1] and anomaly mask (batch, 1, ...), from 0 to 1.

        Returns:
            Scalar in the graph.

        Raises:
            ValueError: when the images have another number of dimensions, are smaller than the window of SSIM, or
                differ in shape.
        """
        reconstruction, logits = prediction
        clean, mask = target
        if clean.dim() != self.spatial_dims + 2 or min(clean.shape[2:]) < self.ssim_window:
            raise ValueError(
                f"Expected images of {self.spatial_dims} spatial dimensions, with at least ssim_window = "
                f"{self.ssim_window} voxels along each, got shape {tuple(clean.shape)}."
            )
        if reconstruction.shape != clean.shape:
            raise ValueError(
                f"The reconstruction has shape {tuple(reconstruction.shape)}, the clean image {tuple(clean.shape)}."
            )
        # The variances in SSIM and the logarithm in the focal loss need more digits than half precision has.
        with torch.autocast(logits.device.type, enabled=False):
            reconstruction, clean, logits, mask = (each.float() for each in (reconstruction, clean, logits, mask))
            classes = torch.cat([1 - mask, mask], dim=1)
            parts = {
                "l2": F.mse_loss(reconstruction, clean),
                "ssim": 1 - self._ssim(reconstruction, clean),
                "focal": self.focal(logits, classes).sum(dim=1).mean(),
            }
        self.parts = {name: part.detach() for name, part in parts.items()}
        return parts["l2"] + parts["ssim"] + parts["focal"]

    def _ssim(self, reconstruction: Tensor, clean: Tensor) -> Tensor:
        """Mean structural similarity over the windows that lie inside the image."""
        reach = self.ssim_window // 2
        ssim = ssim_map(reconstruction, clean, torch.ones(()), self.ssim_window)
        for axis in range(2, clean.dim()):
            ssim = ssim.narrow(axis, reach, clean.shape[axis] - 2 * reach)
        return ssim.mean()
