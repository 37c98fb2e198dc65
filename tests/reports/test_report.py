"""Reports: valid by their schema whatever was evaluated, tables that say what the voxels do, reasons for every gap."""

from __future__ import annotations

import copy
import csv
import errno
import json
import re
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from ssmctb_monai.files import read_csv
from ssmctb_monai.metrics import METRICS, AnomalyEvaluation, EvaluationSettings, LabelFreeThreshold
from ssmctb_monai.reports import build_report, format_report, write_report
from ssmctb_monai.reports import report as report_module

SCHEMA = json.loads((Path(report_module.__file__).parent / "report.schema.json").read_text(encoding="utf-8"))
FILES = ["cases.csv", "report.html", "report.json", "slices.csv"]
SMALL = {"top_k": 3, "slab_depth": 3, "min_lesion_size": 2, "resamples": 60}
METHODS = {"model": 0.8, "other": 0.7, "baseline_flair": 0.9}
TWO = ["model", "other"]
AT_THRESHOLD = {name for name, metric in METRICS.items() if metric.needs_threshold}
CASE_HEADER = (
    "method,case_id,patient_id,brain_ml,lesion_ml,predicted_ml,pixel_auroc,pixel_average_precision,dice_at_threshold,"
    "best_dice_oracle,slice_auroc,lesions,lesions_found,false_positives,volume_score"
)
SLICE_HEADER = "method,case_id,patient_id,slice,relative_height,brain_voxels,lesion_voxels,score"
CASE_COLUMNS, SLICE_COLUMNS = CASE_HEADER.split(","), SLICE_HEADER.split(",")


def add(evaluation, case_id, methods=METHODS, lesion=True, change=None, **keywords):
    """Adds a case of noise that is higher in a lesion, the higher the earlier a method is named."""
    rng = np.random.default_rng(sum(map(ord, case_id)))
    shape = (6, 7, 12)
    label = np.zeros(shape, np.uint8)
    if lesion:
        label[2:4, 2:5, 3:7] = 1
    maps = {name: rng.random(shape) + 0.5 * label / (index + 1) for index, name in enumerate(methods)}
    if change:
        maps = {name: change(anomaly_map) for name, anomaly_map in maps.items()}
    brain = np.ones(shape, np.uint8)
    brain[..., [0, -1]] = 0
    evaluation.add(case_id, maps, label, brain, **keywords)


def with_infinities(scores):
    return np.where(scores > 0.95, np.inf, np.where(scores < 0.05, -np.inf, scores))


def evaluate(names=("a", "b", "c", "d"), methods=METHODS, thresholds=METHODS, lesions="abc", change=None, **settings):
    evaluation = AnomalyEvaluation(
        {name: thresholds[name] for name in methods} if thresholds else None,
        EvaluationSettings(**{**SMALL, **settings}),
    )
    for name in names:
        patient = None if len(names) > 2 else "the patient"
        add(evaluation, name, methods, lesion=name in lesions, patient_id=patient, change=change)
    return evaluation


def with_failed_cases():
    evaluation = evaluate(methods=TWO)
    evaluation.fail("e", 'label "e" lies elsewhere, <far>,\nfrom ü')
    return evaluation


EVALUATIONS = {
    "three methods": evaluate,
    "one method": lambda: evaluate(methods=["model"]),
    "no thresholds": lambda: evaluate(thresholds=None, methods=TWO),
    "failed cases": with_failed_cases,
    "one patient": lambda: evaluate("ab", methods=TWO),
    "lesion-free cases": lambda: evaluate(lesions="", methods=TWO),
    "infinite scores": lambda: evaluate(slice_score="max", change=with_infinities, methods=TWO),
    "one score": lambda: evaluate(change=np.zeros_like, methods=TWO),
    "no slice counts": lambda: evaluate(top_k=100, methods=TWO),
}


WITH_PAGE = ("failed cases", "infinite scores", "no slice counts")


@pytest.fixture(scope="module", params=EVALUATIONS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def evaluation(kind):
    return EVALUATIONS[kind]()


@pytest.fixture(scope="module")
def written(kind, evaluation, tmp_path_factory):
    """Folder of the report."""
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    with pytest.MonkeyPatch.context() as patch:
        if kind not in WITH_PAGE:
            patch.setattr(report_module, "render_html", lambda *arguments: "<!DOCTYPE html></html>")
        write_report(evaluation, folder, "what it is")
    return folder


@pytest.fixture
def no_page(monkeypatch):
    """Leaves out the drawing of the page, which takes longer than all else."""
    monkeypatch.setattr(report_module, "render_html", lambda *arguments: "")


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def read(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def estimates(report):
    """All metrics of methods and differences, with where they stand."""
    groups = {f"methods/{name}": method["figures"] for name, method in report["methods"].items()}
    groups |= {f"{item['method']} - {item['reference']}": item["figures"] for item in report["differences"]}
    return {(group, name): metric for group, metrics in groups.items() for name, metric in metrics.items()}


# -------------------------------------------------------------------------------------------------------------- schema


def test_report_is_valid_and_complete(written):
    assert sorted(path.name for path in written.iterdir()) == FILES
    jsonschema.Draft202012Validator(SCHEMA).validate(read(written))
    page = (written / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.rstrip().endswith("</html>")


def test_report_on_disk_is_the_one_in_memory(evaluation, written):
    built, found = build_report(evaluation, "what it is"), read(written)
    built.pop("created"), found.pop("created")
    assert found == built


def test_what_is_null_has_a_reason(written):
    for place, metric in estimates(read(written)).items():
        undefined = metric["value"] is None or metric["interval"] is None
        assert bool(metric["reason"]) == undefined, place
        assert metric["value"] is not None or metric["interval"] is None, place


def test_definitions_are_those_of_the_metrics(written):
    report = read(written)
    names = list(METRICS)
    assert list(report["figure_definitions"]) == names
    for group in [*report["methods"].values(), *report["differences"]]:
        assert list(group["figures"]) == names
    for name, definition in report["figure_definitions"].items():
        assert all(getattr(METRICS[name], key) == value for key, value in definition.items())


def test_differences_are_the_first_method_minus_each_other(evaluation, written):
    report = read(written)
    first, *others = evaluation.methods
    assert [(item["method"], item["reference"]) for item in report["differences"]] == [(first, o) for o in others]
    for item in report["differences"]:
        for name, metric in item["figures"].items():
            values = [report["methods"][method]["figures"][name]["value"] for method in (first, item["reference"])]
            expected = None if None in values else pytest.approx(values[0] - values[1], abs=1e-9)
            assert metric["value"] == expected, name


def test_counts_and_settings(evaluation, written):
    report = read(written)
    assert report["cases"] == len(evaluation.cases)
    assert report["patients"] == len({case.patient_id for case in evaluation.cases})
    assert asdict(evaluation.settings).items() <= report["settings"].items()
    assert list(report["methods"]) == evaluation.methods


def test_curves_are_defined_where_their_metrics_are(written):
    report = read(written)
    metrics = {
        "slice_roc": "slice_auroc",
        "slice_pr": "slice_average_precision",
        "pixel_roc": "pixel_auroc",
        "pixel_pr": "pixel_average_precision",
        "lesion_froc": "froc_score",
    }
    for name, method in report["methods"].items():
        defined = {curve for curve, metric in metrics.items() if method["figures"][metric]["value"] is not None}
        assert set(report["curves"][name]) == defined
        for curve in report["curves"][name].values():
            assert 1 <= len(curve["x"]) == len(curve["y"]) <= 500


def test_rows_of_the_tables(evaluation, written):
    cases, slices = table(written / "cases.csv"), table(written / "slices.csv")
    expected = [(method, case.case_id) for method in evaluation.methods for case in evaluation.cases]
    assert [(row["method"], row["case_id"]) for row in cases] == expected
    rows = {(row["method"], row["case_id"]): row for row in cases}
    for method, case_id in expected:
        of_case = [row for row in slices if (row["method"], row["case_id"]) == (method, case_id)]
        assert [int(row["slice"]) for row in of_case] == sorted(int(row["slice"]) for row in of_case)
        assert {row["patient_id"] for row in of_case} <= {rows[method, case_id]["patient_id"]}
        if evaluation.settings.top_k < 100:
            assert len(of_case) == 10
            scores = [row["score"] for row in of_case if row["score"]]
            score = rows[method, case_id]["volume_score"]
            assert not score or float(score) == max(map(float, scores))


@pytest.mark.parametrize(("file", "header"), [("cases.csv", CASE_HEADER), ("slices.csv", SLICE_HEADER)])
def test_columns_of_the_tables(written, file, header):
    assert (written / file).read_text(encoding="utf-8").splitlines()[0] == header


def test_nothing_but_numbers_and_gaps_in_the_tables(written):
    for file, texts in (("cases.csv", CASE_COLUMNS[:3]), ("slices.csv", SLICE_COLUMNS[:3])):
        for row in table(written / file):
            assert all(np.isfinite(float(value)) for name, value in row.items() if name not in texts and value)


BROKEN = {
    "another version": lambda report: report.update(schema_version="2.0"),
    "no cases": lambda report: report.update(cases=0),
    "lacks its settings": lambda report: report.pop("settings"),
    "unknown field": lambda report: report.update(extra=1),
    "unknown curve": lambda report: report["curves"]["model"].update(roc={"x": [0], "y": [0]}),
    "text for a number": lambda report: report["methods"]["model"]["figures"]["pixel_auroc"].update(value="0.5"),
    "half an interval": lambda report: report["methods"]["model"]["figures"]["pixel_auroc"].update(interval=[0.5]),
    "figure without a reason": lambda report: report["differences"][0]["figures"]["pixel_auroc"].pop("reason"),
    "unknown level": lambda report: report["figure_definitions"]["pixel_auroc"].update(level="voxel"),
    "threshold from nowhere": lambda report: report["methods"]["model"]["threshold"].pop("source"),
    "case that failed unnamed": lambda report: report["failed_cases"].append({"problem": "?"}),
}


@pytest.fixture(scope="module")
def report():
    return build_report(evaluate())


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_schema_refuses_other_reports(report, change):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(report, SCHEMA)
    broken = copy.deepcopy(report)
    change(broken)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


# ------------------------------------------------------------------------------------------------------------- content


def test_time_is_that_of_writing_in_utc(report):
    created = datetime.fromisoformat(report["created"])
    assert created.utcoffset() == timedelta(0)
    assert abs(datetime.now(timezone.utc) - created) < timedelta(minutes=5)


def test_description(tmp_path, no_page):
    assert build_report(evaluate("a"))["description"] is None
    assert write_report(evaluate("a"), tmp_path, "ä <b>")["description"] == read(tmp_path)["description"] == "ä <b>"


def test_failed_cases_are_named():
    (failed,) = build_report(with_failed_cases())["failed_cases"]
    assert failed == {"case_id": "e", "problem": 'label "e" lies elsewhere, <far>,\nfrom ü'}


def test_thresholds():
    threshold = LabelFreeThreshold(0.75, 0.01, "100 voxels")
    thresholds = {"model": threshold, "other": 0.7}
    methods = build_report(evaluate("ab", thresholds, thresholds))["methods"]
    assert methods["model"]["threshold"] == asdict(threshold)
    assert methods["other"]["threshold"] == asdict(LabelFreeThreshold(0.7, None, "given"))


def test_threshold_of_one_method_only():
    """The others' metrics at a threshold say so, and so does the difference."""
    evaluation = AnomalyEvaluation({"model": 0.8}, EvaluationSettings(**SMALL))
    for name in "abc":
        add(evaluation, name, lesion=name != "c")
    report = build_report(evaluation)
    jsonschema.validate(report, SCHEMA)
    for (group, name), metric in estimates(report).items():
        lacks = name in AT_THRESHOLD and group != "methods/model"
        assert (metric["reason"] == "no label-free threshold was given") == lacks, (group, name)


def test_metrics_at_a_threshold_need_one():
    for name, metric in build_report(EVALUATIONS["no thresholds"]())["methods"]["model"]["figures"].items():
        assert (metric["reason"] == "no label-free threshold was given") == (name in AT_THRESHOLD)


def test_lesion_free_cases_only():
    """What needs a lesion is not defined; what does not, is."""
    metrics = build_report(evaluate(lesions=""))["methods"]["model"]["figures"]
    defined = {name for name, metric in metrics.items() if metric["value"] is not None}
    assert defined == {"slice_false_alarm_share", "false_positives_per_volume", "lesion_volume_bias"}
    assert all("lesion" in metrics[name]["reason"] for name in ("pixel_average_precision", "slice_auroc", "froc_score"))


def test_intervals_need_two_patients():
    for names in ("a", "ab"):
        for metric in build_report(evaluate(names))["methods"]["model"]["figures"].values():
            assert metric["interval"] is None
            assert metric["value"] is None or "two patients" in metric["reason"]
    assert build_report(evaluate("abc"))["methods"]["model"]["figures"]["pixel_auroc"]["interval"] is not None


def test_intervals_hold_what_they_are_of(report):
    for place, metric in estimates(report).items():
        if metric["interval"] is not None:
            low, high = metric["interval"]
            assert low <= high, place
            if " - " not in place[0] and place[1].startswith("pixel"):
                assert low <= metric["value"] <= high, place


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_thresholds_that_json_cannot_hold_are_refused_at_the_start(value):
    """Not when the report of a long evaluation is written."""
    with pytest.raises(ValueError, match="finite"):
        AnomalyEvaluation({"model": value})


def test_threshold_that_no_score_reaches(tmp_path, no_page):
    write_report(evaluate(thresholds=dict.fromkeys(METHODS, 1e300)), tmp_path)
    report = read(tmp_path)
    jsonschema.validate(report, SCHEMA)
    assert report["methods"]["model"]["figures"]["lesion_sensitivity"]["value"] == 0
    assert report["methods"]["model"]["figures"]["dice_at_threshold"]["value"] == 0


def test_reports_of_one_evaluation_agree(report):
    other = build_report(evaluate())
    assert {**other, "created": None} == {**report, "created": None}


@pytest.mark.parametrize("write", [build_report, lambda evaluation: write_report(evaluation, "nowhere")])
def test_no_case_to_report(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluation = AnomalyEvaluation()
    with pytest.raises(ValueError, match="no case"):
        write(evaluation)
    evaluation.fail("Case_7", "it is torn")
    with pytest.raises(ValueError, match="Case_7: it is torn"):
        write(evaluation)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_earlier_report_is_replaced(tmp_path, no_page):
    write_report(evaluate(), tmp_path, "first")
    (tmp_path / "notes.txt").write_text("mine")
    write_report(evaluate("a", methods=["model"]), tmp_path, "second")
    assert read(tmp_path)["description"] == "second"
    assert len(table(tmp_path / "cases.csv")) == 1
    assert {row["case_id"] for row in table(tmp_path / "slices.csv")} == {"a"}
    assert (tmp_path / "notes.txt").read_text() == "mine"


# -------------------------------------------------------------------------------------------------------------- tables


def by_hand(affine=None):
    """Two slices of four voxels and one without brain; voxels of 6 mm³; threshold 0.4."""
    anomaly_map = np.zeros((2, 2, 3))
    anomaly_map[..., 0] = [[0.1, 0.2], [0.3, 0.4]]
    anomaly_map[..., 1] = [[0.9, 0.8], [0.1, 0.2]]
    anomaly_map[..., 2] = 5
    label = np.zeros((2, 2, 3), int)
    label[:, 0, 1] = 4
    brain = np.ones((2, 2, 3))
    brain[..., 2] = 0
    settings = EvaluationSettings(top_k=1, min_lesion_size=1, resamples=1)
    evaluation = AnomalyEvaluation({"model": 0.4, "none": 1}, settings)
    affine = np.diag([1, 2, 3, 1]) if affine is None else affine
    maps = {"model": anomaly_map, "none": 0 * anomaly_map}
    evaluation.add("Case 1", maps, label, brain, affine=affine, patient_id="Patient")
    evaluation.add("Case 2", maps, 0 * label, brain, affine=affine)
    return evaluation


def numbers(row, names):
    return {name: float(row[name]) if row[name] else None for name in names}


def test_cases_by_hand(tmp_path, no_page):
    """Lesion scores 0.9 and 0.1; flagged are 0.9 and, as one component with it, 0.8 and 0.4."""
    write_report(by_hand(), tmp_path)
    rows = table(tmp_path / "cases.csv")
    assert [(row["method"], row["case_id"], row["patient_id"]) for row in rows] == [
        ("model", "Case 1", "Patient"),
        ("model", "Case 2", "Case 2"),
        ("none", "Case 1", "Patient"),
        ("none", "Case 2", "Case 2"),
    ]
    values = dict(
        zip(CASE_COLUMNS[3:], [0.048, 0.012, 0.018, 6.5 / 12, 0.625, 0.4, 2 / 3, 1, 1, 1, 0, 0.9], strict=True)
    )
    assert numbers(rows[0], values) == pytest.approx(values)
    values |= dict.fromkeys(["pixel_auroc", "pixel_average_precision", "dice_at_threshold", "best_dice_oracle"])
    values |= {"slice_auroc": None, "lesion_ml": 0, "lesions": 0, "lesions_found": 0, "false_positives": 1}
    assert numbers(rows[1], values) == pytest.approx(values)
    values = dict(zip(CASE_COLUMNS[3:], [0.048, 0.012, 0, 0.5, 0.25, 0, 0.4, 0.5, 1, 0, 0, 0], strict=True))
    assert numbers(rows[2], values) == pytest.approx(values)


@pytest.mark.parametrize("affine", [np.diag([1, 2, 3, 1]), np.diag([-1, -2, 3, 1])])
def test_slices_by_hand(tmp_path, no_page, affine):
    write_report(by_hand(affine), tmp_path)
    rows = table(tmp_path / "slices.csv")
    assert len(rows) == 8
    assert [list(numbers(row, SLICE_COLUMNS[3:]).values()) for row in rows[:2]] == [
        [0, 0, 4, 0, 0.4],
        [1, 1, 4, 2, 0.9],
    ]
    assert [list(numbers(row, SLICE_COLUMNS[3:]).values()) for row in rows[6:]] == [[0, 0, 4, 0, 0], [1, 1, 4, 0, 0]]


def test_slices_are_numbered_from_the_feet(tmp_path, no_page):
    """A file that begins at the head."""
    write_report(by_hand(np.diag([1, 2, -3, 1])), tmp_path)
    rows = [list(numbers(row, SLICE_COLUMNS[3:]).values()) for row in table(tmp_path / "slices.csv")[:2]]
    assert rows == [[1, 0, 4, 2, 0.9], [2, 1, 4, 0, 0.4]]


def test_no_threshold_no_findings(tmp_path, no_page):
    write_report(evaluate(thresholds=None), tmp_path)
    for row in table(tmp_path / "cases.csv"):
        lacking = {name for name, value in row.items() if not value}
        found = {"predicted_ml", "dice_at_threshold", "lesions", "lesions_found", "false_positives"}
        assert found <= lacking
        assert "brain_ml" not in lacking


def test_names_that_csv_must_quote(tmp_path):
    names = ['a, "b"', "two\nlines", "two\r\nlines", "semicolon; tab\t", "Ärztin 医", "<script>", "'"]
    evaluation = AnomalyEvaluation({"model, 2": 0.5}, EvaluationSettings(**SMALL))
    for name in names:
        add(evaluation, name, ["model, 2"], patient_id=f"{name}, patient")
    write_report(evaluation, tmp_path)
    rows = table(tmp_path / "cases.csv")
    assert [row["case_id"] for row in rows] == names
    assert [row["patient_id"] for row in rows] == [f"{name}, patient" for name in names]
    assert {row["method"] for row in rows} == {"model, 2"}
    assert list(dict.fromkeys(row["case_id"] for row in table(tmp_path / "slices.csv"))) == names
    jsonschema.validate(read(tmp_path), SCHEMA)


def test_names_that_a_spreadsheet_would_execute(tmp_path, no_page):
    """They get an apostrophe; numbers stay numbers, negative ones too."""
    names = ["=1+1", "+1", "-2", "@SUM(1)", "\t=3", "'=4", "'a", "b=1"]
    evaluation = AnomalyEvaluation(None, EvaluationSettings(**SMALL))
    for name in names:
        add(evaluation, name, ["-model"], patient_id=f"={name}", change=lambda scores: scores - 5)
    write_report(evaluation, tmp_path)
    for file in ("cases.csv", "slices.csv"):
        rows = table(tmp_path / file)
        found = list(dict.fromkeys(row["case_id"] for row in rows))
        assert found == ["'=1+1", "'+1", "'-2", "'@SUM(1)", "'\t=3", "''=4", "'a", "b=1"]
        assert {row["method"] for row in rows} == {"'-model"}
        assert all(row["patient_id"].startswith("'=") for row in rows)
        assert all(float(row["score" if file == "slices.csv" else "volume_score"]) < 0 for row in rows)
        _, read_back = read_csv(tmp_path / file)
        assert list(dict.fromkeys(row["case_id"] for row in read_back)) == names


@pytest.mark.parametrize("name", FILES)
def test_full_disk_leaves_the_earlier_report(tmp_path, no_page, monkeypatch, name):
    """Whichever file no longer fits."""
    write_report(evaluate("a", methods=["model"]), tmp_path, "first")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    opened = Path.open

    def fill(path, mode="r", *arguments, **options):
        if path.name.endswith(name) and "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return opened(path, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fill)
        with pytest.raises(OSError, match="No space left"):
            write_report(evaluate(), tmp_path, "second")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_killed_while_files_take_their_places(tmp_path, no_page, monkeypatch):
    """No report.json stands beside the tables of another report."""
    one, two = evaluate("a", methods=["model"]), evaluate("ab", methods=["model"])
    replace = Path.replace
    for done in range(4):
        placed = []

        def place(path, to, done=done, placed=placed):
            if to.parent == tmp_path:
                if len(placed) == done:
                    raise SystemExit
                placed.append(to.name)
            return replace(path, to)

        write_report(one, tmp_path, "first")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", place)
            with pytest.raises(SystemExit):
                write_report(two, tmp_path, "second")
        assert not (tmp_path / "report.json").exists()
    write_report(two, tmp_path, "second")
    assert sorted(file.name for file in tmp_path.iterdir()) == FILES
    assert read(tmp_path)["cases"] == len(table(tmp_path / "cases.csv")) == 2


# ------------------------------------------------------------------------------------------------------------ terminal


def lines_of(report):
    """Title, level and cells of each line of metrics."""
    level, found = None, []
    for line in format_report(report).splitlines():
        if line.strip() in ("SLICE", "PIXEL", "LESION", "VOLUME"):
            level = line.strip().lower()
        elif level and line.startswith("  "):
            title, *cells = re.split(r"\s{3,}", line.strip())
            found.append((level, title, cells))
    return found


def parsed(cell):
    """Value and ends of a cell."""
    return [float(number) for number in re.findall(r"-?\d+\.\d+", cell)]


def test_every_title_and_value_is_in_the_terminal(evaluation):
    report = build_report(evaluation)
    lines = lines_of(report)
    definitions = report["figure_definitions"]
    assert [(level, title.split(" (ml)")[0].split(" (per volume)")[0]) for level, title, _ in lines] == [
        (definition["level"], definition["title"]) for definition in definitions.values()
    ]
    columns = [group["figures"] for group in (*report["methods"].values(), *report["differences"])]
    for name, (_, title, cells) in zip(definitions, lines, strict=True):
        assert len(cells) == len(columns)
        if definitions[name]["unit"] == "ml":
            assert "(ml)" in title
        for cell, metrics in zip(cells, columns, strict=True):
            metric = metrics[name]
            if metric["value"] is None:
                assert cell == "-"
            else:
                expected = [metric["value"], *(metric["interval"] or [])]
                assert parsed(cell) == pytest.approx(expected, abs=6e-4, rel=0.01)


def test_head_of_the_terminal():
    text = format_report(build_report(evaluate()))
    assert "4 cases of 4 patients" in text.splitlines()[0]
    assert all(name in text for name in (*METHODS, "model - other", "model - baseline_flair"))
    assert "2 cases of 1 patient" in format_report(build_report(evaluate("ab")))


@pytest.mark.parametrize("value", [0.8, 12.5, 1234.5, 0.0012, 3e-7, -40.0])
def test_thresholds_in_the_terminal(value):
    """Scores may have any range."""
    thresholds = {"model": LabelFreeThreshold(value, 0.01, "5 validation cases"), "other": 2}
    text = format_report(build_report(evaluate("ab", thresholds, thresholds)))
    match = re.search(r"Threshold of model: (\S+) \(5 validation cases\)", text)
    assert float(match[1]) == pytest.approx(value, rel=0.01)
    assert "Threshold of other: 2" in text
    assert "Threshold" not in format_report(build_report(evaluate("ab", thresholds=None)))


def test_metrics_that_were_left_out():
    evaluation = AnomalyEvaluation({}, EvaluationSettings(**SMALL), metrics=["slice_auroc", "volume_auroc"])
    for name in ("a", "b", "c"):
        add(evaluation, name, TWO, lesion=name != "c")
    report = build_report(evaluation)
    jsonschema.validate(report, SCHEMA)
    figures = report["methods"]["model"]["figures"]
    assert figures["slice_auroc"]["value"] is not None
    expected = {"value": None, "interval": None, "reason": "it was left out of this evaluation"}
    assert figures["pixel_auroc"] == figures["lesion_sensitivity"] == expected
    assert set(report["curves"]["model"]) == {"slice_roc", "slice_pr"}
    assert {row["pixel_auroc"] for row in report_module.case_rows(evaluation)} == {None}
