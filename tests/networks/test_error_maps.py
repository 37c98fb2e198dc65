"""Error maps by hand-computed values, and against MONAI's filters."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from monai.metrics.regression import compute_ssim_and_cs

from ssmctb_monai.networks.error_maps import error_map, ssim_map

DIMS = [2, 3]
KINDS = ["l1", "l2", "ssim", "msgms"]
C = 0.0026
GAUSSIAN = [math.exp(-((i / 1.5) ** 2) / 2) for i in range(-5, 6)]


def images(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


def ramp(slopes, size):
    """An image that rises by one slope along each axis."""
    axes = torch.meshgrid(*[torch.arange(size, dtype=torch.float32)] * len(slopes), indexing="ij")
    return sum(slope * axis for slope, axis in zip(slopes, axes, strict=True))[None, None]


@pytest.mark.parametrize("spatial_dims", DIMS)
@pytest.mark.parametrize(("kind", "expected"), [("l1", 0.25), ("l2", 0.125)])
def test_one_voxel(spatial_dims, kind, expected):
    image = torch.rand(2, 2, *[4] * spatial_dims)
    reconstruction = image.clone()
    reconstruction[(1, 1, *[2] * spatial_dims)] -= 0.5  # in one channel of two
    errors = error_map(reconstruction, image, kind)
    assert errors.shape == (2, 1, *[4] * spatial_dims)
    place = (1, 0, *[2] * spatial_dims)
    torch.testing.assert_close(errors[place], torch.tensor(expected))
    errors[place] = 0
    assert errors.count_nonzero() == 0


# ---------------------------------------------------------------------------------------------------------------- SSIM


def test_ssim_of_constants():
    errors = error_map(torch.zeros(1, 1, 6, 7), torch.ones(1, 1, 6, 7), "ssim")
    torch.testing.assert_close(errors, torch.full((1, 1, 6, 7), (1 - 1e-4 / 1.0001) / 2))  # SSIM = c1 / (1 + c1)


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_ssim_of_one_voxel(spatial_dims):
    image = torch.zeros(1, 1, *[15] * spatial_dims)
    image[(0, 0, *[7] * spatial_dims)] = 1
    errors = error_map(torch.zeros_like(image), image, "ssim")[0, 0]
    for distance in (0, 3, 5):
        mean = (GAUSSIAN[5] / sum(GAUSSIAN)) ** (spatial_dims - 1) * GAUSSIAN[5 + distance] / sum(GAUSSIAN)
        ssim = 1e-4 / (mean**2 + 1e-4) * 9e-4 / (mean - mean**2 + 9e-4)
        value = errors[(7 + distance, *[7] * (spatial_dims - 1))]
        torch.testing.assert_close(value, torch.tensor((1 - ssim) / 2), atol=1e-6, rtol=1e-4)
    assert errors[13].count_nonzero() == errors[1].count_nonzero() == 0  # beyond the window


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_ssim_is_monai_s(spatial_dims):
    a, b = images(2, 3, *(13, 12, 14)[:spatial_dims])
    value_range = torch.tensor([1.0, 0.4]).view(2, *[1] * (spatial_dims + 1))
    expected, _ = compute_ssim_and_cs(
        *(F.pad(x, [5] * 2 * spatial_dims, mode="replicate") for x in (a, b)),
        spatial_dims=spatial_dims,
        kernel_size=[11] * spatial_dims,
        kernel_sigma=[1.5] * spatial_dims,
        data_range=value_range,
    )
    torch.testing.assert_close(ssim_map(a, b, value_range), expected, atol=5e-5, rtol=1e-4)
    errors = error_map(a, b, "ssim")
    torch.testing.assert_close(errors, (1 - ssim_map(a, b, torch.tensor(1.0))).mean(1, keepdim=True) / 2)


def test_ssim_in_double_precision():
    a, b = (torch.full((1, 1, 4, 5), value, dtype=torch.float64) for value in (0.3, 0.5))
    expected = torch.full_like(a, (0.3 + 1e-4) / (0.09 + 0.25 + 1e-4))
    torch.testing.assert_close(ssim_map(a, b, torch.tensor(1.0, dtype=torch.float64)), expected, rtol=1e-12, atol=0)
    a, b = (x.double().requires_grad_() for x in images(1, 1, 3, 4))
    assert torch.autograd.gradcheck(lambda a, b: ssim_map(a, b, torch.tensor(1.0)), (a, b))


# --------------------------------------------------------------------------------------------------------------- MSGMS


@pytest.mark.parametrize(("height", "other"), [(1.0, 0.0), (0.2, 0.0), (0.6, 0.5)])
def test_msgms_of_steps(height, other):
    step = torch.zeros(1, 1, 16, 16)
    step[..., 8:] = 1
    error = (height - other) ** 2 / (height**2 + other**2 + C)
    # Halved once, twice and thrice, the step lies between the columns 3 and 4, 1 and 2, 0 and 1.
    shares = {0: [0, 0, 0, 1], 5: [0, 0.25, 0.875, 1], 7: [1, 1, 1, 1], 8: [1, 1, 1, 1], 9: [0, 0.75, 1, 1]}
    errors = error_map(height * step, other * step, "msgms")
    for column, share in shares.items():
        expected = torch.full((1, 1, 16), error * sum(share) / 4)
        torch.testing.assert_close(errors[..., column], expected, msg=f"column {column}")
    torch.testing.assert_close(error_map(height * step.mT, other * step.mT, "msgms"), errors.mT)


@pytest.mark.parametrize("slopes", [(0.01, 0.0), (0.004, -0.008), (0.01, 0.002, -0.004), (0.0, 0.0, 0.003)])
def test_msgms_of_a_ramp(slopes):
    image = ramp(slopes, 48)
    slope = math.hypot(*slopes)
    gradients = [2 * slope * 2**scale for scale in range(4)]  # Prewitt's difference goes over two voxels
    expected = sum(gradient**2 / (gradient**2 + C) for gradient in gradients) / 4
    center = (0, 0, *[24] * len(slopes))
    errors = error_map(torch.zeros_like(image), image, "msgms")
    torch.testing.assert_close(errors[center], torch.tensor(expected), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("spatial_dims", DIMS)
def test_msgms_sees_neither_brightness_nor_single_voxels(spatial_dims):
    image = ramp([0.01] * spatial_dims, 16)
    assert error_map(image + 0.25, image, "msgms").max() < 1e-6
    reconstruction = torch.zeros_like(image)
    reconstruction[(0, 0, *[5] * spatial_dims)] = 1
    assert error_map(reconstruction, torch.zeros_like(image), "msgms").count_nonzero() == 0


def test_msgms_averages_channels_after_the_comparison():
    step = torch.zeros(1, 1, 16, 16)
    step[..., 8:] = 1
    errors = error_map(torch.cat([step, -step], 1), torch.zeros(1, 2, 16, 16), "msgms")  # the steps would cancel out
    torch.testing.assert_close(errors, error_map(step, torch.zeros_like(step), "msgms"))


# ------------------------------------------------------------------------------------------------------------ all kinds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(8, 9), (17, 12), (8, 11, 13)])
def test_equal_images_have_none_and_others_some(kind, size):
    a, b = images(2, 3, *size)
    assert error_map(a, a, kind).count_nonzero() == 0
    errors = error_map(a, b, kind)
    assert errors.shape == (2, 1, *size)
    assert errors.dtype == torch.float32
    assert 0 <= errors.min() < errors.mean() < errors.max() <= 1
    torch.testing.assert_close(error_map(b, a, kind), errors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [2, 3, 4])
def test_volume_constant_along_an_axis_is_an_image(kind, axis):
    a, b = images(1, 2, 16, 20)
    volumes = [x.unsqueeze(axis).repeat_interleave(9, axis) for x in (a, b)]
    expected = error_map(a, b, kind).unsqueeze(axis).repeat_interleave(9, axis)
    torch.testing.assert_close(error_map(*volumes, kind), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spatial_dims", DIMS)
def test_batch_mates_do_not_matter(kind, spatial_dims):
    a, b = images(3, 2, *[9] * spatial_dims)
    for index in range(3):
        one = slice(index, index + 1)
        torch.testing.assert_close(error_map(a[one], b[one], kind), error_map(a, b, kind)[one])


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_left(kind):
    a, b = (x.bfloat16() for x in images(1, 1, 16, 16))
    expected = error_map(a.float(), b.float(), kind)
    with torch.autocast("cpu", torch.bfloat16):
        errors = error_map(a, b, kind)
    assert errors.dtype == torch.float32
    assert torch.equal(errors, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_must_be_equal(kind):
    with pytest.raises(ValueError, match=r"\[1, 1, 9, 8\].*\[1, 1, 8, 8\]"):
        error_map(torch.zeros(1, 1, 9, 8), torch.zeros(1, 1, 8, 8), kind)


@pytest.mark.parametrize("size", [(7, 20), (20, 7), (8, 8, 7)])
def test_too_small_for_four_scales(size):
    with pytest.raises(ValueError, match=r"at least 8 voxels.*7"):
        error_map(torch.zeros(1, 1, *size), torch.zeros(1, 1, *size), "msgms")


def test_unknown_kind():
    with pytest.raises(ValueError, match="l1, l2, ssim or msgms, got l3"):
        error_map(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), "l3")


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("offset", "amplitude"), [(10, 0.01), (100, 0.5), (0.3, 0)])
def test_ssim_of_small_differences_on_large_values(spatial_dims, offset, amplitude):
    torch.manual_seed(0)
    a, b = (offset + amplitude * torch.rand(2, 2, *[16] * spatial_dims) for _ in range(2))
    value_range = torch.tensor(amplitude + 1e-7)
    expected = ssim_map(a.double(), b.double(), value_range.double())
    torch.testing.assert_close(ssim_map(a, b, value_range).double(), expected, atol=1e-4, rtol=0)
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(ssim_map(a, b, value_range).mean(), a)
    assert gradient.abs().max() < 10
