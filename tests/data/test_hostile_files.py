"""Random headers, bytes, names and datalists: right, or refused by name, and nothing else."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from ssmctb_monai.data import find_cases, find_scans, load_datalist
from ssmctb_monai.data.brats import NoCasesError
from ssmctb_monai.data.nifti import GEOMETRY_FIELDS
from ssmctb_monai.data.readers import read_volume
from ssmctb_monai.data.writers import write_nifti

pytestmark = pytest.mark.process
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

VOXELS = np.random.default_rng(0).integers(0, 900, (5, 4, 3)).astype(np.int16)
NUMBERS = st.one_of(st.floats(width=32), st.sampled_from([0.0, 1.0, -1.0, 2.0, 0.5]))


@fuzz
@given(
    st.fixed_dictionaries(
        {
            "sform_code": st.integers(-1, 7),
            "qform_code": st.integers(-1, 7),
            "sizes": st.lists(NUMBERS, min_size=3, max_size=3),
        },
        optional={
            **{f"quatern_{axis}": NUMBERS for axis in "bcd"},
            **{f"qoffset_{axis}": NUMBERS for axis in "xyz"},
            **{f"srow_{axis}": st.lists(NUMBERS, min_size=4, max_size=4) for axis in "xyz"},
            "qfac": st.sampled_from([0.0, 1.0, -1.0, 3.0]),
            "dim": st.lists(st.integers(-2, 2**15 - 1), min_size=8, max_size=8),
            "vox_offset": st.sampled_from([0.0, 352.0, 400.0, 1e9]),
            "scl_slope": NUMBERS,
            "datatype": st.sampled_from([2, 4, 8, 16, 64, 128, 512, 1024, 3]),
        },
    )
)
def test_headers(tmp_path, fields):
    """A header is read as nibabel reads it, and a result then lies on its scan; or the file is refused by name."""
    header = nib.Nifti1Image(VOXELS, np.diag([2.0, 2, 2, 1])).header
    header["pixdim"][1:4], header["pixdim"][0] = fields.pop("sizes"), fields.pop("qfac", 1.0)
    for name, value in fields.items():
        header[name] = value
    path = tmp_path / "scan.nii"
    path.write_bytes(header.binaryblock + bytes(4) + VOXELS.tobytes(order="F") + bytes(8000))
    try:
        volume = read_volume(path)
    except OSError as error:
        assert "scan.nii cannot be read" in str(error)  # noqa: PT017
        return
    np.testing.assert_allclose(volume.affine, nib.load(path).affine, rtol=1e-5)
    assert volume.array.ndim >= 1
    assert np.isfinite(volume.affine).all()
    if volume.array.ndim != 3:
        return
    image = MetaTensor(torch.zeros(1, *volume.array.shape), affine=torch.from_numpy(volume.affine))
    write_nifti(image, tmp_path / "map.nii", path)
    made = nib.load(tmp_path / "map.nii").header
    for field in GEOMETRY_FIELDS:
        np.testing.assert_array_equal(made[field], header[field])


@fuzz
@given(st.data())
def test_bytes(tmp_path, data):
    """A compressed file with other bytes gives its own voxels or is refused by name."""
    nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "sound.nii")
    content = bytearray(gzip.compress((tmp_path / "sound.nii").read_bytes(), mtime=0))
    place = data.draw(st.integers(0, len(content) - 1))
    change = data.draw(st.sampled_from(["flip", "cut", "insert", "drop"]))
    if change == "flip":
        content[place] ^= data.draw(st.integers(1, 255))
    elif change == "cut":
        del content[place:]
    elif change == "insert":
        content[place:place] = data.draw(st.binary(min_size=1, max_size=9))
    else:
        del content[place : place + data.draw(st.integers(1, 9))]
    path = tmp_path / data.draw(st.sampled_from(["scan.nii.gz", "scan.nii"]))
    path.write_bytes(content)
    try:
        volume = read_volume(path)
    except OSError as error:
        assert f"{path.name} cannot be read" in str(error)  # noqa: PT017
    else:
        np.testing.assert_array_equal(volume.array, VOXELS)


NAME_PARTS = st.sampled_from(
    [
        "P1",
        "flair",
        "FLAIR",
        "seg",
        "_",
        "-",
        ".",
        "..",
        " ",
        "t1",
        "ses-1",
        "anat",
        "mask",
        "ü",
        "\udcff",
        "'",
        "=",
        "M" * 90,
    ]
)
NAMES = st.lists(NAME_PARTS, min_size=1, max_size=5).map("".join).filter(lambda name: name.strip(". ") != "")


@fuzz
@given(
    st.lists(
        st.tuples(st.lists(NAMES, max_size=2), NAMES, st.sampled_from([".nii", ".nii.gz", ".mha", "", ".dcm"])),
        max_size=6,
    )
)
def test_names(tmp_path_factory, caplog, files):
    """Whatever files are named, all scans are listed, each name once, none of which leads out of a folder."""
    caplog.set_level("INFO")
    caplog.clear()
    root = tmp_path_factory.mktemp("names")
    for folders, name, suffix in files:
        path = root.joinpath(*folders, name + suffix)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError:  # too long, or a file where a folder should be
            continue
    for find in (lambda: find_scans(root, "flair"), lambda: find_cases(root)):
        try:
            found = find()
        except NoCasesError:
            continue
        names = [item["case_id"] if isinstance(item, dict) else item.case_id for item in found]
        assert len(set(names)) == len(names)
        for item in found:
            problems = item.get("problems", []) if isinstance(item, dict) else item.problems
            name = item["case_id"] if isinstance(item, dict) else item.case_id
            is_safe = os.path.basename(name) == name and not name.startswith(".") and name.isprintable()
            assert is_safe or problems
    assert "\udcff" not in caplog.text  # a log is written as UTF-8


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.sampled_from(["A", "../A", "/A", "", "image.nii"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["flair", "t1", "case_id", "x"]), inner, max_size=3),
    ),
    max_leaves=5,
)
ENTRIES = st.fixed_dictionaries(
    {"case_id": st.one_of(st.just("A"), JSON), "image": st.one_of(st.just({"flair": "image.nii"}), JSON)},
    optional=dict.fromkeys(("patient_id", "label", "brain", "channels"), JSON),
)


@fuzz
@given(st.one_of(st.lists(ENTRIES, max_size=2), JSON))
def test_datalists(tmp_path, section):
    """A datalist is read, every name a safe one, or refused with the file's name."""
    (tmp_path / "list.json").write_text(json.dumps({"test": section}))
    (tmp_path / "image.nii").touch()
    try:
        items = load_datalist(tmp_path / "list.json", tmp_path, "test", "flair", keep_invalid=True)
    except ValueError as error:
        assert "list.json" in str(error)  # noqa: PT017
        return
    for item in items:
        assert Path(item["case_id"]).name == item["case_id"]
        assert isinstance(item["patient_id"], str)
        assert item["problems"] or item["image"]
