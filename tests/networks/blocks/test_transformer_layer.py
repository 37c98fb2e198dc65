from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from block_checks import (
    assert_every_parameter_matters,
    gradcheck_with_parameters,
    plain_attention,
    plain_layer,
    randomised,
)

from ssmctb_monai.networks.blocks import SummedHeadAttention, TransformerLayer


@pytest.mark.parametrize("num_heads", [1, 3, 4, 5, 6])
@pytest.mark.parametrize("token_dim", [4, 7, 16])
def test_shape(token_dim, num_heads):
    tokens = torch.randn(2, 5, token_dim)
    assert SummedHeadAttention(token_dim, num_heads)(tokens).shape == tokens.shape
    assert TransformerLayer(token_dim, num_heads)(tokens).shape == tokens.shape


@pytest.mark.parametrize("cls", [SummedHeadAttention, TransformerLayer])
@pytest.mark.parametrize(("name", "value"), [("token_dim", 0), ("num_heads", 0), ("num_heads", -1)])
def test_ill_argument(cls, name, value):
    with pytest.raises(ValueError, match=rf"{name} .*{value}"):
        cls(**{"token_dim": 4, "num_heads": 2, name: value})


@pytest.mark.parametrize("num_heads", [1, 3])
def test_attention_equals_the_plain_one(num_heads):
    torch.manual_seed(0)
    attention = SummedHeadAttention(6, num_heads).double()
    tokens = torch.randn(2, 5, 6, dtype=torch.float64) * 3
    expected = [
        plain_attention(sample, attention.to_qkv.weight.detach().numpy(), num_heads) for sample in tokens.numpy()
    ]
    np.testing.assert_allclose(attention(tokens).detach().numpy(), np.stack(expected), atol=1e-12)


def test_heads_are_summed():
    """All heads alike: twice the heads, twice the output (concatenated heads would have another width)."""
    torch.manual_seed(0)
    one, three = SummedHeadAttention(4, 1), SummedHeadAttention(4, 3)
    with torch.no_grad():
        three.to_qkv.weight.copy_(one.to_qkv.weight.view(3, 1, 4, 4).expand(3, 3, 4, 4).reshape(36, 4))
    tokens = torch.randn(2, 5, 4)
    torch.testing.assert_close(three(tokens), 3 * one(tokens))


def test_scaled_by_the_root_of_the_token_dim():
    """By hand, d = 4: identity maps and the tokens 2e1, 0 give scores 4/√4 = 2 and 0."""
    attention = SummedHeadAttention(4, 1)
    with torch.no_grad():
        attention.to_qkv.weight.copy_(torch.eye(4).repeat(3, 1))
    tokens = torch.zeros(1, 2, 4)
    tokens[0, 0, 0] = 2.0
    share = math.exp(2) / (math.exp(2) + 1)
    expected = torch.tensor([[[2 * share, 0, 0, 0], [1.0, 0, 0, 0]]])
    torch.testing.assert_close(attention(tokens), expected)


def test_tokens_are_not_ordered():
    """Without a position embedding, a permutation of tokens permutes the output."""
    torch.manual_seed(0)
    layer = randomised(TransformerLayer(6, 2))
    tokens = torch.randn(1, 5, 6, dtype=torch.float64)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(layer(tokens[:, order]), layer(tokens)[:, order])


@pytest.mark.parametrize("num_heads", [1, 3])
def test_layer_equals_the_plain_one(num_heads):
    torch.manual_seed(1)
    layer = randomised(TransformerLayer(6, num_heads))
    tokens = torch.randn(2, 5, 6, dtype=torch.float64)
    expected = np.stack([plain_layer(sample, layer) for sample in tokens.numpy()])
    np.testing.assert_allclose(layer(tokens).detach().numpy(), expected, atol=1e-9, rtol=1e-9)


def test_hidden_layer_is_four_tokens_wide():
    assert TransformerLayer(6, 2).mlp.linear1.weight.shape == (24, 6)


def test_residuals():
    """With value maps and the last linear layer at zero, nothing but the residual path is left."""
    layer = TransformerLayer(6, 2)
    with torch.no_grad():
        layer.attention.to_qkv.weight[-12:] = 0
        layer.mlp.linear2.weight.zero_()
        layer.mlp.linear2.bias.zero_()
    tokens = torch.randn(2, 5, 6)
    torch.testing.assert_close(layer(tokens), tokens)


def test_pre_norm():
    """The branches do not see the scale or the shift of the tokens; the residual does."""
    torch.manual_seed(0)
    layer = randomised(TransformerLayer(64, 1))
    with torch.no_grad():
        layer.mlp.linear2.weight.zero_()
        layer.mlp.linear2.bias.zero_()
    tokens = torch.randn(1, 5, 64, dtype=torch.float64)
    branch, branch_of_scaled = layer(tokens) - tokens, layer(10 * tokens + 3) - (10 * tokens + 3)
    assert branch.abs().max() > 0.1
    torch.testing.assert_close(branch, branch_of_scaled, rtol=1e-3, atol=1e-3)


def test_gradcheck():
    torch.manual_seed(0)
    assert gradcheck_with_parameters(SummedHeadAttention(3, 2), torch.randn(2, 4, 3))
    assert gradcheck_with_parameters(TransformerLayer(3, 2), torch.randn(1, 3, 3))


def test_every_parameter_matters():
    torch.manual_seed(0)
    assert_every_parameter_matters(TransformerLayer(8, 3), torch.randn(2, 5, 8))


def test_bfloat16_autocast():
    torch.manual_seed(0)
    layer = TransformerLayer(16, 4)
    tokens = torch.randn(2, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(tokens)
    torch.testing.assert_close(output.float(), layer(tokens), atol=0.1, rtol=0.05)
