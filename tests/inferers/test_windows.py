"""Inferers of networks in 2D and 3D, alone and as an ensemble."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from ssmctb_monai.inferers import EnsembleInferer, ForegroundInferer, PlanesInferer, window_inferer


class Centred(nn.Module):
    """Depends on where a voxel lies in its window, so that windows can be told from each other."""

    def forward(self, x):
        ramp = torch.linspace(0, 1, x[0, 0].numel()).view(x.shape[2:])
        return x * ramp


@pytest.fixture
def volume():
    return torch.rand(1, 1, 40, 36, 44, generator=torch.Generator().manual_seed(0))


def test_windows_of_a_network_in_2d(volume):
    planes = ("axial", "sagittal")
    expected = PlanesInferer((32, 32), planes, sw_batch_size=3, overlap=0.5, mode="gaussian")
    found = window_inferer(2, (32, 32, 1), planes)
    torch.testing.assert_close(found(volume, Centred()), expected(volume, Centred()))
    assert list(window_inferer(2, (32, 32, 1)).inferers) == [2]
    assert (found(volume, Centred()) != window_inferer(2, (32, 32, 1))(volume, Centred())).any()


def test_windows_of_a_network_in_3d(volume):
    expected = ForegroundInferer(SlidingWindowInferer((32, 32, 32), overlap=0.5, mode="gaussian"))
    found = window_inferer(3, (32, 32, 32), None)
    torch.testing.assert_close(found(volume, Centred()), expected(volume, Centred()))
    constant = window_inferer(3, (32, 32, 32), overlap=0.25, mode="constant")(volume, Centred())
    assert (found(volume, Centred()) != constant).any()


def test_each_network_has_its_own_inferer(volume):
    one, other = Centred(), Centred()
    flat, deep = window_inferer(2, (32, 32, 1)), window_inferer(3, (32, 32, 32))
    inferer = EnsembleInferer({one: flat}, default=deep)
    torch.testing.assert_close(inferer(volume, one), flat(volume, one))
    torch.testing.assert_close(inferer(volume, other), deep(volume, other))
    torch.testing.assert_close(inferer(volume, lambda x: x), volume)


def test_other_dimensions_are_refused():
    with pytest.raises(ValueError, match="spatial_dims must be 2 or 3, got 4"):
        window_inferer(4, (32, 32, 32))
    with pytest.raises(ValueError, match=r"context \[-1\] is of networks in 2D: leave it out in 3D"):
        window_inferer(3, (32, 32, 32), context=(-1,))
