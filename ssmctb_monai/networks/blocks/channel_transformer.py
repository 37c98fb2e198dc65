"""Channel attention by a transformer over channels."""

from __future__ import annotations

import torch
from monai.networks.layers.factories import Pool
from torch import Tensor, nn

from ssmctb_monai.checks import check_image, check_spatial_dims, check_whole
from ssmctb_monai.networks.blocks.transformer_layer import TransformerLayer


class ChannelTransformer(nn.Module):
    """Weights every channel by a gate that a transformer over the channels computes.

    Madan et al., *Self-Supervised Masked Convolutional Transformer Block for Anomaly Detection*, TPAMI 46(1), 2024,
    https://arxiv.org/abs/2209.12148. Each channel is average-pooled to ``pool_size`` values per axis, mapped to a token
    and given a learned position; after ``num_layers`` pre-norm transformer layers the mean over the token dimension
    goes through a sigmoid and scales the channel.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        channels: number of channels, that is of tokens.
        pool_size: number of pooled values per axis; 1 is the global mean.
        token_dim: length d_t of a token.
        num_heads: number H of attention heads, summed.
        num_layers: number L of transformer layers.

    Raises:
        ValueError: when a size is not positive.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        pool_size: int = 1,
        token_dim: int = 64,
        num_heads: int = 4,
        num_layers: int = 2,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_whole(1, channels=channels, pool_size=pool_size, num_layers=num_layers)
        self.spatial_dims = spatial_dims
        self.channels = channels
        self.pool = Pool[Pool.ADAPTIVEAVG, spatial_dims](pool_size)
        self.projection = nn.Linear(pool_size**spatial_dims, token_dim)
        self.position_embedding = nn.Parameter(torch.empty(channels, token_dim))
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        self.layers = nn.Sequential(*(TransformerLayer(token_dim, num_heads) for _ in range(num_layers)))

    def forward(self, x: Tensor) -> Tensor:
        """Scales the channels of ``x``.

        Args:
            x: shape (batch, channels, height, width[, depth]).

        Returns:
            Tensor of the shape of ``x``.

        Raises:
            ValueError: when ``x`` has another number of dimensions or channels.
        """
        check_image(x, self.spatial_dims, self.channels)
        tokens = self.projection(self.pool(x).flatten(2)) + self.position_embedding
        gate = torch.sigmoid(self.layers(tokens).mean(dim=-1))
        return x * gate.view(list(gate.shape) + [1] * (x.dim() - 2))
