"""Loss of a masked autoencoder."""

from __future__ import annotations

from torch import Tensor, nn


class MaskedReconstructionLoss(nn.Module):
    """Mean squared error of what was hidden from the network.

    He et al., *Masked Autoencoders Are Scalable Vision Learners*, CVPR 2022, https://arxiv.org/abs/2111.06377.

    Example:
        >>> network = MaskedAutoencoder(spatial_dims=2, in_channels=1, img_size=96, patch_size=8)
        >>> MaskedReconstructionLoss()(network(image), image).backward()
    """

    def forward(self, prediction: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        """Computes the loss, in float32.

        Args:
            prediction: reconstruction (batch, channels, ...) and where it was hidden (batch, 1, ...), 1 or 0, as
                `MaskedAutoencoder` gives in training.
            target: image of the shape of the reconstruction.

        Returns:
            Scalar in the graph: the mean over the hidden voxels of the batch and all channels.

        Raises:
            ValueError: when nothing was hidden, or shapes differ.
        """
        reconstruction, hidden = prediction
        if reconstruction.shape != target.shape or hidden.shape != target[:, :1].shape:
            raise ValueError(
                f"The reconstruction {tuple(reconstruction.shape)}, the mask {tuple(hidden.shape)} of one channel and "
                f"the image {tuple(target.shape)} must have the same shape."
            )
        errors = (reconstruction.float() - target.float()).square().mean(dim=1, keepdim=True)[hidden > 0]
        if not len(errors):
            raise ValueError("Nothing was hidden, so there is nothing to learn from: raise the masking ratio.")
        return errors.mean()
