"""Writing of volumes."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.data import MetaTensor

from ssmctb_monai.files import whole_file


def write_nifti(image: MetaTensor, path: PathLike) -> None:
    """Writes an image as NIfTI, whole or not at all.

    (MONAI 1.6's ``SaveImage`` fails on some tensors whose third axis alone does not run up.)

    Args:
        image: shape (channels, height, width, depth) with its affine in RAS; several channels become a fourth axis.
        path: file, ``.nii`` or ``.nii.gz``, in a folder that is made where there is none.

    Example:
        >>> write_nifti(anomaly_map, "maps/case.nii.gz")
    """
    array = image.detach().cpu().numpy()
    nifti = nib.Nifti1Image(array[0] if len(array) == 1 else np.moveaxis(array, 0, -1), image.affine.cpu().numpy())
    nifti.header.set_xyzt_units("mm")
    with whole_file(Path(path)) as unfinished:
        nib.save(nifti, unfinished)
