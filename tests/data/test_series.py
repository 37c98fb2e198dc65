"""Geometry of DICOM series: right or refused."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from ssmctb_monai.data.readers import read_volume

VOXELS = np.random.default_rng(0).integers(0, 900, (4, 5, 6)).astype(np.uint16)


def dataset(pixels, **elements):
    made = Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = pydicom.uid.MRImageStorage, pydicom.uid.generate_uid()
    made.SeriesInstanceUID, made.Modality = "1.2.3", "MR"
    made.Rows, made.Columns = pixels.shape[-2:]
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelRepresentation, made.SamplesPerPixel = 15, 0, 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.PixelData = np.ascontiguousarray(pixels, "<u2").tobytes()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def write_slices(folder, edit=lambda z, slice_: None):
    """Write slices 2 mm apart, pixels of 0.9 by 0.5 mm, from a corner at (10, -20, 30), with names in another order."""
    folder.mkdir()
    for z in range(VOXELS.shape[2]):
        slice_ = dataset(
            VOXELS[:, :, z].T,
            ImagePositionPatient=[10, -20, 30 + 2 * z],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[0.9, 0.5],
        )
        edit(z, slice_)
        slice_.save_as(folder / f"{(5 * z) % 7}.dcm", enforce_file_format=True)
    return folder


def frame(z, **elements):
    position, made = Dataset(), Dataset()
    position.ImagePositionPatient = [10, -20, 30 + 2 * z]
    made.PlanePositionSequence = [position]
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def sequence(**elements):
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return [made]


def write_frames(folder, order, edit=lambda whole: None):
    folder.mkdir()
    whole = dataset(VOXELS.transpose(2, 1, 0)[list(order)], NumberOfFrames=len(order))
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedMRImageStorage
    whole.SharedFunctionalGroupsSequence = sequence(
        PixelMeasuresSequence=sequence(PixelSpacing=[0.9, 0.5], SliceThickness=2),
        PlaneOrientationSequence=sequence(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
    )
    whole.PerFrameFunctionalGroupsSequence = [frame(z) for z in order]
    edit(whole)
    whole.save_as(folder / "frames.dcm", enforce_file_format=True)
    return folder


AFFINE = [[-0.5, 0, 0, -10], [0, -0.9, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1]]


@pytest.mark.parametrize("order", [range(6), range(5, -1, -1), (0, 2, 4, 1, 3, 5)])
def test_frames_are_put_where_they_say_that_they_lie(tmp_path, order):
    volume = read_volume(write_frames(tmp_path / "series", order))
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-9)
    np.testing.assert_array_equal(volume.array, VOXELS)


def without(*keywords):
    def edit(whole):
        shared = whole.SharedFunctionalGroupsSequence[0]
        for keyword in keywords:
            del shared[keyword]

    return edit


def no_positions(whole):
    del whole.PerFrameFunctionalGroupsSequence


def few_positions(whole):
    whole.PerFrameFunctionalGroupsSequence = whole.PerFrameFunctionalGroupsSequence[:4]


def turned(whole):
    group = sequence(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    whole.PerFrameFunctionalGroupsSequence[3].PlaneOrientationSequence = group


def scaled(whole):
    for index, place in enumerate(whole.PerFrameFunctionalGroupsSequence):
        place.PixelValueTransformationSequence = sequence(RescaleSlope=1 + index, RescaleIntercept=0)


@pytest.mark.parametrize(
    ("order", "edit", "message"),
    [
        ((0, 1, 2, 4, 5), lambda whole: None, "2 to 4 mm apart: some are missing"),
        ((0, 1, 2, 2, 3, 4), lambda whole: None, "0 to 2 mm apart"),
        (range(6), without("PixelMeasuresSequence"), "frame 1, has no PixelSpacing"),
        (range(6), without("PlaneOrientationSequence"), "frame 1, has no ImageOrientationPatient"),
        (range(6), no_positions, "6 frames, but says of 0 where they lie"),
        (range(6), few_positions, "6 frames, but says of 4 where they lie"),
        (range(6), turned, "not of one orientation: 1 of 6 differ, such as .*frame 4"),
        (range(6), scaled, "scales the values of its frames differently"),
    ],
)
def test_frames_that_are_no_volume_are_refused_by_name(tmp_path, order, edit, message):
    with pytest.raises(ValueError, match=f"series.*{message}"):
        read_volume(write_frames(tmp_path / "series", order, edit))


def at(index, **elements):
    def edit(z, slice_):
        for keyword, value in elements.items():
            if z == index and value is None:
                del slice_[keyword]
            elif z == index:
                setattr(slice_, keyword, value)

    return edit


def tilted(z, slice_):
    slice_.ImagePositionPatient = [10, -20 + 0.5 * z, 30 + 2 * z]


def smaller(z, slice_):
    if z == 2:
        slice_.Rows, slice_.PixelData = 4, slice_.PixelData[: 4 * 4 * 2]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (at(3, PixelSpacing=None), r"\d.dcm has no PixelSpacing"),
        (at(0, ImagePositionPatient=None), r"\d.dcm has no ImagePositionPatient"),
        (at(3, PixelSpacing=[0.9, 0.6]), "not of one PixelSpacing: 1 of 6 differ, such as .*1.dcm"),
        (at(4, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "not of one orientation: 1 of 6 differ, such as .*6.dcm"),
        (tilted, r"shifted against each other by up to 2\.5 mm"),
        (smaller, "several sizes"),
        (at(2, ImagePositionPatient=[10, -20, 34.5]), "1.5 to 2.5 mm apart"),
    ],
)
def test_slices_that_are_no_volume_are_refused_by_name(tmp_path, edit, message):
    with pytest.raises(ValueError, match=f"series.*{message}"):
        read_volume(write_slices(tmp_path / "series", edit))


def test_slices_scaled_differently(tmp_path):
    def edit(z, slice_):
        slice_.RescaleSlope, slice_.RescaleIntercept = 1 if z == 0 else 0.5, z

    volume = read_volume(write_slices(tmp_path / "series", edit))
    slopes = np.array([1, 0.5, 0.5, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(volume.array, VOXELS * slopes + np.arange(6))
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-9)


def test_single_slice_needs_a_thickness(tmp_path):
    folder = write_slices(tmp_path / "series", at(0, SliceThickness=3))
    for file in sorted(folder.iterdir())[1:]:
        file.unlink()
    assert np.linalg.norm(read_volume(folder).affine[:, 2]) == 3
    only = write_slices(tmp_path / "other")
    for file in sorted(only.iterdir())[1:]:
        file.unlink()
    with pytest.raises(ValueError, match=r"only slice in .*other has no SliceThickness"):
        read_volume(only)


def test_a_file_stands_for_its_series(tmp_path):
    folder = write_slices(tmp_path / "series")
    other = write_slices(tmp_path / "other", lambda z, slice_: setattr(slice_, "SeriesInstanceUID", "1.2.4"))
    for file in other.iterdir():
        file.rename(folder / f"b{file.name}")
    np.testing.assert_array_equal(read_volume(folder / "b3.dcm").array, VOXELS)
    with pytest.raises(ValueError, match="2 DICOM series"):
        read_volume(folder)
