"""Losses of SSM: values of the release, values by hand, and 3D against 2D."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics.regression import compute_ssim_and_cs

from ssmctb_monai.losses import MSGMSLoss, SSMLoss

DATA = Path(os.environ.get("SSMCTB_DATA") or Path(__file__).parents[3] / "shared/data")
GOLDEN = DATA.parent / "golden/systems/ssm_losses.npz"


def images(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


def masks_for(image, sets=3):
    return torch.zeros(len(image), sets, *image.shape[2:])


@pytest.mark.skipif(not GOLDEN.is_file(), reason=f"no golden values in the folder beside SSMCTB_DATA ({GOLDEN})")
@pytest.mark.parametrize("case", ["a", "b", "d"])
def test_terms_of_the_release(case):
    golden = np.load(GOLDEN)
    image, restored = (torch.from_numpy(golden[f"{case}/{name}"]) for name in ("image", "restored"))
    for term in ("msgms", "ssim"):
        loss, prediction = SSMLoss(2), restored.clone().requires_grad_()
        if term == "msgms":
            value = loss.msgms(prediction, image)
        else:
            total = loss((prediction, masks_for(image), masks_for(image)), image)
            value = total - loss.msgms(prediction, image) - (prediction - image).square().mean()
            torch.testing.assert_close(value.detach(), loss.parts["ssim"], atol=1e-6, rtol=0)
        (gradient,) = torch.autograd.grad(value, prediction)
        assert float(value.detach()) == pytest.approx(float(golden[f"{case}/{term}_loss"]), rel=1e-5)
        assert float(gradient.norm()) == pytest.approx(float(golden[f"{case}/{term}_loss_grad_norm"]), rel=1e-5)


def test_msgms_of_a_step():
    """The edge is 2 of 14 columns that have a gradient, and at half the size 2 of 6, …; where it is 0.5 against 0."""
    image = torch.zeros(1, 1, 64, 64)
    image[..., 32:] = 0.5
    error = 0.25 / (0.25 + 0.0026)
    expected = error * (2 / 62 + 2 / 30 + 2 / 14 + 2 / 6) / 4
    assert float(MSGMSLoss(2)(torch.zeros_like(image), image)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_volume_constant_along_an_axis_is_an_image(axis):
    a, b = images(1, 2, 24, 30)
    volumes = [x.unsqueeze(axis).repeat_interleave(25, axis) for x in (a, b)]
    torch.testing.assert_close(MSGMSLoss(3)(*volumes), MSGMSLoss(2)(a, b))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_parts_by_hand(spatial_dims):
    image, restored = images(2, 2, *[24] * spatial_dims)
    masks, predicted = images(2, 3, *[24] * spatial_dims, seed=1)
    loss = SSMLoss(spatial_dims)
    total = loss((restored, predicted, masks), image)
    assert list(loss.parts) == ["l2", "msgms", "ssim", "mask"]
    torch.testing.assert_close(total, sum(loss.parts.values()))
    torch.testing.assert_close(loss.parts["l2"], (restored - image).square().mean())
    by_set = [(predicted[:, index] - masks[:, index]).square().mean() for index in range(3)]
    torch.testing.assert_close(loss.parts["mask"], sum(by_set))
    padded = [torch.nn.functional.pad(x, [5] * 2 * spatial_dims) for x in (restored, image)]
    arguments = {"kernel_size": [11] * spatial_dims, "kernel_sigma": [1.5] * spatial_dims, "data_range": 1.0}
    ssim, _ = compute_ssim_and_cs(*padded, spatial_dims=spatial_dims, **arguments)
    torch.testing.assert_close(loss.parts["ssim"], 1 - ssim.mean(), atol=1e-5, rtol=1e-4)


def test_slope_is_finite_where_a_restoration_is_flat():
    image, _ = images(1, 1, 24, 24)
    restored = torch.full_like(image, 0.5, requires_grad=True)
    MSGMSLoss(2)(restored, image).backward()
    assert restored.grad.isfinite().all()


def test_ill_shapes():
    a, b = images(1, 1, 24, 24)
    with pytest.raises(ValueError, match="2 spatial dimensions"):
        MSGMSLoss(2)(a, b[..., :20])
    with pytest.raises(ValueError, match=r"at least 24 voxels.*20"):
        MSGMSLoss(2)(a[..., :20], b[..., :20])
    with pytest.raises(ValueError, match="masks"):
        SSMLoss(2)((a, masks_for(a), masks_for(a, 2)), b)
