"""The commands as users type them, on made cases."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import results, rows, runs, table

TINY = {"num_samples": 2, "max_epochs": 3, "roi_size": [32, 32, 32]}
WIDTHS = {f"system#network#{name}_width": 8 for name in ("reconstructive", "discriminative")}


def write_case(folder, name):
    """Noise in a ball; a bright lesion at the right."""
    shape, rng = (48, 48, 40), np.random.default_rng(int(name[-3:]))
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    lesion = np.zeros(shape, bool)
    lesion[37:43, 20:26, 8:14] = True
    brain = ((grid**2).sum(axis=0) < 0.95) | lesion
    affine = np.diag([2.0, 2, 2, 1])
    for kind, image in {"flair": brain * rng.integers(300, 360, shape) + 80 * lesion, "seg": lesion}.items():
        path = folder / name / f"{name}_{kind}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "seg" and name == "Made_002":
            affine[1, 3] = 95
        nibabel.save(nibabel.Nifti1Image(image.astype(np.int16), affine), path)


@pytest.mark.process
def test_rows_from_nothing_to_the_table(tmp_path, monkeypatch):
    for index in range(6):
        write_case(tmp_path / "data", f"Made_{index:03d}")
    other = rows.Row("other system", "brats", "brats3d", ("autoencoder",), {**TINY, "block": "none"})
    draem = rows.Row("DRAEM", "brats", "brats3d", overrides={**TINY, **WIDTHS}, reference="tiny-autoencoder")
    monkeypatch.setitem(rows.ROWS, "tiny-autoencoder", other)
    monkeypatch.setitem(rows.ROWS, "tiny-draem", draem)
    raw = replace(draem, title="maps not smoothed", overrides={**draem.overrides, "smoothing": 0.0})
    monkeypatch.setitem(rows.ROWS, "tiny-raw", replace(raw, reference="tiny-draem"))
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    words = ["--dataset_dir", str(tmp_path / "data"), "--work_dir", str(tmp_path / "work"), "--seeds", "0"]
    command.main(["tiny-autoencoder", *words, "--folds", "1"])
    command.main(["tiny-draem", *words, "--folds", "1"])
    assert "difference_to_reference" in results.load_results()[1]["means"]["all"]
    command.main(["tiny-draem", *words, "--folds", "1", "2"])
    content = results.load_results()[1]
    assert (content["row"], content["missing_folds"]) == ("tiny-draem", [0])
    assert content["repaired"] == ["Made_002"]
    assert [run["fold"] for run in content["runs"]] == [1, 2]
    for run in content["runs"]:
        assert run["epochs"] == 3
        assert run["training_seconds"] > 0
        assert run["versions"]["monai"]
    means = content["means"]["all"]
    values = [run["figures"]["model"]["slice_auroc"] for run in content["runs"]]
    assert means["figures"]["slice_auroc"]["value"] == pytest.approx(np.mean(values), abs=1e-4)
    assert means["figures"]["dice_at_threshold"]["value"] is not None  # the threshold came from training patients
    assert "difference_to_reference" not in means
    assert content["means"]["without fold 0"] == means

    monkeypatch.setattr(runs, "run_training", None)  # what is finished is not trained again
    command.main(["tiny-draem", *words, "--folds", "1", "--score", "block:reconstructive"])
    blocks = results.load_results()[2]
    assert [run["fold"] for run in blocks["runs"]] == [1]
    assert blocks["means"]["all"]["figures"]["dice_at_threshold"]["value"] is None
    assert blocks["means"]["all"]["figures"]["pixel_auroc"]["value"] is not None
    assert blocks["runs"][0]["figures"]["baseline_flair"] == content["runs"][0]["figures"]["baseline_flair"]
    command.main(["tiny-draem", *words, "--folds", "1", "--score", "image"])
    image = results.load_results()[-1]["runs"][0]["figures"]
    assert image["image"]["pixel_auroc"] != blocks["runs"][0]["figures"]["block"]["pixel_auroc"]
    assert image["baseline_flair"] == content["runs"][0]["figures"]["baseline_flair"]
    command.main(["tiny-raw", *words, "--folds", "1"])
    folders = [tmp_path / "work" / name / "fold1_seed0" / "models" for name in ("tiny-draem", "tiny-raw")]
    trained, taken = (torch.load(folder / "model.pt", weights_only=True) for folder in folders)
    assert all(torch.equal(trained[name], taken[name]) for name in trained | taken)
    thresholds = [json.loads((folder / "model_thresholds.json").read_text())["model"]["value"] for folder in folders]
    assert thresholds[0] < thresholds[1]  # of smoother maps it is lower
    assert json.loads((folders[1] / "model_settings.json").read_text())["smoothing"] == [0, 0, 0]
    lines = table.tables(results.load_results()).splitlines()
    assert len([line for line in lines if "| other system (fold 1 alone) |" in line]) == 1  # how its training went
    assert len([line for line in lines if "no network: FLAIR itself" in line]) == 1  # a difference; not all folds
