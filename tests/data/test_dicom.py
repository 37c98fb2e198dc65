import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from scipy.spatial.transform import Rotation

from ssmctb_monai import __version__
from ssmctb_monai.data import dicom
from ssmctb_monai.data.dicom import write_parametric_map, write_segmentation
from ssmctb_monai.data.readers import read_volume

hd = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (4, 5, 6)
VOXELS = np.random.default_rng(0).permutation(np.prod(SHAPE)).reshape(SHAPE)
SCORES = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
MASK = SCORES > 0.7
HOT = (3, 1, 4)


def lps_affine(angles, spacing, origin, axes=(0, 1, 2)):
    affine = np.eye(4)
    affine[:3, :3] = (Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing)[:, axes]
    affine[:3, 3] = origin
    return affine


# (column, row, slice) of a file to LPS; the last column may point either way: the files' names and numbers do.
GEOMETRIES = {
    "axial": lps_affine([0, 0, 0], [0.5, 0.9, 2], [10, -20, 30]),
    "towards the feet": lps_affine([0, 0, 0], [0.5, 0.9, -2], [10, -20, 30]),
    "sagittal": lps_affine([0, 0, 0], [3, 0.5, -0.75], [-60, 12.5, 70], axes=(1, 2, 0)),
    "oblique": lps_affine([10, 20, 30], [1.1, 0.7, 2.3], [-12.25, 33.5, 7.75]),
}


def write_series(folder, affine=GEOMETRIES["axial"], suffix=".dcm", edit=lambda z, slice_: None):
    """Write ``VOXELS`` with file names and instance numbers in orders of their own, and return the folder."""
    folder.mkdir(parents=True)
    study, series, frame_of_reference = (pydicom.uid.generate_uid() for _ in range(3))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    for z in range(SHAPE[2]):
        slice_ = pydicom.Dataset()
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        slice_.SOPClassUID = pydicom.uid.MRImageStorage
        slice_.SOPInstanceUID = pydicom.uid.generate_uid()
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID = study, series
        slice_.FrameOfReferenceUID = frame_of_reference
        slice_.Modality = "MR"
        slice_.InstanceNumber = (z * 5 + 3) % 7
        slice_.ImagePositionPatient = [f"{v:.9g}" for v in (affine @ [0, 0, z, 1])[:3]]
        slice_.ImageOrientationPatient = [f"{v:.12g}" for v in (affine[:3, :2] / spacing[:2]).T.ravel()]
        slice_.PixelSpacing = [spacing[1], spacing[0]]
        slice_.Columns, slice_.Rows = SHAPE[:2]
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.PixelRepresentation, slice_.SamplesPerPixel = 15, 0, 1
        slice_.PhotometricInterpretation = "MONOCHROME2"
        slice_.PixelData = VOXELS[:, :, z].T.astype("<u2").tobytes()
        edit(z, slice_)
        slice_.save_as(folder / f"{(z * 3 + 1) % 7}{suffix}", enforce_file_format=True)
    return folder


def edit_all(**elements):
    def edit(z, slice_):
        for keyword, value in elements.items():
            setattr(slice_, keyword, value)

    return edit


@pytest.fixture
def series(tmp_path):
    return write_series(tmp_path / "series")


def write_both(folder, scores, mask, out):
    write_parametric_map(scores, folder, out / "map.dcm")
    write_segmentation(mask, folder, out / "mask.dcm")
    return pydicom.dcmread(out / "map.dcm"), pydicom.dcmread(out / "mask.dcm")


def frames(result):
    """Return values by (frame, row, column), and the matrix of each frame from (column, row, 1) to LPS, by pydicom."""
    shared = result.SharedFunctionalGroupsSequence[0]
    along_row, along_column = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3))
    between_rows, between_columns = shared.PixelMeasuresSequence[0].PixelSpacing
    matrices = [
        np.stack([along_row * between_columns, along_column * between_rows, origin], axis=1).astype(float)
        for origin in origins(result)
    ]
    return np.reshape(result.pixel_array, (len(matrices), result.Rows, result.Columns)), matrices


def origins(result):
    return [frame.PlanePositionSequence[0].ImagePositionPatient for frame in result.PerFrameFunctionalGroupsSequence]


def on_grid(result, affine):
    """Return values by (x, y, z) of a RAS affine; each must lie on a voxel to 0.001 mm."""
    array = np.full(SHAPE, np.nan)
    for values, matrix in zip(*frames(result), strict=True):
        for y, x in np.ndindex(values.shape):
            index = np.linalg.solve(LPS @ affine, [*(matrix @ [x, y, 1]), 1])[:3]
            np.testing.assert_allclose((LPS @ affine)[:3, :3] @ (index - index.round()), 0, atol=1e-3)
            array[tuple(index.round().astype(int))] = values[y, x]
    return array


@pytest.mark.parametrize("suffix", [".dcm", ""])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_hot_voxel_lies_where_the_reader_puts_it(tmp_path, geometry, suffix):
    folder = write_series(tmp_path / "series", GEOMETRIES[geometry], suffix)
    mask = np.zeros(SHAPE, bool)
    mask[HOT] = True
    expected = (LPS @ read_volume(folder).affine @ [*HOT, 1])[:3]
    for result in write_both(folder, mask.astype(float), mask, tmp_path):
        values, matrices = frames(result)
        assert len(values) == SHAPE[2]  # also those that show nothing
        [[z, y, x]] = np.argwhere(values)
        np.testing.assert_allclose(matrices[z] @ [x, y, 1], expected, atol=1e-3)
        assert values[z, y, x] == 1


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_value_lies_on_the_pixel_that_it_was_made_from(tmp_path, geometry):
    folder = write_series(tmp_path / "series", GEOMETRIES[geometry])
    array = read_volume(folder).array / VOXELS.max()
    scores, mask = write_both(folder, array, array > 0.5, tmp_path)
    assert scores.pixel_array.dtype == np.float32
    of_files = VOXELS / VOXELS.max()
    np.testing.assert_array_equal(on_grid(scores, LPS @ GEOMETRIES[geometry]), of_files.astype(np.float32))
    np.testing.assert_array_equal(on_grid(mask, LPS @ GEOMETRIES[geometry]), of_files > 0.5)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_other_readers(tmp_path, geometry):
    folder = write_series(tmp_path / "series", GEOMETRIES[geometry])
    write_both(folder, SCORES, MASK, tmp_path)
    affine = LPS @ read_volume(folder).affine
    for name, expected in (("map.dcm", SCORES), ("mask.dcm", MASK)):
        volume = hd.imread(tmp_path / name).get_volume()
        volume = volume.match_geometry(hd.VolumeGeometry(affine[:, [2, 1, 0, 3]], SHAPE[::-1], "PATIENT"))
        np.testing.assert_array_equal(np.squeeze(volume.array).T, expected)
    image = sitk.ReadImage(tmp_path / "mask.dcm")  # of the two, what GDCM can read
    assert np.count_nonzero(sitk.GetArrayViewFromImage(image)) == MASK.sum()
    for index in np.argwhere(MASK).tolist():
        continuous = np.array(image.TransformPhysicalPointToContinuousIndex((affine @ [*index, 1])[:3].tolist()))
        np.testing.assert_allclose(continuous, continuous.round(), atol=1e-3)
        assert image[continuous.round().astype(int).tolist()] > 0


def test_each_frame_refers_to_the_slice_at_its_position(tmp_path, series):
    slices = [pydicom.dcmread(file) for file in series.iterdir()]
    expected = {tuple(slice_.ImagePositionPatient): slice_.SOPInstanceUID for slice_ in slices}
    for result in write_both(series, SCORES, MASK, tmp_path):
        sources = [
            frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            for frame in result.PerFrameFunctionalGroupsSequence
        ]
        assert dict(zip(map(tuple, origins(result)), sources, strict=True)) == expected
        [reference] = result.ReferencedSeriesSequence
        assert reference.SeriesInstanceUID == slices[0].SeriesInstanceUID
        assert {item.ReferencedSOPInstanceUID for item in reference.ReferencedInstanceSequence} == set(
            expected.values()
        )


def test_patient_and_study_are_those_of_the_series(tmp_path):
    elements = {
        "SpecificCharacterSet": "ISO_IR 192",
        "PatientName": "Müller^山田",
        "PatientID": "P 17",
        "PatientBirthDate": "19700102",
        "PatientSex": "F",
        "PatientAge": "050Y",
        "StudyID": "S1",
        "StudyDate": "20200304",
        "StudyTime": "050607.08",
        "StudyDescription": "Head",
        "AccessionNumber": "A3",
        "ReferringPhysicianName": "Ärztin",
    }
    folder = write_series(tmp_path / "series", edit=edit_all(**elements))
    source = pydicom.dcmread(next(folder.iterdir()))
    for result in write_both(folder, SCORES, MASK, tmp_path):
        assert {keyword: result[keyword].value for keyword in elements} == elements
        assert result.StudyInstanceUID == source.StudyInstanceUID
        assert result.FrameOfReferenceUID == source.FrameOfReferenceUID


def test_no_patient_is_invented(tmp_path, series):
    for result in write_both(series, SCORES, MASK, tmp_path):
        for keyword in dicom.IDENTITY:
            assert keyword in result  # the standard demands them, empty or not
            assert not result[keyword].value


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_values_that_break_the_standard_are_passed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
    elements = {"PatientSex": "male", "StudyDate": "2020-01-02", "StudyTime": "noon", "PatientName": "n" * 70}
    folder = write_series(tmp_path / "series", edit=edit_all(**elements))
    monkeypatch.undo()
    for result in write_both(folder, SCORES, MASK, tmp_path):
        assert {keyword: result[keyword].value for keyword in elements} == elements


def test_both_are_series_of_their_own(tmp_path, series):
    source = pydicom.dcmread(next(series.iterdir()))
    results = [*write_both(series, SCORES, MASK, tmp_path), *write_both(series, SCORES, MASK, tmp_path)]
    assert len({source.SeriesInstanceUID, *(result.SeriesInstanceUID for result in results)}) == 5
    assert len({result.SOPInstanceUID for result in results}) == 4
    assert [result.SeriesNumber for result in results[:2]] == [9001, 9002]
    assert [result.Modality for result in results[:2]] == ["OT", "SEG"]
    for result in results:
        assert "anomaly" in result.SeriesDescription.lower()
        assert result.Manufacturer == result.ManufacturerModelName == "ssmctb_monai"
        assert result.SoftwareVersions == __version__
        assert result.ImageType[0] == "DERIVED"


def test_meaning_of_the_map(tmp_path, series):
    write_both(series, SCORES, MASK, tmp_path)
    result = hd.pm.ParametricMap.from_file(tmp_path / "map.dcm")
    assert result.ContentLabel == "ANOMALY_MAP"
    assert result.RecognizableVisualFeatures == "NO"
    shared = result.SharedFunctionalGroupsSequence[0]
    [mapping] = shared.RealWorldValueMappingSequence
    assert mapping.LUTLabel == "ANOMALY_MAP"
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    assert mapping.DoubleFloatRealWorldValueFirstValueMapped == 0
    assert mapping.DoubleFloatRealWorldValueLastValueMapped == 1
    [unit] = mapping.MeasurementUnitsCodeSequence
    assert (unit.CodeValue, unit.CodingSchemeDesignator) == ("1", "UCUM")
    [window] = shared.FrameVOILUTSequence
    assert (window.WindowCenter, window.WindowWidth) == (0.5, 1)


def test_meaning_of_the_mask(tmp_path, series):
    write_both(series, SCORES, MASK, tmp_path)
    result = hd.seg.segread(tmp_path / "mask.dcm")
    assert result.SegmentationType == "BINARY"
    assert result.ContentLabel == "ANOMALY_MASK"
    [segment] = result.SegmentSequence
    assert segment.SegmentLabel == "Anomaly"
    assert segment.segmented_property_category == pydicom.sr.codedict.codes.SCT.MorphologicallyAbnormalStructure
    assert segment.segmented_property_type == pydicom.sr.codedict.codes.SCT.Lesion
    assert segment.anatomic_regions == [pydicom.sr.codedict.codes.SCT.Brain]
    assert segment.RecommendedDisplayCIELabValue == [46273, 37131, 52089]  # L* 70.6, a* 16.5, b* 74.7: orange
    assert segment.algorithm_type.value == "AUTOMATIC"
    [algorithm] = segment.algorithm_identification
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("ssmctb_monai", __version__)
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"


@pytest.mark.process
@pytest.mark.parametrize("elements", [{}, {"BodyPartExamined": "HEAD", "StudyDate": "20200304", "PatientID": "P17"}])
def test_dciodvfy_finds_no_error(tmp_path, elements):
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("no dciodvfy on this machine: apt-get install dicom3tools")
    folder = write_series(tmp_path / "series", GEOMETRIES["oblique"], edit=edit_all(**elements))
    write_both(folder, SCORES, MASK, tmp_path)
    for name, kind in (("map.dcm", "ParametricMap"), ("mask.dcm", "Segmentation")):
        run = subprocess.run([program, tmp_path / name], capture_output=True, text=True, check=False)
        lines = (run.stdout + run.stderr).splitlines()
        assert kind in lines  # what it takes the file for
        assert [line for line in lines if line.startswith("Error")] == []


def test_mask_without_a_voxel_covers_the_series(tmp_path, series):
    write_segmentation(np.zeros(SHAPE), series, tmp_path / "mask.dcm")
    result = pydicom.dcmread(tmp_path / "mask.dcm")
    np.testing.assert_array_equal(on_grid(result, read_volume(series).affine), np.zeros(SHAPE))
    assert len(result.SegmentSequence) == 1


@pytest.mark.parametrize("elements", [{}, {"SliceThickness": None}])
def test_slices_of_unknown_thickness_are_as_thick_as_they_are_apart(tmp_path, elements):
    folder = write_series(tmp_path / "series", GEOMETRIES["oblique"], edit=edit_all(**elements))
    for result in write_both(folder, SCORES, MASK, tmp_path):
        [measures] = result.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        assert measures.SliceThickness == pytest.approx(2.3)


def test_one_slice_and_its_thickness(tmp_path):
    folder = write_series(tmp_path / "series", edit=edit_all(SliceThickness=1.75))
    for file in sorted(folder.iterdir())[1:]:
        file.unlink()
    for result in write_both(folder, SCORES[:, :, :1], MASK[:, :, :1], tmp_path):
        [values], [matrix] = frames(result)
        np.testing.assert_array_equal(values, (SCORES if result.Modality == "OT" else MASK)[:, :, 0].T)
        np.testing.assert_allclose(matrix[:, 2], (LPS @ read_volume(folder).affine)[:3, 3])
        assert result.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 1.75


def test_missing_slice(tmp_path, series):
    (series / "0.dcm").unlink()  # slice 2, at 34 mm
    for write in (write_parametric_map, write_segmentation):
        with pytest.raises(ValueError, match=r"slices of .*series are 2 to 4 mm apart: some are missing"):
            write(MASK[..., 1:], series, tmp_path / "result.dcm")


def test_distance_of_slices_comes_from_their_positions(tmp_path):
    folder = write_series(
        tmp_path / "series", edit=edit_all(SpacingBetweenSlices=0.2, NumberOfFrames=1)
    )  # as some write
    for result in write_both(folder, SCORES, MASK, tmp_path):
        [measures] = result.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        assert measures.SpacingBetweenSlices == pytest.approx(2)


@pytest.mark.parametrize(("tilt", "is_one_volume"), [(1e-5, True), (1e-3, False)])
def test_direction_cosines_may_differ_by_rounding_only(tmp_path, tilt, is_one_volume):
    def edit(z, slice_):
        slice_.ImageOrientationPatient = [1, z * tilt, 0, 0, 1, 0]

    folder = write_series(tmp_path / "series", edit=edit)
    if is_one_volume:
        for result in write_both(folder, SCORES, MASK, tmp_path):
            assert len(origins(result)) == SHAPE[2]
    else:
        with pytest.raises(
            ValueError, match=r"series in .*series are not of one orientation: 4 of 6 differ, such as .*\.dcm"
        ):
            write_parametric_map(SCORES, folder, tmp_path / "map.dcm")


def test_series_in_one_file(tmp_path):
    elements = {"ImageType": ["ORIGINAL", "PRIMARY"], "BodyPartExamined": "HEAD", "SliceThickness": 2}
    elements |= dict.fromkeys(dicom.IDENTITY, "") | {"StudyDate": "20200304", "StudyTime": "050607"}
    slices = write_series(tmp_path / "slices", GEOMETRIES["oblique"], edit=edit_all(**elements))
    enhanced = hd.legacy.LegacyConvertedEnhancedMRImage(
        [pydicom.dcmread(file) for file in sorted(slices.iterdir())], hd.UID(), 1, hd.UID(), 1
    )
    folder = tmp_path / "series"
    folder.mkdir()
    enhanced.save_as(folder / "0.dcm")
    array = read_volume(folder).array / VOXELS.max()
    scores, mask = write_both(folder, array, array > 0.5, tmp_path)
    of_files = VOXELS / VOXELS.max()
    np.testing.assert_array_equal(on_grid(scores, LPS @ GEOMETRIES["oblique"]), of_files.astype(np.float32))
    np.testing.assert_array_equal(on_grid(mask, LPS @ GEOMETRIES["oblique"]), of_files > 0.5)


def test_files_without_a_preamble(tmp_path, series):
    for file in series.iterdir():
        slice_ = pydicom.dcmread(file)
        slice_.preamble, slice_.file_meta = None, pydicom.dataset.FileMetaDataset()
        slice_.save_as(file, implicit_vr=True, little_endian=True, enforce_file_format=False)
    scores, _ = write_both(series, SCORES, MASK, tmp_path)
    np.testing.assert_array_equal(on_grid(scores, read_volume(series).affine), SCORES)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (SCORES[None], SCORES),
        (torch.tensor(SCORES, requires_grad=True), SCORES),
        (torch.tensor(SCORES[None]).to(torch.bfloat16), torch.tensor(SCORES).to(torch.bfloat16).float().numpy()),
        (SCORES.astype(np.float64), SCORES),
        (SCORES[::-1], SCORES[::-1]),
        (np.full(SHAPE, 1 + 1e-6), np.ones(SHAPE)),
        (np.full(SHAPE, -1e-6), np.zeros(SHAPE)),
        (np.zeros(SHAPE, int), np.zeros(SHAPE)),
    ],
)
def test_kinds_of_maps(tmp_path, series, scores, expected):
    write_parametric_map(scores, series, tmp_path / "map.dcm")
    result = pydicom.dcmread(tmp_path / "map.dcm")
    np.testing.assert_array_equal(on_grid(result, read_volume(series).affine), expected)


@pytest.mark.parametrize("mask", [MASK, MASK[None].astype(np.uint8), torch.tensor(MASK), MASK.astype(np.float64)])
def test_kinds_of_masks(tmp_path, series, mask):
    write_segmentation(mask, series, tmp_path / "mask.dcm")
    result = pydicom.dcmread(tmp_path / "mask.dcm")
    np.testing.assert_array_equal(on_grid(result, read_volume(series).affine), MASK)


def test_map_in_another_orientation_has_to_be_brought_back(tmp_path, series):
    turn = Orientation(axcodes="RAS", labels=None)
    image = turn(MetaTensor(SCORES[None], affine=read_volume(series).affine))
    assert tuple(image.shape[1:]) == SHAPE  # a flip does not show in the shape
    for write, value in ((write_parametric_map, image), (write_segmentation, image > 0.7)):
        with pytest.raises(
            ValueError, match=r"(anomaly map|mask) lies up to .* mm off the series in .*series: .*Invertd"
        ):
            write(value, series, tmp_path / "new" / "result.dcm")
    write_parametric_map(turn.inverse(image), series, tmp_path / "map.dcm")
    result = pydicom.dcmread(tmp_path / "map.dcm")
    np.testing.assert_array_equal(on_grid(result, read_volume(series).affine), SCORES)


@pytest.mark.parametrize("shape", [(4, 5, 7), (5, 4, 6), (2, *SHAPE), (1, 1, *SHAPE), (4, 30)])
def test_other_shape(tmp_path, series, shape):
    for write in (write_parametric_map, write_segmentation):
        with pytest.raises(ValueError) as error:  # noqa: PT011 -- the message is long
            write(np.zeros(shape), series, tmp_path / "result.dcm")
        assert all(part in str(error.value) for part in (str(shape), str(SHAPE), str(series)))


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (1.01, "1.01"), (-0.01, "-0.01")])
def test_value_that_is_no_score(tmp_path, series, value, shown):
    scores = SCORES.copy()
    scores[HOT] = value
    with pytest.raises(ValueError, match=rf"in \[0, 1\], got .*{shown}"):
        write_parametric_map(scores, series, tmp_path / "map.dcm")


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (2, "2.0"), (0.5, "0.5"), (-1, "-1.0"), (255, "255.0")])
def test_value_that_is_no_mask(tmp_path, series, value, shown):
    mask = MASK.astype(float)
    mask[HOT] = value
    with pytest.raises(ValueError, match=rf"0 and 1, got \[.*{shown}"):
        write_segmentation(mask, series, tmp_path / "mask.dcm")


@pytest.mark.parametrize(("write", "value"), [(write_parametric_map, SCORES), (write_segmentation, MASK)])
def test_folder_that_is_no_series(tmp_path, series, write, value):
    path = tmp_path / "new" / "result.dcm"
    with pytest.raises(FileNotFoundError, match="absent"):
        write(value, tmp_path / "absent", path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no DICOM series"):
        write(value, tmp_path / "empty", path)
    for file in write_series(tmp_path / "other").iterdir():
        file.rename(series / f"other{file.name}")
    with pytest.raises(ValueError, match="2 DICOM series"):
        write(value, series, path)
    assert not path.parent.exists()


@pytest.mark.parametrize(
    "keyword",
    ["SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "ImageOrientationPatient"],
)
def test_series_that_nothing_can_refer_to(tmp_path, series, keyword):
    file = sorted(series.iterdir())[-1]
    slice_ = pydicom.dcmread(file)
    del slice_[keyword]
    slice_.save_as(file, enforce_file_format=False)
    with pytest.raises(ValueError, match=rf"{file.name} has no {keyword}"):
        write_parametric_map(SCORES, series, tmp_path / "map.dcm")


def test_two_slices_at_one_position(tmp_path):
    def edit(z, slice_):
        slice_.ImagePositionPatient = [0, 0, z // 2]

    with pytest.raises(ValueError, match=r"series are 0 to \d mm apart"):
        write_segmentation(MASK, write_series(tmp_path / "series", edit=edit), tmp_path / "mask.dcm")


@pytest.mark.parametrize("relative", ["result.dcm", "../series/result.dcm"])
def test_result_does_not_mix_with_the_series(tmp_path, series, relative):
    before = {file.name: file.read_bytes() for file in series.iterdir()}
    for write in (write_parametric_map, write_segmentation):
        with pytest.raises(ValueError, match=r"second series"):
            write(MASK, series, series / relative)
    write_both(str(series), SCORES, MASK, series / "results")
    assert {file.name: file.read_bytes() for file in series.iterdir() if file.is_file()} == before
    assert read_volume(series).spatial_shape == SHAPE


@pytest.mark.parametrize(("write", "value"), [(write_parametric_map, SCORES), (write_segmentation, MASK)])
def test_file_is_written_whole_or_not_at_all(tmp_path, series, monkeypatch, write, value):
    path = tmp_path / "new" / "folder" / "result.dcm"
    write(value, series, str(path))
    whole = path.read_bytes()

    def die(self, name, *args, **kwargs):
        Path(name).write_bytes(whole[:1000])
        raise OSError("no space left on device")

    monkeypatch.setattr(pydicom.Dataset, "save_as", die)
    with pytest.raises(OSError, match="no space"):
        write(value, series, path)
    assert path.read_bytes() == whole
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_highdicom_is_needed_only_to_write(tmp_path, series, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("highdicom", "pydicom")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("highdicom", "pydicom"):
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.find_spec("ssmctb_monai.data.dicom")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    for write in (module.write_parametric_map, module.write_segmentation):
        with pytest.raises(ImportError, match=r'pip install "ssmctb_monai\[dicom\]"'):
            write(SCORES, series, tmp_path / "result.dcm")
