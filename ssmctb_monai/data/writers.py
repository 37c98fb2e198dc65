"""Writing of volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.data import MetaTensor

from ssmctb_monai.data.nifti import GEOMETRY_FIELDS, nifti_header
from ssmctb_monai.data.readers import grid_distance
from ssmctb_monai.files import whole_file


def write_nifti(image: MetaTensor, path: PathLike, scan: PathLike | None = None) -> None:
    """Writes an image as NIfTI, whole or not at all.

    (MONAI 1.6's ``SaveImage`` fails on some tensors whose third axis alone does not run up, and writes one affine as
    sform and qform, whatever the scan has.)

    Args:
        image: shape (channels, height, width, depth) with its affine in RAS; several channels become a fourth axis.
        path: file, ``.nii`` or ``.nii.gz``, in a folder that is made where there is none.
        scan: file on whose grid the image is. Of a NIfTI file sform, qform, their codes, voxel sizes and unit are
            taken over, so that programs show both at one place, whichever form they read.

    Raises:
        ValueError: when the image is on another grid than ``scan``.

    Example:
        >>> write_nifti(anomaly_map, "maps/case.nii.gz", "scans/case_flair.nii.gz")  # doctest: +SKIP
    """
    array = image.detach().cpu().numpy()
    array = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    affine = image.affine.cpu().numpy()
    header = nifti_header(Path(scan)) if scan is not None and Path(scan).is_file() else None
    if header is None:
        nifti = nib.Nifti1Image(array, affine)
        nifti.header.set_xyzt_units("mm")
    else:
        nifti = _like(array, affine, header, Path(str(scan)))
    with whole_file(Path(path)) as unfinished:
        nib.save(nifti, unfinished)


def _like(array: np.ndarray, affine: np.ndarray, header: Any, scan: Path) -> nib.Nifti1Image:
    """An image with the geometry of a header, field by field, and nothing else of it."""
    made = nib.Nifti1Image(array, affine)
    for field in GEOMETRY_FIELDS:
        made.header[field] = header[field]
    made.header["pixdim"][:4] = header["pixdim"][:4]
    made.header["pixdim"][0] = -1 if header["pixdim"][0] == -1 else 1  # anything else counts as 1
    best = made.header.get_best_affine()
    if distance := grid_distance(best, affine, array.shape[:3]):
        raise ValueError(f"The image lies {distance:.4g} mm off {scan}: bring it back to the grid of the scan.")
    return nib.Nifti1Image(array, best, made.header)
