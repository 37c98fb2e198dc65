"""Cutting the brain out of a head, by deepbet's network or by thresholds."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING

import nibabel
import numpy as np
from scipy.ndimage import binary_fill_holes, distance_transform_edt, gaussian_filter, label
from skimage.filters import threshold_otsu

if TYPE_CHECKING:
    from deepbet import BrainExtraction

HAS_DEEPBET = find_spec("deepbet") is not None
LOCK = Lock()  # deepbet keeps the box of the brain between its steps
MIN_SLICES = 8  # along every axis, of a volume that deepbet's network is to understand

# mm
SMOOTHING = 1.5
BRIDGES = 6.0  # half the width of vessels, nerves and marrow that join brain and scalp
GROWTH = 6.0  # of the outline from a slice to the next
RIM = 4.0  # of the brain, darker than tissue: sulci and CSF
SULCI = 8.0  # half the width of what is closed

FAT = 0.3  # share of the head that may be brighter than any brain
OVERLAP = 0.5  # share of a part that belongs to the brain, inside the brain of the next slice
END = 0.1  # area of the first and last slice of the brain, of its largest


def extract_brain(image: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Finds the brain in a head by a trained network.

    Fisch et al., *deepbet: Fast brain extraction of T1-weighted MRI using convolutional neural networks*, 2024,
    https://doi.org/10.1016/j.compbiomed.2024.108845. It was trained on T1 of healthy adults; FLAIR of heads with
    gliomas, whose slices are thick, it cuts out as well (see the page on the evaluation).

    Args:
        image: one modality, shape (height, width, depth), in any orientation.
        affine: of the image, which tells the orientation; its voxel size is not asked for.

    Returns:
        Mask of the brain, the same shape, bool; empty where there is none.

    Raises:
        ModuleNotFoundError: when deepbet is not installed.

    Example:
        >>> brain = extract_brain(flair, affine)
    """
    orientation = nibabel.io_orientation(affine)
    canonical = nibabel.apply_orientation(image.astype(np.float32), orientation)
    with LOCK:
        extraction = _deepbet()
        try:
            mask = extraction.postprocess(extraction.run_model(canonical.copy()) > 0.5)
        except (AssertionError, ValueError):  # not enough, or none at all, of what it takes for a brain
            return np.zeros(image.shape, dtype=bool)
    back = nibabel.orientations.ornt_transform(nibabel.io_orientation(np.eye(4)), orientation)
    return nibabel.apply_orientation(mask > 0, back).astype(bool)


@cache
def _deepbet() -> BrainExtraction:
    from deepbet import BrainExtraction

    return BrainExtraction(no_gpu=True)  # scans are prepared in workers, too, which share no GPU


def cut_out_brain(image: np.ndarray, head: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """Finds the brain in a head by thresholds, where bone and CSF are darker than the brain, as in FLAIR and T1.

    In every axial slice, tissue is what is brighter than Otsu's threshold between it and bone, and opened by 6 mm. From
    the largest part of all slices upwards and downwards, parts belong to the brain that lie inside that of the slice
    before, up to a slice that has next to none. It takes no training and is crude: at the base of the skull and at
    the vertex scalp is left. `extract_brain` is better.

    Args:
        image: one modality, shape (height, width, slices), axial slices last.
        head: mask of the head, the same shape, bool.
        spacing: voxel size in mm in the slices; their distance is not asked for, as files of thick slices often tell
            another than the true one.

    Returns:
        Mask of the brain, the same shape, bool; empty where no part of the tissue is as thick as 12 mm.

    Example:
        >>> brain = cut_out_brain(flair, head, spacing=(0.9, 0.9))
    """
    if not head.any():
        return np.zeros_like(head)
    smooth = gaussian_filter(image.astype(np.float32), [SMOOTHING / spacing[0], SMOOTHING / spacing[1], 0])
    values = smooth[head]
    darker = values[values <= np.quantile(values, 1 - FAT)]
    tissue = head & (smooth > threshold_otsu(darker))
    core = _distance(tissue, spacing) > BRIDGES
    parts = [label(core[..., index])[0] for index in range(core.shape[2])]
    sizes = [np.bincount(part.ravel())[1:] for part in parts]
    areas = [size.max(initial=0) for size in sizes]
    start = int(np.argmax(areas))
    brain = np.zeros_like(core)
    if areas[start] == 0:
        return brain
    brain[..., start] = parts[start] == 1 + sizes[start].argmax()
    for step in (1, -1):
        last = len(parts) if step > 0 else -1
        for index in range(start + step, last, step):
            near = distance_transform_edt(~brain[..., index - step], spacing) <= GROWTH
            inside = np.bincount(parts[index][near], minlength=len(sizes[index]) + 1)[1:]
            found = near & np.isin(parts[index], 1 + np.flatnonzero(inside >= OVERLAP * sizes[index]))
            if found.sum() < END * areas[start]:
                break
            brain[..., index] = found
    closed = _distance(_distance(~brain, spacing) <= BRIDGES + RIM + SULCI, spacing) > SULCI
    filled = [binary_fill_holes(closed[..., index]) for index in range(closed.shape[2])]
    return head & np.stack(filled, axis=-1)


def _distance(mask: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """Distance in mm of the mask's voxels from its outside, in the slice; far where a slice has no outside."""
    distance = np.full(mask.shape, np.inf, dtype=np.float32)
    for index in range(mask.shape[2]):
        if not mask[..., index].all():
            distance[..., index] = distance_transform_edt(mask[..., index], spacing)
    return distance
