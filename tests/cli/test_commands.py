"""What the command makes of its words; workflows themselves run in test_walk.py and with the bundles."""

import json
import re
import shlex
import shutil
from pathlib import Path

import monai.bundle
import nibabel
import numpy as np
import pytest
from click import ClickException
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from ssmctb_monai.cli import main
from ssmctb_monai.cli.bundles import Bundle
from ssmctb_monai.cli.workflow import plain_errors

ROOT = Path(__file__).parents[2]
BRATS_3D = {"bundle_root": "runs/brats3d"}
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, words)


@pytest.fixture
def runs(monkeypatch):
    """What is given to MONAI, which is not run."""
    found = []
    monkeypatch.setattr(monai.bundle, "run", lambda run_id, **options: found.append((run_id, options)))
    return found


def write(path, array):
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), np.eye(4)), path)


@pytest.mark.parametrize(
    ("words", "run_id", "configs", "options"),
    [
        ("train", "training", ["brats2d/configs/train.json"], {}),
        (
            "train --dims 3 --system ssm --overlay multi_gpu_train --train#trainer#max_epochs 1 --normal-score=null",
            "training",
            [f"brats3d/configs/{name}.json" for name in ("train", "ssm", "multi_gpu_train")],
            {"bundle_root": "runs/brats3d", "train#trainer#max_epochs": 1, "normal_score": "$None"},
        ),
        (
            "train --modalities ['flair','t1'] --dataset_dir 2021 --bundle_root mine --resume",
            "training",
            ["brats2d/configs/train.json"],
            {"modalities": ["flair", "t1"], "dataset_dir": "2021", "bundle_root": "mine", "resume": "true"},
        ),
        ("evaluate --section validation", "evaluating", ["brats2d/configs/evaluate.json"], {"section": "validation"}),
        (
            "infer --dims 3",
            "inference",
            ["brats3d/configs/inference.json"],
            {"bundle_root": "runs/brats3d", "ckpt_file": str(Bundle(3).weights()["brats"])},
        ),
        ("train --system ssmtl", "training", [f"brats3d/configs/{name}.json" for name in ("train", "ssmtl")], BRATS_3D),
        ("infer --system mae", "inference", [f"brats2d/configs/{name}.json" for name in ("inference", "mae")], {}),
    ],
)
def test_words_become_options(invoke, runs, words, run_id, configs, options):
    result = invoke(*shlex.split(words))
    assert result.exit_code == 0, result.output
    ((found, given),) = runs
    files = given.pop("config_file")
    assert found == run_id
    assert [str(Path(file).relative_to(ROOT / "bundles")) for file in files] == configs
    defaults = {"bundle_root": "runs/brats2d", **({"output_dir": "runs/maps"} if run_id == "inference" else {})}
    assert given == {**defaults, **options}


def test_scan_and_weights_of_files(invoke, runs, tmp_path):
    """Names are never expressions, and weights know for how many dimensions they are."""
    for name in ("$scan, 2.nii.gz", "own.pt"):
        (tmp_path / name).touch()
    (tmp_path / "own_settings.json").write_text('{"spatial_dims": 3}')
    assert invoke("infer", "--weights", "own.pt", "$scan, 2.nii.gz", "--output-dir", "[maps").exit_code == 0
    ((_, given),) = runs
    assert Path(given["config_file"][0]) == Bundle(3).config("inference")
    assert given["ckpt_file"] == "own.pt"
    assert given["dataset_dir"] == str(tmp_path / "$scan, 2.nii.gz")
    assert given["bundle_root"] == "runs/brats3d"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("train --system sms", "there is no system 'sms', only mae, autoencoder, ssm"),
        ("train --system future --dims 3", "The system future is one of brats2d alone."),
        ("train --dim 3", "--dims"),
        ("train --overlay nothing", "There is no overlay nothing"),
        ("infer --weights lgg", "there is no file lgg; with the package come brats."),
        ("infer nothing.nii.gz", "'nothing.nii.gz' does not exist"),
        ("infer . --dataset_dir .", "Give the scans once"),
        ("report a/maps b/maps --dataset_dir .", "Two folders have one name"),
        ("bundle brats2d .", ". exists"),
    ],
)
def test_words_that_cannot_be_used(invoke, runs, words, reason):
    result = invoke(*shlex.split(words))
    assert result.exit_code == 2
    assert reason in result.output.splitlines()[-1]
    assert runs == []


def test_last_line_of_an_error_is_its_reason(invoke, monkeypatch):
    def refused(run_id, **options):
        try:
            raise ValueError("training has no option --itertions. Did you mean --iterations?")
        except ValueError as error:
            raise RuntimeError("Failed to evaluate an expression") from error

    monkeypatch.setattr(monai.bundle, "run", refused)
    result = invoke("train", "--itertions", "3")
    assert result.exit_code == 1
    assert result.output == "Error: training has no option --itertions. Did you mean --iterations?\n"


def test_interruption(invoke, monkeypatch):
    def interrupted(run_id, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(monai.bundle, "run", interrupted)
    assert invoke("train").exit_code == 130


@pytest.mark.parametrize(
    ("words", "dims", "heading"),
    [("train", 2, "Training"), ("train --dims 3", 3, "Training"), ("evaluate", 2, "Eval"), ("infer", 2, "Inference")],
)
def test_help_and_completion_have_the_options_of_the_docs(invoke, words, dims, heading):
    command, *dimension = words.split()
    docs = (ROOT / f"bundles/brats{dims}d/docs/README.md").read_text("utf-8")
    (section,) = re.findall(rf"^## {heading}.*?(?=^## )", docs, re.M | re.S)
    names = {name for row in re.findall(r"^\| (`--.*?) \|", section, re.M) for name in re.findall(r"--[\w#]+", row)}
    text = invoke(command, *dimension, "--help").output
    assert len(names) > 5
    assert [name for name in sorted(names) if name not in text] == []
    found = ShellComplete(main, {}, "ssmctb", "").get_completions([command, *dimension], "--")
    assert {item.value for item in found} >= names | {"--system"}


def test_completion_of_systems_and_files():
    complete = ShellComplete(main, {}, "ssmctb", "").get_completions
    assert [item.value for item in complete(["train", "--system"], "cut")] == ["cutpaste", "cutpaste_classifier"]
    assert [item.type for item in complete(["train", "--dataset_dir"], "da")] == ["file"]


def test_systems(invoke):
    configs = {file.stem: json.loads(file.read_text("utf-8")) for file in ROOT.glob("bundles/sources/systems/*.json")}
    listed = dict(re.findall(r"^(\w+)  +(.*)", invoke("systems").output, re.M))
    assert listed.keys() == configs.keys()
    assert listed["autoencoder"].startswith("MONAI's AutoEncoder")
    assert '--context "[-16,16]" takes' in " ".join(invoke("systems").output.split())


def test_a_bundle_to_be_changed(invoke, tmp_path):
    result = invoke("bundle", "brats3d", "mine")
    assert (tmp_path / "mine/models/model.pt").read_bytes() == Bundle(3).weights()["brats"].read_bytes()
    assert (tmp_path / "mine/train.json").is_file()
    assert "--config_file mine/configs/train.json --bundle_root mine" in result.output


def test_report_and_review(invoke, tmp_path, monkeypatch):
    """A map whose lesion is found, and one that lacks its label."""
    lesion = np.zeros((24, 24, 24))
    lesion[8:16, 8:16, 8:16] = 1
    write(tmp_path / "labels" / "one.nii.gz", lesion)
    write(tmp_path / "maps" / "one.nii.gz", 0.1 + 0.8 * lesion)
    assert invoke("report", "maps", "--dataset_dir", "labels", "--output_dir", "out").exit_code == 0
    report = json.loads((tmp_path / "out/report.json").read_text("utf-8"))
    assert report["methods"]["maps"]["figures"]["pixel_average_precision"]["value"] == 1
    shutil.copytree(tmp_path / "maps", tmp_path / "lr=0.1")
    monkeypatch.chdir(tmp_path / "maps")
    assert invoke("report", ".", "../lr=0.1", "--dataset_dir", "../labels", "--output_dir", "../out").exit_code == 0
    assert set(json.loads((tmp_path / "out/report.json").read_text("utf-8"))["methods"]) == {"maps", "lr=0.1"}
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "maps" / "two.nii.gz", lesion)
    result = invoke("report", "ours=maps", "--dataset_dir", "labels", "--output_dir", "out")
    assert result.exit_code == 1
    assert "it belongs to no case" in result.output.splitlines()[-1]
    result = invoke("review", "maps", "--no-open")
    assert result.exit_code == 1
    assert "give their folder as `dataset_dir`" in result.output.splitlines()[-1]


def test_review_keeps_a_notebook_that_was_changed(invoke, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    scores = np.random.default_rng(0).random((12, 12, 12))
    for folder in ("one", "two"):
        write(tmp_path / folder / "P1_flair.nii.gz", scores)
    write(tmp_path / "maps" / "P1.nii.gz", scores)
    file = tmp_path / "maps" / "review.ipynb"
    for folder in ("one", "two"):
        assert invoke("review", "maps", "--dataset_dir", folder, "--no-open").exit_code == 0
        assert str(tmp_path / folder) in file.read_text("utf-8")
    notebook = nbformat.read(file, 4)
    notebook.cells.append(nbformat.v4.new_code_cell("mine"))
    nbformat.write(notebook, file)
    result = invoke("review", "maps", "--dataset_dir", "one", "--no-open")
    assert "maps/review.ipynb was changed and stays as it is" in result.output
    assert nbformat.read(file, 4) == notebook


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_the_docs_are_understood(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = document.read_text("utf-8").replace("\\\n", " ").replace("/path/to/", "data/")
    for line in re.findall(r"^ssmctb (.*)$", text, re.M):
        name, *words = shlex.split(line, comments=True)
        for path in [Path(word.rpartition("=")[2]) for word in words if "/" in word]:
            (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
            if path.suffix:
                path.touch()
        main.commands[name].make_context(name, words)


@pytest.mark.parametrize(
    "around", [None, RuntimeError("Failed to evaluate ConfigExpression"), ValueError("applying transform x")]
)
def test_the_error_that_names_the_file_is_shown(around):
    """Not what is behind it, nor what MONAI puts around it."""

    def fail():
        try:
            try:
                json.loads("{")
            except ValueError as error:
                raise ValueError("datalist.json is damaged") from error
        except ValueError as error:
            if around is None:
                raise
            raise around from error

    with pytest.raises(ClickException, match=r"^datalist.json is damaged$"), plain_errors():
        fail()
