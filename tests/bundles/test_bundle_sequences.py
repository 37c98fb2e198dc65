"""Systems that see a slice with its context: training, resumption, evaluation and inference without their overlay."""

from __future__ import annotations

import csv
import json

import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import BUNDLES, folders, messages, workflows

from ssmctb_monai.inferers import SequenceInferer

CONFIGS, CONFIGS_3D = (bundle / "configs" for bundle in BUNDLES)
SMALL = {"system#network#channels": [4, 8], "num_samples": 2, "validation_share": 2, "test_share": 4}
CONTEXT = (-3, 2)
pytestmark = pytest.mark.process


def train(system, dataset_dir, folder, configs=CONFIGS, **given):
    """Two epochs, or as many as are given."""
    files = [configs / "train.json", configs / f"{system}.json"]
    places = {name: str(path) for name, path in folders(folder).items()}
    constant = {"lr_scheduler#lr_lambda": "$lambda epoch: 1.0", "val_interval": 2}
    given = {"dataset_dir": str(dataset_dir), "max_epochs": 2, **SMALL, **constant, **places, **given}
    with workflows() as make:
        make(files, "train", **given).run()
    return folder / "ckpt"


@pytest.fixture(scope="module", params=["future", "mnad", "state"])
def trained(request, dataset_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return train(request.param, dataset_dir, folder, context=list(CONTEXT), modalities=["flair", "t1ce"])


def test_settings_go_with_the_checkpoint(trained, dataset_dir, workflow):
    settings = json.loads((trained / "model_settings.json").read_text(encoding="utf-8"))
    assert (settings["context"], settings["planes"]) == (list(CONTEXT), ["axial"])
    given = {"ckpt_dir": str(trained), "dataset_dir": str(dataset_dir)}
    parser = workflow(CONFIGS / "evaluate.json", "infer", **given).parser
    inferer = parser.get_parsed_content("inferer").inferer
    assert isinstance(inferer, SequenceInferer)
    assert inferer.context == CONTEXT
    assert parser.get_parsed_content("network_def").in_channels == 6
    with pytest.raises(RuntimeError) as caught:
        workflow(CONFIGS / "evaluate.json", "infer", **given, context=[-1]).run()
    assert "was trained with context [-3, 2], not with context [-1]" in messages(caught.value)


def test_evaluation_and_maps(trained, dataset_dir, workflow, tmp_path):
    given = {"ckpt_dir": str(trained), "dataset_dir": str(dataset_dir)}
    options = {"viewer": False, "evaluation#settings#resamples": 10, "output_dir": str(tmp_path / "report")}
    workflow(CONFIGS / "evaluate.json", "infer", **given, **options).run()
    report = json.loads((tmp_path / "report/report.json").read_text(encoding="utf-8"))
    figures = {name: figure["value"] for name, figure in report["methods"]["model"]["figures"].items()}
    assert 0 < figures["pixel_average_precision"] <= 1
    options = {"save_reconstruction": True, "output_dir": str(tmp_path / "maps")}
    workflow(CONFIGS / "inference.json", "infer", **given, **options).run()
    with (tmp_path / "maps/summary.csv").open(encoding="utf-8") as file:
        assert len([*csv.DictReader(file)]) == 8
    assert nibabel.load(tmp_path / "maps/reconstructions/Made_002.nii.gz").shape[3:] == (2,)  # modalities


def test_training_resumes_with_its_adversary(dataset_dir, tmp_path):
    whole = train("future", dataset_dir, tmp_path / "whole")
    train("future", dataset_dir, tmp_path / "broken", max_epochs=1)
    broken = train("future", dataset_dir, tmp_path / "broken", resume=True)
    one, other = (torch.load(ckpt / "training.pt", weights_only=True) for ckpt in (whole, broken))
    for name in ("network", "adversary", "weight_average"):
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)
    model = torch.load(whole / "model.pt", weights_only=True)
    assert all(np.isfinite(value.numpy()).all() for value in model.values())


def test_stacks_of_slices(dataset_dir, workflow, tmp_path):
    """SSMTL++ in windows of 48 slices."""
    small = {"roi_size": [48, 64, 48], "system#network#num_hidden": 24, "system#network#channels": [4, 4, 8, 8]}
    trained = train("ssmtl", dataset_dir, tmp_path / "ssmtl", CONFIGS_3D, **small)
    given = {"ckpt_dir": str(trained), "dataset_dir": str(dataset_dir)}
    options = {"viewer": False, "evaluation#settings#resamples": 10, "output_dir": str(tmp_path / "report")}
    workflow(CONFIGS_3D / "evaluate.json", "infer", **given, **options).run()
    assert "pixel_average_precision" in (tmp_path / "report/report.json").read_text(encoding="utf-8")
    options = {"save_reconstruction": True, "output_dir": str(tmp_path / "maps")}
    work = workflow(CONFIGS_3D / "inference.json", "infer", **given, **options)
    work.run()
    assert work.parser.get_parsed_content("network_def").num_hidden == 24
    scan = nibabel.load(tmp_path / "maps/reconstructions/Made_002.nii.gz")
    assert np.isfinite(scan.get_fdata()).all()
