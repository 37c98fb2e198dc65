"""Slices of volumes for networks in 2D, along one axis or several."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import ensure_tuple
from torch import Tensor

from ssmctb_monai.checks import check_positive, check_shares
from ssmctb_monai.transforms.brain import source_name

Plane = Literal["sagittal", "coronal", "axial"]
PLANES: tuple[Plane, ...] = get_args(Plane)  # in the order of the axes of a volume in RAS orientation


def plane_axes(planes: Sequence[str] | str) -> list[int]:
    """Finds the axes across the slices of planes, in a volume in RAS orientation.

    Args:
        planes: ``"axial"``, ``"coronal"`` and ``"sagittal"``, one or several.

    Returns:
        The index of each plane's axis.

    Raises:
        ValueError: when there is none, one is unknown, or one comes twice.

    Example:
        >>> plane_axes(["axial", "sagittal"])
        [2, 0]
    """
    names = ensure_tuple(planes)
    if not names or len(set(names)) < len(names) or not set(names) <= set(PLANES):
        raise ValueError(f"planes must be some of {PLANES}, each once, got {planes!r}.")
    return [PLANES.index(name) for name in names]


class RandSlicesd(Randomizable, MapTransform):
    """Draws slices without lesions from a volume: first the plane, then one of its slices with enough brain.

    Args:
        keys: keys of the volumes to take slices of, shape (channels, width, depth, height) in RAS orientation.
        roi_size: size of the slices; smaller ones are padded by 0 on both sides, larger ones cut at a place drawn.
        planes: ``"axial"``, ``"coronal"`` and ``"sagittal"``, one or several.
        num_samples: number of slices, drawn independently; the result is a list, as with MONAI's random crops.
        min_brain: share of ``roi_size`` that is brain in a slice, in [0, 1].
        margin: number of slices to each side that must hold no lesion, too, for each axis of the volume.
        brain_key: key of the brain mask.
        label_key: key of the lesion mask, empty where lesions were erased; it is not handed on.
        positions_key: key of positions stored for crops, which is not handed on.

    Raises:
        ValueError: when an argument is outside its range, or a volume has no such slice; the file is named.

    Example:
        >>> draw = RandSlicesd(roi_size=(96, 96), planes=("axial", "coronal"), num_samples=4)
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "brain"),
        *,
        roi_size: Sequence[int],
        planes: Sequence[Plane] | Plane = "axial",
        num_samples: int = 1,
        min_brain: float = 0.1,
        margin: Sequence[int] | int = 0,
        brain_key: str = "brain",
        label_key: str = "label",
        positions_key: str = "lesion_free_positions",
    ) -> None:
        super().__init__(keys)
        check_positive(num_samples=num_samples)
        check_shares(min_brain=min_brain)
        self.axes = plane_axes(planes)
        self.roi_size = tuple(roi_size)
        self.num_samples = num_samples
        self.min_brain = min_brain
        self.margin = np.broadcast_to(margin, 3)
        self.brain_key, self.label_key, self.positions_key = brain_key, label_key, positions_key

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Draws ``num_samples`` slices.

        Args:
            data: item with volumes, brain and lesion mask.

        Returns:
            List of items, whose volumes became slices of shape (channels, ``*roi_size``).
        """
        usable = self._usable(data[self.brain_key], data[self.label_key])
        if not usable:
            raise ValueError(
                f"{source_name(data[self.keys[0]])} has no slice without lesion of which {self.min_brain:.0%} of "
                f"{self.roi_size} is brain: leave this case out of the training data."
            )
        handed_on = {key: value for key, value in data.items() if key not in (self.label_key, self.positions_key)}
        items = []
        for _ in range(self.num_samples):
            axis, indices = usable[self.R.randint(len(usable))]
            index, start = int(indices[self.R.randint(len(indices))]), self.R.uniform(size=2)
            slices = {key: self._slice(handed_on[key], axis, index, start) for key in self.key_iterator(handed_on)}
            items.append({**handed_on, **slices})
        return items

    def _usable(self, brain: Tensor, label: Tensor) -> list[tuple[int, np.ndarray]]:
        """The slices of each plane that may be drawn, of planes that have any."""
        inside, lesion = (torch.as_tensor(mask)[0] != 0 for mask in (brain, label))
        usable = []
        for axis in self.axes:
            others = [other for other in range(3) if other != axis]
            share = inside.sum(dim=others).numpy() / np.prod(self.roi_size)
            has_lesion = np.convolve(lesion.any(dim=others[1]).any(dim=others[0]), np.ones(2 * self.margin[axis] + 1))
            free = has_lesion[self.margin[axis] :][: len(share)] == 0
            indices = np.flatnonzero((share >= self.min_brain) & free)
            if len(indices):
                usable.append((axis, indices))
        return usable

    def _slice(self, volume: Tensor, axis: int, index: int, start: np.ndarray) -> Tensor:
        plain = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
        image = plain.select(axis + 1, index)
        padding: list[int] = []
        for dim, (size, wanted, place) in enumerate(zip(image.shape[1:], self.roi_size, start, strict=True)):
            if size > wanted:
                image = image.narrow(dim + 1, int(place * (size - wanted + 1)), wanted)
            missing = max(0, wanted - size)
            padding = [missing // 2, missing - missing // 2, *padding]
        return F.pad(image, padding)
