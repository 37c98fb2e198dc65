"""Perlin noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssmctb_monai.transforms import RandPerlinNoise
from ssmctb_monai.transforms.anomalies.perlin_noise import perlin_noise


def gradients(*points, seed=0):
    lattice = torch.randn(len(points), *points, generator=torch.Generator().manual_seed(seed))
    return lattice / lattice.norm(dim=0)


def noise(shape=(64, 64), seed=0, **arguments):
    return RandPerlinNoise(**arguments).set_random_state(seed)(shape)


def autocorrelation(image, lag):
    return float((image[lag:] * image[:-lag]).mean() / image.square().mean())


# ------------------------------------------------------------------------------------------------- from given gradients


def test_one_point_by_hand():
    lattice = torch.tensor([[[1.0, 0.0], [0.6, -0.8]], [[0.0, 1.0], [0.8, 0.6]]])  # (component, row, column)
    # Pixel (1, 2) of 4 x 4 lies at (0.375, 0.625) of the one cell. Gradient times way from each corner:
    # (1, 0)·(0.375, 0.625) = 0.375; (0, 1)·(0.375, -0.375) = -0.375;
    # (0.6, 0.8)·(-0.625, 0.625) = 0.125; (-0.8, 0.6)·(-0.625, -0.375) = 0.275.
    # Fade of 0.375: 0.275207520; of 0.625: 0.724792480. Along the columns: -0.168594360 and 0.233718872.
    expected = -0.168594360 + 0.275207520 * (0.233718872 + 0.168594360)
    assert float(perlin_noise((4, 4), lattice)[1, 2]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("shape", "points"), [((6, 9), (3, 4)), ((5, 6, 8), (2, 4, 3))])
def test_every_point_against_plain_loops(shape, points):
    lattice = gradients(*points).double()
    result = perlin_noise(shape, lattice)

    def fade(t):
        return t**3 * (t * (6 * t - 15) + 10)

    for index in np.ndindex(*shape):
        position = [(i + 0.5) * (p - 1) / n for i, p, n in zip(index, points, shape, strict=True)]
        cell = [int(x) for x in position]
        total = 0.0
        for corner in np.ndindex(*[2] * len(shape)):
            where = [c + k for c, k in zip(cell, corner, strict=True)]
            way = [x - w for x, w in zip(position, where, strict=True)]
            weight = np.prod([fade(1 - abs(w)) for w in way])
            total += weight * sum(float(lattice[(d, *where)]) * w for d, w in enumerate(way))
        assert float(result[index]) == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_zero_at_lattice_points(spatial_dims):
    lattice = gradients(*[4] * spatial_dims)
    result = perlin_noise([9] * spatial_dims, lattice)  # voxels 1, 4 and 7 are at 1/2, 3/2 and 5/2 cells
    assert result[(1,) * spatial_dims].abs() > 1e-3
    result = perlin_noise([5] * spatial_dims, lattice[(slice(None), *[slice(3)] * spatial_dims)])
    assert result[(2,) * spatial_dims].abs() < 1e-6  # the middle voxel is at the middle lattice point
    assert result[(1,) * spatial_dims].abs() > 1e-3


@pytest.mark.parametrize("shape", [(300, 5), (3, 200), (120, 4, 5)])
def test_continuous_across_cells(shape):
    """Steps shrink with the distance between points; a seam between cells would not."""
    axis = int(np.argmax(shape))
    lattice = gradients(*[5] * len(shape))
    step = perlin_noise(shape, lattice).diff(dim=axis).abs().max()
    assert step < 3 * 4 / max(shape)  # no more than 3 per cell, and 4 cells
    assert step > 0.1 * 4 / max(shape)


def test_constant_along_an_axis_without_gradient():
    plane = gradients(3, 4)
    volume = torch.zeros(3, 3, 4, 5)
    volume[:2] = plane[..., None]
    expected = perlin_noise((12, 9), plane)
    torch.testing.assert_close(perlin_noise((12, 9, 7), volume), expected[..., None].expand(12, 9, 7))


def test_linear_in_the_gradients_and_of_their_type():
    first, second = gradients(3, 4, seed=1).double(), gradients(3, 4, seed=2).double()
    result = perlin_noise((7, 8), 2 * first - second)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, 2 * perlin_noise((7, 8), first) - perlin_noise((7, 8), second))


# --------------------------------------------------------------------------------------------------------- random noise


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 2), (2, 2), (3, 50), (17, 31), (1, 1, 9), (2, 3, 5), (33, 8, 21), (40, 40, 1)], ids=str
)
def test_odd_tiny_and_anisotropic_shapes(shape):
    for cells in ((1, 1), (1, 32), (32, 32)):
        result = noise(shape, cells=cells)
        assert result.shape == shape
        assert result.dtype == torch.float32
        assert result.isfinite().all()


@pytest.mark.parametrize("shape", [(40, 50), (20, 24, 16)])
def test_mean_0_and_deviation_1(shape):
    for seed in range(5):
        result = noise(shape, seed)
        assert abs(float(result.mean())) < 1e-5
        assert float(result.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_reproducible_by_its_own_seed_only():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (the point of the test)
    first = noise(seed=5)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    state = torch.random.get_rng_state()
    assert torch.equal(noise(seed=5), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(noise(seed=6), first)
    generator = RandPerlinNoise().set_random_state(5)
    assert torch.equal(generator((64, 64)), first)
    assert not torch.equal(generator((64, 64)), first)  # the next draw is another


def test_cells_set_the_correlation_length():
    lengths = [
        np.mean([autocorrelation(noise(seed=seed, cells=(cells, cells), octaves=1), 6) for seed in range(8)])
        for cells in (2, 6, 20)
    ]
    assert lengths[0] > 0.6 > lengths[1] > 0.1 > lengths[2]


def test_lattice_stays_within_cells_and_axes_within_a_factor_of_2():
    cells = []
    generator = RandPerlinNoise(cells=(3, 12), octaves=1).set_random_state(0)
    for _ in range(200):
        (lattice,) = generator.randomize((64, 64, 64))
        cells.append(np.array(lattice.shape[1:]) - 1)
    cells = np.stack(cells)
    assert cells.min() == 3
    assert cells.max() == 12
    ratios = cells.max(1) / cells.min(1)
    assert ratios.max() <= 2 + 1e-9 + 1 / 3  # whole cells, rounded up
    assert ratios.max() > 1.4  # neither all round
    assert (ratios < 1.2).any()  # nor all stretched


def test_cells_are_drawn_log_uniformly():
    generator = RandPerlinNoise(cells=(1, 64), octaves=1).set_random_state(0)
    cells = np.array([generator.randomize((256,))[0].shape[1] - 1 for _ in range(400)])
    assert 0.4 < (cells <= 8).mean() < 0.62  # 8 is the middle of 1 and 64; an even draw would give an eighth


def test_octaves_halve_the_period_and_have_unit_gradients():
    lattices = RandPerlinNoise(cells=(4, 4), octaves=3).set_random_state(0).randomize((64, 64))
    assert [lattice.shape for lattice in lattices] == [(2, 5, 5), (2, 9, 9), (2, 17, 17)]
    for lattice in lattices:
        np.testing.assert_allclose(np.linalg.norm(lattice, axis=0), 1, rtol=1e-5)


def test_persistence_and_octaves_roughen():
    smooth = autocorrelation(noise(cells=(4, 4), octaves=1), 2)
    middle = autocorrelation(noise(cells=(4, 4), octaves=3, persistence=0.5), 2)
    rough = autocorrelation(noise(cells=(4, 4), octaves=3, persistence=1.0), 2)
    assert smooth > middle > rough


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cells": (0.5, 4)}, "cells"),
        ({"cells": (4, 2)}, "cells"),
        ({"octaves": 0}, "octaves"),
        ({"persistence": 0}, "persistence"),
    ],
)
def test_ill_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandPerlinNoise(**arguments)
