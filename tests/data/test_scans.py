import json
import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ssmctb_monai.data import ValidCases, find_cases, find_scans, load_datalist, prepare_datalist
from ssmctb_monai.data.brats import NoCasesError
from ssmctb_monai.data.readers import read_volume


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def dicom(folder, suffix="", uid="1.2.3", description=None):
    """Writes a series of three slices."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    for z in range(3):
        image = sitk.GetImageFromArray(np.full((1, 5, 4), z, np.int16))
        tags = {"0008|0060": "MR", "0020|000e": uid, "0020|0032": f"0\\0\\{z}", "0020|0037": "1\\0\\0\\0\\1\\0"}
        for tag, value in (tags | ({"0008|103e": description} if description else {})).items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"IM{z}.{uid}{suffix}"))
        writer.Execute(image)
    return folder


def usable(path, modalities="flair", **keywords):
    """Case names and the images found, relative to the folder; asserts that there are no problems."""
    items = find_scans(path, modalities, **keywords)
    assert [item for item in items if "problems" in item] == []
    return {item["case_id"]: [Path(image).relative_to(path).as_posix() for image in item["image"]] for item in items}


def problem(path, modalities="flair", **keywords):
    (item,) = find_scans(path, modalities, **keywords)
    (text,) = item["problems"]
    return text


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "case_id"),
    [
        ("P1_flair.nii.gz", "P1"),
        ("P1-t2f.nii", "P1"),
        ("A/flair.mha", "A"),
        ("VSD.Brain.XX.O.MR_Flair.54512.mha", "folder"),
        ("P1.nii.gz", "P1"),
        ("A.b.MHA", "A.b"),
        ("patient1.nrrd", "patient1"),
        ("subject 12.nhdr", "subject 12"),
        ("P1_FLAIR_brain.mhd", "P1_FLAIR_brain"),
        ("T2_FLAIR_P1.nii", "T2_FLAIR_P1"),
        ("A_t10.nii", "A_t10"),
    ],
)
def test_one_file(tmp_path, name, case_id):
    folder = touch(tmp_path / "folder", name, "P2_flair.nii.gz", "B/brainmask.nii")
    expected = {"case_id": case_id, "patient_id": case_id, "image": [str(folder / name)]}
    assert find_scans(folder / name, ["FLAIR"]) == [expected]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("P1_t1.nii.gz", "t1"),
        ("P1-T1Gd.nii.gz", "t1ce"),
        ("t2w.nii.gz", "t2"),
        ("P1_seg.nii.gz", "label"),
        ("P1_brainmask.nii.gz", "brain mask"),
        ("T1_P001.nii.gz", "t1"),
        ("P1_T1_bet.nii.gz", "t1"),
        ("P1.t1.nii.gz", "t1"),
        ("P1_3DT1.nii", "t1"),
        ("AxT2_P1.nii", "t2"),
        ("t2_fse.nii", "t2"),
        ("t2fse_P1.nii", "t2"),
        ("P1 T1 post.mha", "t1ce"),
        ("P1_MPRAGE.nii", "t1"),
        ("P1_ADC.nii", "adc"),
        ("sub1_t1w_post_contrast.nii", "t1ce"),
        ("sub2_postT1.nii", "t1ce"),
        ("sub3_T1_MPRAGE_gad.nii", "t1ce"),
        ("sub4_T1+C.nii", "t1ce"),
        ("sag t1 +gd.nii", "t1ce"),
        ("t1_vibe_km.nii", "t1ce"),
        ("P1_T2star.nii", "t2star"),
        ("P1_T2_FFE.nii", "t2_ffe"),
        ("PD TSE.nii", "pd"),
        ("TOF 3D.nii", "tof"),
        ("3-plane localizer.nii", "localizer"),
        ("ep2d_diff_b1000_trace.nii", "diff, trace"),
        ("P1_eADC.nii", "eadc"),
        ("P1_FLAIR_mask.nii", "flair, label"),
        ("P1_T1_to_FLAIR_reg.nii", "flair, t1"),
        ("Segmentation.seg.nrrd", "label, label"),
    ],
)
def test_file_named_as_something_else_is_refused(tmp_path, name, said):
    touch(tmp_path, name)
    listing = "label" if said == "label, label" else said
    with pytest.raises(ValueError, match=rf"says {listing}, but flair is asked for") as error:
        find_scans(tmp_path / name, "flair")
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("t2_tirm_tra_dark-fluid.nii", "flair"),
        ("T2 FLAIR ax.nii", "flair"),
        ("T1_post_gd.nii", "t1ce"),
        ("T1_compost.nii", "t1"),
        ("T1_P1.nii", "t1"),
    ],
)
def test_file_named_in_words(tmp_path, name, modality):
    touch(tmp_path, name)
    assert find_scans(tmp_path / name, modality)[0]["image"] == [str(tmp_path / name)]


def test_file_that_is_the_other_modality_when_that_is_asked_for(tmp_path):
    touch(tmp_path, "P1_T1.nii.gz")
    assert usable(tmp_path, "t1n") == {"P1": ["P1_T1.nii.gz"]}
    (item,) = find_scans(tmp_path / "P1_T1.nii.gz", "t1")
    assert item["image"] == [str(tmp_path / "P1_T1.nii.gz")]


@pytest.mark.parametrize(
    ("image", "mask"),
    [("P1_flair.nii.gz", "P1_brainmask.nii"), ("flair.nii", "brainmask.nii"), ("P1.mha", "P1_brainmask.mha")],
)
def test_brain_mask_beside_file_and_in_folder(tmp_path, image, mask):
    folder = touch(tmp_path / "P9", image, mask, "P2_brainmask.nii", "P1_seg.nii", "sub/P3_t2.nii")
    for path in (folder / image, folder):
        (item,) = (item for item in find_scans(path, "flair") if item["image"] == [str(folder / image)])
        assert item["brain"] == str(folder / mask)
        assert "label" not in item


def test_two_brain_masks_beside_a_file(tmp_path):
    touch(tmp_path, "P1.nii", "P1_brainmask.nii", "P1_brainmask.mha")
    assert re.search(r"P1_brainmask\.mha and .*P1_brainmask\.nii", problem(tmp_path / "P1.nii"))


def test_file_with_several_modalities_dicom_file_and_what_is_no_volume(tmp_path):
    touch(tmp_path, "P1_flair.nii.gz", "notes.txt")
    with pytest.raises(ValueError, match=r"P1_flair\.nii\.gz is one file.*CASE_flair, CASE_t1ce"):
        find_scans(tmp_path / "P1_flair.nii.gz", ["flair", "t1ce"])
    with pytest.raises(ValueError, match=r"notes\.txt is no volume: expected is \.nii, \.nii\.gz"):
        find_scans(tmp_path / "notes.txt", "flair")
    for suffix in ("", ".dcm"):
        folder = dicom(tmp_path / f"series{suffix}", suffix)
        with pytest.raises(ValueError, match=rf"is a DICOM file: name the folder of its series, {folder}\."):
            find_scans(folder / f"IM0.1.2.3{suffix}", "flair")


def test_missing_path_and_unknown_modality(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        find_scans(tmp_path / "absent", "flair")
    with pytest.raises(ValueError, match="Unknown modality 'adc'"):
        find_scans(tmp_path, "adc")


# ------------------------------------------------------------------------------------------------------------- folders


def test_layouts_side_by_side(tmp_path, caplog):
    touch(
        tmp_path,
        *("b/X2_flair.nii.gz", "b/X2_t1.nii.gz", "b/X2_seg.nii.gz"),
        *("c/X3/FLAIR.nii.gz", "c/X3/seg.nii.gz", "c/X3/brainmask.nii.gz", "c/X3/wmh.nii.gz"),
        *("X1-t2f.nrrd", "new/Z9.nii", "new/Z8_FLAIR_bet.mha", ".hidden/X4_flair.nii.gz", ".X5_flair.nii", "notes.txt"),
        "HGG/brats_2013_pat0001_1/VSD.Brain.XX.O.MR_Flair.1/VSD.Brain.XX.O.MR_Flair.1.mha",
    )
    with caplog.at_level(logging.INFO):
        items = usable(tmp_path)
    assert items == {
        "HGG_brats_2013_pat0001_1": [
            "HGG/brats_2013_pat0001_1/VSD.Brain.XX.O.MR_Flair.1/VSD.Brain.XX.O.MR_Flair.1.mha"
        ],
        "X1": ["X1-t2f.nrrd"],
        "X2": ["b/X2_flair.nii.gz"],
        "X3": ["c/X3/FLAIR.nii.gz"],
        "new_Z8_FLAIR_bet": ["new/Z8_FLAIR_bet.mha"],
        "new_Z9": ["new/Z9.nii"],
    }
    assert list(items) == sorted(items)
    assert f"Found 6 scans in {tmp_path}, of which 0 cannot be used." in caplog.messages
    assert "Passed over labels and what else belongs to cases: c/X3/wmh.nii.gz." in caplog.messages
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["1 taken as FLAIR, since their names say nothing else: new/Z9.nii."]


def test_warning_names_five(tmp_path, caplog):
    touch(tmp_path, *(f"P{number}.nii" for number in range(6)))
    usable(tmp_path, "t2")
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "6 taken as T2, since their names say nothing else: P0.nii, P1.nii, P2.nii, P3.nii, P4.nii, and 1 more."
    ]


def test_items_are_those_of_a_datalist_without_labels(tmp_path):
    for number in range(3):
        for kind in ("t1", "flair", "seg", "brainmask"):
            array = np.zeros((4, 4, 4), np.uint8)
            array[1:3, 1:3, 1] = 1 if kind in ("seg", "brainmask") else 1 + number
            path = tmp_path / f"BraTS-GLI-0000{number}-001" / f"BraTS-GLI-0000{number}-001-{kind}.nii"
            path.parent.mkdir(exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    file = prepare_datalist(tmp_path, tmp_path / "out" / "datalist.json", ["flair", "t1"], validation=0, test=0)
    expected = load_datalist(file, tmp_path, "training", ["flair", "t1"], keep_invalid=True)
    for item in expected:
        del item["label"]
    assert find_scans(tmp_path, ["flair", "t1"]) == expected


def test_case_without_the_modality_has_a_problem(tmp_path):
    touch(tmp_path, "P1_t1.nii.gz", "P2_flair.nii.gz", "P2_t1.nii.gz")
    first, second = find_scans(tmp_path, "flair")
    assert first == {
        "case_id": "P1",
        "patient_id": "P1",
        "image": [],
        "problems": [f"no flair image beside {tmp_path / 'P1_t1.nii.gz'}"],
    }
    assert second["image"] == [str(tmp_path / "P2_flair.nii.gz")]
    first, second = find_scans(tmp_path, ["t1", "flair", "t2"])
    assert first["problems"] == [f"no flair, t2 image beside {tmp_path / 'P1_t1.nii.gz'}"]
    assert second["image"] == [str(tmp_path / "P2_t1.nii.gz"), str(tmp_path / "P2_flair.nii.gz")]
    cases = ValidCases(find_scans(tmp_path, ["t1", "flair"]), lambda item: item["case_id"])
    assert list(cases) == ["P2"]
    assert list(cases.problems) == ["P1"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("T1_P001.nii.gz", "t1"),
        ("t1/P1.nii.gz", "t1"),
        ("T2/site/P1.nii.gz", "t2"),
        ("FLAIR/P1_t1_bet.nii.gz", "t1"),
        ("P1_adc.nii.gz", "adc"),
        ("P1_t1_to_flair.v2.nii.gz", "t1"),
    ],
)
def test_other_modalities_are_never_taken(tmp_path, caplog, name, said):
    touch(tmp_path, name)
    assert f"no flair image: names or series description of {tmp_path / name} say {said};" in problem(tmp_path)
    assert "taken as" not in caplog.text


def test_folder_says_the_modality_where_the_name_is_silent(tmp_path, caplog):
    touch(tmp_path, "FLAIR/P1.nii.gz", "t1/x/P2_flair_bet.nii", "t2/flair/P3.nii")
    assert usable(tmp_path) == {
        "FLAIR_P1": ["FLAIR/P1.nii.gz"],
        "t1_x_P2_flair_bet": ["t1/x/P2_flair_bet.nii"],
        "t2_flair_P3": ["t2/flair/P3.nii"],
    }
    assert "taken as" not in caplog.text


@pytest.mark.parametrize("name", ["P1.nii.gz", "P1_FLAIR_bet.nii"])
def test_loose_volume_cannot_be_several_modalities(tmp_path, caplog, name):
    touch(tmp_path, name)
    text = problem(tmp_path, ["flair", "t1ce"])
    assert "no flair, t1ce image" in text
    assert str(tmp_path / name) in text
    assert "CASE_flair, CASE_t1ce" in text
    assert "taken as" not in caplog.text


def test_labels_masks_and_maps_are_no_scans(tmp_path):
    touch(
        tmp_path,
        *("P1.nii.gz", "P1_seg.nii.gz", "P2_mask.nii.gz", "P3_gt.mha", "P4.seg.nrrd", "P5_anomaly_map.nii.gz"),
        *("labels/P1.nii.gz", "labelsTs/P6.nii", "a/masks/P1.nii.gz", "b/masks/P1.nii.gz", "P7_brainmask.nii"),
        *("a/truth/seg.nii.gz", "b/truth/seg.nii.gz", "P8_seg.nii", "P8_seg.nii.gz", "P8_x.nii"),
    )
    assert usable(tmp_path) == {"P1": ["P1.nii.gz"], "P8_x": ["P8_x.nii"]}


def test_results_in_the_folder_of_the_scans_are_no_scans(tmp_path):
    results = (
        "maps/P1.nii.gz",
        "masks/P1.nii.gz",
        "reconstructions/P1.nii.gz",
        "dicom/P1_map.dcm",
        "dicom/P1_mask.dcm",
    )
    touch(tmp_path, "P1_flair.nii", *results, *(f"earlier/{name}" for name in results), "summary.csv", "settings.json")
    assert usable(tmp_path, exclude=tmp_path) == {"P1": ["P1_flair.nii"]}


def test_nothing_but_labels(tmp_path):
    touch(tmp_path, "P1_seg.nii.gz", "P1_brainmask.nii.gz", "P2_mask.nii", "notes.txt", ".P3.nii")
    with pytest.raises(NoCasesError, match=r"No scan found below .*\.nii\.gz, \.mha.*DICOM"):
        find_scans(tmp_path, "flair")


def test_what_belongs_to_a_case_is_no_scan_of_its_own(tmp_path, caplog):
    touch(
        tmp_path,
        *("a/P1_flair.nii.gz", "a/P1_flair_bias.nii.gz", "a/P1_adc.nii.gz", "a/P1-x.y.nii", "a/P12.nii.gz"),
        *("b/P1_x.nii.gz", "P2/flair.nii.gz", "P2/wmh.nii.gz", "P2/deep/x.nii", "P3/P3_flair.nii", "P3/wmh.nii"),
    )
    with caplog.at_level(logging.INFO):
        found = usable(tmp_path)
    assert list(found) == ["P1", "P2", "P2_deep_x", "P3", "a_P12", "b_P1_x"]
    expected = "a/P1-x.y.nii, a/P1_adc.nii.gz, a/P1_flair_bias.nii.gz, P2/wmh.nii.gz, P3/wmh.nii"
    (line,) = [text for text in caplog.messages if text.startswith("Passed over")]
    assert sorted(line.split(": ")[1].rstrip(".").split(", ")) == sorted(expected.split(", "))


def test_excluded_folder_is_not_entered(tmp_path):
    touch(tmp_path, "P1.nii", "runs/out/P1.nii", "runs/out/deep/P2_flair.nii", "runs/P3.nii", "out/P4.nii")
    expected = {"P1": ["P1.nii"], "out_P4": ["out/P4.nii"], "runs_P3": ["runs/P3.nii"]}
    assert usable(tmp_path, exclude=tmp_path / "runs" / "out") == expected
    assert usable(tmp_path, exclude=str(tmp_path / "out" / ".." / "runs" / "out")) == expected
    assert usable(tmp_path, exclude=tmp_path) == usable(tmp_path)
    (tmp_path / "latest").symlink_to(tmp_path / "runs" / "out", target_is_directory=True)
    assert usable(tmp_path, exclude=tmp_path / "runs" / "out") == expected


def test_relative_paths(tmp_path, monkeypatch):
    touch(tmp_path, "in/out/P2.nii", "in/flair.nii", "in/sub/P1.nii")
    monkeypatch.chdir(tmp_path / "in")
    items = find_scans(".", "flair", exclude="out")
    assert {item["case_id"]: item["image"] for item in items} == {
        "in": [str(tmp_path / "in" / "flair.nii")],
        "sub_P1": [str(tmp_path / "in" / "sub" / "P1.nii")],
    }
    assert find_scans("flair.nii", "flair") == items[:1]


@pytest.mark.parametrize(
    "names",
    [
        ("x/P1/flair.nii", "y/P1/flair.nii"),
        ("x/P1/flair.nii", "y/P1/brainmask.nii"),
        ("P1_flair.nii", "P1_flair.mha"),
    ],
)
def test_two_cases_of_the_same_name_are_named(tmp_path, names):
    touch(tmp_path, *names, "P3.nii")
    double, other = find_scans(tmp_path, "flair")
    assert "problems" not in other
    for name in names:
        assert str(tmp_path / name) in double["problems"][0]


@pytest.mark.parametrize(
    "names", [("a/P1.nii", "a_P1.nii"), ("a_P1.nii", "a_P1.nii.gz"), ("a_P1.nii", "x/a_P1_flair.nii")]
)
def test_two_scans_of_the_same_name_do_not_stop_the_others(tmp_path, names):
    touch(tmp_path, *names, "b.nii")
    double, other = find_scans(tmp_path, "flair")
    assert (other["case_id"], "problems" in other) == ("b", False)
    assert (double["case_id"], double["image"]) == ("a_P1", [])
    (text,) = double["problems"]
    assert "several scans have this name; rename" in text
    for name in names:
        assert str(tmp_path / name) in text


def test_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    touch(tmp_path, "a.nii", "closed/b.nii")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    one, other = find_scans(tmp_path, "flair")
    assert (one["case_id"], "problems" in one) == ("a", False)
    assert other["case_id"] == "closed"
    assert other["problems"] == [f"the folder {tmp_path / 'closed'} cannot be read: Permission denied"]
    with pytest.raises(PermissionError):
        find_cases(tmp_path)


@pytest.mark.parametrize("table", ["summary.csv", "report.json"])
def test_maps_of_an_earlier_run_are_no_scans_whatever_their_names(tmp_path, table):
    touch(tmp_path, "P1_FLAIR_brain.nii.gz", f"out/{table}", "out/maps/P1_FLAIR_brain.nii.gz", "maps/P2_flair.nii.gz")
    touch(tmp_path, "out/masks/P1_FLAIR_brain.nii.gz", "out/reconstructions/P1_FLAIR_brain.nii.gz")
    assert [item["case_id"] for item in find_scans(tmp_path, "flair")] == ["P1_FLAIR_brain", "P2"]


@pytest.mark.parametrize("part", ["imagesTr", "imagesTs"])
def test_decathlon(tmp_path, part):
    folder = tmp_path / "Task01_BrainTumour"
    touch(folder, "imagesTr/BRATS_001.nii.gz", "imagesTs/BRATS_003.nii.gz", "imagesTr/._BRATS_001.nii.gz")
    touch(folder, "labelsTr/BRATS_001.nii.gz", "labelsTr/BRATS_009.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd"}}))
    items = {}
    for path in (tmp_path, folder):
        items = {item["case_id"]: item for item in find_scans(path, ["t1ce", "flair"])}
        assert list(items) == ["BRATS_001", "BRATS_003"]
    case_id = {"imagesTr": "BRATS_001", "imagesTs": "BRATS_003"}[part]
    image = folder / part / f"{case_id}.nii.gz"
    expected = {"case_id": case_id, "patient_id": case_id, "image": [str(image)], "channels": [2, 0]}
    assert items[case_id] == expected
    assert find_scans(folder / part, ["t1ce", "flair"]) == find_scans(image, ["t1ce", "flair"]) == [expected]
    assert "no t2 image" in problem(image, "t2")


def test_channels_and_a_file_of_the_same_case(tmp_path):
    touch(tmp_path, "imagesTr/B.nii.gz", "B_t2.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR", "1": "T1w"}}))
    assert "one 4D file" in problem(tmp_path, ["flair", "t2"])
    assert usable(tmp_path, ["t1", "flair"]) == {"B": ["imagesTr/B.nii.gz"]}


# --------------------------------------------------------------------------------------------------------------- DICOM


@pytest.mark.parametrize("suffix", ["", ".dcm", ".DCM", ".ima"])
def test_folder_that_is_a_series(tmp_path, suffix):
    folder = touch(dicom(tmp_path / "P1", suffix), "README", "sub/P2.nii", ".hidden", "DICOMDIR")
    (item,) = find_scans(folder, "flair")
    assert item == {"case_id": "P1", "patient_id": "P1", "image": [str(folder)]}
    assert read_volume(item["image"][0]).array.shape == (4, 5, 3)


def test_what_lies_below_a_series_is_said_to_be_passed_over(tmp_path, caplog):
    folder = touch(dicom(tmp_path / "P1"), "maps/P1.nii.gz")
    for name in ("P2", "P3_flair"):
        dicom(folder / name)
    assert [item["case_id"] for item in find_scans(folder, "flair", exclude=folder / "maps")] == ["P1"]
    assert "2 folders in it are not looked at: P2, P3_flair. Where they hold others, move" in caplog.text


def test_series_are_named_like_files(tmp_path, caplog):
    touch(tmp_path, "P2/brainmask.nii", "P4_brainmask.nii", "P5_flair.nii", "CD/DICOMDIR", "out/P6_anomaly_map.dcm")
    for name in ("P1_FLAIR", "P1_t1", "P2/flair", "P2/localizer", "study/SE1", "P4", "P7-seg"):
        dicom(tmp_path / name)
    (tmp_path / "CD" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    items = {item["case_id"]: item for item in find_scans(tmp_path, "flair")}
    images = {"P1": "P1_FLAIR", "P2": "P2/flair", "P4": "P4", "P5": "P5_flair.nii", "study_SE1": "study/SE1"}
    assert {name: item["image"] for name, item in items.items()} == {
        name: [str(tmp_path / image)] for name, image in images.items()
    }
    assert {name: item["brain"] for name, item in items.items() if "brain" in item} == {
        "P2": str(tmp_path / "P2" / "brainmask.nii"),
        "P4": str(tmp_path / "P4_brainmask.nii"),
    }
    assert not any("problems" in item for item in items.values())
    assert "2 taken as FLAIR, since their names say nothing else: P4, study/SE1." in caplog.text
    (first, *others) = find_scans(tmp_path, ["t1", "flair"])
    assert first["image"] == [str(tmp_path / "P1_t1"), str(tmp_path / "P1_FLAIR")]
    assert all("problems" in item for item in others)


def test_series_description_counts_where_the_name_is_silent(tmp_path, caplog):
    dicom(tmp_path / "P1" / "SE1", description="AX T1 MPRAGE")
    dicom(tmp_path / "P1" / "SE2", description="Ax T2 FLAIR")
    dicom(tmp_path / "P2_flair", description="AX T1")
    first, second, third = find_scans(tmp_path, "flair")
    assert "SE1 say t1" in first["problems"][0]
    assert first["image"] == []
    assert second == {"case_id": "P1_SE2", "patient_id": "P1_SE2", "image": [str(tmp_path / "P1" / "SE2")]}
    assert (third["case_id"], "problems" in third) == ("P2", False)
    assert "taken as" not in caplog.text
    assert "say t1" in problem(tmp_path / "P1" / "SE1")
    assert "problems" not in find_scans(tmp_path / "P1" / "SE1", "t1")[0]
    assert "CASE_flair, CASE_t1" in problem(tmp_path / "P1" / "SE2", ["flair", "t1"])


@pytest.mark.parametrize("name", ["P1", "P1_flair", "P1/flair"])
def test_two_series_in_one_folder(tmp_path, name):
    folder = dicom(tmp_path / name)
    dicom(folder, uid="1.2.4")
    for path in {tmp_path, folder}:
        text = problem(path)
        names = "IM0.1.2.3, IM0.1.2.4"
        assert text == f"{folder} holds 2 DICOM series ({names}): put each series into a folder of its own"


@pytest.mark.parametrize("name", ["P1", "P1_flair", "P1/flair"])
def test_of_several_series_that_one_is_taken_which_says_the_modality(tmp_path, name):
    folder = dicom(tmp_path / name, uid="1.2.5", description="t2_FLAIR_tra")
    dicom(folder, uid="1.2.3", description="localizer")
    dicom(folder, uid="1.2.4", description="t1_mprage_sag")
    for path in {tmp_path, folder}:
        (item,) = find_scans(path, "flair")
        assert item["image"] == [str(folder / "IM0.1.2.5")]
        assert "problems" not in item
        assert read_volume(item["image"][0]).array.shape == (4, 5, 3)
    dicom(folder, uid="1.2.6", description="FLAIR post")
    assert "holds 4 DICOM series (localizer, t1_mprage_sag, t2_FLAIR_tra, FLAIR post)" in problem(folder)


def test_modalities_of_a_study_in_one_folder(tmp_path):
    folder = dicom(tmp_path / "P1", uid="1.2.5", description="t2_FLAIR_tra")
    dicom(folder, uid="1.2.4", description="t1_mprage_sag")
    (item,) = find_scans(tmp_path, ["t1", "flair"])
    assert item["image"] == [str(folder / "IM0.1.2.4"), str(folder / "IM0.1.2.5")]


def test_optional_modalities(tmp_path, caplog):
    """Files, series in folders of their own and in one, and a 4D file; the first modality is always needed."""
    names, optional = ["t2f", "t1c", "t1", "t2"], ["t1ce", "t1", "t2"]
    touch(tmp_path, "P1_t2.nii", "P1_flair.nii", "P2_t1.nii", "P3.nii", *(f"P4_{name}.nii" for name in names))
    dicom(tmp_path / "P5" / "t1ce")
    dicom(tmp_path / "P5" / "flair")
    study = dicom(tmp_path / "P6", uid="1.2.5", description="t2_FLAIR_tra")
    dicom(study, uid="1.2.4", description="t1_mprage_sag")
    items = {item["case_id"]: item for item in find_scans(tmp_path, names, optional=optional)}
    assert items["P1"]["image"] == [str(tmp_path / "P1_flair.nii"), str(tmp_path / "P1_t2.nii")]
    assert items["P2"]["problems"] == [f"no flair image beside {tmp_path / 'P2_t1.nii'}"]
    assert items["P5"]["image"] == [str(tmp_path / "P5" / name) for name in ("flair", "t1ce")]
    assert items["P6"]["image"] == [str(study / "IM0.1.2.5"), str(study / "IM0.1.2.4")]
    channels = {name: item["channels"] for name, item in items.items() if "channels" in item}
    flair_alone = [0, -1, -1, -1]
    expected = {"P1": [0, -1, -1, 1], "P3": flair_alone, "P5": [0, 1, -1, -1], "P6": [0, -1, 1, -1]}
    assert channels == expected
    assert "1 taken as FLAIR, since their names say nothing else: P3.nii" in caplog.text
    (alone,) = find_scans(tmp_path / "P4_t2f.nii", names, optional=optional)
    assert (alone["image"], alone["channels"]) == ([str(tmp_path / "P4_t2f.nii")], flair_alone)
    with pytest.raises(ValueError, match=r"P2_t1\.nii says t1, but flair is asked for"):
        find_scans(tmp_path / "P2_t1.nii", names, optional=optional)
    dicom(study, uid="1.2.6", description="t1_space")  # two that may be meant
    items = {item["case_id"]: item for item in find_scans(tmp_path, names, optional=optional)}
    assert "holds 3 DICOM series" in items["P6"]["problems"][0]


@pytest.mark.parametrize("name", ["P1/IM1.dcm", "P1/IM1.DCM"])
def test_folder_with_damaged_dicom_files(tmp_path, name):
    touch(tmp_path, name)
    assert problem(tmp_path) == f"{tmp_path / name} cannot be read: it has no SeriesInstanceUID."


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_what_is_no_file_is_not_opened(tmp_path):
    touch(tmp_path, "P1.nii")
    os.mkfifo(tmp_path / "a_pipe")
    (tmp_path / "broken").symlink_to(tmp_path / "absent")
    assert usable(tmp_path) == {"P1": ["P1.nii"]}


def test_what_fails_at_discovery_does_not_stop_the_others(tmp_path):
    touch(tmp_path, "P1.nii", "D/imagesTr/a.nii.gz", "D/dataset.json")
    os.close(os.open(os.path.join(os.fsencode(tmp_path), b"P\xff.nii"), os.O_CREAT))
    (tmp_path / "circle").symlink_to(tmp_path, target_is_directory=True)
    found = {item["case_id"]: item.get("problems", [""])[0] for item in find_scans(tmp_path, "flair")}
    assert found.pop("P1") == ""
    assert "dataset.json does not say" in found.pop("D")
    assert "rename it" in found.pop("P\\udcff")
    assert list(found) == ["D_imagesTr_a"]


def test_nnu_net_without_its_dataset_json(tmp_path):
    touch(tmp_path, "D/imagesTs/A_0000.nii.gz", "D/imagesTs/B_0000.nii.gz", "D/labelsTs/A.nii.gz", "P1.nii")
    expected = {"A": ["D/imagesTs/A_0000.nii.gz"], "B": ["D/imagesTs/B_0000.nii.gz"], "P1": ["P1.nii"]}
    assert usable(tmp_path) == expected
    touch(tmp_path, "D/imagesTs/A_0001.nii.gz", "D/imagesTs/B_0001.nii.gz")
    found = {item["case_id"]: item.get("problems", [""])[0] for item in find_scans(tmp_path, "flair")}
    assert list(found) == ["D_imagesTs", "P1"]
    assert "channels 0000, 0001, but there is no" in found["D_imagesTs"]
    assert "channels 0000, 0001" in problem(tmp_path / "D" / "imagesTs")


def test_wrapped_scans_and_labels_of_other_names(tmp_path):
    files = ("A1/A1_flair.nii/00057_brain_flair.nii", "A1/A1_seg.nii/00057_final_seg.nii")
    others = ("C1_nifti/C1_tumor_segmentation.nii.gz", "D1/lesionMask.nii.gz")
    touch(tmp_path, *files, *others, "C1_nifti/C1_FLAIR.nii.gz", "D1/scan.nii.gz")
    assert usable(tmp_path) == {"A1": [files[0]], "C1": ["C1_nifti/C1_FLAIR.nii.gz"], "D1_scan": ["D1/scan.nii.gz"]}


# ----------------------------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize(
    ("modalities", "count", "unusable"), [(["flair"], 18, 0), (["t1ce", "flair"], 18, 0), (["t2"], 18, 7)]
)
def test_real_cases(real_data, caplog, modalities, count, unusable):
    folder = (real_data / "brats").resolve()
    items = find_scans(folder, modalities)
    assert len(items) == count
    assert sum("problems" in item for item in items) == unusable
    assert sum("brain" in item for item in items) == 6
    assert "taken as" not in caplog.text
    for item in items:
        names = [Path(image).name for image in item["image"]]
        if "problems" not in item:
            assert names == [f"{item['case_id']}_{modality}.nii.gz" for modality in modalities]
            (alone,) = find_scans(folder / item["case_id"], modalities)
            assert alone == item
            if len(modalities) == 1:
                assert find_scans(item["image"][0], modalities) == [item]


def test_real_volume_without_a_name_and_as_a_series(real_data, tmp_path):
    (source,) = (real_data / "lgg" / "TCGA_CS_4942_19970222").glob("*_flair.nii.gz")
    (tmp_path / "scan.nii.gz").symlink_to(source)
    image = sitk.Cast(sitk.ReadImage(str(source)), sitk.sitkInt16)
    (tmp_path / "series").mkdir()
    for z in range(image.GetDepth()):
        plane = image[:, :, z : z + 1]
        position = "\\".join(map(str, plane.GetOrigin()))
        direction = np.reshape(image.GetDirection(), (3, 3))
        orientation = "\\".join(map(str, [*direction[:, 0], *direction[:, 1]]))
        tags = {"0020|0032": position, "0020|0037": orientation}
        for tag, value in {"0008|0060": "MR", "0020|000e": "1.2.9", **tags}.items():
            plane.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(tmp_path / "series" / f"{z}.dcm"))
        writer.Execute(plane)
    scan, series = (read_volume(item["image"][0]) for item in find_scans(tmp_path, "flair"))
    assert scan.spatial_shape == series.spatial_shape
    assert (
        np.sort(scan.array, axis=None).tobytes() == np.sort(series.array.astype(scan.array.dtype), axis=None).tobytes()
    )
