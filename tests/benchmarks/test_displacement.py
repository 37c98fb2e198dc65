"""The displacement between slices, of slices that are displaced."""

from __future__ import annotations

import torch
from scipy.ndimage import gaussian_filter

from benchmarks.displacement import displacement, in_patches, maps_of


def noise(*shape: int) -> torch.Tensor:
    """Smooth noise in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.from_numpy(gaussian_filter(torch.rand(*shape, generator=generator).numpy(), 2))
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def test_slices_that_are_moved():
    image = noise(48, 40)[None, ..., None].repeat(1, 1, 1, 2)
    other = torch.stack([image[..., 0].roll(2, dims=1), image[..., 0].roll(-1, dims=2)], dim=-1)
    found = displacement(image, other)[:, 8:-8, 8:-8].median(dim=1).values.median(dim=1).values
    torch.testing.assert_close(found, torch.tensor([[2.0, 0.0], [0.0, -1.0]]), atol=0.3, rtol=0)


def test_means_of_the_brain_in_patches():
    values, brain = torch.arange(12.0).view(1, 12, 1, 1).repeat(1, 1, 8, 1), torch.ones(1, 12, 8, 1)
    brain[:, :4] = 0
    expected = torch.tensor([5.5] * 8 + [9.5] * 4)
    torch.testing.assert_close(in_patches(values, brain)[0, :, 0, 0], expected)


def test_maps_of_slices_that_are_alike():
    image = noise(24, 20)[None, ..., None].repeat(1, 1, 1, 18)
    maps = maps_of(image, torch.ones_like(image))
    assert all(each.shape == image.shape for each in maps.values())
    assert all(float(each.max()) < 1e-5 for name, each in maps.items() if name != "FLAIR itself")
