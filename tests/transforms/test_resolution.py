"""Thick slices."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from ssmctb_monai.transforms import RandThickSlices, RandThickSlicesd


def test_mean_over_slices_by_hand():
    # Four voxels in two slices: means 1 and 5 at positions 0.5 and 2.5, interpolated between and held outside.
    image = torch.tensor([[0.0, 2, 4, 6]])
    thicken = RandThickSlices(prob=1.0, thickness=2)
    drawn = {round(4 / thicken.drawn): result for result in (thicken(image) for _ in range(60))}
    torch.testing.assert_close(drawn[2], torch.tensor([[1.0, 2, 4, 5]]))
    assert set(drawn) == {2, 3, 4}
    torch.testing.assert_close(drawn[4], image)


def test_one_axis_is_thick_and_each_is_drawn():
    image = torch.rand(2, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    thicken = RandThickSlices(prob=1.0, thickness=6).set_random_state(0)
    axes = set()
    for _ in range(20):
        thick = thicken(image)
        smoother = [thick.diff(dim=axis).std() < 0.95 * image.diff(dim=axis).std() for axis in (1, 2, 3)]
        assert thick.shape == image.shape
        torch.testing.assert_close(thick.mean(dim=(1, 2, 3)), image.mean(dim=(1, 2, 3)), atol=0.02, rtol=0)
        if thicken.drawn > 2:
            axes.add(thicken.axis)
            assert smoother[thicken.axis]
    assert axes == {0, 1, 2}


def test_probability_seed_and_kinds():
    image = MetaTensor(torch.rand(1, 8, 9), affine=torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64)))
    assert RandThickSlices(prob=0.0)(image) is image
    change = RandThickSlicesd("image", prob=1.0, thickness=4)
    first, again = (change.set_random_state(1)({"image": image})["image"] for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    torch.testing.assert_close(first.affine, image.affine)
    with pytest.raises(ValueError, match="thickness"):
        RandThickSlices(thickness=0.5)
    with pytest.raises(ValueError, match="prob"):
        RandThickSlicesd(prob=1.5)
