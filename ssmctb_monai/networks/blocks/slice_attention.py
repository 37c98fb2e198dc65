"""Attention over the slices of a run, at each position by itself."""

from __future__ import annotations

import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from ssmctb_monai.checks import check_spatial_dims, check_whole


class SliceAttention(nn.Module):
    """Pre-norm transformer layer over slices, whose maps are convolutions: P = A(norm(X)) + X, then F(norm(P)) + P.

    After the temporal layers of STATE, Wang et al., *Making reconstruction-based method great again for video anomaly
    detection*, ICDM 2022, https://arxiv.org/abs/2301.12048. Queries, keys and values are convolutions of each slice; at
    each position the slices attend to one another by scaled dot products, so that what a slice takes of another one
    lies within the reach of the convolutions. Slices have no order. Norms are those of groups, as many as heads.

    Args:
        spatial_dims: number of spatial dimensions of a slice, 2 or 3.
        channels: number of channels, a multiple of the number of heads.
        num_heads: number of heads.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> SliceAttention(spatial_dims=2, channels=64)(torch.rand(1, 5, 64, 24, 24)).shape
        torch.Size([1, 5, 64, 24, 24])
    """

    def __init__(self, spatial_dims: int, channels: int, num_heads: int = 4) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_whole(1, channels=channels, num_heads=num_heads)
        if channels % num_heads:
            raise ValueError(f"channels must be a multiple of num_heads {num_heads}, got {channels}.")
        self.num_heads = num_heads
        convolution = Conv[Conv.CONV, spatial_dims]
        self.to_qkv = nn.Sequential(
            nn.GroupNorm(num_heads, channels), convolution(channels, 3 * channels, kernel_size=3, padding=1, bias=False)
        )
        self.from_heads = convolution(channels, channels, kernel_size=1)
        self.feed_forward = nn.Sequential(
            nn.GroupNorm(num_heads, channels),
            convolution(channels, channels, kernel_size=3, padding=1),
            nn.ReLU(),
            convolution(channels, channels, kernel_size=3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Lets slices attend to one another.

        Args:
            x: features (batch, slices, channels, height, width[, depth]).

        Returns:
            Tensor of the shape of ``x``.
        """
        batch, slices = x.shape[0], x.shape[1]
        image = x.flatten(0, 1)
        # (3, batch, position, head, slice, channel of the head)
        heads = self.to_qkv(image).flatten(2).unflatten(1, [3, self.num_heads, -1]).unflatten(0, [batch, slices])
        qkv = heads.permute(2, 0, 5, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        image = image + self.from_heads(attended.permute(0, 3, 2, 4, 1).reshape(image.shape))
        image = image + self.feed_forward(image)
        return image.unflatten(0, [batch, slices])
