"""Reading of volumes that MONAI's own readers do not cover without further packages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from monai.config import PathLike
from monai.data import ImageReader
from monai.data.utils import correct_nifti_header_if_necessary, orientation_ras_lps
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

__all__ = ["SimpleITKReader", "Volume", "affine_difference", "read_volume", "series_files"]

AFFINE_TOLERANCE = 1e-3  # mm; programs that write the files of one case round differently
SLICE_TOLERANCE = 0.02  # mm; scanners round the positions of slices

NIFTI_SUFFIXES = (".nii", ".nii.gz")
SUFFIXES = (
    *NIFTI_SUFFIXES,
    *(".mha", ".mhd", ".nrrd", ".nhdr", ".dcm", ".hdr", ".img", ".img.gz", ".gipl", ".gipl.gz", ".vtk", ".mnc", ".mrc"),
    *(".h5", ".hdf5", ".lsm", ".pic", ".spr", ".tif", ".tiff", ".png", ".bmp", ".jpg", ".jpeg", ".jp2", ".j2k"),
)


@dataclass(frozen=True)
class Volume:
    """An image in memory.

    Args:
        array: voxels, indexed (x, y, z) with a trailing channel dimension where there are several channels.
        affine: 4 x 4 matrix from voxel indices to world coordinates in mm, RAS.
        spatial_dims: number of leading dimensions of ``array`` that are spatial, at most 3.
    """

    array: np.ndarray
    affine: np.ndarray
    spatial_dims: int

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Size of the voxel grid, without channels."""
        return self.array.shape[: self.spatial_dims]


def read_volume(path: PathLike, series_id: str | None = None) -> Volume:
    """Reads an image file or a folder with a DICOM series in full.

    NIfTI files go through nibabel: ITK returns a truncated ``.nii.gz`` without an error, refuses sheared affines, and
    for some header codes takes the qform where nibabel, and so MONAI, takes the sform.

    Args:
        path: file or DICOM folder.
        series_id: series instance UID, needed where the folder holds more than one series.

    Returns:
        The image with its affine in RAS.

    Raises:
        FileNotFoundError: There is nothing at ``path``, or no DICOM series in it.
        ValueError: The folder holds several DICOM series, or not the one asked for.
        OSError: The file cannot be read; its name and the reason are in the message.

    Example:
        >>> volume = read_volume("BRATS_HG0001_FLAIR.mha")  # doctest: +SKIP
        >>> volume.spatial_shape  # doctest: +SKIP
        (160, 216, 176)
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    source = series_files(path, series_id) if path.is_dir() else str(path)
    try:
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            image = correct_nifti_header_if_necessary(nib.load(path))
            array = np.asanyarray(image.dataobj)
            return Volume(array, np.array(image.affine), spatial_dims=min(array.ndim, 3))
        return _from_itk(sitk.ReadImage(source))
    except Exception as error:  # damaged files raise anything, from EOFError to zlib.error, and most of it nameless
        raise OSError(f"{path} cannot be read: {error}") from error


def affine_difference(affine: np.ndarray, other: np.ndarray) -> float:
    """Returns the largest difference between the entries of two affines, in mm; infinite where one holds NaN.

    Example:
        >>> affine_difference(np.diag([1.0, 1, 1, 1]), np.diag([1.0, 1, 2, 1]))
        1.0
    """
    return float(np.nan_to_num(np.abs(affine - other), nan=np.inf).max())


def series_files(folder: Path, series_id: str | None = None) -> Sequence[str]:
    """Lists the files of a DICOM series in the order in which its slices are stacked.

    Args:
        folder: folder with the files.
        series_id: series instance UID, needed where the folder holds more than one series.

    Returns:
        Paths of the files.

    Raises:
        FileNotFoundError: There is no DICOM series in the folder.
        ValueError: The folder holds several series, or not the one asked for; or slices are missing.
    """
    found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not found:
        raise FileNotFoundError(f"{folder} holds no DICOM series.")
    if series_id is None and len(found) > 1:
        raise ValueError(f"{folder} holds {len(found)} DICOM series; choose one by series_id: {', '.join(found)}.")
    if series_id is not None and series_id not in found:
        raise ValueError(f"{folder} holds no DICOM series {series_id}; found: {', '.join(found)}.")
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series_id or found[0])
    distances = np.linalg.norm(np.diff([_origin(file) for file in files], axis=0), axis=1)
    # ITK takes the first distance for all
    if len(distances) and (distances.max() - distances.min() > SLICE_TOLERANCE or not distances.min()):
        raise ValueError(
            f"The slices of {folder} are {distances.min():.6g} to {distances.max():.6g} mm apart: some are missing, or "
            "not all are of one volume."
        )
    return files


class SimpleITKReader(ImageReader):
    """Reader for MONAI's ``LoadImage`` of MetaImage, NRRD, DICOM series and all else that SimpleITK or nibabel reads.

    Arrays and affines are those of MONAI's ``NibabelReader``: indexed (x, y, z), channels last, RAS. A list of files is
    stacked along a new first dimension, or concatenated along the channel dimension where the files have one; their
    affines may differ by 0.001 mm (MONAI's readers stop at rounding errors). Header fields other than the geometry
    are left out: they differ from file to file, which breaks collating, and those of DICOM name the patient.

    Args:
        series_id: series instance UID to read from DICOM folders that hold more than one series.

    Example:
        >>> from monai.transforms import LoadImage
        >>> load = LoadImage(reader=SimpleITKReader(), ensure_channel_first=True)
        >>> load(["BRATS_HG0001_FLAIR.mha", "BRATS_HG0001_T1.mha"]).shape  # doctest: +SKIP
        torch.Size([2, 160, 216, 176])
    """

    def __init__(self, series_id: str | None = None) -> None:
        super().__init__()
        self.series_id = series_id

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Tells whether every file has a suffix that SimpleITK reads, or is a folder.

        Args:
            filename: path or paths.
        """
        return all(str(name).lower().endswith(SUFFIXES) or Path(name).is_dir() for name in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> list[partial[Volume]]:
        """Names one file or several; :meth:`get_data` opens them.

        Args:
            data: path or paths of files or DICOM folders.
            kwargs: ``series_id``, in place of the reader's own.

        Returns:
            How to read each. (Were they read here, ``LoadImage`` would hide what is wrong with a file, and answer it by
            trying its other readers, which see no fault in a DICOM series with missing slices.)
        """
        return [partial(read_volume, name, kwargs.get("series_id", self.series_id)) for name in ensure_tuple(data)]

    def get_data(self, img: Sequence[Any] | Any) -> tuple[np.ndarray, dict]:
        """Reads into one array, with the metadata that MONAI's spatial transforms and writers use.

        Args:
            img: what :meth:`read` returned.

        Returns:
            The array, and its metadata: affine, original affine, spatial shape, space and original channel dimension.

        Raises:
            ValueError: The images do not share one voxel grid.
            FileNotFoundError, OSError, ValueError: As :func:`read_volume`.
        """
        volumes = [read() for read in ensure_tuple(img)]
        first = volumes[0]
        names = ", ".join(str(read.args[0]) for read in ensure_tuple(img))
        for volume in volumes[1:]:
            if volume.spatial_shape != first.spatial_shape:
                raise ValueError(
                    f"Images of shapes {first.spatial_shape} and {volume.spatial_shape} cannot be stacked: {names}."
                )
            if (difference := affine_difference(volume.affine, first.affine)) > AFFINE_TOLERANCE:
                raise ValueError(f"Images whose affines differ by {difference:.6g} mm cannot be stacked: {names}.")

        arrays = [volume.array for volume in volumes]
        channel_dim: float = -1 if first.array.ndim > first.spatial_dims else float("nan")
        array = arrays[0]
        if len(arrays) > 1 and channel_dim == -1:
            array = np.concatenate(arrays, axis=-1)
        elif len(arrays) > 1:
            array, channel_dim = np.stack(arrays), 0
        meta = {
            MetaKeys.ORIGINAL_AFFINE: first.affine.copy(),
            MetaKeys.AFFINE: first.affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(first.spatial_shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: channel_dim,
        }
        return array, meta


def _from_itk(image: sitk.Image) -> Volume:
    array = sitk.GetArrayFromImage(image).T  # ITK's arrays are (z, y, x)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, 0, -1)
    dims = image.GetDimension()
    spatial_dims = min(dims, 3)
    affine = np.eye(4)
    direction = np.reshape(image.GetDirection(), (dims, dims))
    affine[:spatial_dims, :spatial_dims] = (direction * image.GetSpacing())[:spatial_dims, :spatial_dims]
    affine[:spatial_dims, 3] = image.GetOrigin()[:spatial_dims]
    return Volume(array, orientation_ras_lps(affine), spatial_dims)


def _origin(file: str) -> tuple[float, ...]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    return reader.GetOrigin()
