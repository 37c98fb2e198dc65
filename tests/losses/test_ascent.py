"""AscentLoss: each part by hand, and where its gradient points."""

from __future__ import annotations

import math

import pytest
import torch

from ssmctb_monai.losses import AscentLoss


def line(*values, channels=1):
    return torch.tensor(values).view(1, channels, 1, -1)


def test_parts_by_hand():
    """Errors 0.1 and 0.3 of normal voxels, 0.2 and 0.6 of anomalous ones."""
    reconstruction, image = line(0.5, 0.2, 0.9, 0.1), line(0.4, 0.5, 0.7, 0.7)
    mask, logits = line(0.0, 0.0, 1.0, 1.0), line(0.0, -1.0, 2.0, 0.0)
    loss = AscentLoss(weight=0.5)
    total = loss((reconstruction, logits), (image, mask))
    cross_entropy = (2 * math.log(2) + math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 4
    assert loss.parts["normal"] == pytest.approx(0.2)
    assert loss.parts["abnormal"] == pytest.approx(0.4)
    assert loss.parts["classification"] == pytest.approx(cross_entropy)
    assert float(total) == pytest.approx(0.2 - 0.5 * 0.4 + cross_entropy)


def test_channels_and_soft_masks():
    """Of two channels the mean; a voxel with a mask of 0.5 counts half on both sides."""
    reconstruction, image = line(0.2, 0.4, 0.8, 0.0, 1.0, 0.2, channels=2), torch.zeros(1, 2, 1, 3)
    loss = AscentLoss()
    loss((reconstruction, torch.zeros(1, 1, 1, 3)), (image, line(0.5, 1.0, 0.0)))
    assert loss.parts["normal"] == pytest.approx((0.5 * 0.1 + 0.5) / 1.5)
    assert loss.parts["abnormal"] == pytest.approx((0.5 * 0.1 + 0.7) / 1.5)


def test_mean_of_soft_masks_of_less_than_a_voxel():
    loss = AscentLoss()
    loss((line(0.4, 0.4, 0.4), torch.zeros(1, 1, 1, 3)), (torch.zeros(1, 1, 1, 3), line(0.25, 0.25, 0.0)))
    assert loss.parts["abnormal"] == pytest.approx(0.4)


@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_descent_on_normal_and_ascent_on_abnormal_voxels(weight):
    """Towards the image and away from it."""
    reconstruction = line(0.9, 0.9, 0.1).requires_grad_()
    image = line(0.5, 0.5, 0.5)
    AscentLoss(weight)((reconstruction, torch.zeros(1, 1, 1, 3)), (image, line(0.0, 1.0, 1.0))).backward()
    torch.testing.assert_close(reconstruction.grad, line(1.0, -weight / 2, weight / 2))


@pytest.mark.parametrize("part", [0.0, 1.0])
def test_one_kind_of_voxels_alone(part):
    reconstruction = torch.rand(1, 1, 4, 4, requires_grad=True)
    loss = AscentLoss()
    loss((reconstruction, torch.zeros(1, 1, 4, 4)), (torch.rand(1, 1, 4, 4), torch.full((1, 1, 4, 4), part))).backward()
    assert loss.parts["normal" if part else "abnormal"] == 0
    assert reconstruction.grad.isfinite().all()


def test_ill_arguments():
    with pytest.raises(ValueError, match="weight must not be negative, got -1"):
        AscentLoss(weight=-1)
    with pytest.raises(ValueError, match=r"The reconstruction has shape \(1, 1, 4, 4\), the image \(1, 2, 4, 4\)"):
        AscentLoss()((torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4)), (torch.rand(1, 2, 4, 4), torch.rand(1, 1, 4, 4)))
