"""Scans of lower resolution."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_data_type, convert_to_dst_type

from ssmctb_monai.checks import check_shares


class RandThickSlices(RandomizableTransform):
    """Makes an image as if scanned in thicker slices along one axis: averaged over them, and interpolated back.

    MONAI's `RandSimulateLowResolution` lowers the resolution along all axes alike, by single voxels; clinical scans
    have slices of several millimetres along one axis, each the mean of what lies in it. TorchIO's `RandomAnisotropy` is
    the same idea without the mean.

    Args:
        prob: probability that an image is changed.
        thickness: largest thickness in voxels, at least 1; drawn uniformly from 1.

    Raises:
        ValueError: when an argument is outside its range.

    Example:
        >>> thick = RandThickSlices(prob=1.0).set_random_state(0)(image)
    """

    def __init__(self, prob: float = 0.3, thickness: float = 4.0) -> None:
        super().__init__(prob)
        check_shares(prob=prob)
        if thickness < 1:
            raise ValueError(f"thickness must be at least 1, got {thickness}.")
        self.thickness = thickness

    def randomize(self, data: int) -> None:
        """Draws axis and thickness.

        Args:
            data: number of spatial axes.
        """
        super().randomize(None)
        self.axis = int(self.R.randint(data))
        self.drawn = self.R.uniform(1, self.thickness)

    def __call__(self, image: NdarrayOrTensor) -> NdarrayOrTensor:
        """Changes an image.

        Args:
            image: shape (channels, height, width[, depth]).

        Returns:
            Image of the same shape and kind; as it was where it was not to be changed.
        """
        self.randomize(image.ndim - 1)
        count = max(2, round(image.shape[1 + self.axis] / self.drawn))
        if not self._do_transform or count >= image.shape[1 + self.axis]:
            return image
        tensor = convert_data_type(image, torch.Tensor, dtype=torch.float32)[0]
        lines = tensor.movedim(1 + self.axis, -1)
        slices = F.adaptive_avg_pool1d(lines.flatten(0, -2), count)
        thick = F.interpolate(slices[:, None], lines.shape[-1], mode="linear")[:, 0]
        return convert_to_dst_type(thick.view(lines.shape).movedim(-1, 1 + self.axis), image)[0]


class RandThickSlicesd(RandomizableTransform, MapTransform):
    """Dictionary-based `RandThickSlices`.

    Args:
        keys: keys of the images; each is changed by draws of its own.
        prob: probability that an image is changed.
        thickness: largest thickness in voxels, at least 1; drawn uniformly from 1.
    """

    def __init__(self, keys: KeysCollection = "image", prob: float = 0.3, thickness: float = 4.0) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        self.thicken = RandThickSlices(prob, thickness)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandThickSlicesd:
        """Seeds all random draws.

        Args:
            seed: seed.
            state: random state instead of a seed.

        Returns:
            The transform.
        """
        super().set_random_state(seed, state)
        self.thicken.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Changes the images.

        Args:
            data: item with the images.

        Returns:
            The item with changed images.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.thicken(item[key])
        return item
