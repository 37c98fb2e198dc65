"""Brain mask and choice of channels."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, Spacingd
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_li

from ssmctb_monai.transforms import BrainMask, BrainMaskd, SelectChannelsd

SIZES = {2: (16, 13), 3: (12, 13, 11)}


def ball(spatial_dims, radius=4.0):
    size = SIZES[spatial_dims]
    grid = np.meshgrid(*(np.arange(n) - n // 2 for n in size), indexing="ij")
    return sum(axis**2 for axis in grid) <= radius**2


def head(spatial_dims, backgrounds=(0.0,), seed=0):
    """Image with values of its own in a ball, one background per channel, and the ball."""
    brain = ball(spatial_dims)
    values = np.random.default_rng(seed).normal(10, 1, (len(backgrounds), *brain.shape)).astype(np.float32)
    backgrounds = np.reshape(backgrounds, (-1, *[1] * spatial_dims))
    return np.where(brain, values, backgrounds).astype(np.float32), brain[None]


def named(array, name="/data/case_7_flair.nii.gz"):
    return MetaTensor(torch.as_tensor(array), meta={"filename_or_obj": name})


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("backgrounds", [(0.0,), (-1.73,), (0.0, 0.0), (-0.412, -2.5, 0.0)], ids=str)
def test_background_of_any_value(spatial_dims, backgrounds):
    image, brain = head(spatial_dims, backgrounds)
    mask = BrainMask()(torch.from_numpy(image))
    assert mask.dtype == torch.uint8
    np.testing.assert_array_equal(mask.numpy(), brain)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float64])
def test_numpy_images_of_any_type(dtype):
    image, brain = head(3)
    mask = BrainMask()(image.astype(dtype))
    assert isinstance(mask, np.ndarray)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, brain)


def test_voxel_is_brain_where_any_channel_differs():
    image, brain = head(2, (0.0, -1.0))
    left = np.arange(SIZES[2][0])[:, None] < SIZES[2][0] // 2
    image[0][brain[0] & left] = 0.0
    image[1][brain[0] & ~left] = -1.0
    np.testing.assert_array_equal(BrainMask()(image), brain)


@pytest.mark.parametrize("background", [-2.0, 50.0])
def test_background_is_found_where_the_field_of_view_is_cropped(background):
    """The brain, brighter or darker, reaches four of the six faces; background prevails on the faces all the same."""
    image, brain = head(3, (background,))
    image, brain = image[:, 3:, 3:, :], brain[:, 3:, 3:, :]
    assert brain[0, 0].any()
    assert brain[0, :, 0].any()
    np.testing.assert_array_equal(BrainMask()(image), brain)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_holes_are_filled_and_specks_removed(spatial_dims):
    image, brain = head(spatial_dims, (-1.0,))
    centre = tuple(n // 2 for n in SIZES[spatial_dims])
    image[(0, *centre)] = -1.0  # such as a ventricle
    image[(0, *[slice(0, 2)] * spatial_dims)] = 5.0  # such as a mark in the corner
    np.testing.assert_array_equal(BrainMask()(image), brain)


def test_input_is_not_modified():
    image, _ = head(3, (-1.0,))
    image[0, 6, 6, 5] = -1.0
    kept = image.copy()
    BrainMask()(image)
    tensor = torch.from_numpy(image)
    BrainMask()(tensor)
    np.testing.assert_array_equal(image, kept)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused_by_file(value):
    image, _ = head(2)
    image[0, 3, 3] = value
    with pytest.raises(ValueError, match=r"case_7_flair\.nii\.gz.*NaN or infinite"):
        BrainMask()(named(image))


@pytest.mark.parametrize("value", [0.0, -3.5])
def test_empty_volume_is_refused_by_file(value):
    with pytest.raises(ValueError, match=r"case_7_flair\.nii\.gz.*nothing but background"):
        BrainMask()(named(np.full((2, 5, 5, 5), value, np.float32)))


def test_image_without_a_name_is_told_by_its_shape():
    with pytest.raises(ValueError, match=r"\(1, 4, 5\)"):
        BrainMask()(np.zeros((1, 4, 5), np.float32))


# ---------------------------------------------------------------------------------------------------------- dictionary


def test_dictionary_adds_the_mask_and_leaves_the_item_alone():
    image, brain = head(3)
    data = {"image": torch.from_numpy(image), "patient": "a"}
    item = BrainMaskd()(data)
    assert set(data) == {"image", "patient"}
    assert item["patient"] == "a"
    np.testing.assert_array_equal(item["brain"].numpy(), brain)
    assert set(BrainMaskd("x", brain_key="y")({"x": data["image"]})) == {"x", "y"}


def test_given_mask_counts_and_is_made_binary():
    image, brain = head(3)
    given = np.zeros_like(brain, dtype=np.float32)
    given[0, 5:8, 5:8, 5:8] = 0.99999997
    given[0, 5, 5, 5] = 1e-7
    item = BrainMaskd()({"image": torch.from_numpy(image), "brain": torch.from_numpy(given)})
    assert item["brain"].dtype == torch.uint8
    np.testing.assert_array_equal(item["brain"].numpy(), given > 0.5)
    assert item["brain"].sum() == 26


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, MetaTensor])
def test_given_mask_keeps_its_kind(kind):
    image, brain = head(2)
    mask = BrainMaskd()({"image": kind(image), "brain": kind(brain.astype(np.float32))})["brain"]
    assert type(mask) is type(kind(image))
    np.testing.assert_array_equal(np.asarray(mask), brain)


def test_shape_mismatch_is_refused_by_file():
    image, brain = head(3)
    with pytest.raises(ValueError, match=r"mask\.nii has shape \(12, 13, 10\), but .*case_7.* has \(12, 13, 11\)"):
        BrainMaskd()({"image": named(image), "brain": named(brain[..., :-1], "mask.nii")})


def test_empty_given_mask_is_refused_by_file():
    image, brain = head(3)
    with pytest.raises(ValueError, match=r"mask\.nii is empty"):
        BrainMaskd()({"image": named(image), "brain": named(np.zeros_like(brain), "mask.nii")})


def test_unusable_image_is_refused_even_with_a_given_mask():
    image, brain = head(3)
    image[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="case_7"):
        BrainMaskd()({"image": named(image), "brain": named(brain)})


def oblique_lps() -> np.ndarray:
    angle = 0.2
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, -1.0, 1.5])
    affine[:3, 3] = 40, 30, -20
    return affine


@pytest.mark.parametrize("given", [False, True])
def test_mask_stays_on_the_image_through_orientation_and_spacing(given):
    """The mask has the image's affine and not one of its own, so both are resampled alike."""
    brain = ball(3)
    brain[:4] = False  # not symmetric, so that a missed flip is seen
    item = {"image": MetaTensor(torch.from_numpy(brain[None].astype(np.float32) * 3), affine=oblique_lps())}
    if given:
        item["brain"] = MetaTensor(torch.from_numpy(brain[None].astype(np.float32)), affine=oblique_lps())
    item = BrainMaskd()(item)
    np.testing.assert_allclose(item["brain"].affine, oblique_lps())
    np.testing.assert_allclose(item["image"].affine, oblique_lps())
    keys = ["image", "brain"]
    moved = Compose([Orientationd(keys, "RAS", labels=None), Spacingd(keys, (0.7, 0.8, 1.1), mode="nearest")])(item)
    assert moved["image"].shape != item["image"].shape
    np.testing.assert_allclose(moved["brain"].affine, moved["image"].affine)
    np.testing.assert_array_equal(moved["brain"].numpy(), moved["image"].numpy() > 1.5)
    assert moved["brain"].sum() > 300


@pytest.mark.parametrize(("share", "warns"), [(1.0, True), (0.9, False)])
def test_noisy_background_is_warned_of(caplog, share, warns):
    image = torch.zeros(1, 10, 10, 10)
    image[:, : int(10 * share)] = torch.rand(int(10 * share), 10, 10) + 1
    with caplog.at_level(logging.WARNING):
        mask = BrainMask()(named(image))
    assert mask.float().mean() == pytest.approx(share, abs=0.002)
    assert ("case_7_flair.nii.gz has no background of one value: 100 % of it count as brain" in caplog.text) is warns


@pytest.mark.parametrize("offset", [0.0, -500.0])
def test_head_in_noisy_air(caplog, offset):
    """Two channels: what either shows above its noise is head, of its first half or of its second."""
    generator = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(40) - 20] * 2, np.arange(24) - 12, indexing="ij"))
    inside = (grid**2).sum(0) <= 100
    image = np.abs(generator.normal(0, 4, (2, *inside.shape)))
    image[0][inside & (grid[0] < 3)] += 80
    image[1][inside & (grid[0] >= 0)] += 60
    image[0, 0, 0, 0] = 400  # an outlier
    image[0][(grid**2).sum(0) <= 9] = 0  # such as a dark ventricle
    with caplog.at_level(logging.WARNING):
        mask = BrainMask("noise")((image + offset).astype(np.float32))[0] > 0
    assert not caplog.records
    assert (mask & inside).sum() / inside.sum() > 0.99
    assert not mask[(grid**2).sum(0) > 12**2].any()  # smoothing adds a voxel or two at the rim
    assert BrainMask()((image + offset).astype(np.float32)).mean() > 0.99


def test_threshold_is_that_of_li():
    image = np.abs(np.random.default_rng(0).normal(0, 1, (1, 20, 20, 20))).astype(np.float32)
    image[:, 5:15, 5:15, 5:15] += 6
    smooth = gaussian_filter(image[0], 1)
    np.testing.assert_array_equal(BrainMask("noise")(image)[0], smooth > threshold_li(smooth))


def test_dictionary_takes_the_kind_of_background():
    image = np.random.default_rng(0).normal(0, 1, (1, 20, 20, 20)).astype(np.float32)
    image[:, 5:15, 5:15, 5:15] += 20
    assert 1000 <= BrainMaskd("image", background="noise")({"image": image})["brain"].sum() < 2000
    assert BrainMaskd("image")({"image": image})["brain"].sum() > 7900


def test_constant_image_has_no_head_either():
    with pytest.raises(ValueError, match=r"case_7_flair.nii.gz holds nothing but background"):
        BrainMask("noise")(named(np.ones((1, 6, 6, 6), dtype=np.float32)))


def test_unknown_background_is_refused():
    with pytest.raises(ValueError, match="background must be one of"):
        BrainMask("otsu")


# ------------------------------------------------------------------------------------------------------------ channels


def test_channels_are_picked_in_the_order_asked_for():
    image = named(torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 2, 3, 4).clone())
    item = SelectChannelsd()({"image": image, "channels": [3, 0]})
    assert item["image"][:, 0, 0, 0].tolist() == [3.0, 0.0]
    assert item["image"].shape == (2, 2, 3, 4)
    assert item["image"].meta["filename_or_obj"] == image.meta["filename_or_obj"]


def test_channels_as_numpy_and_under_other_keys():
    array = np.arange(3.0).reshape(3, 1, 1)
    item = SelectChannelsd(["a", "b"], channels_key="wanted")({"a": array, "b": array + 5, "wanted": np.array([1])})
    assert (item["a"].tolist(), item["b"].tolist()) == ([[[1.0]]], [[[6.0]]])


def test_items_without_channels_pass():
    image = torch.rand(3, 4, 4)
    assert SelectChannelsd()({"image": image})["image"] is image


@pytest.mark.parametrize(("channels", "expected"), [(None, 2), ([1], 1), ([3, 0, 1], 3)])
def test_number_of_channels(channels, expected):
    image = named(torch.rand(4 if channels else 2, 5, 4, 3))
    item = {"image": image, **({"channels": channels} if channels else {})}
    assert len(SelectChannelsd(num_channels=expected)(item)["image"]) == expected
    with pytest.raises(ValueError, match=rf"case_7_flair.* has {expected} channels, but 4 are asked for"):
        SelectChannelsd(num_channels=4)(item)
