from __future__ import annotations

import itertools
import re

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
    tap_offsets,
)

from ssmctb_monai.networks.blocks import MaskedConvolution

DIMS = [2, 3]
# sub_kernel_size, dilation, mask_size; the paper's ablation is k' 1-3, d 0-3, |M| 1, 3, 5
GEOMETRIES = [
    (1, 1, 1),
    (1, 0, 1),
    (1, 3, 1),
    (1, 0, 5),
    (1, 2, 3),
    (2, 0, 1),
    (2, 1, 1),
    (2, 1, 3),
    (3, 0, 1),
    (3, 1, 5),
]


def sub_kernels_of(convolution: MaskedConvolution) -> dict[tuple[int, ...], torch.Tensor]:
    size = convolution.weight.shape[-1] // 2
    return {
        corner: convolution.weight[(..., *(slice(side * size, (side + 1) * size) for side in corner))]
        for corner in corners(convolution.weight.dim() - 2)
    }


def by_plain_indexing(x, weight, bias, offsets):
    """The definition, voxel by voxel and tap by tap; outside the image is zero."""
    size = x.shape[2:]
    output = np.zeros_like(x)
    for n, i, *position in np.ndindex(*output.shape):
        total = bias[i]
        for tap in np.ndindex(*weight.shape[2:]):
            source = [p + offsets[t] for p, t in zip(position, tap, strict=True)]
            if all(0 <= s < length for s, length in zip(source, size, strict=True)):
                for j in range(x.shape[1]):
                    total += weight[(i, j, *tap)] * x[(n, j, *source)]
        output[(n, i, *position)] = total
    return output


# ---------------------------------------------------------------------------------------------------------------------
# Smoke


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_dtype_are_kept(spatial_dims, channels, bias):
    for geometry, dtype in itertools.product(GEOMETRIES, (torch.float32, torch.float64)):
        x = random_input(spatial_dims, channels, dtype=dtype)
        output = MaskedConvolution(spatial_dims, channels, *geometry, bias=bias).to(dtype)(x)
        assert output.shape == x.shape
        assert output.dtype == dtype
        assert output.isfinite().all()


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("size", [1, 2])
def test_input_smaller_than_the_kernel(spatial_dims, size):
    """Every tap falls into the padding, so that only the bias is left."""
    x = torch.randn(1, 2, *[size] * spatial_dims)
    for geometry in GEOMETRIES:
        convolution = MaskedConvolution(spatial_dims, 2, *geometry)
        if min(offset for offset in tap_offsets(*geometry) if offset > 0) >= size:
            expected = convolution.bias.view(1, 2, *[1] * spatial_dims).expand_as(x)
            torch.testing.assert_close(convolution(x), expected)


def test_defaults_are_those_of_every_experiment():
    convolution = MaskedConvolution(2, 3)
    assert convolution.receptive_field == 5
    assert convolution.weight.shape == (3, 3, 2, 2)
    assert convolution.bias.shape == (3,)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_receptive_field(geometry):
    sub_kernel_size, dilation, mask_size = geometry
    field = MaskedConvolution(2, 1, *geometry).receptive_field
    assert field == 2 * sub_kernel_size + 2 * dilation + mask_size


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_bias_false_has_no_bias(spatial_dims):
    convolution = MaskedConvolution(spatial_dims, 2, bias=False)
    assert [name for name, _ in convolution.named_parameters()] == ["weight"]
    assert not convolution(torch.zeros(1, 2, *[5] * spatial_dims)).any()


def test_initialised_as_a_convolution_of_its_taps():
    torch.manual_seed(0)
    masked = MaskedConvolution(2, 4)
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(4, 4, kernel_size=2)
    assert torch.equal(masked.weight, convolution.weight)
    assert torch.equal(masked.bias, convolution.bias)


def test_not_contiguous_input():
    torch.manual_seed(0)
    x = random_input(3, 2).transpose(2, 4)
    for geometry in ((1, 1, 1), (2, 1, 1)):
        convolution = MaskedConvolution(3, 2, *geometry)
        torch.testing.assert_close(convolution(x), convolution(x.contiguous()))


# ---------------------------------------------------------------------------------------------------------------------
# Ill arguments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("spatial_dims", 0),
        ("spatial_dims", 1),
        ("spatial_dims", 4),
        ("channels", 0),
        ("channels", -1),
        ("sub_kernel_size", 0),
        ("sub_kernel_size", -2),
        ("dilation", -1),
        ("mask_size", 0),
        ("mask_size", 2),
        ("mask_size", -1),
        ("channels", 2.0),
        ("sub_kernel_size", 1.5),
        ("dilation", 0.5),
        ("dilation", True),
        ("mask_size", "3"),
    ],
)
def test_ill_argument(name, value):
    with pytest.raises(ValueError, match=rf"{name} .*{value}"):
        MaskedConvolution(**{"spatial_dims": 2, "channels": 4, name: value})


@pytest.mark.parametrize(
    ("spatial_dims", "shape"), [(2, (1, 2, 5, 5, 5)), (3, (1, 2, 5, 5)), (2, (2, 5, 5)), (2, (1, 3, 5, 5))]
)
@pytest.mark.parametrize("sub_kernel_size", [1, 2])
def test_ill_input(spatial_dims, shape, sub_kernel_size):
    expected = rf"Expected \(batch, 2, .*{spatial_dims} spatial dimensions, got shape {re.escape(str(list(shape)))}"
    with pytest.raises(ValueError, match=expected):
        MaskedConvolution(spatial_dims, 2, sub_kernel_size)(torch.zeros(shape))


# ---------------------------------------------------------------------------------------------------------------------
# Hand-computed values


def test_value_by_hand_2d():
    """A 7×7 image of 0..48: from row 3, column 3 the taps lie at rows and columns 1 and 5."""
    convolution = MaskedConvolution(2, 1)
    x = torch.arange(49.0).view(1, 1, 7, 7)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([[1.0, 10.0], [100.0, 1000.0]]))
        convolution.bias.fill_(0.5)
    output = convolution(x)[0, 0]
    assert output[3, 3] == 1 * 8 + 10 * 12 + 100 * 36 + 1000 * 40 + 0.5
    assert output[0, 0] == 1000 * 16 + 0.5  # only (2, 2) is inside
    assert output[0, 6] == 100 * 18 + 0.5  # (2, 4)
    assert output[6, 0] == 10 * 30 + 0.5  # (4, 2)


def test_value_by_hand_2d_sub_kernel_2_mask_3():
    """k' = 2, d = 0, |M| = 3: the kernel is 7 wide, taps at ±2 and ±3."""
    convolution = MaskedConvolution(2, 1, sub_kernel_size=2, dilation=0, mask_size=3, bias=False)
    x = torch.arange(49.0).view(1, 1, 7, 7)
    with torch.no_grad():
        convolution.weight.copy_(torch.arange(1.0, 17.0).view(1, 1, 4, 4))
    rows = [0, 1, 5, 6]  # from row 3: -3, -2, +2, +3
    expected = sum((1 + 4 * i + j) * (7 * row + column) for i, row in enumerate(rows) for j, column in enumerate(rows))
    assert convolution(x)[0, 0, 3, 3] == expected


def test_value_by_hand_3d():
    """From the centre of 5×5×5 the taps are the 8 corners of the volume."""
    convolution = MaskedConvolution(3, 1, bias=False)
    x = torch.arange(125.0).view(1, 1, 5, 5, 5)
    with torch.no_grad():
        convolution.weight.copy_(torch.arange(1.0, 9.0).view(1, 1, 2, 2, 2))
    expected = 1 * 0 + 2 * 4 + 3 * 20 + 4 * 24 + 5 * 100 + 6 * 104 + 7 * 120 + 8 * 124
    assert convolution(x)[0, 0, 2, 2, 2] == expected
    assert convolution(x)[0, 0, 0, 0, 0] == 8 * (2 * 25 + 2 * 5 + 2)


def test_value_by_hand_3d_sub_kernel_2_mask_3():
    """k' = 2, d = 0, |M| = 3: taps at ±2 and ±3 along each axis."""
    convolution = MaskedConvolution(3, 1, sub_kernel_size=2, dilation=0, mask_size=3, bias=False)
    x = torch.arange(343.0).view(1, 1, 7, 7, 7)
    with torch.no_grad():
        convolution.weight.copy_(torch.arange(1.0, 65.0).view(1, 1, 4, 4, 4))
    at = [0, 1, 5, 6]
    expected = sum(
        (1 + 16 * i + 4 * j + k) * (49 * at[i] + 7 * at[j] + at[k]) for i, j, k in itertools.product(range(4), repeat=3)
    )
    assert convolution(x)[0, 0, 3, 3, 3] == expected


@pytest.mark.parametrize(
    ("spatial_dims", "geometry"), [(2, geometry) for geometry in GEOMETRIES] + [(3, (1, 1, 1)), (3, (2, 0, 3))]
)
def test_every_value_by_plain_indexing(spatial_dims, geometry):
    """All positions, borders included, and two channels each way."""
    torch.manual_seed(1)
    x = torch.randn(1, 2, *((8, 9) if spatial_dims == 2 else (4, 5, 6)), dtype=torch.float64)
    convolution = MaskedConvolution(spatial_dims, 2, *geometry).double()
    expected = by_plain_indexing(
        x.numpy(), convolution.weight.detach().numpy(), convolution.bias.detach().numpy(), tap_offsets(*geometry)
    )
    np.testing.assert_allclose(convolution(x).detach().numpy(), expected, atol=1e-12)


def test_filter_i_predicts_channel_i():
    """Weight (i, j) takes channel j to output channel i."""
    convolution = MaskedConvolution(2, 3, bias=False)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[2, 0] = 1.0
    x = torch.zeros(1, 3, 5, 5)
    x[0, 0] = 1.0
    assert convolution(x)[0, :, 2, 2].tolist() == [0.0, 0.0, 4.0]


# ---------------------------------------------------------------------------------------------------------------------
# What a position sees


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("place", ["centre", "edge"])
def test_gradient_is_non_zero_at_the_corner_taps_only(spatial_dims, geometry, place):
    offsets = tap_offsets(*geometry)
    size = 2 * offsets[-1] + 3
    position = size // 2 if place == "centre" else 1
    x = torch.randn(1, 2, *[size] * spatial_dims, requires_grad=True)
    convolution = MaskedConvolution(spatial_dims, 2, *geometry)
    with torch.no_grad():
        convolution.weight.fill_(1.0)
    convolution(x)[(0, 1, *[position] * spatial_dims)].backward()
    seen = {tuple(index) for index in x.grad[0].nonzero().tolist()}
    taps = [position + offset for offset in offsets if 0 <= position + offset < size]
    assert seen == {(channel, *tap) for channel in (0, 1) for tap in itertools.product(taps, repeat=spatial_dims)}
    assert (x.grad[x.grad != 0] == 1).all()


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("geometry", [(1, 0, 3), (2, 1, 1)])
def test_the_masked_centre_does_not_reach_its_prediction(spatial_dims, geometry):
    torch.manual_seed(0)
    x = torch.randn(1, 2, *[11] * spatial_dims)
    convolution = MaskedConvolution(spatial_dims, 2, *geometry)
    centre = (0, slice(None), *[5] * spatial_dims)
    expected = convolution(x)[centre]
    reach = geometry[2] // 2
    x[(0, slice(None), *[slice(5 - reach, 6 + reach)] * spatial_dims)] = 1e6
    assert torch.equal(convolution(x)[centre], expected)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


@pytest.mark.parametrize(
    ("shape", "geometry"),
    [
        ((2, 2, 5, 4), (1, 1, 1)),
        ((1, 2, 4, 3), (1, 0, 3)),
        ((1, 2, 5, 4), (2, 0, 1)),
        ((1, 2, 3, 4, 3), (1, 0, 1)),
        ((1, 1, 3, 4, 3), (2, 0, 1)),
    ],
)
def test_gradcheck(shape, geometry):
    torch.manual_seed(0)
    convolution = MaskedConvolution(len(shape) - 2, shape[1], *geometry)
    assert gradcheck_with_parameters(convolution, torch.randn(shape))


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("geometry", [(1, 1, 1), (2, 0, 1)])
def test_every_parameter_matters(spatial_dims, geometry):
    torch.manual_seed(0)
    convolution = MaskedConvolution(spatial_dims, 3, *geometry)
    assert_every_parameter_matters(convolution, random_input(spatial_dims, 3))
    assert (convolution.weight.grad != 0).all()


# ---------------------------------------------------------------------------------------------------------------------
# The same by other ways


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_the_sum_of_shifted_convolutions(spatial_dims, geometry):
    """Values, and gradients of input, weight and bias."""
    torch.manual_seed(2)
    x = random_input(spatial_dims, 3, dtype=torch.float64).requires_grad_()
    convolution = MaskedConvolution(spatial_dims, 3, *geometry).double()
    inputs = (x, convolution.weight, convolution.bias)
    output = convolution(x)
    expected = sum_of_shifts(x, sub_kernels_of(convolution), [convolution.bias], *geometry[1:])
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-12)
    probe = torch.randn_like(output)
    gradients = torch.autograd.grad((output * probe).sum(), inputs)
    expected_gradients = torch.autograd.grad((expected * probe).sum(), inputs)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_bias_is_added_once(spatial_dims, geometry):
    convolution = MaskedConvolution(spatial_dims, 2, *geometry)
    with torch.no_grad():
        convolution.bias.copy_(torch.tensor([3.0, -5.0]))
    output = convolution(torch.zeros(1, 2, *[9] * spatial_dims))
    assert output[:, 0].unique().tolist() == [3.0]
    assert output[:, 1].unique().tolist() == [-5.0]


@pytest.mark.parametrize("axis", [2, 3, 4])
@pytest.mark.parametrize("geometry", [(1, 1, 1), (1, 2, 3), (2, 0, 3), (3, 1, 1)])
def test_volume_constant_along_an_axis_is_the_2d_case(axis, geometry):
    """Away from the ends of that axis, with the weights summed over it."""
    torch.manual_seed(3)
    reach = tap_offsets(*geometry)[-1]
    image = torch.randn(2, 3, 8, 7, dtype=torch.float64)
    volume = image.unsqueeze(axis).repeat_interleave(2 * reach + 3, dim=axis)
    convolution = MaskedConvolution(3, 3, *geometry).double()
    flat = MaskedConvolution(2, 3, *geometry).double()
    with torch.no_grad():
        flat.weight.copy_(convolution.weight.sum(dim=axis))
        flat.bias.copy_(convolution.bias)
    inside = convolution(volume).narrow(axis, reach, 3)
    for output in inside.unbind(axis):
        torch.testing.assert_close(output, flat(image), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("sub_kernel_size", [1, 2, 3])
def test_one_sample_is_one_sample_of_a_batch(spatial_dims, sub_kernel_size):
    torch.manual_seed(4)
    x = random_input(spatial_dims, 2, batch=3)
    convolution = MaskedConvolution(spatial_dims, 2, sub_kernel_size)
    torch.testing.assert_close(convolution(x)[1:2], convolution(x[1:2]))


# ---------------------------------------------------------------------------------------------------------------------
# Scripting, export, compilation, half precision


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("sub_kernel_size", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_script_save(spatial_dims, sub_kernel_size, bias):
    torch.manual_seed(0)
    assert_script_save(MaskedConvolution(spatial_dims, 2, sub_kernel_size, bias=bias), random_input(spatial_dims, 2))


@pytest.mark.process
@pytest.mark.parametrize("spatial_dims", DIMS)
def test_export(spatial_dims):
    """With more than one tap a corner; SSMCTB's test has one."""
    torch.manual_seed(0)
    other = torch.randn(3, 2, *(10, 8, 9)[:spatial_dims])
    assert_exports(MaskedConvolution(spatial_dims, 2, sub_kernel_size=2), random_input(spatial_dims, 2), other)


@pytest.mark.process
@pytest.mark.parametrize("spatial_dims", DIMS)
def test_compile(spatial_dims):
    torch.manual_seed(0)
    assert_compiles(MaskedConvolution(spatial_dims, 2, sub_kernel_size=2), random_input(spatial_dims, 2))


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize("sub_kernel_size", [1, 2, 3])
def test_bfloat16_autocast(spatial_dims, sub_kernel_size):
    torch.manual_seed(0)
    x = random_input(spatial_dims, 4)
    convolution = MaskedConvolution(spatial_dims, 4, sub_kernel_size)
    with torch.autocast("cpu", torch.bfloat16):
        output = convolution(x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), convolution(x), atol=0.03, rtol=0.03)
