"""Convolutional encoder of images."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Pool
from torch import Tensor, nn

from ssmctb_monai.checks import check_spatial_dims, check_whole


def convolution(
    spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int = 3, norm: str | None = "batch"
) -> nn.Module:
    """Makes a convolution with norm and ReLU, of which encoder and decoder consist.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: side of the kernel, odd.
        norm: norm by MONAI's name; ``None`` for none.

    Returns:
        The layer; it keeps the size.
    """
    layer = Convolution(
        spatial_dims,
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        adn_ordering="NA",
        norm=norm,
        act="relu",
        bias=norm is None,
    )
    if norm is None:  # nothing else keeps the scale of deep features: He et al. 2015, https://arxiv.org/abs/1502.01852
        nn.init.kaiming_normal_(layer.conv.weight, nonlinearity="relu")
    return layer


class Encoder(nn.Module):
    """Stages of two convolutions each, with norm and ReLU, and max pooling between the stages.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels.
        widths: number of channels of each stage; every one halves the size of the one before.
        norm: norm by MONAI's name; ``None`` for none.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> encoder = Encoder(spatial_dims=2, in_channels=1, widths=[8, 16, 32])
        >>> [tuple(features.shape) for features in encoder(torch.rand(1, 1, 64, 64))]
        [(1, 8, 64, 64), (1, 16, 32, 32), (1, 32, 16, 16)]
    """

    def __init__(self, spatial_dims: int, in_channels: int, widths: Sequence[int], norm: str | None = "batch") -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_whole(1, in_channels=in_channels, **{f"widths[{index}]": width for index, width in enumerate(widths)})
        self.pool = Pool[Pool.MAX, spatial_dims](2)
        self.stages = nn.ModuleList(
            nn.Sequential(
                convolution(spatial_dims, before, width, norm=norm), convolution(spatial_dims, width, width, norm=norm)
            )
            for before, width in zip([in_channels, *widths], widths, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Finds the features of all stages.

        Args:
            x: image of shape (batch, in_channels, height, width[, depth]).

        Returns:
            One tensor a stage, the finest first, as `Decoder` takes them.
        """
        features: list[Tensor] = []
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else self.pool(x))
            features.append(x)
        return features
