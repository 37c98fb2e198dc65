from __future__ import annotations

import numpy as np
import pytest
import torch
from block_checks import (
    assert_compiles,
    assert_every_parameter_matters,
    assert_exports,
    assert_script_save,
    corners,
    gradcheck_with_parameters,
    random_input,
    sum_of_shifts,
)

from ssmctb_monai.networks.blocks import SSPCAB, MaskedConvolution

DIMS = [2, 3]


def plain_squeeze_and_excitation(x, state):
    """Global mean → c/r, ReLU → c, sigmoid → scale."""
    output = np.empty_like(x)
    for n, sample in enumerate(x):
        means = np.array([channel.mean() for channel in sample])
        hidden = np.maximum(state["fc.0.weight"] @ means + state["fc.0.bias"], 0)
        gates = 1 / (1 + np.exp(-(state["fc.2.weight"] @ hidden + state["fc.2.bias"])))
        for c, channel in enumerate(sample):
            output[n, c] = gates[c] * channel
    return output


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_arguments_reach_the_convolution(spatial_dims):
    block = SSPCAB(spatial_dims, 8, sub_kernel_size=2, dilation=3, mask_size=5)
    assert block.convolution.receptive_field == 2 * 2 + 2 * 3 + 5
    x = random_input(spatial_dims, 8, batch=1)
    output = block(x)
    assert output.shape == x.shape
    assert (output >= 0).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("spatial_dims", 1),
        ("channels", 0),
        ("sub_kernel_size", 0),
        ("dilation", -1),
        ("mask_size", 4),
        ("reduction_ratio", 0),
        ("reduction_ratio", 17),
    ],
)
def test_ill_argument(name, value):
    with pytest.raises(ValueError, match=rf"{name} .*{value}"):
        SSPCAB(**{"spatial_dims": 2, "channels": 16, name: value})


@pytest.mark.parametrize(("channels", "reduction_ratio", "hidden"), [(8, 8, 1), (32, 8, 4), (20, 8, 2), (12, 2, 6)])
def test_reduction_ratio(channels, reduction_ratio, hidden):
    """Both layers have a bias."""
    shapes = {
        name: tuple(value.shape)
        for name, value in SSPCAB(2, channels, reduction_ratio=reduction_ratio).attention.state_dict().items()
    }
    assert sorted(shapes.values()) == sorted([(hidden, channels), (hidden,), (channels, hidden), (channels,)])


def test_default_reduction_ratio_is_8():
    assert SSPCAB(2, 64).attention.fc[0].out_features == 8


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_squeeze_and_excitation_equals_the_plain_one(spatial_dims):
    torch.manual_seed(0)
    attention = SSPCAB(spatial_dims, 8, reduction_ratio=2).attention.double()
    x = random_input(spatial_dims, 8, dtype=torch.float64)
    state = {name: value.numpy() for name, value in attention.state_dict().items()}
    expected = plain_squeeze_and_excitation(x.numpy(), state)
    np.testing.assert_allclose(attention(x).detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("geometry", [(1, 1, 1), (2, 0, 3)])
def test_equals_a_plain_one(spatial_dims, geometry):
    """Shifted convolutions, ReLU, squeeze-and-excitation, mean squared error."""
    torch.manual_seed(0)
    x = random_input(spatial_dims, 8, dtype=torch.float64)
    block = SSPCAB(spatial_dims, 8, *geometry, reduction_ratio=4).double()
    size = geometry[0]
    sub_kernels = {
        corner: block.convolution.weight[(..., *(slice(side * size, (side + 1) * size) for side in corner))]
        for corner in corners(spatial_dims)
    }
    predicted = sum_of_shifts(x, sub_kernels, [block.convolution.bias], *geometry[1:]).relu()
    state = {name: value.numpy() for name, value in block.attention.state_dict().items()}
    expected = torch.tensor(plain_squeeze_and_excitation(predicted.detach().numpy(), state))
    torch.testing.assert_close(block(x), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(block.reconstruction_loss, (expected - x).square().mean())


def test_convolution_is_masked():
    assert isinstance(SSPCAB(3, 8).convolution, MaskedConvolution)


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_gradcheck(spatial_dims):
    torch.manual_seed(0)
    x = torch.rand(1, 2, *[3] * spatial_dims)
    block = SSPCAB(spatial_dims, 2, dilation=0, reduction_ratio=1)
    with torch.no_grad():
        block.convolution.bias.fill_(0.5)
        block.attention.fc[0].bias.fill_(2.0)
    assert gradcheck_with_parameters(block, x)


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_every_parameter_matters(spatial_dims):
    torch.manual_seed(0)
    assert_every_parameter_matters(SSPCAB(spatial_dims, 8, reduction_ratio=2), random_input(spatial_dims, 8))


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("sub_kernel_size", [1, 2])
@pytest.mark.parametrize("after_training", [True, False])
def test_script_save(spatial_dims, sub_kernel_size, after_training):
    torch.manual_seed(0)
    x = random_input(spatial_dims, 8)
    block = SSPCAB(spatial_dims, 8, sub_kernel_size)
    if after_training:
        block(x)
    assert_script_save(block, x)


@pytest.mark.process
@pytest.mark.parametrize("spatial_dims", DIMS)
def test_export(spatial_dims):
    torch.manual_seed(0)
    other = torch.randn(3, 8, *(10, 8, 9)[:spatial_dims])
    assert_exports(SSPCAB(spatial_dims, 8), random_input(spatial_dims, 8), other)


@pytest.mark.process
def test_compile():
    torch.manual_seed(0)
    assert_compiles(SSPCAB(2, 8), random_input(2, 8))
