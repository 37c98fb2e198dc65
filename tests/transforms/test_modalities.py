"""Scans that lack modalities."""

from __future__ import annotations

import pytest
import torch
from monai.transforms import Compose

from ssmctb_monai.transforms import (
    AnotherPlaceSource,
    OffsetSource,
    RandAnomaly,
    RandDropModalities,
    RandDropModalitiesd,
    RestoreIntensityd,
    RobustScaleIntensityd,
    SelectChannelsd,
    TextureSource,
)
from ssmctb_monai.transforms.modalities import has_modality


@pytest.fixture
def image():
    return torch.rand(3, 9, 8, generator=torch.Generator().manual_seed(0)) + 0.1


@pytest.mark.parametrize(("prob", "expected"), [(0.5, (0, 0.5, 0.5)), ([0, 0.2, 1], (0, 0.2, 1)), (0, (0, 0, 0))])
def test_share_of_images_without_a_modality(image, prob, expected):
    drop = Compose([RandDropModalitiesd(prob=prob)]).set_random_state(0)
    before = image.clone()
    dropped = torch.stack([drop({"image": image})["image"] for _ in range(300)])
    present = torch.stack([has_modality(each) for each in dropped])
    assert (1 - present.float().mean(0)).tolist() == pytest.approx(expected, abs=0.09)  # three standard deviations
    assert (dropped[~present] == 0).all()
    assert (dropped[present] == image.expand_as(dropped)[present]).all()
    torch.testing.assert_close(image, before, rtol=0, atol=0)
    both = [not flags[1:].any() for flags in present]
    assert sum(both) / 300 == pytest.approx(expected[1] * expected[2], abs=0.08)  # each by itself


def test_arrays_keep_their_kind(image):
    assert type(RandDropModalities(1.0)(image.numpy())).__name__ == "ndarray"
    assert not RandDropModalities(1.0)(image.numpy())[1:].any()


@pytest.mark.parametrize(
    ("prob", "words"),
    [
        (1.5, r"prob must be in \[0, 1\], got 1.5"),
        ([0.5, 0.5, 0], "one for each of 3, 0 for the first, which is never left out"),
        ([0, 0.5], "one number for all modalities behind the first, or one for each of 3"),
    ],
)
def test_probabilities_that_cannot_be(image, prob, words):
    with pytest.raises(ValueError, match=words):
        RandDropModalities(prob)(image)


def test_an_only_modality_cannot_be_left_out(image):
    with pytest.raises(ValueError, match="for all modalities behind the first"):
        RandDropModalities(0.5)(image[:1])


@pytest.mark.parametrize(
    "source", [OffsetSource(modalities=["flair", "t1", "t2"]), TextureSource(), AnotherPlaceSource()]
)
def test_anomalies_lie_in_the_modalities_that_there_are(image, source):
    """Each shows in what is left, so that its label is true of what the network sees."""
    alone = RandDropModalities(1.0)(image)
    anomaly = RandAnomaly(2, prob=1.0, sources=source, count=(2, 2)).set_random_state(0)
    for _ in range(20):
        corrupted, clean, mask = anomaly(alone)
        assert not corrupted[1:].any()
        assert (clean == alone).all()
        assert (corrupted != clean).any(0)[mask[0] > 0].float().mean() > 0.5


def test_no_modality_is_left_for_an_anomaly(image):
    source = OffsetSource(presence=[0, 1, 1])
    with pytest.raises(ValueError, match=r"presence is 0 in every modality that the image has: \[0, 1, 1\]"):
        RandAnomaly(2, prob=1.0, sources=source)(RandDropModalities(1.0)(image))


def test_from_files_to_the_network_and_back(image):
    """Two files for three channels: the missing one is 0, whatever the others hold, and comes back as 0."""
    item = {"image": 100 * image[:2], "brain": torch.ones(1, 9, 8), "channels": [0, -1, 1]}
    whole = {"image": 100 * image[[0, 2, 1]], "brain": item["brain"]}
    prepare = Compose([SelectChannelsd(num_channels=3), RobustScaleIntensityd()])
    prepared, full = prepare(item), prepare(whole)
    torch.testing.assert_close(prepared["image"][[0, 2]], full["image"][[0, 2]], rtol=0, atol=0)
    assert has_modality(prepared["image"]).tolist() == [True, False, True]
    assert item["image"].all()
    restored = RestoreIntensityd("image")(prepared)["image"]
    torch.testing.assert_close(restored[[0, 2]], item["image"], atol=1e-3, rtol=0)
    assert not restored[1].any()


def test_a_file_of_zeros_is_no_missing_modality(image):
    item = {"image": torch.stack([image[0], torch.zeros(9, 8)]), "brain": torch.ones(1, 9, 8)}
    with pytest.raises(ValueError, match="channel 1, has the value 0"):
        RobustScaleIntensityd()(item)
