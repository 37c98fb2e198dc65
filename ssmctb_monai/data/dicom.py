"""Anomaly maps and masks as DICOM objects that belong to the series that they were found in.

The map becomes a Parametric Map, the mask a Segmentation (SEG); viewers and archives show both on top of the series.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes

from ssmctb_monai import __version__
from ssmctb_monai.data.readers import grid_distance
from ssmctb_monai.data.series import Series, read_series
from ssmctb_monai.files import whole_file

__all__ = ["write_parametric_map", "write_segmentation"]

NAME = "ssmctb_monai"
MAP_SERIES_NUMBER, MASK_SERIES_NUMBER = 9001, 9002  # beyond those that scanners give to the series of a study
MASK_COLOR = (230, 159, 0)  # orange of Okabe and Ito, which stands out from grey scans for all kinds of colour vision
ORIENTATION_TOLERANCE = 1e-4  # some scanners round the direction cosines of each slice differently
SCORE_TOLERANCE = 1e-5  # blending of overlapping windows leaves scores slightly above 1

# What makes a result belong to a series
REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")

# highdicom demands all of these, and refuses values that break the standard; both keep out anonymised series.
IDENTITY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)


def write_parametric_map(anomaly_map: np.ndarray | torch.Tensor, series_dir: PathLike, path: PathLike) -> None:
    """Writes an anomaly map as a DICOM Parametric Map.

    The values are stored as 32-bit floats, one frame a slice. Patient, study, frame of reference and the position of
    each slice are those of the series, which the map refers to; it forms a series of its own in the same study.

    Args:
        anomaly_map: scores in [0, 1] of shape (x, y, z) or (1, x, y, z), on the grid on which
            :func:`~ssmctb_monai.data.readers.read_volume` reads the series. The affine of a `MetaTensor` is checked.
        series_dir: folder with the files of one DICOM series, or one of its files.
        path: file to write, outside of ``series_dir``; its folder is made where there is none.

    Raises:
        ImportError: when highdicom is missing.
        FileNotFoundError: when ``series_dir`` is missing or holds no DICOM series.
        ValueError: when ``series_dir`` holds several series, the series lacks what places it in space, the map lies on
            another grid or has values outside of [0, 1], or the file would become a part of ``series_dir``.

    Example:
        >>> write_parametric_map(anomaly_map, "P1/flair", "results/P1_map.dcm")  # doctest: +SKIP
    """
    highdicom = import_highdicom()
    from pydicom.sr.codedict import codes

    target = _read_target(series_dir, path)
    array = _on_grid(anomaly_map, "anomaly map", target)
    if not ((array >= -SCORE_TOLERANCE) & (array <= 1 + SCORE_TOLERANCE)).all():  # NaN is neither
        raise ValueError(f"An anomaly map has values in [0, 1], got {array.min():.6g} to {array.max():.6g}.")
    mapping = highdicom.pm.RealWorldValueMapping(
        lut_label="ANOMALY_MAP",
        lut_explanation="Anomaly score from 0 (normal) to 1 (anomalous)",
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
    )
    _write(
        highdicom.pm.ParametricMap,
        array.clip(0, 1),
        target,
        path,
        series_number=MAP_SERIES_NUMBER,
        series_description=f"Anomaly map ({NAME})",
        content_label="ANOMALY_MAP",
        content_description="Anomaly score of each voxel",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[highdicom.VOILUTTransformation(window_center=0.5, window_width=1.0)],
    )


def write_segmentation(mask: np.ndarray | torch.Tensor, series_dir: PathLike, path: PathLike) -> None:
    """Writes an anomaly mask as a DICOM Segmentation with one binary segment.

    All slices are written, also those without an anomaly: the object then covers the grid of the series, whatever was
    found, and a mask without any voxel is a result too. For the rest see :func:`write_parametric_map`.

    Args:
        mask: zeros and ones (or booleans) of shape (x, y, z) or (1, x, y, z), on the grid on which
            :func:`~ssmctb_monai.data.readers.read_volume` reads the series. The affine of a `MetaTensor` is checked.
        series_dir: folder with the files of one DICOM series, or one of its files.
        path: file to write, outside of ``series_dir``; its folder is made where there is none.

    Raises:
        ImportError: when highdicom is missing.
        FileNotFoundError: when ``series_dir`` is missing or holds no DICOM series.
        ValueError: when ``series_dir`` holds several series, the series lacks what places it in space, the mask lies on
            another grid or has values other than 0 and 1, or the file would become a part of ``series_dir``.

    Example:
        >>> write_segmentation(anomaly_map > 0.5, "P1/flair", "results/P1_mask.dcm")  # doctest: +SKIP
    """
    highdicom = import_highdicom()
    from pydicom.sr.codedict import codes

    target = _read_target(series_dir, path)
    array = _on_grid(mask, "mask", target)
    if not np.isin(array, (0, 1)).all():
        raise ValueError(f"A mask has the values 0 and 1, got {np.unique(array)[:10].tolist()}.")
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="Anomaly",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=NAME, version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
        anatomic_regions=[codes.SCT.Brain],
        display_color=highdicom.color.CIELabColor.from_rgb(*MASK_COLOR),
    )
    _write(
        highdicom.seg.Segmentation,
        array.astype(np.uint8),
        target,
        path,
        series_number=MASK_SERIES_NUMBER,
        series_description=f"Anomaly segmentation ({NAME})",
        content_label="ANOMALY_MASK",
        content_description="Voxels that the anomaly map marks as anomalous",
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        omit_empty_frames=False,
    )


@dataclass(frozen=True)
class _Target:
    """The series that a result is laid on."""

    series: Series
    source: str
    shape: tuple[int, ...]


def import_highdicom() -> Any:
    """Returns the module, and raises ImportError that says how to install it."""
    try:
        import highdicom
    except ImportError as error:
        raise ImportError('DICOM output needs highdicom: pip install "ssmctb_monai[dicom]"') from error
    return highdicom


def _read_target(series_dir: PathLike, path: PathLike) -> _Target:
    """Reads what the result takes over from the series, and its grid."""
    source = Path(series_dir)
    folder = source.parent if source.is_file() else source
    if Path(path).parent.resolve() == folder.resolve():
        raise ValueError(f"{path} would be a second series in the folder of the first: write it to another folder.")
    series = read_series(source)
    for file, image in zip(series.files, series.headers, strict=True):
        if lacking := [keyword for keyword in REQUIRED if not image.get(keyword)]:
            raise ValueError(
                f"{file} has no {', '.join(lacking)}, without which no result can be laid on the series: "
                "take the series as the scanner or the archive sends it."
            )
        if series.frames is None:
            _harmonise(image, series.headers[0], series.affine)
    first = series.headers[0]
    return _Target(series, str(source), (first.Columns, first.Rows, len(series.frames or series.files)))


def _harmonise(image: Any, first: Any, affine: np.ndarray) -> None:
    """Sets right what a slice says of its geometry in contradiction to the others or to its position, or not at all."""
    if np.allclose(image.ImageOrientationPatient, first.ImageOrientationPatient, rtol=0, atol=ORIENTATION_TOLERANCE):
        image.ImageOrientationPatient = first.ImageOrientationPatient
    # Some scanners write the gap between slices here; highdicom finds their distance from the positions instead.
    image.pop("SpacingBetweenSlices", None)
    if not image.get("SliceThickness"):  # highdicom reads no segmentation without it
        image.SliceThickness = round(voxel_sizes(affine)[2], 6)


def _on_grid(values: np.ndarray | torch.Tensor, name: str, target: _Target) -> np.ndarray:
    """Returns the voxels as float32 frames in the order of the series' files: (slice, row, column)."""
    shape = tuple(values.shape)
    if shape not in (target.shape, (1, *target.shape)):
        raise ValueError(f"The {name} has shape {shape}, but the series in {target.source} has {target.shape}.")
    if isinstance(values, MetaTensor):
        distance = grid_distance(values.affine.numpy(force=True), target.series.affine, target.shape)
        if distance:
            raise ValueError(
                f"The {name} lies up to {distance:.4g} mm off the series in {target.source}: bring it back to the grid "
                "of the series, as MONAI's Invertd does."
            )
    array = values.to(torch.float32).numpy(force=True) if isinstance(values, torch.Tensor) else values
    frames = np.ascontiguousarray(array.reshape(target.shape).T, dtype=np.float32)
    return frames if target.series.frames is None else frames[np.argsort(target.series.frames)]


def _write(kind: Any, frames: np.ndarray, target: _Target, path: PathLike, **content: Any) -> None:
    """Makes a DICOM object of a kind and writes it."""
    from pydicom.uid import generate_uid

    first = target.series.headers[0]
    identity = [first[keyword] for keyword in IDENTITY if keyword in first]
    for keyword in IDENTITY:
        first.pop(keyword, None)
        setattr(first, keyword, None)
    try:
        result = kind(
            target.series.headers,
            frames,
            series_instance_uid=generate_uid(),
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=NAME,
            manufacturer_model_name=NAME,
            software_versions=__version__,
            device_serial_number=__version__,  # the standard demands one
            **content,
        )
    except (AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"No result can be laid on the series in {target.source}: {error}") from error
    for element in identity:
        result.add(element)
    result.BodyPartExamined = first.get("BodyPartExamined") or "BRAIN"  # else the standard demands a laterality
    with whole_file(Path(path)) as unfinished:
        result.save_as(unfinished)
