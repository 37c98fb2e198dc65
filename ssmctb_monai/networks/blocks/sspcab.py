"""SSPCAB, the predecessor of SSMCTB."""

from __future__ import annotations

from monai.networks.blocks import ChannelSELayer

from ssmctb_monai.networks.blocks.masked_convolution import MaskedConvolution
from ssmctb_monai.networks.blocks.self_supervised_block import SelfSupervisedBlock


class SSPCAB(SelfSupervisedBlock):
    """Self-supervised predictive convolutional attentive block.

    Ristea et al., *Self-Supervised Predictive Convolutional Attentive Block for Anomaly Detection*, CVPR 2022,
    https://arxiv.org/abs/2111.09099. Masked convolution, ReLU, squeeze-and-excitation; trained with the mean squared
    error between its output and its input, kept in ``reconstruction_loss`` while training.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        channels: number of input and of output channels.
        sub_kernel_size: side of each corner sub-kernel.
        dilation: distance between a sub-kernel and the masked centre.
        mask_size: side of the masked centre, odd.
        reduction_ratio: channels per hidden unit of the squeeze-and-excitation layer, at most ``channels``.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> block = SSPCAB(spatial_dims=2, channels=16)
        >>> block(torch.rand(1, 16, 32, 32)).shape, block.reconstruction_loss.ndim
        (torch.Size([1, 16, 32, 32]), 0)
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        sub_kernel_size: int = 1,
        dilation: int = 1,
        mask_size: int = 1,
        reduction_ratio: int = 8,
    ) -> None:
        super().__init__(
            convolution=MaskedConvolution(spatial_dims, channels, sub_kernel_size, dilation, mask_size),
            attention=squeeze_and_excitation(spatial_dims, channels, reduction_ratio),
            loss="mse",
        )


def squeeze_and_excitation(spatial_dims: int, channels: int, reduction_ratio: int) -> ChannelSELayer:
    """MONAI's squeeze-and-excitation layer, with an error in this package's terms.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        channels: number of channels.
        reduction_ratio: channels per hidden unit, from 1 to ``channels``.

    Returns:
        The layer, shape-preserving.

    Raises:
        ValueError: when ``reduction_ratio`` is outside its range.
    """
    if not 1 <= reduction_ratio <= channels:
        raise ValueError(f"reduction_ratio must be from 1 to channels={channels}, got {reduction_ratio}.")
    return ChannelSELayer(spatial_dims, channels, r=reduction_ratio)
