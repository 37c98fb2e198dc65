"""Pre-norm transformer layer whose attention heads are summed."""

from __future__ import annotations

import torch.nn.functional as F
from monai.networks.blocks import MLPBlock
from torch import Tensor, nn

from ssmctb_monai.checks import check_whole


class SummedHeadAttention(nn.Module):
    """Multi-head self-attention whose heads are summed instead of concatenated.

    Madan et al., *Self-Supervised Masked Convolutional Transformer Block for Anomaly Detection*, TPAMI 46(1), 2024,
    https://arxiv.org/abs/2209.12148. Each head maps the tokens to its own queries, keys and values of ``token_dim``
    entries each; the sum of softmax(QKᵀ/√d)V over the heads is the output.

    Args:
        token_dim: length d of a token.
        num_heads: number of heads.

    Raises:
        ValueError: when a size is not positive.
    """

    def __init__(self, token_dim: int, num_heads: int) -> None:
        super().__init__()
        check_whole(1, token_dim=token_dim, num_heads=num_heads)
        self.token_dim = token_dim
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(token_dim, 3 * num_heads * token_dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attends over the tokens.

        Args:
            tokens: shape (batch, number of tokens, token_dim).

        Returns:
            Tensor of the same shape.
        """
        qkv = self.to_qkv(tokens).unflatten(-1, (3, self.num_heads, self.token_dim)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).sum(dim=1)


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer: P = MHA(norm(T)) + T, then MLP(norm(P)) + P.

    The paper (see `SummedHeadAttention`) leaves the kind of norm and the MLP's width open: layer norm and, as in ViT, a
    hidden layer of 4 · ``token_dim`` with GELU are used.

    Args:
        token_dim: length of a token.
        num_heads: number of summed attention heads.

    Raises:
        ValueError: when a size is not positive.
    """

    def __init__(self, token_dim: int, num_heads: int) -> None:
        super().__init__()
        check_whole(1, token_dim=token_dim, num_heads=num_heads)
        self.norm1 = nn.LayerNorm(token_dim)
        self.attention = SummedHeadAttention(token_dim, num_heads)
        self.norm2 = nn.LayerNorm(token_dim)
        self.mlp = MLPBlock(hidden_size=token_dim, mlp_dim=4 * token_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transforms the tokens.

        Args:
            tokens: shape (batch, number of tokens, token_dim).

        Returns:
            Tensor of the same shape.
        """
        tokens = self.attention(self.norm1(tokens)) + tokens
        return self.mlp(self.norm2(tokens)) + tokens
