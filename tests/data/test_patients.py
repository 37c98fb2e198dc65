"""Whom a scan is of."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from ssmctb_monai.data import load_datalist, prepare_datalist
from ssmctb_monai.data.patients import patient_of, read_patients, warn_of_shared_stems


@pytest.mark.parametrize(
    ("patient", "visits"),
    [
        ("sub-001", ["sub-001", "sub-001_ses-01", "sub-001_ses-02_space-MNI"]),
        ("BraTS-GLI-00002", ["BraTS-GLI-00002-000", "BraTS-GLI-00002-001"]),
        ("BraTS-MEN-RT-0106", ["BraTS-MEN-RT-0106-1", "BraTS-MEN-RT-0106-2"]),
        ("BraTSReg_001", ["BraTSReg_001_00_0000", "BraTSReg_001_01_0106"]),
        ("UCSF-PDGM-0409", ["UCSF-PDGM-0409", "UCSF-PDGM-0409_FU003d", "UCSF-PDGM-0409_nifti"]),
        ("UPENN-GBM-00001", ["UPENN-GBM-00001_11", "UPENN-GBM-00001_21"]),
        ("PatientID_0003", ["PatientID_0003_Timepoint_1", "PatientID_0003_Timepoint_2"]),
        ("Patient-001", ["Patient-001_week-000-1", "Patient-001_week-044-2"]),
        ("UCSD-PTGBM-0002", ["UCSD-PTGBM-0002_01", "UCSD-PTGBM-0002_02"]),
        ("OAS1_0061", ["OAS1_0061_MR1", "OAS1_0061_MR2"]),
        ("OAS30001", ["OAS30001_MR_d0129", "OAS30001_MR_d0757"]),
        ("training01", ["training01_01", "training01_02"]),
        ("TCGA_CS_4942", ["TCGA_CS_4942_19970222"]),
        ("Brats17_TCIA_639", ["Brats17_TCIA_639_1"]),
        ("HGG_brats_2013_pat0001", ["HGG_brats_2013_pat0001_1"]),
        ("P1", ["P1_T1", "P1_T2", "P1_study2", "P1_m12", "P1-v2", "P1_visit3", "P1_2019-02-03", "P1_20190203"]),
        ("Smith", ["Smith_pre", "Smith_post", "Smith_pre-op", "Smith_post_treatment"]),
        ("Smith", ["Smith_baseline", "Smith_followup", "Smith_ses1", "Smith_FU001d", "Smith_20190203"]),
    ],
)
def test_visits_of_one_patient(patient, visits):
    assert [patient_of(visit) for visit in visits] == [patient] * len(visits)


@pytest.mark.parametrize(
    "name",
    [
        *("BraTS2021_00006", "BraTS20_Training_001", "BRATS_001", "BRATS_HG0001", "FeTS2022_01341", "LGG-104"),
        *("IXI002-Guys-0828", "EGD-0265", "my_study_001", "MS_scan_1", "day_03", "patient_2013", "01", "P1"),
    ],
)
def test_numbers_of_patients_are_no_visits(name):
    assert patient_of(name) == name


@pytest.mark.parametrize(
    "text", ["case,patient\nA,P1\nB,P1\n", "A\tP1\nB\tP1\nA\tP1", "\ufeffcase_id, patient_id\nA, P1\n\nB, P1"]
)
def test_table_of_patients(tmp_path, text):
    (tmp_path / "patients.csv").write_text(text, encoding="utf-8")
    assert read_patients(tmp_path / "patients.csv") == {"A": "P1", "B": "P1"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"case,patient\n", "is empty"),
        (b"A\nB\n", "got 'A'"),
        (b"A,P1,x\n", "got 'A,P1,x'"),
        (b"A,\n", "got 'A,'"),
        (b"A,P1\nA,P2\n", "the case A two patients, P1 and P2"),
        (b"\xff\xfe", "no text"),
        (b"A" * 200_000 + b",P1", "is no table: field larger"),
    ],
)
def test_table_that_is_none_is_named(tmp_path, content, message):
    (tmp_path / "patients.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"patients\.csv.*{message}"):
        read_patients(tmp_path / "patients.csv")
    with pytest.raises(FileNotFoundError, match=r"absent\.csv: give a file with the columns case,patient"):
        read_patients(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("names", "suspect"),
    [
        (["P1_1", "P1_2", "P2_1"], "P1 (P1_1, P1_2)"),
        (["A", "A_2", "B"], "A (A, A_2)"),
        (["BraTS2021_00006", "BraTS2021_00008"], None),
        (["P1-01", "P2-01", "P3-01"], None),
    ],
)
def test_names_that_begin_alike_are_warned_of(caplog, names, suspect):
    warn_of_shared_stems({name: name for name in names})
    assert (suspect in caplog.text and "--patients" in caplog.text) if suspect else not caplog.records


def test_the_table_counts_in_the_split(tmp_path, caplog):
    rng = np.random.default_rng(0)
    names = [f"P{patient}_{visit}" for patient in range(6) for visit in range(2)]
    for name in names:
        for kind, array in (("flair", rng.normal(size=(4, 4, 4))), ("seg", np.zeros((4, 4, 4)))):
            nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4)), tmp_path / f"{name}_{kind}.nii")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(f"{name},{name[:2]}" for name in names) + "\nabsent,P9\n")
    file = prepare_datalist(tmp_path, tmp_path / "d.json", "flair", validation=0, patients=table)
    assert "names cases that are not in" in caplog.text
    assert "begin alike" not in caplog.text
    items = [item for part in ("training", "test") for item in load_datalist(file, tmp_path, part, "flair")]
    assert {item["case_id"]: item["patient_id"] for item in items} == {name: name[:2] for name in names}
    prepare_datalist(tmp_path, file, "flair", patients=table)
    table.write_text("P0_0,another")
    with pytest.raises(ValueError, match=r"d\.json has other patients than the table for P0_0: remove that file"):
        prepare_datalist(tmp_path, file, "flair", patients=table)
    prepare_datalist(tmp_path, tmp_path / "e.json", "flair", validation=0)
    assert "6 groups of patients begin alike, such as P0 (P0_0, P0_1)" in caplog.text
