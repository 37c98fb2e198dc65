"""The brain in a head: what belongs to it, in whichever orientation and voxel size."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation
from scipy.ndimage import distance_transform_edt

from ssmctb_monai.data import SimpleITKReader
from ssmctb_monai.transforms import BrainMask, BrainMaskd
from ssmctb_monai.transforms.skull import cut_out_brain, extract_brain, has_skull

SPACING = (2.0, 2.0, 4.0)


@pytest.fixture
def without_deepbet(monkeypatch):
    monkeypatch.setattr("ssmctb_monai.transforms.brain.HAS_DEEPBET", False)


def made_head(spacing=SPACING, bridge=0.0):
    """A brain in dark bone and bright scalp, a neck below and a bridge as wide as told between brain and scalp.

    Returns:
        Image with noise in the air, the brain, and the head.
    """
    shape = [round(extent / size) for extent, size in zip((176, 208, 152), spacing, strict=True)]
    axes = [(np.arange(count) - (count - 1) / 2) * size for count, size in zip(shape, spacing, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")

    def radius(width, length, height):
        return np.sqrt((x / width) ** 2 + (y / length) ** 2 + ((z - 12) / height) ** 2)

    head = (radius(82, 98, 62) < 1) | ((np.hypot(x, y) < 60) & (z < 0))
    brain = radius(66, 82, 46) < 1
    image = np.abs(np.random.default_rng(0).normal(0, 4, shape))
    image[head] += 300
    image[(radius(74, 90, 54) < 1) | ((np.hypot(x, y) < 50) & (z < -20))] = 40
    image[(np.hypot(x, y) < 40) & (z < -44)] = 150  # muscles
    image[(np.abs(y) < bridge / 2) & (np.abs(z - 12) < 6) & (x > 0) & (radius(80, 96, 60) < 1)] = 150
    image[brain] = 150
    image[(radius(16, 24, 12) < 1)] = 60  # ventricles
    image += np.random.default_rng(1).normal(0, 5, shape) * head
    return image.astype(np.float32), brain, head


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.parametrize("bridge", [0, 8])
def test_brain_is_found_and_nothing_else(bridge):
    image, brain, head = made_head(bridge=bridge)
    found = cut_out_brain(image, head, SPACING[:2])
    assert dice(found, brain) > 0.9
    assert (found & brain).sum() / brain.sum() > 0.98
    assert (found & (image > 250)).sum() / found.sum() < 0.005  # scalp
    assert not found[..., :8].any()  # neck


def test_voxel_size_does_not_matter():
    image, _, head = made_head()
    finer, brain, finer_head = made_head((1.0, 2.0, 4.0))
    coarse, fine = cut_out_brain(image, head, SPACING[:2]), cut_out_brain(finer, finer_head, (1.0, 2.0))
    assert fine.sum() / coarse.sum() == pytest.approx(2, rel=0.02)
    assert dice(fine, brain) > 0.9
    assert (cut_out_brain(image, head, (0.5, 0.5)) != coarse).sum() > 1000  # a head of 5 cm


def test_a_lesion_darker_or_brighter_than_the_brain_belongs_to_it():
    image, brain, head = made_head()
    image[30:46, 30:46, 20:24] = 200
    image[46:60, 60:76, 20:24] = 50
    found = cut_out_brain(image, head, SPACING[:2])
    assert found[30:46, 30:46, 20:24].all()
    assert found[46:60, 60:76, 20:24].all()
    assert dice(found, brain) > 0.9


def test_no_tissue_is_thick_enough():
    image = np.zeros((40, 40, 4), np.float32)
    image[np.arange(40) % 10 < 5] = 100
    assert not cut_out_brain(image, np.ones(image.shape, dtype=bool), (1, 1)).any()


@pytest.mark.usefixtures("without_deepbet")
@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "ASR", "SRA"])
def test_mask_in_any_orientation(axcodes):
    image, brain, _ = made_head()
    scan = MetaTensor(torch.from_numpy(image[None]), affine=torch.diag(torch.tensor([*SPACING, 1.0])))
    turned = Orientation(axcodes=axcodes, labels=None)(scan)
    mask = BrainMask("skull")(turned)
    assert mask.shape == turned.shape
    assert mask.dtype == torch.uint8
    assert "".join(nibabel.aff2axcodes(mask.affine)) == axcodes
    back = Orientation(axcodes="RAS", labels=None)(mask)
    assert dice(back[0].numpy() > 0, brain) > 0.9
    torch.testing.assert_close(back.as_tensor(), BrainMask("skull")(scan).as_tensor(), rtol=0, atol=0)


@pytest.mark.usefixtures("without_deepbet")
def test_thresholds_are_said_to_be_crude(caplog):
    BrainMask("skull")
    assert (
        'thresholds, which leave some scalp that is taken for lesions: pip install "ssmctb_monai[skull]"' in caplog.text
    )
    caplog.clear()
    BrainMask("noise")
    assert not caplog.text


@pytest.fixture(scope="module")
def icbm_head():
    """T1 of the ICBM 152 brain at 2 mm in dark bone and bright scalp, and the brain."""
    pytest.importorskip("deepbet")
    data = pytest.importorskip("nilearn.datasets").__file__
    file = Path(data).parent / "data" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    image = np.pad(nibabel.load(file).get_fdata(dtype=np.float32)[::2, ::2, ::2], 12)
    distance = 2 * distance_transform_edt(image == 0)
    head = np.select([distance == 0, distance <= 6, distance <= 12, distance < 18], [image, 20, 60, 250], 0)
    return (head + np.random.default_rng(0).normal(0, 4, head.shape)).astype(np.float32), distance == 0


@pytest.mark.process
@pytest.mark.parametrize("axcodes", ["RAS", "LSP"])
def test_brain_by_the_network_in_any_orientation(icbm_head, axcodes):
    image, brain = icbm_head
    scan = MetaTensor(torch.from_numpy(image[None]), affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])))
    mask = BrainMask("skull")(Orientation(axcodes=axcodes, labels=None)(scan))
    assert "".join(nibabel.aff2axcodes(mask.affine)) == axcodes
    back = Orientation(axcodes="RAS", labels=None)(mask)[0].numpy() > 0
    assert dice(back, brain) > 0.93
    assert back[~brain & (image > 200)].mean() < 0.001  # scalp


@pytest.mark.process
def test_network_finds_no_brain_in_air_and_noise():
    pytest.importorskip("deepbet")
    assert not extract_brain(np.zeros((20, 20, 20), np.float32), np.eye(4)).any()


def test_single_slice_and_first_channel():
    image, brain, _ = made_head((1.0, 1.0, 4.0))
    axial = np.stack([image[..., 22], np.ones_like(image[..., 22])])
    mask = BrainMask("skull")(axial)
    assert mask.shape == (1, *axial.shape[1:])
    assert dice(mask[0] > 0, brain[..., 22]) > 0.9


def stripped(image, brain, kind):
    """The brain alone, as it is, in a rim of bright CSF, or with a large dark lesion near its surface."""
    image = np.where(brain, image, 0)
    if kind == "rim":
        image[brain & (distance_transform_edt(brain, SPACING) < 4)] = 300
    if kind == "lesion":
        image[20:44, 30:60, 16:30] *= 0.4
    return image


@pytest.mark.parametrize("kind", ["plain", "rim", "lesion"])
def test_sign_of_a_skull(kind):
    image, brain, _ = made_head()
    assert has_skull(image, SPACING[:2])
    assert has_skull(image[:, :, 24:25], SPACING[:2])
    assert has_skull(image - 1000, SPACING[:2])
    assert not has_skull(stripped(image, brain, kind), SPACING[:2])


def test_no_sign_of_a_skull_where_there_is_nothing_to_see():
    image, _, head = made_head()
    for array in (np.zeros((9, 9, 9)), np.ones((40, 40, 4)), np.indices((90, 90, 3))[0], head, image[::9, ::9]):
        assert not has_skull(np.asarray(array, np.float32), (2.0, 2.0))


@pytest.mark.parametrize("axcodes", ["RAS", "ASR"])
def test_skull_is_warned_of_unless_it_is_known(caplog, axcodes):
    image = made_head()[0]
    affine = torch.diag(torch.tensor([*SPACING, 1.0]))
    meta = {"filename_or_obj": "case_7_flair.nii.gz"}
    scan = MetaTensor(torch.from_numpy(np.where(image > 12, image, 0)[None]), affine=affine, meta=meta)
    scan = Orientation(axcodes=axcodes, labels=None)(scan)
    mask = BrainMaskd("image")({"image": scan})["brain"]
    assert "looks like a head with its skull" in mask.meta["doubt"]
    assert "doubt" not in scan.meta
    assert "case_7_flair.nii.gz looks like a head with its skull" in caplog.text
    assert "`--background skull`" in caplog.text
    caplog.clear()
    BrainMaskd("image")({"image": scan, "brain": MetaTensor(torch.ones_like(scan), affine=scan.affine)})
    BrainMask("noise")(scan)
    assert not caplog.text


@pytest.mark.process
def test_sign_of_a_skull_in_real_scans(real_data):
    """Never where there is none, mostly where there is one."""

    def found(pattern):
        signs = []
        for path in sorted(real_data.glob(pattern))[::2]:
            scan = nibabel.as_closest_canonical(nibabel.load(path))
            image = np.atleast_3d(np.squeeze(scan.get_fdata(dtype=np.float32)))
            signs.append(has_skull(image, scan.header.get_zooms()[:2]))
        return signs

    heads = found("lgg/*/*_flair.nii.gz")
    assert sum(heads) >= 0.8 * len(heads) > 0
    for pattern in ("brats/*/*_flair.nii.gz", "other/*/*/*_flair.nii.gz"):
        assert not any(found(pattern))


@pytest.mark.usefixtures("without_deepbet")
def test_head_without_a_brain_is_refused():
    distance = np.hypot(*np.meshgrid(np.arange(160) - 80, np.arange(160) - 80, indexing="ij"))[..., None]
    image = np.where(distance < 70, 40, 0) + np.where((distance > 60) & (distance < 70), 260, 0)
    image = np.repeat(image, 6, axis=2).astype(np.float32)
    scan = MetaTensor(torch.from_numpy(image[None]), meta={"filename_or_obj": "case_7_flair.nii.gz"})
    with pytest.raises(ValueError, match=r"No brain was found in the head of case_7_flair\.nii\.gz: give a brain mask"):
        BrainMask("skull")(scan)


@pytest.mark.usefixtures("without_deepbet")
def test_dictionary_takes_a_given_mask_instead():
    image, brain, _ = made_head()
    scan = MetaTensor(torch.from_numpy(image[None]), affine=torch.diag(torch.tensor([*SPACING, 1.0])))
    made = BrainMaskd("image", background="skull")({"image": scan})["brain"]
    assert dice(made[0].numpy() > 0, brain) > 0.9
    without = torch.from_numpy(np.where(brain, 40, image).astype(np.float32)[None])  # no brain would be found in it
    given = BrainMaskd("image", background="skull")({"image": without, "brain": torch.ones_like(without)})["brain"]
    assert given.all()


@pytest.mark.parametrize("distance", [1.0, 2.0, 8.0])
def test_distance_of_slices(distance):
    image, brain, head = made_head((2.0, 2.0, distance), bridge=8)
    assert dice(cut_out_brain(image, head, SPACING[:2]), brain) > 0.9


def test_slices_without_head_and_head_at_the_border():
    image, brain, head = made_head()
    image, brain, head = (array[16:-16, :, 8:] for array in (image, brain, head))  # scalp at both sides is cut off
    image[..., :2] = 0
    head[..., :2] = False
    assert dice(cut_out_brain(image, head, SPACING[:2]), brain) > 0.9
    assert not cut_out_brain(image, np.zeros_like(head), SPACING[:2]).any()
    assert not cut_out_brain(np.ones_like(image), head, SPACING[:2]).any()


@pytest.mark.process
@pytest.mark.parametrize("case_name", ["TCGA_CS_4942_19970222", "TCGA_CS_4944_20010208", "TCGA_CS_5393_19990606"])
def test_real_heads(real_data, case_name):
    """The lesion is in the brain; the lowest slices, through the face, hold none of it."""
    folder = real_data / "lgg" / case_name
    head = LoadImage(reader=SimpleITKReader(), ensure_channel_first=True)(folder / f"{case_name}_flair.nii.gz")
    lesion = nibabel.load(folder / f"{case_name}_seg.nii.gz").get_fdata() > 0
    whole, brain = (BrainMask(background)(head)[0].numpy() > 0 for background in ("noise", "skull"))
    assert not (brain & ~whole).any()
    assert 0.3 < brain.sum() / whole.sum() < 0.8
    assert (brain & lesion).sum() / lesion.sum() > 0.95
    assert not brain[..., 0].any()
