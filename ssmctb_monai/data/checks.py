"""Checks that find unusable cases before training does, and one way to report them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ssmctb_monai.data.brats import BratsCase, canonical_modalities, named_path, parse_file, volume_stem
from ssmctb_monai.data.readers import Volume, grid_distance, read_volume
from ssmctb_monai.files import printable, raise_from_environment

__all__ = ["InvalidCasesError", "check_cases", "has_gaps", "has_whole_labels", "report_invalid"]

logger = logging.getLogger(__name__)

LABEL_TOLERANCE = 1e-3  # scaled and resampled files hold 0.99999997 for 1


class InvalidCasesError(ValueError):
    """Cases that cannot be used, all of them with all their problems.

    Args:
        problems: the problems of each case, by case name.
        advice: what to do.
    """

    def __init__(
        self,
        problems: Mapping[str, Sequence[str]],
        advice: str = "Repair or remove them, or leave them out with skip_invalid=True (in a bundle: "
        "--skip_invalid true).",
    ) -> None:
        super().__init__(problems)
        self.problems = problems
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.listing()}\n{self.advice}"

    def listing(self) -> str:
        """Returns one paragraph a case."""
        lines = [f"{case_id}:" + "".join(f"\n  - {line}" for line in found) for case_id, found in self.problems.items()]
        return "\n".join([f"Cases that cannot be used: {len(self.problems)}.", *lines])


def report_invalid(problems: Mapping[str, Sequence[str]], skip_invalid: bool) -> None:
    """Raises or, where invalid cases are to be skipped, logs a report that names every case and its problems.

    Args:
        problems: the problems of each case, by case name; nothing happens where there are none.
        skip_invalid: log a warning instead of raising.

    Raises:
        InvalidCasesError: There are problems, and ``skip_invalid`` is false.
    """
    if not problems:
        return
    error = InvalidCasesError(problems)
    if not skip_invalid:
        raise error
    logger.warning("%s\nThey are skipped.", printable(error.listing()))


def check_cases(cases: Iterable[BratsCase], modalities: Sequence[str] | str) -> dict[str, list[str]]:
    """Reads the files of cases in full and lists what makes cases unusable.

    Args:
        cases: cases to check.
        modalities: the modalities that each case must have; images of others are not read.

    Returns:
        The problems of each case that has any, by case name: no image of a modality, no segmentation, a file that
        cannot be read, shapes or affines that differ, NaN or infinite voxels (outside of
        a given brain mask they are background), a constant image, an empty brain mask, a segmentation with negative or
        fractional labels.

    Example:
        >>> check_cases(find_cases("BraTS2020"), ["flair", "t1ce"])  # doctest: +SKIP
        {'BraTS20_Training_355': ['no segmentation beside BraTS2020/.../BraTS20_Training_355_flair.nii']}
    """
    names = canonical_modalities(modalities)
    cases = list(cases)
    logger.info("Reading the files of %d cases to check them.", len(cases))
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        problems = pool.map(lambda case: _check_case(case, names), cases)
        return {case.case_id: found for case, found in zip(cases, problems, strict=True) if found}


def has_whole_labels(segmentation: np.ndarray) -> bool:
    """Tells whether all voxels of a segmentation are whole numbers of at least 0, up to rounding.

    Args:
        segmentation: array of numbers.

    Example:
        >>> has_whole_labels(np.array([0, 1.9999999])), has_whole_labels(np.array([0, 0.5]))
        (True, False)
    """
    if segmentation.min() < -LABEL_TOLERANCE:
        return False
    is_integer = segmentation.dtype.kind in "iu"
    return is_integer or bool(np.abs(segmentation - np.rint(segmentation)).max() <= LABEL_TOLERANCE)


def has_gaps(array: np.ndarray, brain: np.ndarray | None) -> bool:
    """Tells whether any voxel is NaN or infinite; where the brain is known, any in it.

    Args:
        array: voxels, with or without a channel dimension.
        brain: mask of the same shape or without channels, ``None`` where all voxels count.

    Example:
        >>> has_gaps(np.array([1, np.nan]), None), has_gaps(np.array([1, np.nan]), np.array([True, False]))
        (True, False)
    """
    if np.isfinite(array.min()) and np.isfinite(array.max()):  # both are NaN where any voxel is
        return False
    gaps = ~np.isfinite(array)
    if brain is not None and brain.shape[-3:] == array.shape[-3:]:
        gaps = gaps & brain
    return bool(gaps.any())


def _check_case(case: BratsCase, modalities: Sequence[str]) -> list[str]:
    kinds = {"label": case.label, "brain": case.brain}
    files = {case.images[name]: "image" for name in modalities if name in case.images}
    files |= {path: kind for kind, path in kinds.items() if path is not None}

    problems = list(case.problems)
    beside = next((f" beside {path}" for path in [*case.images.values(), *files]), "")
    if lacking := [name for name in modalities if name not in case.images]:
        problems.append(f"no {', '.join(lacking)} image{beside}")
    if case.label is None:
        problems.append(f"no segmentation{beside}{_not_taken(case)}")
    reference: tuple[str, tuple[int, ...], np.ndarray] | None = None
    brain: np.ndarray | None = None
    volumes: dict[Path, Volume] = {}
    for path, kind in sorted(files.items(), key=lambda file: file[1] != "brain"):  # the mask says which voxels count
        try:
            volumes[path] = read_volume(path)
        except (OSError, ValueError) as error:
            raise_from_environment(error)
            problems.append(str(error))
        else:
            brain = volumes[path].array > 0.5 if kind == "brain" else brain
    for path, kind in files.items():
        if path not in volumes:
            continue
        volume = volumes[path]
        channels = [case.channels[name] for name in modalities if name in case.channels] if kind == "image" else []
        problems += [f"{path}: {problem}" for problem in _check_voxels(volume.array, kind, channels, brain)]
        if reference is None:
            reference = path.name, volume.spatial_shape, volume.affine
        name, shape, affine = reference
        if volume.spatial_shape != shape:
            problems.append(f"{path}: shape {volume.spatial_shape} differs from {shape} of {name}")
        elif distance := grid_distance(volume.affine, affine, (*shape, 1)[:3]):
            problems.append(f"{path}: it lies {distance:.6g} mm off {name}, since their affines differ")
    return problems


def _not_taken(case: BratsCase) -> str:
    """Names the volumes in the folder of a case that are not taken for anything."""
    folders = {named_path(image).parent for image in case.images.values()}
    volumes = [path for folder in sorted(folders) for path in sorted(folder.glob("[!.]*")) if volume_stem(path)]
    others = [path.name for path in volumes if next(parse_file(path), None) is None]
    if not others:
        return ""
    rest = f" and {len(others) - 5} more" if len(others) > 5 else ""
    return f"; not taken for it: {', '.join(others[:5])}{rest}: rename the right one {case.case_id}_seg"


def _check_voxels(array: np.ndarray, kind: str, channels: Sequence[int], brain: np.ndarray | None) -> list[str]:
    if channels and array.ndim == 3:  # a trailing axis of length 1 was left out
        array = array[..., None]
    dims = 4 if channels else 3
    if array.ndim != dims or not array.size or array.dtype.kind not in "iuf":
        return [f"expected is a {dims}D array of numbers, but it has shape {array.shape} and type {array.dtype}"]
    if channels and max(channels) >= array.shape[-1]:
        return [f"it has {array.shape[-1]} channels, but dataset.json speaks of channel {max(channels)}"]
    problems = []
    for part in [array[..., channel] for channel in channels] or [array]:
        finite = np.isfinite(part)
        known = part[finite] if not finite.all() else part
        low, high = (known.min(), known.max()) if known.size else (0, 0)
        if has_gaps(part, None if kind == "brain" else brain):
            problems.append("it has NaN or infinite voxels")
        elif kind == "image" and low == high:
            problems.append(f"it is empty: every voxel is {low}")
        elif kind == "brain" and high <= 0:
            problems.append("the brain mask is empty")
        elif kind == "label" and not has_whole_labels(known):
            problems.append("the segmentation has labels that are negative or not whole numbers")
    return problems
