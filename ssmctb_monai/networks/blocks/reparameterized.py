"""Convolutions of several branches in training, which are one convolution at evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Norm
from torch import Tensor, nn

from ssmctb_monai.checks import check_spatial_dims, check_whole


class RepConvolution(nn.Module):
    """Sum of convolutions of several sizes, each with batch norm, and of the batch norm alone.

    Ding et al., *RepVGG: Making VGG-style ConvNets great again*, CVPR 2021, https://arxiv.org/abs/2101.03697. In
    evaluation mode the branches are folded into one convolution of the same output, from the weights as they are, so
    that there is nothing to convert, and one state dict for both modes.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_sizes: sides of the kernels, odd, the largest first.
        stride: stride of all branches.
        groups: number of groups of channels that do not see each other; ``in_channels``: depthwise.
        identity: whether the batch norm of the input itself is a branch.

    Raises:
        ValueError: when an argument is outside its range, or the identity would change channels or size.

    Example:
        >>> convolution = RepConvolution(3, 8, 8, kernel_sizes=[3, 1], groups=8, identity=True)
        >>> convolution(torch.rand(2, 8, 16, 16, 16)).shape
        torch.Size([2, 8, 16, 16, 16])
    """

    if TYPE_CHECKING:  # TorchScript would look for the type
        unit: Tensor

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_sizes: Sequence[int],
        stride: int = 1,
        groups: int = 1,
        identity: bool = False,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_whole(1, stride=stride, groups=groups)
        if not kernel_sizes or any(size % 2 == 0 for size in kernel_sizes) or kernel_sizes[0] < max(kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd, the largest one first, got {list(kernel_sizes)}.")
        if identity and (in_channels != out_channels or stride > 1):
            raise ValueError(
                f"An identity keeps channels and size, got {in_channels} to {out_channels} channels, stride {stride}."
            )
        convolution, norm = Conv[Conv.CONV, spatial_dims], Norm[Norm.BATCH, spatial_dims]
        self.branches = nn.ModuleList(
            nn.Sequential(
                convolution(in_channels, out_channels, size, stride, padding=size // 2, groups=groups, bias=False),
                norm(out_channels),
            )
            for size in kernel_sizes
        )
        self.identity = norm(out_channels) if identity else None
        self.spatial_dims = spatial_dims
        self.stride = stride
        self.groups = groups
        self.margin = kernel_sizes[0] // 2
        # TorchScript keeps it in no norm
        self.eps: float = self.branches[0][1].eps  # type: ignore[index]
        shape = (out_channels, in_channels // groups, *[kernel_sizes[0]] * spatial_dims)
        self.register_buffer("unit", nn.init.dirac_(torch.empty(shape), groups), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Sums the branches.

        Args:
            x: shape (batch, in_channels, height, width[, depth]).

        Returns:
            Tensor (batch, out_channels, …), of the size divided by the stride.
        """
        if not self.training:
            kernel, bias = self.folded()
            return self.convolve(x, kernel, bias)
        result = torch.zeros((), device=x.device) if self.identity is None else self.identity(x)
        for branch in self.branches:
            result = result + branch(x)
        return result

    def convolve(self, x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        """Runs one convolution of the stride and groups of the branches.

        Args:
            x: input, as in :meth:`forward`.
            kernel: of the shape that :meth:`folded` gives.
            bias: shape (out_channels).

        Returns:
            Tensor (batch, out_channels, …).
        """
        if self.spatial_dims == 2:
            return F.conv2d(x, kernel, bias, self.stride, self.margin, groups=self.groups)
        return F.conv3d(x, kernel, bias, self.stride, self.margin, groups=self.groups)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Folds the branches, with the running statistics of their norms.

        Returns:
            Kernel, shape (out_channels, in_channels / groups, side, side[, side]), and bias, shape (out_channels).
        """
        kernel, bias = torch.zeros_like(self.unit), torch.zeros_like(self.unit[:, 0].flatten(1)[:, 0])
        if self.identity is not None:
            norm = self.identity
            scale, shift = fold_norm(
                norm.weight, norm.bias, norm.running_mean, norm.running_var, self.eps, self.spatial_dims
            )
            kernel, bias = kernel + scale * self.unit, bias + shift
        for branch in self.branches:
            weight, norm = branch[0].weight, branch[1]  # type: ignore[index]
            scale, shift = fold_norm(
                norm.weight, norm.bias, norm.running_mean, norm.running_var, self.eps, self.spatial_dims
            )
            margin = self.margin - weight.shape[-1] // 2
            kernel = kernel + F.pad(scale * weight, [margin] * (2 * self.spatial_dims))
            bias = bias + shift
        return kernel, bias


def fold_norm(
    weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float, spatial_dims: int
) -> tuple[Tensor, Tensor]:
    """Makes a scale and a shift of a batch norm with running statistics; it can be scripted.

    Args:
        weight: weight of the norm, shape (channels).
        bias: its bias, shape (channels).
        mean: its running mean, shape (channels).
        variance: its running variance, shape (channels).
        eps: its ``eps``.
        spatial_dims: number of spatial dimensions.

    Returns:
        Scale, shape (channels, 1, 1, 1[, 1]) as that of a kernel, and shift, shape (channels).
    """
    scale = weight / torch.sqrt(variance + eps)
    return scale.reshape([-1, 1] + [1] * spatial_dims), bias - mean * scale
