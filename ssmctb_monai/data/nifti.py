"""NIfTI files: read by their content and to their end, with the geometry that their header says."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ssmctb_monai.files import GZIP

__all__ = ["GEOMETRY_FIELDS", "content_of", "nifti_header", "read_nifti"]

logger = logging.getLogger(__name__)

CODES = range(6)  # of sform and qform; nibabel drops the form of any other code in silence
UNITS = {1: "m", 3: "micrometres"}  # other than mm; nibabel passes them over, ITK does not
KINDS = {348: nib.Nifti1Image, 540: nib.Nifti2Image}  # by the size of the header, with which a file begins

# What says where an image lies
GEOMETRY_FIELDS = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)

# How files begin that people give another suffix by mistake
_CONTENTS = {
    b"NRRD": "an NRRD file (.nrrd)",
    b"ObjectType": "a MetaImage file (.mha)",
    b"NDims": "a MetaImage file (.mha)",
    b"PK\x03\x04": "a ZIP archive, which is to be unpacked",
    b"version https://git-lfs": "a pointer of Git LFS, whose file is to be downloaded",
    b"<": "a web page or XML",
    GZIP: "compressed",
}


def content_of(data: bytes) -> str | None:
    """Says what a file is by its first bytes, ``None`` where that is not known.

    Args:
        data: at least the first 132 bytes.

    Example:
        >>> content_of(b"NRRD0004")
        'an NRRD file (.nrrd)'
    """
    if not data:
        return "empty"
    if _kind(data):
        return "a NIfTI file (.nii or .nii.gz)"
    if data[128:132] == b"DICM":
        return "a DICOM file (.dcm)"
    return next((content for start, content in _CONTENTS.items() if data.lstrip().startswith(start)), None)


def read_nifti(path: Path) -> nib.Nifti1Image:
    """Reads a NIfTI file, compressed or not, whatever its suffix says.

    The sform counts where its code is above 0, else the qform where its code is above 0, else voxel sizes alone, of
    which the log warns: nibabel's and the standard's order. A compressed file is read to its end, so that its checksum
    counts.

    Args:
        path: file.

    Returns:
        The image.

    Raises:
        ValueError: The content is something else, or cut off, or its geometry is no geometry.
        OSError, EOFError, zlib.error: The compressed stream is damaged.
    """
    data = path.read_bytes()
    while data.startswith(GZIP):
        data = gzip.decompress(data)
    kind = _kind(data)
    if kind is None:
        raise ValueError(f"it is no NIfTI file, but {content_of(data) or 'something else'}: name it as what it is")
    header = _raw_header(data, kind)
    _check_geometry(header, path)
    voxels = header.get_data_dtype()
    if voxels.kind not in "iuf":
        raise ValueError(f"its voxels are no real numbers, but {header.get_value_label('datatype')}")
    shape = header.get_data_shape()
    behind_header = len(header.binaryblock) + 4
    if (
        header["vox_offset"] < behind_header
    ):  # 0 in files of some programs, for which nibabel takes the header as voxels
        header["vox_offset"] = behind_header
        data = header.binaryblock + data[len(header.binaryblock) :]
    needed = int(header["vox_offset"]) + voxels.itemsize * int(np.prod(shape, dtype=float))
    if min(shape, default=0) < 1 or len(data) < needed:
        raise ValueError(f"it is cut off: shape {shape} needs {needed} bytes, but there are {len(data)}")
    return kind.from_bytes(data)


def nifti_header(path: Path) -> Any:
    """Returns the header of a NIfTI file as it is, ``None`` where the content is something else.

    Args:
        path: file.
    """
    with path.open("rb") as file:
        is_compressed = file.read(2) == GZIP
    with gzip.open(path) if is_compressed else path.open("rb") as file:
        data = file.read(max(KINDS))
    kind = _kind(data)
    return _raw_header(data, kind) if kind else None


def _kind(data: bytes) -> type[nib.Nifti1Image] | None:
    size = int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big")
    kind = KINDS.get(size[0]) or KINDS.get(size[1])
    if kind is None or len(data) < kind.header_class.sizeof_hdr:
        return None
    magic = data[344:348] if kind is nib.Nifti1Image else data[4:8]
    return kind if magic.rstrip(b"\0") in (b"n+1", b"n+2") else None


def _raw_header(data: bytes, kind: type[nib.Nifti1Image]) -> Any:
    """The header without nibabel's repairs, which replace what is wrong with a default."""
    return kind.header_class(data[: kind.header_class.sizeof_hdr], check=False)


def _check_geometry(header: Any, path: Path) -> None:
    codes = {form: int(header[f"{form}_code"]) for form in ("sform", "qform")}
    if wrong := [f"{form}_code {code}" for form, code in codes.items() if code not in CODES]:
        raise ValueError(f"its header has {' and '.join(wrong)}, which the standard does not know: set the right code")
    if unit := UNITS.get(int(header["xyzt_units"]) % 8):
        raise ValueError(f"its header says that voxel sizes are in {unit}: set them, and xyzt_units, to mm")
    if codes["sform"]:
        return  # the affine is checked as that of any other file is
    sizes = header["pixdim"][1 : 1 + min(3, int(header["dim"][0]))]
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError(f"its header has the voxel sizes {sizes.tolist()} and no sform: set the right ones")
    if not codes["qform"]:
        logger.warning("%s does not say how it is oriented (sform and qform have code 0).", path)
