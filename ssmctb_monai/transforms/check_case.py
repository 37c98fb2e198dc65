"""Checks of a case that has just been loaded."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_data_type, convert_to_dst_type

from ssmctb_monai.data.checks import has_gaps, has_whole_labels
from ssmctb_monai.data.readers import grid_distance
from ssmctb_monai.transforms.brain import source_name


class CheckCased(MapTransform):
    """Refuses a case whose files contradict each other or hold values that cannot be; the file is named.

    NaN and infinite values outside of a brain mask that the case brings along are background, as several programs
    write it: the image gets its lowest value in the brain there, the segmentation 0.

    Use it before anything hides the fault: ``AsDiscreted`` makes 0 or 1 of any label, NaN included, and ``Spacingd``
    puts a shifted segmentation on the image's grid as if all were well. A brain mask or an image without any brain is
    refused by `BrainMaskd`.

    Args:
        keys: keys of image, segmentation and brain mask, shape (channels, ...); those that are absent are passed over.
        label_key: key of the segmentation, which has one channel of whole numbers of at least 0.
        brain_key: key of the brain mask.

    Example:
        >>> load = Compose([LoadImaged(["image", "label"], ensure_channel_first=True), CheckCased()])
    """

    def __init__(
        self, keys: KeysCollection = ("image", "label", "brain"), label_key: str = "label", brain_key: str = "brain"
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.label_key = label_key
        self.brain_key = brain_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Checks the case.

        Args:
            data: item as loaded.

        Returns:
            The item, as it was but for gaps outside of the brain.

        Raises:
            ValueError: when an image is no volume, voxels of the brain are NaN or infinite, a segmentation is negative,
                fractional or has several channels, or shape or affine (by more than 0.05 of a voxel at a corner) differ
                from those of the first key.
        """
        item = dict(data)
        brain = convert_data_type(item[self.brain_key], np.ndarray)[0] > 0.5 if self.brain_key in item else None
        reference: Any = None
        for key in self.key_iterator(item):
            volume, name = item[key], source_name(item[key])
            array = convert_data_type(volume, np.ndarray)[0]
            if array.ndim != 4:
                raise ValueError(f"{name} has shape {tuple(array.shape[1:])}, but a volume has three axes.")
            if has_gaps(array, None if key == self.brain_key else brain):
                raise ValueError(f"{name} holds NaN or infinite values: repair or leave out this case.")
            if brain is not None and not np.isfinite(array).all():
                array = np.where(np.isfinite(array), array, 0 if key == self.label_key else _lowest(array, brain))
                item[key] = volume = convert_to_dst_type(array, volume)[0]
            if key == self.label_key and len(array) != 1:
                raise ValueError(f"{name} has {len(array)} channels, but a segmentation has one.")
            if key == self.label_key and not has_whole_labels(array):
                raise ValueError(f"{name} has labels that are negative or not whole numbers.")
            if reference is None:
                reference = volume
            if volume.shape[1:] != reference.shape[1:]:
                raise ValueError(
                    f"{name} has shape {tuple(volume.shape[1:])}, "
                    f"but {source_name(reference)} has {tuple(reference.shape[1:])}."
                )
            if not isinstance(volume, MetaTensor) or not isinstance(reference, MetaTensor):
                continue
            if distance := grid_distance(volume.affine.numpy(), reference.affine.numpy(), volume.shape[1:]):
                raise ValueError(
                    f"{name} lies elsewhere than {source_name(reference)}: "
                    f"their corners are up to {distance:.6g} mm apart."
                )
        return item


def _lowest(array: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Returns the lowest value of each channel in the brain; anywhere where there is none."""
    inside = brain if brain.any() else np.isfinite(array)
    return np.min(array, axis=tuple(range(1, array.ndim)), where=inside, initial=np.inf, keepdims=True)
