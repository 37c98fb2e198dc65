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

from ssmctb_monai.networks.blocks import SpatialTransformer

DIMS = [2, 3]


def plain_gates(sample: np.ndarray, attention: SpatialTransformer, grid_size: int) -> np.ndarray:
    """One token a cell: its mean over the cell, all channels together. ``sample``: (channels, ...)."""
    cells = np.stack([plain_pool(channel, grid_size) for channel in sample], axis=1)
    weight, bias = attention.projection.weight.detach().numpy(), attention.projection.bias.detach().numpy()
    tokens = cells @ weight.T + bias + attention.position_embedding.detach().numpy()
    for layer in attention.layers:
        tokens = plain_layer(tokens, layer)
    return (1 / (1 + np.exp(-tokens.mean(axis=-1)))).reshape([grid_size] * (sample.ndim - 1))


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("grid_size", [1, 2, 4, 9])
def test_shape(spatial_dims, grid_size):
    x = random_input(spatial_dims, 3)
    output = SpatialTransformer(spatial_dims, 3, grid_size, token_dim=8)(x)
    assert output.shape == x.shape
    assert output.isfinite().all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("spatial_dims", 1),
        ("spatial_dims", 4),
        ("channels", 0),
        ("grid_size", 0),
        ("token_dim", 0),
        ("num_heads", 0),
        ("num_layers", 0),
    ],
)
def test_ill_argument(name, value):
    with pytest.raises(ValueError, match=rf"{name} .*{value}"):
        SpatialTransformer(**{"spatial_dims": 2, "channels": 4, name: value})


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_equals_the_plain_one_where_no_interpolation_is_needed(spatial_dims):
    """A grid as fine as the input."""
    torch.manual_seed(0)
    attention = randomised(SpatialTransformer(spatial_dims, 2, grid_size=3, token_dim=6, num_heads=3))
    x = torch.randn(2, 2, *[3] * spatial_dims, dtype=torch.float64)
    expected = np.stack([sample * plain_gates(sample, attention, 3) for sample in x.numpy()])
    np.testing.assert_allclose(attention(x).detach().numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_gates_are_interpolated_linearly(spatial_dims):
    """A grid of 2 on 8 voxels: cell centres at 1.5 and 5.5, so voxel 2 is 1/8 and voxel 5 is 7/8 of the way."""
    torch.manual_seed(0)
    attention = randomised(SpatialTransformer(spatial_dims, 2, grid_size=2, token_dim=6, num_heads=1))
    x = torch.randn(1, 2, *[8] * spatial_dims, dtype=torch.float64)
    output = (attention(x) / x).detach().numpy()[0]
    gates = plain_gates(x[0].numpy(), attention, 2)
    way = np.array([0, 0, 1, 3, 5, 7, 8, 8]) / 8
    for axis in range(spatial_dims):
        low, high = np.take(gates, [0], axis), np.take(gates, [1], axis)
        shape = [-1 if i == axis else 1 for i in range(spatial_dims)]
        gates = low * (1 - way.reshape(shape)) + high * way.reshape(shape)
    np.testing.assert_allclose(output, np.stack([gates, gates]), atol=1e-9)


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_one_gate_a_position(spatial_dims):
    torch.manual_seed(0)
    x = random_input(spatial_dims, 4, dtype=torch.float64)
    attention = SpatialTransformer(spatial_dims, 4, grid_size=3, token_dim=8).double()
    gates = attention(x) / x
    torch.testing.assert_close(gates, gates[:, :1].expand_as(gates))
    assert ((gates > 0) & (gates < 1)).all()
    assert gates.std() > 1e-3


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_gradcheck(spatial_dims):
    torch.manual_seed(0)
    attention = SpatialTransformer(spatial_dims, 2, grid_size=2, token_dim=3, num_heads=2, num_layers=1)
    assert gradcheck_with_parameters(attention, torch.randn(1, 2, *[3] * spatial_dims))


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_every_parameter_matters(spatial_dims):
    torch.manual_seed(0)
    attention = SpatialTransformer(spatial_dims, 3, grid_size=3, token_dim=8)
    assert_every_parameter_matters(attention, random_input(spatial_dims, 3))


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_script_save(spatial_dims):
    torch.manual_seed(0)
    assert_script_save(SpatialTransformer(spatial_dims, 3, 3, token_dim=8), random_input(spatial_dims, 3))


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_bfloat16_autocast(spatial_dims):
    torch.manual_seed(0)
    x = random_input(spatial_dims, 3)
    attention = SpatialTransformer(spatial_dims, 3, 3, token_dim=16)
    with torch.autocast("cpu", torch.bfloat16):
        output = attention(x)
    torch.testing.assert_close(output.float(), attention(x), atol=0.03, rtol=0.03)


@pytest.mark.parametrize("shape", [(2, 1, 5, 5), (2, 4, 5, 5, 5)])
def test_other_channels_and_dimensions_are_refused(shape):
    """One channel would broadcast."""
    with pytest.raises(ValueError, match=r"Expected \(batch, 4, .*2 spatial dimensions, got shape \[2, "):
        SpatialTransformer(2, 4)(torch.rand(shape))
