"""NIfTI files: what their headers say of geometry, what their suffixes hide, and damage."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest

from ssmctb_monai.data.nifti import nifti_header, read_nifti
from ssmctb_monai.data.readers import grid_distance, read_volume

VOXELS = np.random.default_rng(0).integers(0, 900, (6, 5, 4)).astype(np.int16)
SFORM = np.array([[-2.0, 0, 0, 60], [0, -2, 0, 80], [0, 0, 2, -40], [0, 0, 0, 1]])


def write(path, sform=SFORM, array=VOXELS, compressed=False, **fields):
    """Write a file field by field, so that no library repairs it."""
    header = nib.Nifti1Image(array, SFORM).header
    header["pixdim"][1:4] = 2
    for name, value in {"sform_code": 1, "qform_code": 0, **fields}.items():
        header[name] = value
    for row, axis in zip(sform, "xyz", strict=False):
        header[f"srow_{axis}"] = row
    data = header.binaryblock + bytes(4) + array.tobytes(order="F")
    path.write_bytes(gzip.compress(data) if compressed else data)  # its vox_offset is 0, as some programs leave it
    return path


def changed(row, column, value):
    sform = SFORM.copy()
    sform[row, column] = value
    return sform


@pytest.mark.parametrize("sform", [SFORM * [[1.0003]] * 3 + [[1.0]], changed(0, 1, 0.3), changed(2, 2, 5)])
@pytest.mark.parametrize("sizes", [2, 1, 0, np.nan, -2])
def test_sform_counts_whatever_the_voxel_sizes_say(tmp_path, sform, sizes):
    pixdim = np.array([1, sizes, sizes, sizes, 0, 0, 0, 0])
    path = write(tmp_path / "scan.nii", sform, pixdim=pixdim)
    volume = read_volume(path)
    np.testing.assert_allclose(volume.affine, np.vstack([np.asarray(sform)[:3], [0, 0, 0, 1]]), atol=1e-5)
    np.testing.assert_array_equal(volume.array, VOXELS)


@pytest.mark.parametrize(
    ("sform", "fields", "message"),
    [
        (changed(0, 0, np.nan), {}, "affine places nothing"),
        (changed(0, 3, np.inf), {}, "affine places nothing"),
        (changed(2, 2, 0), {}, "affine places nothing"),
        (np.ones((3, 4)), {}, "affine places nothing"),
        (SFORM * 1e-3, {}, r"voxels measure 0\.002 x 0\.002 x 0\.002 mm"),
        (SFORM * 1e3, {}, r"voxels measure 2000 x"),
        (SFORM, {"sform_code": 7}, "sform_code 7"),
        (SFORM, {"qform_code": -1}, "qform_code -1"),
        (SFORM, {"sform_code": 0, "qform_code": 1, "pixdim": [1, 2, 0, 2, 0, 0, 0, 0]}, "voxel sizes .* no sform"),
        (SFORM, {"sform_code": 0, "qform_code": 1, "pixdim": [1, 2, np.nan, 2, 0, 0, 0, 0]}, "voxel sizes .* no sform"),
        (SFORM, {"sform_code": 0, "qform_code": 1, "quatern_b": 2}, "cannot be read"),
        (SFORM, {"sform_code": 0, "qform_code": 1, "quatern_b": np.nan}, "cannot be read"),
        (SFORM, {"sform_code": 0, "pixdim": [1, -2, 2, 2, 0, 0, 0, 0]}, "voxel sizes .* no sform"),
        (SFORM, {"dim": [3, 6, 5, 400, 1, 1, 1, 1]}, "cut off: shape"),
        (SFORM, {"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "cut off: shape"),
        (SFORM, {"datatype": 128, "bitpix": 24}, "no real numbers"),
        (SFORM, {"datatype": 32, "bitpix": 64}, "no real numbers"),
        (SFORM, {"xyzt_units": 1}, "voxel sizes are in m: set them"),
        (SFORM, {"xyzt_units": 3 + 8}, "voxel sizes are in micrometres"),
        (SFORM, {"sizeof_hdr": 34}, "no NIfTI file"),
        (SFORM, {"magic": b"ni1"}, "no NIfTI file"),
    ],
)
def test_impossible_header_is_refused_by_name(tmp_path, sform, fields, message):
    path = write(tmp_path / "scan.nii", sform, **fields)
    with pytest.raises(OSError, match=rf"(?s)scan\.nii cannot be read: .*{message}|scan\.nii {message}"):
        read_volume(path)


def test_orientation_that_a_header_does_not_say_is_warned_of(tmp_path, caplog):
    read_volume(write(tmp_path / "said.nii"))
    assert not caplog.records
    path = write(tmp_path / "silent.nii", sform_code=0)
    np.testing.assert_array_equal(read_volume(path).affine, nib.load(path).affine)
    assert f"{path} does not say how it is oriented" in caplog.text


@pytest.mark.parametrize(("name", "compressed"), [("a.nii", True), ("a.nii.gz", False), ("a.NII.GZ", True)])
def test_content_counts_not_the_suffix(tmp_path, name, compressed):
    path = write(tmp_path / name, compressed=compressed)
    np.testing.assert_array_equal(read_volume(path).array, VOXELS)
    assert nifti_header(path)["srow_x"].tolist() == SFORM[0].tolist()


def test_nifti_2_and_the_other_byte_order(tmp_path):
    big = nib.Nifti1Image(VOXELS, SFORM, nib.Nifti1Header(endianness=">"))
    for image in (nib.Nifti2Image(VOXELS, SFORM), big):
        nib.save(image, tmp_path / "a.nii.gz")
        volume = read_volume(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(volume.array, VOXELS)
        np.testing.assert_array_equal(volume.affine, SFORM)
        assert volume.array.dtype.isnative  # PyTorch takes no other


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"NRRD0004\ntype: short", "an NRRD file"),
        (b"ObjectType = Image\nNDims = 3", "a MetaImage file"),
        (bytes(128) + b"DICM", "a DICOM file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"PK\x03\x04....", "a ZIP archive"),
        (b"anything else" * 50, "something else"),
    ],
)
def test_file_that_is_no_nifti_says_what_it_is(tmp_path, content, said):
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_nifti(tmp_path / "a.nii")
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content))
    with pytest.raises(OSError, match=rf"a\.nii\.gz cannot be read: .*{said}"):
        read_volume(tmp_path / "a.nii.gz")


def test_no_flipped_bit_of_a_compressed_file_changes_a_voxel_unseen(tmp_path):
    data = bytearray(write(tmp_path / "a.nii.gz", compressed=True).read_bytes())
    for place in range(10, len(data), 7):  # the first ten bytes say nothing of the voxels
        data[place] ^= 1 << place % 8
        (tmp_path / "a.nii.gz").write_bytes(data)
        with pytest.raises(OSError, match=r"a\.nii\.gz cannot be read"):
            read_volume(tmp_path / "a.nii.gz")
        data[place] ^= 1 << place % 8
    (tmp_path / "a.nii.gz").write_bytes(data[:-1])
    with pytest.raises(OSError, match=r"a\.nii\.gz cannot be read"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("ones", [1, 2, 4])
def test_trailing_axes_of_length_1_are_left_out(tmp_path, ones):
    path = write(tmp_path / "a.nii", array=VOXELS.reshape(VOXELS.shape + (1,) * ones))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, VOXELS)
    assert volume.spatial_shape == VOXELS.shape


def test_grids_are_compared_at_their_corners():
    shape = (240, 240, 155)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(2e-4), -np.sin(2e-4)], [np.sin(2e-4), np.cos(2e-4)]]  # 0.05 mm at 239 mm
    for other, distance in (
        (np.eye(4) + np.eye(4, k=3) * 1e-3, 0),
        (np.diag([1, 1, 1 + 1e-5, 1]), 0),
        (np.diag([1, 1, 1 + 1 / 154, 1]), 1),
        (turned, 2e-4 * 239 * np.sqrt(2)),
        (np.full((4, 4), np.nan), np.inf),
    ):
        assert grid_distance(np.eye(4), other, shape) == pytest.approx(distance, rel=1e-4)
    assert grid_distance(np.diag([1, 1, 8, 1]), np.diag([1, 1, 8, 1]) + np.eye(4, k=3), (9, 9, 9)) == 1
