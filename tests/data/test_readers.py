from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from monai.data import NibabelReader
from monai.transforms import Compose, LoadImage, LoadImaged, Orientationd, SaveImage, Spacingd
from scipy.spatial.transform import Rotation

from ssmctb_monai.data.readers import SimpleITKReader, read_volume

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def oblique_affine():
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix() @ np.diag([1.1, 0.7, 2.3])
    affine[:3, 3] = [-12.25, 33.5, 7.75]
    return affine


def write_itk(path, array, affine, is_vector=False):
    """Write a RAS volume indexed (x, y, z[, c]) without the code under test."""
    axes = (2, 1, 0, 3) if is_vector else tuple(reversed(range(array.ndim)))
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(axes)), isVector=is_vector)
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path))
    return Path(path)


@pytest.fixture
def array():
    return np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)


@pytest.fixture
def nifti(tmp_path, array):
    path = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(array, oblique_affine()), path)
    return path


def load(path, reader):
    return LoadImage(reader=reader, ensure_channel_first=True)(path)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_every_format_gives_array_and_affine_of_nibabel_reader(tmp_path, nifti, array, suffix):
    path = write_itk(tmp_path / f"VSD.Brain.XX.O.MR_Flair.54512{suffix}", array, oblique_affine())
    expected = load(nifti, NibabelReader())
    actual = load(path, SimpleITKReader())
    np.testing.assert_array_equal(actual.array, expected.array)
    np.testing.assert_allclose(actual.affine, expected.affine, atol=1e-5)
    for key in ("original_affine", "spatial_shape"):
        np.testing.assert_allclose(actual.meta[key], expected.meta[key], atol=1e-5)
    assert actual.meta["space"] == expected.meta["space"]
    assert SimpleITKReader().verify_suffix(path)


@pytest.mark.parametrize(("sform_code", "qform_code"), [(2, 1), (1, 2), (0, 1), (1, 0), (0, 0)])
def test_nifti_with_two_geometries_reads_as_nibabel_reader_does(tmp_path, array, sform_code, qform_code):
    image = nib.Nifti1Image(array, oblique_affine())
    shifted = oblique_affine()
    shifted[0, 3] += 10
    image.set_qform(shifted, qform_code)
    image.set_sform(oblique_affine(), sform_code)
    nib.save(image, tmp_path / "image.nii")
    actual, expected = (load(tmp_path / "image.nii", reader) for reader in (SimpleITKReader(), NibabelReader()))
    np.testing.assert_array_equal(actual.array, expected.array)
    np.testing.assert_array_equal(actual.affine, expected.affine)


def test_scaled_sheared_nifti_reads_as_nibabel_reader_does(tmp_path):
    affine = oblique_affine()
    affine[0, 1] += 0.3
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), affine)
    image.header.set_slope_inter(0.37, 5)
    nib.save(image, tmp_path / "image.nii.gz")
    actual, expected = (load(tmp_path / "image.nii.gz", reader) for reader in (SimpleITKReader(), NibabelReader()))
    np.testing.assert_array_equal(actual.array, expected.array)
    np.testing.assert_array_equal(actual.affine, expected.affine)


def test_known_world_point(tmp_path):
    array = np.zeros((5, 6, 7), dtype=np.float32)
    array[3, 1, 4] = 1
    image = load(write_itk(tmp_path / "image.mha", array, oblique_affine()), SimpleITKReader())
    index = np.argwhere(image.array[0] == 1)[0]
    lps_point = sitk.ReadImage(str(tmp_path / "image.mha")).TransformIndexToPhysicalPoint((3, 1, 4))
    np.testing.assert_array_equal(index, [3, 1, 4])
    np.testing.assert_allclose((image.affine.numpy() @ [*index, 1])[:3] * [-1, -1, 1], lps_point, atol=1e-5)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_list_of_files_becomes_channels(tmp_path, array, suffix):
    affine = oblique_affine()
    paths = [write_itk(tmp_path / f"{i}{suffix}", array + i, affine + np.eye(4, k=3) * i * 1e-4) for i in range(3)]
    image = load(paths, SimpleITKReader())
    np.testing.assert_array_equal(image.array, np.stack([array, array + 1, array + 2]))
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)


@pytest.mark.parametrize(
    ("other_shape", "shift", "message"),
    [((5, 6, 8), 0, "shapes"), ((5, 6, 7), 0.1, r"lie 0\.1\d* mm apart cannot be stacked: .*a\.mha, .*b\.mha")],
)
def test_files_on_different_grids_are_not_stacked(tmp_path, array, other_shape, shift, message):
    paths = [
        write_itk(tmp_path / "a.mha", array, oblique_affine()),
        write_itk(tmp_path / "b.mha", np.zeros(other_shape, np.float32), oblique_affine() + np.eye(4, k=3) * shift),
    ]
    with pytest.raises(ValueError, match=message):
        load(paths, SimpleITKReader())


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_vector_image_has_its_components_as_channels(tmp_path, suffix):
    array = np.random.default_rng(0).normal(size=(4, 5, 6, 2)).astype(np.float32)
    path = write_itk(tmp_path / f"image{suffix}", array, oblique_affine(), is_vector=True)
    np.testing.assert_array_equal(load(path, SimpleITKReader()).array, np.moveaxis(array, -1, 0))
    assert load([path, path], SimpleITKReader()).shape == (4, 4, 5, 6)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_four_dimensional_file_has_its_last_dimension_as_channels(tmp_path, suffix):
    array = np.random.default_rng(0).normal(size=(4, 5, 6, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 2, 3, 1])), tmp_path / "nibabel.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "nibabel.nii.gz")), str(tmp_path / f"image{suffix}"))
    image = load(tmp_path / f"image{suffix}", SimpleITKReader())
    np.testing.assert_array_equal(image.array, np.moveaxis(array, -1, 0))
    np.testing.assert_allclose(image.affine, np.diag([1.0, 2, 3, 1]))


def test_two_dimensional_image(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(12, dtype=np.uint8).reshape(3, 4)), str(tmp_path / "slice.png"))
    image = load(tmp_path / "slice.png", SimpleITKReader())
    np.testing.assert_array_equal(image.array[0], np.arange(12).reshape(3, 4).T)


def write_dicom_series(folder, array, uid):
    folder.mkdir(exist_ok=True)
    for z in range(array.shape[2]):
        image = sitk.GetImageFromArray(array[:, :, z].T[None])
        image.SetSpacing([1.5, 0.5, 3.0])
        tags = {
            "0008|0060": "MR",
            "0010|0010": "Doe^Jane",
            "0020|000e": uid,
            "0020|0013": str(z),
            "0020|0032": f"10\\-20\\{30 + 3 * z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{uid}.{array.shape[2] - z}.dcm"))  # file names in the opposite order
        writer.Execute(image)


def test_dicom_series(tmp_path):
    array = np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3)
    write_dicom_series(tmp_path / "series", array, "1.2.3")
    image = load(tmp_path / "series", SimpleITKReader())
    np.testing.assert_array_equal(image.array[0], array)
    np.testing.assert_allclose(
        image.affine, [[-1.5, 0, 0, -10], [0, -0.5, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]], atol=1e-6
    )
    assert "Doe" not in str(image.meta)


def test_dicom_series_with_a_missing_slice(tmp_path):
    array = np.zeros((4, 5, 6), np.int16)
    write_dicom_series(tmp_path, array, "1.2.3")
    (tmp_path / "1.2.3.3.dcm").unlink()
    for read in (read_volume, lambda folder: load(folder, SimpleITKReader())):
        with pytest.raises(Exception, match="are 3 to 6 mm apart: some are missing"):
            read(tmp_path)


def test_dicom_slices_at_one_position(tmp_path):
    for number in (3, 4):
        write_dicom_series(tmp_path / "one", np.zeros((4, 5, 1), np.int16), "1.2.3")
        next(tmp_path.glob("one/1.2.3.1.dcm")).rename(tmp_path / "one" / f"{number}.dcm")
    with pytest.raises(ValueError, match="are 0 to 0 mm apart"):
        read_volume(tmp_path / "one")


def test_dicom_folder_with_two_series_needs_a_choice(tmp_path):
    array = np.zeros((4, 5, 3), dtype=np.int16)
    write_dicom_series(tmp_path, array, "1.2.3")
    write_dicom_series(tmp_path, array + 7, "1.2.4")
    with pytest.raises(ValueError, match=r"2 DICOM series.*1\.2\.3"):
        read_volume(tmp_path)
    with pytest.raises(ValueError, match=r"no DICOM series 1\.2\.5"):
        read_volume(tmp_path, series_id="1.2.5")
    assert load(tmp_path, SimpleITKReader(series_id="1.2.4")).min() == 7


def test_orientation_spacing_and_saving(tmp_path, array):
    path = write_itk(tmp_path / "image.mha", array, oblique_affine())
    process = Compose(
        [
            LoadImaged("image", reader=SimpleITKReader(), ensure_channel_first=True),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(2, 2, 2)),
        ]
    )
    image = process({"image": path})["image"]
    np.testing.assert_allclose(np.linalg.norm(image.affine[:3, :3], axis=0), 2, atol=1e-5)
    SaveImage(output_dir=tmp_path, separate_folder=False, print_log=False)(image)
    saved = read_volume(tmp_path / "image_trans.nii.gz")
    np.testing.assert_allclose(saved.affine, image.affine, atol=1e-5)
    np.testing.assert_allclose(saved.array, image.array[0], atol=1e-5)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_damaged_file_is_named(tmp_path, suffix, share):
    path = write_itk(tmp_path / f"damaged{suffix}", np.random.default_rng(0).normal(size=(9, 9, 9)), np.eye(4))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(OSError, match=rf"damaged{suffix} cannot be read"):
        read_volume(path)
    with pytest.raises((RuntimeError, OSError), match=rf"damaged{suffix} cannot be read"):
        load(path, SimpleITKReader())


def test_missing_file_and_empty_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        read_volume(tmp_path / "absent.mha")
    with pytest.raises(FileNotFoundError, match="no DICOM series"):
        read_volume(tmp_path)


def test_verify_suffix():
    reader = SimpleITKReader()
    assert reader.verify_suffix(["a.nii.gz", "b.MHA", Path("c.nrrd")])
    assert not reader.verify_suffix(["a.nii.gz", "b.npy"])
