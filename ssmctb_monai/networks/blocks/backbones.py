"""Encoders of image classifiers, by name."""

from __future__ import annotations

from typing import Literal, get_args

from monai.networks.nets import ResNet
from torch import nn

from ssmctb_monai.checks import check_choice, check_whole
from ssmctb_monai.networks.blocks.fastvit import FastViT

Backbone = Literal["resnet18", "fastvit_t8"]
BACKBONE_STRIDE = 32
_WIDTHS = {"resnet18": 64, "fastvit_t8": 48}


def make_backbone(
    backbone: Backbone, spatial_dims: int, in_channels: int, width: int | None = None
) -> tuple[nn.Module, int]:
    """Makes the encoder of a classifier, without its pooling and its last layer.

    ``"resnet18"``: He et al., *Deep residual learning for image recognition*, CVPR 2016,
    https://arxiv.org/abs/1512.03385, as MONAI has it; ``"fastvit_t8"``: `FastViT`.

    Args:
        backbone: name of the encoder.
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: number of input channels.
        width: number of channels of the first stage, each of the other three has twice as many as the one before;
            ``None``: that of the paper, 64 and 48.

    Returns:
        The encoder, from images to features of 1/32 of the size, and the number of its output channels.

    Raises:
        ValueError: when the name is unknown, or a number outside its range.

    Example:
        >>> encoder, channels = make_backbone("resnet18", spatial_dims=3, in_channels=2)
    """
    check_choice(get_args(Backbone), backbone=backbone)
    width = _WIDTHS[backbone] if width is None else width
    check_whole(1, in_channels=in_channels, width=width)
    if backbone == "fastvit_t8":
        encoder = FastViT(spatial_dims, in_channels, width)
        return encoder, encoder.out_channels
    resnet = ResNet(
        "basic",
        layers=[2, 2, 2, 2],
        block_inplanes=[width, 2 * width, 4 * width, 8 * width],
        spatial_dims=spatial_dims,
        n_input_channels=in_channels,
        conv1_t_stride=2,
        feed_forward=False,
        bias_downsample=False,
    )
    stem = [resnet.conv1, resnet.bn1, resnet.act, resnet.maxpool]
    return nn.Sequential(*stem, resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4), 8 * width
