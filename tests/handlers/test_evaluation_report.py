"""The report of an evaluator's run: of all cases, of those that are sound, and of those before an interruption."""

from __future__ import annotations

import csv
import errno
import json
import logging
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, ThreadDataLoader
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointLoader
from monai.transforms import CopyItemsd, LoadImaged
from torch import nn

from ssmctb_monai.data import InvalidCasesError, ValidCases
from ssmctb_monai.handlers import EvaluationReport, evaluation_report
from ssmctb_monai.metrics import METRICS, AnomalyEvaluation, EvaluationSettings
from ssmctb_monai.reports import report as report_module
from ssmctb_monai.transforms import CheckCased

FILES = ["cases.csv", "report.html", "report.json", "slices.csv"]
SETTINGS = EvaluationSettings(top_k=3, slab_depth=3, min_lesion_size=2, resamples=20)
AFFINES = (
    np.diag([2.0, 2.0, 3.0, 1.0]),
    np.array([[-1.0, 0, 0, 90], [0, -1.0, 0, 126], [0, 0, 1.5, -72], [0, 0, 0, 1]]),  # LPS
    np.array([[0, 0, 1.2, 3], [-1.0, 0, 0, 50], [0, 2.0, 0, -7], [0, 0, 0, 1]]),
    np.array([[0.98, 0.17, 0, -4], [-0.17, 0.98, 0, 6], [0, 0, 2.5, 8], [0, 0, 0, 1]]),  # oblique
)


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """Leaves out the drawing of the page, which takes longer than all else."""
    monkeypatch.setattr(report_module, "render_html", lambda *arguments: "")


class Brightness(nn.Module):
    """A network whose map is its input, until it has an accident."""

    def __init__(self, accident=None, at=3):
        super().__init__()
        self.accident, self.at, self.calls = accident, at, 0
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, image):
        self.calls += 1
        if self.accident is not None and self.calls == self.at:
            raise self.accident
        return image[:, :1] * self.weight


def write_cases(folder, names):
    """Items of scans of different shapes and affines; the third has no lesion."""
    items = []
    for index, name in enumerate(names):
        rng = np.random.default_rng(index)
        shape = (9 + index, 10, 8)
        label = np.zeros(shape, np.uint8)
        if index != 2:
            label[3:6, 4:7, 2:5] = 1
        image = 10 + rng.random(shape) + 0.4 * label
        brain = np.ones(shape, np.uint8)
        brain[0] = 0
        item = {"case_id": name, "patient_id": f"patient of {name}"}
        for key, array in (("image", image.astype(np.float32)), ("label", label), ("brain", brain)):
            item[key] = str(folder / f"{index}_{key}.nii.gz")
            nibabel.save(nibabel.Nifti1Image(array, AFFINES[index % len(AFFINES)]), item[key])
        items.append(item)
    return items


NAMES = ("a", "b.1", "c d", "e")


@pytest.fixture
def items(tmp_path):
    return write_cases(tmp_path, NAMES)


def run(items, folder, network=None, loader=ThreadDataLoader, handlers=(), thresholds=None, **keywords):
    """Evaluates the brightness of scans, and of their labels, by MONAI's evaluator."""
    keys = ["image", "label", "brain"]
    dataset = ValidCases(
        items, [LoadImaged(keys, ensure_channel_first=True), CheckCased(), CopyItemsd("label", names="truth")]
    )
    evaluation = AnomalyEvaluation(thresholds, SETTINGS)
    report = EvaluationReport(
        evaluation, dataset, {"model": "pred", "oracle": "truth"}, folder / "out", "what it is", **keywords
    )
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=loader(dataset, batch_size=1, num_workers=0),
        network=network or Brightness(),
        val_handlers=[*handlers, report],
    )
    evaluator.run()
    return evaluation


def read(folder):
    return json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))


def cases_in(folder):
    with (folder / "out" / "cases.csv").open(encoding="utf-8", newline="") as file:
        return [row["case_id"] for row in csv.DictReader(file) if row["method"] == "model"]


def expected(items):
    """What the arrays of the files give."""
    evaluation = AnomalyEvaluation(None, SETTINGS)
    for item in items:
        image, label, brain = (nibabel.load(item[key]) for key in ("image", "label", "brain"))
        maps = {"model": np.float32(image.get_fdata()), "oracle": np.float32(label.get_fdata())}
        evaluation.add(
            item["case_id"],
            maps,
            label.get_fdata(),
            brain.get_fdata(),
            affine=image.affine,
            patient_id=item["patient_id"],
        )
    return evaluation


def same_metrics(evaluation, other):
    return all(
        evaluation.estimates(method)[name] == other.estimates(method)[name]
        for method in ("model", "oracle")
        for name in METRICS
    )


def messages(caplog, level=logging.INFO):
    records = [record for record in caplog.records if record.name.startswith("ssmctb_monai")]
    return [record.getMessage() for record in records if record.levelno >= level]


# ------------------------------------------------------------------------------------------------------------ all cases


@pytest.mark.parametrize("loader", [ThreadDataLoader, DataLoader])
def test_report_of_all_cases(tmp_path, items, loader):
    evaluation = run(items, tmp_path, loader=loader, thresholds={"model": 10.9})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*FILES, "viewer"]
    report = read(tmp_path)
    assert report["description"] == "what it is"
    assert report["cases"] == report["patients"] == 4
    assert report["failed_cases"] == []
    assert list(report["methods"]) == ["model", "oracle"]
    assert report["methods"]["oracle"]["figures"]["pixel_auroc"]["value"] == 1
    assert 0.5 < report["methods"]["model"]["figures"]["pixel_auroc"]["value"] < 1
    assert cases_in(tmp_path) == list(NAMES)
    assert [case.patient_id for case in evaluation.cases] == [f"patient of {name}" for name in NAMES]
    assert {view.case_id for view in evaluation.views if view.plane.image is not None} == set(NAMES)
    assert sorted(path.stem for path in (tmp_path / "out" / "viewer").iterdir()) == sorted(NAMES)


def test_viewer_has_the_first_map_and_its_threshold(tmp_path, items):
    run(items, tmp_path, thresholds={"model": 10.9})
    for item in items:
        script = (tmp_path / "out" / "viewer" / f"{item['case_id']}.js").read_text()
        header, _ = json.JSONDecoder().raw_decode(script.removeprefix("heatmapCase("))
        scores = nibabel.load(item["image"]).get_fdata()
        assert header["threshold"] == 10.9
        assert header["case_id"] == item["case_id"]
        assert header["layers"] == ["image"]
        brain = nibabel.load(item["brain"]).get_fdata() > 0
        assert header["limits"] == pytest.approx(np.percentile(scores[brain], [0.1, 99.9]), rel=1e-5)
        assert header["threshold_given"] is True
        assert header["min_size"] == SETTINGS.min_lesion_size


def test_viewer_counts_as_the_report_does(tmp_path, items):
    evaluation = run(items, tmp_path, thresholds={"model": 10.9})
    for case, row in zip(evaluation.statistics["model"], report_module.case_rows(evaluation), strict=False):
        script = (tmp_path / "out" / "viewer" / f"{case.case_id}.js").read_text()
        header, _ = json.JSONDecoder().raw_decode(script.removeprefix("heatmapCase("))
        assert header["slices"]["index"] == case.slices["slice"].tolist()
        np.testing.assert_allclose(header["slices"]["score"], case.slices["score"], rtol=1e-6)
        assert row["false_positives"] <= header["total"] <= row["false_positives"] + row["lesions"]


def test_viewer_shows_the_first_modality(tmp_path, items):
    """The others are neither loaded anew nor looked at."""
    scores = []
    for item in items:
        image = nibabel.load(item["image"])
        array = np.float32(image.get_fdata())
        second = np.full_like(array, np.nan)
        nibabel.save(nibabel.Nifti1Image(np.stack([array, second], -1), image.affine), item["image"])
        scores.append(array)
    dataset = ValidCases(items, [LoadImaged(["image", "label", "brain"], ensure_channel_first=True)])
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=ThreadDataLoader(dataset, batch_size=1),
        network=Brightness(),
        val_handlers=[
            EvaluationReport(AnomalyEvaluation(None, SETTINGS), dataset, {"model": "pred"}, tmp_path / "out")
        ],
    )
    evaluator.run()
    assert sorted(path.stem for path in (tmp_path / "out" / "viewer").iterdir()) == sorted(NAMES)


def test_no_viewer_unless_wanted(tmp_path, items):
    run(items, tmp_path, viewer=False, save_maps=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*FILES, "maps"])
    assert len(list((tmp_path / "out" / "maps").iterdir())) == 4


def test_files_of_an_earlier_run_are_not_shown(tmp_path, items, monkeypatch):
    lists = []
    monkeypatch.setattr(report_module, "render_html", lambda *arguments: lists.append(arguments[-1]) or "")
    run(items, tmp_path)
    run(items[:2], tmp_path)
    run(items, tmp_path, viewer=False)
    assert lists == [list(NAMES), list(NAMES[:2]), []]


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/b",
        pytest.param("P" * 300, id="long"),
    ],
    ids=["above", "below", "long"],
)
def test_case_whose_name_is_no_file(tmp_path, items, monkeypatch, caplog, name):
    """It is evaluated and reported, and not in the viewer."""
    lists = []
    monkeypatch.setattr(report_module, "render_html", lambda *arguments: lists.append(arguments[-1]) or "")
    items[1]["case_id"] = name
    with caplog.at_level(logging.WARNING, logger="ssmctb_monai"):
        run(items, tmp_path)
    assert cases_in(tmp_path) == ["a", name, "c d", "e"]
    assert read(tmp_path)["cases"] == 4
    assert lists == [["a", "c d", "e"]]
    assert sorted(path.name for path in tmp_path.rglob("*.js")) == ["a.js", "c d.js", "e.js"]
    assert [message for message in messages(caplog, logging.WARNING) if message.startswith(f"{name} is not in")]


def test_file_outside_that_has_the_name_of_a_case(tmp_path, items, monkeypatch):
    lists = []
    monkeypatch.setattr(report_module, "render_html", lambda *arguments: lists.append(arguments[-1]) or "")
    items[1]["case_id"] = "../x"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.js").write_text("somebody's")
    run(items, tmp_path)
    assert (tmp_path / "out" / "x.js").read_text() == "somebody's"
    assert lists == [["a", "c d", "e"]]


def test_full_disk(tmp_path, items, monkeypatch, caplog):
    lists = []
    monkeypatch.setattr(report_module, "render_html", lambda *arguments: lists.append(arguments[-1]) or "")
    write = Path.write_text

    def fill(path, *arguments, **options):
        if path.name.endswith("c d.js"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", fill)
    with caplog.at_level(logging.WARNING, logger="ssmctb_monai"):
        run(items, tmp_path)
    assert lists == [["a", "b.1", "e"]]
    assert read(tmp_path)["cases"] == 4
    assert [message for message in messages(caplog, logging.WARNING) if "No space left on device" in message]


def test_metrics_are_those_of_the_files(tmp_path, items):
    assert same_metrics(run(items, tmp_path), expected(items))


def test_weights_are_loaded_before_the_first_case(tmp_path, items):
    torch.save(nn.ParameterDict({"weight": nn.Parameter(-torch.ones(1))}).state_dict(), tmp_path / "model.pt")
    network = Brightness()
    loading = CheckpointLoader(str(tmp_path / "model.pt"), {"network": network}, map_location="cpu")
    assert run(items, tmp_path, network, handlers=[loading]).value("model", "pixel_auroc") < 0.5


def test_an_error_before_the_start_is_the_one_that_is_raised(tmp_path, items):
    torch.save({"weight": torch.ones(7)}, tmp_path / "model.pt")
    network = Brightness()
    loading = CheckpointLoader(str(tmp_path / "model.pt"), {"network": network}, map_location="cpu")
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        run(items, tmp_path, network, handlers=[loading])
    assert not (tmp_path / "out").exists()


def test_progress_with_the_time_left(tmp_path, items, caplog):
    with caplog.at_level(logging.INFO, logger="ssmctb_monai"):
        run(items, tmp_path)
    lines = [re.fullmatch(r"Case (\d)/(\d), (.*) \| (\d:\d\d:\d\d) left", line) for line in messages(caplog)]
    assert [match.groups()[:3] for match in lines if match] == [
        (str(index), "4", name) for index, name in enumerate(NAMES, start=1)
    ]
    assert lines[3][4] == "0:00:00"


def test_table_and_files_in_the_log(tmp_path, items, caplog):
    with caplog.at_level(logging.INFO, logger="ssmctb_monai"):
        run(items, tmp_path, thresholds={"model": 10.9})
    table = messages(caplog)[-1]
    assert all(word in table for word in ("model - oracle", "Average precision", "Threshold of model: 10.9", *FILES))
    assert str(tmp_path / "out") in table


def test_other_keys(tmp_path, items):
    for item in items:
        item |= {"truth_2": item["label"], "head": item["brain"], "scan": item["image"]}
    dataset = ValidCases(items, [LoadImaged(["image", "truth_2", "head", "scan"], ensure_channel_first=True)])
    evaluation = AnomalyEvaluation(None, SETTINGS)
    keys = {"label_key": "truth_2", "brain_key": "head", "image_key": "scan"}
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=ThreadDataLoader(dataset, batch_size=1),
        network=Brightness(),
        val_handlers=[EvaluationReport(evaluation, dataset, {"model": "pred"}, tmp_path / "out", **keys)],
    )
    evaluator.run()
    assert evaluation.value("model", "pixel_auroc") == expected(items).value("model", "pixel_auroc")


# ----------------------------------------------------------------------------------------------------------------- maps


def test_maps_are_saved_on_the_grid_of_their_scans(tmp_path, items):
    run(items, tmp_path, save_maps=True)
    saved = sorted(path.name for path in (tmp_path / "out" / "maps").iterdir())
    assert saved == sorted(f"{name}.nii.gz" for name in NAMES)
    for item in items:
        image, found = (
            nibabel.load(path) for path in (item["image"], tmp_path / "out" / "maps" / f"{item['case_id']}.nii.gz")
        )
        np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)
        assert found.shape == image.shape
        assert found.get_data_dtype() == np.float32
        np.testing.assert_array_equal(found.get_fdata(), np.float32(image.get_fdata()))


def test_no_map_is_saved_unless_asked_for(tmp_path, items):
    run(items, tmp_path)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*FILES, "viewer"]


# --------------------------------------------------------------------------------------------- cases that are not sound


def break_label(item):
    label = nibabel.load(item["label"])
    nibabel.save(nibabel.Nifti1Image(0.5 * label.get_fdata(), label.affine), item["label"])


def move_label(item):
    label = nibabel.load(item["label"])
    nibabel.save(
        nibabel.Nifti1Image(np.asarray(label.dataobj), label.affine + np.eye(4)[:, [3, 0, 1, 2]]), item["label"]
    )


def empty_brain(item):
    """It is found by the evaluation only, and where there is no lesion."""
    for key in ("brain", "label"):
        image = nibabel.load(item[key])
        nibabel.save(nibabel.Nifti1Image(0 * np.asarray(image.dataobj), image.affine), item[key])


def lack_file(item):
    item["problems"] = [f"{item['image']} does not exist"]


@pytest.mark.parametrize(
    ("break_case", "index"), [(break_label, 0), (move_label, 1), (empty_brain, 3), (lack_file, 0), (lack_file, 3)]
)
def test_a_case_that_is_not_sound(tmp_path, items, caplog, break_case, index):
    """Whichever it is, the report of the others is written before it is raised."""
    break_case(items[index])
    with caplog.at_level(logging.INFO, logger="ssmctb_monai"), pytest.raises(InvalidCasesError) as caught:
        run(items, tmp_path, save_maps=True)
    name, others = NAMES[index], [item for item in items if item is not items[index]]
    assert list(caught.value.problems) == [name]
    report = read(tmp_path)
    (failed,) = report["failed_cases"]
    assert failed == {"case_id": name, "problem": caught.value.problems[name][0]}
    assert report["cases"] == 3
    assert cases_in(tmp_path) == [item["case_id"] for item in others]
    metrics = {name: item.value for name, item in expected(others).estimates("model").items()}
    assert {name: item["value"] for name, item in report["methods"]["model"]["figures"].items()} == metrics
    assert sorted(path.name for path in (tmp_path / "out" / "maps").iterdir()) == sorted(
        f"{item['case_id']}.nii.gz" for item in others
    )
    assert [message for message in messages(caplog, logging.ERROR) if name in message]
    assert "Interrupted" not in caplog.text


def test_all_cases_that_are_not_sound_are_named(tmp_path, items, caplog):
    lack_file(items[0])
    empty_brain(items[2])
    break_label(items[3])
    with caplog.at_level(logging.INFO, logger="ssmctb_monai"), pytest.raises(InvalidCasesError) as caught:
        run(items, tmp_path)
    assert set(caught.value.problems) == {"a", "c d", "e"}
    assert all(name in str(caught.value) for name in ("0_image.nii.gz does not exist", "empty", "3_label.nii.gz"))
    assert {failed["case_id"] for failed in read(tmp_path)["failed_cases"]} == {"a", "c d", "e"}
    assert cases_in(tmp_path) == ["b.1"]
    assert all(re.match(r"Case [1-4]/4, ", line) for line in messages(caplog) if line.startswith("Case"))


@pytest.mark.parametrize("break_case", [lack_file, move_label], ids=["no file", "label elsewhere"])
def test_no_sound_case_at_all(tmp_path, items, break_case):
    for item in items:
        break_case(item)
    with pytest.raises(InvalidCasesError) as caught:
        run(items, tmp_path)
    assert set(caught.value.problems) == set(NAMES)
    assert not (tmp_path / "out").exists()


def test_error_says_nothing_of_skipping(tmp_path, items):
    """These cases were left out already."""
    lack_file(items[0])
    with pytest.raises(InvalidCasesError) as caught:
        run(items, tmp_path)
    assert "skip_invalid" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize(
    ("accident", "loader"),
    [
        (RuntimeError("out of memory"), ThreadDataLoader),
        (KeyboardInterrupt(), ThreadDataLoader),
        (KeyboardInterrupt(), DataLoader),
        (SystemExit(3), ThreadDataLoader),
    ],
)
def test_interruption_at_the_third_case(tmp_path, items, caplog, loader, accident):
    with caplog.at_level(logging.INFO, logger="ssmctb_monai"), pytest.raises(type(accident)) as caught:
        run(items, tmp_path, Brightness(accident), loader, save_maps=True)
    assert caught.value is accident
    assert cases_in(tmp_path) == ["a", "b.1"]
    assert read(tmp_path)["cases"] == 2
    metrics = {name: item.value for name, item in expected(items[:2]).estimates("model").items()}
    assert {name: item["value"] for name, item in read(tmp_path)["methods"]["model"]["figures"].items()} == metrics
    assert sorted(path.name for path in (tmp_path / "out" / "maps").iterdir()) == ["a.nii.gz", "b.1.nii.gz"]
    assert "Interrupted: 2 of 4 cases." in messages(caplog, logging.ERROR)


def test_interruption_is_reported_once(tmp_path, items, caplog):
    """Ignite hands an error to its handlers a second time when they raise it."""
    with caplog.at_level(logging.INFO, logger="ssmctb_monai"), pytest.raises(RuntimeError):
        run(items, tmp_path, Brightness(RuntimeError("out of memory")))
    assert sum("Interrupted" in message for message in messages(caplog)) == 1
    assert sum("Written to" in message for message in messages(caplog)) == 1


def test_interruption_behind_a_case_that_is_not_sound(tmp_path, items):
    break_label(items[0])
    accident = RuntimeError("out of memory")
    with pytest.raises(RuntimeError) as caught:
        run(items, tmp_path, Brightness(accident, at=2))
    assert caught.value is accident
    report = read(tmp_path)
    assert [failed["case_id"] for failed in report["failed_cases"]] == ["a"]
    assert cases_in(tmp_path) == ["b.1"]


def test_report_of_an_interrupted_run_says_so(tmp_path, items):
    """Who reads the report did not see the log."""
    with pytest.raises(RuntimeError):
        run(items, tmp_path, Brightness(RuntimeError("out of memory")))
    report = read(tmp_path)
    assert report["description"].startswith("Interrupted: 2 of 4 cases.")


def test_interruption_before_the_first_case(tmp_path, items):
    accident = RuntimeError("out of memory")
    with pytest.raises(RuntimeError) as caught:
        run(items, tmp_path, Brightness(accident, at=1))
    assert caught.value is accident
    assert not (tmp_path / "out").exists()


def test_map_that_cannot_be_saved(tmp_path, items, monkeypatch):
    """It is an interruption like any other: what was evaluated is reported."""

    def fill(image, path, scan):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(evaluation_report, "write_nifti", fill)
    with pytest.raises(OSError, match=r"No space left on device.*a.nii.gz"):
        run(items, tmp_path, save_maps=True)
    assert cases_in(tmp_path) == ["a"]


def test_what_stands_beside_a_report_comes_with_it(tmp_path, items, monkeypatch):
    """Until the report of a run is written, maps and viewer are those of the report that is there."""
    out = tmp_path / "out"
    run(items, tmp_path, save_maps=True)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for item in items:
        image = nibabel.load(item["image"])
        nibabel.save(nibabel.Nifti1Image(-image.get_fdata(dtype=np.float32), image.affine), item["image"])
    write_report = evaluation_report.write_report
    seen = []

    def look(*arguments):
        seen.append({path: path.read_bytes() for path in before})
        seen.append(sorted(path.name for path in out.glob("[!.]*")))
        return write_report(*arguments)

    monkeypatch.setattr(evaluation_report, "write_report", look)
    run(items, tmp_path, save_maps=True)
    assert seen == [before, sorted([*FILES, "maps", "viewer"])]
    changed = {path for path, content in before.items() if path.read_bytes() != content}
    assert changed == before.keys() - {out / "report.html"}  # which is not drawn here
    assert not [*out.glob(".*")]


# ------------------------------------------------------------------------------------------------------------ processes


def test_processes_wait_for_the_report_before_one_fails(items, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(evaluation_report.idist, "barrier", lambda: written.append(read(tmp_path)))
    items[1]["label"] = items[0]["label"]  # of another shape
    with pytest.raises(InvalidCasesError):
        run(items, tmp_path)
    assert [report["cases"] for report in written] == [3]


def test_interruption_of_one_of_two_processes(items, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_report.idist, "get_world_size", lambda: 2)
    with pytest.raises(MemoryError):
        run(items, tmp_path, Brightness(MemoryError("full")))
    assert read(tmp_path)["description"] == "Interrupted: 2 of 4 cases of one of 2 processes. what it is"
