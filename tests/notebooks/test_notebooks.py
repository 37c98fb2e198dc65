"""The notebooks are kept without outputs, and run as they stand, shortened by their parameters."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import nbclient
import nbformat
import numpy as np
import pytest
from monai.transforms import LoadImage

from ssmctb_monai.data import make_demo_dataset

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
WRITTEN_BY_RUNS = shutil.ignore_patterns("trained", "cache", "eval")
WIDTHS = {f"system#network#{name}_width": 8 for name in ("reconstructive", "discriminative")}
COARSE = {"spacing": [4, 4, 4], "roi_size": [64, 64, 1], **WIDTHS}
SHORT = {
    "01_block_in_a_unet": {"EPOCHS": 2},
    "02_train_and_evaluate": {"ITERATIONS": 1, "SETTINGS": {"modalities": ["flair", "t1ce"], **COARSE}},
    "03_review_heatmaps": {"MAPS_DIR": "runs/maps"},
}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def source_of(notebook, kind):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == kind)


def test_every_notebook_is_executed():
    assert {path.stem for path in NOTEBOOKS} == SHORT.keys()


@each_notebook
def test_notebook_is_valid_and_thin(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) < 15
    assert notebook.metadata.kernelspec.name == "python3"
    functions = re.findall(r"^\s*(?:def|class) .*(?:\n +.*)*", source_of(notebook, "code"), flags=re.MULTILINE)
    assert all(function.count("\n") < 8 for function in functions)


@each_notebook
def test_notebook_is_kept_as_if_it_never_ran(path):
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in raw["metadata"]
    assert len({cell["id"] for cell in raw["cells"]}) == len(raw["cells"])
    for cell in raw["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
        assert re.fullmatch(r"[a-z][a-z0-9-]*", cell["id"]), "a name, not a number that changes when the file is saved"


@each_notebook
def test_first_code_cell_holds_the_parameters_alone(path):
    notebook = nbformat.read(path, as_version=4)
    first, *others = (cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.metadata.tags == ["parameters"]
    assert not any("parameters" in cell.metadata.get("tags", []) for cell in others)
    parameters = {}
    exec(first.source, parameters)
    assert parameters["DATASET_DIR"] is None  # the demo data are the default
    assert not Path(parameters["RUN_DIR"]).is_absolute()
    assert Path(parameters["RUN_DIR"]).parts[0] == "runs"  # which git ignores
    assert SHORT[path.stem].keys() <= parameters.keys()


@each_notebook
def test_notebook_teaches_in_prose(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].source.startswith("# ")
    assert "clinical use" in notebook.cells[0].source
    kinds = [cell.cell_type for cell in notebook.cells]
    assert not any(kinds[index : index + 3] == ["code"] * 3 for index in range(len(kinds)))
    prose = source_of(notebook, "markdown")
    assert len(prose.split()) > 300
    for link in re.findall(r"\]\((?!http)([^)#]+)", prose):
        assert (path.parent / link).exists(), link
    for name in re.findall(r"\d\d_\w+\.ipynb", prose):
        assert (path.parent / name).exists(), name


def test_readme_names_every_notebook():
    readme = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in readme for path in NOTEBOOKS)


@pytest.fixture(scope="session")
def executed(tmp_path_factory):
    """Runs a notebook, once, in a folder like the repository: the outputs by the names of their cells."""
    root = tmp_path_factory.mktemp("repository")
    (root / "notebooks").mkdir()
    shutil.copytree(ROOT / "bundles", root / "bundles", symlinks=True, ignore=WRITTEN_BY_RUNS)
    runs = {}

    def execute(name, **parameters):
        key = name, *parameters.items()
        if key not in runs:
            notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
            lines = [f"{parameter} = {value!r}" for parameter, value in (parameters or SHORT[name]).items()]
            lines += ["import sys", "print(sys.executable)"]
            given = nbformat.v4.new_code_cell("\n".join(lines), id="given")
            first = next(index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code")
            notebook.cells.insert(first + 1, given)
            client = nbclient.NotebookClient(
                notebook,
                timeout=300,
                kernel_name="python3",
                store_widget_state=False,
                resources={"metadata": {"path": str(root / "notebooks")}},
            )
            client.execute(env={**os.environ, "IPYTHONDIR": str(root / ".ipython")})
            outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
            runs[key] = SimpleNamespace(root=root, outputs=outputs)
        return runs[key]

    return execute


def text_of(outputs):
    return "".join(output.text for output in outputs if output.output_type == "stream")


def types_in(outputs):
    return {kind for output in outputs for kind in output.get("data", {})}


def check_clean(run):
    """No warning, error or bare object among the outputs, this Python, and nothing written but runs."""
    assert text_of(run.outputs["given"]).strip() == sys.executable
    for outputs in run.outputs.values():
        assert not [output.text for output in outputs if output.get("name") == "stderr"]
        assert "Traceback" not in text_of(outputs)
    assert {path.name for path in run.root.iterdir()} <= {"bundles", "notebooks", "runs", ".ipython"}
    assert not list(run.root.glob("notebooks/*"))
    assert not [path for name in ("trained", "cache", "eval") for path in run.root.glob(f"bundles/*/{name}")]


@pytest.mark.process
def test_block_in_a_unet(executed):
    run = executed("01_block_in_a_unet")
    check_clean(run)
    assert {name for name, outputs in run.outputs.items() if "image/png" in types_in(outputs)} == {
        "masked",
        "data",
        "train",
        "maps",
    }
    assert "167,184 parameters" in text_of(run.outputs["insert"])
    assert "6 patients for training" in text_of(run.outputs["data"])
    chance, unet, block, brightness = (
        float(value) for value in re.findall(r": (0\.\d+)", text_of(run.outputs["numbers"]))
    )
    assert chance == pytest.approx(0.012, abs=5e-4)
    assert brightness == pytest.approx(0.68, abs=0.02)
    assert 0 < unet < brightness
    assert 0 < block < brightness


@pytest.mark.process
def test_train_and_evaluate(executed):
    run = executed("02_train_and_evaluate")
    check_clean(run)
    results = run.root / "runs" / "02"
    report = json.loads((results / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["cases"] == 3
    assert list(report["methods"]) == ["model", "baseline_flair", "baseline_t1ce"]
    assert json.loads((results / "model_settings.json").read_text(encoding="utf-8"))["spacing"] == [4, 4, 4]
    assert {path.name for path in (results / "report" / "maps").iterdir()} == {
        f"DemoBraTS_{number:05d}.nii.gz" for number in (10, 11, 12)
    }
    assert "Epoch 30/30" in text_of(run.outputs["train"])  # the least number
    value = report["methods"]["model"]["figures"]["pixel_average_precision"]["value"]
    assert f"{value:.3f}" in text_of(run.outputs["evaluate"])
    (table,) = (output.data["text/markdown"] for output in run.outputs["table"])
    head, _, *rows = table.splitlines()
    assert head == "metric | model | baseline_flair | baseline_t1ce | model - baseline_flair | model - baseline_t1ce"
    assert len(rows) == 5
    assert f"| {value:.3f} [" in rows[2]
    assert f"{report['methods']['model']['threshold']['value']:.3g}" in text_of(run.outputs["case"])
    for name in ("curves", "case", "montage"):
        assert "image/png" in types_in(run.outputs[name])


@pytest.mark.process
def test_review_heatmaps(executed):
    trained = executed("02_train_and_evaluate")
    maps = trained.root / "runs" / "02" / "report"
    run = executed("03_review_heatmaps", MAPS_DIR=str(maps))
    check_clean(run)
    assert "3 maps; the first: DemoBraTS_00010" in text_of(run.outputs["maps"])
    for name in ("review", "volume"):
        assert "application/vnd.jupyter.widget-view+json" in types_in(run.outputs[name])


@pytest.mark.process
def test_review_heatmaps_makes_its_maps(executed, tmp_path):
    for name in ("DemoBraTS_00001", "DemoBraTS_00004"):
        (tmp_path / name).symlink_to(make_demo_dataset() / name)
    run = executed("03_review_heatmaps", MAPS_DIR=None, DATASET_DIR=str(tmp_path))
    check_clean(run)
    assert "2 maps; the first: DemoBraTS_00001" in text_of(run.outputs["maps"])
    written = run.root / "runs" / "03" / "eval" / "inference" / "maps" / "DemoBraTS_00001.nii.gz"
    assert np.ptp(LoadImage(image_only=True)(written)) > 0
