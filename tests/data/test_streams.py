"""Damage in MetaImage and NRRD files."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from ssmctb_monai.data.readers import read_volume

VOXELS = np.random.default_rng(0).normal(500, 50, (9, 8, 7)).astype(np.int16)


def write(path, compressed=True):
    image = sitk.GetImageFromArray(VOXELS.T)
    image.SetSpacing([1.5, 1, 2])
    sitk.WriteImage(image, str(path), compressed)
    return path


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd", "a.nhdr"])
@pytest.mark.parametrize("compressed", [True, False])
def test_flipped_bits_of_compressed_voxels_are_noticed(tmp_path, name, compressed):
    path = write(tmp_path / name, compressed)
    np.testing.assert_array_equal(read_volume(path).array, VOXELS)
    voxels = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    data = bytearray(voxels.read_bytes())
    for place in range(len(data) - 300, len(data) - 9, 13) if compressed else ():
        data[place] ^= 1 << place % 8
        voxels.write_bytes(data)
        with pytest.raises(OSError, match=rf"{name} cannot be read: its compressed voxels are"):
            read_volume(path)
        data[place] ^= 1 << place % 8
    voxels.write_bytes(data[:-9])
    with pytest.raises(OSError, match=f"{name} cannot be read"):
        read_volume(path)


@pytest.mark.parametrize(("name", "field"), [("a.mha", b"ElementSpacing"), ("a.nrrd", b"space directions")])
def test_file_without_voxel_sizes_is_refused(tmp_path, name, field):
    path = write(tmp_path / name)
    path.write_bytes(path.read_bytes().replace(field, b"x" * len(field)))
    with pytest.raises(OSError, match=f"{name} cannot be read: .*how large a voxel is"):
        read_volume(path)


def test_nrrd_in_other_units_is_refused(tmp_path):
    path = write(tmp_path / "a.nrrd", compressed=False)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"kinds:", b'space units: "mm" "mm" "mm"\nkinds:', 1))
    np.testing.assert_array_equal(read_volume(path).array, VOXELS)
    path.write_bytes(data.replace(b"kinds:", b'space units: "cm" "cm" "cm"\nkinds:', 1))
    with pytest.raises(OSError, match=r"a.nrrd cannot be read: its voxel sizes are in cm: give them in mm"):
        read_volume(path)
