"""The cases: a folder of links to the data set, in which labels with a wrong origin are repaired, and its folds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

from ssmctb_monai.data import BratsCase, check_cases, find_cases, patient_folds, write_datalist
from ssmctb_monai.data.brats import walk_files
from ssmctb_monai.data.readers import NIFTI_SUFFIXES, read_volume
from ssmctb_monai.data.writers import write_nifti

logger = logging.getLogger(__name__)

FOLDS = 3
ORIGIN_ONLY = 1e-6  # mm by which the directions of a label to repair may differ
SHIFTED = 1e-3  # mm; smaller differences between origins are rounding


@dataclass(frozen=True)
class Cases:
    """The cases of a benchmark.

    Args:
        root: folder of links to the data set.
        folds: sound cases of each fold; the folds do not depend on which cases are sound.
        repaired: names of the cases whose label got the image's header.
        left_out: problems of the cases that cannot be used, by their names.
    """

    root: Path
    folds: Sequence[Sequence[BratsCase]]
    repaired: Sequence[str]
    left_out: Mapping[str, Sequence[str]]


def prepare_cases(dataset_dir: Path, root: Path, modalities: Sequence[str]) -> Cases:
    """Links, repairs and checks the cases of a data set, and deals its patients out to the folds.

    Args:
        dataset_dir: folder of the data set, which stays as it is.
        root: folder to make the links in.
        modalities: modalities that each case must have.

    Returns:
        The cases.

    Raises:
        ValueError: when ``root`` holds links to another data set, or a fold has no sound case.
    """
    link_files(dataset_dir, root)
    cases = find_cases(root)
    problems = check_cases(cases, modalities)
    for case in cases:
        if case.case_id in problems:
            repair_label(case)  # where another process does so, too, there may be nothing left to repair
            problems |= {case.case_id: check_cases([case], modalities).get(case.case_id, [])}
    left_out = {case_id: found for case_id, found in problems.items() if found}
    repaired = [case.case_id for case in cases if case.label and not case.label.is_symlink()]
    for case_id in repaired:
        logger.warning("%s: the label's origin differs from the image's; a copy with the image's is used.", case_id)
    for case_id, found in left_out.items():
        logger.warning("%s is left out: %s", case_id, "; ".join(found))
    folds = [[case for case in fold if case.case_id not in left_out] for fold in patient_folds(cases, FOLDS)]
    if not all(folds):
        raise ValueError(f"A fold of {dataset_dir} has no case that can be used; left out are {', '.join(left_out)}.")
    return Cases(root, folds, repaired, left_out)


def link_files(source: Path, root: Path) -> None:
    """Links every file of a data set, hidden ones passed over; links that exist already are kept.

    Args:
        source: folder of the data set.
        root: folder of the links.

    Raises:
        NotADirectoryError: when there is no such data set.
        ValueError: when ``root`` holds links to another data set.
    """
    if not source.is_dir():
        raise NotADirectoryError(f"The data set folder {source} does not exist or is not a folder.")
    for file in walk_files(source.resolve()):
        link = root / file.relative_to(source.resolve())
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() and link.readlink() != file:
            raise ValueError(f"{link} links to {link.readlink()}, not to {file}: remove {root}.")
        if not link.exists():
            link.symlink_to(file)


def repair_label(case: BratsCase) -> bool:
    """Gives the label of a case the image's header, where both have one shape and differ in their origins alone.

    Args:
        case: case of links; that to the label becomes a file.

    Returns:
        Whether the label was repaired.
    """
    if case.label is None or case.channels or not case.label.name.lower().endswith(NIFTI_SUFFIXES):
        return False
    try:
        image, label = read_volume(next(iter(case.images.values()))), read_volume(case.label)
    except (OSError, ValueError):  # which the check of the case names
        return False
    difference = np.abs(label.affine - image.affine)[:3]
    is_shifted = difference[:, :3].max() <= ORIGIN_ONLY and difference[:, 3].max() > SHIFTED
    if label.array.shape != image.array.shape or not is_shifted:
        return False
    write_nifti(MetaTensor(torch.from_numpy(label.array)[None], affine=torch.from_numpy(image.affine)), case.label)
    return True


def write_fold(cases: Cases, fold: int, path: Path) -> None:
    """Writes the datalist of a fold: its cases are for the test, all others for training.

    Args:
        cases: the cases.
        fold: index of the fold.
        path: file to write.
    """
    others = [case for index, part in enumerate(cases.folds) if index != fold for case in part]
    training = sorted(others, key=lambda case: case.case_id)
    parts = {"training": training, "validation": [], "test": cases.folds[fold]}
    write_datalist(parts, cases.root, path, f"fold {fold} of {len(cases.folds)} by patient")
