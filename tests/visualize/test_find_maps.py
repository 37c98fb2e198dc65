"""Saved maps with their scans, as inference, evaluations and other programs leave them."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor

from ssmctb_monai.data.brats import NoCasesError
from ssmctb_monai.data.scans import find_scans
from ssmctb_monai.metrics import AnomalyEvaluation
from ssmctb_monai.reports import ScanResults, evaluate_folders, write_report
from ssmctb_monai.visualize.heatmap import load_heatmap
from ssmctb_monai.visualize.results import find_maps

SHAPE = (9, 8, 7)
AFFINE = np.diag([-2.0, 2, 3, 1])


def save(path, channels=0):
    """An image of random whole numbers in a background of 0."""
    array = np.zeros((*SHAPE, *([channels] if channels else [])), dtype=np.float32)
    array[1:-1, 1:-1, 1:-1] = np.random.default_rng(0).integers(1, 5, array[1:-1, 1:-1, 1:-1].shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    return str(path)


def make_dataset(folder, cases):
    """Cases of a data set, a file for each kind: ``{"P1": ["flair", "seg"]}``."""
    for name, kinds in cases.items():
        for kind in kinds:
            save(folder / name / f"{name}_{kind}.nii.gz")
    return folder


def make_decathlon(folder, names):
    content = {"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}}
    for name in names:
        save(folder / "imagesTr" / f"{name}.nii.gz", channels=4)
        save(folder / "labelsTr" / f"{name}.nii.gz")
    save(folder / "imagesTs" / "BRATS_901.nii.gz", channels=4)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def infer(folder, scans, modalities, threshold=0.3, settings=None, fails=(), save_reconstruction=True):
    """Writes results as the bundles do."""
    chosen = {"checkpoint": "abc", "modalities": modalities} if settings is None else settings
    results = ScanResults(folder, chosen, threshold, save_reconstruction=save_reconstruction)
    affine = torch.from_numpy(AFFINE)
    for scan in results.pending(find_scans(scans, modalities, exclude=folder)):
        if scan["case_id"] in fails or "problems" in scan:
            results.fail(scan["case_id"], "; ".join(scan.get("problems", ["it holds NaN"])))
        else:
            maps = [MetaTensor(torch.rand(count, *SHAPE), affine=affine) for count in (1, len(modalities))]
            results.add(scan["case_id"], maps[0], MetaTensor(torch.ones(1, *SHAPE), affine=affine), maps[1])
    return folder


def evaluate(folder, names, threshold=0.4):
    """Writes results as an evaluation with ``save_maps`` does."""
    evaluation = AnomalyEvaluation({"other": 0.9} if threshold is None else {"other": 0.9, "model": threshold})
    for name in names:
        scores = np.random.default_rng(0).random(SHAPE)
        evaluation.add(name, {"model": scores, "other": scores}, np.ones(SHAPE) * (scores > 0.9), np.ones(SHAPE))
        save(folder / "maps" / f"{name}.nii.gz")
    write_report(evaluation, folder)
    return folder


def names(items):
    return [item["case_id"] for item in items]


def change_rows(folder, change):
    with (folder / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= change(row)
    with (folder / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


# --------------------------------------------------------------------------------------------------------- inference


def test_inference_without_the_data_set(tmp_path):
    data = make_dataset(tmp_path / "data", {"P2": ["flair", "t1", "t1ce", "seg"], "P1": ["flair", "t1ce", "brainmask"]})
    out = infer(tmp_path / "out", data, ["t1ce", "flair"])
    first, second = find_maps(out)
    assert first == {
        "case_id": "P1",
        "image": [str(data / "P1" / "P1_t1ce.nii.gz"), str(data / "P1" / "P1_flair.nii.gz")],
        "modalities": ["t1ce", "flair"],
        "brain": str(data / "P1" / "P1_brainmask.nii.gz"),
        "anomaly_map": str(out / "maps" / "P1.nii.gz"),
        "threshold": 0.3,
        "reconstruction": str(out / "reconstructions" / "P1.nii.gz"),
        "reconstruction_modalities": ["t1ce", "flair"],
    }
    assert second["case_id"] == "P2"
    assert second.keys() == first.keys() - {"brain"}


def test_inference_with_the_data_set(tmp_path):
    """All modalities of the case, in the package's order; the reconstruction has those of the network."""
    data = make_dataset(tmp_path / "data", {"P1": ["t2", "t1ce", "flair", "seg", "brainmask"], "P2": ["flair"]})
    out = infer(tmp_path / "out", data, ["flair"])
    first, second = find_maps(str(out), str(data))
    folder = data / "P1"
    assert first == {
        "case_id": "P1",
        "image": [str(folder / f"P1_{name}.nii.gz") for name in ("flair", "t1ce", "t2")],
        "modalities": ["flair", "t1ce", "t2"],
        "label": str(folder / "P1_seg.nii.gz"),
        "brain": str(folder / "P1_brainmask.nii.gz"),
        "anomaly_map": str(out / "maps" / "P1.nii.gz"),
        "threshold": 0.3,
        "reconstruction": str(out / "reconstructions" / "P1.nii.gz"),
        "reconstruction_modalities": ["flair"],
    }
    assert (second["case_id"], second["modalities"]) == ("P2", ["flair"])
    assert not second.keys() & {"label", "brain"}


def test_neither_threshold_nor_reconstruction(tmp_path):
    data = make_dataset(tmp_path / "data", {"P1": ["flair"]})
    out = infer(tmp_path / "out", data, ["flair"], threshold=None, save_reconstruction=False)
    for dataset_dir in (None, data):
        (item,) = find_maps(out, dataset_dir)
        assert item.keys() == {"case_id", "image", "modalities", "anomaly_map"}


def test_relative_folders(tmp_path, monkeypatch):
    data = make_dataset(tmp_path / "data", {"P1": ["flair", "seg"]})
    infer(tmp_path / "out", data, ["flair"])
    monkeypatch.chdir(tmp_path)
    assert find_maps("out", "data") == find_maps(tmp_path / "out", data)


def test_each_row_has_its_own_threshold(tmp_path):
    """Runs with other settings over other scans leave rows in one table."""
    data = make_dataset(tmp_path / "data", {"P1": ["flair"], "P2": ["flair"]})
    infer(tmp_path / "out", data / "P1", ["flair"], threshold=1 / 3)
    out = infer(tmp_path / "out", data / "P2", ["flair"], threshold=0.7)
    assert [item["threshold"] for item in find_maps(out)] == [1 / 3, 0.7]


def test_4d_files(tmp_path):
    data = make_decathlon(tmp_path / "data", ["BRATS_001"])
    image = str(data / "imagesTr" / "BRATS_001.nii.gz")
    out = infer(tmp_path / "out", data, ["t1ce", "flair"])
    train, test = find_maps(out)
    assert (train["image"], train["channels"], train["modalities"]) == ([image], [2, 0], ["t1ce", "flair"])
    assert (test["case_id"], test["channels"]) == ("BRATS_901", [2, 0])
    train, test = find_maps(out, data)
    assert (train["image"], train["channels"]) == ([image], [0, 1, 2, 3])
    assert train["modalities"] == ["flair", "t1", "t1ce", "t2"]
    assert train["label"] == str(data / "labelsTr" / "BRATS_001.nii.gz")
    assert (test["modalities"], test["channels"]) == (["t1ce", "flair"], [2, 0])  # no case, but a scan of inference
    for item in find_maps(out, data):
        assert set(load_heatmap(item).reconstructions) == {"t1ce", "flair"}


def test_a_file_of_its_own_beside_4d_files(tmp_path):
    data = make_decathlon(tmp_path / "data", ["BRATS_001"])
    image, mask = (save(data / "imagesTr" / f"P1_{kind}.nii") for kind in ("flair", "brainmask"))
    out = infer(tmp_path / "out", data, ["flair"])
    for dataset_dir in (None, data):
        item = next(item for item in find_maps(out, dataset_dir) if item["case_id"] == "P1")
        assert (item["image"], item["brain"], "channels" in item) == ([image], mask, False)


def test_channels_of_a_4d_file_in_another_order(tmp_path):
    data = make_decathlon(tmp_path / "data", ["BRATS_001"])
    (data / "dataset.json").write_text(json.dumps({"modality": {"0": "T2w", "1": "FLAIR"}}))
    out = infer(tmp_path / "out", data, ["flair"])
    item = find_maps(out, data)[0]
    assert (item["modalities"], item["channels"], len(item["image"])) == (["flair", "t2"], [1, 0], 1)
    assert find_maps(out)[0]["channels"] == [1]


@pytest.mark.parametrize(
    ("image", "mask", "case_id"),
    [
        ("P1_flair.nii.gz", "P1_brainmask.nii.gz", "P1"),
        ("P1/flair.nii.gz", "P1/brainmask.nii.gz", "P1"),
        ("scan7.nii.gz", "scan7_brainmask.nii.gz", "scan7"),
        ("day1/scan7.nii.gz", "day1/scan7_brainmask.nii.gz", "day1_scan7"),
        ("P1-t2f.nii.gz", "P1-brainmask.nii.gz", "P1"),
    ],
)
def test_the_brain_mask_that_inference_used(tmp_path, image, mask, case_id):
    """Also of scans that are not named as those of BRATS are, of which the data set's folder says no more."""
    data = tmp_path / "data"
    save(data / "seen_flair.nii.gz")
    save(data / image)
    save(data / mask)
    save(data / "other_brainmask.nii.gz")
    assert next(scan for scan in find_scans(data, "flair") if scan["case_id"] == case_id)["brain"] == str(data / mask)
    out = infer(tmp_path / "out", data, ["flair"])
    for dataset_dir in (None, data):
        items = {item["case_id"]: item for item in find_maps(out, dataset_dir)}
        assert items.keys() == {case_id, "seen"}
        assert items[case_id]["brain"] == str(data / mask)
        assert items[case_id]["modalities"] == ["flair"]
        assert "brain" not in items["seen"]


@pytest.mark.parametrize(
    ("series", "mask", "case_id"),
    [("P1/flair", "P1/brainmask.nii.gz", "P1"), ("P1/SE001", "P1/SE001_brainmask.nii.gz", "P1_SE001")],
)
def test_the_brain_mask_beside_a_dicom_series(tmp_path, series, mask, case_id):
    data = make_dataset(tmp_path / "data", {case_id: ["flair"]})
    out = infer(tmp_path / "out", data, ["flair"])
    (data / series).mkdir(parents=True)
    save(data / mask)
    change_rows(out, lambda row: {"image": str(data / series)})
    (item,) = find_maps(out)
    assert (item["image"], item["brain"]) == ([str(data / series)], str(data / mask))


def test_paths_with_semicolons(tmp_path):
    data = make_dataset(tmp_path / "a;b", {"P1": ["flair"]})
    out = infer(tmp_path / "out", data, ["flair"])
    assert find_maps(out)[0]["image"] == [str(data / "P1" / "P1_flair.nii.gz")]


def test_settings_that_name_no_modalities(tmp_path):
    data = make_dataset(tmp_path / "data", {"P1": ["flair", "t2"]})
    out = infer(tmp_path / "out", data, ["flair", "t2"], settings={"checkpoint": "abc"})
    (item,) = find_maps(out)
    assert item["image"] == [str(data / "P1" / f"P1_{name}.nii.gz") for name in ("flair", "t2")]
    assert not item.keys() & {"modalities", "reconstruction_modalities"}
    (out / "settings.json").unlink()
    assert find_maps(out) == [item]
    assert find_maps(out, data)[0]["modalities"] == ["flair", "t2"]


def test_what_has_a_problem_is_left_out_and_named(tmp_path, caplog):
    data = make_dataset(tmp_path / "data", {name: ["flair"] for name in ("P1", "P2", "P3", "P4")})
    out = infer(tmp_path / "out", data, ["flair"], fails=["P2"])
    (out / "maps" / "P3.nii.gz").unlink()
    (data / "P4" / "P4_flair.nii.gz").unlink()
    save(out / "maps" / "P9.nii.gz")  # of a run that was killed, or of none
    for dataset_dir, reason in ((None, "P4_flair.nii.gz does not exist"), (data, f"{data} has no images of it")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert names(find_maps(out, dataset_dir)) == ["P1"]
        problems = [record.getMessage() for record in caplog.records]
        assert len(problems) == 3
        assert problems[0] == "Left out is P2: it holds NaN"
        assert problems[1] == f"Left out is P3: {out / 'maps' / 'P3.nii.gz'} does not exist"
        assert problems[2].startswith("Left out is P4: ")
        assert reason in problems[2]


def test_results_and_scans_that_moved(tmp_path):
    data = make_dataset(tmp_path / "data", {name: ["flair"] for name in ("P1", "P2", "P3", "P4")})
    infer(tmp_path / "out", data, ["flair"])
    out, moved = (tmp_path / "out").rename(tmp_path / "copy"), data.rename(tmp_path / "elsewhere")
    with pytest.raises(
        NoCasesError, match=r"4 cases: P1: .*P1_flair.nii.gz does not exist: give .*`dataset_dir`.*P3: "
    ):
        find_maps(out)
    items = find_maps(out, moved)
    assert names(items) == ["P1", "P2", "P3", "P4"]
    assert (items[0]["anomaly_map"], items[0]["image"][0]) == (
        str(out / "maps" / "P1.nii.gz"),
        str(moved / "P1" / "P1_flair.nii.gz"),
    )


def test_scans_that_inference_cannot_use_any_more(tmp_path):
    data = tmp_path / "data"
    save(data / "scan7.nii.gz")
    out = infer(tmp_path / "out", data, ["flair"])
    save(data / "scan7.nii")
    with pytest.raises(NoCasesError, match="scan7: several scans have this name"):
        find_maps(out, data)


def test_a_dataset_folder_without_scans(tmp_path):
    out = infer(tmp_path / "out", make_dataset(tmp_path / "data", {"P1": ["flair"]}), ["flair"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoCasesError, match=r"No scan found below .*empty"):
        find_maps(out, tmp_path / "empty")
    with pytest.raises(NotADirectoryError, match="nowhere"):
        find_maps(out, tmp_path / "nowhere")


def test_the_summary_of_a_spreadsheet(tmp_path):
    data = make_dataset(tmp_path / "data", {"P1": ["flair"]})
    out = infer(tmp_path / "out", data, ["flair"])
    summary = out / "summary.csv"
    summary.write_text(summary.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert find_maps(out)[0]["threshold"] == 0.3
    change_rows(out, lambda row: {"threshold": "0,3"})
    with pytest.raises(ValueError, match=r"summary.csv, threshold of P1: '0,3' is no number"):
        find_maps(out)


def test_settings_that_are_cut_off(tmp_path):
    out = infer(tmp_path / "out", make_dataset(tmp_path / "data", {"P1": ["flair"]}), ["flair"])
    (out / "settings.json").write_text('{"modal')
    with pytest.raises(ValueError, match=r"settings.json is not valid JSON"):
        find_maps(out)


# ------------------------------------------------------------------------------------------ evaluations and others


def test_an_evaluation(tmp_path):
    data = make_dataset(tmp_path / "data", {"P1": ["flair", "t1", "seg"], "P2": ["flair", "seg"], "P3": ["flair"]})
    out = evaluate(tmp_path / "out", ["P2", "P1"])
    items = find_maps(out, data)
    assert names(items) == ["P1", "P2"]
    assert items[0] == {
        "case_id": "P1",
        "image": [str(data / "P1" / "P1_flair.nii.gz"), str(data / "P1" / "P1_t1.nii.gz")],
        "modalities": ["flair", "t1"],
        "label": str(data / "P1" / "P1_seg.nii.gz"),
        "anomaly_map": str(out / "maps" / "P1.nii.gz"),
        "threshold": 0.4,
    }
    with pytest.raises(ValueError, match=r"No summary.csv in .*out.*`dataset_dir`"):
        find_maps(out)


def test_an_evaluation_without_a_threshold_or_interrupted(tmp_path):
    data = make_dataset(tmp_path / "data", {"P1": ["flair", "seg"]})
    out = evaluate(tmp_path / "out", ["P1"], threshold=None)
    assert "threshold" not in find_maps(out, data)[0]
    (out / "report.json").unlink()
    assert "threshold" not in find_maps(out, data)[0]
    (out / "report.json").write_text('{"schema')
    with pytest.raises(ValueError, match=r"report.json is not valid JSON"):
        find_maps(out, data)


@pytest.mark.parametrize("place", ["maps", "maps of others"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_any_folder_of_maps(tmp_path, caplog, place, suffix):
    """Also beside tables and reports of other programs; a case without images keeps its map to itself."""
    data = make_dataset(tmp_path / "data", {"P1": ["flair"], "P1_2": ["seg"]})
    out = tmp_path / "out" if place == "maps" else tmp_path / "out" / place
    for name in ("P1", "P1_2", "P12", ".P1", ".unfinished-P1"):
        save(tmp_path / "out" / place / f"{name}{suffix}")
    (tmp_path / "out" / place / "review.csv").touch()
    (out / "summary.csv").write_text("name,dice\nP1,0.5\n")
    (out / "report.json").write_text('{"methods": ["ours"]}')
    (out / "settings.json").write_text("[1")
    (item,) = find_maps(out, data)
    assert item == {
        "case_id": "P1",
        "image": [str(data / "P1" / "P1_flair.nii.gz")],
        "modalities": ["flair"],
        "anomaly_map": str(tmp_path / "out" / place / f"P1{suffix}"),
    }
    left_out = [record.getMessage().split(": ")[0] for record in caplog.records]
    assert left_out == ["Left out is P12", "Left out is P1_2"]  # nothing hidden


def test_items_are_in_the_order_of_the_cases(tmp_path):
    """That of the files is another one, in which P1-2.nii.gz comes before P1.nii.gz."""
    data = make_dataset(tmp_path / "data", {name: ["flair"] for name in ("P1-2", "P1", "P0")})
    for name in ("P0", "P1", "P1-2"):
        save(tmp_path / "out" / f"{name}.nii.gz")
    assert names(find_maps(tmp_path / "out", data)) == ["P0", "P1", "P1-2"]


def test_two_maps_of_one_case(tmp_path, caplog):
    data = make_dataset(tmp_path / "data", {"P1": ["flair"], "P2": ["flair"]})
    for name in ("P1.nii.gz", "P1.nii", "P2.nii"):
        save(tmp_path / "out" / name)
    assert names(find_maps(tmp_path / "out", data)) == ["P2"]
    assert "P1: " in caplog.text
    assert "several files belong to it" in caplog.text


def test_names_of_maps_are_those_of_an_evaluation(tmp_path):
    data = make_dataset(tmp_path / "data", {name: ["flair", "seg"] for name in ("P1", "P1_2", "P3", "P4")})
    for name in ("P1_map.nii.gz", "P1_2.model.nii", "P3-scores.mha", "P4.hdr"):
        save(tmp_path / "out" / name.replace(".mha", ".nii").replace(".hdr", ".nii"))
    sitk.WriteImage(sitk.ReadImage(tmp_path / "out" / "P3-scores.nii"), tmp_path / "out" / "P3-scores.mha")
    (tmp_path / "out" / "P3-scores.nii").unlink()
    nibabel.save(nibabel.load(tmp_path / "out" / "P4.nii"), tmp_path / "out" / "P4.hdr")
    (tmp_path / "out" / "P4.nii").unlink()
    items = find_maps(tmp_path / "out", data)
    maps = [Path(item["anomaly_map"]).name for item in items]
    assert maps == ["P1_map.nii.gz", "P1_2.model.nii", "P3-scores.mha", "P4.hdr"]
    evaluation = evaluate_folders({"ours": tmp_path / "out"}, data)
    assert evaluation.failed == {}
    assert names(items) == [case.case_id for case in evaluation.cases]


@pytest.mark.parametrize("content", [[], ["P7.nii.gz"], ["P1map.nii.gz"], ["notes.txt"]])
def test_no_map_of_the_data_set(tmp_path, content):
    data = make_dataset(tmp_path / "data", {"P1": ["flair"]})
    out = tmp_path / "out"
    out.mkdir()
    for name in content:
        save(out / name) if name.endswith(".gz") else (out / name).touch()
    stem = content[0].removesuffix(".nii.gz") if content else ""
    reason = f"1 cases: {stem}: {data} has no images of it" if content and content[0] != "notes.txt" else "none in it"
    with pytest.raises(NoCasesError, match=rf"maps CASE.nii.gz in {out}.*{reason}"):
        find_maps(out, data)
    with pytest.raises(NotADirectoryError, match="nowhere"):
        find_maps(tmp_path / "nowhere", data)


def test_a_data_set_with_its_results_in_it(tmp_path):
    data = make_dataset(tmp_path / "data", {"P1": ["flair", "seg"], "P2": ["flair", "seg"]})
    inferred = infer(data / "results", data, ["flair"])
    evaluated = evaluate(data / "evaluation", ["P1", "P2"])
    for out in (inferred, evaluated):
        items = find_maps(out, data)
        assert [len(item["image"]) for item in items] == [1, 1]
        assert load_heatmap(items[1]).map_file == out / "maps" / "P2.nii.gz"


def test_scans_of_any_name_with_their_results_beside(tmp_path):
    """The folder of the results is not searched for scans: there, x would have the name of the scan."""
    image = save(tmp_path / "day1" / "results_x.nii.gz")
    out = infer(tmp_path / "day1" / "results", tmp_path, ["flair"])
    save(out / "x.nii.gz")
    (item,) = find_maps(out, tmp_path)
    assert (item["case_id"], item["image"]) == ("day1_results_x", [image])


def test_items_that_load(tmp_path):
    data = make_dataset(tmp_path / "data", {"P1": ["flair", "t2", "seg", "brainmask"]})
    out = infer(tmp_path / "out", data, ["t2"], threshold=0.25)
    heatmaps = [load_heatmap(item) for dataset_dir in (None, data) for item in find_maps(out, dataset_dir)]
    assert [list(heatmap.images) for heatmap in heatmaps] == [["t2"], ["flair", "t2"]]
    assert [heatmap.label is None for heatmap in heatmaps] == [True, False]
    for heatmap in heatmaps:
        assert (heatmap.case_id, heatmap.threshold, list(heatmap.reconstructions)) == ("P1", 0.25, ["t2"])
