"""Lesion-free sampling: crops that provably hold no lesion voxel, and the region they come from."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, SpatialCrop, Transform
from monai.utils import convert_data_type, convert_to_dst_type, ensure_tuple, ensure_tuple_rep
from torch import Tensor

from ssmctb_monai.checks import check_shares
from ssmctb_monai.transforms.brain import source_name


def window_sums(mask: np.ndarray, lower: Sequence[int], upper: Sequence[int], starts: Sequence[int]) -> np.ndarray:
    """Sums of a mask over a window at every start position, from a summed-volume table.

    Crow, *Summed-area tables for texture mapping*, SIGGRAPH 1984, https://doi.org/10.1145/964965.808600.

    Args:
        mask: integer or boolean array.
        lower: per axis, offset of the window's first voxel from its start.
        upper: per axis, offset behind the window's last voxel.
        starts: per axis, number of start positions 0, 1, ….

    Returns:
        Array of shape ``starts``; the part of a window outside the array counts as 0.
    """
    table = np.pad(mask.astype(np.int64), [(1, 0)] * mask.ndim)
    for axis, (first, behind, count) in enumerate(zip(lower, upper, starts, strict=True)):
        table = table.cumsum(axis)
        position = np.arange(count)
        table = table.take(np.clip(position + behind, 0, mask.shape[axis]), axis) - table.take(
            np.clip(position + first, 0, mask.shape[axis]), axis
        )
    return table


class LesionFreePositions(Transform):
    """Finds every position at which a crop holds no lesion and enough brain.

    A position is the first corner of a crop of ``roi_size``. It is valid when the crop, grown by ``margin`` on all
    sides, holds no lesion voxel, and at least the share ``min_brain`` of the crop is brain. For lesion-free slices of a
    volume give a 1 as the slice axis' size and the volume's size along the others (-1).

    Args:
        roi_size: size of the crop per axis; -1 is the whole axis.
        margin: number of voxels per axis by which the crop is grown when lesions are looked for.
        min_brain: share of brain in the crop, in [0, 1].

    Raises:
        ValueError: when an argument is outside its range, shapes differ, or the volume is smaller than the crop.

    Example:
        >>> positions = LesionFreePositions(roi_size=(64, 64, 64), margin=2)(label, brain)
    """

    def __init__(self, roi_size: Sequence[int] | int, margin: Sequence[int] | int = 0, min_brain: float = 0.2) -> None:
        check_shares(min_brain=min_brain)
        if any(size < 1 and size != -1 for size in ensure_tuple(roi_size)):
            raise ValueError(f"roi_size must be positive or -1, got {roi_size}.")
        if any(size < 0 for size in ensure_tuple(margin)):
            raise ValueError(f"margin must not be negative, got {margin}.")
        self.roi_size = roi_size
        self.margin = margin
        self.min_brain = min_brain

    def __call__(self, label: NdarrayOrTensor, brain: NdarrayOrTensor) -> Tensor:
        """Finds the valid positions.

        Args:
            label: lesion mask of shape (1, height, width[, depth]); every voxel that is not 0 is lesion.
            brain: brain mask of the same shape.

        Returns:
            Tensor of shape (number of positions, spatial dimensions): the crop's first voxel per axis, int32.
        """
        lesion = convert_data_type(label, np.ndarray)[0][0] != 0
        inside = convert_data_type(brain, np.ndarray)[0][0] != 0
        if lesion.shape != inside.shape:
            raise ValueError(f"{source_name(label)} has shape {lesion.shape}, but the brain mask {inside.shape}.")
        roi_size = crop_size(self.roi_size, lesion.shape, source_name(label))
        margin = ensure_tuple_rep(self.margin, lesion.ndim)
        starts = [size - crop + 1 for size, crop in zip(lesion.shape, roi_size, strict=True)]
        lesion_voxels = window_sums(
            lesion, [-m for m in margin], [crop + m for crop, m in zip(roi_size, margin, strict=True)], starts
        )
        brain_voxels = window_sums(inside, [0] * lesion.ndim, roi_size, starts)
        valid = (lesion_voxels == 0) & (brain_voxels / np.prod(roi_size) >= self.min_brain)
        return torch.from_numpy(np.argwhere(valid).astype(np.int32))


def crop_size(roi_size: Sequence[int] | int, shape: Sequence[int], name: str) -> tuple[int, ...]:
    """Size of a crop in a volume, with -1 filled in.

    Args:
        roi_size: size per axis; -1 is the whole axis.
        shape: the volume's shape.
        name: the volume's name, for the error message.

    Returns:
        Size per axis.

    Raises:
        ValueError: when the volume is smaller than the crop.
    """
    filled = tuple(
        size if crop == -1 else crop for crop, size in zip(ensure_tuple_rep(roi_size, len(shape)), shape, strict=True)
    )
    if any(crop > size for crop, size in zip(filled, shape, strict=True)):
        raise ValueError(
            f"{name} has shape {tuple(shape)}, smaller than the crop {filled}: pad it first (SpatialPadd)."
        )
    return filled


class _FromLesionAndBraind(MapTransform):
    """Stores what a transform of lesion and brain mask returns.

    Args:
        keys: key of the lesion mask.
        transform: transform of both masks.
        brain_key: key of the brain mask.
        output_key: key of the result.
    """

    def __init__(
        self, keys: KeysCollection, transform: Callable[[Any, Any], Any], brain_key: str, output_key: str
    ) -> None:
        super().__init__(keys)
        self.transform = transform
        self.brain_key = brain_key
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Stores the result.

        Args:
            data: item with lesion and brain mask.

        Returns:
            The item with the result.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            item[self.output_key] = self.transform(item[key], item[self.brain_key])
        return item


class LesionFreePositionsd(_FromLesionAndBraind):
    """Dictionary-based `LesionFreePositions`, made to be cached: the positions are stored for `RandLesionFreeCropd`.

    Args:
        keys: key of the lesion mask.
        roi_size: size of the crop per axis; -1 is the whole axis.
        margin: number of voxels per axis by which the crop is grown when lesions are looked for.
        min_brain: share of brain in the crop, in [0, 1].
        brain_key: key of the brain mask.
        positions_key: key under which the positions are stored, a tensor (number of positions, spatial dimensions);
            empty where there is none.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        *,
        roi_size: Sequence[int] | int,
        margin: Sequence[int] | int = 0,
        min_brain: float = 0.2,
        brain_key: str = "brain",
        positions_key: str = "lesion_free_positions",
    ) -> None:
        super().__init__(keys, LesionFreePositions(roi_size, margin, min_brain), brain_key, positions_key)


class LesionFreeRegion(Transform):
    """Marks the brain that crops at the positions of `LesionFreePositions` cover: what lesion-free training can see.

    In the training scans, anomaly scores in this region are those of normal tissue, from which a threshold can be
    chosen without a look at any lesion.

    Args:
        roi_size: size of the crop per axis; -1 is the whole axis.
        margin: number of voxels per axis by which the crop is grown when lesions are looked for.
        min_brain: share of brain in the crop, in [0, 1].

    Raises:
        ValueError: as `LesionFreePositions`.

    Example:
        >>> region = LesionFreeRegion(roi_size=(64, 64, 64), margin=2)(label, brain)
    """

    def __init__(self, roi_size: Sequence[int] | int, margin: Sequence[int] | int = 0, min_brain: float = 0.2) -> None:
        self.find = LesionFreePositions(roi_size, margin, min_brain)

    def __call__(self, label: NdarrayOrTensor, brain: NdarrayOrTensor) -> NdarrayOrTensor:
        """Marks the region.

        Args:
            label: lesion mask of shape (1, height, width[, depth]); every voxel that is not 0 is lesion.
            brain: brain mask of the same shape.

        Returns:
            Mask of the same shape, uint8, 0 or 1; empty where there is no valid position.
        """
        inside = convert_data_type(brain, np.ndarray)[0][0] != 0
        is_start = np.zeros_like(inside)
        is_start[tuple(self.find(label, brain).numpy().T)] = True
        roi_size = crop_size(self.find.roi_size, inside.shape, source_name(label))
        # The crops that cover a voxel start at most a crop's size before it
        crops = window_sums(is_start, [1 - size for size in roi_size], [1] * inside.ndim, inside.shape)
        return convert_to_dst_type((inside & (crops > 0))[None], label, dtype=torch.uint8)[0]


class LesionFreeRegiond(_FromLesionAndBraind):
    """Dictionary-based `LesionFreeRegion`.

    Args:
        keys: key of the lesion mask.
        roi_size: size of the crop per axis; -1 is the whole axis.
        margin: number of voxels per axis by which the crop is grown when lesions are looked for.
        min_brain: share of brain in the crop, in [0, 1].
        brain_key: key of the brain mask.
        region_key: key under which the region is stored, a mask of the lesion mask's shape.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        *,
        roi_size: Sequence[int] | int,
        margin: Sequence[int] | int = 0,
        min_brain: float = 0.2,
        brain_key: str = "brain",
        region_key: str = "lesion_free",
    ) -> None:
        super().__init__(keys, LesionFreeRegion(roi_size, margin, min_brain), brain_key, region_key)


class RandLesionFreeCrop(Randomizable, Transform):
    """Crops at positions drawn uniformly from given ones, such as those of `LesionFreePositions`.

    Args:
        roi_size: size of the crop per axis, as given to `LesionFreePositions`; -1 is the whole axis.

    Example:
        >>> crop = RandLesionFreeCrop(roi_size=64)
        >>> crop.randomize(positions)
        >>> patch = crop(image)
    """

    def __init__(self, roi_size: Sequence[int] | int) -> None:
        self.roi_size = roi_size
        self.start: list[int] | None = None

    def randomize(self, data: Tensor) -> None:
        """Draws a position.

        Args:
            data: valid positions, shape (number of positions, spatial dimensions).

        Raises:
            ValueError: when there is none.
        """
        if len(data) == 0:
            raise ValueError("There is no lesion-free position to crop at: leave this case out of the training data.")
        self.start = data[self.R.randint(len(data))].tolist()

    def __call__(self, image: NdarrayOrTensor) -> NdarrayOrTensor:
        """Crops at the drawn position.

        Args:
            image: shape (channels, height, width[, depth]).

        Returns:
            Crop of shape (channels, ``*roi_size``).

        Raises:
            RuntimeError: when no position was drawn.
            ValueError: when the image is smaller than the crop.
        """
        if self.start is None:
            raise RuntimeError("Draw a position first: randomize(positions).")
        size = crop_size(self.roi_size, image.shape[1:], source_name(image))
        end = [first + crop for first, crop in zip(self.start, size, strict=True)]
        spatial_crop = SpatialCrop(roi_start=self.start, roi_end=end)
        window = (slice(None), *spatial_crop.slices)
        return spatial_crop(image) if isinstance(image, MetaTensor) else image[window]


class RandLesionFreeCropd(Randomizable, MapTransform):
    """Dictionary-based `RandLesionFreeCrop`: crops all keys at the same drawn positions.

    Args:
        keys: keys of the images to crop.
        roi_size: size of the crop per axis, as given to `LesionFreePositionsd`; -1 is the whole axis.
        num_samples: number of crops, drawn independently; the result is a list, as with MONAI's random crops.
        positions_key: key of the valid positions; it is not handed on.
        label_key: key of the lesion mask, which proves that the crop holds no lesion; it is not handed on.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "brain"),
        *,
        roi_size: Sequence[int] | int,
        num_samples: int = 1,
        positions_key: str = "lesion_free_positions",
        label_key: str = "label",
    ) -> None:
        super().__init__(keys)
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
        self.crop = RandLesionFreeCrop(roi_size)
        self.num_samples = num_samples
        self.positions_key = positions_key
        self.label_key = label_key

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandLesionFreeCropd:
        """Seeds the draw of positions.

        Args:
            seed: seed.
            state: random state instead of a seed.

        Returns:
            The transform.
        """
        super().set_random_state(seed, state)
        self.crop.set_random_state(seed, state)
        return self

    def randomize(self, data: Tensor) -> None:
        """Draws a position.

        Args:
            data: valid positions, shape (number of positions, spatial dimensions).
        """
        self.crop.randomize(data)

    def can_draw(self, data: Mapping[Hashable, Any]) -> bool:
        """Tells whether there is a position to draw.

        Args:
            data: item with positions.
        """
        return len(data[self.positions_key]) > 0

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Crops ``num_samples`` times.

        Args:
            data: item with images, positions and lesion mask.

        Returns:
            List of items.

        Raises:
            ValueError: when there is no valid position.
            RuntimeError: when a crop holds a lesion, because the positions belong to another label or crop size.
        """
        handed_on = {key: value for key, value in data.items() if key not in (self.positions_key, self.label_key)}
        items = []
        for _ in range(self.num_samples):
            self.randomize(data[self.positions_key])
            if (self.crop(data[self.label_key]) != 0).any():
                raise RuntimeError("A lesion voxel in a lesion-free crop: the positions belong to other data.")
            items.append({**handed_on, **{key: self.crop(handed_on[key]) for key in self.key_iterator(handed_on)}})
        return items
