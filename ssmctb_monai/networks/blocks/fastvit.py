"""Encoder of FastViT."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv, Norm
from torch import Tensor, nn

from ssmctb_monai.checks import check_spatial_dims, check_whole
from ssmctb_monai.networks.blocks.reparameterized import RepConvolution, fold_norm


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Makes one value a channel a factor of an image; it can be scripted.

    Args:
        values: shape (channels).
        x: image, shape (batch, channels, height, width[, depth]).

    Returns:
        The values, shape (1, channels, 1, 1[, 1]).
    """
    return values.reshape([1, -1] + [1] * (x.dim() - 2))


class RepMixer(nn.Module):
    """Mixes neighbours without attention: x + γ (mixer(x) - norm(x)), at evaluation one depthwise convolution.

    Vasu et al., *FastViT: A fast hybrid vision transformer using structural reparameterization*, ICCV 2023,
    https://arxiv.org/abs/2303.14189.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        channels: number of channels.
        scale: γ at the beginning, one for each channel.
    """

    def __init__(self, spatial_dims: int, channels: int, scale: float = 1e-5) -> None:
        super().__init__()
        self.mixer = RepConvolution(spatial_dims, channels, channels, [3, 1], groups=channels, identity=True)
        self.norm = Norm[Norm.BATCH, spatial_dims](channels)
        self.gamma = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """Mixes neighbours.

        Args:
            x: shape (batch, channels, height, width[, depth]).

        Returns:
            Tensor of the shape of ``x``.
        """
        if self.training:
            return x + per_channel(self.gamma, x) * (self.mixer(x) - self.norm(x))
        kernel, bias = self.mixer.folded()
        norm = self.norm
        scale, shift = fold_norm(
            norm.weight, norm.bias, norm.running_mean, norm.running_var, self.mixer.eps, self.mixer.spatial_dims
        )
        kernel = self.mixer.unit + per_channel(self.gamma, x).transpose(0, 1) * (kernel - scale * self.mixer.unit)
        return self.mixer.convolve(x, kernel, self.gamma * (bias - shift))


class ConvolutionalMLP(nn.Module):
    """Feed-forward part: depthwise 7 x 7 convolution with batch norm, two pointwise ones with GELU between; residual.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        channels: number of channels.
        ratio: number of hidden channels, as a multiple.
        scale: factor of what is added to the input at the beginning, one for each channel.
    """

    def __init__(self, spatial_dims: int, channels: int, ratio: int = 3, scale: float = 1e-5) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, spatial_dims]
        self.layers = nn.Sequential(
            RepConvolution(spatial_dims, channels, channels, [7], groups=channels),
            convolution(channels, ratio * channels, 1),
            nn.GELU(),
            convolution(ratio * channels, channels, 1),
        )
        self.gamma = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layers.

        Args:
            x: shape (batch, channels, height, width[, depth]).

        Returns:
            Tensor of the shape of ``x``.
        """
        return x + per_channel(self.gamma, x) * self.layers(x)


class FastViT(nn.Sequential):
    """Encoder of FastViT-T8: a stem of stride 4, and four stages of reparameterised mixers, each of twice the width.

    Vasu et al., *FastViT: A fast hybrid vision transformer using structural reparameterization*, ICCV 2023,
    https://arxiv.org/abs/2303.14189; T8 has no attention, so that sizes are free, and 3D is the same with kernels of
    one axis more.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels.
        width: number of channels of the first stage.
        depths: number of mixers of each stage.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> FastViT(spatial_dims=2, in_channels=1)(torch.rand(2, 1, 64, 96)).shape
        torch.Size([2, 384, 2, 3])
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, width: int = 48, depths: Sequence[int] = (2, 2, 4, 2)
    ) -> None:
        check_spatial_dims(spatial_dims)
        check_whole(1, in_channels=in_channels, width=width)
        self.out_channels = width * 2 ** (len(depths) - 1)

        def rep(before: int, after: int, kernel_sizes: list[int], stride: int = 1, groups: int = 1) -> nn.Module:
            identity = before == after and stride == 1
            return RepConvolution(spatial_dims, before, after, kernel_sizes, stride, groups, identity)

        stem = [rep(in_channels, width, [3, 1], 2), rep(width, width, [3, 1], 2, groups=width), rep(width, width, [1])]
        layers = [layer for convolution in stem for layer in (convolution, nn.GELU())]
        for index, depth in enumerate(depths):
            channels = width * 2**index
            if index > 0:
                before = channels // 2
                layers += [rep(before, channels, [7, 3], 2, groups=before), rep(channels, channels, [1]), nn.GELU()]
            for _ in range(depth):
                layers += [RepMixer(spatial_dims, channels), ConvolutionalMLP(spatial_dims, channels)]
        super().__init__(*layers)
