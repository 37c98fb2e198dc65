"""Attention over slices at each position, against PyTorch's attention over a sequence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssmctb_monai.networks.blocks import SliceAttention

CHANNELS, HEADS, SLICES = 8, 2, 5


@pytest.mark.parametrize(("spatial_dims", "size"), [(2, (4, 3)), (3, (2, 3, 2))])
def test_pointwise_it_is_attention_over_a_sequence(spatial_dims, size):
    torch.manual_seed(0)
    layer = SliceAttention(spatial_dims, CHANNELS, HEADS)
    convolution = layer.to_qkv[1]
    weight = convolution.weight.detach()
    weight.sub_(weight)
    centre = weight[(..., *[1] * spatial_dims)]
    centre.copy_(torch.randn(3 * CHANNELS, CHANNELS))
    expected = nn.MultiheadAttention(CHANNELS, HEADS, batch_first=True)
    with torch.no_grad():
        nn.init.zeros_(layer.feed_forward[-1].weight)
        nn.init.zeros_(layer.feed_forward[-1].bias)
        expected.in_proj_weight.copy_(centre)
        nn.init.zeros_(expected.in_proj_bias)
        expected.out_proj.weight.copy_(layer.from_heads.weight.flatten(1))
        expected.out_proj.bias.copy_(layer.from_heads.bias)
    x = torch.randn(2, SLICES, CHANNELS, *size)
    normed = layer.to_qkv[0](x.flatten(0, 1)).view(x.shape)
    tokens = normed.flatten(3).permute(0, 3, 1, 2).flatten(0, 1)  # (batch · position, slices, channels)
    attended = expected(tokens, tokens, tokens, need_weights=False)[0]
    attended = attended.unflatten(0, [2, -1]).permute(0, 2, 3, 1).view(x.shape)
    torch.testing.assert_close(layer(x), x + attended)


def test_slices_have_no_order():
    torch.manual_seed(0)
    layer = SliceAttention(2, CHANNELS, HEADS)
    x, order = torch.randn(1, SLICES, CHANNELS, 6, 5), [3, 0, 4, 1, 2]
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])
    other = x.clone()
    other[:, 1] = 0
    assert not torch.allclose(layer(other)[:, 0], layer(x)[:, 0])


def test_ill_arguments():
    for arguments, message in (
        ((4, 8, 2), "spatial_dims must be 2 or 3"),
        ((2, 8, 0), "num_heads must be at least 1"),
        ((2, 8, 3), "channels must be a multiple of num_heads 3, got 8"),
    ):
        with pytest.raises(ValueError, match=message):
            SliceAttention(*arguments)
