"""Two processes, whose overlays both bundles share: equal weights, every case once, and the metrics of one process."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import pytest
import torch
from bundle_runs import ROOT, folders, in_3d, run_on_two, small

from ssmctb_monai.metrics import load_thresholds
from ssmctb_monai.reports import report as report_module

pytestmark = [pytest.mark.process, in_3d]

GIVEN = {"batch_size": 2, "training_share": 3, "validation_share": 3, "test_share": 2, "val_interval": 1}
STATE = """{
    'network': @network.state_dict(), 'average': @train#handler#weight_average.averaged.state_dict(),
    'parameters': [name for name, _ in @network.named_parameters()],
    'figures': @validate#evaluator.state.metrics, 'batches': @train#trainer.state.epoch_length,
    'training': list(@train#sampler), 'validation': list(@validate#dataloader.sampler),
    'validated': [case.case_id for case in @validate#metric.compute().cases]
}"""


def train(bundle, folder, **overrides):
    """Trains on two processes; what each has in the end."""
    folder.mkdir(exist_ok=True)
    saving = f"$torch.save({' '.join(STATE.split())}, r'{folder}/' + str(idist.get_rank()) + '.pt')"
    # the learning rate must not depend on the number of epochs, for a run to go on with more of them
    extra = {"finalize": [saving, "$idist.finalize()"], "lr_scheduler#lr_lambda": "$lambda epoch: 0.5"}
    (folder / "extra.json").write_text(json.dumps(extra))
    files = [f"bundles/{bundle.name}/{name}.json" for name in ("train", "configs/multi_gpu_train")]
    result = run_on_two(
        "training", *files, folder / "extra.json", **{**folders(folder), **small(bundle.name), **GIVEN, **overrides}
    )
    assert result.returncode == 0, result.stderr
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return SimpleNamespace(folder=folder, ckpt=folder / "ckpt", output=result.stdout + result.stderr, ranks=ranks)


def load(path):
    return torch.load(path, weights_only=True)


def same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def check_ranks(run):
    """Weights are equal, and those of the files."""
    one, other = run.ranks
    last = load(run.ckpt / "training.pt")
    for name in one["parameters"]:
        same(one["network"][name], other["network"][name])
    same(one["average"], other["average"])
    same(last["network"], one["network"])
    same(last["weight_average"], one["average"])
    assert not any(name.startswith("module.") for name in load(run.ckpt / "model.pt"))


# ------------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def runs(bundle, dataset_dir, tmp_path_factory):
    """An epoch, and another one after it."""
    folder = tmp_path_factory.mktemp("two") / "run"
    first = train(bundle, folder, dataset_dir=dataset_dir, **{"train#trainer#max_epochs": 1})
    saved = load(folder / "ckpt" / "model.pt")
    check_ranks(first)
    resumed = train(bundle, folder, dataset_dir=dataset_dir, resume="true", **{"train#trainer#max_epochs": 2})
    return SimpleNamespace(first=first, saved=saved, resumed=resumed)


def test_processes_end_with_equal_weights(runs):
    check_ranks(runs.resumed)  # of the first epoch, the fixture looks
    one, other = runs.resumed.ranks
    assert any(not torch.equal(other["network"][name], value) for name, value in one["network"].items())  # statistics
    for name in one["parameters"]:
        assert not torch.equal(runs.first.ranks[0]["network"][name], one["network"][name]), name  # it goes on training


def test_saved_network_is_the_average_of_all(runs):
    average = runs.first.ranks[1]["average"]
    same(dict(runs.saved), {name: average[f"module.{name}"] for name in runs.saved})


def test_processes_share_the_cases(runs):
    one, other = runs.first.ranks
    assert {*one["training"], *other["training"]} == {0, 1, 2}
    assert one["batches"] == other["batches"] == 1  # 4 of 3 cases, one of them twice, in batches of 2 on each
    assert sorted([*one["validation"], *other["validation"]]) == [0, 0, 1, 2]  # each process has as many
    for rank in runs.first.ranks:
        assert len(rank["validated"]) == len(set(rank["validated"])) == 3
    assert one["figures"] == other["figures"]


def test_lines_of_one_process_only(runs):
    assert runs.first.output.count("Epoch 1/1 |") == 1
    assert "Epoch 1/2 |" not in runs.resumed.output
    assert runs.resumed.output.count("Epoch 2/2 |") == 1
    assert runs.resumed.output.count("| pixel_average_precision ") == 1
    events = list((runs.first.folder / "output").glob("events*"))
    assert len(events) in (0, 4)  # without tensorboard; by training and validation of two runs


def test_metrics_of_validation_are_those_of_one_process(bundle, runs, workflow, dataset_dir, tmp_path):
    ckpt = runs.first.ckpt
    made = workflow(
        bundle / "train.json",
        "train",
        **{name: str(path) for name, path in folders(tmp_path).items()},
        **small(bundle.name),
        dataset_dir=str(dataset_dir),
        datalist_file=str(next(ckpt.glob("datalist_*.json"))),
    )
    content = made.parser.get_parsed_content
    content("train#handler#weight_average").averaged.load_state_dict(load(ckpt / "training.pt")["weight_average"])
    evaluator = content("validate#evaluator")
    evaluator.run()
    assert evaluator.state.metrics == pytest.approx(runs.resumed.ranks[1]["figures"], rel=1e-6)
    thresholds = load_thresholds(ckpt / "model_thresholds.json")
    assert "of 3 cases" in thresholds["model"].source
    found = content("validate#metric").label_free_thresholds(content("false_positive_rate"))
    assert thresholds["baseline_flair"] == found["baseline_flair"]  # the model's may be those of the first epoch


def test_one_process_goes_on(bundle, runs, workflow, dataset_dir, tmp_path):
    """With two batches an epoch, where two processes had one."""
    (tmp_path / "ckpt").mkdir()
    for file in runs.resumed.ckpt.iterdir():
        (tmp_path / "ckpt" / file.name).write_bytes(file.read_bytes())
    made = workflow(
        bundle / "train.json",
        "train",
        **{name: str(path) for name, path in folders(tmp_path).items()},
        **small(bundle.name),
        **GIVEN,
        dataset_dir=str(dataset_dir),
        resume=True,
        **{"train#trainer#max_epochs": 3},
    )
    made.run()
    last = load(tmp_path / "ckpt" / "training.pt")
    assert (last["trainer"]["epoch_length"], last["trainer"]["iteration"], last["processes"]) == (2, 6, 1)
    assert last["weight_average"]["n_averaged"] == 2 + 2


def test_resumed_training_is_unbroken_training(bundle, runs, dataset_dir, tmp_path):
    unbroken = train(bundle, tmp_path / "run", dataset_dir=dataset_dir, **{"train#trainer#max_epochs": 2})
    for name in ("training.pt", "model.pt"):
        one, other = load(unbroken.ckpt / name), load(runs.resumed.ckpt / name)
        same(one.get("network", one), other.get("network", other))
        same(one.get("optimizer", {}), other.get("optimizer", {}))
    assert unbroken.ranks[0]["figures"] == runs.resumed.ranks[0]["figures"]


# ----------------------------------------------------------------------------------------------------------- evaluation


def split_of(folder, cases, *broken):
    """Writes a datalist of cases, and cases that are broken."""
    entries = [
        {
            "case_id": name,
            "image": {kind: f"{name}/{name}_{kind}.nii.gz" for kind in ("flair", "t1ce")},
            "label": f"{name}/{name}_seg.nii.gz",
        }
        for name in cases
    ]
    for entry in entries:
        if entry["case_id"] in broken:
            entry["label"] = "nowhere.nii.gz"
    (folder / "datalist.json").write_text(json.dumps({"test": entries}))
    return folder / "datalist.json"


@pytest.fixture
def evaluate_both(bundle, trained, dataset_dir, tmp_path, workflow, monkeypatch):
    """Evaluates on two processes and on one."""

    def evaluate(*cases, broken=()):
        given = {
            "ckpt_file": str(trained.folder / "ckpt" / "model.pt"),
            "dataset_dir": str(dataset_dir),
            "datalist_file": str(split_of(tmp_path, cases, *broken)),
            "evaluation#settings#resamples": 10,
            "save_maps": True,
        }
        files = [f"bundles/{bundle.name}/{name}.json" for name in ("evaluate", "configs/multi_gpu_evaluate")]
        result = run_on_two("evaluating", *files, output_dir=tmp_path / "two", **given)
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(report_module, "render_html", lambda *arguments: "")
        made = workflow(bundle / "evaluate.json", "infer", output_dir=str(tmp_path / "one"), **given)
        if broken:
            with pytest.raises(RuntimeError):
                made.run()
        else:
            made.run()
        reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("two", "one")]
        for report in reports:
            del report["created"]
        assert reports[0] == reports[1]
        for name in ("cases.csv", "slices.csv"):
            assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()
        with (tmp_path / "two" / "cases.csv").open(newline="") as file:
            counted = [row["case_id"] for row in csv.DictReader(file) if row["method"] == "model"]
        assert sorted(path.name for path in (tmp_path / "two" / "maps").iterdir()) == [f"{x}.nii.gz" for x in counted]
        assert counted == sorted(set(cases) - set(broken))
        return result

    return evaluate


def test_evaluation_of_an_odd_number_of_cases(evaluate_both):
    result = evaluate_both("Made_001", "Made_003", "Made_004")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("3 cases of 3 patients") == 1


def test_a_case_that_cannot_be_evaluated(evaluate_both):
    """Neither its process, which the others wait for, nor one that fails before the report is written, spoils it."""
    result = evaluate_both("Made_001", "Made_003", "Made_004", "Made_005", broken=["Made_003"])
    assert result.returncode != 0
    assert result.stdout.count("Made_003 cannot be used") == 1
    assert "nowhere.nii.gz does not exist" in result.stderr


def test_a_process_without_cases(evaluate_both):
    result = evaluate_both("Made_001")
    assert result.returncode == 0, result.stderr
