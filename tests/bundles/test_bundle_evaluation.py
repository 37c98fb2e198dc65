"""`evaluate.json` of both bundles: a checkpoint's metrics on the scans' own grids; broken cases are named."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import GRIDS, OWN, ROOT, git_status, in_3d, messages, run, start, write_case
from monai.bundle import ConfigParser
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from ssmctb_monai import checkpoints, data
from ssmctb_monai.metrics import METRICS, load_thresholds
from ssmctb_monai.reports import report as report_module

FILES = ["cases.csv", "report.html", "report.json", "slices.csv"]
CASES = ["Made_001", "Made_003", "Made_004", "Made_005"]
METHODS = ["model", "baseline_flair", "baseline_t1ce"]


def read(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------- configuration


@pytest.fixture
def evaluating(bundle, workflow, trained, dataset_dir, monkeypatch):
    """Makes the workflow of an evaluation, with few resamples and without the page, which take the longest."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(report_module, "render_html", lambda *arguments: "")

    def make(folder, **overrides):
        given = {
            "ckpt_file": str(trained.folder / "ckpt" / "model.pt"),
            "dataset_dir": str(dataset_dir),
            "output_dir": str(folder),
            "evaluation#settings#resamples": 10,
        }
        return workflow(bundle / "evaluate.json", "infer", **{**given, **overrides})

    return make


def test_every_reference_resolves(evaluating, tmp_path):
    parser = evaluating(tmp_path).parser
    for key in parser.get():
        if key not in ("evaluating", "run", "initialize", "_meta_"):
            parser.get_parsed_content(key)
    assert [case["case_id"] for case in parser.get_parsed_content("dataset").data] == CASES


def test_default_checkpoint_and_datalist_are_those_of_training(bundle, monkeypatch, dataset_dir):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(checkpoints, "check_checkpoint", lambda path, *_: Path(path))  # nobody has trained yet
    parsers = []
    for name in ("train", "evaluate"):
        parser = ConfigParser()
        parser.read_config(bundle / f"{name}.json")
        parser["dataset_dir"] = str(dataset_dir)
        parsers.append(parser)
    train, evaluate = parsers
    assert train.get_parsed_content("datalist_file") == evaluate.get_parsed_content("datalist_file")
    assert evaluate.get_parsed_content("ckpt_file") == train.get_parsed_content("ckpt_dir") + "/model.pt"
    assert str(evaluate.get_parsed_content("thresholds_file")) == f"bundles/{bundle.name}/trained/model_thresholds.json"


@pytest.fixture
def of_unknown_settings(trained, tmp_path):
    """The checkpoint with all that lies beside it but the settings of its training."""
    shutil.copytree(trained.folder / "ckpt", tmp_path / "ckpt", ignore=shutil.ignore_patterns("model_settings.json"))
    return str(tmp_path / "ckpt" / "model.pt")


def test_overrides_reach_what_is_shared(bundle, evaluating, tmp_path, of_unknown_settings):
    roi_size = [48, 32, 40] if bundle.name == "brats3d" else [48, 32, 1]
    overrides = {"roi_size": roi_size, "spacing": [3.0, 3.0, 3.0], "slice_score": "max", "slices": "all"}
    parser = evaluating(tmp_path, ckpt_file=of_unknown_settings, **OWN, **overrides).parser
    windows = parser.get_parsed_content("inferer").inferer
    sliding = (windows if bundle.name == "brats3d" else windows.inferers[2]).inferer
    assert list(sliding.roi_size) == roi_size[: parser["spatial_dims"]]
    settings = parser.get_parsed_content("evaluation").settings
    assert (settings.slab_depth, settings.slice_score, settings.slices) == (32, "max", "all")
    item = next(iter(parser.get_parsed_content("dataset")))
    assert item["image"].pixdim.tolist() == [3, 3, 3]
    assert all(size >= least for size, least in zip(item["image"].shape[1:], roi_size, strict=True))


def test_default_folders_are_ignored_by_git(bundle, monkeypatch):
    if git_status() is None:
        pytest.skip("not a git checkout")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(checkpoints, "check_checkpoint", lambda path, *_: Path(path))  # nobody has trained yet
    parser = ConfigParser()
    parser.read_config(bundle / "evaluate.json")
    folder = Path(parser.get_parsed_content("output_dir"))
    for file in (*(folder / name for name in FILES), folder / "maps" / "CASE.nii.gz", parser["thresholds_file"]):
        name = parser.get_parsed_content("thresholds_file") if isinstance(file, str) else file
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT).returncode == 0, name


# --------------------------------------------------------------------------------------------------------- one command


@pytest.fixture(scope="module")
def evaluated(bundle, trained, dataset_dir, tmp_path_factory):
    """The command that users copy."""
    folder = tmp_path_factory.mktemp("evaluated") / "report"
    before = git_status()
    ckpt_file = trained.folder / "ckpt" / "model.pt"
    given = {"ckpt_file": ckpt_file, "dataset_dir": dataset_dir, "output_dir": folder, "save_maps": "true"}
    result = run(bundle.name, "evaluating", **given)
    return SimpleNamespace(folder=folder, result=result, before=before, after=git_status(), ckpt_file=ckpt_file)


def test_command_succeeds(evaluated):
    assert evaluated.result.returncode == 0, evaluated.result.stderr
    assert sorted(path.name for path in evaluated.folder.iterdir()) == sorted([*FILES, "maps", "viewer"])


def test_report_of_the_command(evaluated):
    report = read(evaluated.folder)
    assert (report["cases"], report["patients"], report["failed_cases"]) == (4, 4, [])
    assert list(report["methods"]) == METHODS
    assert [item["reference"] for item in report["differences"]] == METHODS[1:]
    assert str(evaluated.ckpt_file) in report["description"]
    assert "test" in report["description"]
    assert [row["case_id"] for row in table(evaluated.folder / "cases.csv")] == 3 * CASES
    page = (evaluated.folder / "report.html").read_text(encoding="utf-8")
    assert all(case_id in page for case_id in CASES)


def test_thresholds_are_those_of_training(evaluated, trained):
    thresholds = load_thresholds(trained.folder / "ckpt" / "model_thresholds.json")
    methods = read(evaluated.folder)["methods"]
    assert {name: method["threshold"]["value"] for name, method in methods.items()} == {
        name: 0.5 if name == "model" else threshold.value for name, threshold in thresholds.items()
    }
    assert all("2 cases" in method["threshold"]["source"] for method in methods.values())


def test_table_in_the_terminal(evaluated):
    output = evaluated.result.stdout
    assert all(f"{method}" in output for method in (*METHODS, "model - baseline_flair", "model - baseline_t1ce"))
    assert all(metric.title in output for metric in METRICS.values())
    assert re.search(r"Average precision +\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", output)
    assert f"Written to {evaluated.folder}: " in output
    assert all(name in output for name in FILES)


def test_progress_in_the_terminal(evaluated):
    lines = re.findall(r"Case (\d)/4, (\w+) \| \d:\d\d:\d\d left", evaluated.result.stdout)
    assert lines == [(str(index), case_id) for index, case_id in enumerate(CASES, start=1)]


def test_command_leaves_the_git_tree_clean(evaluated):
    if evaluated.before is None:
        pytest.skip("not a git checkout")
    assert evaluated.after == evaluated.before


@pytest.mark.parametrize("case_id", CASES)
def test_maps_are_on_the_grid_of_their_scans(evaluated, dataset_dir, case_id):
    scan = nibabel.load(dataset_dir / case_id / f"{case_id}_flair.nii.gz")
    found = nibabel.load(evaluated.folder / "maps" / f"{case_id}.nii.gz")
    np.testing.assert_allclose(found.affine, scan.affine, atol=1e-4)
    assert found.shape == scan.shape
    scores = found.get_fdata()
    assert 0 <= scores.min() < scores.max() <= 1
    assert (scores[scan.get_fdata() == 0] == 0).all()


def test_grids_differ(dataset_dir):
    """Otherwise the tests here show little."""
    scans = [nibabel.load(dataset_dir / name / f"{name}_flair.nii.gz") for name in CASES]
    assert [nibabel.aff2axcodes(scan.affine) for scan in scans] == [tuple(c) for c in ("LPS", "PIR", "RAS", "RAS")]
    assert [nibabel.affines.voxel_sizes(scan.affine).round(3).tolist() for scan in scans[:2]] == [
        [1.5, 1.5, 1.5],
        [2, 2.5, 2],
    ]


# ----------------------------------------------------------------------------------------- metrics, from the files only


def equalised(image, brain):
    """Share of the brain that is darker, as histogram equalisation gives it."""
    counts, edges = np.histogram(image[brain], 1000)
    above = counts.cumsum() - counts[0]
    return np.interp(image, (edges[:-1] + edges[1:]) / 2, above / above[-1])


def plain_cases(folder, dataset_dir):
    """Map of each method, lesion and brain of each case, from the feet up."""
    cases = []
    for name in CASES:
        paths = {kind: dataset_dir / name / f"{name}_{kind}.nii.gz" for kind in ("flair", "t1ce", "seg")}
        paths["model"] = folder / "maps" / f"{name}.nii.gz"
        item = {kind: nibabel.as_closest_canonical(nibabel.load(path)) for kind, path in paths.items()}
        volume = nibabel.affines.voxel_sizes(item["seg"].affine).prod() / 1000
        case = {kind: image.get_fdata() for kind, image in item.items()}
        brain = ndimage.binary_fill_holes((case["flair"] != 0) | (case["t1ce"] != 0))
        maps = {"model": case["model"]}
        maps |= {f"baseline_{name}": equalised(case[name], brain) for name in ("flair", "t1ce")}
        cases.append(SimpleNamespace(maps=maps, lesion=case["seg"] > 0, brain=brain, voxel_volume=volume))
    return cases


def plain_metrics(cases, method, threshold):
    scores = np.concatenate([case.maps[method][case.brain] for case in cases])
    labels = np.concatenate([case.lesion[case.brain] for case in cases])
    rows, volumes, sensitivity, false, bias = [], [], [], [], []
    for case in cases:
        highest = []
        for anomaly_map, lesion, brain in zip(
            *(np.moveaxis(array, 2, 0) for array in (case.maps[method], case.lesion, case.brain)), strict=True
        ):
            if brain.sum() >= 20:
                highest.append((np.sort(anomaly_map[brain])[-20:].mean(), lesion.any()))
        rows += highest
        volumes.append((max(score for score, _ in highest), case.lesion.any()))
        flagged = case.brain & (case.maps[method] >= threshold)
        bias.append((flagged.sum() - case.lesion.sum()) * case.voxel_volume)
        numbers, count = ndimage.label(flagged, np.ones((3, 3, 3)))
        parts = [numbers == number for number in range(1, count + 1)]
        parts = [part for part in parts if part.sum() >= 10]
        right = [part for part in parts if (part & case.lesion).sum() >= 0.1 * part.sum()]
        false.append(len(parts) - len(right))
        if case.lesion.any():  # one ball
            covered = sum((part & case.lesion).sum() for part in right)
            sensitivity.append(covered >= 0.1 * case.lesion.sum())
    slices = np.array(rows, dtype=float).T
    precision, recall, _ = precision_recall_curve(labels, scores)
    flagged = scores >= threshold
    return {
        "pixel_auroc": roc_auc_score(labels, scores),
        "pixel_average_precision": average_precision_score(labels, scores),
        "best_dice_oracle": (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max(),
        "dice_at_threshold": 2 * (flagged & labels).sum() / (flagged.sum() + labels.sum()),
        "slice_auroc": roc_auc_score(slices[1], slices[0]),
        "slice_average_precision": average_precision_score(slices[1], slices[0]),
        "slice_false_alarm_share": (slices[0, slices[1] == 0] >= threshold).mean(),
        "volume_auroc": roc_auc_score(*np.array(volumes, dtype=float).T[::-1]),
        "lesion_sensitivity": np.mean(sensitivity),
        "false_positives_per_volume": np.mean(false),
        "lesion_volume_bias": np.mean(bias),
    }


@pytest.mark.parametrize("method", METHODS)
def test_metrics_follow_from_the_files(evaluated, dataset_dir, method):
    reported = read(evaluated.folder)["methods"][method]
    expected = plain_metrics(plain_cases(evaluated.folder, dataset_dir), method, reported["threshold"]["value"])
    assert {name: reported["figures"][name]["value"] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_baseline_sees_the_bright_lesions(evaluated):
    """The made lesions are bright in FLAIR and dark in T1ce."""
    metrics = {name: method["figures"] for name, method in read(evaluated.folder)["methods"].items()}
    assert metrics["baseline_flair"]["pixel_auroc"]["value"] > 0.95
    assert metrics["baseline_t1ce"]["pixel_auroc"]["value"] < 0.05
    assert metrics["baseline_flair"]["lesion_sensitivity"]["value"] == 1


def test_volumes_are_those_of_the_scans(evaluated):
    """A ball of 6 mm has 0.9 ml on any grid."""
    for row in table(evaluated.folder / "cases.csv"):
        expected = 0 if row["case_id"] == "Made_004" else 4 / 3 * np.pi * 0.6**3
        assert float(row["lesion_ml"]) == pytest.approx(expected, rel=0.12)
        assert float(row["brain_ml"]) == pytest.approx(4 / 3 * np.pi * 4.8 * 4.8 * 4.0 * 0.95**1.5, rel=0.1)


def test_maps_lie_where_the_network_saw_them(evaluating, tmp_path, dataset_dir):
    """A network that returns what it sees gives the scan back, whatever its grid: here a slope in world coordinates."""
    slope = np.array([1.0, 2.0, -3.0])
    for name in CASES:
        for kind in ("flair", "seg"):
            scan = nibabel.load(dataset_dir / name / f"{name}_{kind}.nii.gz")
            array = np.asarray(scan.dataobj)
            if kind == "flair":
                places = np.moveaxis(np.indices(scan.shape), 0, -1) @ scan.affine[:3, :3].T + scan.affine[:3, 3]
                array = np.where(array > 0, 2000 + places @ slope, 0).astype(np.float32)
            path = tmp_path / "slopes" / name / f"{name}_{kind}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, scan.affine), path)
    entries = [
        {"case_id": name, "image": {"flair": f"{name}/{name}_flair.nii.gz"}, "label": f"{name}/{name}_seg.nii.gz"}
        for name in CASES
    ]
    (tmp_path / "datalist.json").write_text(json.dumps({"test": entries}))
    torch.save({}, tmp_path / "nothing.pt")
    evaluating(
        tmp_path / "out",
        dataset_dir=str(tmp_path / "slopes"),
        datalist_file=str(tmp_path / "datalist.json"),
        ckpt_file=str(tmp_path / "nothing.pt"),
        thresholds_file="none",
        network_def={"_target_": "torch.nn.Identity"},
        smoothing=0,
        normal_score=None,
        modalities=["flair"],
        save_maps=True,
    ).run()
    for name in CASES:
        scan = nibabel.load(tmp_path / "slopes" / name / f"{name}_flair.nii.gz")
        found = nibabel.load(tmp_path / "out" / "maps" / f"{name}.nii.gz")
        inside = ndimage.binary_erosion(scan.get_fdata() > 0, iterations=4)
        one, other = scan.get_fdata()[inside], found.get_fdata()[inside]
        assert inside.sum() > 5000
        gain, offset = np.polyfit(one, other, 1)
        assert gain > 0
        assert np.abs(gain * one + offset - other).max() < 2e-3, name


# -------------------------------------------------------------------------------------------------------------- options


@pytest.fixture
def two_cases(trained, tmp_path):
    """Datalist of two cases of the test part, one without lesion."""
    split = json.loads(next((trained.folder / "ckpt").glob("datalist_*.json")).read_text(encoding="utf-8"))
    split = {"test": [entry for entry in split["test"] if entry["case_id"] in CASES[1:3]]}
    (tmp_path / "two_cases.json").write_text(json.dumps(split))
    return str(tmp_path / "two_cases.json")


def test_slices_and_their_score(evaluating, tmp_path, two_cases, dataset_dir):
    evaluating(
        tmp_path / "out", datalist_file=two_cases, slices="all", slice_score="max", slab_depth=8, min_lesion_size=3
    ).run()
    report = read(tmp_path / "out")
    settings = {"slices": "all", "slice_score": "max", "slab_depth": 8, "min_lesion_size": 3, "resamples": 10}
    assert settings.items() <= report["settings"].items()
    assert list(report["methods"]) == METHODS
    rows = table(tmp_path / "out" / "slices.csv")
    for name in CASES[1:3]:
        scan = nibabel.as_closest_canonical(nibabel.load(dataset_dir / name / f"{name}_t1ce.nii.gz"))
        of_case = [row for row in rows if (row["method"], row["case_id"]) == ("baseline_flair", name)]
        assert [int(row["slice"]) for row in of_case] == list(range(scan.shape[2]))
        brain = (scan.get_fdata() > 0).sum(axis=(0, 1))
        assert [int(row["brain_voxels"]) for row in of_case] == brain.tolist()
        assert max(float(row["score"] or 0) for row in of_case) == pytest.approx(1, abs=1e-6)
    assert [(row["method"], row["case_id"]) for row in table(tmp_path / "out" / "cases.csv")] == [
        (method, name) for method in METHODS for name in CASES[1:3]
    ]


def test_no_maps_unless_asked_for(evaluating, tmp_path, two_cases):
    evaluating(tmp_path / "out", datalist_file=two_cases).run()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*FILES, "viewer"]


def test_without_thresholds(evaluating, tmp_path, two_cases):
    evaluating(tmp_path / "out", datalist_file=two_cases, thresholds_file="none").run()
    model = read(tmp_path / "out")["methods"]["model"]
    assert model["threshold"] is None
    for name, metric in METRICS.items():
        has_none = model["figures"][name]["reason"] == "no label-free threshold was given"
        assert has_none == metric.needs_threshold, name


def test_modalities_that_are_left_out_or_lacking(evaluating, trained, tmp_path, two_cases):
    """Only by a network whose training left them out; lacking ones have no baseline."""
    with pytest.raises(RuntimeError) as error:
        evaluating(tmp_path, datalist_file=two_cases, modality_dropout=1.0).parser.get_parsed_content("dataset")
    assert "The network needs t1ce, which --modality_dropout 1.0 leaves out" in messages(error.value)
    shutil.copytree(trained.folder / "ckpt", tmp_path / "ckpt")
    settings = tmp_path / "ckpt" / "model_settings.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "modality_dropout": 0.5}))
    given = {"ckpt_file": str(tmp_path / "ckpt" / "model.pt"), "datalist_file": two_cases}
    parser = evaluating(tmp_path, **given, modality_dropout=1.0).parser
    assert list(parser.get_parsed_content("handlers")[1].maps) == METHODS
    item = next(iter(parser.get_parsed_content("dataset")))
    assert item["image"].flatten(1).any(1).tolist() == [True, False]
    for_thresholds = {**given, "lesion_free_section": "test", "modality_dropout": 1.0}
    item = next(iter(evaluating(tmp_path, **for_thresholds).parser.get_parsed_content("lesion_free#dataset")))
    assert item["image"].flatten(1).any(1).tolist() == [True, False]
    content = json.loads(Path(two_cases).read_text())
    del content["test"][0]["image"]["t1ce"]
    (tmp_path / "flair.json").write_text(json.dumps(content))
    parser = evaluating(tmp_path, **{**given, "datalist_file": str(tmp_path / "flair.json")}).parser
    assert list(parser.get_parsed_content("handlers")[1].maps) == METHODS[:2]
    first, second = (item["image"].flatten(1).any(1).tolist() for item in parser.get_parsed_content("dataset"))
    assert (first, second) == ([True, False], [True, True])
    lacking = {**given, "datalist_file": str(tmp_path / "flair.json")}
    evaluating(tmp_path / "out", **lacking).run()
    report = read(tmp_path / "out")
    assert (list(report["methods"]), report["failed_cases"]) == (METHODS[:2], [])
    assert all(method["threshold"] for method in report["methods"].values())
    evaluating(tmp_path / "out", **lacking, lesion_free_section="test", run_id="thresholding").run()
    assert list(load_thresholds(tmp_path / "out" / "thresholds.json")) == METHODS[:2]


def test_label_free_thresholds_by_a_command(evaluating, trained, tmp_path):
    """Those of training, from the same regions; two networks that are the same have the same."""
    file = str(trained.folder / "ckpt" / "model.pt")
    evaluating(tmp_path, ckpt_file=[file, file], run_id="thresholding").run()
    found = load_thresholds(tmp_path / "thresholds.json")
    expected = load_thresholds(trained.folder / "ckpt" / "model_thresholds.json")
    assert {name: threshold.source for name, threshold in found.items()} == {
        name: threshold.source for name, threshold in expected.items()
    }
    for name, threshold in found.items():
        assert threshold.value == pytest.approx(expected[name].value, abs=1e-4)


def test_label_free_thresholds_in_spite_of_broken_cases(evaluating, tmp_path, two_cases):
    content = json.loads(Path(two_cases).read_text())
    broken, _ = content["test"]
    del broken["image"]["t1ce"]
    Path(two_cases).write_text(json.dumps(content))
    with pytest.raises(RuntimeError) as error:
        evaluating(tmp_path, datalist_file=two_cases, lesion_free_section="test", run_id="thresholding").run()
    assert f"{broken['case_id']}:\n  - no t1ce image in the datalist" in messages(error.value)
    assert f"{tmp_path}/thresholds.json is of the others" in messages(error.value)
    assert "of 1 cases" in load_thresholds(tmp_path / "thresholds.json")["model"].source


def test_cases_that_the_checkpoint_was_trained_on(evaluating, trained, tmp_path):
    file = str(trained.folder / "ckpt" / "model.pt")
    for section, note in (("test", ""), ("training", f". {file} was trained on 2 of these 2 cases")):
        description = evaluating(tmp_path, section=section).parser.get_parsed_content("handlers")[1].description
        assert description.partition(".json")[2] == note


def test_validation_part(evaluating, tmp_path):
    evaluating(tmp_path / "out", section="validation").run()
    assert [row["case_id"] for row in table(tmp_path / "out" / "cases.csv")][:2] == ["Made_002", "Made_006"]
    assert "validation" in read(tmp_path / "out")["description"]


# ----------------------------------------------------------------------------------------------------------- what lacks


def check_refused(made, folder, *words):
    with pytest.raises((RuntimeError, OSError, ValueError)) as caught:
        made.run()
    assert all(word in messages(caught.value) for word in words), messages(caught.value)
    assert not (folder / "report.json").exists()


@pytest.mark.parametrize("thresholds_file", [None, "none"])
def test_missing_checkpoint(bundle, evaluating, tmp_path, thresholds_file):
    """The checkpoint is named, not what lies beside it; nothing is written in its place."""
    overrides = {} if thresholds_file is None else {"thresholds_file": thresholds_file}
    made = evaluating(tmp_path / "out", ckpt_file=str(tmp_path / "nowhere" / "model.pt"), **overrides)
    shipped = (
        f"--ckpt_file: training writes below bundles/{bundle.name}/trained, and bundles/{bundle.name}/models/model.pt"
    )
    check_refused(made, tmp_path / "out", str(tmp_path / "nowhere" / "model.pt"), shipped)
    assert not (tmp_path / "nowhere").exists()


def test_no_new_split_for_a_test(evaluating, tmp_path):
    """It could put patients of the training into the test part."""
    missing = str(tmp_path / "other.json")
    check_refused(evaluating(tmp_path / "out", datalist_file=missing), tmp_path / "out", missing, "--datalist_file")
    assert not Path(missing).exists()


def test_missing_thresholds(evaluating, tmp_path, two_cases):
    missing = str(tmp_path / "elsewhere.json")
    made = evaluating(tmp_path / "out", datalist_file=two_cases, thresholds_file=missing)
    check_refused(made, tmp_path / "out", missing, "--thresholds_file none")


def test_damaged_thresholds(evaluating, tmp_path, two_cases):
    (tmp_path / "damaged.json").write_text('{"model": {"value"')
    made = evaluating(tmp_path / "out", datalist_file=two_cases, thresholds_file=str(tmp_path / "damaged.json"))
    check_refused(made, tmp_path / "out", "damaged.json")


def test_unknown_section(evaluating, tmp_path):
    made = evaluating(tmp_path / "out", section="tset")
    check_refused(made, tmp_path / "out", "tset", "training, validation, test")


def test_missing_data_set(evaluating, tmp_path):
    made = evaluating(tmp_path / "out", dataset_dir=str(tmp_path / "nowhere"))
    check_refused(made, tmp_path / "out", f"{tmp_path / 'nowhere'} does not exist")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("block", "none", "trained with block sspcab, not with block none"),
        ("spacing", [1.5, 1.5, 1.5], "trained with spacing [2.0, 2.0, 2.0], not with spacing [1.5, 1.5, 1.5]"),
        ("smoothing", 1.0, "not with smoothing [1.0, 1.0, 1.0]"),
        ("background", "noise", "trained with region brain, not with region head"),
        ("modalities", ["t1ce"], "trained with modalities ['flair', 't1ce'], not with modalities ['t1ce']"),
    ],
)
def test_settings_that_training_did_not_have(evaluating, tmp_path, two_cases, name, value, words):
    made = evaluating(tmp_path / "out", datalist_file=two_cases, **{name: value})
    check_refused(made, tmp_path / "out", words)


def test_checkpoint_of_another_network(evaluating, tmp_path, two_cases, of_unknown_settings):
    made = evaluating(
        tmp_path / "out", ckpt_file=of_unknown_settings, datalist_file=two_cases, **{**OWN, "block": "none"}
    )
    check_refused(made, tmp_path / "out", "DRAEM")


# ------------------------------------------------------------------------------------------------ cases that are broken


@pytest.fixture(scope="module")
def broken(bundle, trained, evaluated, tmp_path_factory):
    """The command, when four of six test cases broke after the split was made."""
    folder = tmp_path_factory.mktemp("broken")
    cases = folder / "data"
    for name in ("Made_001", "Made_004", "Made_009", "Made_010", "Made_011", "Made_013"):
        write_case(cases, name, **GRIDS.get(int(name[-3:]), {}))
    split = {"training": []}
    split["test"] = [
        {
            "case_id": path.name,
            "image": {kind: f"{path.name}/{path.name}_{kind}.nii.gz" for kind in ("flair", "t1ce")},
            "label": f"{path.name}/{path.name}_seg.nii.gz",
        }
        for path in sorted(cases.iterdir())
    ]
    del split["test"][2]["image"]["t1ce"]
    (cases / "Made_010" / "Made_010_flair.nii.gz").unlink()
    for name, factor, distance in (("Made_011", 1, 0.5), ("Made_013", 0.3, 0)):
        path = cases / name / f"{name}_seg.nii.gz"
        label = nibabel.load(path)
        array, affine = label.get_fdata() * factor, label.affine.copy()
        affine[0, 3] += distance
        path.unlink()
        nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), affine), path)
    (folder / "datalist.json").write_text(json.dumps(split))
    result = run(
        bundle.name,
        "evaluating",
        ckpt_file=trained.folder / "ckpt" / "model.pt",
        dataset_dir=cases,
        datalist_file=folder / "datalist.json",
        output_dir=folder / "out",
        **{"evaluation#settings#resamples": 10},
    )
    return SimpleNamespace(folder=folder / "out", result=result)


PROBLEMS = {
    "Made_009": "no t1ce image in the datalist",
    "Made_010": "Made_010_flair.nii.gz does not exist",
    "Made_011": "Made_011_seg.nii.gz lies elsewhere",
    "Made_013": "Made_013_seg.nii.gz has labels that are negative or not whole numbers",
}


@pytest.mark.process
@in_3d
def test_exit_status_of_broken_cases(broken):
    assert broken.result.returncode not in (0, None)
    for case_id, problem in PROBLEMS.items():
        assert re.search(rf"{case_id} cannot be used: .*{re.escape(problem)}", broken.result.stdout)
        assert problem in broken.result.stderr  # the last thing that a user sees


@pytest.mark.process
@in_3d
def test_broken_cases_are_in_the_report(broken):
    failed = {item["case_id"]: item["problem"] for item in read(broken.folder)["failed_cases"]}
    assert failed.keys() == PROBLEMS.keys()
    assert all(problem in failed[case_id] for case_id, problem in PROBLEMS.items())
    assert all(case_id in (broken.folder / "report.html").read_text(encoding="utf-8") for case_id in PROBLEMS)


@pytest.mark.process
@in_3d
def test_sound_cases_are_evaluated_as_ever(broken, evaluated):
    """Each gets the metrics that it had in the company of others."""
    rows = table(broken.folder / "cases.csv")
    assert [row["case_id"] for row in rows] == 3 * ["Made_001", "Made_004"]
    others = {(row["method"], row["case_id"]): row for row in table(evaluated.folder / "cases.csv")}
    for row in rows:
        other = others[row["method"], row["case_id"]]
        numbers = {name: float(value) for name, value in row.items() if value and name not in list(row)[:3]}
        assert numbers == pytest.approx({name: float(other[name]) for name in numbers}, rel=1e-4)


@pytest.mark.process
@in_3d
def test_table_is_printed_in_spite_of_broken_cases(broken):
    assert "2 cases of 2 patients" in broken.result.stdout
    assert f"Written to {broken.folder}: " in broken.result.stdout


# ---------------------------------------------------------------------------------------------------------------- kill


def written(folder):
    """Content of all files that do not wait for the others, without the time of the report."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0][0] != "."]
    content = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    if "report.json" in content:
        content["report.json"] = {**read(folder), "created": None}
        del content["report.html"]  # which says the time in words
    return content


def is_being_written(folder):
    return any(folder.glob(".unfinished-*/report.json"))


@pytest.mark.process
@in_3d
def test_killed_evaluation(bundle, evaluated, dataset_dir, tmp_path):
    """The report before stays whole, at worst without a report.json, until a run that nobody kills."""
    before = written(evaluated.folder)
    given = {"ckpt_file": evaluated.ckpt_file, "dataset_dir": dataset_dir, "save_maps": "true", "slice_score": "max"}
    unbroken = run(bundle.name, "evaluating", output_dir=tmp_path / "unbroken", **given)
    assert unbroken.returncode == 0, unbroken.stderr
    after = written(tmp_path / "unbroken")
    assert after != before
    folder = tmp_path / "report"
    shutil.copytree(evaluated.folder, folder)
    for line in ("Case 2/4", None):
        process = start(bundle.name, "evaluating", output_dir=folder, **given)
        if line is None:  # while the report is written
            while process.poll() is None and not is_being_written(folder):
                time.sleep(0.001)
        else:
            next(output for output in process.stdout if line in output)
        process.kill()
        process.wait(60)
        process.stdout.close()
        now = written(folder)
        if line is None:
            assert "report.json" not in now or now in (before, after)
        else:
            assert now == before
            assert any(folder.glob(".unfinished-*"))
    again = run(bundle.name, "evaluating", output_dir=folder, **given)
    assert again.returncode == 0, again.stderr
    assert written(folder) == after


def test_demo_data_without_a_dataset_dir(bundle, workflow, dataset_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(data, "make_demo_dataset", lambda: dataset_dir)
    torch.save({}, tmp_path / "model.pt")
    split = {part: [] for part in ("training", "validation")}
    split["test"] = [{"case_id": name, "image": {"flair": f"{name}.nii.gz"}} for name in CASES[:2]]
    (tmp_path / "datalist.json").write_text(json.dumps(split))
    made = workflow(
        bundle / "evaluate.json",
        "infer",
        ckpt_file=str(tmp_path / "model.pt"),
        datalist_file=str(tmp_path / "datalist.json"),
    )
    assert made.parser.get_parsed_content("dataset_dir") == dataset_dir
    assert len(made.parser.get_parsed_content("dataset").data) == 2
