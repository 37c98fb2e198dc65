"""Shapes of synthetic anomalies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from anomaly_checks import SIZES

from ssmctb_monai.transforms import BoxShape, EllipsoidShape, PerlinShape, TissueShape

SIZED = [PerlinShape, EllipsoidShape, BoxShape]
ROTATED_BOX = {"rotate": True}  # no whole rows of voxels at the same distance


def mask_of(shape, inside, seed=0, image=None):
    image = torch.zeros(1, *inside.shape) if image is None else image
    level = shape.set_random_state(seed)(image, inside)
    assert level.shape == inside.shape
    return (level >= 0) & inside


def brain_of(spatial_dims):
    inside = torch.zeros(SIZES[spatial_dims], dtype=torch.bool)
    inside[(slice(2, -3),) * spatial_dims] = True
    return inside


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("kind", "more"), [(PerlinShape, {}), (EllipsoidShape, {}), (BoxShape, ROTATED_BOX)])
def test_size_is_exact_and_drawn_log_uniformly(kind, more, spatial_dims):
    inside = brain_of(spatial_dims)
    voxels = int(inside.sum())
    assert int(mask_of(kind(coverage=(0.3, 0.3), **more), inside).sum()) == round(0.3 * voxels)
    shape = kind(coverage=(0.01, 0.64), **more)
    shares = [int(mask_of(shape, inside, seed).sum()) / voxels for seed in range(120)]
    rounding = 1 / voxels
    assert 0.01 - rounding <= min(shares) < 0.02
    assert 0.5 < max(shares) <= 0.64 + rounding
    assert 0.35 < np.mean(np.array(shares) < 0.08) < 0.65  # 0.08 is the middle of 0.01 and 0.64


@pytest.mark.parametrize(("kind", "more"), [(PerlinShape, {}), (EllipsoidShape, {}), (BoxShape, ROTATED_BOX)])
def test_volume_is_absolute(kind, more):
    inside = brain_of(3)  # 12 x 9 x 10 voxels
    for spacing, expected in ((1.0, 240), ((2.0, 2.0, 3.0), 20)):
        found = mask_of(kind(volume=(240, 240), spacing=spacing, coverage=(0.005, 0.5), **more), inside)
        assert int(found.sum()) == expected
    capped = mask_of(kind(volume=(1e6, 1e6), coverage=(0.005, 0.25), **more), inside)
    assert int(capped.sum()) == 270
    assert int(mask_of(kind(volume=(1e-3, 1e-3), **more), inside).sum()) == 1


@pytest.mark.parametrize("kind", SIZED)
@pytest.mark.parametrize("voxels", [1, 3])
def test_never_empty_in_the_smallest_brain(kind, voxels):
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside.view(-1)[:voxels] = True
    for seed in range(10):
        assert 1 <= int(mask_of(kind(coverage=(0.01, 0.02)), inside, seed).sum()) <= voxels


def extents(mask):
    where = mask.nonzero()
    return where.amax(0) - where.amin(0) + 1


def is_cut(mask):
    """Whether a shape reaches the border of the image."""
    where = mask.nonzero()
    return bool((where == 0).any() or (where == torch.tensor(mask.shape) - 1).any())


def test_box_fills_its_extents_and_ellipsoid_its_share_of_them():
    inside = torch.ones(40, 40, 40, dtype=torch.bool)
    for kind, share, rest in ((BoxShape, 1.0, 0.0), (EllipsoidShape, np.pi / 6, 0.3)):
        masks = [mask_of(kind(rotate=False, volume=(400, 400)), inside, seed) for seed in range(20)]
        assert all(400 <= int(mask.sum()) < 700 for mask in masks)  # a box has whole faces
        whole = [mask for mask in masks if not is_cut(mask)]
        assert len(whole) > 3
        for mask in whole:
            assert float(mask.sum() / extents(mask).prod()) == pytest.approx(share, rel=rest)


def elongation(mask, spacing=1.0):
    points = mask.nonzero().double() * torch.as_tensor(spacing)
    lengths = torch.linalg.eigvalsh(torch.cov(points.T)).sqrt()
    return float(lengths[-1] / lengths[0])


def test_aspect_is_the_ratio_of_the_axes_in_mm():
    inside = torch.ones(40, 40, 20, dtype=torch.bool)
    spacing = (1.0, 1.0, 2.0)
    for kind in (EllipsoidShape, BoxShape):
        ratios = {}
        for aspect in (1.0, 4.0):
            shape = kind(aspect, True, volume=(600, 600), spacing=spacing)
            masks = [mask_of(shape, inside, seed) for seed in range(25)]
            ratios[aspect] = [elongation(mask, spacing) for mask in masks if not is_cut(mask)]
            assert len(ratios[aspect]) > 3
        assert max(ratios[1.0]) < 1.1
        assert np.median(ratios[4.0]) > 1.5
        assert max(ratios[4.0]) < 4.6


def test_rotation_turns_the_axes():
    inside = torch.ones(64, 64, dtype=torch.bool)
    for kind in (EllipsoidShape, BoxShape):
        leaning = {}
        for rotate in (False, True):
            masks = [mask_of(kind(4.0, rotate, coverage=(0.05, 0.05)), inside, seed) for seed in range(20)]
            covariances = [torch.cov(mask.nonzero().double().T) for mask in masks]
            leaning[rotate] = np.median([float(c[0, 1].abs() / (c[0, 0] * c[1, 1]).sqrt()) for c in covariances])
        assert leaning[False] < 0.05 < 0.2 < leaning[True]


def test_centres_lie_all_over_the_brain():
    inside = brain_of(2)
    covered = torch.stack([mask_of(EllipsoidShape(coverage=(0.02, 0.02)), inside, seed) for seed in range(150)])
    assert covered.any(0)[inside].float().mean() > 0.95


def test_levels_of_convex_shapes_grow_with_them():
    """The level is log 2 where a shape of half the size would end, so that edges are as wide as shapes are large."""
    inside = torch.ones(80, 80, dtype=torch.bool)
    for kind in (EllipsoidShape, BoxShape):
        for coverage in (0.03, 0.1):
            shape = kind(1.0, False, coverage=(coverage, coverage))
            levels = [shape.set_random_state(seed)(torch.zeros(1, 80, 80), inside) for seed in range(12)]
            inner = [int((level >= np.log(2)).sum()) for level in levels if not is_cut(level >= 0)]
            assert len(inner) > 2
            assert np.mean(inner) == pytest.approx(coverage * 80**2 / 4, rel=0.2)


def test_perlin_cells_set_the_scale():
    inside = torch.ones(64, 64, dtype=torch.bool)
    borders = [
        np.mean([float(mask_of(PerlinShape(cells, (0.3, 0.3)), inside, seed).diff(dim=0).sum()) for seed in range(8)])
        for cells in ((1, 1), (8, 8))
    ]
    assert borders[1] > 2 * borders[0]


def test_tissue_keeps_a_shape_within_a_band_around_a_drawn_voxel():
    inside = brain_of(3)
    image = torch.zeros(2, *SIZES[3])
    image[0, :, :7] = 0.3
    image[0, :, 7:] = 0.8
    bands = {"0.3": slice(0, 6), "smoothed, below": slice(6, 7), "smoothed, above": slice(7, 8), "0.8": slice(8, None)}
    found = set()
    for seed in range(20):
        level = TissueShape(PerlinShape(coverage=(0.5, 0.5)), width=0.02).set_random_state(seed)(image, inside)
        mask = (level >= 0) & inside
        (band,) = [name for name, rows in bands.items() if mask[:, rows].any()]
        found.add(band)
        tissue = torch.zeros_like(inside)
        tissue[:, bands[band]] = inside[:, bands[band]]
        assert int(mask.sum()) == round(0.5 * int(tissue.sum()))
        assert torch.equal(level == -torch.inf, ~tissue)
    assert {"0.3", "0.8"} <= found
    other = TissueShape(PerlinShape(coverage=(1.0, 1.0)), width=0.02, channel=1)  # the same everywhere
    assert torch.equal(mask_of(other, inside, 0, image), inside)
    wide = TissueShape(PerlinShape(coverage=(1.0, 1.0)), width=0.6)
    assert torch.equal(mask_of(wide, inside, 0, image), inside)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        *[(kind, {"coverage": (0, 0.1)}, "coverage") for kind in SIZED],
        (PerlinShape, {"coverage": (0.5, 1.1)}, "coverage"),
        (PerlinShape, {"coverage": (0.5, 0.4)}, "coverage"),
        (EllipsoidShape, {"volume": (5, 4)}, "volume"),
        (BoxShape, {"volume": (5, 6), "spacing": (1.0, 0.0)}, "spacing"),
        (PerlinShape, {"cells": (0, 4)}, "cells"),
        (EllipsoidShape, {"aspect": 0.5}, "aspect"),
        (TissueShape, {"shape": PerlinShape(), "width": 0}, "width"),
    ],
)
def test_ill_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)
