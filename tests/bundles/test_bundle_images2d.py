"""Folders of images through training, evaluation, inference and report of the 2D bundle."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from bundle_runs import BUNDLES, WIDTHS, folders, workflows
from image_drawings import draw_mvtec, draw_oct, draw_videos
from monai.bundle import ConfigParser

from ssmctb_monai.data import prepare_image_datalist

CONFIGS = BUNDLES[0] / "configs"
SSM = {"system#network#channels": [4, 8, 8], "system#network#cell_sizes": [4, 8], "system#network#uncovering_size": 4}
FUTURE = {"system#network#channels": [4, 8]}
SMALL = {"roi_size": [64, 64, 1], "num_samples": 2, "batch_size": 2, "max_epochs": 1, "device": "cpu"}
CASES = {  # how to draw, systems, sizes, channels; test cases, whether they have masks, slices of each, their folder
    "mvtec with draem": (draw_mvtec, (), WIDTHS, ["red", "green", "blue"], 4, True, 1, "test"),
    "oct with ssm": (draw_oct, ("ssm",), SSM, ["grey"], 8, False, 1, "test"),
    "videos with future": (draw_videos, ("future",), FUTURE, ["grey"], 2, True, 6, "testing"),
}


def files(name, systems):
    return [CONFIGS / f"{part}.json" for part in (name, *systems, "images2d")]


@pytest.fixture(scope="module", params=CASES)
def trained(request, tmp_path_factory):
    """One epoch on a drawn folder."""
    draw, systems, small, modalities, *expected = CASES[request.param]
    folder = tmp_path_factory.mktemp("trained")
    root = draw(folder / "images", training=8)
    places = {name: str(path) for name, path in folders(folder).items()}
    given = {"dataset_dir": str(root), "modalities": modalities, "roi_size": [64, 64, 1]}
    with workflows() as make:
        make(files("train", systems), "train", **{**SMALL, **small, **places, **given}).run()
    count, has_masks, slices, test = expected
    known = SimpleNamespace(count=count, has_masks=has_masks, shape=(64, 48, slices), test=root / test)
    return SimpleNamespace(root=root, given=given, systems=systems, ckpt=folder / "ckpt", folder=folder, **vars(known))


@pytest.mark.process
def test_training(trained):
    settings = json.loads((trained.ckpt / "model_settings.json").read_text(encoding="utf-8"))
    assert (settings["modalities"], settings["planes"]) == (trained.given["modalities"], ["axial"])
    thresholds = json.loads((trained.ckpt / "model_thresholds.json").read_text(encoding="utf-8"))
    assert thresholds["model"]["source"].endswith("in lesion-free regions of 2 cases")


@pytest.mark.process
def test_evaluation(trained, workflow, tmp_path):
    given = {"ckpt_file": str(trained.ckpt / "model.pt"), "output_dir": str(tmp_path), "save_maps": True}
    given |= {"evaluation#settings#resamples": 10, "evaluation#settings#box_levels": 8, "device": "cpu"}
    workflow(files("evaluate", trained.systems), "infer", **{**trained.given, **given}).run()
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (report["cases"], report["failed_cases"]) == (trained.count, [])
    figures = report["methods"]["model"]["figures"]
    assert 0 <= figures["slice_auroc"]["value"] <= 1
    assert (figures["slice_auroc_macro"]["value"] is not None) == (trained.shape[-1] > 1)
    for name in ("pixel_average_precision", "rbdc_of_boxes", "tbdc_of_boxes", "lesion_volume_bias"):
        assert (figures[name]["value"] is not None) == trained.has_masks
    with (tmp_path / "cases.csv").open(newline="", encoding="utf-8") as file:
        assert {bool(row["lesion_ml"]) for row in csv.DictReader(file)} == {trained.has_masks}
    assert (tmp_path / "report.html").is_file()
    (name, *_) = sorted((tmp_path / "maps").iterdir())
    assert nibabel.load(name).shape == trained.shape


@pytest.mark.process
def test_inference(trained, workflow, tmp_path):
    given = {"ckpt_file": str(trained.ckpt / "model.pt"), "output_dir": str(tmp_path), "device": "cpu"}
    given |= {**trained.given, "dataset_dir": str(trained.test), "save_mask": True}
    given |= {"layout": "frames"} if trained.shape[-1] > 1 else {}
    workflow(files("inference", trained.systems), "infer", **given).run()
    with (tmp_path / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == trained.count
    assert not any(row["problem"] for row in rows)
    image = nibabel.load(tmp_path / "maps" / f"{rows[0]['case_id']}.nii.gz")
    assert image.shape == trained.shape
    assert np.isfinite(image.get_fdata()).all()


def test_layout_is_an_option(tmp_path):
    root = draw_mvtec(tmp_path / "bottle", training=2)
    prepare_image_datalist(root, tmp_path / "expected.json", "mvtec", validation=1)
    for layout, is_right in (("mvtec", True), ("oct", False)):
        parser = ConfigParser()
        parser.read_config([str(file) for file in files("train", ())])
        parser.update({"dataset_dir": str(root), "ckpt_dir": str(tmp_path / layout), "layout": layout})
        parser["validation_share"] = 1
        if is_right:
            datalist = parser.get_parsed_content("datalist")
            found, expected = (json.loads(path.read_text()) for path in (datalist, tmp_path / "expected.json"))
            assert found == expected
        else:
            with pytest.raises(RuntimeError, match="datalist") as caught:
                parser.get_parsed_content("datalist")
            assert "There are no images in" in str(caught.value.__cause__)
