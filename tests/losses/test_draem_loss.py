"""DRAEMLoss: MSE + SSIM loss + focal loss, each by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import SSIMLoss
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from ssmctb_monai.losses import DRAEMLoss

SIZES = {2: (17, 14), 3: (13, 12, 14)}


def batch(spatial_dims, channels=2, seed=0):
    """Reconstruction, logits, clean image and mask."""
    generator = torch.Generator().manual_seed(seed)
    size = SIZES[spatial_dims]
    clean = torch.rand(2, channels, *size, generator=generator)
    reconstruction = (clean + 0.2 * torch.randn(2, channels, *size, generator=generator)).requires_grad_()
    logits = (2 * torch.randn(2, 2, *size, generator=generator)).requires_grad_()
    mask = (torch.rand(2, 1, *size, generator=generator) > 0.7).float()
    return (reconstruction, logits), (clean, mask)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_l2_is_the_mean_square(spatial_dims):
    loss = DRAEMLoss(spatial_dims)
    (reconstruction, logits), (clean, mask) = batch(spatial_dims)
    loss((reconstruction, logits), (clean, mask))
    expected = np.square(reconstruction.detach().numpy() - clean.numpy()).mean()
    assert float(loss.parts["l2"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_ssim_part_against_scikit_image(spatial_dims):
    loss = DRAEMLoss(spatial_dims)
    (reconstruction, logits), target = batch(spatial_dims)
    loss((reconstruction, logits), target)
    values = [
        # A Gaussian of 1.5 voxels, cut off at 11, is what scikit-image takes here.
        structural_similarity(x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0)
        for x, y in zip(reconstruction.detach().flatten(0, 1).numpy(), target[0].flatten(0, 1).numpy(), strict=True)
    ]
    assert float(loss.parts["ssim"]) == pytest.approx(1 - np.mean(values), abs=1e-5)


def test_ssim_window_is_an_argument():
    loss = DRAEMLoss(2, ssim_window=7)
    (reconstruction, logits), target = batch(2)
    loss((reconstruction, logits), target)
    values = []
    for x, y in zip(reconstruction.detach().flatten(0, 1).numpy(), target[0].flatten(0, 1).numpy(), strict=True):
        mean_x, mean_y, xx, yy, xy = (
            gaussian_filter(z.astype(np.float64), 1.5, radius=3)[3:-3, 3:-3] for z in (x, y, x * x, y * y, x * y)
        )
        cs = (2 * (xy - mean_x * mean_y) + 0.03**2) / (xx - mean_x**2 + yy - mean_y**2 + 0.03**2)
        values.append(cs * (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2))
    assert float(loss.parts["ssim"]) == pytest.approx(1 - np.mean(values), abs=1e-5)


@pytest.mark.parametrize(("gamma", "arguments"), [(2.0, {}), (0.0, {"gamma": 0.0}), (3.0, {"gamma": 3.0})])
def test_focal_part_is_a_mean_over_voxels(gamma, arguments):
    loss = DRAEMLoss(2, **arguments)
    prediction, (clean, mask) = batch(2)
    loss(prediction, (clean, mask))
    logits, values = prediction[1].tolist(), []
    for item in range(2):
        for i in range(SIZES[2][0]):
            for j in range(SIZES[2][1]):
                normal, anomaly = logits[item][0][i][j], logits[item][1][i][j]
                true, other = (anomaly, normal) if mask[item, 0, i, j] else (normal, anomaly)
                p = 1 / (1 + math.exp(other - true))
                values.append(-((1 - p) ** gamma) * math.log(p))
    assert float(loss.parts["focal"]) == pytest.approx(np.mean(values), rel=1e-5)


def test_focal_part_in_3d_of_one_known_probability():
    logits = torch.zeros(1, 2, 12, 12, 12)
    logits[:, 1] = math.log(3)  # p(anomaly) = 3/4
    mask = torch.zeros(1, 1, 12, 12, 12)
    mask[..., :3] = 1  # a quarter of the voxels
    loss = DRAEMLoss(3)
    loss((mask, logits), (mask, mask))
    expected = 0.25 * 0.25**2 * -math.log(0.75) + 0.75 * 0.75**2 * -math.log(0.25)
    assert float(loss.parts["focal"]) == pytest.approx(expected, rel=1e-5)


def test_focal_part_of_a_soft_label_is_shared_among_the_classes():
    prediction, (clean, mask) = batch(2)
    loss, found = DRAEMLoss(2), []
    for label in (mask, 1 - mask, 0.25 + 0.5 * mask):
        loss(prediction, (clean, label))
        found.append(float(loss.parts["focal"]))
    assert found[2] == pytest.approx(0.75 * found[0] + 0.25 * found[1], rel=1e-5)
    loss(prediction, (clean, mask.bool()))
    assert float(loss.parts["focal"]) == pytest.approx(found[0], rel=1e-6)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_total_is_the_sum_of_the_parts(spatial_dims):
    loss = DRAEMLoss(spatial_dims)
    total = loss(*batch(spatial_dims))
    assert list(loss.parts) == ["l2", "ssim", "focal"]
    assert torch.equal(total.detach(), loss.parts["l2"] + loss.parts["ssim"] + loss.parts["focal"])


def test_parts_are_detached_and_the_total_is_not():
    loss = DRAEMLoss(2)
    assert loss.parts == {}
    prediction, target = batch(2)
    loss(prediction, target).backward()
    assert not any(part.requires_grad for part in loss.parts.values())
    assert all(tensor.grad.abs().max() > 0 for tensor in prediction)


def test_perfect_prediction_costs_nothing():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :5] = 1
    logits = torch.cat([-100 * mask, 100 * (mask - 1)], dim=1)
    clean = torch.rand(1, 1, 16, 16)
    assert float(DRAEMLoss(2)((clean, logits), (clean, mask))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_autocast_keeps_the_digits_of_float32(spatial_dims):
    prediction, target = batch(spatial_dims)
    loss = DRAEMLoss(spatial_dims)
    expected = loss(prediction, target)
    expected_parts = loss.parts
    with torch.autocast("cpu", torch.bfloat16):
        total = loss(prediction, target)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected, atol=0, rtol=1e-6)
    torch.testing.assert_close(loss.parts, expected_parts, atol=0, rtol=1e-6)


def test_half_precision_prediction_is_computed_in_float32():
    (reconstruction, logits), target = batch(2)
    halves = reconstruction.detach().bfloat16(), logits.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        total = DRAEMLoss(2)(halves, target)
    torch.testing.assert_close(total, DRAEMLoss(2)(tuple(half.float() for half in halves), target), atol=0, rtol=1e-6)


def test_ssim_sees_structure_where_l2_does_not():
    """A constant shift and noise of the same size have the same L2; SSIM minds the noise more."""
    clean = F.interpolate(torch.rand(1, 1, 4, 4), size=(32, 32), mode="bilinear")
    noise = 0.1 * torch.sign(torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)))
    logits, mask = torch.zeros(1, 2, 32, 32), torch.zeros(1, 1, 32, 32)
    parts = []
    for wrong in (torch.full_like(clean, 0.1), noise):
        loss = DRAEMLoss(2)
        loss((clean + wrong, logits), (clean, mask))
        parts.append(loss.parts)
    torch.testing.assert_close(parts[0]["l2"], parts[1]["l2"])
    assert parts[1]["ssim"] > 2 * parts[0]["ssim"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"spatial_dims": 1}, "spatial_dims"), ({"ssim_window": 10}, "ssim_window"), ({"ssim_window": 0}, "ssim_w")],
)
def test_ill_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DRAEMLoss(**{"spatial_dims": 2, **arguments})


@pytest.mark.parametrize(("spatial_dims", "window"), [(2, 11), (3, 5)])
def test_ssim_part_against_monai(spatial_dims, window):
    (reconstruction, logits), (clean, mask) = batch(spatial_dims)
    loss = DRAEMLoss(spatial_dims, ssim_window=window)
    loss((reconstruction, logits), (clean, mask))
    expected = SSIMLoss(spatial_dims, win_size=window)(reconstruction.detach(), clean)
    torch.testing.assert_close(loss.parts["ssim"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(16, 10), (10, 16), (16, 16, 16)])
def test_images_that_hold_no_window(shape):
    image, logits = torch.rand(1, 1, *shape), torch.rand(1, 2, *shape)
    with pytest.raises(ValueError, match=r"ssim_window = 11 .*got shape \(1, 1, "):
        DRAEMLoss(2)((image, logits), (image, image.round()))


def test_reconstruction_of_another_shape():
    """One channel would broadcast to two."""
    with pytest.raises(ValueError, match=r"has shape \(1, 1, 16, 16\), the clean image \(1, 2, 16, 16\)"):
        DRAEMLoss(2)(
            (torch.rand(1, 1, 16, 16), torch.rand(1, 2, 16, 16)), (torch.rand(1, 2, 16, 16), torch.zeros(1, 1, 16, 16))
        )
