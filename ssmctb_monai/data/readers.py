"""Reading of volumes that MONAI's own readers do not cover without further packages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from monai.config import PathLike
from monai.data import ImageReader
from monai.data.utils import orientation_ras_lps
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from ssmctb_monai.data.nifti import read_nifti
from ssmctb_monai.data.series import is_series_file, read_series
from ssmctb_monai.data.streams import check_stream

__all__ = ["SimpleITKReader", "Volume", "grid_distance", "read_volume"]

GRID_TOLERANCE = 0.05  # of a voxel
VOXEL_SIZES = (0.01, 100)  # mm; others are in another unit, or garbage
SINGULAR = 1e-3  # volume of a voxel, of that of a box with its sizes

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
    """Reads an image file or a DICOM series in full, and refuses what is damaged or lies nowhere.

    NIfTI files go through nibabel: ITK returns a truncated ``.nii.gz`` without an error, refuses sheared affines, and
    for some header codes takes the qform where nibabel, and so MONAI, takes the sform. Trailing axes of length 1 are
    left out.

    Args:
        path: file, DICOM folder, or a DICOM file, which stands for the series that it is of.
        series_id: series instance UID, needed where a folder holds more than one series.

    Returns:
        The image with its affine in RAS.

    Raises:
        FileNotFoundError: There is nothing at ``path``, or no DICOM series in it.
        ValueError: The folder holds several DICOM series, or not the one asked for, or no single, whole volume.
        OSError: The file cannot be read; its name and the reason are in the message.

    Example:
        >>> volume = read_volume("BRATS_HG0001_FLAIR.mha")  # doctest: +SKIP
        >>> volume.spatial_shape  # doctest: +SKIP
        (160, 216, 176)
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    series = read_series(path, series_id) if path.is_dir() or is_series_file(path) else None
    try:
        if series:
            volume = Volume(series.pixels(), series.affine, spatial_dims=3)
        elif path.name.lower().endswith(NIFTI_SUFFIXES):
            image = read_nifti(path)
            array = np.asanyarray(image.dataobj)
            array = array.astype(array.dtype.newbyteorder("="), copy=False)  # PyTorch takes no other
            volume = Volume(array, np.array(image.affine), spatial_dims=min(array.ndim, 3))
        else:
            volume = _read_itk(path)
        return _on_a_grid(volume)
    except Exception as error:  # damaged files raise anything, from EOFError to zlib.error, and most of it nameless
        raise OSError(f"{path} cannot be read: {error}") from error


def grid_distance(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """Measures how far two voxel grids of one shape lie apart.

    Args:
        affine: 4 x 4 matrix from voxel indices to world coordinates in mm.
        other: matrix of the other grid.
        shape: number of voxels along each of the three axes.

    Returns:
        The largest distance between two corners that should be one, in mm; 0 where it is below 0.05 of a voxel, since
        programs that write the files of one case round differently; infinite where a matrix holds NaN.

    Example:
        >>> grid_distance(np.eye(4), np.diag([1, 1, 2, 1]), (9, 9, 9))
        8.0
    """
    corners = np.array([[*corner, 1] for corner in product(*((0, size - 1) for size in shape))]).T
    distances = np.linalg.norm(((affine - other) @ corners)[:3], axis=0)
    distance = float(np.nan_to_num(distances, nan=np.inf).max())
    return 0.0 if distance <= GRID_TOLERANCE * np.linalg.norm(affine[:3, :3], axis=0).min() else distance


class SimpleITKReader(ImageReader):
    """Reader for MONAI's ``LoadImage`` of MetaImage, NRRD, DICOM series and all else that SimpleITK or nibabel reads.

    Arrays and affines are those of MONAI's ``NibabelReader``: indexed (x, y, z), channels last, RAS. A list of files is
    stacked along a new first dimension, or concatenated along the channel dimension where the files have one; their
    grids may lie 0.05 of a voxel apart (MONAI's readers stop at rounding errors). Header fields other than the geometry
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
            if distance := grid_distance(volume.affine, first.affine, (*first.spatial_shape, 1)[:3]):
                raise ValueError(f"Images that lie {distance:.6g} mm apart cannot be stacked: {names}.")

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


def _read_itk(path: Path) -> Volume:
    check_stream(path)
    image = sitk.ReadImage(str(path))
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


def _on_a_grid(volume: Volume) -> Volume:
    """Leaves out trailing axes of length 1, and refuses an affine that places nothing."""
    array, affine = volume.array, volume.affine
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= SINGULAR * sizes.prod():
        raise ValueError(f"its affine places nothing: {affine[:3].tolist()}; set the right one")
    if sizes.min() < VOXEL_SIZES[0] or sizes.max() > VOXEL_SIZES[1]:
        raise ValueError(f"its voxels measure {' x '.join(f'{size:.4g}' for size in sizes)} mm: set their size in mm")
    return Volume(array, affine, volume.spatial_dims)
