"""Robust scaling inside the brain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from ssmctb_monai.transforms import (
    RandContrast,
    RandContrastd,
    RestoreIntensityd,
    RobustScaleIntensity,
    RobustScaleIntensityd,
)


@pytest.fixture
def image():
    return torch.randn(2, 12, 11, 10, generator=torch.Generator().manual_seed(0)) * 30 + 200


@pytest.fixture
def brain():
    mask = torch.zeros(1, 12, 11, 10)
    mask[:, 2:10, 3:9, 1:8] = 1
    return mask


def test_by_hand():
    # Quartiles of 0, 10, …, 80 are 20, 40, 60: 1 is 40 + 2 · 40 and 0 is 40 - 2 · 40.
    image = torch.tensor([[0.0, 10, 20, 30, 40, 50, 60, 70, 80, -500, 7]])[:, None]
    brain = torch.tensor([[1.0] * 9 + [0, 0]])[:, None]
    scaled = RobustScaleIntensity(limit=2)(image, brain)
    expected = [0.25, 0.3125, 0.375, 0.4375, 0.5, 0.5625, 0.625, 0.6875, 0.75, 0, 0]
    torch.testing.assert_close(scaled[0, 0], torch.tensor(expected))
    assert scaled.dtype == torch.float32
    # With half of that limit the ends are at 0 and 80, and with a quarter what lies beyond 20 and 60 is clipped.
    expected = [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1, 0, 0]
    torch.testing.assert_close(RobustScaleIntensity(limit=1)(image, brain)[0, 0], torch.tensor(expected))
    expected = [0.0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 0, 0]
    torch.testing.assert_close(RobustScaleIntensity(limit=0.5)(image, brain)[0, 0], torch.tensor(expected))


def test_default_limit_is_four_interquartile_ranges(image, brain):
    torch.testing.assert_close(RobustScaleIntensity()(image, brain), RobustScaleIntensity(limit=4)(image, brain))


def test_outliers_change_nothing_else(image, brain):
    scaled = RobustScaleIntensity()(image, brain)
    inside = image[0][brain[0] > 0]
    top = (image[0] >= inside.sort().values[-5]) & (brain[0] > 0)
    spoilt = image.clone()
    spoilt[0][top] = 32767
    result = RobustScaleIntensity()(spoilt, brain)
    torch.testing.assert_close(result[0][~top], scaled[0][~top], atol=0, rtol=0)
    assert (result[0][top] == 1).all()
    assert 0.3 < result[0][(brain[0] > 0) & ~top].mean() < 0.7


def test_outside_of_the_brain_counts_for_nothing(image, brain):
    other = torch.where(brain > 0, image, torch.tensor(32767.0))
    torch.testing.assert_close(RobustScaleIntensity()(other, brain), RobustScaleIntensity()(image, brain))


@pytest.mark.parametrize(("factor", "offset"), [(0.01, -2.0), (7.0, 0.0), (1.0, 1000.0)])
def test_images_that_were_scaled_before_come_out_the_same(image, brain, factor, offset):
    scaled = RobustScaleIntensity()(image, brain)
    torch.testing.assert_close(RobustScaleIntensity()(factor * image + offset, brain), scaled, atol=2e-5, rtol=0)


def test_background_is_0_and_brain_in_range(image, brain):
    scaled = RobustScaleIntensity(limit=0.5)(image, brain)
    assert (scaled[:, brain[0] == 0] == 0).all()
    inside = scaled[:, brain[0] > 0]
    assert (inside.min(), inside.max()) == (0, 1)
    torch.testing.assert_close(inside.quantile(0.5, dim=1), torch.full((2,), 0.5))


def test_channels_are_independent(image, brain):
    scaled = RobustScaleIntensity()(image, brain)
    image[1] = image[1] * 50 - 3
    again = RobustScaleIntensity()(image, brain)
    torch.testing.assert_close(again[0], scaled[0], atol=0, rtol=0)
    torch.testing.assert_close(RobustScaleIntensity()(image[1:], brain), again[1:])


def test_input_is_not_modified_and_its_kind_is_kept(image, brain):
    kept = image.clone()
    assert isinstance(RobustScaleIntensity()(image.numpy(), brain.numpy()), np.ndarray)
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    scaled = RobustScaleIntensity()(MetaTensor(image, affine=affine), brain)
    assert isinstance(scaled, MetaTensor)
    torch.testing.assert_close(scaled.affine, affine)
    torch.testing.assert_close(image, kept, atol=0, rtol=0)


def test_integer_images_keep_their_digits(brain, image):
    whole = image.round()
    expected = RobustScaleIntensity()(whole, brain)
    torch.testing.assert_close(RobustScaleIntensity()(whole.to(torch.int16), brain), expected)
    assert len(expected[0][brain[0] > 0].unique()) > 50


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_brain_is_refused_by_file(image, brain, value):
    image[1][brain[0] > 0] = value
    with pytest.raises(ValueError, match=r"case_7\.nii, channel 1"):
        RobustScaleIntensity()(MetaTensor(image, meta={"filename_or_obj": "case_7.nii"}), brain)


def test_empty_brain_is_refused_by_file(image, brain):
    with pytest.raises(ValueError, match=r"case_7\.nii"):
        RobustScaleIntensity()(MetaTensor(image, meta={"filename_or_obj": "case_7.nii"}), torch.zeros_like(brain))


@pytest.mark.parametrize("limit", [0, -1.0])
def test_ill_limit(limit):
    with pytest.raises(ValueError, match="limit"):
        RobustScaleIntensity(limit)


def test_dictionary(image, brain):
    data = {"a": image, "b": image * 2, "c": image, "mask": brain}
    item = RobustScaleIntensityd(["a", "b"], brain_key="mask", limit=1.5)(data)
    expected = RobustScaleIntensity(1.5)(image, brain)
    torch.testing.assert_close(item["a"], expected)
    torch.testing.assert_close(item["b"], expected)
    assert item["c"] is data["c"]
    assert data["a"] is image
    torch.testing.assert_close(
        RobustScaleIntensityd()({"image": image, "brain": brain})["image"], RobustScaleIntensity()(image, brain)
    )


def test_ranges_by_hand():
    # Quartiles of 0, 10, …, 80 are 20, 40, 60: with a limit of 2, 0.5 is 40 and the ends are 160 apart.
    image = torch.tensor([[0.0, 10, 20, 30, 40, 50, 60, 70, 80, -500]])[:, None]
    brain = torch.tensor([[1.0] * 9 + [0]])[:, None]
    ranges = RobustScaleIntensity(limit=2).ranges(torch.cat([image, 3 * image + 1]), brain)
    assert ranges.tolist() == [[40, 160], [121, 480]]


def test_known_ranges_are_kept(image, brain):
    ranges = torch.tensor([[127.5, 255.0]]).repeat(len(image), 1)
    item = RobustScaleIntensityd()({"image": image, "brain": brain, "intensity_ranges": ranges})
    torch.testing.assert_close(item["image"], torch.where(brain > 0, image / 255, 0).clamp(0, 1))
    assert item["intensity_ranges"] is ranges


@pytest.mark.parametrize("with_meta", [False, True])
def test_restored_intensities_are_those_of_the_scan(image, brain, with_meta):
    image = MetaTensor(image, affine=torch.diag(torch.tensor([2.0, 3, 4, 1]))) if with_meta else image
    item = RobustScaleIntensityd()({"image": image, "brain": brain})
    item["reconstruction"] = item["image"] * 1
    restored = RestoreIntensityd()(item)["reconstruction"]
    inside = (brain > 0).expand_as(image)
    torch.testing.assert_close(torch.as_tensor(restored)[inside], torch.as_tensor(image)[inside], atol=1e-3, rtol=0)
    assert isinstance(restored, MetaTensor) is with_meta
    if with_meta:
        assert torch.equal(restored.affine, image.affine)


def test_clipped_intensities_come_back_at_the_ends_of_the_range(image, brain):
    image[0][brain[0] > 0] += (
        torch.linspace(-1, 1, int(brain.sum())).sign() * 1e5 * (torch.arange(int(brain.sum())) < 3)
    )
    item = RobustScaleIntensityd(limit=2, ranges_key="limits")({"image": image, "brain": brain})
    restored = RestoreIntensityd("image", ranges_key="limits")(item)["image"]
    median, width = item["limits"][0]
    torch.testing.assert_close(restored[0][brain[0] > 0].min(), median - width / 2)


def test_restoring_what_is_missing():
    with pytest.raises(KeyError, match="reconstruction"):
        RestoreIntensityd()({"intensity_ranges": torch.ones(1, 2)})
    assert RestoreIntensityd(allow_missing_keys=True)({"image": 3}) == {"image": 3}


# ------------------------------------------------------------------------------------------------------------- contrast


def contrasts(image, brain, seeds=40, **arguments):
    return [
        RandContrast(**{"prob": 1.0, **arguments}).set_random_state(seed)(image, brain).clone() for seed in range(seeds)
    ]


@pytest.fixture
def two_values():
    """Two channels of 0.5 and 0.7 in the brain, 0 outside."""
    brain = torch.zeros(1, 6, 6, dtype=torch.uint8)
    brain[:, 1:5, 1:5] = 1
    scaled = torch.full((2, 6, 6), 0.5)
    scaled[:, 3:] = 0.7
    return scaled * brain, brain


def test_contrast_turns_about_the_median_and_brightness_shifts_it(two_values):
    scaled, brain = two_values
    factors, offsets = [], []
    for changed in contrasts(scaled, brain, contrast=0.3, brightness=0.05):
        assert (changed[:, brain[0] == 0] == 0).all()
        offsets.append(changed[:, 1, 1] - 0.5)
        factors.append((changed[:, 3, 1] - changed[:, 1, 1]) / 0.2)
    factors, offsets = torch.stack(factors), torch.stack(offsets)
    assert -0.05 <= offsets.min() < -0.04
    assert 0.04 < offsets.max() <= 0.05
    assert -0.3 <= factors.log().min() < -0.25
    assert 0.25 < factors.log().max() <= 0.3
    for drawn in (factors.log(), offsets):
        assert (drawn[:, 0] != drawn[:, 1]).all()  # drawn per channel
        assert (drawn[:, 0] * drawn[:, 1] < 0).any()


def test_without_contrast_or_brightness_the_other_is_left(two_values):
    scaled, brain = two_values
    for changed in contrasts(scaled, brain, contrast=0.0, brightness=0.05, seeds=5):
        torch.testing.assert_close(changed[:, 3, 1] - changed[:, 1, 1], torch.full((2,), 0.2))
    for changed in contrasts(scaled, brain, contrast=0.3, brightness=0.0, seeds=5):
        torch.testing.assert_close(changed[:, 1, 1], torch.full((2,), 0.5))
    for changed in contrasts(scaled, brain, contrast=0.0, brightness=0.0, seeds=2):
        torch.testing.assert_close(changed, scaled)


def test_changed_images_stay_in_range(two_values):
    brain = two_values[1]
    ends = torch.zeros(1, 6, 6)
    ends[:, :3] = 1.0
    for changed in contrasts(ends * brain, brain, contrast=1.0, brightness=0.5):
        assert changed.min() >= 0
        assert changed.max() <= 1


def test_share_of_changed_images(two_values):
    scaled, brain = two_values
    changed = sum(not torch.equal(result, scaled) for result in contrasts(scaled, brain, seeds=200, prob=0.3))
    assert 40 < changed < 80


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, lambda x: MetaTensor(x, affine=torch.eye(4) * 2)])
def test_contrast_keeps_kind_and_input(two_values, kind):
    scaled, brain = two_values
    given = kind(scaled.clone())
    changed = RandContrast(prob=1.0).set_random_state(0)(given, kind(brain))
    assert type(changed) is type(given)
    assert not np.array_equal(np.asarray(changed), np.asarray(given))
    np.testing.assert_array_equal(np.asarray(given), scaled.numpy())


def test_contrast_of_dictionaries_follows_its_seed(two_values):
    scaled, brain = two_values
    item = {"image": scaled, "brain": brain, "case_id": "A"}
    array = RandContrast(0.9, contrast=0.2, brightness=0.1).set_random_state(3)
    dictionary = RandContrastd("image", prob=0.9, contrast=0.2, brightness=0.1).set_random_state(3)
    for _ in range(5):
        result = dictionary(item)
        torch.testing.assert_close(result["image"], array(scaled, brain))
        assert result["brain"] is brain
        assert item["image"] is scaled
    other = RandContrastd(["image"], brain_key="mask", prob=1.0).set_random_state(4)
    assert not torch.equal(other({"image": scaled, "mask": brain})["image"], scaled)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"prob": 1.1}, "prob"), ({"contrast": -0.1}, "contrast"), ({"brightness": -0.1}, "brightness")],
)
def test_ill_contrast(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandContrast(**arguments)


def test_gamma_bends_around_the_median(image, brain):
    scaled = RobustScaleIntensity()(image, brain)
    change = RandContrast(prob=1.0, contrast=0, brightness=0, gamma=0.4).set_random_state(0)
    changed = change(scaled, brain)
    for channel, result, exponent in zip(scaled, changed, change.exponents, strict=True):
        assert abs(np.log(exponent)) <= 0.4
        expected = (channel**exponent - 0.5**exponent + 0.5).clamp(0, 1) * brain[0]
        torch.testing.assert_close(result, expected, check_dtype=False)
    torch.testing.assert_close(changed[:, brain[0] > 0].quantile(0.5, dim=1), torch.full((2,), 0.5))
    assert not torch.allclose(changed, scaled)
    with pytest.raises(ValueError, match="gamma"):
        RandContrast(gamma=-0.1)
    same = RandContrastd("image", prob=1.0, contrast=0, brightness=0, gamma=0.4).set_random_state(0)
    torch.testing.assert_close(same({"image": scaled, "brain": brain})["image"], changed)
