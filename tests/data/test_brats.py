import json
import os
from pathlib import Path

import pytest

from ssmctb_monai.data.brats import NoCasesError, canonical_modalities, canonical_modality, find_cases
from ssmctb_monai.data.patients import patient_of


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def relative(case, root):
    paths = {**case.images, "label": case.label, "brain": case.brain}
    return {kind: path.relative_to(root).as_posix() for kind, path in paths.items() if path}


@pytest.mark.parametrize(
    ("folder", "case_id", "files"),
    [
        pytest.param(
            "Images/BRATS_HG0001",
            "BRATS_HG0001",
            {"flair": "_FLAIR.mha", "t1": "_T1.mha", "t1ce": "_T1C.mha", "t2": "_T2.mha", "label": "_truth.mha"},
            id="2012",
        ),
        pytest.param(
            "MICCAI_BraTS_2017/HGG/Brats17_TCIA_639_1",
            "Brats17_TCIA_639_1",
            {
                "flair": "_flair.nii.gz",
                "t1": "_t1.nii.gz",
                "t1ce": "_t1ce.nii.gz",
                "t2": "_t2.nii.gz",
                "label": "_seg.nii.gz",
                "brain": "_brainmask.nii.gz",
            },
            id="2017",
        ),
        pytest.param(
            "MICCAI_BraTS2020_TrainingData/BraTS20_Training_001",
            "BraTS20_Training_001",
            {"flair": "_flair.nii", "t1": "_t1.nii", "t1ce": "_t1ce.nii", "t2": "_t2.nii", "label": "_seg.nii"},
            id="2020-unpacked",
        ),
        pytest.param(
            "TrainingData/BraTS-GLI-00000-000",
            "BraTS-GLI-00000-000",
            {
                "flair": "-t2f.nii.gz",
                "t1": "-t1n.nii.gz",
                "t1ce": "-t1c.nii.gz",
                "t2": "-t2w.nii.gz",
                "label": "-seg.nii.gz",
            },
            id="2023",
        ),
        pytest.param(
            "converted/case-1.b",
            "case-1.b",
            {"flair": "_flair.mhd", "t1": "-T1n.NRRD", "t2": "_t2.nhdr", "label": "_seg.nrrd"},
            id="other-formats",
        ),
        pytest.param(
            "TCGA_CS_4942_19970222",
            "TCGA_CS_4942_19970222",
            {"flair": "_flair.nii.gz", "label": "_seg.nii.gz"},
            id="flair-only",
        ),
    ],
)
def test_one_file_a_modality(tmp_path, folder, case_id, files):
    expected = {kind: f"{folder}/{case_id}{ending}" for kind, ending in files.items()}
    touch(tmp_path, *expected.values(), f"{folder}/{case_id}_anomaly_map.nii.gz", "survival_info.csv", "README.md")
    (case,) = find_cases(tmp_path)
    assert case.case_id == case_id
    assert relative(case, tmp_path) == expected
    assert case.channels == {}


def vsd(case, modality, number, study="VSD.Brain.XX.O"):
    name = f"{study}.{modality}.{number}"
    return f"{case}/{name}/{name}.mha"


def test_vsd_layout(tmp_path):
    case = "BRATS2015_Training/HGG/brats_2013_pat0001_1"
    files = {
        "flair": vsd(case, "MR_Flair", 54512),
        "t1": vsd(case, "MR_T1", 54513),
        "t1ce": vsd(case, "MR_T1c", 54514),
        "t2": vsd(case, "MR_T2", 54515),
        "label": vsd(case, "OT", 54517, study="VSD.Brain_3more.XX.O"),
    }
    touch(tmp_path, *files.values(), vsd("HGG/brats_tcia_pat100_0001", "MR_T1c", 1))
    touch(tmp_path, vsd("HGG/brats_tcia_pat100_0001", "OT", 2))
    cases = find_cases(tmp_path)
    assert [case.case_id for case in cases] == ["HGG_brats_2013_pat0001_1", "HGG_brats_tcia_pat100_0001"]
    assert [case.patient_id for case in cases] == ["HGG_brats_2013_pat0001", "HGG_brats_tcia_pat100"]
    assert relative(cases[0], tmp_path) == files
    assert set(relative(cases[1], tmp_path)) == {"t1ce", "label"}


def problems(folder):
    return "\n".join(problem for case in find_cases(folder) for problem in case.problems)


def test_same_name_in_both_grades_and_smir_names(tmp_path):
    name = "brats_2013_pat0001_1"
    touch(tmp_path, vsd(f"HGG/{name}", "MR_Flair", 1), vsd(f"LGG/{name}", "MR_Flair", 2, study="SMIR.Brain.XX.O"))
    assert [case.case_id for case in find_cases(tmp_path)] == [f"HGG_{name}", f"LGG_{name}"]


def test_numbered_vsd_folders_of_hg_and_lg_stay_apart(tmp_path):
    touch(tmp_path, vsd("HG/0001", "MR_Flair", 1), vsd("LG/0001", "MR_Flair", 2))
    assert [case.case_id for case in find_cases(tmp_path)] == ["HG_0001", "LG_0001"]


def test_vsd_folders_of_the_same_name_stay_apart(tmp_path):
    touch(tmp_path, vsd("siteA/pat1", "MR_Flair", 1), vsd("siteB/pat1", "OT", 2))
    assert "keep or rename one" in problems(tmp_path)


def test_case_named_after_its_folder(tmp_path):
    files = {
        "flair": "FLAIR.nii.gz",
        "t1": "t1.nii.gz",
        "t2": "t2w.mha",
        "label": "seg.nii.gz",
        "brain": "brainmask.nii",
    }
    touch(tmp_path / "site" / "Brats17_TCIA_639_1", *files.values(), "anomaly_map.nii.gz", "t3.nii", "_t1ce.nii")
    touch(tmp_path / "site", "P2/t1ce.nrrd", "P2/P2_flair.nii")
    first, second = find_cases(tmp_path)
    assert (first.case_id, first.patient_id) == ("Brats17_TCIA_639_1", "Brats17_TCIA_639")
    assert relative(first, tmp_path / "site" / "Brats17_TCIA_639_1") == files
    assert second.case_id == "P2"
    assert relative(second, tmp_path / "site" / "P2") == {"flair": "P2_flair.nii", "t1ce": "t1ce.nrrd"}


@pytest.mark.parametrize("path", [".", "../P1", "../P1/sub/.."])
def test_case_named_after_the_data_sets_folder(tmp_path, monkeypatch, path):
    touch(tmp_path / "P1", "flair.nii.gz", "sub/notes.txt")
    monkeypatch.chdir(tmp_path / "P1")
    (case,) = find_cases(path)
    assert case.case_id == "P1"
    assert case.images["flair"] == Path(path) / "flair.nii.gz"


@pytest.mark.parametrize("others", [("B/P1/flair.nii", "A/P1/flair.nii"), ("A/P1/flair.nii", "B/P1/t1.nii")])
def test_folders_of_the_same_name_are_not_mixed(tmp_path, others):
    touch(tmp_path, *others)
    for name in others:
        assert str(tmp_path / name) in problems(tmp_path)


def decathlon(root, modality):
    folder = root / "Task01_BrainTumour"
    for number in (2, 1):
        touch(folder, f"imagesTr/BRATS_00{number}.nii.gz", f"imagesTr/._BRATS_00{number}.nii.gz")
    touch(folder, "labelsTr/BRATS_001.nii.gz", "labelsTr/._BRATS_001.nii.gz", "imagesTs/BRATS_003.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"name": "BRATS", "modality": modality}))
    return folder


def test_decathlon_takes_channels_from_dataset_json(tmp_path):
    folder = decathlon(tmp_path, {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"})
    first, second = find_cases(tmp_path)
    image = folder / "imagesTr" / "BRATS_001.nii.gz"
    assert first.case_id == first.patient_id == "BRATS_001"
    assert first.images == dict.fromkeys(("flair", "t1", "t1ce", "t2"), image)
    assert first.channels == {"flair": 0, "t1": 1, "t1ce": 2, "t2": 3}
    assert first.label == folder / "labelsTr" / "BRATS_001.nii.gz"
    assert second.case_id == "BRATS_002"
    assert second.label is None


def test_decathlon_without_training_images_has_no_cases(tmp_path):
    touch(tmp_path, "imagesTs/BRATS_003.nii.gz")
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(NoCasesError):
        find_cases(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", '{"modality": {"0": "CT"}}', '{"modality": ["FLAIR"]}', "{"])
def test_decathlon_with_unclear_modalities_is_named(tmp_path, content):
    folder = decathlon(tmp_path, {})
    (folder / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=r"dataset\.json does not say which channel"):
        find_cases(tmp_path)


def test_layouts_side_by_side_in_order_of_names(tmp_path):
    touch(tmp_path, "b/X2_flair.nii.gz", "a/X3_flair.nii.gz", "X1_t1.nii.gz", ".cache/X4_flair.nii.gz")
    decathlon(tmp_path, {"0": "FLAIR"})
    assert [case.case_id for case in find_cases(tmp_path)] == ["BRATS_001", "BRATS_002", "X1", "X2", "X3"]


def test_linked_folders_are_followed(tmp_path):
    touch(tmp_path / "elsewhere", "A/A_flair.nii.gz")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "A").symlink_to(tmp_path / "elsewhere" / "A", target_is_directory=True)
    (case,) = find_cases(tmp_path / "data")
    assert case.images["flair"] == tmp_path / "data" / "A" / "A_flair.nii.gz"


def test_two_cases_of_the_same_name_are_all_named(tmp_path):
    touch(tmp_path, "HGG/A/A_flair.nii.gz", "LGG/A/A_flair.nii.gz", "B/B_seg.nii", "B/B_seg.nii.gz")
    for name in ("HGG/A/A_flair.nii.gz", "LGG/A/A_flair.nii.gz", "B/B_seg.nii and", "B/B_seg.nii.gz"):
        assert str(Path(name)) in problems(tmp_path)
    touch(tmp_path, "C/C_flair.nii.gz")
    assert [case.case_id for case in find_cases(tmp_path) if not case.problems] == ["C"]


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(NotADirectoryError, match="absent"):
        find_cases(tmp_path / "absent")
    touch(tmp_path, "image.nii.gz", "CASE_adc.nii.gz")
    with pytest.raises(ValueError, match="No case found"):
        find_cases(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"image\.nii\.gz"):
        find_cases(tmp_path / "image.nii.gz")


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    touch(tmp_path, *(f"{name}/{name}_{kind}.nii.gz" for name in "CAB" for kind in ("seg", "t1", "flair")))
    expected = find_cases(tmp_path)
    walk = os.walk

    def reversed_walk(*args, **kwargs):
        for folder, subfolders, names in walk(*args, **kwargs):
            subfolders.reverse()
            yield folder, subfolders, names[::-1]

    monkeypatch.setattr(os, "walk", reversed_walk)
    assert find_cases(tmp_path) == expected


@pytest.mark.parametrize(
    ("case_id", "patient_id"),
    [
        ("BraTS-GLI-00002-000", "BraTS-GLI-00002"),
        ("BraTS-GLI-00002-001", "BraTS-GLI-00002"),
        ("BraTS-MET-00002-101", "BraTS-MET-00002"),
        ("Brats17_TCIA_639_1", "Brats17_TCIA_639"),
        ("Brats17_CBICA_AXN_1", "Brats17_CBICA_AXN"),
        ("Brats18_2013_10_1", "Brats18_2013_10"),
        ("BraTS19_CBICA_AAB_1", "BraTS19_CBICA_AAB"),
        ("brats_2013_pat0001_1", "brats_2013_pat0001"),
        ("brats_tcia_pat100_0001", "brats_tcia_pat100"),
        ("TCGA_CS_4942_19970222", "TCGA_CS_4942"),
        ("TCGA_DU_A5TR_19970726", "TCGA_DU_A5TR"),
        ("BraTS2021_00006", "BraTS2021_00006"),
        ("BraTS20_Training_001", "BraTS20_Training_001"),
        ("BRATS_001", "BRATS_001"),
        ("BRATS_HG0001", "BRATS_HG0001"),
        ("HG_0001", "HG_0001"),
    ],
)
def test_patient_of(case_id, patient_id):
    assert patient_of(case_id) == patient_id


@pytest.mark.parametrize(
    ("modality", "names"),
    [
        ("flair", ["flair", "FLAIR", "Flair", "t2f"]),
        ("t1", ["t1", "T1", "t1n", "T1w"]),
        ("t1ce", ["t1ce", "T1c", "t1gd", "T1C"]),
        ("t2", ["t2", "T2w"]),
    ],
)
def test_canonical_modality(modality, names):
    assert {canonical_modality(name) for name in names} == {modality}


@pytest.mark.parametrize("name", ["ct", "", None])
def test_unknown_modality_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=r"Unknown modality .*flair.*t1ce.*t2f"):
        canonical_modality(name)


def test_canonical_modalities():
    assert canonical_modalities("FLAIR") == ("flair",)
    assert canonical_modalities(["t2f", "t1c"]) == ("flair", "t1ce")
    for names in ([], ["t1", "t1n"]):
        with pytest.raises(ValueError, match="one or more different modalities"):
            canonical_modalities(names)


# ------------------------------------------------------------------------------------------------- other arrangements


def found(folder):
    """Case, patient, images and label of each case, files relative to the folder."""
    return {
        case.case_id: (
            case.patient_id,
            *(path.relative_to(folder).as_posix() for path in (*case.images.values(), case.label) if path),
        )
        for case in find_cases(folder)
    }


def test_a_folder_named_like_a_volume_counts_as_the_one_in_it(tmp_path):
    flair, seg = "A1/A1_flair.nii/0057_brain_flair.nii", "A1/A1_seg.nii/0057_final_seg.nii"
    touch(tmp_path, flair, seg, "A1/A1_t1.nii/a.nii", "A1/A1_t1.nii/b.nii")
    assert found(tmp_path) == {"A1": ("A1", flair, seg)}


@pytest.mark.parametrize(
    "label",
    [
        *("A1_tumor_segmentation.nii.gz", "A1_segm.nii.gz", "A1-gtv.nii", "A1_LesionMask.nii.gz", "A1Mask.nii.gz"),
        *("W39_1998.09.19_Segm.nii", "LesionSeg.nii.gz", "consensus_gt.nii.gz", "A1_ROI.mha", "1-LesionSeg-Flair.nii"),
    ],
)
def test_a_label_of_another_public_name(tmp_path, label):
    others = ("A1/A1_brain_segmentation.nii.gz", "A1/A1_FLAIR_bias.nii.gz", "A1/A1_wm_mask.nii.gz", "A1/notes_seg.txt")
    touch(tmp_path, "A1/A1_flair.nii.gz", f"A1/{label}", *others, "B1/B1_flair.nii.gz", "B1/B1_seg.nii.gz")
    cases = found(tmp_path)
    assert cases["A1"] == ("A1", "A1/A1_flair.nii.gz", f"A1/{label}")
    assert cases["B1"][2] == "B1/B1_seg.nii.gz"


def test_a_label_that_may_be_of_another_patient_is_not_taken(tmp_path):
    """In a folder of several patients, of one of whom the image is lacking."""
    touch(tmp_path, "all/P1_flair.nii", "all/P2_tumor_mask.nii")
    assert found(tmp_path) == {"P1": ("P1", "all/P1_flair.nii")}
    touch(tmp_path, "all/P1_tumor_mask.nii")
    assert found(tmp_path) == {"P1": ("P1", "all/P1_flair.nii", "all/P1_tumor_mask.nii")}


def test_labels_in_another_folder(tmp_path):
    touch(tmp_path, "images/A1_11_FLAIR.nii", "images/A1_21_FLAIR.nii", "segm/A1_11_segm.nii", "segm/A1_21_segm.nii")
    assert {name: files[2] for name, files in found(tmp_path).items()} == {
        "A1_11": "segm/A1_11_segm.nii",
        "A1_21": "segm/A1_21_segm.nii",
    }


def test_several_files_that_may_be_the_label_are_named(tmp_path):
    touch(tmp_path, "A1/A1_flair.nii", "A1/A1_segm.nii", "A1/A1_automated_segm.nii")
    assert "A1_automated_segm.nii" in problems(tmp_path)
    assert "A1_segm.nii may be the segmentation: rename the right one A1_seg" in problems(tmp_path)
    touch(tmp_path, "A1/A1_seg.nii")
    assert problems(tmp_path) == ""


def test_bids(tmp_path):
    for session in ("ses-1", "ses-2"):
        touch(tmp_path, f"sub-1/{session}/anat/sub-1_{session}_acq-3d_FLAIR.nii.gz")
        touch(tmp_path, f"derivatives/sub-1/{session}/anat/sub-1_{session}_label-lesion_mask.nii.gz")
    touch(tmp_path, "sub-2/anat/sub-2_FLAIR.nii.gz", "sub-2/anat/sub-2_desc-T1lesion_mask.nii.gz")
    assert found(tmp_path) == {
        **{
            f"sub-1_{session}_acq-3d": (
                "sub-1",
                f"sub-1/{session}/anat/sub-1_{session}_acq-3d_FLAIR.nii.gz",
                f"derivatives/sub-1/{session}/anat/sub-1_{session}_label-lesion_mask.nii.gz",
            )
            for session in ("ses-1", "ses-2")
        },
        "sub-2": ("sub-2", "sub-2/anat/sub-2_FLAIR.nii.gz", "sub-2/anat/sub-2_desc-T1lesion_mask.nii.gz"),
    }


@pytest.mark.parametrize(
    ("files", "cases"),
    [
        (("P1/MR_flair.nii", "P2/MR_flair.nii"), {"P1_MR": "P1", "P2_MR": "P2"}),
        (("P1/1_flair.nii", "P2/1_flair.nii"), {"P1_1": "P1", "P2_1": "P2"}),
        (("P1/anat/flair.nii", "P2/anat/flair.nii"), {"P1": "P1", "P2": "P2"}),
        (
            ("P1/ses-1/flair.nii", "P1/ses-2/flair.nii", "P2/ses-1/flair.nii"),
            {"P1_ses-1": "P1", "P1_ses-2": "P1", "P2_ses-1": "P2"},
        ),
        (("P1/2019/MR_flair.nii", "P1/2021/MR_flair.nii"), {"P1_2019_MR": "P1", "P1_2021_MR": "P1"}),
        (("P1/x/flair.nii", "P2/x/flair.nii"), {"P1_x": "P1", "P2_x": "P2"}),
    ],
)
def test_the_same_name_under_each_patient(tmp_path, files, cases):
    touch(tmp_path, *files)
    assert {case.case_id: case.patient_id for case in find_cases(tmp_path)} == cases
    assert problems(tmp_path) == ""


def test_nnu_net_of_both_generations(tmp_path):
    first, second = tmp_path / "Task500_X", tmp_path / "Dataset501_Y"
    for folder, key, suffix in ((first, "modality", ".nii.gz"), (second, "channel_names", ".nrrd")):
        name = folder.name[-1]
        touch(folder, *(f"imagesTr/{name}1_000{channel}{suffix}" for channel in range(3)), f"labelsTr/{name}1{suffix}")
        touch(folder, f"imagesTs/{name}2_0000{suffix}")
        channels = {"0": "T1", "1": "FLAIR", "2": "SWI"}
        (folder / "dataset.json").write_text(json.dumps({key: channels, "file_ending": suffix}))
    cases = {case.case_id: case for case in find_cases(tmp_path)}
    assert list(cases) == ["X1", "Y1"]
    for case, folder, suffix in ((cases["X1"], first, ".nii.gz"), (cases["Y1"], second, ".nrrd")):
        files = {"flair": f"imagesTr/{case.case_id}_0001{suffix}", "t1": f"imagesTr/{case.case_id}_0000{suffix}"}
        assert relative(case, folder) == {**files, "label": f"labelsTr/{case.case_id}{suffix}"}
        assert case.channels == {}


def test_nnu_net_without_its_dataset_json(tmp_path):
    """One channel is the one modality that is asked for; which of several is which, nobody knows."""
    touch(tmp_path, "imagesTr/A_0000.nii.gz", "labelsTr/A.nii.gz", "imagesTs/B_0000.nii.gz")
    (case,) = find_cases(tmp_path, "t2f")
    assert (case.case_id, relative(case, tmp_path)) == (
        "A",
        {"flair": "imagesTr/A_0000.nii.gz", "label": "labelsTr/A.nii.gz"},
    )
    advice = r"imagesTr has nnU-Net's channels 0000.*no .*dataset.json.*write one, such as {\"channel_names\": {\"0\": "
    for modalities in (None, ["flair", "t1"]):
        with pytest.raises(ValueError, match=advice):
            find_cases(tmp_path, modalities)
    touch(tmp_path, "imagesTr/A_0001.nii.gz")
    with pytest.raises(ValueError, match=r"channels 0000, 0001.*name the files CASE_flair"):
        find_cases(tmp_path, "flair")
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "FLAIR"}}))
    assert sorted(find_cases(tmp_path)[0].images) == ["flair", "t1"]


def test_folder_that_is_named_like_a_volume_and_empty(tmp_path):
    touch(tmp_path, "A_flair.nii/a.nii", "A_seg.nii")
    (tmp_path / "B_flair.nii").mkdir()
    cases = {case.case_id: case.problems for case in find_cases(tmp_path)}
    assert cases.pop("A") == ()
    assert cases == {
        "B_flair.nii": (
            f"the folder {tmp_path / 'B_flair.nii'} cannot be read: it is named like a volume, but is empty",
        )
    }


def test_volumes_of_other_names_are_spoken_of(tmp_path):
    touch(tmp_path, "images/P1.nii.gz", "labels/P1.nii.gz")
    with pytest.raises(NoCasesError, match=r"It holds 2 volumes that are named otherwise, such as images/P1\.nii\.gz"):
        find_cases(tmp_path)


def test_links_in_circles_are_entered_once(tmp_path):
    touch(tmp_path, "A1/A1_flair.nii")
    (tmp_path / "A1" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "copy").symlink_to(tmp_path / "A1", target_is_directory=True)
    assert found(tmp_path) == {"A1": ("A1", "A1/A1_flair.nii")}
