"""The decoder; DRAEM's tests have its structure."""

from __future__ import annotations

import pytest
import torch

from ssmctb_monai.networks.blocks import SSPCAB, Decoder

WIDTHS = [8, 4, 6]


def features(spatial_dims):
    sizes = [(16, 8, 24), (8, 4, 12), (4, 2, 6)]
    return [torch.rand(2, width, *size[:spatial_dims]) for width, size in zip(WIDTHS, sizes, strict=True)]


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("skip_connections", [True, False])
@pytest.mark.parametrize("block", [None, "none", "sspcab"])
def test_image_of_the_finest_size(spatial_dims, skip_connections, block):
    decoder = Decoder(spatial_dims, WIDTHS, 3, skip_connections, block).eval()
    given = features(spatial_dims)
    image = decoder(given)
    assert image.shape == (2, 3, *given[0].shape[2:])
    assert [type(module) is SSPCAB for module in decoder.stages[-1]] == [False, block == "sspcab"]
    fine = [torch.zeros_like(part) for part in given[:-1]]
    assert torch.equal(decoder([*fine, given[-1]]), image) == (not skip_connections)


def test_ill_arguments():
    with pytest.raises(ValueError, match=r"widths must be at least two, got \[8\]"):
        Decoder(2, [8], 1)
    with pytest.raises(ValueError, match="block must be one of"):
        Decoder(2, WIDTHS, 1, block="se")
    with pytest.raises(ValueError, match="features of 3 stages, got 2"):
        Decoder(2, WIDTHS, 1)(features(2)[1:])
