"""Images in 2D as volumes of one slice, videos as volumes of frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from image_drawings import draw_videos
from monai.transforms import Compose, Orientationd, ResampleToMatchd, Spacingd
from PIL import Image
from skimage.io import imsave

from ssmctb_monai.transforms import LoadImages2Dd, RobustScaleIntensityd


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
        assert loaded["image"].affine.diagonal().tolist() == [-11 / 5, -11 / 5, 1, 1]
        assert "channels" not in loaded


@pytest.mark.parametrize(("name", "factor"), [("grey", 1), ("deep", 300)])
def test_grey_as_colours_and_colours_as_grey(image, name, factor):
    folder, pixels = image
    loaded = LoadImages2Dd(num_channels=3)({"image": str(folder / f"{name}.png")})["image"]
    assert loaded.shape == (3, 6, 4, 1)
    assert (loaded == factor * torch.from_numpy(pixels[..., 0].T.astype(np.float32))[..., None]).all()
    luminance = LoadImages2Dd(num_channels=1)({"image": str(folder / "rgb.png")})["image"][0, ..., 0]
    np.testing.assert_allclose(luminance, (pixels[..., :3] @ [0.2125, 0.7154, 0.0721]).T, rtol=1e-5)


def test_transparency_is_no_anomaly(tmp_path):
    mask = np.zeros((8, 9, 2), dtype=np.uint8)
    mask[..., 1] = 255
    mask[1, 4, 0] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    imsave(tmp_path / "image.png", mask[..., 0], check_contrast=False)
    loaded = LoadImages2Dd()({"image": str(tmp_path / "image.png"), "label": str(tmp_path / "mask.png")})
    assert loaded["label"].nonzero().tolist() == [[0, 4, 1, 0]]


def test_eight_bits_are_scaled_from_black_to_white(image, tmp_path):
    """A picture of a small thing before an even background, whose quartiles are all those of the background."""
    folder, _ = image
    pixels = np.full((20, 20), 250, dtype=np.uint8)
    pixels[8:12, 8:12] = np.arange(16).reshape(4, 4) * 10
    imsave(folder / "thing.png", pixels, check_contrast=False)
    scale = Compose([LoadImages2Dd(num_channels=3), RobustScaleIntensityd()])
    scaled = scale({"image": str(folder / "thing.png")})["image"]
    np.testing.assert_allclose(scaled[..., 0], np.broadcast_to(pixels.T / 255, (3, 20, 20)), atol=1e-6)
    video = LoadImages2Dd(extent=16)({"image": str(draw_videos(tmp_path) / "testing/frames/01_0000")})
    assert video["intensity_ranges"].tolist() == [[127.5, 255.0]] * 3
    assert "intensity_ranges" not in LoadImages2Dd()({"image": str(folder / "deep.png")})  # often less than 16 used


@pytest.mark.parametrize("anomalous", [True, False])
def test_an_image_without_mask_is_anomalous_as_a_whole_or_not_at_all(image, anomalous):
    label = LoadImages2Dd()({"image": str(image[0] / "rgb.png"), "anomalous": anomalous})["label"]
    assert label.shape == (1, 6, 4, 1)
    assert (label == anomalous).all()


def test_way_to_the_network_and_back(image):
    """To a longer side of 16 pixels, and back onto the pixels of the image."""
    folder, pixels = image
    item = LoadImages2Dd(num_channels=3, extent=16)({"image": str(folder / "rgb.png")})
    there = Compose([Orientationd("image", "RAS", labels=None), Spacingd("image", (1, 1, 1))])(dict(item))
    assert there["image"].shape == (3, 16, 10, 1)
    back = ResampleToMatchd("image", key_dst="brain", mode="bilinear", padding_mode="border")(
        {"image": there["image"], "brain": item["brain"]}
    )["image"]
    np.testing.assert_allclose(back[..., 0], pixels[..., :3].transpose(2, 1, 0), atol=1)


@pytest.mark.parametrize("size", [(7, 12), (40, 17), (33, 64), (101, 100)])
def test_the_longer_side_measures_the_extent(tmp_path, size):
    """So that an image is one window of the network, whichever size it has."""
    imsave(tmp_path / "image.png", np.zeros(size, dtype=np.uint8), check_contrast=False)
    item = LoadImages2Dd(num_channels=1, extent=32)({"image": str(tmp_path / "image.png")})
    resampled = Compose([Orientationd("image", "RAS", labels=None), Spacingd("image", (1, 1, 1))])(item)["image"]
    assert max(resampled.shape[1:]) == 32


def test_a_thin_line_stays_wherever_it_lies(tmp_path):
    """A line of one pixel in an image of eight times the extent."""
    seen = []
    for place in range(120, 128):
        pixels = np.zeros((256, 256), dtype=np.uint8)
        pixels[:, place] = 255
        imsave(tmp_path / "line.png", pixels, check_contrast=False)
        item = LoadImages2Dd(num_channels=1, extent=32)({"image": str(tmp_path / "line.png")})
        assert item["label"].sum() == 0
        seen.append(Spacingd("image", (1, 1, 1))(item)["image"].max().item())
    assert min(seen) > 0.5 * max(seen) > 0


def test_kinds_of_pixels(tmp_path):
    """Of four inks and of one bit."""
    colours = np.zeros((4, 6, 3), dtype=np.uint8)
    colours[..., 0] = 255
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "inks.tif")
    loaded = LoadImages2Dd(num_channels=3)({"image": str(tmp_path / "inks.tif")})["image"]
    np.testing.assert_array_equal(loaded[..., 0], colours.transpose(2, 1, 0))
    Image.fromarray(colours[..., 0] > 0).save(tmp_path / "bit.png")
    item = LoadImages2Dd(num_channels=1)({"image": str(tmp_path / "bit.png")})
    assert (item["image"] == 255).all()
    assert item["intensity_ranges"].tolist() == [[127.5, 255.0]]


def test_refusals(image):
    folder, _ = image
    (folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken.png cannot be read as an image"):
        LoadImages2Dd()({"image": str(folder / "broken.png")})
    with pytest.raises(ValueError, match="num_channels must be one of 1, 3"):
        LoadImages2Dd(num_channels=2)
    with pytest.raises(ValueError, match="extent must be at least 2"):
        LoadImages2Dd(extent=1)


# -------------------------------------------------------------------------------------------------------------- videos


def test_a_video_is_a_volume_of_its_frames(tmp_path):
    """Frames of 48 x 64, scaled to a longer side of 32: what is bright in them is so, from the third frame on."""
    root = draw_videos(tmp_path)
    folder, mask = root / "testing/frames/01_0000", root / "testing/test_pixel_mask/01_0000.npy"
    loaded = LoadImages2Dd(num_channels=1, extent=32)({"image": [str(folder)], "label": str(mask)})
    assert loaded["image"].shape == loaded["brain"].shape == loaded["label"].shape == (1, 32, 24, 6)
    assert loaded["image"].affine.diagonal().tolist() == [-1, -1, 1, 1]
    expected = np.zeros((32, 24, 6))
    expected[10:18, 5:13, 2:] = 1
    np.testing.assert_array_equal(loaded["label"][0], expected)
    square = loaded["image"][0, 10:18, 5:13].mean(dim=(0, 1))
    assert square[2:].min() > square[:2].max() + 20
    single = LoadImages2Dd(num_channels=1)({"image": str(folder / "3.jpg")})["image"]
    halves = single[0, ..., 0].reshape(32, 2, 24, 2).mean(dim=(1, 3))
    assert (loaded["image"][0, ..., 3] - halves).abs().mean() < 4  # antialiasing looks a little farther than halves
    assert LoadImages2Dd(num_channels=3, extent=64)({"image": str(folder)})["image"].shape == (3, 64, 48, 6)


def test_runs_of_anomalous_frames(tmp_path):
    folder = draw_videos(tmp_path) / "testing/frames/01_0000"
    for anomalous, expected in (([[0, 1], [3, 5]], [1, 0, 0, 1, 1, 0]), ([], [0] * 6), (False, [0] * 6)):
        label = LoadImages2Dd(extent=16)({"image": str(folder), "anomalous": anomalous})["label"]
        assert label.shape == (1, 16, 12, 6)
        assert label.amin(dim=(0, 1, 2)).tolist() == label.amax(dim=(0, 1, 2)).tolist() == expected


def test_videos_that_cannot_be(tmp_path):
    root = draw_videos(tmp_path)
    folder = root / "testing/frames/01_0000"
    np.save(tmp_path / "few.npy", np.zeros((5, 48, 64)))
    with pytest.raises(ValueError, match=r"few.npy has shape \(5, 48, 64\), but there are 6 frames"):
        LoadImages2Dd()({"image": str(folder), "label": str(tmp_path / "few.npy")})
    np.save(tmp_path / "wide.npy", np.zeros((6, 48, 80)))
    with pytest.raises(ValueError, match=r"wide.npy has masks of \(48, 80\), which scaled to .* would be distorted"):
        LoadImages2Dd()({"image": str(folder), "label": str(tmp_path / "wide.npy")})
    with pytest.raises(ValueError, match="01_0000 has 6 frames, but those from 4 to 7 are anomalous"):
        LoadImages2Dd()({"image": str(folder), "anomalous": [[4, 7]]})
    imsave(folder / "6.jpg", np.zeros((9, 9), dtype=np.uint8), check_contrast=False)
    with pytest.raises(ValueError, match=r"6.jpg has shape \(3, 9, 9\), but the frames before it have \(3, 48, 64\)"):
        LoadImages2Dd()({"image": str(folder)})
    with pytest.raises(ValueError, match="There are no frames in"):
        LoadImages2Dd()({"image": str(root / "testing")})
