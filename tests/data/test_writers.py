"""Volumes written as NIfTI."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
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
