"""Spatial attention by a transformer over positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Pool
from torch import Tensor, nn

from ssmctb_monai.checks import check_image, check_spatial_dims, check_whole
from ssmctb_monai.networks.blocks.transformer_layer import TransformerLayer


class SpatialTransformer(nn.Module):
    """Weights every position by a gate that a transformer over a coarse grid of positions computes.

    The spatial counterpart of `ChannelTransformer`, for the ablation in Madan et al., *Self-Supervised Masked
    Convolutional Transformer Block for Anomaly Detection*, TPAMI 46(1), 2024, https://arxiv.org/abs/2209.12148.
    Attention over all voxels of a volume is out of reach, so the tokens are the cells of a grid to which the input is
    average-pooled, one token a cell with all its channels; the gates are interpolated linearly to the input's size.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        channels: number of channels.
        grid_size: number of cells per axis.
        token_dim: length of a token.
        num_heads: number of attention heads, summed.
        num_layers: number of transformer layers.

    Raises:
        ValueError: when a size is not positive.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        grid_size: int = 8,
        token_dim: int = 64,
        num_heads: int = 4,
        num_layers: int = 2,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_whole(1, channels=channels, grid_size=grid_size, num_layers=num_layers)
        self.grid = [grid_size] * spatial_dims
        self.interpolation = "bilinear" if spatial_dims == 2 else "trilinear"
        self.spatial_dims = spatial_dims
        self.channels = channels
        self.pool = Pool[Pool.ADAPTIVEAVG, spatial_dims](grid_size)
        self.projection = nn.Linear(channels, token_dim)
        self.position_embedding = nn.Parameter(torch.empty(grid_size**spatial_dims, token_dim))
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        self.layers = nn.Sequential(*(TransformerLayer(token_dim, num_heads) for _ in range(num_layers)))

    def forward(self, x: Tensor) -> Tensor:
        """Scales the positions of ``x``.

        Args:
            x: shape (batch, channels, height, width[, depth]).

        Returns:
            Tensor of the shape of ``x``.

        Raises:
            ValueError: when ``x`` has another number of dimensions or channels.
        """
        check_image(x, self.spatial_dims, self.channels)
        tokens = self.projection(self.pool(x).flatten(2).transpose(1, 2)) + self.position_embedding
        gate = torch.sigmoid(self.layers(tokens).mean(dim=-1)).unflatten(1, self.grid).unsqueeze(1)
        return x * F.interpolate(gate, size=x.shape[2:], mode=self.interpolation, align_corners=False)
