"""A 2D network over the slices of several planes."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SliceInferer

from ssmctb_monai.inferers import PlanesInferer


class FirstAxis(torch.nn.Module):
    """Sums along the first axis of a slice, so that every plane gives something else."""

    def forward(self, x):
        """Spreads the sums of the columns."""
        return x.sum(dim=2, keepdim=True).repeat(1, 1, x.shape[2], 1)


@pytest.fixture
def image():
    return torch.rand(1, 1, 40, 36, 33, generator=torch.Generator().manual_seed(0)) + 0.1


def test_mean_of_the_planes(image):
    options = {"roi_size": (40, 40), "sw_batch_size": 7}
    each = [SliceInferer(spatial_dim=axis, **options)(image, FirstAxis()) for axis in (2, 0)]
    assert not torch.allclose(*each)
    result = PlanesInferer(planes=("axial", "sagittal"), **options)(image, FirstAxis())
    torch.testing.assert_close(result, (each[0] + each[1]) / 2)
    # by hand: an axial slice is summed along the body's width, a sagittal one along its depth
    expected = (image.sum(dim=2, keepdim=True) + image.sum(dim=3, keepdim=True)).expand_as(image) / 2
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(
    ("depth", "min_size", "planes", "expected"),
    [
        (5, 32, ("coronal", "axial"), "axial"),
        (5, 5, ("coronal", "axial"), ("coronal", "axial")),
        (1, 32, ("sagittal", "coronal"), "sagittal"),
    ],
)
def test_planes_of_thin_slices_are_left_out(image, depth, min_size, planes, expected):
    options = {"roi_size": (40, 40), "sw_batch_size": 4}
    thin = image[..., :depth]
    result = PlanesInferer(planes=planes, min_size=min_size, **options)(thin, FirstAxis())
    torch.testing.assert_close(result, PlanesInferer(planes=expected, min_size=1, **options)(thin, FirstAxis()))


def test_background_is_not_looked_at(image):
    image[..., 10:, :, :] = 0

    def network(x):
        assert x.flatten(1).any(dim=1).all()
        return x

    torch.testing.assert_close(PlanesInferer((40, 40), ("sagittal",), sw_batch_size=3)(image, network), image)


def test_faults_are_named(image):
    for planes in ("oblique", (), ("axial", "axial")):
        with pytest.raises(ValueError, match="planes must be some of"):
            PlanesInferer((8, 8), planes)
    with pytest.raises(ValueError, match="min_size"):
        PlanesInferer((8, 8), min_size=0)
    with pytest.raises(ValueError, match=r"\(1, 1, 40, 36\)"):
        PlanesInferer((8, 8))(image[..., 0], FirstAxis())
