"""Cutting the brain out of a head, by deepbet's network or by thresholds."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING

import nibabel
import numpy as np
from scipy.ndimage import binary_fill_holes, distance_transform_edt, gaussian_filter, label
from skimage.filters import threshold_li, threshold_otsu

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
# Of the sign of a skull
COARSE = 2.0  # mm, of voxels and of rings from the outside inwards
DEPTH = 30.0  # mm that are looked at, with scalp, skull and brain
SLICES = 24  # that are looked at
WIDE = 0.7  # area of such a slice, of the largest
VALLEY = 0.8  # brightness of bone at most, of what lies outside and inside of it

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


def has_skull(image: np.ndarray, spacing: tuple[float, float]) -> bool:
    """Tells whether an image shows a head with its skull: from the outside inwards it darkens, then brightens again.

    A ring of bone is a fifth darker than the brightest one outside and than the brightest one inside of it. There is
    one in 34 of 40 FLAIR of heads with gliomas, and none in 214 images of skull-stripped brains (FLAIR, T1, T1ce and
    T2), of which the darkest ring has 0.89 of that brightness.

    Args:
        image: one modality, shape (height, width, slices), axial slices last.
        spacing: voxel size in mm in the slices.

    Example:
        >>> has_skull(flair, spacing=(0.9, 0.9))
        True
    """
    steps = [max(1, round(COARSE / size)) for size in spacing]
    coarse = image[:: steps[0], :: steps[1], :: -(-image.shape[2] // SLICES)].astype(np.float32)
    smooth = gaussian_filter(coarse, [1, 1, 0])
    if smooth.min() == smooth.max():
        return False
    bright = smooth > threshold_li(smooth)
    parts = label(np.stack([binary_fill_holes(bright[..., index]) for index in range(bright.shape[2])], axis=-1))[0]
    head = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    if head.all():
        return False
    areas = head.sum(axis=(0, 1))
    is_wide = areas >= WIDE * areas.max()
    sizes = steps[0] * spacing[0], steps[1] * spacing[1]
    distance = _distance(np.pad(head[..., is_wide], [(1, 1), (1, 1), (0, 0)]), sizes)[1:-1, 1:-1]
    rings, values = np.ceil(distance / COARSE), coarse[..., is_wide] - np.median(coarse[~head])
    count = round(DEPTH / COARSE)
    if rings.max() < count:
        return False
    profile = [np.median(values[rings == ring]) for ring in range(1, count + 1) if (rings == ring).any()]
    walls = [min(max(profile[:ring]), max(profile[ring + 1 :])) for ring in range(1, len(profile) - 1)]
    return any(value < VALLEY * wall for value, wall in zip(profile[1:-1], walls, strict=True))


def _distance(mask: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """Distance in mm of the mask's voxels from its outside, in the slice; far where a slice has no outside."""
    distance = np.full(mask.shape, np.inf, dtype=np.float32)
    for index in range(mask.shape[2]):
        if not mask[..., index].all():
            distance[..., index] = distance_transform_edt(mask[..., index], spacing)
    return distance
