"""Evaluation of maps in files: every file is used or named, and metrics are those of the voxels on disk."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from ssmctb_monai.metrics import AnomalyEvaluation, EvaluationSettings, LabelFreeThreshold
from ssmctb_monai.reports import evaluate_folders
from ssmctb_monai.reports import report as report_module

SHAPE = (12, 10, 8)
AFFINE = np.array([[1.0, 0, 0, -10], [0, 2.0, 0, 20], [0, 0, 3.0, 5], [0, 0, 0, 1]])
SETTINGS = EvaluationSettings(top_k=3, slab_depth=3, min_lesion_size=2, resamples=40)
NAMES = ("case_1", "case_2", "case_10")


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """Leaves out the drawing of the page, which takes longer than all else."""
    monkeypatch.setattr(report_module, "render_html", lambda *arguments: "")


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".mha"):
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
        to_lps = np.diag([-1.0, -1.0, 1.0])
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((to_lps @ affine[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin((to_lps @ affine[:3, 3]).tolist())
        sitk.WriteImage(image, str(path))
    else:
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def arrays(name, lesion=True):
    """FLAIR, label and two maps of a case; the first map sees more of the lesion."""
    rng = np.random.default_rng(sum(map(ord, name)))
    label = np.zeros(SHAPE, np.uint8)
    if lesion:
        label[4:8, 3:6, 2:5] = 2
    brain = np.zeros(SHAPE, bool)
    brain[1:-1, 1:-1, 1:-1] = True
    flair = np.where(brain, rng.integers(100, 200, SHAPE) + 40 * (label > 0), 0).astype(np.int16)
    noise = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    return {"flair": flair, "seg": label, "ours": noise[0] + 1.0 * (label > 0), "theirs": noise[1] + 0.5 * (label > 0)}


def make(folder, names=NAMES, layout="flat", suffix=".nii.gz", methods=("ours", "theirs")):
    """Folders of labels and of maps; the last case has no lesion."""
    for name in names:
        case = arrays(name, lesion=name != names[-1])
        if layout == "flat":
            save(folder / "labels" / f"{name}{suffix}", case["seg"])
        else:
            for kind in ("flair", "seg"):
                save(folder / "labels" / name / f"{name}_{kind}{suffix}", case[kind])
        for method in methods:
            save(folder / method / f"{name}{suffix}", case[method])
    return {method: folder / method for method in methods}


def evaluate(folder, methods=("ours", "theirs"), **keywords):
    return evaluate_folders(
        {method: folder / method for method in methods}, folder / "labels", **{"settings": SETTINGS, **keywords}
    )


def evaluated(evaluation):
    return [case.case_id for case in evaluation.cases]


def metrics(evaluation):
    """All metrics and differences with their intervals, as plain numbers."""
    groups = {method: evaluation.estimates(method) for method in evaluation.methods}
    first, *others = evaluation.methods
    groups |= {f"{first} - {other}": evaluation.differences(first, other) for other in others}
    return {
        (group, name, part): number
        for group, items in groups.items()
        for name, item in items.items()
        for part, number in zip(("value", "low", "high"), (item.value, *(item.interval or (None, None))), strict=True)
    }


# ------------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("layout", ["flat", "brats"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha"])
def test_metrics_are_scikit_learns_on_the_files(tmp_path, layout, suffix):
    make(tmp_path, layout=layout, suffix=suffix)
    evaluation = evaluate(tmp_path)
    assert evaluation.failed == {}
    assert evaluated(evaluation) == sorted(NAMES)
    for method in ("ours", "theirs"):
        scores, labels = [], []
        for name in NAMES:
            if suffix == ".mha":
                read = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / method / f"{name}.mha"))).T
            else:
                read = nibabel.load(tmp_path / method / f"{name}{suffix}").get_fdata()
            case = arrays(name, lesion=name != NAMES[-1])
            brain = case["flair"] > 0 if layout == "brats" else np.ones(SHAPE, bool)
            scores.append(read[brain]), labels.append(case["seg"][brain] > 0)
        scores, labels = np.concatenate(scores), np.concatenate(labels)
        assert evaluation.value(method, "pixel_auroc") == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
        expected = average_precision_score(labels, scores)
        assert evaluation.value(method, "pixel_average_precision") == pytest.approx(expected, abs=1e-4)


def test_folders_and_arrays_agree(tmp_path):
    make(tmp_path)
    thresholds = {"ours": LabelFreeThreshold(0.9, 0.01, "made up"), "theirs": 0.8}
    found = evaluate(tmp_path, thresholds=thresholds)
    expected = AnomalyEvaluation(thresholds, SETTINGS)
    for name in sorted(NAMES):
        case = arrays(name, lesion=name != NAMES[-1])
        maps = {method: case[method] for method in ("ours", "theirs")}
        expected.add(name, maps, case["seg"], affine=AFFINE)
    assert metrics(found) == metrics(expected)
    assert sum(value is not None for value in metrics(found).values()) > 150
    assert report_module.case_rows(found) == report_module.case_rows(expected)
    assert report_module.slice_rows(found) == report_module.slice_rows(expected)


def test_two_methods_in_one_call(tmp_path):
    make(tmp_path)
    evaluation = evaluate(tmp_path)
    assert evaluation.methods == ["ours", "theirs"]
    difference = evaluation.differences("ours", "theirs")["pixel_auroc"]
    values = [evaluation.value(method, "pixel_auroc") for method in ("ours", "theirs")]
    assert difference.value == pytest.approx(values[0] - values[1])
    assert 0 < difference.interval[0] <= difference.interval[1]
    assert evaluate(tmp_path, methods=("theirs", "ours")).methods == ["theirs", "ours"]


def test_map_that_is_compared_with_itself(tmp_path):
    make(tmp_path)
    same = tmp_path / "ours"
    evaluation = evaluate_folders({"ours": same, "again": same}, tmp_path / "labels", settings=SETTINGS)
    for item in evaluation.differences("ours", "again").values():
        assert item.value in (0, None)
        assert item.interval in ((0, 0), None)


def test_maps_keep_their_precision(tmp_path):
    """Scores that differ in the tenth digit only, and grow with the lesion."""
    make(tmp_path, methods=("ours",))
    for name in NAMES:
        case = arrays(name, lesion=name != NAMES[-1])
        scores = 1 + 1e-10 * (case["ours"].astype(np.float64) + 10 * (case["seg"] > 0))
        assert len(np.unique(scores.astype(np.float32))) == 1
        save(tmp_path / "ours" / f"{name}.nii.gz", scores)
    assert evaluate(tmp_path, methods=("ours",)).value("ours", "pixel_auroc") == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_maps_of_any_type(tmp_path, dtype):
    make(tmp_path, methods=("ours",))
    for name in NAMES:
        save(tmp_path / "ours" / f"{name}.nii.gz", np.round(20 * (arrays(name)["ours"] + 6)).astype(dtype))
    evaluation = evaluate(tmp_path, methods=("ours",))
    assert evaluation.failed == {}
    assert 0.5 < evaluation.value("ours", "pixel_auroc") < 1


def test_map_with_a_channel_dimension(tmp_path):
    make(tmp_path, methods=("ours",))
    expected = metrics(evaluate(tmp_path, methods=("ours",)))
    for name in NAMES:
        save(tmp_path / "ours" / f"{name}.nii.gz", arrays(name, lesion=name != NAMES[-1])["ours"][..., None])
    evaluation = evaluate(tmp_path, methods=("ours",))
    assert evaluation.failed == {}
    assert metrics(evaluation) == expected


@pytest.mark.parametrize("axcodes", ["LAS", "LPS", "RAS", "PIR", "SLA"])
def test_files_stored_in_any_orientation(tmp_path, axcodes):
    """They are the same scans: metrics, volumes and slices stay."""
    make(tmp_path / "ras", layout="brats")
    expected = evaluate(tmp_path / "ras", thresholds={"ours": 0.9})
    for path in (tmp_path / "ras").rglob("*.nii.gz"):
        image = nibabel.load(path)
        turned = image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(axcodes)))
        assert nibabel.aff2axcodes(turned.affine) == tuple(axcodes)
        other = tmp_path / "turned" / path.relative_to(tmp_path / "ras")
        other.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(turned, other)
    found = evaluate(tmp_path / "turned", thresholds={"ours": 0.9})
    assert found.failed == {}
    assert metrics(found) == pytest.approx(metrics(expected), abs=1e-6)
    for one, other in zip(report_module.slice_rows(found), report_module.slice_rows(expected), strict=True):
        assert one == pytest.approx(other, abs=1e-6)


# ------------------------------------------------------------------------------------------------- brain and baseline


def test_baseline_where_there_are_images(tmp_path):
    make(tmp_path, layout="brats")
    evaluation = evaluate(tmp_path)
    assert evaluation.methods == ["ours", "theirs", "baseline_flair"]
    for statistics in evaluation.statistics["baseline_flair"]:
        case = arrays(statistics.case_id, lesion=statistics.case_id != NAMES[-1])
        brain = case["flair"] > 0
        counts, edges = np.histogram(case["flair"][brain], 1000)
        shares = (counts.cumsum() - counts[0]) / (counts.sum() - counts[0])
        scores = np.interp(case["flair"][brain], (edges[:-1] + edges[1:]) / 2, shares)
        for found, expected in (
            (statistics.normal, scores[case["seg"][brain] == 0]),
            (statistics.lesion, scores[case["seg"][brain] > 0]),
        ):
            np.testing.assert_allclose(np.repeat(found.values, found.counts), np.sort(expected), atol=1e-5)
    assert 0.5 < evaluation.value("baseline_flair", "pixel_auroc") < 1


@pytest.mark.parametrize("baseline", ["T2F", "flair"])
def test_name_of_the_baseline(tmp_path, baseline):
    make(tmp_path, layout="brats")
    assert evaluate(tmp_path, baseline=baseline).methods[-1] == "baseline_flair"


def test_method_that_is_named_as_the_baseline(tmp_path):
    make(tmp_path, layout="brats")
    with pytest.raises(ValueError, match="One method is named baseline_flair"):
        evaluate_folders({"ours": tmp_path / "ours", "baseline_flair": tmp_path / "theirs"}, tmp_path / "labels")


def test_no_baseline_without_images(tmp_path):
    make(tmp_path)
    assert evaluate(tmp_path).methods == ["ours", "theirs"]
    make(tmp_path / "brats", layout="brats")
    assert evaluate(tmp_path / "brats", baseline="t2").methods == ["ours", "theirs"]


def test_images_are_used_of_the_cases_that_have_them(tmp_path, caplog):
    """One scan without FLAIR does not silently turn every voxel of the others into brain."""
    make(tmp_path, layout="brats")
    (tmp_path / "labels" / "case_2" / "case_2_flair.nii.gz").unlink()
    evaluation = evaluate(tmp_path)
    inside = (arrays("case_1")["flair"] > 0).sum() * 6e-3
    assert [case.brain_volume for case in evaluation.cases if case.case_id == "case_1"] == [pytest.approx(inside)]
    assert "case_2" in {*evaluation.failed, *re.findall(r"case_2(?= |:)", caplog.text)}


def test_cases_that_are_not_asked_for_do_not_matter(tmp_path):
    make(tmp_path, layout="brats")
    (tmp_path / "labels" / "case_2" / "case_2_flair.nii.gz").unlink()
    evaluation = evaluate(tmp_path, cases=["case_1", "case_10"])
    assert evaluation.methods == ["ours", "theirs", "baseline_flair"]
    assert evaluation.failed == {}


def brain_volumes(evaluation):
    return {case.case_id: case.brain_volume for case in evaluation.cases}


def test_every_voxel_counts_without_a_brain(tmp_path):
    make(tmp_path)
    assert brain_volumes(evaluate(tmp_path)) == pytest.approx(dict.fromkeys(NAMES, np.prod(SHAPE) * 6e-3))


@pytest.mark.parametrize("layout", ["flat", "brats"])
def test_brain_masks_in_a_folder(tmp_path, layout):
    make(tmp_path, layout=layout)
    for index, name in enumerate(NAMES):
        mask = np.zeros(SHAPE, np.uint8)
        mask[..., index:] = 1
        save(tmp_path / "masks" / f"{name}_brain.nii.gz", mask)
    volumes = brain_volumes(evaluate(tmp_path, brain_dir=tmp_path / "masks"))
    lesions = arrays(NAMES[1])["seg"][..., 0].any()
    assert not lesions
    expected = {name: 120 * (8 - index) * 6e-3 for index, name in enumerate(NAMES)}
    assert volumes == pytest.approx(expected)


def test_brain_masks_of_the_data_set(tmp_path):
    make(tmp_path, layout="brats")
    for name in NAMES:
        mask = np.zeros(SHAPE, np.uint8)
        mask[2:-2] = 1
        save(tmp_path / "labels" / name / f"{name}_brainmask.nii.gz", mask)
    assert brain_volumes(evaluate(tmp_path)) == pytest.approx(dict.fromkeys(NAMES, 8 * 80 * 6e-3))


def test_decathlon(tmp_path):
    """4D images, whose channels dataset.json names."""
    make(tmp_path / "brats", layout="brats")
    labels = tmp_path / "decathlon" / "labels"
    labels.mkdir(parents=True)
    (labels / "dataset.json").write_text(json.dumps({"modality": {"0": "T1w", "1": "FLAIR"}}))
    for name in NAMES:
        case = arrays(name, lesion=name != NAMES[-1])
        save(labels / "imagesTr" / f"{name}.nii.gz", np.stack([np.flip(case["flair"], 0), case["flair"]], axis=-1))
        save(labels / "labelsTr" / f"{name}.nii.gz", case["seg"])
    for method in ("ours", "theirs"):
        shutil.copytree(tmp_path / "brats" / method, tmp_path / "decathlon" / method)
    evaluation = evaluate(tmp_path / "decathlon")
    assert evaluation.failed == {}
    assert evaluation.methods == ["ours", "theirs", "baseline_flair"]
    expected = evaluate(tmp_path / "brats").value("baseline_flair", "pixel_auroc")
    assert evaluation.value("baseline_flair", "pixel_auroc") == pytest.approx(expected, abs=1e-6)


# ------------------------------------------------------------------------------------------------ files and their cases


@pytest.mark.parametrize(
    "pattern", ["{}.nii.gz", "{}_map.nii.gz", "{}-anomaly-map.nii", "{}.model.nii.gz", "{}_0001.mha", "{}.NII.GZ"]
)
def test_names_of_maps(tmp_path, pattern):
    make(tmp_path, methods=("ours",))
    expected = metrics(evaluate(tmp_path, methods=("ours",)))
    for name in NAMES:
        path = tmp_path / "ours" / f"{name}.nii.gz"
        path.unlink()
        target = tmp_path / "ours" / pattern.format(name)
        if pattern.endswith("GZ"):
            nibabel.save(nibabel.Nifti1Image(arrays(name, lesion=name != NAMES[-1])["ours"], AFFINE), path)
            path.rename(target)
        else:
            save(target, arrays(name, lesion=name != NAMES[-1])["ours"])
    evaluation = evaluate(tmp_path, methods=("ours",))
    assert evaluation.failed == {}
    assert metrics(evaluation) == expected


def test_names_that_begin_with_one_another(tmp_path):
    names = ["case_1", "case_10", "case_1_10", "case_1.5", "case"]
    make(tmp_path, names, methods=("ours",))
    for name in names:
        (tmp_path / "ours" / f"{name}.nii.gz").rename(tmp_path / "ours" / f"{name}_map.nii.gz")
    evaluation = evaluate(tmp_path, methods=("ours",))
    assert evaluation.failed == {}
    assert sorted(evaluated(evaluation)) == sorted(names)
    for case in evaluation.cases:  # each has its own map
        expected = arrays(case.case_id, lesion=case.case_id != names[-1])["ours"]
        assert max([*case.normal.values, *case.lesion.values]) == expected.max()


def test_labels_named_as_in_brats_side_by_side(tmp_path):
    make(tmp_path, methods=("ours",))
    for path in list((tmp_path / "labels").iterdir()):
        path.rename(path.with_name(path.name.replace(".nii.gz", "_seg.nii.gz")))
    evaluation = evaluate(tmp_path, methods=("ours",))
    assert sorted(evaluated(evaluation)) == sorted(NAMES)


def test_scans_of_one_patient(tmp_path):
    names = ["BraTS-GLI-00001-000", "BraTS-GLI-00001-001", "BraTS-GLI-00002-000"]
    make(tmp_path, names, methods=("ours",))
    assert {case.patient_id for case in evaluate(tmp_path, methods=("ours",)).cases} == {
        "BraTS-GLI-00001",
        "BraTS-GLI-00002",
    }


def test_only_some_cases(tmp_path):
    make(tmp_path)
    evaluation = evaluate(tmp_path, cases=["case_10", "case_1"])
    assert evaluated(evaluation) == ["case_10", "case_1"]
    assert evaluation.failed == {}


def test_other_files_and_hidden_ones_do_not_matter(tmp_path):
    make(tmp_path)
    (tmp_path / "ours" / "notes.txt").write_text("case_1")
    (tmp_path / "ours" / ".DS_Store").write_bytes(b"0")
    (tmp_path / "ours" / "._case_1.nii.gz").write_bytes(b"0")
    (tmp_path / "ours" / "old").mkdir()
    evaluation = evaluate(tmp_path)
    assert evaluation.failed == {}
    assert len(evaluation.cases) == 3


# ------------------------------------------------------------------------------------------------------- what is wrong


def broken_label(folder, change):
    save(folder / "labels" / "case_2.nii.gz", change(arrays("case_2")["seg"].astype(np.float32)))


def broken_map(folder, change=lambda array: array, affine=AFFINE):
    save(folder / "theirs" / "case_2.nii.gz", change(arrays("case_2")["theirs"]), affine)


def with_value(value):
    def change(array):
        array = array.copy()
        array[5, 5, 5] = value
        return array

    return change


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def shifted(distance):
    affine = AFFINE.copy()
    affine[0, 3] += distance
    return affine


FAULTS = {
    "map missing": (lambda folder: (folder / "theirs" / "case_2.nii.gz").unlink(), "theirs"),
    "two maps": (
        lambda folder: shutil.copy(folder / "theirs" / "case_2.nii.gz", folder / "theirs" / "case_2_old.nii.gz"),
        "case_2_old.nii.gz",
    ),
    "map of another shape": (lambda folder: broken_map(folder, lambda array: array[:-1]), "theirs/case_2.nii.gz"),
    "map of another affine": (lambda folder: broken_map(folder, affine=shifted(0.5)), "theirs/case_2.nii.gz"),
    "mirrored map": (lambda folder: broken_map(folder, affine=AFFINE @ np.diag([-1, 1, 1, 1])), "theirs/case_2.nii.gz"),
    "NaN in the map": (lambda folder: broken_map(folder, with_value(np.nan)), "theirs/case_2.nii.gz"),
    "map of two channels": (lambda folder: broken_map(folder, lambda a: np.stack([a, a], -1)), "shape"),
    "truncated map": (lambda folder: truncate(folder / "theirs" / "case_2.nii.gz"), "theirs/case_2.nii.gz"),
    "empty file": (lambda folder: (folder / "theirs" / "case_2.nii.gz").write_bytes(b""), "theirs/case_2.nii.gz"),
    "fractional label": (lambda folder: broken_label(folder, with_value(0.5)), "labels/case_2.nii.gz"),
    "negative label": (lambda folder: broken_label(folder, with_value(-1)), "labels/case_2.nii.gz"),
    "NaN in the label": (lambda folder: broken_label(folder, with_value(np.nan)), "labels/case_2.nii.gz"),
    "truncated label": (lambda folder: truncate(folder / "labels" / "case_2.nii.gz"), "labels/case_2.nii.gz"),
}


@pytest.mark.parametrize(("break_case", "named"), FAULTS.values(), ids=FAULTS)
def test_a_case_that_cannot_be_evaluated(tmp_path, caplog, break_case, named):
    """It is named in result, log and report, and the others are evaluated as if it were not there."""
    make(tmp_path)
    expected = metrics(evaluate(tmp_path, cases=["case_1", "case_10"]))
    break_case(tmp_path)
    with caplog.at_level(logging.INFO, logger="ssmctb_monai"):
        evaluation = evaluate(tmp_path, output_dir=tmp_path / "out")
    assert list(evaluation.failed) == ["case_2"]
    assert named in evaluation.failed["case_2"]
    assert evaluated(evaluation) == ["case_1", "case_10"]
    assert metrics(evaluation) == expected
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "case_2" in errors[0]
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["failed_cases"] == [{"case_id": "case_2", "problem": evaluation.failed["case_2"]}]
    assert report["cases"] == 2


@pytest.mark.parametrize("broken", NAMES)
@pytest.mark.parametrize("layout", ["flat", "brats"])
def test_empty_brain_mask(tmp_path, caplog, layout, broken):
    """Whichever case it is, the first included; one without lesion, since lesion voxels count in any case."""
    make(tmp_path, layout=layout)
    for name in NAMES:
        save(tmp_path / "masks" / f"{name}.nii.gz", np.full(SHAPE, name != broken, np.uint8))
    for path in (tmp_path / "labels").rglob(f"{broken}*.nii.gz"):
        if "flair" not in path.name:
            save(path, np.zeros(SHAPE, np.uint8))
    with caplog.at_level(logging.INFO, logger="ssmctb_monai"):
        evaluation = evaluate(tmp_path, brain_dir=tmp_path / "masks")
    assert list(evaluation.failed) == [broken]
    assert "empty" in evaluation.failed[broken]
    assert len(evaluation.cases) == 2
    if layout == "flat":  # it was loaded, and counts as done
        done = re.findall(r"Case (\d)/3", caplog.text)
        assert done == ["1", "2", "3"]


def test_scan_of_nothing_but_background(tmp_path):
    make(tmp_path, layout="brats")
    save(tmp_path / "labels" / "case_2" / "case_2_flair.nii.gz", np.zeros(SHAPE, np.int16))
    evaluation = evaluate(tmp_path)
    assert list(evaluation.failed) == ["case_2"]
    assert "case_2_flair.nii.gz" in evaluation.failed["case_2"]


@pytest.mark.parametrize("stranger", ["case_3", "case_1b", "case_100", "a_case_1", "CASE_1"])
def test_map_without_a_label(tmp_path, stranger):
    make(tmp_path)
    save(tmp_path / "theirs" / f"{stranger}.nii.gz", arrays("case_3")["theirs"])
    evaluation = evaluate(tmp_path)
    ((name, problem),) = evaluation.failed.items()
    assert f"theirs/{stranger}.nii.gz" in name + problem
    assert "labels" in problem
    assert len(evaluation.cases) == 3


def test_label_without_a_map(tmp_path):
    make(tmp_path)
    save(tmp_path / "labels" / "case_3.nii.gz", arrays("case_3")["seg"])
    evaluation = evaluate(tmp_path)
    assert list(evaluation.failed) == ["case_3"]
    assert all(method in evaluation.failed["case_3"] for method in ("ours", "theirs"))
    assert len(evaluation.cases) == 3


def test_unknown_case(tmp_path):
    make(tmp_path)
    evaluation = evaluate(tmp_path, cases=["case_1", "case_4"])
    assert list(evaluation.failed) == ["case_4"]
    assert "label" in evaluation.failed["case_4"]
    assert evaluated(evaluation) == ["case_1"]


def test_case_of_the_data_set_without_a_label(tmp_path):
    """It has a map, so that somebody wants it evaluated."""
    make(tmp_path, layout="brats")
    (tmp_path / "labels" / "case_2" / "case_2_seg.nii.gz").unlink()
    evaluation = evaluate(tmp_path)
    assert all("case_2.nii.gz" in name + problem for name, problem in evaluation.failed.items())
    assert len(evaluation.failed) >= 1
    assert evaluated(evaluation) == ["case_1", "case_10"]


def test_two_labels_of_one_case(tmp_path):
    make(tmp_path)
    save(tmp_path / "labels" / "case_2.nii", arrays("case_2")["seg"])
    evaluation = evaluate(tmp_path)
    assert list(evaluation.failed) == ["case_2"]
    assert "case_2.nii" in evaluation.failed["case_2"]
    assert evaluated(evaluation) == ["case_1", "case_10"]


@pytest.mark.parametrize(("layout", "problem"), [("flat", "is not UTF-8: rename"), ("brats", "is none for files of")])
def test_names_that_are_not_utf8(tmp_path, layout, problem):
    strange = os.fsdecode(b"case_\xff")
    make(tmp_path, names=(*NAMES, strange), layout=layout)
    evaluation = evaluate(tmp_path, output_dir=tmp_path / "out", viewer=False)
    assert list(evaluation.failed) == [r"case_\udcff"]
    assert problem in evaluation.failed[r"case_\udcff"]
    assert sorted(evaluated(evaluation)) == sorted(NAMES)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [case["case_id"] for case in report["failed_cases"]] == list(evaluation.failed)


def test_two_cases_of_one_name_in_the_data_set(tmp_path):
    make(tmp_path, layout="brats")
    shutil.copytree(tmp_path / "labels" / "case_2", tmp_path / "labels" / "other" / "case_2")
    evaluation = evaluate(tmp_path)
    assert re.search(
        r"two files have its name, keep or rename one: .*case_2.* and .*other.*", evaluation.failed["case_2"]
    )
    assert evaluated(evaluation) == [name for name in NAMES if name != "case_2"]


def test_label_that_does_not_fit_the_names_of_the_others(tmp_path):
    """Where one label is named as in BRATS, the others are not passed over in silence."""
    make(tmp_path)
    (tmp_path / "labels" / "case_2.nii.gz").rename(tmp_path / "labels" / "case_2_seg.nii.gz")
    evaluation = evaluate(tmp_path)
    named = " ".join([*evaluated(evaluation), *evaluation.failed, *evaluation.failed.values()])
    assert all(re.search(rf"{name}\b", named) for name in NAMES)


def test_several_faults_at_once(tmp_path, caplog):
    names = [f"case_{index}" for index in range(1, 9)]
    make(tmp_path, names)
    (tmp_path / "ours" / "case_1.nii.gz").unlink()
    broken_label(tmp_path, with_value(0.5))
    truncate(tmp_path / "theirs" / "case_3.nii.gz")
    save(tmp_path / "ours" / "case_4.nii.gz", arrays("case_4")["ours"], shifted(1))
    save(tmp_path / "ours" / "stranger.nii.gz", arrays("case_4")["ours"])
    with caplog.at_level(logging.INFO, logger="ssmctb_monai"):
        evaluation = evaluate(tmp_path, output_dir=tmp_path / "out")
    assert evaluated(evaluation) == names[4:]
    cases = {name for name in evaluation.failed if name.startswith("case")}
    assert cases == set(names[:4])
    assert sum("stranger" in name + problem for name, problem in evaluation.failed.items()) == 1
    done = [record.getMessage() for record in caplog.records if "left" in record.getMessage()]
    assert [re.search(r"Case (\d)/8, (case_\d) \| 0:00:0\d left", line).groups() for line in done] == [
        (str(index), f"case_{index}") for index in range(4, 9)
    ]
    rows = (tmp_path / "out" / "cases.csv").read_text(encoding="utf-8")
    assert all(f",{name}," in rows for name in names[4:])


def test_nothing_can_be_evaluated(tmp_path):
    make(tmp_path)
    for path in (tmp_path / "ours").iterdir():
        truncate(path)
    evaluation = evaluate(tmp_path)
    assert list(evaluation.failed) == sorted(NAMES)
    assert not evaluation.cases
    with pytest.raises(ValueError, match=r"no case to report(?s:.*)case_10"):
        evaluate(tmp_path, output_dir=tmp_path / "out")


@pytest.mark.parametrize("lacking", ["labels", "theirs", "masks"])
def test_folder_that_does_not_exist(tmp_path, lacking):
    make(tmp_path)
    if lacking != "masks":
        shutil.rmtree(tmp_path / lacking)
    with pytest.raises(NotADirectoryError, match=lacking):
        evaluate(tmp_path, brain_dir=tmp_path / "masks" if lacking == "masks" else None)


def test_no_method(tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match=r"no method to evaluate: give folders of maps by its name"):
        evaluate(tmp_path, methods=())


def test_folder_that_inference_wrote(tmp_path):
    """Its maps are in the folder ``maps``; tables beside it do not matter."""
    make(tmp_path, methods=("ours",))
    expected = metrics(evaluate(tmp_path, methods=("ours",)))
    (tmp_path / "ours").rename(tmp_path / "maps")
    (tmp_path / "ours").mkdir()
    (tmp_path / "maps").rename(tmp_path / "ours" / "maps")
    (tmp_path / "ours" / "summary.csv").touch()
    evaluation = evaluate(tmp_path, methods=("ours",))
    assert evaluation.failed == {}
    assert metrics(evaluation) == expected


def test_folder_without_labels(tmp_path):
    make(tmp_path)
    for path in (tmp_path / "labels").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"no label in .*labels"):
        evaluate(tmp_path)


def test_threshold_of_an_unknown_method(tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match="elsewhere"):
        evaluate(tmp_path, thresholds={"elsewhere": 0.5}, output_dir=tmp_path / "out")


# -------------------------------------------------------------------------------------------------------------- report


def test_report_is_written(tmp_path):
    make(tmp_path)
    evaluation = evaluate(tmp_path, output_dir=tmp_path / "new" / "out", thresholds={"ours": 0.9})
    report = json.loads((tmp_path / "new" / "out" / "report.json").read_text(encoding="utf-8"))
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == [
        "cases.csv",
        "report.html",
        "report.json",
        "slices.csv",
    ]
    assert report["methods"]["ours"]["figures"]["pixel_auroc"]["value"] == evaluation.value("ours", "pixel_auroc")
    assert all(str(tmp_path / method) in report["description"] for method in ("ours", "theirs"))


def test_viewer_holds_the_cases_that_have_an_image(tmp_path, monkeypatch):
    pages = []
    monkeypatch.setattr(report_module, "render_html", lambda *arguments: pages.append(arguments) or "")
    make(tmp_path, layout="brats")
    (tmp_path / "labels" / NAMES[1] / f"{NAMES[1]}_flair.nii.gz").unlink()
    (tmp_path / "out" / "viewer").mkdir(parents=True)
    (tmp_path / "out" / "viewer" / "case_of_last_week.js").write_text("")
    evaluate(tmp_path, output_dir=tmp_path / "out", thresholds={"ours": 0.9})
    shown = [name for name in NAMES if name != NAMES[1]]
    assert pages[0][-1] == sorted(shown)
    script = (tmp_path / "out" / "viewer" / f"{NAMES[0]}.js").read_text()
    header, _ = json.JSONDecoder().raw_decode(script.removeprefix("heatmapCase("))
    assert header["threshold"] == 0.9
    scores = arrays(NAMES[0])["ours"][1:-1, 1:-1, 1:-1]
    assert header["limits"] == pytest.approx(np.percentile(scores, [0.1, 99.9]), rel=1e-5)
    assert header["threshold_given"] is True


@pytest.mark.parametrize(
    "settings",
    [EvaluationSettings(slice_score="max", min_lesion_size=1, resamples=2), SETTINGS],
    ids=["max", "settings"],
)
def test_viewer_counts_as_the_report_does(tmp_path, settings):
    """Slice scores are those of slices.csv, components those of cases.csv: false alarms, and those that are lesion."""
    make(tmp_path, layout="brats")
    evaluate(tmp_path, output_dir=tmp_path / "out", thresholds={"ours": 1.5}, settings=settings)
    rows = {name: read_table(tmp_path / "out" / f"{name}.csv") for name in ("cases", "slices")}
    for name in NAMES:
        header = read_header(tmp_path / "out", name)
        slices = [row for row in rows["slices"] if (row["method"], row["case_id"]) == ("ours", name)]
        assert header["slices"]["index"] == [int(row["slice"]) for row in slices]
        assert header["slices"]["score"] == pytest.approx([float(row["score"]) for row in slices], rel=1e-6)
        assert header["slices"]["lesion"] == [int(row["lesion_voxels"]) > 0 for row in slices]
        (case,) = [row for row in rows["cases"] if (row["method"], row["case_id"]) == ("ours", name)]
        right = right_components(name, 1.5, settings.min_lesion_size)
        assert header["min_size"] == settings.min_lesion_size
        assert header["total"] == int(case["false_positives"]) + right > 0


def right_components(name, threshold, min_size):
    """Number of components of which at least a tenth is lesion, by SciPy."""
    case = arrays(name, lesion=name != NAMES[-1])
    labels, count = ndimage.label((case["flair"] > 0) & (case["ours"] >= threshold), np.ones((3, 3, 3)))
    parts = [case["seg"][labels == number] > 0 for number in range(1, count + 1)]
    return sum(len(part) >= min_size and part.mean() >= 0.1 for part in parts)


def read_table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_header(folder, name):
    script = (folder / "viewer" / f"{name}.js").read_text()
    return json.JSONDecoder().raw_decode(script.removeprefix("heatmapCase("))[0]


@pytest.fixture
def lists(monkeypatch):
    """Cases that the viewer of each page is given."""
    lists = []
    monkeypatch.setattr(report_module, "render_html", lambda *arguments: lists.append(arguments[-1]) or "")
    return lists


def test_no_viewer_unless_wanted(tmp_path, lists):
    make(tmp_path, layout="brats")
    evaluate(tmp_path, output_dir=tmp_path / "without", viewer=False)
    assert not (tmp_path / "without" / "viewer").exists()
    evaluate(tmp_path, output_dir=tmp_path / "out")
    assert sorted(path.stem for path in (tmp_path / "out" / "viewer").iterdir()) == sorted(NAMES)
    evaluate(tmp_path, output_dir=tmp_path / "out", viewer=False)  # files of the run before do not matter
    assert lists == [[], sorted(NAMES), []]


def test_data_without_images_after_data_with_them(tmp_path, lists):
    make(tmp_path / "brats", layout="brats")
    make(tmp_path / "flat")
    evaluate(tmp_path / "brats", output_dir=tmp_path / "out")
    evaluate(tmp_path / "flat", output_dir=tmp_path / "out")
    assert (tmp_path / "out" / "viewer" / f"{NAMES[0]}.js").is_file()
    assert lists == [sorted(NAMES), []]


def test_case_that_the_viewer_cannot_hold(tmp_path, monkeypatch, lists, caplog):
    """The disk is full at the second case: it is evaluated, and the report is written."""
    make(tmp_path, layout="brats")
    write = Path.write_text

    def fill(path, *arguments, **options):
        if path.name.endswith("case_10.js"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", fill)
    with caplog.at_level(logging.WARNING, logger="ssmctb_monai"):
        evaluation = evaluate(tmp_path, output_dir=tmp_path / "out")
    assert evaluation.failed == {}
    assert lists == [["case_1", "case_2"]]
    assert sorted(path.name for path in (tmp_path / "out" / "viewer").iterdir()) == ["case_1.js", "case_2.js"]
    (message,) = [message for message in caplog.messages if "viewer" in message]
    assert re.match("case_10 is not in the viewer: .*No space left", message)
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["cases"] == 3


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    evaluate(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
