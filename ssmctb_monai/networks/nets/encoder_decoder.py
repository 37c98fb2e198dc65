"""Encoder of a classifier with a light decoder: anomaly detection as segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Norm
from torch import Tensor, nn

from ssmctb_monai.checks import check_whole
from ssmctb_monai.networks.blocks.backbones import BACKBONE_STRIDE, Backbone, make_backbone
from ssmctb_monai.networks.blocks.encoder import convolution
from ssmctb_monai.networks.blocks.factory import Block, make_block
from ssmctb_monai.networks.nets.detector import Detector


class TransposedResidualBlock(nn.Module):
    """Doubles the size: a transposed convolution and a convolution, beside a transposed one; batch norm and ReLU.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels.
        out_channels: number of output channels.
        block: block in place of the second convolution and its norm.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, block: Block = None) -> None:
        super().__init__()
        arguments = {"adn_ordering": "NA", "norm": "batch", "act": "relu", "bias": False}
        second = make_block(block, spatial_dims, out_channels)
        self.layers = nn.Sequential(
            Convolution(spatial_dims, in_channels, out_channels, strides=2, is_transposed=True, **arguments),
            Convolution(spatial_dims, out_channels, out_channels, **{**arguments, "act": None})
            if second is None
            else second,
        )
        self.shortcut = nn.Sequential(
            Conv[Conv.CONVTRANS, spatial_dims](in_channels, out_channels, kernel_size=2, stride=2, bias=False),
            Norm[Norm.BATCH, spatial_dims](out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Doubles the size.

        Args:
            x: shape (batch, in_channels, height, width[, depth]).

        Returns:
            Tensor (batch, out_channels, …) of twice the size.
        """
        return torch.relu(self.layers(x) + self.shortcut(x))


class EncoderDecoder(Detector):
    """Finds anomalies as a segmentation network that is trained on synthetic ones.

    The network of Natural Synthetic Anomalies, Schlüter et al., ECCV 2022, https://arxiv.org/abs/2109.15222, in 2D and
    3D: the encoder of a classifier, two pointwise convolutions, three transposed residual blocks, linear upsampling and
    a transposed convolution; with a block in place of the penultimate convolution after Madan et al., TPAMI 46(1),
    2024, https://arxiv.org/abs/2209.12148.

    In training it returns logits, as ``torch.nn.BCEWithLogitsLoss`` takes them.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels, that is of modalities.
        encoder: ``"resnet18"`` or ``"fastvit_t8"``, see `make_backbone`.
        block: ``"sspcab"``, ``"ssmctb"`` or a callable from a number of channels to a module, in place of the last
            block's second convolution and norm; ``"none"`` or ``None`` for no block.
        encoder_width: number of channels of the encoder's first stage; ``None``: that of its paper.
        decoder_widths: number of channels of the two pointwise convolutions and the three blocks.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> network = EncoderDecoder(spatial_dims=2, in_channels=1, encoder="fastvit_t8").eval()
        >>> network(torch.rand(1, 1, 90, 70)).shape
        torch.Size([1, 1, 90, 70])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        encoder: Backbone = "resnet18",
        block: Block = "ssmctb",
        encoder_width: int | None = None,
        decoder_widths: Sequence[int] = (256, 128, 64, 32, 16),
    ) -> None:
        super().__init__(spatial_dims, in_channels, stride=BACKBONE_STRIDE)
        if len(decoder_widths) != 5:
            raise ValueError(f"decoder_widths must be five, got {list(decoder_widths)}.")
        check_whole(1, **{f"decoder_widths[{index}]": width for index, width in enumerate(decoder_widths)})
        self.encoder, channels = make_backbone(encoder, spatial_dims, in_channels, encoder_width)
        first, second, *up = decoder_widths
        blocks = [None, None, block]
        mode = "bilinear" if spatial_dims == 2 else "trilinear"
        self.decoder = nn.Sequential(
            convolution(spatial_dims, channels, first, kernel_size=1),
            convolution(spatial_dims, first, second, kernel_size=1),
            *[
                TransposedResidualBlock(spatial_dims, before, after, put)
                for before, after, put in zip([second, *up], up, blocks, strict=False)
            ],
            nn.Upsample(scale_factor=2, mode=mode, align_corners=False),
            Conv[Conv.CONVTRANS, spatial_dims](up[-1], 1, kernel_size=7, stride=2, padding=3, output_padding=1),
        )

    def training_output(self, x: Tensor) -> Tensor:
        """Finds anomalies.

        Args:
            x: image of shape (batch, in_channels, height, width[, depth]) of any size; it is padded to a multiple of 32
                inside, by repetition of its border. Batch norm needs more than one value a channel in the bottleneck: a
                batch of two or an image of more than 32 per axis.

        Returns:
            Logits of an anomaly, shape (batch, 1, height, width[, depth]).
        """
        return self.cut(self.decoder(self.encoder(self.padded(x))), x)

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Finds the probability of an anomaly at each voxel.

        Args:
            x: image as in :meth:`training_output`.

        Returns:
            The anomaly map in [0, 1], shape (batch, 1, height, width[, depth]).
        """
        return self.training_output(x).float().sigmoid()
