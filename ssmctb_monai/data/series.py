"""Geometry of DICOM series, from the headers of their slices or frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from monai.data.utils import orientation_ras_lps
from pydicom import Dataset, dcmread

__all__ = ["Series", "find_series", "is_dicom", "is_series_file", "read_series"]

SLICE_TOLERANCE = 0.02  # mm; scanners round the positions of slices
TILT_TOLERANCE = 0.1  # mm, from the first slice to the last
ORIENTATION_TOLERANCE = 1e-3  # of direction cosines
WORDS = ["SeriesInstanceUID", "SeriesDescription", "ProtocolName", "SequenceName", "Rows"]
PLANE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")

# Where a file with several frames has what places a frame
_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}


@dataclass(frozen=True)
class Series:
    """A DICOM series, sorted by the positions of its slices.

    Args:
        files: files in the order in which slices are stacked; a single one where all slices are frames of it.
        frames: for a file with frames their order, else ``None``.
        affine: 4 x 4 matrix from (column, row, slice) to world coordinates in mm, RAS.
        headers: data sets without pixels, one a file.
    """

    files: tuple[str, ...]
    frames: tuple[int, ...] | None
    affine: np.ndarray
    headers: tuple[Dataset, ...]

    def pixels(self) -> np.ndarray:
        """Reads the voxels, indexed (column, row, slice)."""
        if self.frames is not None:
            return _from_itk(sitk.ReadImage(self.files[0]))[..., list(self.frames)]
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(self.files)
        kinds = ("RescaleSlope", "RescaleIntercept", "PixelRepresentation")
        if any(len({header.get(kind) for header in self.headers}) > 1 for kind in kinds):
            reader.SetOutputPixelType(sitk.sitkFloat32)  # else all slices get the type of the first
        return _from_itk(reader.Execute())


@dataclass(frozen=True)
class _Plane:
    name: str
    position: np.ndarray
    directions: np.ndarray  # along a row, along a column
    spacing: np.ndarray  # between rows, between columns


def is_dicom(path: Path) -> bool:
    """Tells whether a file is a DICOM file, by its suffix or its first bytes.

    Args:
        path: any path; one that cannot be opened is none.
    """
    if not path.is_file():
        return False
    if path.suffix.lower() == ".dcm":
        return True
    try:
        with path.open("rb") as file:
            file.seek(128)
            return file.read(4) == b"DICM"
    except OSError:  # what may not be read is no reason to refuse the other files
        return False


def is_series_file(path: Path) -> bool:
    """Tells whether a path is a DICOM file, which stands for the series that it is of.

    Args:
        path: any path; the suffix of another kind of volume is taken at its word.
    """
    return not path.name.lower().endswith((".nii", ".gz", ".mha", ".mhd", ".nrrd", ".nhdr")) and is_dicom(path)


def find_series(folder: Path) -> dict[str, tuple[Dataset, tuple[str, ...]]]:
    """Finds the series of images in a folder.

    Args:
        folder: folder with DICOM files directly in it; an index (``DICOMDIR``) and what is no image are passed over.

    Returns:
        What the first file of each series says in words, and its files, by the series instance UID.

    Raises:
        ValueError: A file is damaged; a series without it would be another volume.

    Example:
        >>> {header.get("SeriesDescription") for header, _ in find_series(Path("study")).values()}  # doctest: +SKIP
        {'t2_flair_tra', 't1_mprage_sag'}
    """
    found: dict[str, tuple[Dataset, tuple[str, ...]]] = {}
    for file in sorted(folder.glob("[!.]*")):
        if file.name.upper() == "DICOMDIR" or not is_dicom(file):
            continue
        header = _header(str(file), specific_tags=WORDS)
        uid = header.get("SeriesInstanceUID")
        if not uid:
            raise ValueError(f"{file} cannot be read: it has no SeriesInstanceUID.")
        if header.get("Rows"):
            first, files = found.get(uid, (header, ()))
            found[uid] = first, (*files, str(file))
    return found


def read_series(path: Path, series_id: str | None = None) -> Series:
    """Reads the geometry of a series and refuses one that is no single, whole and upright volume.

    Args:
        path: folder with the files of the series, or one of the files where the folder holds several series.
        series_id: series instance UID, needed where a folder holds several series.

    Returns:
        The series.

    Raises:
        FileNotFoundError: There is no DICOM series.
        ValueError: The folder holds several series, or not the one asked for; slices are missing, doubled, shifted,
            of several orientations or sizes, or do not say where they lie.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    folder = path if path.is_dir() else path.parent
    found = find_series(folder)
    if not found:
        raise FileNotFoundError(f"{folder} holds no DICOM series.")
    if series_id is None and not path.is_dir():
        series_id = next((uid for uid, (_, files) in found.items() if str(path) in files), str(path))
    if series_id is None and len(found) > 1:
        raise ValueError(f"{folder} holds {len(found)} DICOM series; choose one by series_id: {', '.join(found)}.")
    if series_id is not None and series_id not in found:
        raise ValueError(f"{folder} holds no DICOM series {series_id}; found: {', '.join(found)}.")
    _, files = found[series_id or next(iter(found))]
    headers = [_header(file) for file in files]
    with_frames = [file for file, header in zip(files, headers, strict=True) if _frame_count(header) > 1]
    if with_frames and len(files) > 1:
        raise ValueError(f"{folder} holds {len(files)} files of one series, of which {with_frames[0]} has frames.")
    planes = [plane for file, header in zip(files, headers, strict=True) for plane in _planes(file, header)]
    order, affine = _stack(planes, headers, folder)
    affine = orientation_ras_lps(affine)
    if with_frames:
        return Series(tuple(files), tuple(order), affine, tuple(headers))
    return Series(tuple(files[k] for k in order), None, affine, tuple(headers[k] for k in order))


def _header(file: str, **options: Any) -> Dataset:
    try:
        return dcmread(file, stop_before_pixels=True, force=True, **options)
    except Exception as error:  # a damaged file raises anything
        raise ValueError(f"{file} cannot be read: {error}") from error


def _frame_count(header: Dataset) -> int:
    return max(int(header.get("NumberOfFrames") or 1), len(header.get("PerFrameFunctionalGroupsSequence") or ()))


def _planes(file: str, header: Dataset) -> Iterator[_Plane]:
    """What places each frame of a file; a file of one slice counts as one frame."""
    count = _frame_count(header)
    frames = header.get("PerFrameFunctionalGroupsSequence") or ([None] if count == 1 else [])
    if len(frames) != count:
        raise ValueError(f"{file} has {count} frames, but says of {len(frames)} where they lie.")
    shared = next(iter(header.get("SharedFunctionalGroupsSequence") or ()), None)
    scales = set()
    for index, frame in enumerate(frames):
        name = f"{file}, frame {index + 1}," if count > 1 else file
        places = {key: _find(key, frame, shared, header) for key in PLANE}
        if lacking := [key for key, value in places.items() if not value]:
            raise ValueError(
                f"{name} has no {', '.join(lacking)}, without which nobody knows where its pixels lie: take the series "
                "as the scanner or the archive sends it."
            )
        values = [np.array(places[key], dtype=float) for key in PLANE]
        if [len(value) for value in values] != [3, 6, 2] or not all(np.isfinite(value).all() for value in values):
            raise ValueError(f"{name} has {', '.join(f'{key} {places[key]}' for key in PLANE)}: no geometry.")
        scaling = next(iter(_group("PixelValueTransformationSequence", frame, shared)), None)
        scales.add((scaling.get("RescaleSlope"), scaling.get("RescaleIntercept")) if scaling else None)
        yield _Plane(name, values[0], values[1].reshape(2, 3), values[2])
    if len(scales) > 1:
        raise ValueError(f"{file} scales the values of its frames differently: convert it to NIfTI, as dcm2niix does.")


def _group(name: str, *places: Dataset | None) -> Sequence[Dataset]:
    return next((place[name].value for place in places if place is not None and place.get(name)), ())


def _find(keyword: str, frame: Dataset | None, shared: Dataset | None, header: Dataset) -> Any:
    for group in _group(_GROUPS[keyword], frame, shared):
        return group.get(keyword)
    return header.get(keyword)


def _stack(planes: Sequence[_Plane], headers: Sequence[Dataset], folder: Path) -> tuple[list[int], np.ndarray]:
    """Returns the order of slices along their normal and the affine (LPS)."""
    for what, values, tolerance in (
        ("orientation", np.array([plane.directions.ravel() for plane in planes]), ORIENTATION_TOLERANCE),
        ("PixelSpacing", np.array([plane.spacing for plane in planes]), ORIENTATION_TOLERANCE),
    ):
        usual = np.median(values, axis=0) if len(values) > 2 else values[0]
        odd = [
            plane.name for plane, value in zip(planes, values, strict=True) if np.abs(value - usual).max() > tolerance
        ]
        if odd:
            raise ValueError(
                f"The slices of the series in {folder} are not of one {what}: {len(odd)} of {len(planes)} differ, such "
                f"as {odd[0]}: put a localizer or another volume into a folder of its own."
            )
    sizes = Counter((header.get("Columns"), header.get("Rows")) for header in headers)
    if len(sizes) > 1:
        raise ValueError(f"The slices of the series in {folder} have several sizes: {', '.join(map(str, sizes))}.")
    along_row, along_column = planes[0].directions
    normal = np.cross(along_row, along_column)
    between_rows, between_columns = planes[0].spacing
    if abs(np.linalg.norm(normal) - 1) > ORIENTATION_TOLERANCE or min(between_rows, between_columns) <= 0:
        raise ValueError(f"The slices of the series in {folder} have no proper orientation or pixel size.")
    order = sorted(range(len(planes)), key=lambda k: float(planes[k].position @ normal))
    positions = np.array([planes[k].position for k in order])
    distances = np.diff(positions @ normal)
    if len(distances) and (distances.max() - distances.min() > SLICE_TOLERANCE or distances.min() <= 0):
        raise ValueError(
            f"The slices of {folder} are {distances.min():.6g} to {distances.max():.6g} mm apart: some are missing, or "
            "not all are of one volume."
        )
    shift = positions - positions[0] - np.outer((positions - positions[0]) @ normal, normal)
    if (tilt := float(np.linalg.norm(shift, axis=1).max())) > TILT_TOLERANCE:
        raise ValueError(
            f"The slices of {folder} are shifted against each other by up to {tilt:.4g} mm (a tilted gantry, or "
            "several volumes): convert the series to NIfTI by a program that sets that right, such as dcm2niix."
        )
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_row * between_columns, along_column * between_rows
    affine[:3, 2] = normal * (distances.mean() if len(distances) else _thickness(headers[0], folder))
    affine[:3, 3] = positions[0]
    return order, affine


def _thickness(header: Dataset, folder: Path) -> float:
    shared = next(iter(header.get("SharedFunctionalGroupsSequence") or ()), None)
    measures = next(iter(_group("PixelMeasuresSequence", shared)), header)
    thickness = float(measures.get("SliceThickness") or 0)
    if not thickness > 0:
        raise ValueError(f"The only slice in {folder} has no SliceThickness.")
    return thickness


def _from_itk(image: sitk.Image) -> np.ndarray:
    array = sitk.GetArrayFromImage(image).T
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise ValueError("its pixels have several components, such as colours")
    return array.reshape((*array.shape[:2], -1))
