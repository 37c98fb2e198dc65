"""Patches of drawn sides, against the distributions of their papers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from anomaly_checks import images
from scipy.spatial.transform import Rotation
from scipy.stats import kstest

from ssmctb_monai.transforms import AreaPatchShape, GammaPatchShape, ScarShape, UniformPatchShape

KINDS = [UniformPatchShape, GammaPatchShape, AreaPatchShape, ScarShape]
QUANTILES = [0.05, 0.25, 0.5, 0.75, 0.95]


def mask_of(shape, inside, seed=0):
    level = shape.set_random_state(seed)(torch.zeros(1, *inside.shape), inside)
    assert level.shape == inside.shape
    return (level >= 0) & inside


def sides_of(shape, spatial_dims=2, count=3000):
    shape.set_random_state(0)
    return np.array([shape.sides(spatial_dims) for _ in range(count)])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kind", [*KINDS, lambda: GammaPatchShape(ellipsoids=5)])
def test_part_of_the_brain_is_never_empty(kind, spatial_dims):
    inside = images(spatial_dims)[1][1, 0] > 0
    one = torch.zeros_like(inside)
    one[(1,) * spatial_dims] = True
    for seed in range(8):
        assert mask_of(kind(), inside, seed).any()
        assert torch.equal(mask_of(kind(), one, seed), one)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_box_has_its_sides_and_lies_within_the_image(spatial_dims):
    inside = torch.ones(*[30, 40, 20][:spatial_dims], dtype=torch.bool)
    for seed in range(20):
        mask = mask_of(GammaPatchShape(), inside, seed)
        random = np.random.RandomState(seed)
        random.randint(mask.numel())
        expected = np.round(GammaPatchShape().set_random_state(state=random).sides(spatial_dims) * inside.shape)
        extent = [int(mask.movedim(axis, 0).flatten(1).any(1).sum()) for axis in range(spatial_dims)]
        assert extent == expected.clip(1).astype(int).tolist()
        assert int(mask.sum()) == np.prod(extent)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [("object", {}), ("texture", {"zoom": (0.5, 2.0)}), ("xray", {"least": 0.05, "scale": 0.03})],
)
def test_sides_of_natural_anomalies(kind, arguments):
    """Quantiles of what the paper's release has drawn, which are whole pixels of images of 224 x 224."""
    with np.load(Path(__file__).with_name("golden.npz")) as content:
        expected = content[f"{kind}/sides"]
    sides = np.floor(224 * sides_of(GammaPatchShape(**arguments))) / 224
    np.testing.assert_allclose(np.quantile(sides, QUANTILES), expected, rtol=0.1)


def test_bounds_of_natural_anomalies():
    sides = sides_of(GammaPatchShape(bounds=(0.1, 0.2)), 3)
    assert sides.min() == pytest.approx(0.1)
    assert sides.max() == pytest.approx(0.2)


def test_ellipsoids_lie_in_the_box_and_are_round():
    inside = torch.ones(60, 60, dtype=torch.bool)
    for seed in range(5):
        box = mask_of(GammaPatchShape(), inside, seed)
        one, five = (mask_of(GammaPatchShape(ellipsoids=count), inside, seed) for count in (1, 5))
        assert (one <= five).all()
        assert (five <= box).all()
        assert one.sum() < five.sum() < box.sum()


def test_area_and_aspect_of_cut_paste():
    sides = sides_of(AreaPatchShape())
    assert kstest(sides.prod(1), "uniform", (0.02, 0.13)).pvalue > 0.01
    ratio = np.log(sides[:, 1] / sides[:, 0]) / np.log(3.3)
    assert kstest(ratio, "uniform", (-1, 2)).pvalue > 0.01
    volume = sides_of(AreaPatchShape(), 3).prod(1)
    assert kstest(volume ** (2 / 3), "uniform", (0.02, 0.13)).pvalue > 0.01
    assert volume.min() == pytest.approx(0.003, rel=0.1)
    assert volume.max() == pytest.approx(0.058, rel=0.1)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_scars_are_thin_long_and_turned(spatial_dims):
    sides = 256 * np.sort(sides_of(ScarShape(width=(2 / 256, 9 / 256)), spatial_dims), axis=1)
    assert np.array_equal(sides[:, 0], sides[:, -2])
    assert kstest(sides[:, 0], "uniform", (2, 7)).pvalue > 0.01
    assert kstest(sides[:, -1], "uniform", (10, 15)).pvalue > 0.01
    shape = ScarShape(angle=30).set_random_state(0)
    turns = np.tile(np.eye(3), (300, 1, 1))
    turns[:, :spatial_dims, :spatial_dims] = [shape.turn(spatial_dims) for _ in range(300)]
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.tile(np.eye(3), (300, 1, 1)), atol=1e-9)
    angles = Rotation.from_matrix(turns).as_euler("zyx", degrees=True)[:, : 2 * spatial_dims - 3]
    assert -30 <= angles.min() < -28
    assert 28 < angles.max() <= 30
    inside = torch.ones([96] * spatial_dims, dtype=torch.bool)
    still = mask_of(ScarShape((0.05, 0.05), (0.5, 0.5), angle=0), inside)
    expected = {2: 5 * 48, 3: 5 * 5 * 48}[spatial_dims]
    assert int(still.sum()) == pytest.approx(expected, rel=0.45)


def test_sides_of_foreign_patches():
    sides = sides_of(UniformPatchShape(), 3)
    assert np.array_equal(sides[:, 0], sides[:, 2])
    assert kstest(sides[:, 0], "uniform", (0.1, 0.3)).pvalue > 0.01


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (UniformPatchShape, {"side": (0.4, 0.1)}, "side"),
        (GammaPatchShape, {"least": -0.1}, "least"),
        (GammaPatchShape, {"scale": 0}, "scale"),
        (GammaPatchShape, {"bounds": (0.1, 0.6)}, "bounds"),
        (GammaPatchShape, {"zoom": (0, 1)}, "zoom"),
        (GammaPatchShape, {"ellipsoids": -1}, "ellipsoids"),
        (AreaPatchShape, {"area": (0, 0.1)}, "area"),
        (AreaPatchShape, {"aspect": 0.5}, "aspect"),
        (ScarShape, {"width": (0.2, 0.1)}, "width"),
        (ScarShape, {"length": (0, 0.1)}, "length"),
        (ScarShape, {"angle": -1}, "angle"),
    ],
)
def test_ill_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_scars_of_small_images_are_a_voxel_wide():
    """So that turned ones do not pass between the voxels."""
    inside = torch.ones(32, 32, 32, dtype=torch.bool)
    scars = ScarShape(length=(8 / 32, 8 / 32))
    levels = [scars.set_random_state(seed)(torch.zeros(1, 32, 32, 32), inside) for seed in range(60)]
    assert min(int((level >= 0).sum()) for level in levels) >= 3
