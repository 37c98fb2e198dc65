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
from monai.utils import ensure_tuple, ensure_tuple_rep
from torch import Tensor

from ssmctb_monai.checks import check_context, check_positive, check_shares, check_whole
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


def wide_axes(axes: Sequence[int], size: tuple[int, ...], min_size: int) -> list[int]:
    """Leaves out planes whose slices are too thin to make much of.

    Args:
        axes: axes across the slices, those of `plane_axes`.
        size: number of voxels of the volume along each axis.
        min_size: number of voxels that a slice must measure along both axes.

    Returns:
        The axes whose slices are wide enough; the first one where there is none.

    Example:
        >>> wide_axes([1, 2], (96, 96, 20), min_size=32)
        [2]
    """
    return [axis for axis in axes if min(size[:axis] + size[axis + 1 :]) >= min_size] or list(axes[:1])


def slice_runs(size: int, context: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Finds for every slice along an axis the run of slices that it is seen with.

    A volume has no direction: a slice has a run each way, of those whose context lies inside the volume. Where neither
    does, both count, and the slices at the border stand for those beyond; but no slice is all of its own context.

    Args:
        size: number of slices.
        context: offsets of the context slices from their slice.

    Returns:
        Indices of the slices of each run, its own slice first, shape (directions, ``size``, 1 + number of context
        slices), and which runs count, shape (directions, ``size``), bool. Without context there is one direction.

    Raises:
        ValueError: when all context lies outside the volume for every slice, as where there is one slice alone.

    Example:
        >>> indices, counts = slice_runs(4, [-1])
        >>> indices.tolist()
        [[[0, 0], [1, 0], [2, 1], [3, 2]], [[0, 1], [1, 2], [2, 3], [3, 3]]]
        >>> counts.tolist()
        [[False, True, True, True], [True, True, True, False]]
    """
    if len(context) and size <= min(map(abs, context)):
        raise ValueError(
            f"No slice has another one at context {list(context)}, of {size} in all: take a nearer context, or a "
            "system that sees a slice alone; frames of videos become volumes by --layout frames."
        )
    directions = np.array([1, -1] if len(context) else [1])
    indices = np.arange(size)[:, None] + directions[:, None, None] * np.array([0, *context])
    is_inside = ((indices >= 0) & (indices < size)).all(axis=-1)
    indices = indices.clip(0, size - 1)
    has_others = (indices != indices[..., :1]).any(axis=-1)
    return indices, is_inside | (~is_inside.any(axis=0) & has_others)


def foreground_slices(image: Tensor, axis: int) -> tuple[int, int]:
    """Finds where the foreground of an image begins and ends along an axis; beyond lies padding or background.

    Args:
        image: image of any shape, 0 in the background.
        axis: axis across the slices.

    Returns:
        Index of the first slice with foreground and number of slices up to the last one; all slices where there is no
        foreground.

    Example:
        >>> foreground_slices(torch.tensor([[0, 3, 0, 1, 0]]), axis=1)
        (1, 3)
    """
    filled = image.movedim(axis, 0).flatten(1).any(dim=1).nonzero().flatten().tolist()
    return (filled[0], filled[-1] + 1 - filled[0]) if filled else (0, image.shape[axis])


class CheckContextd(MapTransform):
    """Refuses volumes in which no slice has another one for its context, before a network sees them.

    Slices count from the first to the last one with foreground, not those that a volume was padded by.

    Args:
        keys: keys of the volumes, shape (channels, width, depth, height) in RAS orientation, 0 in the background.
        context: offsets of the context slices.
        planes: ``"axial"``, ``"coronal"`` and ``"sagittal"``, one or several.

    Raises:
        ValueError: when an argument is outside its range, or a volume has too few slices; the file is named.

    Example:
        >>> check = CheckContextd("image", context=(-1,))
    """

    def __init__(self, keys: KeysCollection, context: Sequence[int], planes: Sequence[Plane] | Plane = "axial") -> None:
        super().__init__(keys)
        self.context = check_context(context)
        self.axes = plane_axes(planes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Checks volumes.

        Args:
            data: item with volumes.

        Returns:
            The item as it is.
        """
        for key in self.key_iterator(data):
            for axis in self.axes:
                try:
                    slice_runs(foreground_slices(data[key], axis + 1)[1], self.context)
                except ValueError as error:
                    raise ValueError(f"{source_name(data[key])}: {error}") from error
        return dict(data)


class RandSlicesd(Randomizable, MapTransform):
    """Draws slices without lesions from a volume: first the plane, then one of its slices with enough brain.

    With ``context`` a sample is a run of slices in one of the two directions (:func:`slice_runs`), as channels: those
    of the slice come first, then those of its context, slice by slice. No slice of the run holds a lesion. The volume
    reaches from the first to the last slice with brain, so that padding is no context.

    Args:
        keys: keys of the volumes to take slices of, shape (channels, width, depth, height) in RAS orientation.
        roi_size: size of the slices; smaller ones are padded by 0 on both sides, larger ones cut at a place drawn.
        planes: ``"axial"``, ``"coronal"`` and ``"sagittal"``, one or several.
        context: offsets of the context slices.
        num_samples: number of slices, drawn independently; the result is a list, as with MONAI's random crops.
        min_brain: share of ``roi_size`` that is brain in a slice, in [0, 1].
        min_size: number of voxels that a slice must measure along both axes; planes of thinner ones are left out, as by
            `PlanesInferer`; the first one counts where all are thinner.
        margin: number of slices to each side that must hold no lesion, too, for each axis of the volume.
        brain_key: key of the brain mask, which is that of the slice alone.
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
        context: Sequence[int] = (),
        num_samples: int = 1,
        min_brain: float = 0.1,
        min_size: int = 32,
        margin: Sequence[int] | int = 0,
        brain_key: str = "brain",
        label_key: str = "label",
        positions_key: str = "lesion_free_positions",
    ) -> None:
        super().__init__(keys)
        check_positive(num_samples=num_samples, min_size=min_size)
        check_shares(min_brain=min_brain)
        self.axes = plane_axes(planes)
        self.context = check_context(context)
        self.roi_size = tuple(roi_size)
        if len(self.roi_size) != 2:
            raise ValueError(f"roi_size must be two numbers, the size of a slice, got {self.roi_size}.")
        for size in self.roi_size:
            check_whole(1, roi_size=size)
        self.num_samples = num_samples
        self.min_brain = min_brain
        self.min_size = min_size
        self.margin = ensure_tuple_rep(margin, 3)
        for width in self.margin:
            check_whole(0, margin=width)
        self.brain_key, self.label_key, self.positions_key = brain_key, label_key, positions_key

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Draws ``num_samples`` slices.

        Args:
            data: item with volumes, brain and lesion mask.

        Returns:
            List of items, whose volumes became slices of shape (channels, ``*roi_size``); with context (channels · (1 +
            number of context slices), ``*roi_size``).
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
            axis, runs = usable[self.R.randint(len(usable))]
            run, start = runs[self.R.randint(len(runs))], self.R.uniform(size=2)
            slices = {
                key: self._slices(handed_on[key], axis, run[:1] if key == self.brain_key else run, start)
                for key in self.key_iterator(handed_on)
            }
            items.append({**handed_on, **slices})
        return items

    def can_draw(self, data: Mapping[Hashable, Any]) -> bool:
        """Tells whether there is a slice to draw.

        Args:
            data: item with brain and lesion mask.
        """
        return bool(self._usable(data[self.brain_key], data[self.label_key]))

    def _usable(self, brain: Tensor, label: Tensor) -> list[tuple[int, np.ndarray]]:
        """The runs of each plane that may be drawn (runs, slices), of planes that have any."""
        # As floats, which PyTorch adds ten times faster than booleans
        inside, lesion = ((torch.as_tensor(mask) != 0).any(dim=0).float() for mask in (brain, label))
        usable = []
        for axis in wide_axes(self.axes, inside.shape, self.min_size):
            others = [other for other in range(3) if other != axis]
            share = inside.sum(dim=others).numpy() / np.prod(self.roi_size)
            has_lesion = np.convolve(lesion.sum(dim=others) > 0, np.ones(2 * self.margin[axis] + 1))
            free = has_lesion[self.margin[axis] :][: len(share)] == 0
            first, size = foreground_slices(torch.as_tensor(share)[None], axis=1)  # cheaper than of all voxels
            indices, counts = slice_runs(size, self.context)
            indices += first
            runs = indices[counts & (share[indices[..., 0]] >= self.min_brain) & free[indices].all(axis=-1)]
            if len(runs):
                usable.append((axis, runs))
        return usable

    def _slices(self, volume: Tensor, axis: int, run: np.ndarray, start: np.ndarray) -> Tensor:
        plain = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
        image = torch.cat([plain.select(axis + 1, int(index)) for index in run])
        padding: list[int] = []
        for dim, (size, wanted, place) in enumerate(zip(image.shape[1:], self.roi_size, start, strict=True)):
            if size > wanted:
                image = image.narrow(dim + 1, int(place * (size - wanted + 1)), wanted)
            missing = max(0, wanted - size)
            padding = [missing // 2, missing - missing // 2, *padding]
        return F.pad(image, padding)
