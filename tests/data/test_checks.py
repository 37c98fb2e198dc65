import errno
import logging
import pickle

import nibabel as nib
import numpy as np
import pytest

from ssmctb_monai.data import checks
from ssmctb_monai.data.brats import BratsCase, find_cases
from ssmctb_monai.data.checks import InvalidCasesError, check_cases, report_invalid

SHAPE = (4, 5, 6)
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def save(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.fixture
def case_dir(tmp_path):
    """A sound case with flair, t1ce, seg and brain mask."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "A"
    folder.mkdir()
    save(folder / "A_flair.nii.gz", rng.normal(size=SHAPE).astype(np.float32))
    save(folder / "A_t1ce.nii.gz", rng.integers(0, 1000, SHAPE).astype(np.int16))
    save(folder / "A_seg.nii.gz", rng.integers(0, 5, SHAPE).astype(np.float32))
    save(folder / "A_brainmask.nii.gz", np.full(SHAPE, 0.99999997))
    return folder


def problems_of(case_dir, modalities=("flair", "t1ce")):
    return check_cases(find_cases(case_dir), modalities).get("A", [])


def test_sound_case_has_no_problem(case_dir):
    assert problems_of(case_dir) == []


def test_rounding_of_affine_and_labels_is_accepted(case_dir):
    save(case_dir / "A_t1ce.nii.gz", np.arange(120, dtype=np.int16).reshape(SHAPE), AFFINE + np.eye(4, k=3) * 5e-4)
    save(case_dir / "A_seg.nii.gz", np.full(SHAPE, 2.9999998, dtype=np.float32))
    assert problems_of(case_dir) == []


def test_modality_and_segmentation_missing(case_dir):
    (case_dir / "A_seg.nii.gz").unlink()
    problems = problems_of(case_dir, ["flair", "t1", "t2"])
    assert len(problems) == 2
    assert "no t1, t2 image beside" in problems[0]
    assert "no segmentation beside" in problems[1]
    assert all("A_flair.nii.gz" in problem for problem in problems)


NAN = np.where(np.arange(120).reshape(SHAPE) == 7, np.nan, 1.0)
INF = np.where(np.arange(120).reshape(SHAPE) == 7, np.inf, 1.0)
SHIFTED = AFFINE + np.eye(4, k=3) * 0.1


@pytest.mark.parametrize(
    ("name", "array", "affine", "message"),
    [
        ("t1ce", np.ones((4, 5, 7)), AFFINE, "shape (4, 5, 7) differs from (4, 5, 6) of A_flair.nii.gz"),
        ("seg", np.ones((4, 5, 7)), AFFINE, "shape (4, 5, 7) differs"),
        ("brainmask", np.ones(SHAPE), SHIFTED, "it lies 0.1 mm off A_flair.nii.gz"),
        ("seg", np.ones(SHAPE), SHIFTED, "affines differ"),
        ("t1ce", np.eye(5), AFFINE, "expected is a 3D array"),
        ("t1ce", np.ones((*SHAPE, 2)), AFFINE, "expected is a 3D array"),
        ("flair", NAN, AFFINE, "NaN or infinite voxels"),
        ("t1ce", INF, AFFINE, "NaN or infinite voxels"),
        ("seg", NAN, AFFINE, "NaN or infinite voxels"),
        ("t1ce", np.full(SHAPE, 3, np.int16), AFFINE, "every voxel is 3"),
        ("brainmask", np.zeros(SHAPE), AFFINE, "brain mask is empty"),
        ("seg", np.full(SHAPE, 0.5), AFFINE, "negative or not whole"),
        ("seg", np.full(SHAPE, -1, np.int16), AFFINE, "negative or not whole"),
    ],
)
def test_bad_file_is_named(case_dir, name, array, affine, message):
    save(case_dir / f"A_{name}.nii.gz", array, affine)
    problems = problems_of(case_dir)
    assert any(f"A_{name}.nii.gz: " in problem and message in problem for problem in problems), problems


@pytest.mark.parametrize("share", [0, 0.5, 0.98])
def test_truncated_file_is_named(case_dir, share):
    path = case_dir / "A_seg.nii.gz"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    (problem,) = problems_of(case_dir)
    assert "A_seg.nii.gz cannot be read" in problem


def test_images_of_other_modalities_are_not_read(case_dir):
    (case_dir / "A_t2.nii.gz").write_bytes(b"damaged")
    assert problems_of(case_dir) == []


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [
        ((*SHAPE, 2), {"flair": 1, "t1": 0}, None),
        ((*SHAPE, 2), {"flair": 1, "t1": 2}, "speaks of channel 2"),
        (SHAPE, {"flair": 0, "t1": 1}, "it has 1 channels"),
        ((*SHAPE, 3), {"flair": 2, "t1": 0}, "every voxel is 0"),
    ],
)
def test_four_dimensional_file(tmp_path, shape, channels, message):
    array = np.random.default_rng(0).normal(size=shape)
    array[..., 2:] = 0
    save(tmp_path / "image.nii.gz", array)
    save(tmp_path / "label.nii.gz", np.zeros(SHAPE, np.uint8))
    images = dict.fromkeys(channels, tmp_path / "image.nii.gz")
    case = BratsCase("A", "A", images, tmp_path / "label.nii.gz", None, channels)
    problems = check_cases([case], ["flair", "t1"])
    if message is None:
        assert problems == {}
    else:
        assert message in problems["A"][0]


def test_report_names_everything_and_says_what_to_do(caplog):
    problems = {"A": ["no t1 image", "a.nii: empty"], "B": ["no segmentation"]}
    with pytest.raises(InvalidCasesError) as raised:
        report_invalid(problems, skip_invalid=False)
    for text in (
        "A",
        "no t1 image",
        "a.nii: empty",
        "B",
        "no segmentation",
        "skip_invalid=True",
        "--skip_invalid true",
    ):
        assert text in str(raised.value)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)

    with caplog.at_level(logging.WARNING):
        report_invalid(problems, skip_invalid=True)
        report_invalid({}, skip_invalid=False)
    (record,) = caplog.records
    assert all(text in record.getMessage() for text in ("A", "a.nii: empty", "B", "no segmentation", "skipped"))


def test_real_cases(real_data):
    cases = find_cases(real_data / "brats")
    assert len(cases) >= 18
    assert len({case.patient_id for case in cases}) == len(cases)
    assert {case.case_id for case in cases if "t1" not in case.images} >= {"BraTS2021_01646", "brats_2013_pat0001_1"}
    # A few that are untidy in different ways: other grid, 32767 outliers, z-scored with brain mask, label off by 239 mm
    names = {"BraTS-GLI-00002-000", "Brats17_TCIA_639_1", "brats_2013_pat0001_1", "Brats17_TCIA_105_1"}
    problems = check_cases([case for case in cases if case.case_id in names], ["flair"])
    assert list(problems) == ["Brats17_TCIA_105_1"]
    assert "Brats17_TCIA_105_1_seg.nii.gz: it lies 239 mm off" in problems["Brats17_TCIA_105_1"][0]


@pytest.mark.process
def test_all_real_cases(real_data):
    brats = find_cases(real_data / "brats")
    assert list(check_cases(brats, ["flair", "t1ce"])) == ["Brats17_TCIA_105_1"]
    without_t1 = {case.case_id for case in brats if "t1" not in case.images}
    assert set(check_cases(brats, ["t1"])) == {"Brats17_TCIA_105_1", *without_t1}
    assert check_cases(find_cases(real_data / "lgg"), ["flair"]) == {}


def test_gaps_outside_of_a_given_brain_are_background(case_dir):
    gaps = np.arange(120, dtype=np.float32).reshape(SHAPE)
    gaps[0] = np.nan
    brain = np.ones(SHAPE, np.uint8)
    brain[0] = 0
    save(case_dir / "A_flair.nii.gz", gaps)
    assert "A_flair.nii.gz: it has NaN" in problems_of(case_dir)[0]
    save(case_dir / "A_brainmask.nii.gz", brain)
    assert problems_of(case_dir) == []
    gaps[1, 1, 1] = np.inf
    save(case_dir / "A_flair.nii.gz", gaps)
    assert "A_flair.nii.gz: it has NaN" in problems_of(case_dir)[0]


def test_full_disk_is_no_fault_of_a_case(case_dir, monkeypatch):
    def read(path):
        raise OSError("cannot be read") from OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checks, "read_volume", read)
    with pytest.raises(OSError, match="Input/output error"):
        problems_of(case_dir)
