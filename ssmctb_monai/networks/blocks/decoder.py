"""Convolutional decoder to images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from ssmctb_monai.checks import check_spatial_dims, check_whole
from ssmctb_monai.networks.blocks.encoder import convolution
from ssmctb_monai.networks.blocks.factory import Block, make_block


class Decoder(nn.Module):
    """Stages of upsampling and two convolutions, with norm and ReLU, then the output convolution.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        widths: number of channels of each of the encoder's features, at least two, the finest first; the decoder goes
            back up through them.
        out_channels: number of output channels.
        skip_connections: whether the encoder's features of the same size are concatenated after the upsampling. Without
            them only the coarsest features count.
        block: ``"sspcab"``, ``"ssmctb"`` or a callable from a number of channels to a module, put in place of the
            penultimate convolution, its norm and activation; ``"none"`` or ``None`` for no block.
        norm: norm by MONAI's name; ``None`` for none.
        transposed_kernel: side of the kernel of a transposed convolution that upsamples, 2 or 3, with norm and ReLU
            where there is a norm; ``None`` for linear upsampling and a convolution.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> encoder = Encoder(spatial_dims=2, in_channels=1, widths=[8, 16, 32])
        >>> decoder = Decoder(spatial_dims=2, widths=[8, 16, 32], out_channels=2, skip_connections=True, block="ssmctb")
        >>> decoder(encoder(torch.rand(1, 1, 64, 64))).shape
        torch.Size([1, 2, 64, 64])
    """

    def __init__(
        self,
        spatial_dims: int,
        widths: Sequence[int],
        out_channels: int,
        skip_connections: bool = False,
        block: Block = None,
        norm: str | None = "batch",
        transposed_kernel: int | None = None,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        if transposed_kernel not in (None, 2, 3):
            raise ValueError(f"transposed_kernel must be 2, 3 or None, got {transposed_kernel}.")
        check_whole(1, out_channels=out_channels, **{f"widths[{index}]": width for index, width in enumerate(widths)})
        if len(widths) < 2:
            raise ValueError(f"widths must be at least two, got {list(widths)}.")
        self.skip_connections = skip_connections
        coarse = widths[:0:-1]  # from the bottleneck up to the second finest stage
        fine = widths[-2::-1]
        raised = coarse if transposed_kernel is None else fine  # channels behind the upsampling
        self.up = nn.ModuleList(
            _upsampling(spatial_dims, below, width, norm, transposed_kernel)
            for below, width in zip(coarse, raised, strict=True)
        )
        stages = [
            [
                convolution(spatial_dims, below + width if skip_connections else below, width, norm=norm),
                convolution(spatial_dims, width, width, norm=norm),
            ]
            for below, width in zip(raised, fine, strict=True)
        ]
        if (made := make_block(block, spatial_dims, widths[0])) is not None:
            stages[-1][-1] = made
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.output = Conv[Conv.CONV, spatial_dims](widths[0], out_channels, kernel_size=3, padding=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Makes an image of features.

        Args:
            features: one tensor (batch, width, height, width[, depth]) for each of ``widths``, as `Encoder` gives them.

        Returns:
            Tensor (batch, out_channels, height, width[, depth]) of the size of the finest features.

        Raises:
            ValueError: when there are more or fewer features.
        """
        if len(features) != len(self.stages) + 1:
            raise ValueError(f"Expected the features of {len(self.stages) + 1} stages, got {len(features)}.")
        x = features[-1]
        for index, (up, stage) in enumerate(zip(self.up, self.stages)):  # noqa: B905 (TorchScript knows no strict)
            x = up(x)
            if self.skip_connections:
                x = torch.cat([x, features[-2 - index]], dim=1)
            x = stage(x)
        return self.output(x)


def _upsampling(
    spatial_dims: int, in_channels: int, out_channels: int, norm: str | None, transposed_kernel: int | None
) -> nn.Module:
    """Doubles the size."""
    if transposed_kernel is None:
        return nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear" if spatial_dims == 2 else "trilinear", align_corners=True),
            convolution(spatial_dims, in_channels, out_channels, norm=norm),
        )
    return Convolution(
        spatial_dims,
        in_channels,
        out_channels,
        strides=2,
        kernel_size=transposed_kernel,
        padding=(transposed_kernel - 1) // 2,
        output_padding=transposed_kernel - 2,
        adn_ordering="NA",
        norm=norm,
        act="relu",
        bias=norm is None,
        conv_only=norm is None,
        is_transposed=True,
    )
