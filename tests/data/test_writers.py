"""Volumes written as NIfTI."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import MetaTensor

from ssmctb_monai.data.readers import read_volume
from ssmctb_monai.data.writers import write_nifti

AFFINES = [
    np.diag([2.0, 2, 3, 1]),
    np.array([[0, 1.5, 0, 3], [0, 0, -2.0, 50], [1, 0, 0, -7], [0, 0, 0, 1]]),
    np.array([[0.98, 0.17, 0, -4], [-0.17, 0.98, 0, 6], [0, 0, 2.5, 8], [0, 0, 0, 1]]),
]


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 1), (1, 1, 3)])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_voxels_and_affine_come_back(tmp_path, affine, shape, suffix):
    image = MetaTensor(torch.rand(1, *shape), affine=torch.from_numpy(affine))
    write_nifti(image, tmp_path / "new" / f"map.{suffix}")
    volume = read_volume(tmp_path / "new" / f"map.{suffix}")
    np.testing.assert_array_equal(volume.array, image.numpy()[0])
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)
    assert volume.array.dtype == np.float32
    assert nibabel.load(tmp_path / "new" / f"map.{suffix}").header.get_xyzt_units()[0] == "mm"


def test_channels_become_the_fourth_axis(tmp_path):
    image = MetaTensor(torch.arange(2 * 5 * 4 * 3, dtype=torch.uint8).reshape(2, 5, 4, 3), requires_grad=False)
    write_nifti(image, tmp_path / "map.nii")
    written = nibabel.load(tmp_path / "map.nii")
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), image.numpy().transpose(1, 2, 3, 0))
    assert written.get_data_dtype() == np.uint8


def places(path):
    """Two corners of a file in mm, for a program that takes the sform and for one that takes the qform, and sizes."""
    header = nibabel.load(path).header
    corners = np.array([[0, 0, 0, 1], [4, 3, 2, 1]]).T
    return [header.get_sform() @ corners, header.get_qform() @ corners, header.get_zooms()[:3]]


@pytest.mark.parametrize(("sform_code", "qform_code"), [(4, 1), (1, 2), (0, 1), (2, 0), (0, 0)])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_result_lies_where_its_scan_does_whichever_form_is_read(tmp_path, sform_code, qform_code, kind):
    scan = kind(np.zeros((5, 4, 3, 1), np.int16), AFFINES[2])
    shifted = AFFINES[2].copy()
    shifted[:3, 3] += (3, -4, 5)
    scan.set_sform(AFFINES[2], sform_code)
    scan.set_qform(shifted, qform_code)
    scan.header["descrip"] = b"Doe^Jane"
    nibabel.save(scan, tmp_path / "scan.nii")
    affine = torch.from_numpy(read_volume(tmp_path / "scan.nii").affine)
    for channels in (1, 2):
        write_nifti(
            MetaTensor(torch.rand(channels, 5, 4, 3), affine=affine), tmp_path / "map.nii.gz", tmp_path / "scan.nii"
        )
        for wanted, made in zip(places(tmp_path / "scan.nii"), places(tmp_path / "map.nii.gz"), strict=True):
            np.testing.assert_allclose(made, wanted, atol=1e-5)
        header = nibabel.load(tmp_path / "map.nii.gz").header
        assert (header["sform_code"], header["qform_code"], header["descrip"].item()) == (sform_code, qform_code, b"")
        assert header.get_xyzt_units() == nibabel.load(tmp_path / "scan.nii").header.get_xyzt_units()
    if kind is nibabel.Nifti1Image:  # ITK reads no other
        scan, made = (SimpleITK.ReadImage(str(tmp_path / name)) for name in ("scan.nii", "map.nii.gz"))
        for index in ((0, 0, 0, 0), (4, 3, 2, 0)):
            points = [image.TransformIndexToPhysicalPoint(index[: image.GetDimension()])[:3] for image in (scan, made)]
            np.testing.assert_allclose(*points, atol=1e-4)


def test_a_result_on_another_grid_is_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 4, 3)), AFFINES[0]), tmp_path / "scan.nii")
    image = MetaTensor(torch.rand(1, 5, 4, 3), affine=torch.from_numpy(AFFINES[2]))
    with pytest.raises(ValueError, match=r"mm off .*scan\.nii"):
        write_nifti(image, tmp_path / "map.nii", tmp_path / "scan.nii")
    assert not (tmp_path / "map.nii").exists()


def test_a_scan_whose_handedness_is_not_said_counts_as_right_handed(tmp_path):
    """A qfac of 0, which counts as 1."""
    scan = nibabel.Nifti1Image(np.zeros((5, 4, 3), np.float32), None)
    scan.set_qform(AFFINES[0], 1)
    nibabel.save(scan, tmp_path / "scan.nii")
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    content[76:80] = bytes(4)  # pixdim[0]
    (tmp_path / "scan.nii").write_bytes(content)
    volume = read_volume(tmp_path / "scan.nii")
    image = MetaTensor(torch.rand(1, 5, 4, 3), affine=torch.from_numpy(volume.affine))
    write_nifti(image, tmp_path / "map.nii", tmp_path / "scan.nii")
    np.testing.assert_allclose(nibabel.load(tmp_path / "map.nii").affine, AFFINES[0])
