"""Images in 2D as volumes of one slice, videos as volumes of their frames."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import ensure_tuple
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray
from skimage.io import imread
from torch.nn.functional import interpolate

from ssmctb_monai.checks import check_choice
from ssmctb_monai.data.image_folders import frame_files, load_labels


class LoadImages2Dd(Transform):
    """Loads an image in 2D, its mask and what else a scan has, as volumes of one slice, which all transforms take.

    The whole image counts as brain. Where there is no mask, nothing is an anomaly in a normal image, and all of it in
    an anomalous one: figures of the image are right, those of pixels not. An image may have any size: its longer side
    measures ``extent`` pixels once `Spacingd` has resampled it to a spacing of 1, and what is too fine for these pixels
    is smoothed away before. Of 8 bits, black and white are the ends of the range of intensities that
    `RobustScaleIntensityd` scales to [0, 1]: what is in a picture may be small before an even background, and quartiles
    then tell nothing of it.

    A folder is a video, and becomes a volume of its frames. They are scaled to the extent as they are read, since a
    video of its own size would take gigabytes; so maps of videos, and figures of their pixels, are of that size.

    Args:
        num_channels: 1 for grey, 3 for red, green and blue; the image may be either, with transparency or without.
        extent: number of pixels of the longer side at a spacing of 1, at least 2.

    Raises:
        ValueError: when an argument is outside its range, a file holds no image in 2D, or frames or their masks differ
            in size or number; the file is named.

    Example:
        >>> item = LoadImages2Dd(num_channels=3)({"image": ["crack_000.png"], "label": "crack_000_mask.png"})
        >>> item["image"].shape
        torch.Size([3, 1024, 1024, 1])
        >>> LoadImages2Dd()({"image": ["testing/frames/01"], "anomalous": [[78, 120]]})["image"].shape  # doctest: +SKIP
        torch.Size([3, 256, 144, 1439])
    """

    def __init__(self, num_channels: int = 3, extent: float = 256.0) -> None:
        check_choice(("1", "3"), num_channels=str(num_channels))
        if extent < 2:
            raise ValueError(f"extent must be at least 2, got {extent}.")
        self.num_channels = num_channels
        self.extent = extent

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Loads the files.

        Args:
            data: item with ``image``, a path or a list of one; ``label``, the path of the mask, for a video a ``.npy``
                of shape (frames, height, width); and, where there is no mask, ``anomalous``, whether there is something
                to find, or for a video the runs of frames in which there is, from a first one to one behind the last.

        Returns:
            The item with ``image``, ``label``, not 0 where the anomaly is, and ``brain``, of shape
            (channels, width, height, 1 or frames), and with ``intensity_ranges``, where pixels have 8 bits. Pixels run
            to the left and down, as in the displays of radiology.
        """
        (path,) = ensure_tuple(data["image"])[:1]
        if Path(path).is_dir():
            image, has_bytes = self._video(Path(path))
        else:
            pixels = _read(path)
            image, has_bytes = self._antialiased(self._coloured(pixels))[None], pixels.dtype == np.uint8
        if "label" in data:
            mask = self._mask(Path(data["label"]), image.shape[:3])
        else:
            anomalous = data.get("anomalous", False)
            mask = np.full(image.shape[:3], anomalous is True)
            for first, end in [] if isinstance(anomalous, bool) else anomalous:
                if end > len(mask):
                    raise ValueError(f"{path} has {len(mask)} frames, but those from {first} to {end} are anomalous.")
                mask[first:end] = True
        item = {key: value for key, value in data.items() if key != "channels"}
        item["image"] = self._volume(image, path)
        item["label"] = self._volume(mask[..., None], data.get("label", path))
        item["brain"] = self._volume(np.ones_like(image[..., :1]), path)
        if has_bytes:
            item["intensity_ranges"] = torch.tensor([[127.5, 255.0]] * self.num_channels)
        return item

    def _video(self, folder: Path) -> tuple[np.ndarray, bool]:
        """Frames of a video, shape (frames, height, width, channels), and whether all have 8 bits."""
        frames: list[np.ndarray] = []
        size: tuple[int, ...] = ()
        has_bytes = True
        for file in frame_files(folder):
            pixels = _read(file)
            has_bytes = has_bytes and pixels.dtype == np.uint8
            frame = torch.from_numpy(self._coloured(pixels).transpose(2, 0, 1).copy())
            size = size or tuple(frame.shape)
            if frame.shape != size:
                raise ValueError(f"{file} has shape {tuple(frame.shape)}, but the frames before it have {size}.")
            scaled = interpolate(frame[None], self._scaled(size[1:]), mode="bilinear", antialias=True)
            frames.append(scaled[0].numpy().transpose(1, 2, 0))
        if not frames:
            raise ValueError(f"There are no frames in {folder}.")
        return np.stack(frames), has_bytes

    def _scaled(self, size: tuple[int, ...]) -> list[int]:
        return [max(1, round(self.extent * side / max(size))) for side in size]

    def _mask(self, path: Path, shape: tuple[int, ...]) -> np.ndarray:
        """What is anomalous in an image, or scaled to a shape in the frames of a video, (frames, height, width)."""
        if path.suffix != ".npy":
            return _read(path).max(axis=-1)[None] > 0
        masks = load_labels(path)
        if masks.ndim != 3 or len(masks) != shape[0]:
            raise ValueError(f"{path} has shape {masks.shape}, but there are {shape[0]} frames.")
        size = self._scaled(masks.shape[1:])
        if any(abs(own - other) > 1 for own, other in zip(size, shape[1:], strict=True)):
            raise ValueError(f"{path} has masks of {masks.shape[1:]}, which scaled to {shape[1:]} would be distorted.")
        scaled = interpolate(torch.from_numpy(masks > 0).to(torch.uint8)[:, None], shape[1:], mode="nearest-exact")
        return scaled[:, 0].numpy() > 0

    def _coloured(self, image: np.ndarray) -> np.ndarray:
        """The channels that are asked for, float32."""
        colours = image.astype(np.float32)
        if self.num_channels == 1 and colours.shape[-1] == 3:
            return rgb2gray(colours)[..., None]
        return np.broadcast_to(colours, (*colours.shape[:2], self.num_channels))

    def _step(self, size: tuple[int, ...]) -> float:
        """Distance of the pixels of an image, whose outermost ones lie on those of the extent."""
        return (self.extent - 1) / max(1, max(size) - 1)

    def _antialiased(self, image: np.ndarray) -> np.ndarray:
        """Smoothed as scikit-image's ``resize`` does it before an image becomes smaller."""
        sigma = max(0.0, (1 / self._step(image.shape[:2]) - 1) / 2)
        return gaussian_filter(image, (sigma, sigma, 0), mode="nearest")

    def _volume(self, image: np.ndarray, path: PathLike) -> MetaTensor:
        step = self._step(image.shape[1:3])
        volume = torch.from_numpy(np.ascontiguousarray(image.transpose(3, 2, 1, 0), dtype=np.float32))
        affine = torch.diag(torch.tensor([-step, -step, 1.0, 1.0], dtype=torch.float64))
        return MetaTensor(volume, affine=affine, meta={"filename_or_obj": str(path)})


def _read(path: PathLike) -> np.ndarray:
    """Pixels without transparency, shape (height, width, 1 or 3)."""
    try:
        image = imread(str(path))
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 4:
            with Image.open(path) as picture:
                image = np.asarray(picture.convert("RGB"))  # of four inks, or of colours with transparency
    except Exception as error:  # of many kinds
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype == bool:
        image = 255 * image.astype(np.uint8)
    if image.ndim != 3 or image.shape[-1] > 4:
        raise ValueError(f"{path} has shape {image.shape}, but an image has two axes and at most four channels.")
    return image[..., : 3 if image.shape[-1] >= 3 else 1]
