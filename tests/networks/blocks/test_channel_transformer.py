from __future__ import annotations

import numpy as np
import pytest
import torch
from block_checks import (
    assert_every_parameter_matters,
    assert_script_save,
    gradcheck_with_parameters,
    plain_layer,
    plain_pool,
    random_input,
    randomised,
)

from ssmctb_monai.networks.blocks import ChannelTransformer

DIMS = [2, 3]


def plain_channel_attention(x: np.ndarray, attention: ChannelTransformer, pool_size: int) -> np.ndarray:
    weight, bias, position = (
        parameter.detach().numpy()
        for parameter in (attention.projection.weight, attention.projection.bias, attention.position_embedding)
    )
    output = np.empty_like(x)
    for n, sample in enumerate(x):
        tokens = np.stack(
            [weight @ plain_pool(channel, pool_size) + bias + position[c] for c, channel in enumerate(sample)]
        )
        for layer in attention.layers:
            tokens = plain_layer(tokens, layer)
        for c, channel in enumerate(sample):
            output[n, c] = channel / (1 + np.exp(-tokens[c].mean()))
    return output


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("pool_size", [1, 2, 4])
def test_shape(spatial_dims, pool_size):
    x = random_input(spatial_dims, 3)
    assert ChannelTransformer(spatial_dims, 3, pool_size, token_dim=8)(x).shape == x.shape


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_pool_size_above_the_input(spatial_dims):
    x = torch.randn(1, 2, *[3] * spatial_dims)
    assert ChannelTransformer(spatial_dims, 2, pool_size=4, token_dim=8)(x).isfinite().all()


def test_defaults_are_the_paper_s():
    attention = ChannelTransformer(3, 5)
    assert attention.projection.weight.shape == (64, 1)
    assert attention.position_embedding.shape == (5, 64)
    assert len(attention.layers) == 2
    assert [layer.attention.num_heads for layer in attention.layers] == [4, 4]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("spatial_dims", 1),
        ("spatial_dims", 4),
        ("channels", 0),
        ("pool_size", 0),
        ("token_dim", 0),
        ("num_heads", 0),
        ("num_layers", 0),
        ("num_layers", -1),
    ],
)
def test_ill_argument(name, value):
    with pytest.raises(ValueError, match=rf"{name} .*{value}"):
        ChannelTransformer(**{"spatial_dims": 2, "channels": 4, name: value})


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize(("pool_size", "num_heads", "num_layers"), [(1, 4, 2), (2, 3, 1), (3, 1, 3), (4, 2, 2)])
def test_equals_the_plain_one(spatial_dims, pool_size, num_heads, num_layers):
    torch.manual_seed(0)
    attention = randomised(ChannelTransformer(spatial_dims, 4, pool_size, 6, num_heads, num_layers))
    x = random_input(spatial_dims, 4, dtype=torch.float64)
    expected = plain_channel_attention(x.numpy(), attention, pool_size)
    np.testing.assert_allclose(attention(x).detach().numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_one_gate_a_channel_between_0_and_1(spatial_dims):
    torch.manual_seed(0)
    x = random_input(spatial_dims, 4, dtype=torch.float64)
    gates = (randomised(ChannelTransformer(spatial_dims, 4, token_dim=8))(x) / x).flatten(2)
    torch.testing.assert_close(gates, gates[..., :1].expand_as(gates))
    assert ((gates > 0) & (gates < 1)).all()
    assert gates[0, :, 0].unique().numel() == 4
    assert not torch.allclose(gates[0], gates[1])


def test_pool_size_1_sees_the_mean_only():
    """A larger pool sees where in the channel the values are."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    turned = x.flip(2)
    for pool_size, equal in ((1, True), (2, False)):
        attention = randomised(ChannelTransformer(2, 3, pool_size, token_dim=8))
        assert torch.allclose(attention(turned).flip(2), attention(x)) == equal


def test_channels_have_positions():
    """Two channels alike get gates of their own."""
    torch.manual_seed(0)
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64).repeat(1, 2, 1, 1)
    output = randomised(ChannelTransformer(2, 2, token_dim=8))(x)
    assert not torch.allclose(output[:, 0], output[:, 1])


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_gradcheck(spatial_dims):
    torch.manual_seed(0)
    attention = ChannelTransformer(spatial_dims, 2, pool_size=2, token_dim=3, num_heads=2, num_layers=1)
    assert gradcheck_with_parameters(attention, torch.randn(1, 2, *[3] * spatial_dims))


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_every_parameter_matters(spatial_dims):
    torch.manual_seed(0)
    attention = ChannelTransformer(spatial_dims, 3, pool_size=2, token_dim=8)
    assert_every_parameter_matters(attention, random_input(spatial_dims, 3))


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_script_save(spatial_dims):
    torch.manual_seed(0)
    assert_script_save(ChannelTransformer(spatial_dims, 3, 2, token_dim=8), random_input(spatial_dims, 3))


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_bfloat16_autocast(spatial_dims):
    torch.manual_seed(0)
    x = random_input(spatial_dims, 3)
    attention = ChannelTransformer(spatial_dims, 3, 2, token_dim=16)
    with torch.autocast("cpu", torch.bfloat16):
        output = attention(x)
    torch.testing.assert_close(output.float(), attention(x), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("shape", [(2, 1, 5, 5), (2, 4, 5, 5, 5)])
def test_other_channels_and_dimensions_are_refused(shape):
    """One channel would broadcast."""
    with pytest.raises(ValueError, match=r"Expected \(batch, 4, .*2 spatial dimensions, got shape \[2, "):
        ChannelTransformer(2, 4)(torch.rand(shape))
