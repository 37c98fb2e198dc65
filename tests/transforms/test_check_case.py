"""Checks of a loaded case: every fault is refused, and its file named."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged

from ssmctb_monai.data import SimpleITKReader, ValidCases, check_cases, find_cases
from ssmctb_monai.transforms import CheckCased
from ssmctb_monai.transforms.brain import source_name

TRAIN = Path(__file__).parents[2] / "bundles" / "brats3d" / "configs" / "train.json"
SHAPE = (4, 5, 6)
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def volume(name, array, affine=AFFINE):
    meta = {"filename_or_obj": f"/data/case_7_{name}.nii.gz"}
    return MetaTensor(torch.as_tensor(array), affine=torch.as_tensor(affine), meta=meta)


def sound():
    rng = np.random.default_rng(0)
    return {
        "image": volume("flair", rng.normal(size=(2, *SHAPE)).astype(np.float32)),
        "label": volume("seg", rng.integers(0, 5, (1, *SHAPE)).astype(np.float32)),
        "brain": volume("brain", np.ones((1, *SHAPE), np.uint8)),
        "patient": "a",
    }


def test_sound_case_passes_unchanged():
    item = sound()
    checked = CheckCased()(item)
    assert checked is not item
    assert all(checked[key] is item[key] for key in item)
    assert set(checked) == set(item)


@pytest.mark.parametrize("kind", [np.asarray, lambda array: torch.as_tensor(np.asarray(array))])
def test_arrays_and_plain_tensors_have_no_affine_to_compare(kind):
    item = {key: kind(value) for key, value in sound().items() if key != "patient"}
    CheckCased()(item)
    with pytest.raises(ValueError, match="not whole numbers"):
        CheckCased()({**item, "label": kind(np.full((1, *SHAPE), 0.5))})


@pytest.mark.parametrize("shape", [(1, 5, 4), (1, 5, 4, 3, 2)])
def test_what_is_no_volume(shape):
    with pytest.raises(ValueError, match=r"flair.* has shape .*, but a volume has three axes"):
        CheckCased()({**sound(), "image": volume("flair", np.ones(shape, np.float32))})


def test_brain_mask_may_be_absent():
    item = sound()
    del item["brain"]
    assert set(CheckCased()(item)) == {"image", "label", "patient"}


def test_rounding_of_labels_and_affine_is_accepted():
    label = np.full((1, *SHAPE), 2.9999998, np.float32)
    label[0, 0] = -1e-7
    CheckCased()({**sound(), "label": volume("seg", label, AFFINE + np.eye(4, k=3) * 5e-4)})


def with_voxel(value, background=1.0):
    array = np.full((1, *SHAPE), background, np.float32)
    array[0, 1, 2, 3] = value
    return array


SHIFTED = AFFINE + np.eye(4, k=3) * 0.1


@pytest.mark.parametrize(
    ("key", "array", "affine", "message"),
    [
        ("image", with_voxel(np.nan), AFFINE, "NaN or infinite"),
        ("label", with_voxel(np.nan), AFFINE, "NaN or infinite"),
        ("label", with_voxel(-np.inf), AFFINE, "NaN or infinite"),
        ("brain", with_voxel(np.nan), AFFINE, "NaN or infinite"),
        ("label", with_voxel(-1), AFFINE, "negative or not whole numbers"),
        ("label", with_voxel(0.5), AFFINE, "negative or not whole numbers"),
        ("label", with_voxel(1.01), AFFINE, "negative or not whole numbers"),
        ("label", with_voxel(-1).astype(np.int16), AFFINE, "negative or not whole numbers"),
        ("label", np.zeros((2, *SHAPE)), AFFINE, "has 2 channels"),
        ("label", np.zeros((1, 4, 5, 7)), AFFINE, r"has shape \(4, 5, 7\), but .*case_7_flair.* has \(4, 5, 6\)"),
        ("brain", np.ones((1, 5, 4, 6)), AFFINE, r"has shape \(5, 4, 6\)"),
        ("label", with_voxel(2), SHIFTED, r"elsewhere than .*case_7_flair.* up to 0\.1 mm"),
        ("brain", with_voxel(2), SHIFTED, r"elsewhere than .*case_7_flair.* up to 0\.1 mm"),
    ],
)
def test_bad_volume_is_named(key, array, affine, message):
    name = {"image": "flair", "label": "seg", "brain": "brain"}[key]
    with pytest.raises(ValueError, match=rf"/data/case_7_{name}\.nii\.gz .*{message}"):
        CheckCased()({**sound(), key: volume(name, array, affine)})


def test_whole_labels_of_any_size_and_scale_are_accepted():
    for array in (with_voxel(255), with_voxel(4), with_voxel(2.0, background=0), np.zeros((1, *SHAPE), np.uint8)):
        CheckCased()({**sound(), "label": volume("seg", array)})


def test_other_keys():
    item = {"x": volume("x", with_voxel(0.5)), "y": volume("y", with_voxel(0.5))}
    CheckCased(["x", "y"])(item)
    with pytest.raises(ValueError, match="case_7_y"):
        CheckCased(["x", "y"], label_key="y")(item)


# ------------------------------------------------------------------------------------------------------- in the bundle


def save(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.fixture
def case_dir(tmp_path):
    rng = np.random.default_rng(0)
    image, label = np.zeros((40, 44, 36), np.float32), np.zeros((40, 44, 36), np.float32)
    image[5:35, 5:35, 5:30] = rng.uniform(1, 2, (30, 30, 25))
    label[10:14, 10:14, 10:14] = 1
    folder = tmp_path / "A"
    folder.mkdir()
    save(folder / "A_flair.nii.gz", image)
    save(folder / "A_seg.nii.gz", label)
    save(folder / "A_brainmask.nii.gz", (image > 0).astype(np.uint8))
    return folder


def item_of(case_dir):
    files = {"image": [str(case_dir / "A_flair.nii.gz")], "label": str(case_dir / "A_seg.nii.gz")}
    return {"case_id": "A", **files, "brain": str(case_dir / "A_brainmask.nii.gz")}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("seg", lambda array: (np.where(array > 0, np.nan, 0), AFFINE)),
        ("seg", lambda array: (-array, AFFINE)),
        ("seg", lambda array: (array * 0.7, AFFINE)),
        ("seg", lambda array: (array[..., :-1], AFFINE)),
        ("seg", lambda array: (array, AFFINE + np.eye(4, k=3) * 3)),
        ("brainmask", lambda array: (array * 0, AFFINE)),
        ("brainmask", lambda array: (array, AFFINE + np.eye(4, k=3) * 3)),
        ("flair", lambda array: (array * np.nan, AFFINE)),
        ("flair", lambda array: (array * 0, AFFINE)),
    ],
)
def test_what_the_split_refuses_the_preprocessing_refuses_too(case_dir, name, change):
    """`check_cases` sees only cases of a new split; later runs and other datalists are left to the transforms."""
    parser = ConfigParser()
    parser.read_config(TRAIN)
    parts = ("loading", "spatial_preprocessing", "scaling")
    steps = [step for part in parts for step in parser.get_parsed_content(part)]
    assert isinstance(steps[2], CheckCased)
    cases = ValidCases([item_of(case_dir)], Compose(steps))
    assert len(list(cases)) == 1

    path = case_dir / f"A_{name}.nii.gz"
    save(path, *change(nib.load(path).get_fdata(dtype=np.float32)))
    assert any(str(path) in problem for problem in check_cases(find_cases(case_dir), "flair")["A"])
    assert list(cases) == []
    assert str(path) in cases.problems["A"]


def test_real_cases(real_data):
    """One segmentation lies 239 mm off; labels of the others are scaled, or of another type."""
    names = ["BraTS2021_00006", "Brats17_TCIA_105_1", "brats_2013_pat0001_1"]
    files = {name: str(real_data / "brats" / name / name) for name in names}
    items = [
        {"case_id": name, "image": f"{path}_flair.nii.gz", "label": f"{path}_seg.nii.gz"}
        for name, path in files.items()
    ]
    load = LoadImaged(["image", "label"], reader=SimpleITKReader(), ensure_channel_first=True)
    cases = ValidCases(items, [load, CheckCased()])
    assert len(list(cases)) == 2
    assert list(cases.problems) == ["Brats17_TCIA_105_1"]
    assert "Brats17_TCIA_105_1_seg.nii.gz lies elsewhere" in cases.problems["Brats17_TCIA_105_1"]


def test_gaps_outside_of_a_given_brain_are_background():
    """Of the image the brain's lowest value, which resampling mixes into its rim, not that of the air."""
    image, label = with_voxel(np.nan, background=5), with_voxel(-np.inf, background=1)
    image[0, 0, 0, :2] = -3, -1000
    brain = with_voxel(0)
    brain[0, 0, 0, 1] = 0
    item = CheckCased()(
        {**sound(), "image": volume("flair", image), "label": volume("seg", label), "brain": volume("brain", brain)}
    )
    assert item["image"][0, 1, 2, 3] == -3
    assert item["image"].sum() == 5 * 117 - 3 - 3 - 1000
    assert item["label"][0, 1, 2, 3] == 0
    assert source_name(item["image"]).endswith("case_7_flair.nii.gz")
    with pytest.raises(ValueError, match=r"case_7_flair.*NaN or infinite"):
        CheckCased()({**sound(), "image": volume("flair", image), "brain": volume("brain", np.ones_like(brain))})
    empty = CheckCased()({**sound(), "image": volume("flair", image), "brain": volume("brain", 0 * brain)})
    assert empty["image"][0, 1, 2, 3] == -1000  # for `BrainMaskd` to say what is wrong
