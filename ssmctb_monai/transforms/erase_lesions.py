"""Whole brains without their lesions: lesion voxels become background."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_data_type, convert_to_dst_type, ensure_tuple, ensure_tuple_rep

from ssmctb_monai.transforms.brain import source_name
from ssmctb_monai.transforms.lesion_free import window_sums


class EraseLesions(Transform):
    """Sets lesions, grown by a margin, to background, so that all of the brain around them can be trained on.

    Slices and crops without a lesion lie mostly near the vertex and the base of the brain, and a network that has seen
    nothing else takes ventricles and basal ganglia for lesions. An erased lesion is a hole: no brain, value 0. Every
    voxel with any share of lesion counts, such as those that interpolation made of lesion and healthy voxels, so that
    no lesion intensity is left.

    Args:
        margin: number of voxels per axis by which lesions are grown, as a box.

    Raises:
        ValueError: when ``margin`` is negative, or shapes differ; the file is named.

    Example:
        >>> image, brain = EraseLesions(margin=2)(image, brain, label)
    """

    def __init__(self, margin: Sequence[int] | int = 0) -> None:
        if any(size < 0 for size in ensure_tuple(margin)):
            raise ValueError(f"margin must not be negative, got {margin}.")
        self.margin = margin

    def __call__(
        self, image: NdarrayOrTensor, brain: NdarrayOrTensor, label: NdarrayOrTensor
    ) -> tuple[NdarrayOrTensor, NdarrayOrTensor]:
        """Erases the lesions of a case.

        Args:
            image: shape (channels, height, width[, depth]), 0 outside the brain.
            brain: mask of shape (1, height, width[, depth]).
            label: lesion mask of the same shape; every voxel that is not 0 is lesion.

        Returns:
            Image and brain mask, 0 in the grown lesions and as they were elsewhere.
        """
        lesion = convert_data_type(label, np.ndarray)[0][0] != 0
        if brain.shape[1:] != lesion.shape or image.shape[1:] != lesion.shape:
            raise ValueError(
                f"{source_name(label)} has shape {lesion.shape}, but the image {tuple(image.shape[1:])} and the brain "
                f"mask {tuple(brain.shape[1:])}."
            )
        margin = ensure_tuple_rep(self.margin, lesion.ndim)
        erased = window_sums(lesion, [-m for m in margin], [m + 1 for m in margin], lesion.shape) > 0
        image, brain = (self._without(array, erased) for array in (image, brain))
        return image, brain

    @staticmethod
    def _without(array: NdarrayOrTensor, erased: np.ndarray) -> NdarrayOrTensor:
        tensor = convert_data_type(array, torch.Tensor)[0].clone()
        tensor[:, torch.from_numpy(erased)] = 0
        return convert_to_dst_type(tensor, array)[0]


class EraseLesionsd(MapTransform):
    """Dictionary-based `EraseLesions`: the lesion mask becomes empty, too, so that crops may lie anywhere.

    Args:
        keys: keys of the images.
        margin: number of voxels per axis by which lesions are grown, as a box.
        brain_key: key of the brain mask.
        label_key: key of the lesion mask.

    Example:
        >>> transforms = [EraseLesionsd("image", margin=2), LesionFreePositionsd(roi_size=(96, 96, 1))]
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        *,
        margin: Sequence[int] | int = 0,
        brain_key: str = "brain",
        label_key: str = "label",
    ) -> None:
        super().__init__(keys)
        self.erase = EraseLesions(margin)
        self.brain_key = brain_key
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Erases the lesions of an item.

        Args:
            data: item with images, brain and lesion mask.

        Returns:
            The item without lesions.

        Raises:
            ValueError: when nothing of the brain is left; the file is named.
        """
        item = dict(data)
        label, brain = item[self.label_key], item[self.brain_key]
        for key in self.key_iterator(item):
            item[key], item[self.brain_key] = self.erase(item[key], brain, label)
        if not item[self.brain_key].any():
            raise ValueError(f"Nothing of the brain is left beside the lesions of {source_name(label)}.")
        item[self.label_key] = convert_to_dst_type(torch.zeros(label.shape), label)[0]
        return item
