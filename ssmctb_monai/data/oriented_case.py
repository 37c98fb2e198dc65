"""A case as metrics and pictures look at it: its arrays agree, and all lie alike."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes
from torch import Tensor

from ssmctb_monai.data.checks import has_whole_labels
from ssmctb_monai.data.readers import grid_distance

Array = np.ndarray | Tensor

SHOWN = (0.5, 99.5)  # percentiles of the brain's grey values that are drawn black and white


class OrientedCase:
    """A case whose arrays lie alike, whichever way its scan is stored.

    Arrays are views of shape (slices, width, height): the first axis runs from the feet up, the second to the patient's
    right, the third to the front. :meth:`cut` leaves what lies around the brain, :func:`radiological` turns an array as
    pictures need it.

    Args:
        case_id: name of the case.
        anomaly_maps: map of each method, by its name, shape (height, width, depth) or (1, height, width, depth).
        label: lesion mask of the same shape; every voxel that is not 0 is lesion. ``None`` where there is none.
        brain: brain mask of the same shape; voxels of a lesion count in any case. ``None`` counts every voxel.
        patient_id: name of the patient; by default that of the case.
        affine: 4 x 4 matrix from voxels to RAS coordinates in mm of all arrays, or that of a `MetaTensor` among them;
            without one the last axis runs from the feet up, and voxels measure 1 mm³.
        images: images of the same shape, by the names of their modalities.
        lesion_free: mask of regions that thresholds may be taken from.

    Attributes:
        case_id: name of the case.
        patient_id: name of the patient.
        anomaly_maps: map of each method.
        images: image of each modality.
        lesion_free: mask; ``None`` where there is none.
        label: lesion mask; ``None`` where there is none.
        brain: mask of the voxels that count: the brain, and lesions.
        has_brain: whether there was a brain mask; without one every voxel counts.
        affine: affine of the scan's own array.
        shape: shape of the scan's own array.
        orientation: how the scan's own axes become RAS, as nibabel's ``apply_orientation`` takes it.
        box: where the brain is.

    Raises:
        ValueError: when shapes or affines differ, a label is negative or no whole number, or the brain is empty.

    Example:
        >>> case = OrientedCase("P1", {"model": anomaly_map}, label, brain, affine=affine)
        >>> case.cut(case.anomaly_maps["model"]).shape, case.voxel_volume
        ((139, 137, 172), 0.001)
    """

    def __init__(
        self,
        case_id: str,
        anomaly_maps: Mapping[str, Array],
        label: Array | None = None,
        brain: Array | None = None,
        *,
        patient_id: str | None = None,
        affine: Array | None = None,
        images: Mapping[str, Array] | None = None,
        lesion_free: Array | None = None,
    ) -> None:
        self.case_id, self.patient_id = case_id, patient_id or case_id
        maps = {method: f"map of {method}" for method in anomaly_maps}
        shown = {name: f"image {name}" for name in images or {}}
        given = {
            "label": label,
            **{maps[method]: array for method, array in anomaly_maps.items()},
            **{shown[name]: array for name, array in (images or {}).items()},
            "brain": brain,
            "lesion_free": lesion_free,
        }
        arrays, common = _arrays({name: array for name, array in given.items() if array is not None}, affine)
        self.affine = np.eye(4) if common is None else common
        self.shape = next(iter(arrays.values())).shape
        self.orientation = nib.io_orientation(self.affine)
        if label is not None and not has_whole_labels(arrays["label"]):
            raise ValueError("the label holds values that are negative or not whole numbers")
        turned = {name: self.turn(array) for name, array in arrays.items()}
        self.anomaly_maps = {method: turned[name] for method, name in maps.items()}
        self.images = {modality: turned[name] for modality, name in shown.items()}
        self.lesion_free = None if lesion_free is None else turned["lesion_free"] > 0
        self.label = None if label is None else turned["label"] > 0.5  # labels are whole up to rounding
        self.has_brain = brain is not None
        self.brain = turned["brain"] > 0 if self.has_brain else np.ones(turned[next(iter(turned))].shape, dtype=bool)
        if self.label is not None:
            self.brain |= self.label
        self.box = bounding_box(self.brain)
        if not self.brain[self.box].size:
            raise ValueError("the brain is empty")

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Size of a voxel in mm, to the patient's right, to the front and from the feet up."""
        right, front, up = voxel_sizes(self.affine)[np.argsort(self.orientation[:, 0])]
        return float(right), float(front), float(up)

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in ml."""
        return 1e-3 * float(abs(np.linalg.det(self.affine[:3, :3])))

    def turn(self, array: np.ndarray) -> np.ndarray:
        """Turns an array of the scan's shape to slices from the feet up, the patient's right and the front."""
        return nib.apply_orientation(array, self.orientation).transpose(2, 0, 1)

    def cut(self, array: np.ndarray) -> np.ndarray:
        """Cuts an array of this case to the brain."""
        return np.ascontiguousarray(array[self.box])

    @cached_property
    def inside(self) -> np.ndarray:
        """The voxels that count, cut to the brain."""
        return self.cut(self.brain)

    @cached_property
    def lesion(self) -> np.ndarray:
        """The voxels of the lesion, cut to the brain; none where there is no label."""
        return np.zeros_like(self.inside) if self.label is None else self.cut(self.label)


def radiological(array: np.ndarray) -> np.ndarray:
    """Turns an array of an `OrientedCase` so that radiological views need no flip.

    Args:
        array: array of shape (slices, width, height), or one slice of it.

    Returns:
        View of it whose axes run from the patient's right to the left, from front to back and, unless it is a slice,
        from head to feet (LPI).
    """
    return np.flip(np.moveaxis(array, 0, -1) if array.ndim == 3 else array)


def grey_window(image: np.ndarray, brain: np.ndarray) -> tuple[float, float]:
    """Finds the grey values that an image is shown with.

    Args:
        image: image of any shape.
        brain: brain mask of the same shape.

    Returns:
        Grey value to draw black, and how far above it that to draw white is, more than 0: the 0.5 and the 99.5
        percentile of the brain.
    """
    low, high = np.percentile(image[brain], SHOWN)
    return float(low), float(high - low) or 1.0


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Finds the smallest box that holds a mask; an empty one where the mask is empty."""
    axes = range(mask.ndim)
    places = [np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    return tuple(slice(int(place[0]), int(place[-1]) + 1) if len(place) else slice(0) for place in places)


def _arrays(given: Mapping[str, Array], affine: Array | None) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Turns what was given into arrays of one shape, and finds their common affine."""
    affines = {name: value.affine.numpy(force=True) for name, value in given.items() if isinstance(value, MetaTensor)}
    if affine is not None:
        affines["affine"] = np.asarray(affine, dtype=float)
        if affines["affine"].shape != (4, 4) or not np.linalg.det(affines["affine"]):
            raise ValueError(f"expected an affine of shape (4, 4) with an inverse, got {affines['affine'].tolist()}")
    arrays = {name: _array(value) for name, value in given.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError("shapes differ: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))
    if any(len(shape) != 3 for shape in shapes.values()):
        raise ValueError(f"expected arrays of shape (height, width, depth), got {next(iter(shapes.values()))}")
    for (one, first), (name, other) in pairwise(affines.items()):
        if distance := grid_distance(other, first, next(iter(shapes.values()))):
            raise ValueError(f"the affine of {name} differs from that of {one} by {distance:.4g} mm")
    return arrays, next(iter(affines.values()), None)


def _array(value: Array) -> np.ndarray:
    """NumPy array without channel dimension, in a type that can be sorted fast and holds infinities."""
    if isinstance(value, Tensor):
        value = (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy(force=True)
    array = np.asarray(value)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    return array.astype(np.float32) if array.dtype == np.float16 else array
