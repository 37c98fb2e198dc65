"""Masked convolution: a kernel that sees its corners only."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmctb_monai.checks import check_image, check_spatial_dims, check_whole


def check_masked_kernel(spatial_dims: int, channels: int, sub_kernel_size: int, dilation: int, mask_size: int) -> None:
    """Checks the arguments of a masked kernel.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        channels: number of channels, at least 1.
        sub_kernel_size: side of each corner sub-kernel, at least 1.
        dilation: distance between a sub-kernel and the masked centre, at least 0.
        mask_size: side of the masked centre, odd.

    Raises:
        ValueError: when an argument is outside its range; it is named.
    """
    check_spatial_dims(spatial_dims)
    check_whole(1, channels=channels, sub_kernel_size=sub_kernel_size)
    check_whole(0, dilation=dilation)
    check_whole(1, mask_size=mask_size)
    if mask_size % 2 == 0:
        raise ValueError(f"mask_size must be odd, got {mask_size}.")


class MaskedConvolution(nn.Module):
    """Convolution whose kernel has weights in its corners only, so that the centre is predicted from its surroundings.

    Ristea et al., *Self-Supervised Predictive Convolutional Attentive Block for Anomaly Detection*, CVPR 2022,
    https://arxiv.org/abs/2111.09099; in 3D after Madan et al., *Self-Supervised Masked Convolutional Transformer
    Block for Anomaly Detection*, TPAMI 46(1), 2024, https://arxiv.org/abs/2209.12148.

    Along each axis the kernel holds two sub-kernels of ``sub_kernel_size`` k', a gap of ``dilation`` d on both sides of
    the masked centre of ``mask_size`` m, and nothing else: its receptive field is k = 2k' + 2d + m. Stride is 1 and
    zeros are padded, so the output has the shape of the input. No activation follows.

    For k' = 1 the corners are the taps of one ordinary 2×2(×2) convolution with dilation 2d + m + 1, and that is what
    is computed. For k' > 1 they lie on no regular grid; there it is the sum over the corners of one padded input, which
    on a CPU was faster than a dense kernel with zeros and than concatenated shifts (``benchmarks/README.md``).

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        channels: number of input and of output channels; filter i predicts channel i at the masked centre.
        sub_kernel_size: side k' ≥ 1 of each corner sub-kernel.
        dilation: distance d ≥ 0 between a sub-kernel and the masked centre.
        mask_size: side m of the masked centre, odd.
        bias: whether to add a learnable bias per channel.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> MaskedConvolution(spatial_dims=3, channels=4)(torch.rand(1, 4, 8, 9, 10)).shape
        torch.Size([1, 4, 8, 9, 10])
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        sub_kernel_size: int = 1,
        dilation: int = 1,
        mask_size: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_masked_kernel(spatial_dims, channels, sub_kernel_size, dilation, mask_size)
        self.spatial_dims = spatial_dims
        self.sub_kernel_size = sub_kernel_size
        self.dilation = dilation
        self.mask_size = mask_size
        self.offset = sub_kernel_size + 2 * dilation + mask_size  # from the first to the last sub-kernel, per axis
        self.padding = (self.receptive_field - 1) // 2
        self.weight = nn.Parameter(torch.empty(channels, channels, *(2 * sub_kernel_size,) * spatial_dims))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    @property
    def receptive_field(self) -> int:
        """Side k = 2k' + 2d + m of the whole kernel."""
        return self.offset + self.sub_kernel_size

    def reset_parameters(self) -> None:
        """Initialises weight and bias as ``torch.nn.Conv2d`` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        """Arguments, for ``print(module)``."""
        return (
            f"spatial_dims={self.spatial_dims}, channels={self.weight.shape[0]}, "
            f"sub_kernel_size={self.sub_kernel_size}, dilation={self.dilation}, mask_size={self.mask_size}, "
            f"bias={self.bias is not None}"
        )

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, dilation: int) -> Tensor:
        if self.spatial_dims == 2:
            return F.conv2d(x, weight, bias, padding=padding, dilation=dilation)
        return F.conv3d(x, weight, bias, padding=padding, dilation=dilation)

    def _sum_over_corners(self, x: Tensor) -> Tensor:
        padded = F.pad(x, [self.padding] * (2 * self.spatial_dims))
        output = self._corner(padded, 0, self.bias)
        for corner in range(1, 1 << self.spatial_dims):
            output = output + self._corner(padded, corner, None)
        return output

    def _corner(self, padded: Tensor, corner: int, bias: Tensor | None) -> Tensor:
        """What one sub-kernel sees; bit i of its number says on which side of the centre it lies along axis i."""
        weight: Tensor = self.weight
        for axis in range(2, padded.dim()):
            side = (corner >> (axis - 2)) & 1
            padded = padded.narrow(axis, side * self.offset, padded.shape[axis] - self.offset)
            weight = weight.narrow(axis, side * self.sub_kernel_size, self.sub_kernel_size)
        return self._convolve(padded, weight, bias, padding=0, dilation=1)

    def forward(self, x: Tensor) -> Tensor:
        """Predicts every position from its corners.

        Args:
            x: input of shape (batch, channels, height, width[, depth]).

        Returns:
            Tensor of the shape of ``x``.

        Raises:
            ValueError: when ``x`` has another number of dimensions or channels.
        """
        check_image(x, self.spatial_dims, self.weight.shape[1])
        if self.sub_kernel_size == 1:
            return self._convolve(x, self.weight, self.bias, padding=self.padding, dilation=self.offset)
        return self._sum_over_corners(x)
