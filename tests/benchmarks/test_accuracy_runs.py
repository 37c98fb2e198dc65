"""Runs that go on where they stopped, results of finished ones, and the tables of these; trainings are stubbed."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import results, rows, runs, table
from benchmarks.accuracy.dataset import Cases
from benchmarks.accuracy.runs import Run
from ssmctb_monai.data import BratsCase
from ssmctb_monai.metrics import METRICS, ResampledMetrics

BASELINE = "baseline_flair"


def case(name, root):
    return BratsCase(name, name, {"flair": root / f"{name}_flair.nii"}, root / f"{name}_seg.nii", None, {})


def row(title="", overlays=(), reference=None, **overrides):
    return rows.Row(title, "brats", "brats2d", overlays, overrides, reference=reference)


@pytest.fixture
def cases(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    return Cases(root, [[case(f"{fold}{letter}", root) for letter in "ab"] for fold in range(3)], ["0a"], {"x": ["!"]})


@pytest.fixture
def work(tmp_path, cases, monkeypatch):
    """A work folder, two rows, results beside it; a training writes what a bundle's does, and is remembered."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    plain = row("2D, no block", block="none", max_epochs=2)
    with_block = row("2D, block", reference="plain", block="ssmctb", max_epochs=2)
    monkeypatch.setitem(rows.ROWS, "plain", plain)
    monkeypatch.setitem(rows.ROWS, "block", with_block)
    return tmp_path / "work"


class Training:
    """Stands for a bundle's training; `code` and `leaves` say how the next one ends."""

    def __init__(self):
        self.calls, self.code, self.leaves = [], 0, ("model.pt", "training.pt", "model_record.json")

    def __call__(self, config_files, overrides, log):
        self.calls.append((config_files, dict(overrides), log))
        folder = Path(overrides["ckpt_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        history = [{"epoch": epoch, "figures": {"slice_auroc": epoch / 10}} for epoch in range(1, 7)]
        record = {
            "epochs": 6,
            "seconds": 61.234,
            "device": "cpu",
            "threads": 2,
            "versions": {"x": "1"},
            "history": history,
        }
        for name in self.leaves:
            (folder / name).write_text(json.dumps(record))
        return self.code


@pytest.fixture
def training(monkeypatch):
    stub = Training()
    monkeypatch.setattr(runs, "run_training", stub)
    return stub


def metrics(run, value, baseline=0.25, method="model"):
    """Figures with three resamples, around a value."""

    def all_metrics(middle):
        return {name: middle + np.array([0, -0.125, 0, 0.125]) for name in METRICS}

    patients = (f"{run.fold}a", f"{run.fold}b")
    return ResampledMetrics(patients, run.fold, {method: all_metrics(value), BASELINE: all_metrics(baseline)})


def finish(run, cases, value, score="model", **kwargs):
    """Trains, and writes what an evaluation would."""
    runs.train(run, cases)
    metrics(run, value, method=score.partition(":")[0], **kwargs).save(run.metrics_file(score))
    run.metrics_file(score).with_suffix(".json").write_text(json.dumps(run.evaluation_configuration))


# ------------------------------------------------------------------------------------------------------------- training


def test_training_is_called_as_a_user_would(work, cases, training):
    run = Run("block", 1, 5, work)
    runs.train(run, cases)
    ((config_files, overrides, log),) = training.calls
    assert config_files == [rows.BUNDLES / "brats2d" / "configs" / "train.json"]
    assert overrides["block"] == "ssmctb"
    assert (overrides["seed"], overrides["validation_share"], overrides["resume"]) == (5, 0, False)
    assert overrides["modalities"] == ["flair"]
    assert overrides["dataset_dir"] == str(cases.root)
    assert overrides["ckpt_dir"] == run.folder / "models"
    assert log.parent == run.folder == work / "block" / "fold1_seed5"
    datalist = json.loads(Path(overrides["datalist_file"]).read_text())
    assert [entry["case_id"] for entry in datalist["test"]] == ["1a", "1b"]
    assert [entry["case_id"] for entry in datalist["training"]] == ["0a", "0b", "2a", "2b"]


def test_what_is_finished_is_not_trained_again(work, cases, training):
    run = Run("block", 1, 0, work)
    assert not run.is_trained
    runs.train(run, cases)
    assert run.is_trained
    runs.train(run, cases)
    assert len(training.calls) == 1


@pytest.mark.parametrize(("left", "resume"), [((), False), (("training.pt",), True)])
def test_an_interrupted_training_goes_on(work, cases, training, left, resume):
    run = Run("block", 1, 0, work)
    training.code, training.leaves = 3, left
    with pytest.raises(RuntimeError, match=r"block, fold 1, seed 0: .* exit code 3, see .*training\.log"):
        runs.train(run, cases)
    assert not run.is_trained
    training.code = 0
    runs.train(run, cases)
    assert [call[1]["resume"] for call in training.calls] == [False, resume]
    assert run.is_trained


@pytest.mark.process
def test_a_network_to_take_over_must_have_been_trained_here(work, cases, training, monkeypatch):
    monkeypatch.setitem(rows.ROWS, "raw", row(reference="plain", block="none", max_epochs=2, smoothing=0.0))
    with pytest.raises(FileNotFoundError, match="raw, fold 1, seed 0 takes the network of plain, fold 1"):
        runs.train(Run("raw", 1, 0, work), cases)
    assert not training.calls
    assert not Run("raw", 1, 0, work).is_trained


def test_output_and_exit_code_of_a_training(tmp_path):
    log = tmp_path / "training.log"
    log.write_text("before\n")
    assert runs.run_training([tmp_path / "no.json"], {"seed": 1}, log) != 0
    assert log.read_text().startswith("before\n")
    assert "no.json" in log.read_text()


def test_overrides_reach_the_command(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(
        runs.subprocess, "run", lambda words, **_: commands.append(words) or SimpleNamespace(returncode=0)
    )
    assert runs.run_training([tmp_path / "a.json"], {"adversary": None, "smoothing": 0.0}, tmp_path / "log") == 0
    assert commands[0][-4:] == ["--adversary", "$None", "--smoothing", "0.0"]  # a plain None is ignored


def test_another_configuration_is_noticed(work, cases, training, monkeypatch):
    run = Run("block", 1, 0, work)
    runs.train(run, cases)
    runs.check_configuration(run, cases)
    monkeypatch.setitem(rows.ROWS, "block", row(block="ssmctb", max_epochs=3, batch_size=2))
    with pytest.raises(ValueError, match=r"now there differ: batch_size, max_epochs\. Remove .*fold1_seed0") as error:
        runs.train(run, cases)
    assert str(run.folder) in str(error.value)


@pytest.fixture
def bundles(tmp_path, monkeypatch):
    """Returns a function that changes files in a copy of the bundle, which the rows then take."""

    def changed(**files):
        folder = tmp_path / "bundles" / "brats2d"
        (folder / "configs").mkdir(parents=True)
        for file in (rows.BUNDLES / "brats2d" / "configs").glob("*.json"):
            content = {**json.loads(file.read_text()), **files.get(file.stem, {})}
            (folder / "configs" / file.name).write_text(json.dumps(content))
            (folder / file.name).symlink_to(folder / "configs" / file.name)
        for module in (rows, runs):
            monkeypatch.setattr(module, "BUNDLES", tmp_path / "bundles")

    return changed


@pytest.mark.parametrize(
    ("file", "key", "is_noticed"),
    [
        ("train", "learning_rate", True),
        ("train", "train", True),
        ("train", "ckpt_dir", False),
        ("mae", "max_epochs", True),
        ("mae", "ckpt_dir", False),
        ("autoencoder", "max_epochs", False),
    ],
)
def test_another_bundle_is_noticed(work, cases, training, monkeypatch, bundles, file, key, is_noticed):
    monkeypatch.setitem(rows.ROWS, "block", row(overlays=("mae",), block="ssmctb"))
    run = Run("block", 1, 0, work)
    runs.train(run, cases)
    bundles(**{file: {key: "other"}})
    if is_noticed:
        with pytest.raises(ValueError, match=f"now there differ: {key}"):
            runs.check_configuration(run, cases)
    else:
        runs.check_configuration(run, cases)


def test_other_cases_are_noticed(work, cases, training):
    run = Run("block", 1, 0, work)
    runs.train(run, cases)
    fewer = Cases(cases.root, [cases.folds[0], cases.folds[1], cases.folds[2][:1]], [], {})
    with pytest.raises(ValueError, match="cases of fold 2"):
        runs.check_configuration(run, fewer)


def test_unknown_ids(work, cases, monkeypatch):
    monkeypatch.setitem(rows.ROWS, "block", row(overlays=("lgg",), **{"train#x": 1, "wdith": 1}))
    with pytest.raises(ValueError, match=r"block: brats2d with train\.json, lgg\.json has no wdith\."):
        runs.check_configuration(Run("block", 0, 0, work), cases)


@pytest.mark.parametrize("name", ["mae", "autoencoder"])
def test_iterations_of_a_system_that_counts_epochs(work, cases, name):
    with pytest.raises(ValueError, match=rf"{name}\.json has max_epochs, and makes no use of iterations"):
        runs.check_configuration(Run(f"brats2d-{name}", 0, 0, work, 400), cases)
    runs.check_configuration(Run(f"brats2d-{name}", 0, 0, work), cases)
    runs.check_configuration(Run("brats2d-ssm", 0, 0, work, 400), cases)


def test_another_evaluation_is_done_again(work, cases, training, bundles):
    run = Run("block", 1, 0, work)
    assert not run.is_evaluated("model")
    finish(run, cases, 0.5)
    assert run.is_evaluated("model")
    assert not run.is_evaluated("block")
    bundles(evaluate={"top_k": 3})
    assert not run.is_evaluated("model")


def test_existing_runs(work, cases, training):
    for fold, seed in ((2, 10), (0, 3), (2, 3)):
        runs.train(Run("block", fold, seed, work), cases)
    (work / "block" / "fold1_seed3").mkdir()
    assert [(run.fold, run.seed) for run in runs.existing_runs("block", work)] == [(0, 3), (2, 3), (2, 10)]
    assert runs.existing_runs("plain", work) == []


# -------------------------------------------------------------------------------------------------------------- results


def test_results_of_a_finished_row(work, cases, training):
    for fold in range(3):
        for seed in (0, 1):
            finish(Run("plain", fold, seed, work), cases, 0.5)
            finish(Run("block", fold, seed, work), cases, 0.5 + fold / 8 + seed / 4)
    results.write_results("block", "model", 1, work, cases)
    content = json.loads(results.results_file("block", "model", 1).read_text())
    assert (content["row"], content["seed"], content["missing_folds"]) == ("block", 1, [])
    assert (content["number_of_cases"], content["number_of_patients"]) == (6, 6)
    assert (content["repaired"], content["left_out"]) == (["0a"], {"x": ["!"]})
    assert content["overrides"] == {"block": "ssmctb", "max_epochs": 2}
    assert [run["fold"] for run in content["runs"]] == [0, 1, 2]
    first = content["runs"][0]
    assert (first["epochs"], first["training_seconds"]) == (6, 61.234)
    assert first["device"] == runs.processor()
    assert first["spread_of_last_third"] == {"slice_auroc": 0.1}
    assert first["figures"]["model"]["slice_auroc"] == 0.75
    assert first["figures"][BASELINE]["slice_auroc"] == 0.25
    means = content["means"]["all"]
    assert means["figures"]["slice_auroc"] == {"value": 0.875, "interval": [0.7562, 0.9938]}
    assert means["baseline"]["slice_auroc"]["value"] == 0.25
    assert means["difference_to_baseline"]["slice_auroc"] == {"value": 0.625, "interval": [0.625, 0.625]}
    assert means["difference_to_reference"]["slice_auroc"] == {"value": 0.375, "interval": [0.375, 0.375]}
    without = content["means"]["without fold 0"]
    assert without["figures"]["slice_auroc"]["value"] == 0.9375
    assert without["difference_to_reference"]["slice_auroc"]["value"] == 0.4375


def test_results_of_a_part_of_a_row(work, cases, training):
    finish(Run("block", 0, 0, work), cases, 0.5)
    finish(Run("block", 2, 1, work), cases, 0.5)
    runs.train(Run("block", 1, 0, work), cases)  # not evaluated
    finish(Run("plain", 1, 0, work), cases, 0.5)
    finish(Run("plain", 0, 1, work), cases, 0.5)
    results.write_results("block", "model", 0, work, cases)
    (content,) = results.load_results()
    assert content["missing_folds"] == [1, 2]
    assert [(run["fold"], run["seed"]) for run in content["runs"]] == [(0, 0)]
    assert "difference_to_reference" not in content["means"]["all"]
    assert content["means"]["without fold 0"] is None


def test_differences_need_all_folds_of_the_row(work, cases, training):
    finish(Run("block", 0, 0, work), cases, 0.5)
    finish(Run("block", 1, 0, work), cases, 1.0)
    finish(Run("plain", 1, 0, work), cases, 0.75)
    results.write_results("block", "model", 0, work, cases)
    means = results.load_results()[0]["means"]
    assert "difference_to_reference" not in means["all"]
    assert means["without fold 0"]["difference_to_reference"]["slice_auroc"]["value"] == 0.25
    finish(Run("plain", 0, 0, work), cases, 0.75)
    finish(Run("plain", 2, 0, work), cases, 0.0)
    results.write_results("block", "model", 0, work, cases)
    means = results.load_results()[0]["means"]
    assert means["all"]["difference_to_reference"]["slice_auroc"]["value"] == 0.0


def test_seeds_are_averaged():
    def of_seed(seed, missing, value, interval, difference=None):
        estimate = {"slice_auroc": {"value": value, "interval": interval}}
        means = {"figures": estimate}
        if difference is not None:
            means["difference_to_reference"] = {"slice_auroc": {"value": difference, "interval": None}}
        run = {"fold": 0, "training_seconds": 60 * seed}
        return {"row": "A", "seed": seed, "missing_folds": missing, "means": {"all": means, "x": None}, "runs": [run]}

    found = [
        of_seed(0, [], 0.5, [0.25, 0.75], difference=0.5),
        of_seed(1, [], 1.0, [0.75, 1.0]),
        of_seed(2, [1], 9.0, [0.0, 9.0], difference=9.0),
    ]
    mean = results.mean_over_seeds(found)
    assert (mean["row"], mean["seeds"], mean["missing_folds"]) == ("A", [0, 1], [])
    assert mean["runs"] == [
        {"seed": 0, "fold": 0, "training_seconds": 0},
        {"seed": 1, "fold": 0, "training_seconds": 60},
    ]
    assert mean["means"]["x"] is None
    assert mean["means"]["all"]["figures"]["slice_auroc"] == {"value": 0.75, "interval": [0.5, 0.875]}
    assert mean["means"]["all"]["difference_to_reference"]["slice_auroc"] == {"value": 0.5, "interval": None}
    found[1]["means"]["all"]["figures"]["slice_auroc"]["value"] = None
    assert results.mean_over_seeds(found)["means"]["all"]["figures"]["slice_auroc"]["value"] is None


def test_results_of_the_blocks_are_beside_the_network_s(work, cases, training):
    run = Run("block", 0, 3, work)
    finish(run, cases, 0.75)
    finish(run, cases, 0.5, score="block:reconstructive")
    for score in ("block:reconstructive", "model"):
        results.write_results("block", score, 3, work, cases)
    model, block = results.load_results()
    assert (model["score"], block["score"]) == ("model", "block:reconstructive")
    file = results.results_file("block", "block:reconstructive", 3)
    assert file.is_file()
    assert file.relative_to(results.RESULTS) == Path("block-block-reconstructive/seed3.json")
    assert block["title"] == "2D, block: error of its reconstructive block"
    assert block["reference"] == "2D, block"
    assert block["runs"][0]["figures"]["block"]["slice_auroc"] == 0.5
    assert block["means"]["all"]["difference_to_reference"]["slice_auroc"]["value"] == -0.25


def test_results_of_the_image_are_beside_the_network_s(work, cases, training):
    run = Run("block", 0, 0, work)
    finish(run, cases, 0.75)
    finish(run, cases, 0.5, score="image")
    results.write_results("block", "image", 0, work, cases)
    (image,) = results.load_results()
    assert results.results_file("block", "image", 0).parent.name == "block-image"
    assert image["title"] == "2D, no network: FLAIR itself, scaled, smoothed like the maps"
    assert image["reference"] == "2D, block"
    assert image["means"]["all"]["difference_to_reference"]["slice_auroc"]["value"] == -0.25


def test_results_on_the_first_modality_are_beside_those_on_all(work, cases, training):
    run = Run("block", 0, 0, work)
    finish(run, cases, 0.75)
    metrics(run, 0.5).save(run.metrics_file("first"))
    run.metrics_file("first").with_suffix(".json").write_text(json.dumps(run.evaluation_configuration))
    results.write_results("block", "first", 0, work, cases)
    (first,) = results.load_results()
    assert (first["title"], first["reference"]) == ("2D, block: FLAIR alone", "2D, block")
    assert first["means"]["all"]["difference_to_reference"]["slice_auroc"]["value"] == -0.25


def test_no_run_is_finished(work, cases, training):
    runs.train(Run("block", 0, 0, work), cases)
    with pytest.raises(ValueError, match="No run of block with seed 0 is finished below"):
        results.write_results("block", "model", 0, work, cases)


def test_spread():
    history = [
        {"epoch": epoch, "figures": {"a": value, "b": None}} for epoch, value in ((2, 9), (4, 7), (5, 1), (6, 3))
    ]
    assert results.spread(history) == {"a": 2}
    assert results.spread(history[:1]) == results.spread([]) == {}


# -------------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def started(work, cases, training, monkeypatch):
    """Calls the command, whose evaluations are stubbed too; returns the names of what was evaluated."""
    evaluated = []

    def evaluate(run, cases, score):
        evaluated.append(str(run))
        finish(run, cases, 0.5, score=score)

    monkeypatch.setattr(command, "evaluate", evaluate)
    monkeypatch.setattr(command, "prepare_cases", lambda *arguments: cases)

    def start(*words):
        command.main([*words, "--dataset_dir", str(cases.root), "--work_dir", str(work)])
        return evaluated

    return start


def test_command_goes_on_where_it_stopped(started, work, training):
    assert started("block", "--folds", "2", "--seeds", "0") == ["block, fold 2, seed 0"]
    assert started("block", "--seeds", "0", "1")[1:3] == ["block, fold 0, seed 0", "block, fold 1, seed 0"]
    assert len(training.calls) == 6
    assert len(started("block", "--seeds", "0", "1")) == 6
    assert len(training.calls) == 6
    (content,) = results.load_results()
    assert (content["seeds"], content["missing_folds"]) == ([0, 1], [])


def test_short_trials_have_runs_and_results_of_their_own(started, work, training):
    assert started("block", "--folds", "2", "--seeds", "0", "--iterations", "7") == ["block, fold 2, seed 0"]
    ((_, overrides, log),) = training.calls
    assert overrides["iterations"] == 7
    assert log.parent == work / "7_steps" / "block" / "fold2_seed0"
    assert results.load_results() == []
    (content,) = results.load_results("7_steps")
    assert content["overrides"] == {"block": "ssmctb", "max_epochs": 2, "iterations": 7}
    assert len(started("block", "--folds", "2", "--seeds", "0")) == 2
    assert "iterations" not in training.calls[1][1]


def test_kept_runs_are_those_of_another_machine(started, work, training):
    started("plain", "--seeds", "0")
    started("block", "--seeds", "0", "--folds", "0")
    shutil.rmtree(work)
    assert len(started("block", "--seeds", "0")) == 3 + 3  # the one that was kept is finished
    assert [overrides["ckpt_dir"].parent.name for _, overrides, _ in training.calls[4:]] == [
        "fold1_seed0",
        "fold2_seed0",
    ]
    _, block = results.load_results()
    assert block["missing_folds"] == []
    assert block["means"]["all"]["difference_to_reference"]["slice_auroc"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert block["runs"][0]["figures"] == block["runs"][1]["figures"]
    assert not list(results.RESULTS.glob("**/*.pt"))


def test_rows_are_compared_by_their_kept_runs(started, work, cases, capsys):
    started("plain", "--seeds", "0", "--folds", "0", "1")
    started("block", "--seeds", "0", "--folds", "1")
    run = Run("block", 1, 0, work)
    metrics(run, 0.75).save(run.metrics_file("model"))
    results.keep_run(run, "model")
    command.main(["compare", "block", "plain"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "block minus plain, fold1_seed0"
    assert lines[1].split() == ["slice_auroc", "+0.250", "[+0.250,", "+0.250]"]
    with pytest.raises(SystemExit):
        command.main(["compare", "block", "plain:image"])
    error = capsys.readouterr().err
    assert "of block there are fold1_seed0, of plain:image none" in error
    assert "with" not in error.partition("plain:image none")[2]
    (results.RESULTS / "400_steps").mkdir()
    for name in ("block", "plain"):
        shutil.copytree(results.RESULTS / name, results.RESULTS / "400_steps" / name)
    shutil.rmtree(results.RESULTS / "plain")
    with pytest.raises(SystemExit):
        command.main(["compare", "block", "plain"])
    assert "of plain none; there are runs of both with --iterations 400" in capsys.readouterr().err


def test_nothing_is_trained_where_a_later_row_does_not_fit(started, work, cases, training, monkeypatch):
    runs.train(Run("block", 2, 7, work), cases)
    monkeypatch.setitem(rows.ROWS, "block", row(max_epochs=3, reference="plain"))
    with pytest.raises(ValueError, match="block, fold 2, seed 7 began with another configuration"):
        started("plain", "block", "--seeds", "0")
    assert len(training.calls) == 1


def test_a_run_of_another_process_is_left_to_it(started, work):
    run = Run("block", 1, 0, work)
    run.folder.mkdir(parents=True)
    with command.FileLock(run.folder / ".lock"):
        assert started("block", "--seeds", "0") == ["block, fold 0, seed 0", "block, fold 2, seed 0"]
    assert results.load_results()[0]["missing_folds"] == [1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["blocks"], "unknown: blocks"),
        (["brats2d-none", "lgg2d"], "one data set at a time"),
        (["block", "--score", "error"], "argument --score: invalid choice: 'error'"),
        (["block", "--score", "image:reconstructive"], "invalid choice: 'image:reconstructive'"),
        (["block", "--folds", "3"], "invalid choice: 3"),
    ],
)
def test_wrong_words(started, capsys, words, message):
    with pytest.raises(SystemExit):
        started(*words)
    assert message in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- tables


def estimate(value, low, high):
    return {"value": value, "interval": [low, high]}


def result(row, value, interval, missing_folds=(), reference=None, **changes):
    means = {
        "figures": {name: estimate(value, *interval) for name in table.COLUMNS},
        "baseline": {name: estimate(0.25, 0.125, 0.375) for name in table.COLUMNS},
        "difference_to_baseline": {name: estimate(value - 0.25, interval[0] - 0.25, 1) for name in table.COLUMNS},
    }
    if reference is not None:
        means["difference_to_reference"] = {name: estimate(*reference) for name in table.COLUMNS}
    row_data = {
        "row": row,
        "title": row,
        "data": "BRATS, FLAIR",
        "score": "model",
        "number_of_cases": 18,
        "seeds": [4, 5],
    }
    row_data["reference"] = None if reference is None else "R"

    def run(seed, fold, seconds, spread):
        metrics = {"model": {"slice_auroc": fold / 4 + seed / 100, "pixel_average_precision": fold / 2}}
        return {
            "seed": seed,
            "fold": fold,
            "training_seconds": seconds,
            "spread_of_last_third": spread,
            "figures": metrics,
        }

    folds = [fold for fold in range(3) if fold not in missing_folds]
    runs = [run(seed, fold, 600, {"slice_auroc": 0.0123}) for seed in (4, 5) for fold in folds]
    runs[-1] = run(5, folds[-1], 900, {})
    means = {"all": means, "without fold 0": means}
    return {**row_data, "missing_folds": list(missing_folds), "means": means, "runs": runs, **changes}


def test_tables_by_hand():
    made = [
        result("A", 0.5, (0.375, 0.625)),
        result("B", 0.3, (0.1, 0.5), missing_folds=[2], reference=(-0.2, -0.25, -0.125)),
        result("C", 0.75, (0.5, 0.875), data="LGG, FLAIR + T1ce", number_of_cases=40, reference=(0.1, -0.125, 0.25)),
        result("D", 0.75, (0.5, 0.875), score="block", data="LGG, FLAIR + T1ce", reference=(0.5, 0.25, 0.75)),
    ]
    lines = table.tables(made).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["data, modalities", "method", *table.COLUMNS.values()]
    assert cells[2][:3] == ["BRATS, FLAIR (18 cases)", "threshold on FLAIR", "0.250 [0.125, 0.375]"]
    assert cells[3][:3] == ["", "A", "**0.500** [0.375, 0.625]"]
    assert cells[3][-1] == "0.500 [0.375, 0.625]"  # more false alarms are no gain
    # B, which has not all folds, is not to be compared with means over all
    assert cells[4][:2] == ["LGG, FLAIR + T1ce (40 cases)", "threshold on FLAIR"]
    assert [line[1] for line in cells[5:7]] == ["C", "D"]
    assert lines[7:10] == ["", "Without fold 0, on which the recipe was chosen:", ""]
    assert lines[10:17] == lines[:7]
    assert cells[22][:4] == ["BRATS, FLAIR", "B (folds 0, 1 alone)", "R", "**-0.200** [-0.250, -0.125]"]
    assert cells[23][:4] == ["LGG, FLAIR + T1ce", "C", "R", "+0.100 [-0.125, +0.250]"]
    assert cells[24][:4] == ["", "D", "R", "**+0.500** [+0.250, +0.750]"]
    assert cells[28] == ["data, modalities", "method", "minutes", "spread", "seed: slice AUROC, voxel AP"]
    assert cells[30] == ["BRATS, FLAIR", "A", "10 to 15", "0.012", "4: 0.290, 0.500; 5: 0.300, 0.500"]
    assert cells[31][1:] == ["B (folds 0, 1 alone)", "10 to 15", "0.012", "4: 0.165, 0.250; 5: 0.175, 0.250"]
    assert [line[1] for line in cells[32:]] == ["C"]  # another score needs no training
    assert len(lines) == 33
    assert {len(line) for line in cells[:7]} == {8}
    assert {len(line) for line in cells[20:25]} == {9}


def test_table_without_the_fold_of_the_decisions():
    made = [result("A", 0.5, (0.375, 0.625)), result("B", 0.75, (0.5, 0.875))]
    made[1]["means"]["without fold 0"] = result("B", 0.875, (0.75, 1.0))["means"]["all"]
    lines = table.tables(made).splitlines()
    start = lines.index("Without fold 0, on which the recipe was chosen:")
    assert [line.split("|")[2:4] for line in lines[start + 4 : start + 7]] == [
        [" threshold on FLAIR ", " 0.250 [0.125, 0.375] "],
        [" A ", " **0.500** [0.375, 0.625] "],
        [" B ", " **0.875** [0.750, 1.000] "],
    ]
    assert lines[start + 7] == ""


def test_trials_need_not_have_all_folds():
    made = [
        result("A", 0.5, (0.375, 0.625), missing_folds=[1, 2]),
        result("B", 0.3, (0.1, 0.5), missing_folds=[1, 2], reference=(-0.2, -0.25, -0.125)),
    ]
    lines = table.trials(made).splitlines()
    assert lines[3].startswith("|  | A, seeds 4, 5 (fold 0 alone) | **0.500** [0.375, 0.625] |")
    assert lines[4].startswith("|  | B, seeds 4, 5 (fold 0 alone) | 0.300 [0.100, 0.500] |")
    assert lines[-1].startswith("| BRATS, FLAIR | B, seeds 4, 5 (fold 0 alone) | R | **-0.200** [-0.250, -0.125] |")
    assert table.trials(made[:1]).splitlines() == lines[:4]
    assert table.trials([]) == ""


def test_trials_of_regions_leave_open_what_a_kept_run_lacks():
    made = [result(name, 0.5, (0.375, 0.625), missing_folds=[1, 2]) for name in "AB"]
    figures = made[0]["means"]["all"]
    figures["figures"]["rbdc"] = estimate(0.75, 0.5, 1)
    figures["difference_to_baseline"]["rbdc"] = estimate(0.5, 0.25, 0.75)
    lines = table.trials(made, of_regions=True).splitlines()
    assert lines[:5] == table.trials(made).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[8:]]
    assert cells[0] == ["data, modalities", "method", *table.REGIONS.values()]
    assert [line[2:] for line in cells[2:]] == [
        ["-"] * 5,
        ["-", "-", "-", "**0.750** [0.500, 1.000]", "-"],
        ["-"] * 5,
    ]


@pytest.mark.parametrize(
    ("row", "page"),
    [
        ("brats2d-study_error", "block_study"),
        ("brats2d-future-gap", "sequences"),
        ("brats3d-ssmtl-none", "sequences"),
        ("brats2d", "ablation"),
        ("brats2d-georgescu", "ablation"),
        ("brats3d-ssm-gaussian", "ssm"),
        ("brats2d-fastvit_nsa", "anomalies"),
        ("brats2d-anomaly_fpi", "anomalies"),
    ],
)
def test_trials_have_the_page_of_their_row(row, page):
    made = [result(row, 0.5, (0.375, 0.625), missing_folds=[1, 2])]
    for name, (content_of, recipes) in table.PAGES.items():
        if recipes == (table.SHORT,):
            of_regions = page == "sequences"
            assert content_of(made) == (table.trials(made, of_regions) if name == f"docs/{page}.md" else "")


def test_trials_show_what_is_subtracted_from_another_page():
    made = [result(row, 0.5, (0.375, 0.625), missing_folds=[1, 2]) for row in ("brats2d", "brats2d-anomaly_fpi")]
    content_of, _ = table.PAGES["docs/anomalies.md"]
    assert content_of(made) == table.trials(made)
    assert content_of(made[:1]) == ""
    content_of, _ = table.PAGES["docs/ablation.md"]
    assert content_of(made) == table.trials(made[:1])


def test_what_is_not_defined():
    made = result("A", 0.5, (0.375, 0.625))
    made["means"]["all"]["figures"]["slice_auroc"] = {"value": None, "interval": None}
    made["means"]["all"]["difference_to_baseline"]["slice_auroc"] = {"value": None, "interval": None}
    made["means"]["all"]["figures"]["pixel_average_precision"]["interval"] = None
    line = table.tables([made]).splitlines()[3]
    assert line.startswith("|  | A | - | **0.500** [0.375, 0.625] | **0.500** |")
    for run in made["runs"]:
        run.update(training_seconds=900, spread_of_last_third={})
    assert "| 15 | - | 4: " in table.tables([made]).splitlines()[-1]


def test_highlights():
    made = [
        result(
            row, index / 8, (0, 1), recipe=recipe, score=score, data=f"{'LGG' if row == 'lgg2d' else 'BRATS'}, FLAIR"
        )
        for index, (recipe, row, score) in enumerate(table.HIGHLIGHTS, 1)
    ]
    lines = table.highlights(made).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][2:4] == ["slice AUROC", "voxel AP"]
    assert cells[2][:3] == ["BRATS, FLAIR (18 cases)", "FLAIR itself, no network", "0.125 [0.000, 1.000]"]
    assert [line[1] for line in cells[2:]] == list(table.HIGHLIGHTS.values())
    first_of_lgg = [row for _, row, _ in table.HIGHLIGHTS].index("lgg2d")
    heads = {index: line[0] for index, line in enumerate(cells[2:]) if line[0]}
    assert heads == {0: "BRATS, FLAIR (18 cases)", first_of_lgg: "LGG, FLAIR (18 cases)"}
    assert {len(line) for line in cells} == {7}


def test_tables_replace_those_before():
    text = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    filled = table.updated(text, "| A |")
    assert filled == f"before\n{table.BEGIN}\n\n| A |\n\n{table.END}\nafter\n"
    assert table.updated(filled, "| A |") == filled
    assert table.updated(filled, "") == f"before\n{table.BEGIN}\n{table.END}\nafter\n"


@pytest.mark.parametrize(
    "text",
    ["", table.BEGIN, table.END + table.BEGIN, (table.BEGIN + table.END) * 2, table.BEGIN + table.END + table.BEGIN],
)
def test_markers_that_do_not_fit(text):
    with pytest.raises(ValueError, match="The tables belong between one line"):
        table.updated(text, "")


def test_check(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"{table.BEGIN}\n{table.END}\n")
    monkeypatch.setattr(table, "ROOT", tmp_path)
    monkeypatch.setattr(table, "PAGES", {"page.md": (table.tables, ("",))})
    monkeypatch.setattr(table, "load_results", lambda recipe: [result("A", 0.5, (0.375, 0.625))])
    with pytest.raises(SystemExit, match=r"The tables in page\.md are not those of the results"):
        command.main(["table", "--check"])
    assert page.read_text() == f"{table.BEGIN}\n{table.END}\n"
    command.main(["table"])
    command.main(["table", "--check"])
    assert "| A |" in page.read_text()


def test_pages_are_up_to_date():
    command.main(["table", "--check"])
