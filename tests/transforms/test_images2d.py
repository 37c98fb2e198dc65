"""Images in 2D as volumes of one slice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Compose, Orientationd, ResampleToMatchd, Spacingd
from skimage.io import imsave

from ssmctb_monai.transforms import LoadImages2Dd


@pytest.fixture
def image(tmp_path):
    """4 rows, 6 columns; each pixel has its own value."""
    pixels = np.arange(4 * 6 * 4, dtype=np.uint8).reshape(4, 6, 4)
    pixels[..., 3] = 255
    imsave(tmp_path / "rgba.png", pixels, check_contrast=False)
    imsave(tmp_path / "rgb.png", pixels[..., :3], check_contrast=False)
    imsave(tmp_path / "grey.png", pixels[..., 0], check_contrast=False)
    imsave(tmp_path / "deep.png", pixels[..., 0].astype(np.uint16) * 300, check_contrast=False)
    mask = np.zeros((4, 6), dtype=np.uint8)
    mask[1, 4] = 255
    imsave(tmp_path / "mask.png", mask, check_contrast=False)
    return tmp_path, pixels


def test_axes_channels_and_mask(image):
    folder, pixels = image
    for name in ("rgb", "rgba"):
        item = {"image": [str(folder / f"{name}.png")], "label": str(folder / "mask.png"), "channels": [0, 1, 2]}
        loaded = LoadImages2Dd(num_channels=3, extent=12)(item)
        assert loaded["image"].shape == (3, 6, 4, 1)
        np.testing.assert_array_equal(loaded["image"][..., 0], pixels[..., :3].transpose(2, 1, 0))
        assert loaded["label"].nonzero().tolist() == [[0, 4, 1, 0]]
        assert loaded["brain"].shape == (1, 6, 4, 1)
        assert loaded["brain"].all()
        assert loaded["image"].affine.diagonal().tolist() == [-2, -2, 1, 1]
        assert "channels" not in loaded


@pytest.mark.parametrize(("name", "factor"), [("grey", 1), ("deep", 300)])
def test_grey_as_colours_and_colours_as_grey(image, name, factor):
    folder, pixels = image
    loaded = LoadImages2Dd(num_channels=3)({"image": str(folder / f"{name}.png")})["image"]
    assert loaded.shape == (3, 6, 4, 1)
    assert (loaded == factor * torch.from_numpy(pixels[..., 0].T.astype(np.float32))[..., None]).all()
    luminance = LoadImages2Dd(num_channels=1)({"image": str(folder / "rgb.png")})["image"][0, ..., 0]
    np.testing.assert_allclose(luminance, (pixels[..., :3] @ [0.2125, 0.7154, 0.0721]).T, rtol=1e-5)


@pytest.mark.parametrize("anomalous", [True, False])
def test_an_image_without_mask_is_anomalous_as_a_whole_or_not_at_all(image, anomalous):
    label = LoadImages2Dd()({"image": str(image[0] / "rgb.png"), "anomalous": anomalous})["label"]
    assert label.shape == (1, 6, 4, 1)
    assert (label == anomalous).all()


def test_way_to_the_network_and_back(image):
    """To a longer side of 12 pixels, and back onto the pixels of the image."""
    folder, pixels = image
    item = LoadImages2Dd(num_channels=3, extent=12)({"image": str(folder / "rgb.png")})
    there = Compose([Orientationd("image", "RAS", labels=None), Spacingd("image", (1, 1, 1))])(dict(item))
    assert there["image"].shape == (3, 12, 8, 1) or there["image"].shape == (3, 11, 7, 1)
    back = ResampleToMatchd("image", key_dst="brain", mode="bilinear", padding_mode="border")(
        {"image": there["image"], "brain": item["brain"]}
    )["image"]
    np.testing.assert_allclose(back[..., 0], pixels[..., :3].transpose(2, 1, 0), atol=1)


def test_refusals(image):
    folder, _ = image
    (folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken.png cannot be read as an image"):
        LoadImages2Dd()({"image": str(folder / "broken.png")})
    with pytest.raises(ValueError, match="num_channels must be one of 1, 3"):
        LoadImages2Dd(num_channels=2)
    with pytest.raises(ValueError, match="extent must be positive"):
        LoadImages2Dd(extent=0)
